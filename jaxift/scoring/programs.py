"""The compiled programs of a plan: one a shape, all compiled before the first one runs, none while scoring."""

import collections
import dataclasses
import functools
import time
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from jaxift.models import prefix
from jaxift.models.decoder import Decoder
from jaxift.models.prefix import Prefix
from jaxift.parallel.hosts import global_array
from jaxift.parallel.mesh import sharding
from jaxift.scoring.plan import Plan, Prefill, Shape, Step

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"cpu": {"xla_cpu_prefer_vector_width": "512"}}
"""By platform; processors with shorter vectors use theirs."""
KEPT = 64
"""Programs that are kept for later plans of the same shapes."""
_compiled: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True)
class Programs:
    """Executables by shape, for one decoder's structure on one mesh; an array of another shape is an error."""

    mesh: Mesh
    state: nnx.State
    empty: Any
    steps: dict[Shape, Any]
    prefills: dict[int, Any]
    compile_seconds: float

    def start(self) -> Prefix:
        """Room for one prefix a lane."""
        return self.empty()

    def prefill(self, prefix: Prefix, arrays: Sequence[np.ndarray]) -> Prefix:
        """Adds columns to the prefixes; takes the arrays of `prefill_arrays`, and the old prefix' memory."""
        return self.prefills[arrays[0].shape[1]](self.state, prefix, *self._laid_out(arrays))

    def step(self, shape: Shape, prefix: Prefix, arrays: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and greediness [lanes, C, A] of a step's targets."""
        return self.steps[shape](self.state, prefix, *self._laid_out(arrays))

    def _laid_out(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        return [global_array(each, sharding(self.mesh, "batch", *[None] * (each.ndim - 1))) for each in arrays]


def compile_plan(decoder: Decoder, plan: Plan, mesh: Mesh, dtype: np.dtype) -> Programs:
    """Compiles what a plan needs and was not compiled before."""
    started = time.perf_counter()
    graph, state = nnx.split(decoder)
    lanes = plan.layout.lanes
    common = (graph, mesh, dtype, lanes, plan.columns, _described(state))
    options = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding(mesh, "batch", *[None] * (len(shape) - 1)))

    with jax.set_mesh(mesh):
        make = jax.jit(functools.partial(prefix.empty_prefix, decoder.config, lanes, plan.columns, dtype))
        empty = _cached((*common, "empty"), lambda: make.lower().compile())
        room = empty()
        prefills, steps = {}, {}
        for length in sorted({piece.length for piece in plan.work if isinstance(piece, Prefill)}):
            rows = (ints(lanes, length) for _ in range(3))
            lowered = functools.partial(_prefill.lower, state, room, *rows, graph=graph, dtype=dtype)
            prefills[length] = _cached((*common, length), lambda lowered=lowered: lowered().compile(options))
        for shape in sorted({piece.shape for piece in plan.work if isinstance(piece, Step)}, key=dataclasses.astuple):
            rows = (ints(lanes), *(ints(lanes, shape.tokens) for _ in range(3)))
            asked = (ints(lanes, shape.slots), ints(lanes, shape.slots, shape.targets))
            lowered = functools.partial(
                _step.lower, state, room, *rows, *asked, graph=graph, length=shape.length, dtype=dtype
            )
            steps[shape] = _cached((*common, shape), lambda lowered=lowered: lowered().compile(options))
    return Programs(mesh, state, empty, steps, prefills, time.perf_counter() - started)


def _cached(key: Hashable, build: Any) -> Any:
    """A program that was built before, or the one built now; the least recently used is let go."""
    if key not in _compiled:
        _compiled[key] = build()
        if len(_compiled) > KEPT:
            _compiled.popitem(last=False)
    _compiled.move_to_end(key)
    return _compiled[key]


def _described(state: nnx.State) -> Hashable:
    return tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(state))


@functools.partial(jax.jit, static_argnames=("graph", "dtype"), donate_argnames=("room",))
def _prefill(state: nnx.State, room: Prefix, *arrays: Array, graph: nnx.GraphDef, dtype: np.dtype) -> Prefix:
    return prefix.prefill(nnx.merge(graph, state), room, *arrays, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("graph", "length", "dtype"))
def _step(
    state: nnx.State, room: Prefix, *arrays: Array, graph: nnx.GraphDef, length: int, dtype: np.dtype
) -> tuple[Array, Array]:
    return prefix.score_rows(nnx.merge(graph, state), room, *arrays, length=length, dtype=dtype)
