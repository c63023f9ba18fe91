"""One optimizer step: pure, jitted once a shape, its buffers donated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxift.config import TuneConfig
from jaxift.models.decoder import Decoder
from jaxift.models.readout import at_slots, target_logprobs


def response_loss(
    decoder: Decoder,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    slots_BC: Int[Array, "B C"],
    targets_BC: Int[Array, "B C"],
    weights_BC: Float[Array, "B C"],
    *,
    dtype: np.dtype,
    remat: bool,
) -> Float[Array, ""]:
    """Mean cross-entropy of the weighted targets, in nats a token, normalised over the whole global batch."""
    hidden_BTD = decoder.hidden(tokens_BT, positions_BT, segments_BT, dtype=dtype, remat=remat)
    logprobs_BC1, _ = target_logprobs(decoder, at_slots(hidden_BTD, slots_BC), targets_BC[..., None])
    return -jnp.sum(logprobs_BC1[..., 0] * weights_BC) / jnp.sum(weights_BC)


def learning_rates(config: TuneConfig, steps: int) -> np.ndarray:
    """The rate of every step, [steps]: linear warm-up from 0, then cosine to 0 (as in the Hugging Face Trainer)."""
    warmup = int(np.ceil(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32)


def optimizer(config: TuneConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW without its learning rate, which each step is given."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
    )


@functools.partial(jax.jit, static_argnames="config")
def initial_moments(config: TuneConfig, params: nnx.State) -> Any:
    """AdamW's moments before the first step, laid out like the parameters; compiled once for all runs of a shape."""
    return optimizer(config).init(params)


def _decayed(params: Any) -> Any:
    """Weight decay spares norms and biases."""

    def is_matrix(path: tuple, _: Array) -> bool:
        return not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias"))

    return jax.tree.map_with_path(is_matrix, params)


@functools.partial(jax.jit, static_argnames=("graph", "config", "dtype"), donate_argnames=("params", "moments"))
def train_step(
    graph: nnx.GraphDef,
    config: TuneConfig,
    params: nnx.State,
    moments: Any,
    rate: Float[Array, ""],
    batch: tuple[Array, ...],
    *,
    dtype: np.dtype,
) -> tuple[nnx.State, Any, dict[str, Array]]:
    """Updates float32 parameters and AdamW moments.

    Metrics are loss (nats a token), grad_norm (before clipping) and tokens (that the loss counts).
    """

    def loss_of(params: nnx.State) -> Array:
        return response_loss(nnx.merge(graph, params), *batch, dtype=dtype, remat=config.remat)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer(config).update(gradients, moments, params)
    params = jax.tree.map(lambda param, update: param - rate * update, params, updates)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "tokens": batch[-1].sum()}
    return params, moments, metrics
