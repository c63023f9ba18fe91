"""One decoder layer: norms, grouped-query attention and MLP, as the config asks.

Shape letters: B batch, T query, S key, D embed, N heads, K key heads, H head dim, F mlp. Weights are laid out as in
Hugging Face checkpoints, [out, in] with their axes split, so that loading moves no element.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxift.models.config import DecoderConfig, LoraShape
from jaxift.models.rope import rotate
from jaxift.parallel.mesh import spec

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
LAYOUTS: dict[str, tuple[tuple[str | None, ...], tuple[str | None, ...]]] = {
    "q": (("heads", None), ("embed",)),
    "k": (("kv_heads", None), ("embed",)),
    "v": (("kv_heads", None), ("embed",)),
    "o": (("embed",), ("heads", None)),
    "gate": (("mlp",), ("embed",)),
    "up": (("mlp",), ("embed",)),
    "down": (("embed",), ("mlp",)),
}
"""Logical names of each matrix' output axes and input axes."""
IN_NAMES = {matrix: {"o": "heads", "down": "mlp"}.get(matrix) for matrix in LAYOUTS}
"""Logical name of the activations that each matrix takes."""
PROJECTION = "projection"
"""What the products with a layer's matrices are called where a backward pass chooses what to keep."""
Rotation = tuple[Float[Array, "B T R"], Float[Array, "B T R"]]
Columns = Float[Array, "... B S K H"]
Attend = Callable[[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]], tuple[Array, Any]]
"""Attention of rotated queries, keys and values: what they attend to, and whatever past the caller keeps of them."""


def whole(weight: nnx.Param, dtype: np.dtype | type, *names: str | None) -> Array:
    """Gathers a weight over `fsdp` (its `embed` dimension) and casts it for the computation."""
    return jax.sharding.reshard(weight[...].astype(dtype), spec(*names))


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], names: tuple[str | None, ...], scale: float) -> nnx.Param:
    """A normally distributed weight, laid out by logical names from its creation."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=spec(*names)))


def _bias(wanted: bool, shape: tuple[int, ...], *names: str | None) -> nnx.Param | None:
    return nnx.Param(jnp.zeros(shape, jnp.float32, out_sharding=spec(*names))) if wanted else None


@dataclasses.dataclass(frozen=True)
class Past:
    """Keys and values of one layer, stacked over the groups that repeat it unless `group` is None, and where to write.

    New columns are written into the whole before a group's part is read: in the other order the whole is copied.
    """

    keys: Columns
    values: Columns
    start: Int[Array, ""]
    group: Int[Array, ""] | None

    def remember(self, k_BTKH: Array, v_BTKH: Array) -> "Past":
        """The past with new keys and values from column `start` on."""
        return dataclasses.replace(
            self, keys=self._written(self.keys, k_BTKH), values=self._written(self.values, v_BTKH)
        )

    def of_group(self) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values of this layer alone."""
        if self.group is None:
            return self.keys, self.values
        keys, values = (
            jax.lax.dynamic_index_in_dim(part, self.group, keepdims=False) for part in (self.keys, self.values)
        )
        return keys, values

    def _written(self, part: Array, new_BTKH: Array) -> Array:
        if self.group is None:
            return jax.lax.dynamic_update_slice(part, new_BTKH, (0, self.start, 0, 0))
        return jax.lax.dynamic_update_slice(part, new_BTKH[None], (self.group, 0, self.start, 0, 0))


