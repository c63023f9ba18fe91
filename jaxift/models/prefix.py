"""Attention behind a prefix that was computed before: its keys and values, and rows of branching texts that follow it.

A *lane* is one entry of the batch axis; it holds one prefix, and its tokens are rows of equal length laid side by side.
Shape letters as in the decoder, and P columns of the prefix, R rows of a lane, C slots, A targets of a slot.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxift.models import splash
from jaxift.models.attention import NEGATIVE
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import Decoder
from jaxift.models.readout import at_slots, target_logprobs
from jaxift.parallel.mesh import spec

LARGE_BLOCK, SMALL_BLOCK = 256, 64
"""Columns of a prefix that are attended to at a time: large blocks first, then what is left in small ones."""
QUERY_BLOCK = 128
LONG_ROW = 1024
"""Longer rows, which must be multiples of LARGE_BLOCK, are attended to block by block: memory grows with the blocks."""
LOGITS_BYTES = 1 << 26
"""float32 logits of a lane that exist at a time."""

KeyValues = tuple[Float[Array, "... B K P H"], Float[Array, "... B K P H"]]


Prefix = tuple[list[KeyValues], list[KeyValues]]
"""Keys and values of one prefix a lane, heads first: an entry a position of the attention pattern,
[groups, B, K, P, H], and one a remainder layer, [B, K, P, H]."""


def empty_prefix(config: DecoderConfig, lanes: int, columns: int, dtype: np.dtype | type) -> Prefix:
    """Room for prefixes of up to `columns` tokens, laid out on the mesh in use."""

    def zeros(*leading: int) -> KeyValues:
        shape = (*leading, lanes, config.num_kv_heads, columns, config.head_dim)
        layout = spec(*[None] * len(leading), "batch", "kv_heads", None, None)
        return (jnp.zeros(shape, dtype, out_sharding=layout), jnp.zeros(shape, dtype, out_sharding=layout))

    return [zeros(config.groups) for _ in config.pattern], [zeros() for _ in config.remainder]


def prefill(
    decoder: Decoder,
    prefix: Prefix,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    reach_BT: Int[Array, "B T"],
    *,
    dtype: np.dtype | type,
) -> Prefix:
    """Computes the T columns that follow the first `positions_BT[:, 0]` of each prefix; see `score_rows`."""
    used_B = positions_BT.min(axis=1)  # jax 0.12 forgets the layout of a sliced batch of one
    rows = _rows(decoder.config, positions_BT, reach_BT, tokens_BT.shape[1])
    attend = functools.partial(_attend, decoder.config, rows, used_B, remembers=True)
    return decoder.through(tokens_BT, positions_BT, attend, prefix, dtype=dtype)[1]


def score_rows(
    decoder: Decoder,
    prefix: Prefix,
    used_B: Int[Array, "B"],
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    reach_BT: Int[Array, "B T"],
    slots_BC: Int[Array, "B C"],
    targets_BCA: Int[Array, "B C A"],
    *,
    length: int,
    dtype: np.dtype | type,
    logits_bytes: int = LOGITS_BYTES,
) -> tuple[Float[Array, "B C A"], Bool[Array, "B C A"]]:
    """Natural-log probability of each target as the token after its slot, and whether it is the most likely one.

    Each lane's T tokens are rows of `length`; a token sees the first `used_B` columns of its lane's prefix, itself, and
    those before it in its row whose `reach_BT` (an offset in the row) lies behind it: a tree laid out depth first,
    where a token's reach is the end of what branches off it. Reach 0 is padding. No more than about `logits_bytes` of
    float32 logits of a lane exist at a time.
    """
    rows = _rows(decoder.config, positions_BT, reach_BT, length)
    attend = functools.partial(_attend, decoder.config, rows, used_B, remembers=False)
    hidden_BTD, _ = decoder.through(tokens_BT, positions_BT, attend, prefix, dtype=dtype)
    return _read_out(decoder, hidden_BTD, slots_BC, targets_BCA, logits_bytes)


def _read_out(
    decoder: Decoder, hidden_BTD: Array, slots_BC: Array, targets_BCA: Array, logits_bytes: int
) -> tuple[Float[Array, "B C A"], Bool[Array, "B C A"]]:
    """`target_logprobs` at slots, a few of them at a time."""
    B, C, A = targets_BCA.shape
    hidden_BCD = at_slots(hidden_BTD, slots_BC)
    vocab = decoder.config.vocab_size + decoder.config.vocab_padding
    together = max(1, min(C, logits_bytes // (4 * vocab)))
    blocks = -(-C // together)
    if blocks == 1:
        return target_logprobs(decoder, hidden_BCD, targets_BCA)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, blocks * together - C), (0, 0)))
        return padded.reshape(B, blocks, together, x.shape[-1]).swapaxes(0, 1)

    found = jax.lax.map(lambda block: target_logprobs(decoder, *block), (cut(hidden_BCD), cut(targets_BCA)))
    logprobs, greedy = (each.swapaxes(0, 1).reshape(B, blocks * together, A)[:, :C] for each in found)
    return logprobs, greedy


def _shaped(x: Array, *shape: int) -> Array:
    """Reshapes within a device: where cells are mapped outside, jax 0.10 asks for the layout."""
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(*[None] * len(shape)))


class Rows(NamedTuple):
    """Rows of tokens of each lane, and for the splash kernel who sees whom there, by window."""

    positions_BT: Array
    reach_BT: Array
    length: int
    masks: dict[int | None, Array]


def _rows(config: DecoderConfig, positions_BT: Array, reach_BT: Array, length: int) -> Rows:
    windows = {span.window for span in config.pattern} if splash.is_used() else ()
    masks = {window: splash.row_masks(positions_BT, reach_BT, length, window) for window in windows}
    return Rows(positions_BT, reach_BT, length, masks)


def _attend(
    config: DecoderConfig,
    given: Rows,
    used_B: Array,
    span: Span,
    past: KeyValues,
    group: Array | None,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    *,
    remembers: bool,
) -> tuple[Array, KeyValues]:
    """Attention of one layer, each device for its own lanes and heads; with `remembers`, writes the new columns."""
    lanes, queries, keys = spec("batch"), spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None)
    stack = spec("batch", "kv_heads", None, None) if group is None else spec(None, "batch", "kv_heads", None, None)

    mask = given.masks.get(span.window)

    def local(
        past: KeyValues, group: Array, used_B: Array, q: Array, k: Array, v: Array, *rows: Array
    ) -> tuple[Array, KeyValues]:
        """One lane a device."""
        q = (q.astype(jnp.float32) * config.attention_scale).astype(q.dtype)
        q_NTH, k_KTH, v_KTH = (each[0].transpose(1, 0, 2) for each in (q, k, v))
        if remembers:
            past = _written(past[0], k_KTH, group, used_B[0]), _written(past[1], v_KTH, group, used_B[0])
        prefix = _of_group(past[0], group), _of_group(past[1], group)
        positions, reach, *visible = (each[0] for each in rows)
        if visible:
            soft_cap = config.attention_soft_cap
            found = splash.attend_rows(q_NTH, k_KTH, v_KTH, visible[0], given.length, soft_cap)
            before = splash.attend_prefix(q_NTH, *prefix, used_B[0], positions, span.window, soft_cap)
            out_NTH = splash.merged(found, before)
        else:
            found = _attend_rows(q_NTH, k_KTH, v_KTH, positions, reach, given.length, config, span.window)
            out_NTH = _attend_prefix(q_NTH, prefix, used_B[0], positions, found, config, span.window)
        return out_NTH.transpose(1, 0, 2)[None].astype(q.dtype), past

    rows = (given.positions_BT, given.reach_BT, *(() if mask is None else (mask,)))
    layouts = ((stack, stack), spec(), lanes, queries, keys, keys, *[lanes] * len(rows))
    number = jnp.int32(0) if group is None else group
    # the kernel does not say over which devices its results vary
    run = jax.shard_map(local, in_specs=layouts, out_specs=(queries, (stack, stack)), check_vma=mask is None)
    return run(past, number, used_B, q_BTNH, k_BTKH, v_BTKH, *rows)


def _of_group(part: Array, group: Array) -> Array:
    """One lane's columns of a stack's group, or of one layer's."""
    return part[0] if part.ndim == 4 else jax.lax.dynamic_index_in_dim(part, group, keepdims=False)[0]


