"""The model families: each one's defaults, config fields, kinds of attention and tensor names."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxift.models.config import DecoderConfig, Span
from jaxift.models.rope import Rope
from jaxift.models.rope_config import read_rope, rope_fields

_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: transformers' defaults, the fields that it reads beyond the sizes, and its tensor names.

    `build` gives the DecoderConfig fields that are not common to all; `spans` each layer's attention; `fused` the
    parameters that lie together in one tensor, as (name, axes of its rows, part of them).
    """

    defaults: Mapping[str, Any]
    reads: set[str]
    build: Callable[[Mapping[str, Any]], dict[str, Any]]
    spans: Callable[[Mapping[str, Any], int], list[Span]]
    names: Mapping[str, str]
    fused: Callable[[DecoderConfig], dict[str, tuple[str, tuple[int, ...], tuple]]] = lambda config: {}
    derived: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of tensor names that old checkpoints carry beside their weights; they can be computed."""


def _rope(values: Mapping[str, Any], limit: int, layer_type: str = "full_attention", **silent: float | int) -> Rope:
    """The rotary embedding of one kind of layer; `silent` gives theta and part where the rotary fields are silent."""
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    fields = rope_fields(values, layer_type)
    if "original_max_position_embeddings" in values:
        fields["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    theta, part = silent.get("theta"), silent.get("part", 1.0)
    theta = values.get("rope_theta", 10000.0) if theta is None else theta
    if "part" not in silent and fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor = {fields['partial_rotary_factor']!r} is not supported (only 1.0)")
    return read_rope(fields, head_dim, theta, part, values["max_position_embeddings"], limit)


def _all_layers(values: Mapping[str, Any], limit: int) -> list[Span]:
    """One kind of attention, within the window where there is one."""
    return [Span(_rope(values, limit), values.get("sliding_window"))] * values["num_hidden_layers"]


def _partly_rotated(values: Mapping[str, Any], limit: int) -> list[Span]:
    """One kind of attention that rotates a part of each head (Phi-3, GPT-NeoX)."""
    part = values.get("partial_rotary_factor", values.get("rotary_pct"))
    rope = _rope(values, limit, theta=values.get("rotary_emb_base", values.get("rope_theta")), part=part)
    return [Span(rope, values.get("sliding_window"))] * values["num_hidden_layers"]


def _phi3_layers(values: Mapping[str, Any], limit: int) -> list[Span]:
    """As `_partly_rotated`; Phi-3 stretches its rotation in no other way than LongRoPE."""
    fields = rope_fields(values, "full_attention")
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "longrope", "su"):
        raise ValueError(f"rope type {kind!r} is not supported in Phi-3 (only default, longrope)")
    return _partly_rotated(values, limit)


def _late_windows(values: Mapping[str, Any], limit: int) -> list[Span]:
    """Full attention up to layer max_window_layers, windows above, where windows are used at all (Qwen)."""
    window = values["sliding_window"] if values["use_sliding_window"] else None
    layers, rope = values["num_hidden_layers"], _rope(values, limit)
    kinds = _kinds(values, lambda layer: window is not None and layer >= values["max_window_layers"])
    return [Span(rope, window if kinds[layer] else None) for layer in range(layers)]


def _every_other(values: Mapping[str, Any], limit: int) -> list[Span]:
    """Windows in the even layers (Gemma 2)."""
    rope, local = _rope(values, limit), _kinds(values, lambda layer: layer % 2 == 0)
    return [Span(rope, values["sliding_window"] if windowed else None) for windowed in local]


def _five_of_six(values: Mapping[str, Any], limit: int) -> list[Span]:
    """Windows with a rotary base of their own in all but every sixth layer (Gemma 3)."""
    plain = {**values, "rope_scaling": None}  # transformers 4 scaled the global layers alone
    base = values.get("rope_local_base_freq") or 10000.0
    far = _rope(values, limit, theta=values.get("rope_theta", 1e6))
    near = _rope(plain, limit, "sliding_attention", theta=base)
    period = values["sliding_window_pattern"]
    if values.get("layer_types") is None and values.get("_sliding_window_pattern", period) != period:
        raise ValueError("_sliding_window_pattern without layer_types is not read by transformers; name the layers")
    local = _kinds(values, lambda layer: (layer + 1) % period != 0)
    return [Span(near, values["sliding_window"]) if windowed else Span(far) for windowed in local]


def _kinds(values: Mapping[str, Any], windowed: Callable[[int], bool]) -> list[bool]:
    """Whether each layer's attention has a window: as `layer_types` says, else by the family's rule."""
    types, layers = values.get("layer_types"), values["num_hidden_layers"]
    if types is None:
        return [windowed(layer) for layer in range(layers)]
    known = {"full_attention": False, "sliding_attention": True}
    if not isinstance(types, list) or len(types) != layers or any(kind not in tuple(known) for kind in types):
        raise ValueError(f"layer_types is not a list of {layers} times full_attention or sliding_attention")
    return [known[kind] for kind in types]


def activation(values: Mapping[str, Any], field: str = "hidden_act") -> str:
    """Our name of an activation; raises ValueError where it is not supported."""
    if not isinstance(values[field], str) or values[field] not in _ACTIVATIONS:
        raise ValueError(f"{field} = {values[field]!r} is not supported (only {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[values[field]]


def _biases(values: Mapping[str, Any]) -> dict[str, Any]:
    bias = values.get("attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": values.get("mlp_bias", False)}


def _gemma(values: Mapping[str, Any]) -> dict[str, Any]:
    scalar = values.get("query_pre_attn_scalar")
    if scalar is None:  # Gemma 1 wrote "gelu" and meant its tanh approximation
        name = values.get("hidden_activation") or values["hidden_act"]
        values = {**values, "hidden_activation": "gelu_pytorch_tanh" if name == "gelu" else name}
    return {
        **_biases(values),
        "norm_unit_offset": True,
        "activation": activation(values, "hidden_activation"),
        "embedding_scale": math.sqrt(values["hidden_size"]),
        "norm_placement": "before" if scalar is None else "around",
        "query_scale": None if scalar is None else scalar**-0.5,
        "attention_soft_cap": values.get("attn_logit_softcapping"),
        "logit_soft_cap": values.get("final_logit_softcapping"),
    }


def _neox(values: Mapping[str, Any]) -> dict[str, Any]:
    heads, parallel = values["num_attention_heads"], values["use_parallel_residual"]
    if values.get("num_key_value_heads") not in (None, heads):
        raise ValueError(f"num_key_value_heads is not the {heads} of num_attention_heads; GPT-NeoX has no key groups")
    own = {"norm": "layer", "gated_mlp": False, "mlp_bias": True, "parallel_residual": parallel}
    return {**_biases(values), **own}


def _phi3_fused(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, ...], tuple]]:
    N, K, H, F = config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
    rows, parts = (N + 2 * K, H), {"q": slice(0, N), "k": slice(N, N + K), "v": slice(N + K, N + 2 * K)}
    qkv = {name: ("self_attn.qkv_proj", rows, (part,)) for name, part in parts.items()}
    return {**qkv, "gate": ("mlp.gate_up_proj", (2, F), (0,)), "up": ("mlp.gate_up_proj", (2, F), (1,))}


def _neox_fused(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, ...], tuple]]:
    rows = (config.num_heads, 3, config.head_dim)
    return {name: ("attention.query_key_value", rows, (slice(None), part)) for part, name in enumerate("qkv")}


_LLAMA_NAMES = {
    "embedding": "model.embed_tokens", "head": "lm_head", "final_norm": "model.norm", "layer": "model.layers.{}.",
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_AROUND_NAMES = {
    **_LLAMA_NAMES, "attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
_NEOX_NAMES = {
    "embedding": "gpt_neox.embed_in", "head": "embed_out", "final_norm": "gpt_neox.final_layer_norm",
    "layer": "gpt_neox.layers.{}.", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
}  # fmt: skip
_PLAIN = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
_QWEN = {
    **_PLAIN, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096,
    "max_window_layers": 28,
}  # fmt: skip
_QWEN_READS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
_GEMMA = {
    **_PLAIN, "tie_word_embeddings": True, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
}  # fmt: skip
_GEMMA2_READS = {
    "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation", "layer_types",
    "query_pre_attn_scalar", "sliding_window",
}  # fmt: skip

FAMILIES = {
    "llama": Family(
        {**_PLAIN, "max_position_embeddings": 2048},
        {"attention_bias", "mlp_bias"}, _biases, _all_layers, _LLAMA_NAMES,
    ),
    # transformers' own default window is 4096; a config that has none writes null
    "mistral": Family(
        {**_PLAIN, "max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "sliding_window": 4096},
        {"sliding_window"}, lambda values: {}, _all_layers, _LLAMA_NAMES,
    ),
    "qwen2": Family(
        {**_QWEN, "num_key_value_heads": 32},
        _QWEN_READS, lambda values: {"qkv_bias": True}, _late_windows, _LLAMA_NAMES,
    ),
    "qwen3": Family(
        {**_QWEN, "num_key_value_heads": 32, "head_dim": 128},
        _QWEN_READS | {"attention_bias"}, lambda values: {**_biases(values), "qk_norm": "head"},
        _late_windows, _LLAMA_NAMES,
    ),
    "gemma": Family(
        {**_GEMMA, "num_key_value_heads": 16},
        {"attention_bias", "hidden_activation"}, _gemma, _all_layers, _LLAMA_NAMES,
    ),
    "gemma2": Family(
        {
            **_GEMMA, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
        # published configs spell the window twice; transformers reads `sliding_window`
        _GEMMA2_READS | {"sliding_window_size"}, _gemma, _every_other, _AROUND_NAMES,
    ),
    "gemma3_text": Family(
        {
            **_GEMMA, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6, "max_position_embeddings": 131072,
            # published configs leave even sizes to the defaults
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8,
        },
        _GEMMA2_READS - {"attn_logit_softcapping"}
        | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"},
        lambda values: {**_gemma(values), "qk_norm": "head"}, _five_of_six, _AROUND_NAMES,
    ),
    "olmo2": Family(
        {**_PLAIN, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
        {"attention_bias"}, lambda values: {**_biases(values), "norm_placement": "after", "qk_norm": "all"},
        _all_layers, _AROUND_NAMES,
    ),
    "phi3": Family(
        {**_PLAIN, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 1.0,
         "original_max_position_embeddings": 4096, "rope_theta": 10000.0},
        {"sliding_window", "partial_rotary_factor", "original_max_position_embeddings"},
        lambda values: {}, _phi3_layers, _LLAMA_NAMES, _phi3_fused,
    ),
    "gpt_neox": Family(
        {"layer_norm_eps": 1e-5, "tie_word_embeddings": False, "max_position_embeddings": 2048, "hidden_act": "gelu",
         "use_parallel_residual": True, "rotary_pct": 0.25, "rotary_emb_base": 10000.0, "attention_bias": True},
        {"attention_bias", "use_parallel_residual", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
         "layer_norm_eps"},
        _neox, _partly_rotated, _NEOX_NAMES, _neox_fused,
        ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    ),
}  # fmt: skip
