"""Log-probabilities of chosen tokens at chosen positions: the LM head runs nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxift.models.decoder import Decoder


def row_positions(tokens_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions 0, 1, ... of rows that hold one sequence each, laid out like the tokens."""
    layout = jax.typeof(tokens_BT).sharding
    return jax.lax.broadcasted_iota(jnp.int32, tokens_BT.shape, 1, out_sharding=layout)


def target_logprobs(
    decoder: Decoder,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BC: Int[Array, "B C"],
    targets_BCK: Int[Array, "B C K"],
    *,
    dtype: np.dtype,
    remat: bool = False,
) -> tuple[Float[Array, "B C K"], Bool[Array, "B C K"]]:
    """Natural-log probability of each target as the token after its position, and whether greedy decoding says it.

    Each row holds one sequence, segment 0 is padding. float32 logits exist at the C scored positions only.
    """
    hidden_BTD = decoder.hidden(tokens_BT, row_positions(tokens_BT), segments_BT, dtype=dtype, remat=remat)
    logits_BCV = decoder.logits(jnp.take_along_axis(hidden_BTD, positions_BC[..., None], axis=1))
    # a gather along the vocabulary is refused where it is sharded; a masked sum is not
    hit_BCKV = jnp.arange(logits_BCV.shape[-1]) == targets_BCK[..., None]
    found_BCK = jnp.sum(jnp.where(hit_BCKV, logits_BCV[..., None, :], 0.0), axis=-1)
    logprobs = found_BCK - jax.nn.logsumexp(logits_BCV, axis=-1)[..., None]
    return logprobs, jnp.argmax(logits_BCV, axis=-1)[..., None] == targets_BCK
