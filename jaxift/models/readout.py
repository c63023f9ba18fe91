"""Log-probabilities of chosen tokens after chosen places: the LM head runs nowhere else."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxift.models.decoder import Decoder


def target_logprobs(
    decoder: Decoder, hidden_BCD: Float[Array, "B C D"], targets_BCA: Int[Array, "B C A"]
) -> tuple[Float[Array, "B C A"], Bool[Array, "B C A"]]:
    """Natural-log probability of each of a place's A targets, and whether it is the most likely token there."""
    logits_BCV = decoder.logits(hidden_BCD)
    # a gather along the vocabulary is refused where it is sharded; a masked sum is not
    hit_BCAV = jnp.arange(logits_BCV.shape[-1]) == targets_BCA[..., None]
    chosen_BCA = jnp.sum(jnp.where(hit_BCAV, logits_BCV[:, :, None], 0.0), axis=-1)
    greedy_BCA = jnp.argmax(logits_BCV, axis=-1)[..., None] == targets_BCA
    return chosen_BCA - jax.nn.logsumexp(logits_BCV, axis=-1)[..., None], greedy_BCA


def at_slots(hidden_BTD: Float[Array, "B T D"], slots_BC: Int[Array, "B C"]) -> Float[Array, "B C D"]:
    """The hidden states at some places of each row."""
    return jnp.take_along_axis(hidden_BTD, slots_BC[..., None], axis=1)
