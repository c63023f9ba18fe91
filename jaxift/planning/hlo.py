"""A compiled program's text as data: computations, instructions, shapes, and where in memory results lie.

Names and layouts are those of XLA's HLO text (openxla.org/xla/operation_semantics, openxla.org/xla/shapes).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16, "f16": 16,
    "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, sizes, and whether it lies in HBM: what has another memory space is on the chip."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        return self.elements * BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `shapes` are those of its results, an entry each of a tuple."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    given: str
    """What stands between the parentheses after the opcode."""
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The computation or value that an attribute names."""
        found = re.search(rf"\b{name}=[%\"]?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in order, by name."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """Whose result is the computation's."""
        return next(each for each in self.instructions.values() if each.is_root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """What it is called with, in order."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.given))

    def users(self, name: str) -> Iterator[tuple[Instruction, int]]:
        """Instructions that take a result, through bitcasts, and as which operand."""
        for each in self.instructions.values():
            for place, operand in enumerate(each.operands):
                if operand == name:
                    if each.opcode == "bitcast":
                        yield from self.users(each.name)
                    else:
                        yield each, place


@dataclasses.dataclass(frozen=True)
class Module:
    """A program's computations."""

    computations: Mapping[str, Computation]
    entry: str

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Module:
    """Reads the text of an optimised module; raises ValueError where it has no entry."""
    computations, entry, name = {}, "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, instructions = header[2], {}
            computations[name] = Computation(name, instructions)
            entry = name if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of the program has no entry computation")
    return Module(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.search(text, end)
    assert opcode, text[:200]
    close = _closing(text, opcode.end() - 1)
    given = text[opcode.end() : close]
    operands = tuple(_NAME.findall(given))
    return Instruction(name, opcode[1], _shapes(text[:end]), operands, given, text[close + 1 :], is_root)


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, sizes, layout in _SHAPE.findall(text):
        numbers = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        found.append(Shape(dtype, numbers, "S(" not in layout))
    return tuple(found)


def _closing(text: str, start: int = 0) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[:200]}")
