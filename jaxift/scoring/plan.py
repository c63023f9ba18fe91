"""What is fed when: each prefix before the rows that follow it, in the order of the prefix tree.

A *lane* is a share of the mesh's batch axis: it holds one prefix at a time, and all lanes run the same program at once.
The plan is a function of the requests and of the layout alone, so that every host makes the same one.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxift.scoring.packing import Layout, Row, choose_lengths, cut_steps, pack, round_up
from jaxift.scoring.tree import Group, Item, Tree, common, divide, lay

SLOTS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
COLUMNS = (64, 128, 256, 512)
"""Room for prefixes; more is a multiple of the last."""
MOST_TARGETS = 32


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a step in one lane: `rows` of `length` tokens, `slots` scored places of up to `targets` tokens."""

    rows: int
    length: int
    slots: int
    targets: int

    @property
    def tokens(self) -> int:
        """Tokens of a lane, padding included."""
        return self.rows * self.length


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Computes columns of the prefixes: lane l feeds `counts[l]` tokens of leaf `leaves[l]` from `starts[l]` on."""

    length: int
    leaves: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """Scores rows: lane l feeds `rows[l]`, items side by side, behind a prefix of `depths[l]` tokens."""

    shape: Shape
    depths: tuple[int, ...]
    rows: tuple[tuple[Row, ...], ...]


@dataclasses.dataclass(frozen=True)
class Portion:
    """Items behind one prefix that one lane scores."""

    leaf: int
    depth: int
    items: list[Item]

    @property
    def size(self) -> int:
        """Tokens of all items."""
        return sum(item.size for item in self.items)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All work in order; part p is `parts[p]` of it and ends with a step. `columns` is the room that prefixes need."""

    tree: Tree
    layout: Layout
    work: list[Prefill | Step]
    parts: list[range]
    columns: int

    @functools.cached_property
    def digest(self) -> str:
        """Hash of everything that is fed and in which order."""
        total = hashlib.sha256((self.tree.digest() + repr(self.layout)).encode())
        for piece in self.work:
            total.update(repr(piece).encode())
        return total.hexdigest()[:24]

    @property
    def fed_tokens(self) -> int:
        """Tokens that go through the model, padding and repetitions included."""
        return sum(map(self.tokens, self.work))

    def tokens(self, piece: Prefill | Step) -> int:
        """Tokens of one piece of the work, padding included."""
        return self.layout.lanes * (piece.length if isinstance(piece, Prefill) else piece.shape.tokens)

    @property
    def useful_tokens(self) -> int:
        """Distinct tokens of the tree: what would be fed without padding and repetition."""
        return int((self.tree.lengths - self.tree.shared).sum())


def make_plan(tree: Tree, layout: Layout) -> Plan:
    """Plans a tree's scoring; asserts that every leaf is scored exactly once."""
    groups = divide(tree, layout.item_limit, layout.pair_cost) if tree.tokens else []
    rounds = _rounds(_portions(groups, layout), layout.lanes)
    portions = [portion for each in rounds for portion in each if portion]
    lengths = choose_lengths([[item.size for item in portion.items] for portion in portions], layout)
    asked = {item: _asked(tree, item) for group in groups for item in group.items}
    work: list[Prefill | Step] = []
    loaded: list[tuple[int, int]] = [(0, 0)] * layout.lanes
    for each in rounds:
        work += _prefills(tree, each, loaded, layout.prefill_lengths)
        work += _steps(each, lengths, layout)
    work = _shaped(work, asked)
    scored = sorted(
        leaf for step in work if isinstance(step, Step) for row in _rows(step) for item in row for leaf in item.leaves
    )
    assert scored == list(range(len(tree.tokens))), "a leaf is not scored exactly once"
    # lanes without tokens write as well, behind what they hold: there must be room
    ends = [max(piece.starts) + piece.length for piece in work if isinstance(piece, Prefill)]
    return Plan(tree, layout, work, _parts(work, layout.part_steps), round_up(max(ends, default=1), COLUMNS, 512))


