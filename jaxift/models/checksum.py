"""A checksum of arrays as they lie on the devices: the same on every mesh."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxift.models.decoder import Decoder

_ODD = 0x9E3779B1, 0x85EBCA77  # of the golden ratio, and of xxHash (Collet 2012)


def checksum(decoder: Decoder) -> str:
    """Hash of every weight's name, type and bits; each device reads its own, which takes about as long as copying them.

    Guards against mistakes, not against forgery. Weights of another dtype have another checksum.
    """
    total = hashlib.sha256()
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        value = variable.get_value()
        total.update(f"{'.'.join(map(str, path))} {value.dtype} {np.asarray(_sums(value)).tolist()}".encode())
    return total.hexdigest()[:24]


def leaf_sums(tree: Any) -> Array:
    """Two sums [leaves, 2] of each leaf's bits, in the order of `jax.tree.leaves`, as uint32."""
    return _leaf_sums(jax.tree.leaves(tree))


@jax.jit
def _leaf_sums(leaves: list[Array]) -> Array:
    return jnp.stack([_sums(leaf) for leaf in leaves])


@jax.jit
def _sums(value: Array) -> Array:
    """Two sums, modulo 2^32, of the bits mixed with their place; zero bits (a padded vocabulary) add nothing."""
    if value.dtype == jnp.bool_:
        value = value.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(value, jnp.uint16 if value.dtype.itemsize == 2 else jnp.uint32)
    place, stride = jnp.zeros(value.shape, jnp.uint32), 1
    for axis in reversed(range(value.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis) * jnp.uint32(stride % (1 << 32))
        stride *= value.shape[axis]
    sums = []
    for odd, other in (_ODD, _ODD[::-1]):
        mixed = bits.astype(jnp.uint32) * (place * jnp.uint32(odd) | jnp.uint32(1))
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(other)
        sums.append(jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32))
    return jnp.stack(sums)
