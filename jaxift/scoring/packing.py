"""What is fed when: items packed into rows, rows into steps of few shapes, each prefix computed before its rows.

A *lane* is a share of the mesh's batch axis: it holds one prefix at a time, and all lanes run the same program at once.
The plan is a function of the requests and of the layout alone, so that every host makes the same one.
"""

import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxift.scoring.tree import Group, Item, Tree, common, divide, lay

ROW_LENGTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
ROW_LENGTH_STEP = 256
"""Longer rows are multiples of it."""
SLOTS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
COLUMNS = (64, 128, 256, 512)
COLUMN_BLOCK = 64
"""A prefix is attended to in blocks of columns; the room for it is a multiple of the smallest."""
MOST_TARGETS = 32
SAMPLE = 4096
"""Items that are packed on trial to choose row lengths."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a plan depends on beside the requests."""

    lanes: int = 1
    step_tokens: int = 1024
    """Tokens of a lane in one step; a longer item makes a longer step."""
    pair_cost: float = 1 / 3000
    """What attention to one key costs, in tokens' linear work."""
    item_limit: int = 1024
    row_lengths: int = 3
    """At most so many lengths of rows: each is two programs to compile."""
    prefill_lengths: tuple[int, int] = (512, 128)
    part_steps: int = 32
    """Steps of a part, which is stored when it is done."""


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


Row = tuple[Item, ...]
"""Items side by side."""


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
    return Plan(tree, layout, work, _parts(work, layout.part_steps), _up(max(ends, default=1), COLUMNS, 512))


def _rows(step: Step) -> Iterator[Row]:
    return itertools.chain.from_iterable(step.rows)


def _busy(piece: Prefill) -> list[int]:
    return [lane for lane, count in enumerate(piece.counts) if count]


