"""The models on which the port is compared with torch: every family, each value of its switches."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

TOLERANCE = 5e-4
"""Largest |Δlogit| of a right port; float32, highest matmul precision."""
HEADS = 8
KV_HEADS = {"MHA": HEADS, "GQA": HEADS // 4, "MQA": 1}
SHORT, LONG = 128, 600
WINDOW = 48
SHAPE = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "max_position_embeddings": 1024,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
# What differs from one family to the next; the head dimension is not hidden_size / num_attention_heads where it may be.
FAMILY_SHAPE: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32, "rms_norm_eps": 1e-5},
    "mistral": {"head_dim": 32, "rms_norm_eps": 1e-5, "sliding_window": WINDOW},
    "qwen2": {"rms_norm_eps": 1e-5},
    "qwen3": {"head_dim": 64, "rms_norm_eps": 1e-5},
    "gemma": {"head_dim": 64, "rms_norm_eps": 1e-5},
    # caps and scale at which the small model's scores and logits saturate, as those of the real one do
    "gemma2": {
        "head_dim": 64, "rms_norm_eps": 1e-5, "num_hidden_layers": 3, "sliding_window": WINDOW,
        "query_pre_attn_scalar": 144, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 64, "rms_norm_eps": 1e-5, "num_hidden_layers": 8, "sliding_window": WINDOW,
        "query_pre_attn_scalar": 144,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "phi3": {"rms_norm_eps": 1e-5},
    "gpt_neox": {"layer_norm_eps": 1e-5},
}  # fmt: skip

THETA = 10000.0
LONGROPE_LIMIT = 640
# Lengths of 600 lie far outside the original range, except where the total length decides (dynamic, longrope).
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": LONGROPE_LIMIT,
        "short_factor": [1 + index / 8 for index in range(16)], "long_factor": [9.0] * 16,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One random model: its family, the fields of its Hugging Face config, and the length at which it is compared."""

    family: str
    name: str
    fields: Mapping[str, Any]
    length: int = SHORT
    max_positions: int | None = None

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 spells them."""
    return {"rope_theta": THETA, **ROPES[kind], **changes}


def case(family: str, name: str, *, heads: str = "GQA", tied: bool = False, **fields: Any) -> Case:
    """A case of a family's small shape; it is long where positions are scaled, cut by a window or counted from far."""
    shape = {**SHAPE, **FAMILY_SHAPE[family], "num_key_value_heads": KV_HEADS[heads], "tie_word_embeddings": tied}
    if family == "gpt_neox":
        del shape["num_key_value_heads"]  # every head has its own key there
    fields = {"rope_parameters": rope("default"), **shape, **fields}
    kinds = _rope_kinds(fields["rope_parameters"])
    long = bool(kinds - {"default"}) or (fields.get("sliding_window") or LONG) < LONG
    limit = fields.get("original_max_position_embeddings", LONGROPE_LIMIT)
    return Case(family, name, fields, LONG if long else SHORT, limit if "longrope" in kinds else None)


def _rope_kinds(parameters: Mapping[str, Any]) -> set[str]:
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return {each["rope_type"] for each in nested or [parameters]}


def _llama_product() -> list[Case]:
    return [
        case(
            "llama",
            f"{heads} {'tied' if tied else 'untied'} {kind}",
            heads=heads,
            tied=tied,
            rope_parameters=rope(kind),
        )
        for heads, tied, kind in itertools.product(KV_HEADS, (False, True), ("default", "linear", "llama3", "yarn"))
    ]


def _each_value_once(family: str) -> list[Case]:
    """Four cases in which each kind of heads, tying and RoPE occurs."""
    heads = ("MHA", "GQA", "MQA", "GQA") if family != "gpt_neox" else ("MHA",) * 4
    rows = zip(heads, (False, True, True, False), ("default", "linear", "llama3", "yarn"), strict=True)
    return [
        case(
            family,
            f"{kind_of_heads} {'tied' if tied else 'untied'} {kind}",
            heads=kind_of_heads,
            tied=tied,
            rope_parameters=_family_rope(family, kind),
        )
        for kind_of_heads, tied, kind in rows
    ]


def _family_rope(family: str, kind: str) -> dict[str, Any]:
    if family == "gemma3_text":
        return {"sliding_attention": rope("default"), "full_attention": rope(kind, rope_theta=1e6)}
    return rope(kind, partial_rotary_factor=0.25) if family == "gpt_neox" else rope(kind)


