"""Which rows of a checkpoint's tensor fill which parts of our parameters, and the reads that fetch them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxift.models.families import Weight
from jaxift.models.files.safetensors_file import Tensor
from jaxift.models.files.shard_buffers import Shard


@dataclasses.dataclass(frozen=True)
class Taker:
    """A parameter's share of one tensor: our part of the tensor's view, and the shards that it fills.

    `layer` is the tensor's place on the parameter's leading axis, None where that is not stacked. Rows are those of the
    view's first axis; ours are [start, stop) of them, so that the parameter's own row r is the view's start + r.
    """

    view: tuple[int, ...]
    start: int
    stop: int
    rest: tuple[int | slice, ...]
    layer: int | None
    shards: Sequence[Shard]

    def rows_needed(self) -> Iterator[tuple[int, int]]:
        """Rows of the view that each shard needs; a padded vocabulary's last rows are in no file."""
        axis = 0 if self.layer is None else 1
        for shard in self.shards:
            count = shard.data.shape[axis]
            if self.layer is None or 0 <= self.layer - shard.origin[0] < shard.data.shape[0]:
                first = self.start + shard.origin[axis]
                yield first, min(first + count, self.stop)

    def take(self, block: np.ndarray, first: int) -> None:
        """Copies rows [first, ...) of the tensor's view, given as a flat block, to where they belong."""
        # as integers, since NumPy copies its own types beside other threads
        rows = block.view(f"u{block.itemsize}").reshape(-1, *self.view[1:])
        begin, end = max(first, self.start), min(first + len(rows), self.stop)
        ours = rows[(slice(begin - first, end - first), *self.rest)] if begin < end else rows[:0]
        for shard in self.shards:
            place = self._place(shard)
            if place is None:
                continue
            origin, data = place
            # our rows [low, high) lie in the block as well as in the shard
            low, high = max(begin - self.start, origin[0]), min(end - self.start, origin[0] + len(data))
            if low < high:
                offset = begin - self.start
                index = [slice(at, at + size) for at, size in zip(origin, data.shape, strict=True)]
                index[0] = slice(low - offset, high - offset)
                np.copyto(data[low - origin[0] : high - origin[0]], ours[tuple(index)])

    def _place(self, shard: Shard) -> tuple[tuple[int, ...], np.ndarray] | None:
        """Origin and elements (as integers) of the shard's part of this layer."""
        data = shard.data.view(f"u{shard.data.itemsize}")
        if self.layer is None:
            return shard.origin, data
        at = self.layer - shard.origin[0]
        return (shard.origin[1:], data[at]) if 0 <= at < len(data) else None


def taker(weight: Weight, layer: int | None, shards: Sequence[Shard]) -> Taker:
    """The share that `weight` has of the tensor of its given layer."""
    view: tuple[int, ...] = weight.view
    first, *rest = weight.pick or (slice(None),)
    if isinstance(first, int):  # (2, F, D) at 1 is rows [F, 2 F) of (2 F, D)
        inner = _rows(view[1], rest.pop(0) if rest else slice(None))
        start = first * view[1] + inner.start
        view, first = (view[0] * view[1], *view[2:]), slice(start, start + len(inner))
    rows = _rows(view[0], first)
    return Taker(view, rows.start, rows.stop, tuple(rest), layer, shards)


def _rows(size: int, part: int | slice) -> range:
    """The rows of an axis that a slice picks; they must follow each other."""
    rows = range(*part.indices(size)) if isinstance(part, slice) else range(0)
    if rows.step != 1 or not rows:
        raise ValueError(f"{part} of {size} are not successive rows")
    return rows


@dataclasses.dataclass(frozen=True)
class Read:
    """One range of a tensor's bytes, [start, end) from the tensor's beginning, and who takes it."""

    tensor: Tensor
    start: int
    end: int
    takers: Sequence[Taker]


def plan_reads(tensor: Tensor, takers: Sequence[Taker], chunk: int) -> Iterator[Read]:
    """Cuts what the takers need of a tensor into reads of about `chunk` bytes; each byte is in one of them."""
    size = tensor.end - tensor.start
    # every read begins and ends with a row of every view
    unit = math.lcm(*(size // taker.view[0] for taker in takers))
    step = max(chunk // unit, 1) * unit
    for start, end in _needed(size, takers, unit):
        for at in range(start, end, step):
            yield Read(tensor, at, min(at + step, end), takers)


def _needed(size: int, takers: Sequence[Taker], unit: int) -> list[list[int]]:
    """Byte ranges that some shard needs, merged where they touch."""
    ranges = []
    for taker in takers:
        row = size // taker.view[0]
        for first, stop in taker.rows_needed():
            if first < stop:
                ranges.append((first * row // unit * unit, -(-stop * row // unit) * unit))
    merged: list[list[int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
