"""Items packed into rows of few lengths, and rows cut into steps of few sizes: dense, and few programs to compile."""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxift.scoring.tree import Item

ROW_LENGTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
ROW_LENGTH_STEP = 256
"""Longer rows are multiples of it."""
SAMPLE = 4096
"""Items that are packed on trial to choose row lengths."""

Row = tuple[Item, ...]
"""Items side by side."""


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
    """At most so many lengths of rows: each is a few programs to compile."""
    prefill_lengths: tuple[int, int] = (512, 128)
    part_steps: int = 32
    """Steps of a part, which is stored when it is done."""


def round_up(value: int, ladder: Sequence[int], step: int) -> int:
    """The next entry of a ladder, or multiple of `step` beyond it."""
    return ladder[bisect.bisect_left(ladder, value)] if value <= ladder[-1] else -(-value // step) * step


def row_length(size: int) -> int:
    """The shortest row for an item of this size."""
    return round_up(size, ROW_LENGTHS, ROW_LENGTH_STEP)


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
        fed = sum(cut_steps(count, max(1, layout.step_tokens // length))) * length
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


def cut_steps(count: int, full: int) -> list[int]:
    """Sizes of the steps for so many rows: full ones, then quarters, unless a last full one is hardly more.

    Where all rows are less than a quarter, one step of the next power of two.
    """
    quarter = max(1, full // 4)
    if count < quarter:
        return [1 << (count - 1).bit_length()] if count else []
    whole, left = divmod(count, full)
    quarters = -(-left // quarter)
    return [full] * whole + ([full] if quarters * quarter > full * 3 // 4 else [quarter] * quarters)
