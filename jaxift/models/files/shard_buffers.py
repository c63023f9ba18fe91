"""Host memory for the shards of an array, which CPU devices take over without a copy."""

import dataclasses
import math
import mmap
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

_HUGE_PAGE = 1 << 21


@dataclasses.dataclass(frozen=True)
class Shard:
    """One part of an array: where it begins in it, and its elements."""

    origin: tuple[int, ...]
    data: np.ndarray


Shards = Mapping[Any, Shard]  # by device


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeroed memory in pages of its own: aligned so that `device_put` keeps it, and free as soon as it is dropped."""
    size = max(math.prod(shape) * dtype.itemsize, 1)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # one page fault in place of 512
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def empty_shards(shape: tuple[int, ...], dtype: np.dtype, layout: NamedSharding) -> Shards:
    """Zeroed shards of this process's devices; devices that hold the same part share one."""
    parts: dict[tuple[tuple[int, int], ...], Shard] = {}
    found = {}
    for device, index in layout.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        if bounds not in parts:
            parts[bounds] = Shard(tuple(a for a, _ in bounds), zeros(tuple(b - a for a, b in bounds), dtype))
        found[device] = parts[bounds]
    return found


def assemble(shape: tuple[int, ...], layout: NamedSharding, shards: Shards) -> jax.Array:
    """The array that consists of these shards; a CPU device's shard stays where it is."""
    parts = jax.device_put([shard.data for shard in shards.values()], list(shards))
    return jax.make_array_from_single_device_arrays(shape, layout, parts)
