"""Log-probabilities of chosen tokens after chosen places: the LM head runs nowhere else."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxift.models.decoder import Decoder
from jaxift.parallel.mesh import RULES, spec


def target_logprobs(
    decoder: Decoder, hidden_BCD: Float[Array, "B C D"], targets_BCA: Int[Array, "B C A"]
) -> tuple[Float[Array, "B C A"], Bool[Array, "B C A"]]:
    """Natural-log probability of each of a place's A targets, and whether it is the most likely token there."""
    logits_BCV = decoder.logits(hidden_BCD)
    greedy_BCA = jnp.argmax(logits_BCV, axis=-1)[..., None] == targets_BCA
    return _chosen(logits_BCV, targets_BCA) - jax.nn.logsumexp(logits_BCV, axis=-1)[..., None], greedy_BCA


def _chosen(logits_BCV: Array, targets_BCA: Array) -> Array:
    """The logits of targets: a device looks in its own share of the vocabulary.

    Neither a gather along the whole of it, which is refused where it is sharded, nor a masked sum, which takes memory
    for every target and token.
    """
    axis = RULES["vocab"]

    def local(logits_BCV: Array, targets_BCA: Array) -> Array:
        size = logits_BCV.shape[-1]
        index = targets_BCA - jax.lax.axis_index(axis) * size
        found = jnp.take_along_axis(logits_BCV, jnp.clip(index, 0, size - 1), axis=-1)
        return jax.lax.psum(jnp.where((index >= 0) & (index < size), found, 0.0), axis)

    layouts = spec("batch", None, "vocab"), spec("batch", None, None)
    arrays = map(jax.sharding.reshard, (logits_BCV, targets_BCA), layouts)
    return jax.shard_map(local, in_specs=layouts, out_specs=layouts[1])(*arrays)


def at_slots(hidden_BTD: Float[Array, "B T D"], slots_BC: Int[Array, "B C"]) -> Float[Array, "B C D"]:
    """The hidden states at some places of each row."""
    return jnp.take_along_axis(hidden_BTD, slots_BC[..., None], axis=1)
