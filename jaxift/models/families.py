"""What each Hugging Face family's config fields and weight names mean to the one decoder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxift.errors import UserError
from jaxift.models.decoder import DecoderConfig

# Fields that say nothing about the forward pass.
_IGNORED = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "hidden_dropout",
    "initializer_range", "is_llama_config", "model_type", "pad_token_id", "pretraining_tp", "rope_interleaved",
    "torch_dtype", "transformers_version", "unk_token_id", "use_cache",
}  # fmt: skip
# Fields that we understand in one value only.
_ONLY: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Counts that a config may leave out or set to null.
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps",
    "tie_word_embeddings", "max_position_embeddings",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: the fields that it reads beyond the common ones, and its defaults where a config is silent."""

    fields: frozenset[str]
    defaults: Mapping[str, Any]


FAMILIES = {
    "llama": Family(frozenset(), {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048}),
    "mistral": Family(
        frozenset({"sliding_window"}),
        # transformers' own default window is 4096; a config that has none writes null
        {
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
}


def decoder_config(hf: Mapping[str, Any], source: str) -> DecoderConfig:
    """Translates a Hugging Face config (transformers 4 and 5 spellings) into ours.

    Raises UserError, naming `source` and every field that is missing or not understood.
    """
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{source}: model_type {kind!r} is not supported; known are {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    problems = _not_understood(hf, family)
    values = {**family.defaults, **hf}
    missing = [name for name in _SIZES if name not in values]
    if missing:
        problems.append(f"{', '.join(missing)} missing")
    problems += _malformed(values, family)
    theta, rope_problem = _rope_theta(values)
    if problems or rope_problem:
        raise UserError(
            f"{source}: "
            + "; ".join([*problems, *([rope_problem] if rope_problem else [])])
            + "; use a model without it"
        )
    return _build(values, family, theta, source)


def _build(values: Mapping[str, Any], family: Family, theta: float, source: str) -> DecoderConfig:
    heads = values["num_attention_heads"]
    try:
        return DecoderConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            rope_theta=theta,
            rms_norm_eps=float(values["rms_norm_eps"]),
            tie_embeddings=values["tie_word_embeddings"],
            sliding_window=values["sliding_window"] if "sliding_window" in family.fields else None,
            max_positions=values["max_position_embeddings"],
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}; the config does not describe a decoder") from None


def _not_understood(hf: Mapping[str, Any], family: Family) -> list[str]:
    problems = [
        f"{name} = {hf[name]!r} is not supported (only {allowed[0]!r})"
        for name, allowed in _ONLY.items()
        if name in hf and hf[name] not in allowed
    ]
    known = _IGNORED | _READ | family.fields | set(_ONLY)
    # an unknown field that is switched off changes nothing
    problems += [
        f"field {name} = {value!r} is not understood" for name, value in hf.items() if name not in known and value
    ]
    return problems


def _malformed(values: Mapping[str, Any], family: Family) -> list[str]:
    """What is wrong with the values of fields that we read."""
    sizes = [name for name in (*_SIZES, "max_position_embeddings") if name in values]
    sizes += [name for name in (*_OPTIONAL_SIZES, *family.fields) if values.get(name) is not None]
    problems = [
        f"{name} = {values[name]!r} is not a positive integer"
        for name in sizes
        if not isinstance(values[name], int) or values[name] is True or values[name] < 1
    ]
    if not _is_positive(values["rms_norm_eps"]):
        problems.append(f"rms_norm_eps = {values['rms_norm_eps']!r} is not a positive number")
    if not isinstance(values["tie_word_embeddings"], bool):
        problems.append(f"tie_word_embeddings = {values['tie_word_embeddings']!r} is not true or false")
    return problems


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _rope_theta(values: Mapping[str, Any]) -> tuple[float, str | None]:
    """The rotary base, and what is wrong with the rotary fields; transformers 5 nests them, 4 did not."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        return 0.0, f"rope parameters {nested!r} are not an object"
    kind = nested.get("rope_type", nested.get("type", "default"))
    extra = sorted(set(nested) - {"rope_type", "type", "rope_theta"})
    if kind != "default" or extra:
        return 0.0, f"rope scaling {kind!r} {' '.join(extra)} is not supported (only 'default')"
    theta = nested.get("rope_theta", values.get("rope_theta", 10000.0))
    if not _is_positive(theta):
        return 0.0, f"rope_theta = {theta!r} is not a positive number"
    return float(theta), None


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours: its Hugging Face name (`{layer}` where stacked) and the way there and back."""

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]

    @property
    def stacked(self) -> bool:
        """Whether ours holds all layers in one array."""
        return "{layer}" in self.name


def _same(name: str) -> Weight:
    return Weight(name, lambda w: w, lambda w: w)


def _transposed(name: str) -> Weight:
    return Weight(name, np.transpose, np.transpose)


def _heads_out(name: str, heads: int, head_dim: int) -> Weight:
    """[heads * H, D] there, [D, heads, H] here."""
    return Weight(
        name,
        lambda w: w.reshape(heads, head_dim, -1).transpose(2, 0, 1),
        lambda w: w.transpose(1, 2, 0).reshape(heads * head_dim, -1),
    )


def weight_table(config: DecoderConfig) -> dict[tuple[str, ...], Weight]:
    """Path of each parameter in the decoder's state -> its place in a Llama-layout checkpoint."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    layer = "model.layers.{layer}."
    table = {
        ("embedding",): _same("model.embed_tokens.weight"),
        ("final_norm", "scale"): _same("model.norm.weight"),
        ("layers", "attention_norm", "scale"): _same(layer + "input_layernorm.weight"),
        ("layers", "mlp_norm", "scale"): _same(layer + "post_attention_layernorm.weight"),
        ("layers", "q"): _heads_out(layer + "self_attn.q_proj.weight", N, H),
        ("layers", "k"): _heads_out(layer + "self_attn.k_proj.weight", K, H),
        ("layers", "v"): _heads_out(layer + "self_attn.v_proj.weight", K, H),
        # [D, N * H] there, [N, H, D] here
        ("layers", "o"): Weight(
            layer + "self_attn.o_proj.weight",
            lambda w: w.T.reshape(N, H, -1),
            lambda w: w.reshape(N * H, -1).T,
        ),
        ("layers", "gate"): _transposed(layer + "mlp.gate_proj.weight"),
        ("layers", "up"): _transposed(layer + "mlp.up_proj.weight"),
        ("layers", "down"): _transposed(layer + "mlp.down_proj.weight"),
    }
    if not config.tie_embeddings:
        table["head",] = _same("lm_head.weight")
    return table
