"""The one decoder-only transformer: Flax NNX, stacked layers scanned, no I/O.

Shape letters: B batch, T query, S key, D embed, N heads, K key heads, G group (N / K), H head dim, F mlp, V vocabulary,
L layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxift.models.attention import attention, attention_mask
from jaxift.parallel.mesh import spec


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder; fields are named for what they do, not for the family that has them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    sliding_window: int | None = None
    max_positions: int = 2048

    def __post_init__(self) -> None:
        """Raises ValueError where heads cannot be grouped or the head dimension cannot be rotated in pairs."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")


UNROLLED_LAYERS = 6


def rope(x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding, halves rotated against each other (Su et al. 2021; Hugging Face weight layout)."""
    half = x_BTNH.shape[-1] // 2
    # float32 angles: bfloat16 has 8 bits of mantissa and would turn position 257 into 256
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def whole(weight: nnx.Param, dtype: np.dtype | type, *names: str | None) -> Array:
    """Gathers a weight over `fsdp` (its `embed` dimension) and casts it for the computation."""
    return jax.sharding.reshard(weight[...].astype(dtype), spec(*names))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32, out_sharding=spec(None)))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last dimension."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


def _matrix(rngs: nnx.Rngs, shape: tuple[int, ...], names: tuple[str | None, ...], scale: float) -> nnx.Param:
    """A normally distributed weight, laid out by logical names from its creation."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=spec(*names)))


class Layer(nnx.Module):
    """One pre-norm block: grouped-query attention, then a gated SiLU MLP."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, F, N, K, H = (
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        self.config = config
        self.attention_norm = RMSNorm(D, config.rms_norm_eps)
        self.q = _matrix(rngs, (D, N, H), ("embed", "heads", None), D**-0.5)
        self.k = _matrix(rngs, (D, K, H), ("embed", "kv_heads", None), D**-0.5)
        self.v = _matrix(rngs, (D, K, H), ("embed", "kv_heads", None), D**-0.5)
        self.o = _matrix(rngs, (N, H, D), ("heads", None, "embed"), (2 * config.num_layers * N * H) ** -0.5)
        self.mlp_norm = RMSNorm(D, config.rms_norm_eps)
        self.gate = _matrix(rngs, (D, F), ("embed", "mlp"), D**-0.5)
        self.up = _matrix(rngs, (D, F), ("embed", "mlp"), D**-0.5)
        self.down = _matrix(rngs, (F, D), ("mlp", "embed"), (2 * config.num_layers * F) ** -0.5)

    def __call__(self, x_BTD: Float[Array, "B T D"], positions_BT: Array, mask_BTT: Array) -> Float[Array, "B T D"]:
        """Adds attention and MLP to the residual stream."""
        x_BTD = x_BTD + self.attend(self.attention_norm(x_BTD), positions_BT, mask_BTT)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    def attend(self, x_BTD: Array, positions_BT: Array, mask_BTT: Array) -> Array:
        """Self-attention of the normalised stream."""
        dtype, theta = x_BTD.dtype, self.config.rope_theta
        q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, whole(self.q, dtype, None, "heads", None))
        k_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, whole(self.k, dtype, None, "kv_heads", None))
        v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, whole(self.v, dtype, None, "kv_heads", None))
        out_BTNH = attention(rope(q_BTNH, positions_BT, theta), rope(k_BTKH, positions_BT, theta), v_BTKH, mask_BTT)
        o_NHD = whole(self.o, dtype, "heads", None, None)
        return jnp.einsum("BTNH,NHD->BTD", out_BTNH, o_NHD, out_sharding=spec("batch", None, None))

    def mlp(self, x_BTD: Array) -> Array:
        """Gated MLP of the normalised stream."""
        dtype = x_BTD.dtype
        gate = jnp.einsum("BTD,DF->BTF", x_BTD, whole(self.gate, dtype, None, "mlp"))
        up = jnp.einsum("BTD,DF->BTF", x_BTD, whole(self.up, dtype, None, "mlp"))
        down = whole(self.down, dtype, "mlp", None)
        return jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate) * up, down, out_sharding=spec("batch", None, None))


class Decoder(nnx.Module):
    """Token embedding, L scanned layers, final norm and LM head (tied or not)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.hidden_size
        self.embedding = _matrix(rngs, (V, D), ("vocab", "embed"), 0.02)
        self.layers = _stacked_layers(config, rngs)
        self.final_norm = RMSNorm(D, config.rms_norm_eps)
        self.head = None if config.tie_embeddings else _matrix(rngs, (V, D), ("vocab", "embed"), D**-0.5)

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        parents_BT: Int[Array, "B T"] | None = None,
        *,
        dtype: np.dtype | type = jnp.float32,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """The residual stream after the final norm, [B, T, D] in `dtype`.

        Tokens see earlier positions of their own segment only; segment 0 is padding. Where `parents_BT` is given, they
        also see the segment that their own one branches off. `remat` recomputes each layer in the backward pass.
        """
        mask_BTT = attention_mask(segments_BT, positions_BT, self.config.sliding_window, parents_BT)
        table = whole(self.embedding, dtype, "vocab", None)
        x_BTD = table.at[tokens_BT].get(out_sharding=spec("batch", None, None))
        graph, stacked = nnx.split(self.layers)

        def body(x_BTD, state):
            return nnx.merge(graph, state)(x_BTD, positions_BT, mask_BTT), None

        # a shallow stack is unrolled: the backward pass of a rolled loop copies, a quarter of the time on CPU
        unroll = self.config.num_layers <= UNROLLED_LAYERS
        x_BTD, _ = jax.lax.scan(jax.checkpoint(body) if remat else body, x_BTD, stacked, unroll=unroll)
        return self.final_norm(x_BTD)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """float32 logits of hidden states, the vocabulary sharded over `tensor`."""
        head = self.embedding if self.head is None else self.head
        weight_VD = whole(head, hidden.dtype, "vocab", None)
        return jnp.einsum("...D,VD->...V", hidden, weight_VD, preferred_element_type=jnp.float32)


def _stacked_layers(config: DecoderConfig, rngs: nnx.Rngs) -> Layer:
    """One Layer whose parameters carry a leading axis L."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def build(rngs: nnx.Rngs) -> Layer:
        return Layer(config, rngs)

    return build(rngs)


def init_decoder(config: DecoderConfig, seed: int, mesh: Mesh) -> Decoder:
    """A randomly initialised decoder, its parameters created in place on the mesh."""
    with jax.set_mesh(mesh):
        return nnx.jit(lambda: Decoder(config, nnx.Rngs(params=seed)))()


def abstract_decoder(config: DecoderConfig, mesh: Mesh) -> Decoder:
    """The decoder's structure with shapes and shardings but no data."""
    with jax.set_mesh(mesh):
        return nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0)))