LLAMA = [
    *_llama_product(),
    case("llama", "dynamic, unscaled range", rope_parameters=rope("dynamic")),
    case("llama", "longrope, unscaled range", rope_parameters=rope("longrope")),
    case("llama", "longrope with its own attention factor", rope_parameters=rope("longrope", attention_factor=1.4)),
    case("llama", "yarn with its own attention factor", rope_parameters=rope("yarn", attention_factor=1.3)),
    case(
        "llama",
        "yarn with betas, mscale and no truncation",
        rope_parameters=rope("yarn", beta_fast=4.0, beta_slow=0.5, mscale=1.0, mscale_all_dim=0.4, truncate=False),
    ),
    case("llama", "attention bias", attention_bias=True),
    case("llama", "mlp bias", mlp_bias=True),
    case("llama", "attention and mlp bias, wide heads, theta 5e5", attention_bias=True, mlp_bias=True, head_dim=64,
         rope_parameters=rope("default", rope_theta=5e5)),
]  # fmt: skip
WINDOWED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "num_hidden_layers": 3}
QWEN = [
    case("qwen2", "window from layer 1 on", **WINDOWED, max_window_layers=1),
    case("qwen2", "window from layer 2 on, YaRN", **WINDOWED, max_window_layers=2, rope_parameters=rope("yarn")),
    case("qwen3", "window from layer 2 on", **WINDOWED, max_window_layers=2),
    case("qwen3", "attention bias", attention_bias=True),
]
GEMMA = [
    case("gemma", "another activation", hidden_act="silu"),
    case("gemma2", "without caps", attn_logit_softcapping=None, final_logit_softcapping=None),
    case("gemma2", "global and local interchanged, four layers", num_hidden_layers=4,
         layer_types=["full_attention", "sliding_attention"] * 2),
    case("gemma3_text", "pattern of two, capped logits", num_hidden_layers=3, final_logit_softcapping=3.0,
         layer_types=["sliding_attention", "full_attention", "sliding_attention"],
         rope_parameters=_family_rope("gemma3_text", "default")),
    case("gemma3_text", "pattern of three, two layers left", num_hidden_layers=5,
         layer_types=[("sliding_attention", "full_attention")[layer % 3 == 2] for layer in range(5)],
         rope_parameters=_family_rope("gemma3_text", "linear")),
    case("gemma3_text", "no regular pattern", num_hidden_layers=5,
         layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention", "full_attention"],
         rope_parameters=_family_rope("gemma3_text", "linear")),
]  # fmt: skip
PHI_LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 4 * LONGROPE_LIMIT,
    "original_max_position_embeddings": LONGROPE_LIMIT,
}
PHI_FACTORS = {
    "rope_type": "longrope",
    "short_factor": [1 + index / 8 for index in range(16)],
    "long_factor": [9.0] * 16,
}
PHI = [
    case("phi3", "MHA untied default", heads="MHA", rope_parameters=rope("default", partial_rotary_factor=1.0)),
    case("phi3", "GQA tied default, window", tied=True, sliding_window=WINDOW),
    case("phi3", "MQA untied, part of the head rotated", heads="MQA",
         rope_parameters=rope("default", partial_rotary_factor=0.5)),
    case("phi3", "GQA longrope, unscaled range", rope_parameters={"rope_theta": THETA, **PHI_FACTORS}, **PHI_LONGROPE),
    case("phi3", "MHA longrope, part of the head rotated", heads="MHA", **PHI_LONGROPE,
         rope_parameters={"rope_theta": THETA, "partial_rotary_factor": 0.5, "rope_type": "longrope",
                          "short_factor": [1 + index / 4 for index in range(8)], "long_factor": [9.0] * 8}),
]  # fmt: skip
NEOX = [
    case("gpt_neox", "sequential residual", use_parallel_residual=False),
    case("gpt_neox", "whole head rotated", rope_parameters=rope("default", partial_rotary_factor=1.0)),
    case("gpt_neox", "without attention bias", attention_bias=False),
    case("gpt_neox", "gelu_new", hidden_act="gelu_new"),
    case("gpt_neox", "gelu_fast, sequential residual", hidden_act="gelu_fast", use_parallel_residual=False),
]
CASES = [
    *LLAMA,
    *_each_value_once("mistral"),
    case("mistral", "without a window", sliding_window=None),
    *_each_value_once("qwen2"),
    *_each_value_once("qwen3"),
    *QWEN,
    *_each_value_once("gemma"),
    *_each_value_once("gemma2"),
    *_each_value_once("gemma3_text"),
    *GEMMA,
    *_each_value_once("olmo2"),
    *PHI,
    *_each_value_once("gpt_neox"),
    *NEOX,
]


def named(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if str(case) == name)