def _written(part: Array, new_KTH: Array, group: Array, start: Array) -> Array:
    """The stack (or one layer's columns) with new columns from `start` on."""
    if part.ndim == 4:
        return jax.lax.dynamic_update_slice(part, new_KTH[None], (0, 0, start, 0))
    return jax.lax.dynamic_update_slice(part, new_KTH[None, None], (group, 0, 0, start, 0))


# what attention has gathered: sum of weighted values [K, M, H], largest score and sum of weights [K, M, 1]
Gathered = tuple[Array, Array, Array]


def _weigh(scores: Array, visible: Array | None, v: Array, config: DecoderConfig, largest: Array) -> Gathered:
    """Weighs values [..., S, H] by scores [..., M, S], of which some or (None) all are visible."""
    if config.attention_soft_cap is not None:
        scores = config.attention_soft_cap * jnp.tanh(scores / config.attention_soft_cap)
    if visible is not None:  # on CPU a maximum over what is masked on the way takes twice as long
        scores = jnp.where(visible, scores, NEGATIVE)
    largest = jnp.maximum(largest, scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    out = jnp.einsum("...ms,...sh->...mh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out, largest, weights.sum(-1, keepdims=True)


def _merged(found: Gathered, scores: Array, visible: Array | None, v: Array, config: DecoderConfig) -> Gathered:
    """What was found, and more keys with their values."""
    out, largest, total = found
    more, higher, weight = _weigh(scores, visible, v, config, largest)
    fade = jnp.exp(largest - higher)
    return out * fade + more, higher, total * fade + weight


def _attend_rows(
    q_NTH: Array,
    k_KTH: Array,
    v_KTH: Array,
    positions_T: Array,
    reach_T: Array,
    length: int,
    config: DecoderConfig,
    window: int | None,
) -> Gathered:
    """Attention within rows; blocks of queries look at no column behind their last one."""
    (N, T, H), K = q_NTH.shape, k_KTH.shape[0]
    G, R = N // K, T // length
    q = _shaped(q_NTH, K, G, R, length, H).transpose(0, 2, 1, 3, 4)
    k, v = (_shaped(each, K, R, length, H) for each in (k_KTH, v_KTH))
    positions, reach = _shaped(positions_T, R, length), _shaped(reach_T, R, length)
    if length > LONG_ROW:
        parts = _attend_long_rows(q, k, v, positions, reach, config, window)
        out, largest, total = (part.transpose(0, 2, 1, 3, 4).reshape(K, G * T, -1) for part in parts)
        return out, largest, total
    found = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        t, s = jnp.arange(start, end)[:, None], jnp.arange(end)
        visible = (s <= t) & (t < reach[:, None, :end])
        if window is not None:
            visible &= positions[:, start:end, None] - positions[:, None, :end] < window
        scores = jnp.einsum(
            "KRGTH,KRSH->KRGTS", q[..., start:end, :], k[:, :, :end], preferred_element_type=jnp.float32
        )
        found.append(_weigh(scores, visible[None, :, None], v[:, :, None, :end], config, jnp.float32(NEGATIVE)))
    parts = (jnp.concatenate(each, axis=3) for each in zip(*found, strict=True))
    out, largest, total = (part.transpose(0, 2, 1, 3, 4).reshape(K, G * T, -1) for part in parts)
    return out, largest, total


def _attend_long_rows(
    q: Array, k: Array, v: Array, positions: Array, reach: Array, config: DecoderConfig, window: int | None
) -> Gathered:
    """Attention within rows of [K, R, G, T, H] queries and [K, R, T, H] keys, a block of each at a time."""

    def cut(x: Array, start: Array, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, LARGE_BLOCK, axis)

    def queries(start: Array) -> Gathered:
        q_block = cut(q, start, 3)
        t = start + jnp.arange(LARGE_BLOCK)[:, None]

        def add(index: Array, found: Gathered) -> Gathered:
            at = index * LARGE_BLOCK
            s = at + jnp.arange(LARGE_BLOCK)
            visible = (s <= t) & (t < cut(reach, at, 1)[:, None])
            if window is not None:
                visible &= cut(positions, start, 1)[:, :, None] - cut(positions, at, 1)[:, None] < window
            scores = jnp.einsum("KRGTH,KRSH->KRGTS", q_block, cut(k, at, 2), preferred_element_type=jnp.float32)
            return _merged(found, scores, visible[None, :, None], cut(v, at, 2)[:, :, None], config)

        nothing = q_block.astype(jnp.float32) * 0
        found = nothing, nothing[..., :1] + NEGATIVE, nothing[..., :1]
        return jax.lax.fori_loop(0, start // LARGE_BLOCK + 1, add, found)

    found = jax.lax.map(queries, jnp.arange(0, q.shape[3], LARGE_BLOCK))
    out, largest, total = (jnp.moveaxis(part, 0, 3).reshape(*q.shape[:4], part.shape[-1]) for part in found)
    return out, largest, total


def _attend_prefix(
    q_NTH: Array,
    prefix: tuple[Array, Array],
    used: Array,
    positions_T: Array,
    found: Gathered,
    config: DecoderConfig,
    window: int | None,
) -> Array:
    """Adds attention to the prefix to what was found in the rows, block by block (log-sum-exp), and normalises."""
    (N, T, H), (keys_KPH, values_KPH) = q_NTH.shape, prefix
    K = keys_KPH.shape[0]
    q = _shaped(q_NTH, K, N // K * T, H)
    queries = jnp.tile(positions_T, N // K)[:, None]

    def add(size: int, index: Array, found: Gathered) -> Gathered:
        k, v = (jax.lax.dynamic_slice_in_dim(each, index * size, size, axis=1) for each in (keys_KPH, values_KPH))
        columns = index * size + jnp.arange(size)
        visible = None if size == LARGE_BLOCK else columns < used
        if window is not None:
            visible = (columns < used) & (queries - columns < window)
        scores = jnp.einsum("KMH,KSH->KMS", q, k, preferred_element_type=jnp.float32)
        return _merged(found, scores, visible, v, config)

    first = jnp.int32(0)
    if window is not None:  # blocks that no token's window reaches are left out
        first = jnp.minimum(jnp.maximum(positions_T.min() - window + 1, 0), used) // LARGE_BLOCK
    large = used // LARGE_BLOCK
    ratio = LARGE_BLOCK // SMALL_BLOCK
    if keys_KPH.shape[1] >= LARGE_BLOCK:
        found = jax.lax.fori_loop(first, large, functools.partial(add, LARGE_BLOCK), found)
    found = jax.lax.fori_loop(large * ratio, -(-used // SMALL_BLOCK), functools.partial(add, SMALL_BLOCK), found)
    out, _, total = found
    return _shaped(out / total, N, T, H)
