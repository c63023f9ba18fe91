"""What a compiled program moves and computes: walked through its loops, as often as they run.

Compilers count a loop's body once; here each computation counts as often as it is called.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxift.planning.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id", "after-all",
    "copy-done", "slice-done", "async-done", "async-update", "iota", "optimization-barrier", "opt-barrier",
}  # fmt: skip
_ASYNC_COPY = {"copy-start", "slice-start", "dynamic-slice-start"}
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d, ]+))\))? ?\{([^}]*)\}"
)

Trips = Callable[[Instruction], float | None]
"""How often a loop runs whose bound is no constant; None: not known."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """What devices exchange by one instruction, all its runs together."""

    kind: str
    shape: Shape
    """Of what is gathered, reduced, scattered or sent."""
    group: tuple[int, ...]
    """The first of the groups that exchange it, by the numbers of devices in the mesh's order."""
    times: float

    @property
    def received(self) -> float:
        """Bytes that each device receives at least, in all runs, where no network adds on the way."""
        share = (len(self.group) - 1) / len(self.group)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.shape.bytes * factor


@dataclasses.dataclass
class Traffic:
    """What one run of a program moves on each device."""

    hbm_bytes: float
    collectives: list[Collective]
    kernels: dict[str, float]
    """How often each kernel runs that is not the compiler's own."""
    unknown_loops: list[str]
    """Loops that were counted once, since nobody knows how often they run."""

    @property
    def received(self) -> float:
        """Bytes that each device receives from others."""
        return sum(each.received for each in self.collectives)


def traffic(module: Module, trips: Trips = lambda _: None) -> Traffic:
    """Adds up a program; `trips` says how often loops run whose bound the text does not tell."""
    walk = _Walk(module, trips)
    walk.through(module[module.entry], 1.0)
    return Traffic(walk.hbm, walk.collectives, dict(walk.kernels), walk.unknown)


class _Walk:
    def __init__(self, module: Module, trips: Trips):
        self.module, self.trips = module, trips
        self.hbm = 0.0
        self.collectives: list[Collective] = []
        self.kernels: dict[str, float] = collections.defaultdict(float)
        self.unknown: list[str] = []

    def through(self, computation: Computation, times: float) -> None:
        """Adds a computation that runs so many times."""
        channels: set[str] = set()
        for each in computation.instructions.values():
            if each.opcode == "while":
                self.through(self.module[str(each.attribute("body"))], times * self._trips(each))
            elif each.opcode == "conditional":
                branches = _branches(each)
                for branch in branches:
                    self.through(self.module[branch], times / len(branches))
            elif each.opcode in ("call", "async-start"):
                self.through(self.module[str(each.attribute("to_apply") or each.attribute("calls"))], times)
            elif each.opcode not in _FREE:
                self._add(computation, each, times, channels)

    def _add(self, computation: Computation, each: Instruction, times: float, channels: set[str]) -> None:
        inside = self.module[str(each.attribute("calls"))] if each.opcode == "fusion" else None
        for found in [each] if inside is None else inside.instructions.values():
            kind = found.opcode.removesuffix("-start")
            channel = found.attribute("channel_id")
            if kind in COLLECTIVES and (channel is None or channel not in channels):
                channels.add(str(channel))
                self._exchange(inside or computation, found, kind, times, scattered="scatter" in each.name)
        if each.opcode == "custom-call" and each.attribute("custom_call_target") == "tpu_custom_call":
            self.kernels[each.name.rpartition(".")[0] or each.name] += times
        self.hbm += times * hbm_bytes(self.module, computation, each)

    def _exchange(self, where: Computation, each: Instruction, kind: str, times: float, scattered: bool) -> None:
        """Notes a collective; of a reduction that is cut the parts are what counts, as in a reduce-scatter."""
        largest = max([*each.shapes, *_inputs(where, each)], key=lambda shape: shape.bytes)
        kind = "reduce-scatter" if kind == "all-reduce" and scattered else kind
        parts = [shape for shape in each.shapes if kind == "all-reduce"] or [largest]
        for shape in parts:  # of several arrays in one
            self.collectives.append(Collective(kind, shape, groups(each.attributes)[0], times))
        self.hbm += times * sum(shape.bytes for shape in (*each.shapes, *_inputs(where, each)) if shape.in_hbm)

    def _trips(self, loop: Instruction) -> float:
        known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.attributes)
        condition, body = (self.module[str(loop.attribute(name))] for name in ("condition", "body"))
        found = float(known[1]) if known else _counted(condition, body)
        if found is None:
            found = self.trips(loop)
        if found is None:
            self.unknown.append(loop.name)
        return 1.0 if found is None else found


def _branches(each: Instruction) -> list[str]:
    """The computations of which one is run."""
    listed = each.attributes.partition("branch_computations={")[2].partition("}")[0]
    names = re.findall(r"%([\w.\-]+)", listed)
    return names or [str(each.attribute(f"{way}_computation")) for way in ("true", "false")]


def _inputs(where: Computation, each: Instruction) -> list[Shape]:
    return [shape for name in each.operands if name in where.instructions for shape in where.instructions[name].shapes]


