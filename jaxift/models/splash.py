"""Attention by JAX's splash kernel (Pallas), which keeps scores on the chip: among rows, and to a prefix.

Blocks that nobody sees are neither read nor computed. Elsewhere than on TPU the kernel can be interpreted, for tests.
Shape letters as in the decoder, and P columns of a prefix, Q blocks of queries, W blocks of keys that one of them sees.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float, Int

from jaxift.parallel.mesh import platform, spec

ATTENTION = "attention"
"""What the kernel's results are called where a backward pass chooses what to keep."""
LANES = 128
"""Keys are taken in multiples of this."""
LARGEST_BLOCK = 512
"""Larger ones overflow a chip's vector memory in the backward pass."""
SKIPPED, MASKED, WHOLE = 0, 1, 2
"""What the kernel does with a block: leaves it out, looks at its mask, or takes all of it."""


def is_used() -> bool:
    """Whether attention on the mesh in use is this kernel's."""
    return platform() == "tpu"


def attend_packed(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    *,
    scale: float,
    soft_cap: float | None,
    reach: int,
) -> Float[Array, "B T N H"]:
    """Causal attention within equal segment ids, whose tokens stand side by side in order; differentiable.

    A query sees at most the last `reach` tokens, itself included.
    """
    length = q_BTNH.shape[1]
    padded = -(-length // LANES) * LANES
    shape = (padded, padded)
    mask = masks.CausalMask(shape) if reach >= length else masks.LocalMask(shape, (reach - 1, 0), 0)

    def local(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segments_BT: Array) -> Array:
        """A device's rows and heads."""
        heads = q_BTNH.shape[2]
        run = kernel.make_splash_mha(
            masks.MultiHeadMask([mask] * heads), block_sizes=_sizes(padded), head_shards=1, q_seq_shards=1,
            attn_logits_soft_cap=soft_cap, residual_checkpoint_name=ATTENTION, interpret=_interpreted(),
        )  # fmt: skip
        q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
        q, k, v = (_extended(each, padded, axis=1).transpose(0, 2, 1, 3) for each in (q_BTNH, k_BTKH, v_BTKH))
        ids = _extended(segments_BT, padded, axis=1)
        found: Any = jax.vmap(run)(q, k, v, kernel.SegmentIds(ids, ids))
        return found.transpose(0, 2, 1, 3)[:, :length]

    queries, keys = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None)
    layouts = (queries, keys, keys, spec("batch", None))
    split: Any = jax.shard_map(local, in_specs=layouts, out_specs=queries, check_vma=False)
    return split(q_BTNH, k_BTKH, v_BTKH, segments_BT)


class Found(NamedTuple):
    """Attention to some keys, and the logarithm of the sum of its weights."""

    out_NTH: Float[Array, "N T H"]
    weight_NT: Float[Array, "N T"]


def merged(some: Found, more: Found) -> Float[Array, "N T H"]:
    """Attention to both sets of keys, in float32."""
    largest = jnp.maximum(some.weight_NT, more.weight_NT)
    total, out = 0.0, 0.0
    for each in (some, more):
        weight = jnp.exp(each.weight_NT - largest)[..., None]
        total, out = total + weight, out + weight * each.out_NTH.astype(jnp.float32)
    return out / total


