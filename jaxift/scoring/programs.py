"""The compiled programs of a plan: one a shape, all compiled before the first one runs, none while scoring."""

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from jaxift.models import prefix
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder
from jaxift.models.prefix import Prefix
from jaxift.models.stack import ModelStack, abstract, spread, vmapped
from jaxift.parallel.arrays import global_array
from jaxift.parallel.compiled import Compiled, described
from jaxift.parallel.mesh import CELL, sharding
from jaxift.scoring.plan import Plan, Prefill, Shape, Step

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"cpu": {"xla_cpu_prefer_vector_width": "512"}}
"""By platform; processors with shorter vectors use theirs."""
SMALLEST_LOGITS_BYTES = 1 << 22
"""Of each model of a large stack."""
_compiled = Compiled(64)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is scored: one model, or a stack of them, whose `own` arrays are [cells, ...]."""

    graph: nnx.GraphDef
    config: DecoderConfig
    mesh: Mesh
    own: nnx.State
    shared: nnx.State | None = None
    cells: int | None = None
    """Models of the stack, with those that fill the mesh; None: one model, without such an axis."""

    @classmethod
    def of(cls, decoder: Decoder, mesh: Mesh) -> "Scored":
        """One model."""
        graph, state = nnx.split(decoder)
        return cls(graph, decoder.config, mesh, state)

    @classmethod
    def stacked(cls, stack: ModelStack) -> "Scored":
        """All models of a stack."""
        like = stack.like
        return cls(nnx.graphdef(like.decoder), like.config, like.mesh, stack.params, stack.frozen, stack.filled)

    def each(self, function: Callable, arrays: int) -> Callable:
        """`function(decoder, room, *arrays)` as one of (own, shared, room, *arrays), of all cells of a stack."""

        def run(own: nnx.State, shared: nnx.State | None, room: Any, *given: Array) -> Any:
            parts = (own,) if shared is None else (own, shared)
            return function(nnx.merge(self.graph, *parts), room, *given)

        return run if self.cells is None else vmapped(run, in_axes=(0, None, 0, *[None] * arrays))


@dataclasses.dataclass(frozen=True)
class Programs:
    """Executables by shape, for one structure on one mesh; an array of another shape is an error."""

    scored: Scored
    empty: Any
    steps: dict[Shape, Any]
    prefills: dict[int, Any]
    compile_seconds: float

    def start(self) -> Prefix:
        """Room for one prefix a lane and model."""
        return self.empty()

    def prefill(self, prefix: Prefix, arrays: Sequence[np.ndarray]) -> Prefix:
        """Adds columns to the prefixes; takes the arrays of `prefill_arrays`, and the old prefix' memory."""
        program = self.prefills[arrays[0].shape[1]]
        return program(self.scored.own, self.scored.shared, prefix, *self._laid_out(arrays))

    def step(self, shape: Shape, prefix: Prefix, arrays: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and greediness [lanes, C, A] of a step's targets; of a stack, [cells, lanes, C, A]."""
        return self.steps[shape](self.scored.own, self.scored.shared, prefix, *self._laid_out(arrays))

    def _laid_out(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        mesh = self.scored.mesh
        return [global_array(each, sharding(mesh, "batch", *[None] * (each.ndim - 1))) for each in arrays]


def compile_plan(scored: Scored, plan: Plan, dtype: np.dtype) -> Programs:
    """Compiles what a plan needs and was not compiled before."""
    started = time.perf_counter()
    mesh, lanes, cells = scored.mesh, plan.layout.lanes, scored.cells
    models = (scored.own, scored.shared)
    common = (scored.graph, mesh, dtype, lanes, plan.columns, cells, described(models))
    options = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
    logits_bytes = prefix.LOGITS_BYTES
    if cells is not None:
        logits_bytes = max(logits_bytes * mesh.shape[CELL] // cells, SMALLEST_LOGITS_BYTES)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding(mesh, "batch", *[None] * (len(shape) - 1)))

    def room() -> Prefix:
        one = prefix.empty_prefix(scored.config, lanes, plan.columns, dtype)
        return one if cells is None else spread(one, cells)

    def prefill(decoder: Decoder, room: Prefix, *arrays: Array) -> Prefix:
        return prefix.prefill(decoder, room, *arrays, dtype=dtype)

    def step(length: int, decoder: Decoder, room: Prefix, *arrays: Array) -> tuple[Array, Array]:
        return prefix.score_rows(decoder, room, *arrays, length=length, dtype=dtype, logits_bytes=logits_bytes)

    def compiled(key: Hashable, function: Callable, arrays: Sequence[jax.ShapeDtypeStruct], **jit: Any) -> Any:
        each = jax.jit(scored.each(function, len(arrays)), **jit)
        return _compiled.get((*common, key), lambda: each.lower(*models, like, *arrays).compile(options))

    with jax.set_mesh(mesh):
        empty = _compiled.get((*common, "empty"), lambda: jax.jit(room).lower().compile())
        like = abstract(empty())
        prefills, steps = {}, {}
        for length in sorted({piece.length for piece in plan.work if isinstance(piece, Prefill)}):
            prefills[length] = compiled(length, prefill, [ints(lanes, length)] * 3, donate_argnums=2)
        for shape in sorted({piece.shape for piece in plan.work if isinstance(piece, Step)}, key=dataclasses.astuple):
            rows = [ints(lanes), *[ints(lanes, shape.tokens)] * 3]
            asked = [ints(lanes, shape.slots), ints(lanes, shape.slots, shape.targets)]
            steps[shape] = compiled(shape, functools.partial(step, shape.length), [*rows, *asked])
    return Programs(scored, empty, steps, prefills, time.perf_counter() - started)
