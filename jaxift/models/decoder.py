"""The one decoder-only transformer: Flax NNX, stacked layers scanned, no I/O.

Shape letters: B batch, T query, S key, D embed, N heads, K key heads, G group (N / K), H head dim, F mlp, V vocabulary,
L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxift.models import splash
from jaxift.models.attention import NEGATIVE, attention, attention_mask
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.layer import PROJECTION, Columns, Layer, Norm, Past, matrix, whole
from jaxift.parallel.mesh import platform, spec

UNROLLED_LAYERS = 6
Remat = Literal["none", "dots", "full"]
KEPT = {
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTION, splash.ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}
QUERY_BLOCK = {"cpu": 128}
"""Queries of a row that attention takes at a time; a platform that is not named takes the default."""
LARGE_QUERY_BLOCK = 512
ALIGNED = 16
"""The first column that a block looks at is a multiple of this: whole vectors."""
KeyValues = tuple[Columns, Columns]
"""Keys and values of one layer, or of all repetitions of one, stacked."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values that were computed before, for `Decoder.extend`; columns from `used` on are empty."""

    layers: list[KeyValues]
    """One entry a position of the attention pattern, [groups, B, S, K, H]."""
    rest: list[KeyValues]
    """One entry a remainder layer, [B, S, K, H]."""
    segments_BS: Int[Array, "B S"]
    positions_BS: Int[Array, "B S"]
    used: Int[Array, ""]


