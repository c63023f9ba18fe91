"""One optimizer step of a stack of models: pure, compiled once a shape, its buffers donated."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxift.models.decoder import Decoder, Remat
from jaxift.models.stack import pinned, vmapped
from jaxift.tuning.loss import Losses, Reference, summed_loss

SPIKE_AFTER, SPIKE_MEMORY = 3, 0.9
"""Steps before a loss can be a spike, and how much of the mean of losses a step leaves of it."""


class CellState(NamedTuple):
    """What a tuned model consists of between steps; of a stack, each array has a leading axis over cells."""

    params: nnx.State
    moments: Any
    alive: Bool[Array, ""]
    """No loss or gradient was infinite or NaN so far; afterwards nothing changes any more."""
    mean_loss: Float[Array, ""]
    taken: Int[Array, ""]
    """Steps that changed the parameters."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step's program is made of, beside shapes: how the loss is computed and how parameters change."""

    graph: nnx.GraphDef
    reference_graph: nnx.GraphDef | None
    """Of the model that the tuned one is kept near to."""
    optimizer: optax.GradientTransformation
    dtype: np.dtype
    remat: Remat
    kl_weight: float
    skip_spikes: float
    longest: int
    """Tokens of an example that go through the model, at most."""
    unrolled: bool


class Shared(NamedTuple):
    """What all models of a stack share: weights that are not tuned, and those of the reference."""

    frozen: nnx.State | None
    reference: nnx.State | None


@functools.partial(jax.jit, static_argnums=0)
def first_state(optimizer: optax.GradientTransformation, params: nnx.State) -> CellState:
    """The state before the first step, laid out like the parameters."""
    return CellState(params, optimizer.init(params), jnp.bool_(True), jnp.float32(0), jnp.int32(0))


def response_loss(
    decoder: Decoder,
    tokens_RT: Int[Array, "R T"],
    positions_RT: Int[Array, "R T"],
    segments_RT: Int[Array, "R T"],
    slots_HS: Int[Array, "H S"],
    targets_HS: Int[Array, "H S"],
    weights_HS: Float[Array, "H S"],
    *,
    used: Int[Array, ""] | int | None = None,
    reference: Decoder | None = None,
    kl_weight: float = 0.0,
    **how: Any,
) -> Losses:
    """Weighted losses of a batch's targets in nats, summed over the whole global batch (see `summed_loss`).

    Other keywords are those of `Decoder.hidden`.
    """
    inputs = tokens_RT, positions_RT, segments_RT
    hidden_RTD = decoder.hidden(*inputs, **how)
    kept = None
    if reference is not None:
        kept = Reference(reference.hidden(*inputs, **how), reference.head_matrix(hidden_RTD.dtype))
    return summed_loss(decoder, hidden_RTD, slots_HS, targets_HS, weights_HS, used, kept, kl_weight)


def train_step(
    recipe: Recipe,
    stack: CellState,
    shared: Shared,
    rates_C: Float[Array, "C"],
    active_C: Bool[Array, "C"],
    micro: Int[Array, ""],
    batch: tuple[Array, ...],
) -> tuple[CellState, dict[str, Float[Array, "C"]]]:
    """Updates the models of a stack by one step each, from the first `micro` parts of `batch` ([C, M, ...] arrays).

    Models that are not active stay as they are, as do those whose loss or gradient is not finite. Metrics are loss
    (cross-entropy, nats a token of the global batch), grad_norm (before clipping), tokens (what the loss counts),
    skipped (1 where the step was left out as a spike) and, with a reference, divergence.
    """
    slots = 1 + jnp.arange(batch[-1].shape[-1])
    used_M = jnp.max(jnp.where(batch[-1] != 0, slots, 0), axis=(0, 2, 3))
    total_C = jnp.maximum(jnp.sum(batch[-1], axis=(1, 2, 3)), 1e-9)

    def loss_of(params: nnx.State, part: tuple[Array, ...], used: Array) -> tuple[Array, Losses]:
        decoder = nnx.merge(recipe.graph, *(each for each in (params, shared.frozen) if each is not None))
        reference = None
        if recipe.reference_graph is not None:
            reference = nnx.merge(recipe.reference_graph, shared.reference)
        losses = response_loss(
            decoder, *part, used=used, reference=reference, kl_weight=recipe.kl_weight, dtype=recipe.dtype,
            remat=recipe.remat, longest=recipe.longest, unrolled=recipe.unrolled,
        )  # fmt: skip
        return losses.loss, losses

    gradient_of = vmapped(jax.grad(loss_of, has_aux=True), in_axes=(0, 0, None))

    def add(index: Array | int, carry: tuple[nnx.State, Losses] | None) -> tuple[nnx.State, Losses]:
        part = tuple(jax.lax.dynamic_index_in_dim(each, index, axis=1, keepdims=False) for each in batch)
        found = gradient_of(stack.params, part, used_M[index])
        return found if carry is None else jax.tree.map(jnp.add, carry, found)

    if batch[0].shape[1] == 1:
        gradients, losses = add(0, None)
    else:
        nothing = (_zeros(stack.params), Losses(*[jnp.zeros_like(total_C)] * len(Losses._fields)))
        gradients, losses = jax.lax.fori_loop(0, micro, add, nothing)
    stack, measured = vmapped(functools.partial(_update, recipe))(stack, gradients, losses, rates_C, active_C, total_C)
    return pinned(stack), jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), measured)


def _zeros(tree: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=jax.typeof(x).sharding.spec), tree)


def _update(
    recipe: Recipe, state: CellState, gradients: nnx.State, losses: Losses, rate: Array, active: Array, total: Array
) -> tuple[CellState, dict[str, Array]]:
    """One model's step, from the summed gradients of its batch."""
    gradients = jax.tree.map(lambda x: x / total, gradients)
    loss, norm = losses.cross_entropy / total, optax.tree.norm(gradients)
    finite = jnp.isfinite(losses.loss) & jnp.isfinite(norm)
    spike = (state.taken >= SPIKE_AFTER) & (loss > recipe.skip_spikes * state.mean_loss) & (recipe.skip_spikes > 0)
    steps = active & state.alive & finite & ~spike
    updates, moments = recipe.optimizer.update(gradients, state.moments, state.params)
    params = jax.tree.map(lambda param, update: param + rate * update, state.params, updates)
    params, moments = jax.tree.map(
        lambda new, old: jnp.where(steps, new, old), (params, moments), (state.params, state.moments)
    )
    mean = jnp.where(state.taken > 0, SPIKE_MEMORY * state.mean_loss + (1 - SPIKE_MEMORY) * loss, loss)
    after = CellState(
        params,
        moments,
        state.alive & (finite | ~active),
        jnp.where(steps, mean, state.mean_loss),
        state.taken + steps,
    )
    measured = {"loss": loss, "grad_norm": norm, "tokens": total, "skipped": (spike & finite).astype(jnp.float32)}
    if recipe.reference_graph is not None:
        measured["divergence"] = losses.divergence / total
    return after, measured
