"""Models of one structure stacked along the mesh's cell axis: their arrays are [cells, ...]."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array

from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import CELL, filled, stacked

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class ModelStack:
    """Models that differ in `params` [cells, ...] and share what is `frozen`.

    `like` is one of their structure, with tokenizer and mesh; at the end of the stack there may be more models than
    `size`, to fill the mesh's cell axis.
    """

    like: LanguageModel
    params: nnx.State
    frozen: nnx.State | None
    size: int

    @property
    def filled(self) -> int:
        """Models of the stack, with those that fill the mesh."""
        return jax.tree.leaves(self.params)[0].shape[0]

    def model(self, index: int) -> LanguageModel:
        """One of the models, on all devices."""
        with jax.set_mesh(self.like.mesh):
            params = take(self.params, jnp.int32(index))
        return self.like.with_state(params, *(() if self.frozen is None else (self.frozen,)))

    def some(self, indices: Sequence[int]) -> "ModelStack":
        """A stack of some of the models; all of them in order are the stack itself."""
        if list(indices) == list(range(self.size)):
            return self
        more = filled(len(indices), self.like.mesh) - len(indices)
        with jax.set_mesh(self.like.mesh):
            params = chosen(self.params, jnp.array([*indices, *[indices[-1]] * more], jnp.int32))
        return dataclasses.replace(self, params=params, size=len(indices))


def vmapped(function: Any, in_axes: Any = 0) -> Any:
    """`function` of one model for a stack of them."""
    return jax.vmap(function, in_axes=in_axes, spmd_axis_name=CELL)


def pinned(stack: Tree) -> Tree:
    """A stack laid out over cells, even arrays that depend on nothing that differs between them."""
    return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P(CELL, *jax.typeof(x).sharding.spec[1:])), stack)


@functools.partial(jax.jit, static_argnames="cells")
def spread(tree: Tree, cells: int) -> Tree:
    """A stack of equal models."""

    def copies(x: Array) -> Array:
        layout = stacked(jax.typeof(x).sharding.spec)
        return jax.sharding.reshard(jnp.broadcast_to(x[None], (cells, *x.shape)), layout)

    return jax.tree.map(copies, tree)


@jax.jit
def take(stack: Tree, index: Array) -> Tree:
    """One model of a stack, on all devices of the mesh."""
    return jax.tree.map(
        lambda x: _across(_taken, x, index, out_sharding=jax.P(*jax.typeof(x).sharding.spec[1:])), stack
    )


@jax.jit
def chosen(stack: Tree, indices: Array) -> Tree:
    """Some models of a stack, as a stack."""
    return jax.tree.map(lambda x: _across(_chosen, x, indices, out_sharding=jax.typeof(x).sharding.spec), stack)


@functools.partial(jax.jit, donate_argnums=0)
def put(stack: Tree, index: Array, tree: Tree) -> Tree:
    """The stack with one model replaced; takes the old stack's memory."""
    return jax.tree.map(
        lambda x, new: _across(_put, x, new, index, out_sharding=jax.typeof(x).sharding.spec), stack, tree
    )


def _across(function: Callable[..., Array], *arrays: Array, out_sharding: jax.P) -> Array:
    """Runs what indexes the cell axis, which explicit sharding refuses: the compiler finds the way."""
    run: Any = jax.sharding.auto_axes(function, axes=CELL, out_sharding=out_sharding)
    return run(*arrays)


def _taken(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _chosen(x: Array, indices: Array) -> Array:
    return jnp.take(x, indices, axis=0)


def _put(x: Array, new: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, new, index, 0)


def abstract(tree: Tree) -> Tree:
    """Shapes, types and layouts of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def device_bytes(tree: Any) -> int:
    """Bytes that a tree takes on the device that holds most of it."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _shard_bytes(leaf: Any) -> int:
    sharding: NamedSharding = leaf.sharding
    size = leaf.dtype.itemsize
    for extent in sharding.shard_shape(leaf.shape):
        size *= extent
    return size
