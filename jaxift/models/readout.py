"""Log-probabilities of chosen tokens at chosen places of a row: the LM head runs nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxift.models.decoder import Decoder


def target_logprobs(
    decoder: Decoder,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    slots_BC: Int[Array, "B C"],
    targets_BC: Int[Array, "B C"],
    *,
    dtype: np.dtype,
    remat: bool = False,
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Natural-log probability of each target as the token after its slot, and whether greedy decoding says it.

    A row holds one sequence (segment 1) and any number of continuations (segments 2, 3, ...) that branch off its end
    and do not see each other; segment 0 is padding. float32 logits exist at the C slots only.
    """
    parents_BT = (segments_BT > 1).astype(segments_BT.dtype)
    hidden_BTD = decoder.hidden(tokens_BT, positions_BT, segments_BT, parents_BT, dtype=dtype, remat=remat)
    logits_BCV = decoder.logits(jnp.take_along_axis(hidden_BTD, slots_BC[..., None], axis=1))
    # a gather along the vocabulary is refused where it is sharded; a masked sum is not
    hit_BCV = jnp.arange(logits_BCV.shape[-1]) == targets_BC[..., None]
    logprobs_BC = jnp.sum(jnp.where(hit_BCV, logits_BCV, 0.0), axis=-1) - jax.nn.logsumexp(logits_BCV, axis=-1)
    return logprobs_BC, jnp.argmax(logits_BCV, axis=-1) == targets_BC