class Norm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019) or layer norm over the dimensions of `shape`, in float32."""

    def __init__(self, config: DecoderConfig, shape: tuple[int, ...], *names: str | None):
        self.config, self.axes = config, tuple(range(-len(shape), 0))
        neutral = jnp.zeros if config.norm_unit_offset else jnp.ones
        self.scale = nnx.Param(neutral(shape, jnp.float32, out_sharding=spec(*names)))
        self.bias = _bias(config.norm == "layer", shape, *names)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Normalises the last dimensions."""
        wide = x.astype(jnp.float32)
        if self.config.norm == "layer":
            wide = wide - jnp.mean(wide, axis=self.axes, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=self.axes, keepdims=True) + self.config.norm_eps)
        scale = self.scale[...].astype(jnp.float32)
        wide = wide * (1 + scale if self.config.norm_unit_offset else scale)
        return (wide if self.bias is None else wide + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class LoraParam(nnx.Param):
    """A weight of an adapter: what is tuned where the rest of the model is not."""


class LowRank(nnx.Module):
    """The change `scale * b @ a` of a matrix; `a` is [r, in axes] and `b` [out axes, r], as in `adapters.Adapter`.

    Before the first update it changes nothing: `a` is uniform as in PEFT, `b` zero.
    """

    def __init__(self, lora: LoraShape, matrix: str, shape: tuple[int, ...], rngs: nnx.Rngs):
        self.scale, self.layout = lora.scale, LAYOUTS[matrix]
        outer, inner = self.layout
        out, into = shape[: len(outer)], shape[len(outer) :]
        bound, layout = math.prod(into) ** -0.5, spec(None, *inner)
        self.a = LoraParam(
            jax.random.uniform(rngs.params(), (lora.rank, *into), jnp.float32, -bound, bound, out_sharding=layout)
        )
        self.b = LoraParam(jnp.zeros((*out, lora.rank), jnp.float32, out_sharding=spec(*outer, None)))

    def __call__(self, x_BTI: Float[Array, "B T I"], layout: PartitionSpec) -> Float[Array, "B T O"]:
        """What is added to the matrix' output, laid out like it."""
        outer, inner = (tuple(None if name == "embed" else name for name in names) for names in self.layout)
        a_RI, b_OR = whole(self.a, x_BTI.dtype, None, *inner), whole(self.b, x_BTI.dtype, *outer, None)
        rank = a_RI.shape[0]
        a_RI = jnp.reshape(a_RI, (rank, math.prod(a_RI.shape[1:])), out_sharding=spec(None, inner[0]))
        b_OR = jnp.reshape(b_OR, (math.prod(b_OR.shape[:-1]), rank), out_sharding=spec(outer[0], None))
        low_BTR = jnp.einsum("BTI,RI->BTR", x_BTI, a_RI, out_sharding=spec("batch", None, None))
        return self.scale * jnp.einsum("BTR,OR->BTO", low_BTR, b_OR, out_sharding=layout)


class Layer(nnx.Module):
    """Attention and MLP with their norms and residual connections."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        D, F, N, K, H = (
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        before, after = (config.norm_placement in (place, "around") for place in ("before", "after"))
        self.attention_norm = Norm(config, (D,), None) if before else None
        self.attention_post_norm = Norm(config, (D,), None) if after else None
        self.mlp_norm = Norm(config, (D,), None) if before else None
        self.mlp_post_norm = Norm(config, (D,), None) if after else None
        self.q_norm = _head_norm(config, N, "heads")
        self.k_norm = _head_norm(config, K, "kv_heads")
        self.q = matrix(rngs, (N, H, D), sum(LAYOUTS["q"], ()), D**-0.5)
        self.k = matrix(rngs, (K, H, D), sum(LAYOUTS["k"], ()), D**-0.5)
        self.v = matrix(rngs, (K, H, D), sum(LAYOUTS["v"], ()), D**-0.5)
        self.o = matrix(rngs, (D, N, H), sum(LAYOUTS["o"], ()), (2 * config.num_layers * N * H) ** -0.5)
        self.q_bias = _bias(config.qkv_bias, (N, H), "heads", None)
        self.k_bias = _bias(config.qkv_bias, (K, H), "kv_heads", None)
        self.v_bias = _bias(config.qkv_bias, (K, H), "kv_heads", None)
        self.o_bias = _bias(config.output_bias, (D,), None)
        self.gate = matrix(rngs, (F, D), sum(LAYOUTS["gate"], ()), D**-0.5) if config.gated_mlp else None
        self.up = matrix(rngs, (F, D), sum(LAYOUTS["up"], ()), D**-0.5)
        self.down = matrix(rngs, (D, F), sum(LAYOUTS["down"], ()), (2 * config.num_layers * F) ** -0.5)
        self.gate_bias = _bias(config.mlp_bias and config.gated_mlp, (F,), "mlp")
        self.up_bias = _bias(config.mlp_bias, (F,), "mlp")
        self.down_bias = _bias(config.mlp_bias, (D,), None)
        self.lora = nnx.Dict(self._adapters(config.lora, rngs)) if config.lora else None

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        rotation: Rotation,
        attend: Attend,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Adds attention and MLP to the residual stream; returns it with what `attend` keeps."""
        out_BTD, past = self._attend(_normed(self.attention_norm, x_BTD), rotation, attend)
        attended_BTD = x_BTD + _normed(self.attention_post_norm, out_BTD)
        read_BTD = x_BTD if self.config.parallel_residual else attended_BTD
        out_BTD = self._mlp(_normed(self.mlp_norm, read_BTD))
        return attended_BTD + _normed(self.mlp_post_norm, out_BTD), past

    def _adapters(self, lora: LoraShape, rngs: nnx.Rngs) -> dict[str, LowRank]:
        adapted = {name: getattr(self, name) for name in lora.targets}
        return {name: LowRank(lora, name, weight.shape, rngs) for name, weight in adapted.items() if weight is not None}

    def _attend(self, x_BTD: Array, rotation: Rotation, attend: Attend) -> tuple[Array, Any]:
        q_BTNH = self._heads("q", x_BTD, self.q)
        k_BTKH = self._heads("k", x_BTD, self.k)
        v_BTKH = _biased(self._heads("v", x_BTD, self.v), self.v_bias)
        q_BTNH = rotate(_normed(self.q_norm, _biased(q_BTNH, self.q_bias)), rotation)
        k_BTKH = rotate(_normed(self.k_norm, _biased(k_BTKH, self.k_bias)), rotation)
        out_BTNH, past = attend(q_BTNH, k_BTKH, v_BTKH)
        out_BTD = self._projected("o", _flat(out_BTNH, "batch", None, "heads"), self.o)
        return _biased(out_BTD, self.o_bias), past

    def _mlp(self, x_BTD: Array) -> Array:
        act = ACTIVATIONS[self.config.activation]
        up_BTF = _biased(self._projected("up", x_BTD, self.up), self.up_bias)
        if self.gate is None:
            up_BTF = act(up_BTF)
        else:
            gate_BTF = self._projected("gate", x_BTD, self.gate)
            # of the gate the backward pass keeps what goes in alone
            up_BTF = jax.checkpoint(lambda gate, up: act(gate) * up)(_biased(gate_BTF, self.gate_bias), up_BTF)
        return _biased(self._projected("down", up_BTF, self.down), self.down_bias)

    def _heads(self, matrix: str, x_BTD: Array, weight: nnx.Param) -> Array:
        """Projects to heads."""
        out_BTX, (N, H, _) = self._projected(matrix, x_BTD, weight), weight.shape
        name = LAYOUTS[matrix][0][0]
        return jnp.reshape(out_BTX, (*x_BTD.shape[:2], N, H), out_sharding=spec("batch", None, name, None))

    def _projected(self, matrix: str, x_BTI: Array, weight: nnx.Param) -> Array:
        """Input times a matrix, with its heads laid end to end, and its adapter's part where it has one."""
        (B, T, size), (outer, inner) = x_BTI.shape, LAYOUTS[matrix]
        outputs, name = math.prod(weight.shape[: len(outer)]), None if outer[0] == "embed" else outer[0]
        layout = spec(outer[0], inner[0])
        # one plain matrix: on CPU a product with two kept dimensions first copies its weights, or its inputs
        weight_OI = jnp.reshape(weight[...].astype(x_BTI.dtype), (outputs, size), out_sharding=layout)
        x_NI = jnp.reshape(x_BTI, (B * T, size), out_sharding=spec("batch", IN_NAMES[matrix]))
        out_NO: Any = _product(layout, spec(name, IN_NAMES[matrix]), x_NI, weight_OI)
        out_BTO = jnp.reshape(out_NO, (B, T, outputs), out_sharding=spec("batch", None, name))
        if self.lora is not None and matrix in self.lora:
            out_BTO = out_BTO + self.lora[matrix](x_BTI, spec("batch", None, name))
        return checkpoint_name(out_BTO, PROJECTION)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(layout: PartitionSpec, gathered: PartitionSpec, x_NI: Array, weight_OI: Array) -> Array:
    """Input times a weight that lies by `layout`, and is gathered for it.

    The weight's gradient is asked for by `layout` too: each device sums its own part. Left to themselves, gradients of
    what was gathered are summed whole on every device, and then cut.
    """
    whole_OI = jax.sharding.reshard(weight_OI, gathered)
    return jnp.einsum("NI,OI->NO", x_NI, whole_OI, out_sharding=PartitionSpec(*spec("batch"), gathered[0]))


def _product_forward(
    layout: PartitionSpec, gathered: PartitionSpec, x_NI: Array, weight_OI: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(layout, gathered, x_NI, weight_OI), (x_NI, weight_OI)


def _product_backward(
    layout: PartitionSpec, gathered: PartitionSpec, kept: tuple[Array, Array], slope_NO: Array
) -> tuple[Array, Array]:
    x_NI, weight_OI = kept
    whole_OI = jax.sharding.reshard(weight_OI, gathered)
    slope_NI = jnp.einsum("NO,OI->NI", slope_NO, whole_OI, out_sharding=PartitionSpec(*spec("batch"), gathered[1]))
    return slope_NI, jnp.einsum("NO,NI->OI", slope_NO, x_NI, out_sharding=layout)


_product.defvjp(_product_forward, _product_backward)


def _flat(x: Array, *names: str | None) -> Array:
    """Merges heads and their dimensions, the last two."""
    return jnp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]), out_sharding=spec(*names))


def _head_norm(config: DecoderConfig, heads: int, name: str) -> Norm | None:
    if config.qk_norm is None:
        return None
    each = config.qk_norm == "head"
    return Norm(config, (config.head_dim,), None) if each else Norm(config, (heads, config.head_dim), name, None)


def _normed(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


def _biased(x: Array, bias: nnx.Param | None) -> Array:
    return x if bias is None else x + bias[...].astype(x.dtype)