def row_masks(
    positions_BT: Int[Array, "B T"], reach_BT: Int[Array, "B T"], length: int, window: int | None
) -> Bool[Array, "B X S S"]:
    """Who sees whom among each lane's rows, in blocks that `attend_rows` takes: see `prefix.score_rows`."""
    tokens = reach_BT.shape[1]
    block, first, width = _row_blocks(tokens, length)
    padded = len(first) * block

    def blocks(positions_T: Array, reach_T: Array) -> Array:
        positions, reach = (_extended(each, padded, axis=0) for each in (positions_T, reach_T))
        t = jnp.arange(padded).reshape(-1, 1, block, 1)
        s = (jnp.asarray(first)[:, None] + jnp.arange(width))[..., None, None] * block + jnp.arange(block)
        s = jnp.minimum(s, padded - 1)
        visible = (s <= t) & (t // length == s // length) & (t % length < reach[s])
        if window is not None:
            visible &= positions[t] - positions[s] < window
        return visible.reshape(-1, block, block)

    local: Any = jax.shard_map(
        jax.vmap(blocks), in_specs=(spec("batch", None),) * 2, out_specs=spec("batch", None, None, None)
    )
    return local(positions_BT, reach_BT)


def attend_rows(
    q_NTH: Float[Array, "N T H"],
    k_KTH: Float[Array, "K T H"],
    v_KTH: Float[Array, "K T H"],
    visible_XSS: Bool[Array, "X S S"],
    length: int,
    soft_cap: float | None,
) -> Found:
    """One lane's tokens among each other, in rows of `length`, by one lane's part of `row_masks`; scaled queries."""
    tokens = q_NTH.shape[1]
    block, first, width = _row_blocks(tokens, length)
    numbers = np.arange(len(first))[:, None]
    # what is left out is not fetched either: it has the number of the last block that is seen, the queries' own
    place = np.minimum(np.arange(width), numbers - first[:, None])
    seen = place == np.arange(width)
    info = _mask_info(
        data_next=jnp.asarray((first[:, None] + place)[None], jnp.int32),
        mask_next=jnp.asarray((numbers * width + place)[None], jnp.int32),
        block_mask=jnp.asarray(np.where(seen, MASKED, SKIPPED)[None], jnp.int32),
        partial_mask_blocks=visible_XSS,
        q_sequence=None,
        is_dynamic_mask=True,
    )
    padded = len(first) * block
    q, k, v = (_extended(each, padded, axis=1) for each in (q_NTH, k_KTH, v_KTH))
    out, weight = _run(info, q, k, v, None, None, block, block, soft_cap)
    return Found(out[:, :tokens], weight[:, :tokens])


@dataclasses.dataclass(frozen=True)
class _Near:
    """Whether a column lies within a window before a position."""

    window: int

    def __call__(self, positions: Array, columns: Array) -> Array:
        return positions - columns < self.window


def attend_prefix(
    q_NTH: Float[Array, "N T H"],
    keys_KPH: Float[Array, "K P H"],
    values_KPH: Float[Array, "K P H"],
    used: Int[Array, ""],
    positions_T: Int[Array, "T"],
    window: int | None,
    soft_cap: float | None,
) -> Found:
    """One lane's tokens to the first `used` columns of its prefix, as far as a window reaches; scaled queries."""
    tokens, columns = q_NTH.shape[1], keys_KPH.shape[1]
    block, padded = _blocks(tokens)
    block_keys, room = _blocks(columns)
    q = _extended(q_NTH, padded, axis=1)
    k, v = (_extended(each, room, axis=1) for each in (keys_KPH, values_KPH))
    positions = _extended(positions_T, padded, axis=0)
    numbers = jnp.arange(room // block_keys, dtype=jnp.int32)
    last = jnp.maximum(used - 1, 0) // block_keys
    first = jnp.int32(0)
    if window is not None:  # blocks that no token's window reaches are left out
        first = jnp.clip(positions_T.min() - window + 1, 0) // block_keys
    first = jnp.minimum(first, last)
    shape = (1, padded // block, len(numbers))
    info = _mask_info(  # one block is always looked at: without any the kernel would divide by nothing
        data_next=jnp.broadcast_to(jnp.clip(numbers, first, last), shape),
        mask_next=None,
        block_mask=jnp.broadcast_to(jnp.where((numbers >= first) & (numbers <= last), WHOLE, SKIPPED), shape),
        partial_mask_blocks=None,
        q_sequence=None if window is None else positions,
    )
    ids = kernel.SegmentIds(jnp.ones(padded, jnp.int32), (jnp.arange(room) < used).astype(jnp.int32))
    out, weight = _run(info, q, k, v, ids, None if window is None else _Near(window), block, block_keys, soft_cap)
    return Found(out[:, :tokens], weight[:, :tokens])


def _run(
    info: MaskInfo,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Any,
    near: _Near | None,
    block: int,
    block_keys: int,
    soft_cap: float | None,
) -> tuple[Array, Array]:
    sizes = kernel.BlockSizes(block_q=block, block_kv=block_keys, block_kv_compute=block_keys)
    run = kernel.SplashAttentionKernel(
        info, None, None, block_sizes=sizes, is_mqa=False, save_residuals=True, mask_value=kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=soft_cap, residual_checkpoint_name=None, mask_function=near, interpret=_interpreted(),
    )  # fmt: skip
    out, (weight,) = run(q, k, v, segment_ids)
    return out, weight


def _mask_info(**fields: Any) -> MaskInfo:
    """Blocks as arrays of a trace: the type names those of NumPy alone."""
    return MaskInfo(**fields)


def _sizes(length: int) -> kernel.BlockSizes:
    """Blocks of rows of this length, a multiple of `LANES`."""
    size = _packed_block(length)
    names = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
        "block_kv_dq",
    )  # fmt: skip
    return kernel.BlockSizes(**dict.fromkeys(names, size))


def _packed_block(length: int) -> int:
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)


def _blocks(length: int) -> tuple[int, int]:
    """The size of blocks for so many tokens or columns, and the length with padding."""
    size = min(LARGEST_BLOCK, -(-length // LANES) * LANES)
    return size, -(-length // size) * size


@functools.cache
def _row_blocks(tokens: int, length: int) -> tuple[int, np.ndarray, int]:
    """The size of blocks, the first block of keys that each block of queries sees, and the most that one sees."""
    block, padded = _blocks(tokens)
    starts = np.arange(0, padded, block)
    first = starts // length * length // block
    return block, first, int((starts // block - first).max()) + 1


def visited(tokens: int, length: int, *, rows: bool = True) -> int:
    """Pairs of a query and a key that the kernel computes among so many tokens, whole blocks.

    The tokens are rows of `length`, each apart (`attend_rows`); or one row, whose tokens look so far back
    (`attend_packed`).
    """
    if rows:
        block, first, _ = _row_blocks(tokens, length)
    else:
        block = _packed_block(-(-tokens // LANES) * LANES)
        starts = np.arange(0, tokens, block)
        first = np.maximum(starts - length + 1, 0) // block
    return int((np.arange(len(first)) - first + 1).sum()) * block**2


def visited_prefix(tokens: int, depth: int) -> int:
    """Pairs of a token and a column of its prefix that the kernel computes, whole blocks (`attend_prefix`)."""
    return tokens * -(-depth // LARGEST_BLOCK) * LARGEST_BLOCK


def _extended(x: Array, size: int, axis: int) -> Array:
    """Zeros at the end up to a size: of no segment, and reached by nobody."""
    missing = size - x.shape[axis]
    return jnp.pad(x, [(0, missing if each == axis else 0) for each in range(x.ndim)]) if missing else x


def _interpreted() -> bool:
    return platform() != "tpu"