def _counted(condition: Computation, body: Computation) -> float | None:
    """How often a loop runs that counts from 0 to a constant."""
    root = condition.root
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    counter, bound = (condition.instructions[name] for name in root.operands)
    if bound.opcode != "constant" or counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
        return None
    after = body.instructions[body.root.operands[int(counter.attribute("index") or 0)]]
    steps = [body.instructions[name].given for name in after.operands if body.instructions[name].opcode == "constant"]
    return float(bound.given) / float(steps[0]) if after.opcode == "add" and len(steps) == 1 else None


def hbm_bytes(module: Module, computation: Computation, each: Instruction) -> int:
    """Bytes that an instruction reads from HBM and writes there, what collectives move left out."""
    sources = [computation.instructions[name] for name in each.operands if name in computation.instructions]
    if each.opcode in _ASYNC_COPY:
        copied = min(shape.bytes for shape in each.shapes[:2])
        return sum(copied for shape in each.shapes[:2] if shape.in_hbm)
    if each.opcode.removesuffix("-start") in COLLECTIVES or each.opcode.endswith("-done"):
        return 0
    if each.opcode == "dynamic-update-slice":
        return 2 * sum(shape.bytes for shape in sources[1].shapes if shape.in_hbm)
    if each.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * sum(shape.bytes for shape in each.shapes if shape.in_hbm)
    if each.opcode != "fusion":
        arrays = [shape for source in sources for shape in source.shapes] + list(each.shapes)
        return sum(shape.bytes for shape in arrays if shape.in_hbm)
    inside = module[str(each.attribute("calls"))]
    read = 0
    for place, source in enumerate(sources):
        if len(source.shapes) == 1 and source.shapes[0].in_hbm:
            read += _needed(module, inside, place, source.shapes[0].bytes)
    return read + _written(each.shapes, inside)


def _needed(module: Module, inside: Computation, place: int, size: int) -> int:
    """What a fusion reads of its parameter: of an array that is only cut, also by a fusion within, the parts."""
    parts = 0
    for user, operand in inside.users(inside.parameters[place].name):
        if user.opcode in ("dynamic-slice", "gather", "slice") and operand == 0:
            parts += user.shapes[0].bytes
        elif user.opcode == "fusion":
            parts += _needed(module, module[str(user.attribute("calls"))], operand, size)
        elif user.opcode in ("tuple", "custom-call", *COLLECTIVES) or (
            user.opcode == "dynamic-update-slice" and operand == 0
        ):
            continue
        else:
            return size
    return min(parts, size)


def _written(shapes: Sequence[Shape], inside: Computation) -> int:
    """What a fusion writes: of an array that is only changed in part, that part."""
    root = inside.root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    total = 0
    for shape, name in zip(shapes, names, strict=False):
        made = inside.instructions[name]
        while made.opcode == "bitcast":
            made = inside.instructions[made.operands[0]]
        if not shape.in_hbm or made.opcode in ("parameter", "custom-call", *COLLECTIVES):
            continue
        if made.opcode == "dynamic-update-slice":
            total += inside.instructions[made.operands[1]].shapes[0].bytes
        else:
            total += shape.bytes
    return total


def groups(attributes: str) -> list[tuple[int, ...]]:
    """The groups of devices of a collective, in any of the ways in which HLO writes them."""
    if found := _LISTED.search(attributes):
        text = attributes[found.start() :].partition("={")[2].partition("}}")[0]
        return [tuple(int(each) for each in part.split(",") if each) for part in text.strip("{}").split("},{")]
    if found := _IOTA.search(attributes):
        return _cut(_ordered(found[3], found[4]), int(found[2]))
    if found := _MESH.search(attributes):
        axes = dict((name.strip("' "), int(size)) for name, size in re.findall(r"('[^']*'|[\w]+)=(\d+)", found[1]))
        mine = [name.strip("' ") for name in found[5].split(",")]
        others = [name for name in axes if name not in mine]
        names = list(axes)
        order = [names.index(name) for name in (*others, *mine)]
        places = _transposed(list(axes.values()), order)
        if found[2] or found[4]:  # the mesh's devices are not in the order of their numbers
            devices = _ordered(found[2], found[3]) if found[2] else [int(each) for each in found[4].split(",")]
            places = [devices[place] for place in places]
        return _cut(places, math.prod(axes[name] for name in mine))
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return [(int(pairs[1]), int(pairs[2]))]
    raise ValueError(f"the devices of a collective are not told in a way that is known: {attributes[:200]}")


def _ordered(sizes: str, order: str | None) -> list[int]:
    """The numbers of a text such as [2,8]T(1,0)."""
    lengths = [int(each) for each in sizes.split(",")]
    axes = [int(each) for each in order.split(",")] if order else list(range(len(lengths)))
    return _transposed(lengths, axes)


def _transposed(sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """The numbers 0, 1, ... laid out by sizes, read in another order of axes."""
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(-1).tolist()


def _cut(numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def by_kind(found: Sequence[Collective]) -> Mapping[str, float]:
    """Bytes received by kind of collective."""
    total: dict[str, float] = collections.defaultdict(float)
    for each in found:
        total[each.kind] += each.received
    return dict(total)