def _portions(groups: Sequence[Group], layout: Layout) -> list[Portion]:
    """One lane takes groups as they are; for several, large ones are cut, but not below the cost of their prefix."""
    if layout.lanes == 1:
        return [Portion(group.leaf, group.depth, group.items) for group in groups]
    goal = max(sum(group.size for group in groups) / (8 * layout.lanes), 1.0)
    portions = []
    for group in groups:
        pieces = max(1, min(round(group.size / goal), group.size // max(group.depth, 1), len(group.items)))
        ordered = sorted(group.items, key=lambda item: (-item.size, item.low))
        portions += [Portion(group.leaf, group.depth, ordered[piece::pieces]) for piece in range(pieces)]
    return sorted(portions, key=lambda portion: (-portion.size, portion.leaf, portion.items[0].low))


def _rounds(portions: Sequence[Portion], lanes: int) -> list[list[Portion | None]]:
    """Portions of like size side by side, since lanes step together; a lane without one is idle."""
    cut = [list[Portion | None](portions[start : start + lanes]) for start in range(0, len(portions), lanes)]
    return [each + [None] * (lanes - len(each)) for each in cut]


def _prefills(
    tree: Tree, portions: Sequence[Portion | None], loaded: list[tuple[int, int]], lengths: tuple[int, int]
) -> list[Prefill]:
    """Computes what each lane's prefix does not share with the one that it holds; `loaded` (leaf, depth) is updated."""
    starts, ends, leaves = [], [], []
    for portion, (leaf, depth) in zip(portions, loaded, strict=True):
        wanted, end = (leaf, 0) if portion is None else (portion.leaf, portion.depth)
        starts.append(min(end, depth, common(tree.tokens[leaf], tree.tokens[wanted])))
        ends.append(end)
        leaves.append(wanted)
    if starts != ends:
        # a lane without tokens writes padding behind its prefix: what it held there is lost
        loaded[:] = zip(leaves, ends, strict=True)
    found = []
    while left := max(end - start for start, end in zip(starts, ends, strict=True)):
        length = lengths[0] if left > 3 * lengths[1] else lengths[1]
        counts = [min(length, end - start) for start, end in zip(starts, ends, strict=True)]
        found.append(Prefill(length, tuple(leaves), tuple(starts), tuple(counts)))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    return found


def _steps(portions: Sequence[Portion | None], lengths: Sequence[int], layout: Layout) -> list[Step]:
    """The steps of one round: rows of each length, cut into large steps and a few smaller ones at the end."""
    depths = tuple(0 if portion is None else portion.depth for portion in portions)
    packed = pack([portion.items if portion else [] for portion in portions], lengths, layout)
    steps = []
    for length in lengths:
        lanes = [rows.get(length, []) for rows in packed]
        start, count = 0, max(map(len, lanes))
        for rows in cut_steps(count, max(1, layout.step_tokens // length)):
            fed = tuple(tuple(lane[start : start + rows]) for lane in lanes)
            steps.append(Step(Shape(rows, length, 0, 0), depths, fed))
            start += rows
    return steps


def _asked(tree: Tree, item: Item) -> tuple[int, int]:
    """Slots of an item, and the most targets of one of them."""
    targets = lay(tree, item, MOST_TARGETS).targets
    return len(targets), max(map(len, targets))


def _shaped(work: Sequence[Prefill | Step], asked: dict[Item, tuple[int, int]]) -> list[Prefill | Step]:
    """Gives all steps of the same rows the slots and targets of the one that needs most."""
    needed: dict[tuple[int, int], tuple[int, int]] = {}
    for step in work:
        if isinstance(step, Step):
            lanes = [[asked[item] for row in rows for item in row] for rows in step.rows]
            slots = max(sum(each for each, _ in lane) for lane in lanes)
            targets = max((each for lane in lanes for _, each in lane), default=1)
            key = (step.shape.rows, step.shape.length)
            most = needed.get(key, (1, 1))
            needed[key] = (max(most[0], slots), max(most[1], targets))
    shapes = {
        key: Shape(*key, round_up(slots, SLOTS, SLOTS[-1]), 1 << (targets - 1).bit_length())
        for key, (slots, targets) in needed.items()
    }
    return [
        dataclasses.replace(piece, shape=shapes[piece.shape.rows, piece.shape.length])
        if isinstance(piece, Step)
        else piece
        for piece in work
    ]


def _parts(work: Sequence[Prefill | Step], part_steps: int) -> list[range]:
    """Cuts the work behind every so many steps."""
    ends = [index + 1 for index, piece in enumerate(work) if isinstance(piece, Step)]
    bounds = [0, *ends[part_steps - 1 :: part_steps]]
    if ends and bounds[-1] != ends[-1]:
        bounds.append(ends[-1])
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def _rows(step: Step) -> Iterator[Row]:
    return itertools.chain.from_iterable(step.rows)


def _busy(piece: Prefill) -> list[int]:
    return [lane for lane, count in enumerate(piece.counts) if count]


def needed_prefills(pieces: Sequence[Prefill]) -> list[Prefill]:
    """Those pieces, in order, of which a later one leaves something standing."""
    kept: list[Prefill] = []
    limits: list[float] = []
    for piece in reversed(pieces):
        limits = limits or [np.inf] * len(piece.starts)
        if any(piece.starts[lane] < limits[lane] for lane in _busy(piece)):
            kept.append(piece)
        limits = [
            min(limit, start) if count else limit
            for limit, start, count in zip(limits, piece.starts, piece.counts, strict=True)
        ]
    return kept[::-1]
