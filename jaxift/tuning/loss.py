"""Cross-entropy at chosen places: neither logits nor their gradient exist for more than a few of them at a time.

The backward pass of a loss needs the same logits as the forward pass. The gradients of the hidden states and of the LM
head are therefore computed while the logits are there, and kept instead of them; each device for its rows and its share
of the vocabulary. With a reference model the loss has `kl_weight` times KL(model || reference) beside it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxift.models.attention import NEGATIVE
from jaxift.models.decoder import Decoder
from jaxift.parallel.mesh import RULES, platform, spec

LOGITS_BYTES = {"cpu": 1 << 25}
"""float32 logits of one model that exist at a time on a device; a platform that is not named takes the default."""
DEFAULT_LOGITS_BYTES = 1 << 27


class Losses(NamedTuple):
    """Sums over all places, weighted: the loss, its part that is cross-entropy, and that which is divergence."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    divergence: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Head:
    """What the LM head does beside its product."""

    vocab_size: int
    soft_cap: float | None
    kl_weight: float


class Reference(NamedTuple):
    """The hidden states and the LM head of the model that the tuned one is kept near to."""

    hidden_RTD: Float[Array, "R T D"]
    weight_VD: Float[Array, "V D"]


def summed_loss(
    decoder: Decoder,
    hidden_RTD: Float[Array, "R T D"],
    slots_HS: Int[Array, "H S"],
    targets_HS: Int[Array, "H S"],
    weights_HS: Float[Array, "H S"],
    used: Int[Array, ""] | int | None = None,
    reference: Reference | None = None,
    kl_weight: float = 0.0,
) -> Losses:
    """Weighted losses in nats of the targets that follow the slots, summed.

    The R rows lie on H shards; `slots_HS` counts the places of a shard's rows laid end to end. Of each shard's slots
    the first `used` (default: all) hold targets; the others, whose weights are 0, need not be computed.
    """
    config = decoder.config
    head = _Head(config.vocab_size, config.logit_soft_cap, kl_weight)
    weight_VD = decoder.head_matrix(hidden_RTD.dtype)
    used = jnp.asarray(slots_HS.shape[1] if used is None else used, jnp.int32)
    sums: Any = _summed(head, weight_VD, hidden_RTD, slots_HS, targets_HS, weights_HS, used, reference)
    return Losses(*sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(head: _Head, *arrays: Any) -> tuple[Array, ...]:
    return _run(head, *arrays, with_gradient=False)[0]


def _forward(head: _Head, *arrays: Any) -> tuple[tuple, tuple[Array, ...]]:
    return _run(head, *arrays, with_gradient=True)


def _backward(head: _Head, gradients: tuple[Array, ...], cotangents: tuple[Array, ...]) -> tuple:
    scale = cotangents[0]  # the other two are told, not learned from
    weight_VD, hidden_RTD = ((scale * each).astype(each.dtype) for each in gradients)
    return weight_VD, hidden_RTD, None, None, None, None, None


_summed.defvjp(_forward, _backward)


def _run(
    head: _Head,
    weight_VD: Array,
    hidden_RTD: Array,
    slots_HS: Array,
    targets_HS: Array,
    weights_HS: Array,
    used: Array,
    reference: Reference | None,
    *,
    with_gradient: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    matrix, rows, places = spec("vocab", "embed"), spec("batch", None, None), spec("batch", None)
    given = () if reference is None else tuple(reference)
    local = functools.partial(_local, head, with_gradient)
    run: Any = jax.shard_map(
        local,
        in_specs=(matrix, rows, places, places, places, spec(), *((rows, matrix) if given else ())),
        out_specs=((spec(),) * 3, (matrix, rows) if with_gradient else ()),
        check_vma=False,
    )
    laid_out = (jax.sharding.reshard(each, places) for each in (slots_HS, targets_HS, weights_HS))
    return run(weight_VD, hidden_RTD, *laid_out, used, *given)


def _local(
    head: _Head,
    with_gradient: bool,
    weight_VD: Array,
    hidden_RTD: Array,
    slots_HS: Array,
    targets_HS: Array,
    weights_HS: Array,
    used: Array,
    reference_RTD: Array | None = None,
    reference_VD: Array | None = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One device's rows and share of the vocabulary; of the matrices it holds a part of that share's columns."""
    weight_VD = _gathered(weight_VD)
    reference_VD = None if reference_VD is None else _gathered(reference_VD)
    (V, D), S = weight_VD.shape, slots_HS.shape[1]
    slots, targets, weights = slots_HS[0], targets_HS[0], weights_HS[0]
    together = min(S, slots_together(V, platform(), reference_VD is not None))
    blocks = -(-S // together)
    padded = blocks * together
    hidden_ND = hidden_RTD.reshape(-1, D)
    parts = [hidden_ND[slots], targets, weights]
    if reference_RTD is not None:
        parts.append(reference_RTD.reshape(-1, D)[slots])
    parts = [jnp.pad(x, ((0, padded - S), *[(0, 0)] * (x.ndim - 1))) for x in parts]

    def add(index: Array | int, carry: tuple) -> tuple:
        sums, gradients = carry
        place = index * together
        part = [jax.lax.dynamic_slice_in_dim(x, place, together) for x in parts]
        found, gradient_logits = _block(head, weight_VD, reference_VD, *part)
        sums = tuple(map(jnp.add, sums, found))
        if not with_gradient:
            return sums, gradients
        gradient_VD, gradient_SD = gradients
        gradient_logits = gradient_logits.astype(weight_VD.dtype)
        gradient_VD += jnp.einsum("SV,SD->VD", gradient_logits, part[0], preferred_element_type=jnp.float32)
        found_SD = jnp.einsum("SV,VD->SD", gradient_logits, weight_VD, preferred_element_type=jnp.float32)
        return sums, (gradient_VD, jax.lax.dynamic_update_slice_in_dim(gradient_SD, found_SD, place, 0))

    # a loop that is mapped over the cells wants its carry on their mesh, where constants are not
    zero = jnp.zeros_like(weights[0])
    gradients = [jnp.zeros_like(x, dtype=jnp.float32) for x in (weight_VD, parts[0])] if with_gradient else []
    start = ((zero, zero, zero), tuple(gradients))
    needed = jnp.minimum(-(-used // together), blocks)
    sums, gradients = add(0, start) if blocks == 1 else jax.lax.fori_loop(0, needed, add, start)
    batch, vocab = RULES["batch"], RULES["vocab"]
    sums = tuple(jax.lax.psum(each, batch) for each in sums)
    if not with_gradient:
        return sums, ()
    gradient_VD, gradient_SD = gradients
    gradient_SD = jax.lax.psum(gradient_SD, vocab)[:S]
    gradient_ND = jnp.zeros(hidden_ND.shape, jnp.float32).at[slots].add(gradient_SD)
    gradient_RTD = gradient_ND.reshape(hidden_RTD.shape).astype(hidden_RTD.dtype)
    return sums, (_scattered(gradient_VD.astype(weight_VD.dtype)), gradient_RTD)


def slots_together(vocabulary: int, platform: str, with_reference: bool) -> int:
    """How many places' logits over a device's share of the vocabulary exist at a time."""
    return max(1, LOGITS_BYTES.get(platform, DEFAULT_LOGITS_BYTES) // (4 * vocabulary * (1 + with_reference)))


def _gathered(weight: Array) -> Array:
    """A matrix with all its columns."""
    return jax.lax.all_gather(weight, RULES["embed"], axis=1, tiled=True)


def _scattered(gradient_VD: Array) -> Array:
    """This device's columns of the sum over all rows of the batch."""
    # what is summed and cut the compiler makes a reduce-scatter of; JAX's own does not go with cells mapped outside
    columns = gradient_VD.shape[1] // jax.lax.axis_size(RULES["embed"])
    whole = jax.lax.psum(gradient_VD, RULES["batch"])
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(RULES["embed"]) * columns, columns, axis=1)


def _block(
    head: _Head,
    weight_VD: Array,
    reference_VD: Array | None,
    h_SD: Array,
    targets_S: Array,
    weights_S: Array,
    reference_SD: Array | None = None,
) -> tuple[tuple[Array, Array, Array], Array]:
    """Sums over some places, and the gradient of their logits."""
    axis = RULES["vocab"]
    logits_SV, slope = _logits(head, h_SD, weight_VD)
    logprobs_SV = logits_SV - _log_sum_exp(logits_SV)
    probs_SV = jnp.exp(logprobs_SV)
    hit_SV = _numbers(weight_VD) == targets_S[:, None]
    cross_S = -jax.lax.psum(jnp.sum(jnp.where(hit_SV, logprobs_SV, 0), -1), axis)
    gradient_SV = probs_SV - hit_SV
    divergence_S = jnp.zeros_like(cross_S)
    if reference_VD is not None:
        assert reference_SD is not None
        others_SV, _ = _logits(head, reference_SD, reference_VD)
        ratio_SV = logprobs_SV - (others_SV - _log_sum_exp(others_SV))
        divergence_S = jax.lax.psum(jnp.sum(probs_SV * ratio_SV, -1), axis)
        gradient_SV += head.kl_weight * probs_SV * (ratio_SV - divergence_S[:, None])
    cross, divergence = jnp.sum(weights_S * cross_S), jnp.sum(weights_S * divergence_S)
    gradient_SV = gradient_SV * weights_S[:, None] * slope
    return (cross + head.kl_weight * divergence, cross, divergence), gradient_SV


def _logits(head: _Head, h_SD: Array, weight_VD: Array) -> tuple[Array, Array | float]:
    """float32 logits of a share of the vocabulary, and the slope of the soft cap."""
    logits_SV = jnp.einsum("SD,VD->SV", h_SD, weight_VD, preferred_element_type=jnp.float32)
    slope = 1.0
    if head.soft_cap is not None:
        capped = jnp.tanh(logits_SV / head.soft_cap)
        logits_SV, slope = head.soft_cap * capped, 1 - capped * capped
    return jnp.where(_numbers(weight_VD) < head.vocab_size, logits_SV, NEGATIVE), slope


def _numbers(weight_VD: Array) -> Array:
    """The tokens of this device's share of the vocabulary."""
    size = weight_VD.shape[0]
    return jax.lax.axis_index(RULES["vocab"]) * size + jnp.arange(size)


def _log_sum_exp(logits_SV: Array) -> Array:
    axis = RULES["vocab"]
    largest = jax.lax.pmax(logits_SV.max(-1, keepdims=True), axis)
    return largest + jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits_SV - largest), -1, keepdims=True), axis))