def _up(value: int, ladder: Sequence[int], step: int) -> int:
    """The next entry of a ladder, or multiple of `step` beyond it."""
    return ladder[bisect.bisect_left(ladder, value)] if value <= ladder[-1] else -(-value // step) * step


def row_length(size: int) -> int:
    """The shortest row for an item of this size."""
    return _up(size, ROW_LENGTHS, ROW_LENGTH_STEP)


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
        for rows in _cut(count, max(1, layout.step_tokens // length)):
            fed = tuple(tuple(lane[start : start + rows]) for lane in lanes)
            steps.append(Step(Shape(rows, length, 0, 0), depths, fed))
            start += rows
    return steps


def _cut(count: int, full: int) -> list[int]:
    """Sizes of the steps for so many rows: full ones, then quarters, unless a last full one is hardly more.

    Where all rows are less than a quarter, one step of the next power of two.
    """
    quarter = max(1, full // 4)
    if count < quarter:
        return [1 << (count - 1).bit_length()] if count else []
    whole, left = divmod(count, full)
    quarters = -(-left // quarter)
    return [full] * whole + ([full] if quarters * quarter > full * 3 // 4 else [quarter] * quarters)


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
        key: Shape(*key, _up(slots, SLOTS, SLOTS[-1]), 1 << (targets - 1).bit_length())
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


def choose_lengths(portions: Sequence[Sequence[int]], layout: Layout) -> list[int]:
    """The row lengths, ascending, that feed items of these sizes, portion by portion, at the least cost; deterministic.

    Found by adding lengths to the longest one as long as that pays.
    """
    if not portions:
        return []
    sample = _sample(portions)
    longest = row_length(max(max(sizes) for sizes in portions))
    least = min(row_length(int(np.median(np.concatenate(sample)))), 256)

    def cost(lengths: list[int]) -> float:
        return sum(packed_cost([pack_sizes(sizes, lengths)], layout) for sizes in sample)

    # items are packed more densely into rows of several: those of like size into a multiple of it
    most = max(max(sizes) for sizes in portions)
    several = {-(-count * most // 16) * 16 for count in range(2, 9)} | set(_between(longest, 8 * longest, 768))
    chosen = min(([length] for length in sorted(several) if length == longest or length <= 768), key=cost)
    while len(chosen) < layout.row_lengths:
        more = [sorted([*chosen, length]) for length in _between(least, longest, longest) if length not in chosen]
        best = min(more, key=cost, default=chosen)
        if cost(best) >= cost(chosen):
            break
        chosen = best
    return chosen


def _between(least: int, most: int, limit: int) -> list[int]:
    """Row lengths from `least` to `most`, but none beyond `limit` except the first."""
    return [least, *(length for length in ROW_LENGTHS if least < length <= min(most, limit))]


def _sample(portions: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Portions, evenly chosen, that have about `SAMPLE` sizes together."""
    stride = max(1, sum(map(len, portions)) // SAMPLE)
    return list(portions[::stride]) if len(portions) > stride else [sizes[::stride] for sizes in portions]


def packed_cost(lanes: Sequence[Sequence[tuple[int, list[int]]]], layout: Layout) -> float:
    """What the rows of lanes that step together cost in tokens' linear work, the padding of steps included."""
    counts = [collections.Counter(length for length, _ in rows) for rows in lanes]
    total = 0.0
    for length in sorted(set().union(*counts)):
        count = max(each[length] for each in counts)
        fed = sum(_cut(count, max(1, layout.step_tokens // length))) * length
        total += fed * (1 + layout.pair_cost * (length / 2 + 64))
    return total


def pack(lanes: Sequence[Sequence[Item]], lengths: Sequence[int], layout: Layout) -> list[dict[int, list[Row]]]:
    """Packs each lane's items into rows of those of these lengths that cost least for all, the fullest rows first."""
    sizes = [[item.size for item in items] for items in lanes]
    longest = max(itertools.chain.from_iterable(sizes))
    subsets = [
        subset
        for count in range(1, len(lengths) + 1)
        for subset in itertools.combinations(lengths, count)
        if subset[-1] >= longest
    ]
    packed = min(
        ([pack_sizes(each, subset) for each in sizes] for subset in subsets), key=lambda rows: packed_cost(rows, layout)
    )
    found: list[dict[int, list[Row]]] = []
    for items, rows in zip(lanes, packed, strict=True):
        by_length: dict[int, list[Row]] = {}
        for length, row in rows:
            by_length.setdefault(length, []).append(tuple(items[index] for index in row))
        for length, some in by_length.items():
            by_length[length] = sorted(some, key=lambda row: (-sum(item.size for item in row), row[0].low))
        found.append(by_length)
    return found


def pack_sizes(sizes: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Best fit, longest first, into rows of the shortest length that an item needs: (length, indices) of each row."""
    rows: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        at = bisect.bisect_left(room, (sizes[index], 0))
        if at == len(room):
            left, row = lengths[bisect.bisect_left(lengths, sizes[index])], len(rows)
            rows.append((left, []))
        else:
            left, row = room.pop(at)
        rows[row][1].append(index)
        if left > sizes[index]:
            bisect.insort(room, (left - sizes[index], row))
    return rows


@dataclasses.dataclass(frozen=True)
class Filled:
    """The arrays of a step, and where its answers stand in what comes back.

    tokens, positions and reach [lanes, rows * length] (reach 0: padding), slots [lanes, C] and targets [lanes, C, A].
    Answer number i is to the options `answers[i].options`; its tokens' log-probabilities are those at
    `reads[ends[i - 1]:ends[i]]` of the flattened [lanes, C, A].
    """

    tokens: np.ndarray
    positions: np.ndarray
    reach: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    options: list[list[int]]
    reads: np.ndarray
    ends: np.ndarray


def fill(plan: Plan, step: Step) -> Filled:
    """Lays out a step's rows."""
    shape, lanes = step.shape, plan.layout.lanes
    tokens, reach = (np.zeros((lanes, shape.tokens), np.int32) for _ in range(2))
    # padding stands at the first place, so that windows are not thought to reach further back
    positions = np.repeat(np.array(step.depths, np.int32)[:, None], shape.tokens, axis=1)
    slots = np.zeros((lanes, shape.slots), np.int32)
    targets = np.zeros((lanes, shape.slots, shape.targets), np.int32)
    options: list[list[int]] = []
    reads: list[int] = []
    ends: list[int] = []
    for lane, rows in enumerate(step.rows):
        used = 0
        for number, row in enumerate(rows):
            start = number * shape.length
            for item in row:
                laid = lay(plan.tree, item, shape.targets)
                piece = slice(start, start + item.size)
                tokens[lane, piece], positions[lane, piece] = laid.tokens, laid.positions
                reach[lane, piece] = laid.reach + (start - number * shape.length)
                for slot, (at, asked) in enumerate(zip(laid.slots, laid.targets, strict=True), used):
                    slots[lane, slot] = start + at
                    targets[lane, slot, : len(asked)] = asked
                base = (lane * shape.slots + used) * shape.targets
                for answer, pairs in zip(laid.answers, laid.reads, strict=True):
                    options.append(answer.options)
                    reads += [base + slot * shape.targets + target for slot, target in pairs]
                    ends.append(len(reads))
                used += len(laid.slots)
                start += item.size
    return Filled(tokens, positions, reach, slots, targets, options, np.array(reads), np.array(ends))


def prefill_arrays(plan: Plan, piece: Prefill) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and reach [lanes, length] of a piece of prefixes."""
    tokens, reach = (np.zeros((plan.layout.lanes, piece.length), np.int32) for _ in range(2))
    for lane, (leaf, start, count) in enumerate(zip(piece.leaves, piece.starts, piece.counts, strict=True)):
        tokens[lane, :count] = plan.tree.tokens[leaf][start : start + count]
        reach[lane, :count] = count
    positions = np.array(piece.starts, np.int32)[:, None] + np.arange(piece.length, dtype=np.int32)
    return tokens, positions, reach


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