class Decoder(nnx.Module):
    """Token embedding, layers, final norm and LM head (tied or not).

    `layers` holds one Layer a position of the attention pattern, its parameters stacked over the pattern's repetitions
    and scanned; `rest` holds the layers after the last full pattern (62 layers of a pattern of 6: 10 groups and 2).
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size + config.vocab_padding, config.hidden_size
        self.embedding = matrix(rngs, (V, D), ("vocab", "embed"), 0.02)
        self.layers = nnx.List([_stacked(config, rngs) for _ in config.pattern])
        self.rest = nnx.List([Layer(config, rngs) for _ in config.remainder])
        self.final_norm = Norm(config, (D,), None)
        self.head = None if config.tie_embeddings else matrix(rngs, (V, D), ("vocab", "embed"), D**-0.5)

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        *,
        dtype: np.dtype | type = jnp.float32,
        remat: Remat = "none",
        longest: int | None = None,
        unrolled: bool = False,
    ) -> Float[Array, "B T D"]:
        """The residual stream after the final norm, [B, T, D] in `dtype`.

        Tokens see earlier positions of their own segment only; segment 0 is padding. A segment's tokens stand side by
        side in order, and no other may hold more than `longest`, each of them whole: attention looks no further back.
        `remat` is what the backward pass recomputes beside attention's weights and the MLP's gate: nothing, all but the
        products with a layer's matrices and what is attended to (`dots`), or whole layers (`full`). `unrolled`
        compiles each layer for itself.
        """
        kernel = splash.is_used()
        masks = {} if kernel else self._masks(lambda window: attention_mask(segments_BT, positions_BT, window))

        def attend(
            span: Span, past: None, group: None, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array
        ) -> tuple[Array, None]:
            reach = min(reach for reach in (span.window, longest, tokens_BT.shape[1]) if reach is not None)
            if kernel:
                scale, soft_cap = self.config.attention_scale, self.config.attention_soft_cap
                parts = q_BTNH, k_BTKH, v_BTKH, segments_BT
                return splash.attend_packed(*parts, scale=scale, soft_cap=soft_cap, reach=reach), past
            # attention's weights grow with the square of the length: the backward pass computes them again
            in_blocks = jax.checkpoint(functools.partial(self._in_blocks, reach))
            return in_blocks(q_BTNH, k_BTKH, v_BTKH, masks[span.window]), past

        found = self.through(tokens_BT, positions_BT, attend, None, dtype=dtype, remat=remat, unrolled=unrolled)
        return found[0]

    def extend(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        cache: Cache,
        *,
        dtype: np.dtype | type = jnp.float32,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """`hidden` of T more tokens that also see what the cache holds, and the cache with them written into it.

        The cache must have room for T more columns; tokens of segment 0 are written too, but nothing sees them.
        """
        segments_BS = jax.lax.dynamic_update_slice_in_dim(cache.segments_BS, segments_BT, cache.used, axis=1)
        positions_BS = jax.lax.dynamic_update_slice_in_dim(cache.positions_BS, positions_BT, cache.used, axis=1)

        keys = segments_BS, positions_BS
        masks = self._masks(lambda window: attention_mask(segments_BT, positions_BT, window, keys=keys))

        def attend(
            span: Span, past: KeyValues, group: Array | None, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array
        ) -> tuple[Array, KeyValues]:
            after = Past(*past, cache.used, group).remember(k_BTKH, v_BTKH)
            return self.attention(q_BTNH, *after.of_group(), masks[span.window]), (after.keys, after.values)

        past = (cache.layers, cache.rest)
        hidden_BTD, (layers, rest) = self.through(tokens_BT, positions_BT, attend, past, dtype=dtype)
        return hidden_BTD, Cache(layers, rest, *keys, cache.used + tokens_BT.shape[1])

    def through(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        attend: Callable,
        past: tuple[list, list] | None,
        *,
        dtype: np.dtype | type,
        remat: Remat = "none",
        unrolled: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[list, list]]:
        """The residual stream after the final norm, with an attention of the caller's.

        `attend(span, past, group, q, k, v)` returns what is attended to, and the past thereafter. `past` has an entry
        a position of the attention pattern, stacked over its groups, of which `group` is this layer's, and one a
        remainder layer (`group` None). The stacks are carried through the loop whole, to be updated in place.
        """
        rotations = {span.rope: span.rope.rotation(positions_BT) for span in self.config.pattern}

        def layer(
            graph: nnx.GraphDef, span: Span, state: nnx.State, x_BTD: Array, past: Any, group: Array | None
        ) -> tuple[Array, Any]:
            return nnx.merge(graph, state)(x_BTD, rotations[span.rope], functools.partial(attend, span, past, group))

        step = layer if remat == "none" else jax.checkpoint(layer, policy=KEPT[remat], static_argnums=(0, 1))
        stacked, rest = (None, None) if past is None else past
        x_BTD, stacked, rest = self._through(step, self.embed(tokens_BT, dtype), stacked, rest, unrolled)
        return self.final_norm(x_BTD), (stacked, rest)

    def attention(self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
        """Attention with the scale and soft cap of this model."""
        return attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS, self.config.attention_scale, self.config.attention_soft_cap)

    def _in_blocks(self, reach: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, mask_BTT: Array) -> Array:
        """Attention among the tokens of rows, each of which sees at most the last `reach`, itself included."""
        found = []
        for first, start, end in query_blocks(q_BTNH.shape[1], reach, platform()):
            keys, values, mask = k_BTKH[:, first:end], v_BTKH[:, first:end], mask_BTT[:, start:end, first:end]
            found.append(self.attention(q_BTNH[:, start:end], keys, values, mask))
        return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)

    def embed(self, tokens_BT: Int[Array, "B T"], dtype: np.dtype | type) -> Float[Array, "B T D"]:
        """The residual stream before the first layer."""
        table_VD = whole(self.embedding, dtype, "vocab", None)
        x_BTD = table_VD.at[tokens_BT].get(out_sharding=spec("batch", None, None))
        scale = self.config.embedding_scale
        # rounded to the stream's dtype, as the families that have it were trained
        return x_BTD if scale is None else x_BTD * jnp.asarray(scale, dtype)

    def head_matrix(self, dtype: np.dtype | type) -> Float[Array, "V D"]:
        """The LM head in the type that it is computed in, laid out as it lies."""
        return (self.embedding if self.head is None else self.head)[...].astype(dtype)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """float32 logits of hidden states, the vocabulary (with its padding) sharded over `tensor`."""
        config = self.config
        weight_VD = jax.sharding.reshard(self.head_matrix(hidden.dtype), spec("vocab", None))
        logits = jnp.einsum("...D,VD->...V", hidden, weight_VD, preferred_element_type=jnp.float32)
        if config.logit_soft_cap is not None:
            logits = config.logit_soft_cap * jnp.tanh(logits / config.logit_soft_cap)
        if config.vocab_padding:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < config.vocab_size, logits, NEGATIVE)
        return logits

    def _masks(self, mask: Callable[[int | None], Array]) -> dict[int | None, Array]:
        """The mask of each kind of window, made once for all layers."""
        return {window: mask(window) for window in {span.window for span in self.config.pattern}}

    def _through(
        self, step: Callable, x_BTD: Array, stacked: list | None, rest: list | None, unrolled: bool
    ) -> tuple[Array, list, list]:
        """Runs `step(graph, span, state, x, past, group) -> x, past` over all layers; returns x and the pasts."""
        config, parts = self.config, [nnx.split(layer) for layer in self.layers]
        groups = None if stacked is None else jnp.arange(config.groups)
        stacked = [None] * len(parts) if stacked is None else stacked

        def body(carry: tuple[Array, list], scanned: tuple[list, Array | None]) -> tuple[tuple[Array, list], None]:
            (x_BTD, pasts), (states, group) = carry, scanned
            after = []
            for (graph, _), span, state, past in zip(parts, config.pattern, states, pasts, strict=True):
                x_BTD, past = step(graph, span, state, x_BTD, past, group)
                after.append(past)
            return (x_BTD, after), None

        # a shallow stack is unrolled: the backward pass of a rolled loop copies, a tenth to a quarter of the time on
        # CPU; with a past there is none
        unroll = groups is None and (unrolled or config.num_layers <= UNROLLED_LAYERS)
        states = [state for _, state in parts]
        (x_BTD, layers), _ = jax.lax.scan(body, (x_BTD, stacked), (states, groups), unroll=unroll)
        after = []
        for index, (layer, span) in enumerate(zip(self.rest, config.remainder, strict=True)):
            graph, state = nnx.split(layer)
            x_BTD, past = step(graph, span, state, x_BTD, None if rest is None else rest[index], None)
            after.append(past)
        return x_BTD, layers, after


def query_blocks(length: int, reach: int, platform: str) -> list[tuple[int, int, int]]:
    """The blocks of queries that attention takes one after another: (first column that is seen, start, end)."""
    size = QUERY_BLOCK.get(platform, LARGE_QUERY_BLOCK)
    starts = range(0, length, size)
    return [(max(0, start - reach + 1) // ALIGNED * ALIGNED, start, min(start + size, length)) for start in starts]


def _stacked(config: DecoderConfig, rngs: nnx.Rngs) -> Layer:
    """One Layer whose parameters carry a leading axis over the repetitions of the attention pattern."""

    @nnx.split_rngs(splits=config.groups)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def build(rngs: nnx.Rngs) -> Layer:
        return Layer(config, rngs)

    return build(rngs)


def empty_cache(config: DecoderConfig, rows: int, size: int, dtype: np.dtype | type) -> Cache:
    """A cache for `rows` sequences of up to `size` tokens, laid out on the mesh in use."""

    def zeros(*leading: int) -> KeyValues:
        shape = (*leading, rows, size, config.num_kv_heads, config.head_dim)
        layout = spec(*[None] * len(leading), "batch", None, "kv_heads", None)
        return (jnp.zeros(shape, dtype, out_sharding=layout), jnp.zeros(shape, dtype, out_sharding=layout))

    columns = jnp.zeros((rows, size), jnp.int32, out_sharding=spec("batch", None))
    return Cache(
        [zeros(config.groups) for _ in config.pattern],
        [zeros() for _ in config.remainder],
        columns,
        columns,
        jnp.int32(0),
    )


def init_decoder(config: DecoderConfig, seed: int, mesh: Mesh) -> Decoder:
    """A randomly initialised decoder, its parameters created in place on the mesh."""
    with jax.set_mesh(mesh):
        return nnx.jit(lambda: Decoder(config, nnx.Rngs(params=seed)))()


def laid_out(tree: Any, mesh: Mesh, dtype: np.dtype | None = None) -> Any:
    """Shapes and layouts that were told of an abstract mesh, on a real one; what has no layout lies whole everywhere.

    `dtype` (default: as it is) is that of all arrays.
    """

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = x.sharding.spec if x.sharding else jax.P(*[None] * x.ndim)
        return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=jax.NamedSharding(mesh, layout))

    return jax.tree.map(placed, tree)


def abstract_decoder(config: DecoderConfig, mesh: Mesh) -> Decoder:
    """The decoder's structure with shapes and shardings but no data."""
    with jax.set_mesh(mesh):
        return nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0)))
