"""Arrays that lie on several processes' devices: gathered, laid out, brought to the host whole."""

import json
import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxift.parallel.hosts import TIMEOUT, process_count
from jaxift.parallel.meeting import exchange


def gather(array: np.ndarray, timeout: float = TIMEOUT) -> list[np.ndarray]:
    """Every process' array, in the order of processes; first dimensions and all others may differ, the type may not."""
    array = np.ascontiguousarray(array)
    if process_count() == 1:
        return [array]
    told = [
        json.loads(each) for each in exchange("gather", json.dumps([array.dtype.str, *array.shape]).encode(), timeout)
    ]
    assert all(dtype == array.dtype.str for dtype, *_ in told), f"processes gather different types: {told}"
    sizes = [math.prod(shape) * array.itemsize for _, *shape in told]
    # as bytes: JAX would make 32 bits of 64
    padded = np.zeros(max(*sizes, 1), np.uint8)
    padded[: array.nbytes] = array.reshape(-1).view(np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[:size].copy().view(array.dtype).reshape(shape)
        for row, size, (_, *shape) in zip(rows, sizes, told, strict=True)
    ]


def global_array(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """Lays out an array that every process knows; each gives its own devices their parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def whole(value: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host of every process; all processes must ask, for it may lie on devices of each."""
    if isinstance(value, np.ndarray) or value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
