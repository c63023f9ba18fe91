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
from jaxift.models.decoder import Decoder, laid_out
from jaxift.models.prefix import Prefix
from jaxift.models.stack import ModelStack, spread, vmapped
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
class Compiler:
    """Compiles programs for one structure on one mesh, for lanes whose prefixes have room for so many `columns`."""

    scored: Scored
    lanes: int
    columns: int
    dtype: np.dtype

    def empty(self) -> Any:
        """The program that makes room for one prefix a lane and model."""
        return self._kept("empty", lambda: jax.jit(self._room).lower().compile())

    def prefill(self, length: int) -> Any:
        """The program that computes so many columns of each lane's prefix."""

        def run(decoder: Decoder, room: Prefix, *arrays: Array) -> Prefix:
            return prefix.prefill(decoder, room, *arrays, dtype=self.dtype)

        return self._compiled(length, run, [self._ints(length)] * 3, donate_argnums=2)

    def step(self, shape: Shape) -> Any:
        """The program that scores rows of a shape."""
        how = {"length": shape.length, "dtype": self.dtype, "logits_bytes": self._logits_bytes}

        def run(decoder: Decoder, room: Prefix, *arrays: Array) -> tuple[Array, Array]:
            return prefix.score_rows(decoder, room, *arrays, **how)

        rows = [self._ints(), *[self._ints(shape.tokens)] * 3]
        return self._compiled(shape, run, [*rows, self._ints(shape.slots), self._ints(shape.slots, shape.targets)])

    @functools.cached_property
    def described_room(self) -> Any:
        """Shapes and layouts of the room for prefixes."""
        with jax.set_mesh(self.scored.mesh):
            return laid_out(jax.eval_shape(self._room), self.scored.mesh)

    def _room(self) -> Prefix:
        one = prefix.empty_prefix(self.scored.config, self.lanes, self.columns, self.dtype)
        return one if self.scored.cells is None else spread(one, self.scored.cells)

    @property
    def _logits_bytes(self) -> int:
        cells = self.scored.cells
        if cells is None:
            return prefix.LOGITS_BYTES
        return max(prefix.LOGITS_BYTES * self.scored.mesh.shape[CELL] // cells, SMALLEST_LOGITS_BYTES)

    def _ints(self, *shape: int) -> jax.ShapeDtypeStruct:
        layout = sharding(self.scored.mesh, "batch", *[None] * len(shape))
        return jax.ShapeDtypeStruct((self.lanes, *shape), jnp.int32, sharding=layout)

    def _compiled(self, key: Hashable, run: Callable, arrays: Sequence[jax.ShapeDtypeStruct], **jit: Any) -> Any:
        each, models = jax.jit(self.scored.each(run, len(arrays)), **jit), (self.scored.own, self.scored.shared)
        options = COMPILER_OPTIONS.get(self.scored.mesh.devices.flat[0].platform)
        given = (*models, self.described_room, *arrays)
        return self._kept(key, lambda: each.lower(*given).compile(options))

    def _kept(self, key: Hashable, build: Callable[[], Any]) -> Any:
        scored = self.scored
        models = described((scored.own, scored.shared))
        common = (scored.graph, scored.mesh, self.dtype, self.lanes, self.columns, scored.cells, models)
        with jax.set_mesh(scored.mesh):
            return _compiled.get((*common, key), build)


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
    compiler = Compiler(scored, plan.layout.lanes, plan.columns, dtype)
    lengths = sorted({piece.length for piece in plan.work if isinstance(piece, Prefill)})
    shapes = sorted({piece.shape for piece in plan.work if isinstance(piece, Step)}, key=dataclasses.astuple)
    return Programs(
        scored,
        compiler.empty(),
        {shape: compiler.step(shape) for shape in shapes},
        {length: compiler.prefill(length) for length in lengths},
        time.perf_counter() - started,
    )
