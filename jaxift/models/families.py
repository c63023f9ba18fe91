"""Reads a Hugging Face config as a decoder's, and says where each parameter lies in the checkpoint."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import abstract_decoder
from jaxift.models.family_tables import FAMILIES, Family, activation
from jaxift.models.rope_config import is_positive
from jaxift.parallel.mesh import make_mesh

# Fields that say nothing about the forward pass.
_IGNORED = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id",
    "cache_implementation", "classifier_dropout", "do_sample", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout",
    "initializer_range", "is_decoder", "is_llama_config", "max_length", "max_sequence_length", "model_type",
    "pad_token_id", "pretraining_tp", "resid_pdrop", "rope_interleaved", "temperature", "tokenizer_class", "top_p",
    "torch_dtype", "transformers.js_config", "transformers_version", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_cache",
}  # fmt: skip
# Fields that transformers reads, or once read, and of which we understand one value.
_ONLY = {"is_causal": True, "full_attn_mod": 1, "interpolate_factor": 1}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Fields that every family reads.
_COMMON = {
    *_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rope_parameters",
    "rope_scaling", "tie_word_embeddings", "hidden_act", "rms_norm_eps",
}  # fmt: skip
# What a field that some family reads must hold.
_INTEGERS = {
    *_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "sliding_window_pattern",
    "_sliding_window_pattern", "original_max_position_embeddings",
}  # fmt: skip
_NUMBERS = {
    "rms_norm_eps", "layer_norm_eps", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq", "rope_theta",
}  # fmt: skip
_FLAGS = {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "use_parallel_residual"}
# Fields in which null means something: none, or what follows from the others.
_NULLABLE = {
    "num_key_value_heads", "head_dim", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
    "hidden_activation", "layer_types",
}  # fmt: skip
_LARGEST, _MOST_LAYERS = 1 << 31, 10_000
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MULTIMODAL = {"gemma3": "gemma3_text"}


def decoder_config(hf: Mapping[str, Any], source: str, max_positions: int | None = None) -> DecoderConfig:
    """Translates a Hugging Face config (transformers 4 and 5 spellings) into ours.

    `max_positions` shortens the length limit. Raises UserError, naming `source` and every field that is missing or not
    understood.
    """
    hf = text_config(hf)
    kind = hf.get("model_type")
    experts = next((name for name in _EXPERTS if hf.get(name)), None)
    if experts:
        raise UserError(f"{source}: {kind!r} is a mixture of experts ({experts}), not supported yet; use a dense model")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{source}: model_type {kind!r} is not supported; known are {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    told = {name: value for name, value in hf.items() if value is not None or name in _NULLABLE}
    values = {**family.defaults, **told}
    problems = _not_understood(hf, family) + _malformed(values, family)
    if not problems:
        try:
            return _build(kind, values, family, max_positions)
        except (ValueError, ArithmeticError) as error:
            problems = [str(error)]
    raise UserError(f"{source}: {'; '.join(problems)}; use a model without it")


def text_config(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the text decoder: all of it, or what a multimodal model nests."""
    kind, nested = hf.get("model_type"), hf.get("text_config")
    if not isinstance(kind, str) or kind not in _MULTIMODAL or not isinstance(nested, Mapping):
        return hf
    shared = {name: hf[name] for name in ("tie_word_embeddings", "dtype", "torch_dtype") if name in hf}
    return {**shared, **nested, "model_type": _MULTIMODAL[kind]}


def _not_understood(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Fields that we do not read; one that is switched off changes nothing."""
    known = _IGNORED | _COMMON | family.reads | _ONLY.keys()
    return [
        f"{name} = {hf[name]!r} is not supported (only {value!r})"
        for name, value in _ONLY.items()
        if hf.get(name) is not None and hf[name] != value
    ] + [f"field {name} = {value!r} is not understood" for name, value in hf.items() if name not in known and value]


def _malformed(values: Mapping[str, Any], family: Family) -> list[str]:
    """What is missing, or wrong with the values of fields that we read."""
    missing = [name for name in _SIZES if name not in values]
    problems = [f"{', '.join(missing)} missing"] if missing else []
    for name in sorted((_COMMON | family.reads) & values.keys()):
        value = values[name]
        if value is None and name in _NULLABLE:
            continue
        count = value if isinstance(value, int) and not isinstance(value, bool) else -1
        if name in _INTEGERS and not 0 < count < _LARGEST:
            problems.append(f"{name} = {value!r} is not a positive integer")
        elif name in _NUMBERS and not is_positive(value):
            problems.append(f"{name} = {value!r} is not a positive number")
        elif name in _FLAGS and not isinstance(value, bool):
            problems.append(f"{name} = {value!r} is not true or false")
        elif name == "num_hidden_layers" and count > _MOST_LAYERS:
            problems.append(f"{name} = {value!r} is more than {_MOST_LAYERS}")
        elif name == "max_window_layers" and count < 0:
            problems.append(f"{name} = {value!r} is not a number of layers")
    return problems


def _build(kind: str, values: Mapping[str, Any], family: Family, max_positions: int | None) -> DecoderConfig:
    heads, limit = values["num_attention_heads"], values["max_position_embeddings"]
    if max_positions is not None and not 0 < max_positions <= limit:
        raise ValueError(f"max_positions {max_positions} is not between 1 and the model's own limit of {limit}")
    limit = max_positions or limit
    fields: dict[str, Any] = {
        "vocab_size": values["vocab_size"],
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["intermediate_size"],
        "num_layers": values["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or values["hidden_size"] // heads,
        "pattern": _pattern(family.spans(values, limit)),
        "max_positions": limit,
        "tie_embeddings": values["tie_word_embeddings"],
        "norm_eps": float(values["layer_norm_eps"] if "layer_norm_eps" in family.reads else values["rms_norm_eps"]),
        "family": kind,
        **family.build(values),
    }
    for span in fields["pattern"]:
        span.rope.frequencies()  # numbers that cannot be computed with are found here
    return DecoderConfig(**{"activation": activation(values), **fields})


def _pattern(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The shortest sequence that gives all layers' attention when repeated."""
    for length in range(1, len(spans)):
        if all(span == spans[index % length] for index, span in enumerate(spans)):
            return tuple(spans[:length])
    return tuple(spans)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours and where it lies in a Hugging Face checkpoint; elements keep their order."""

    names: tuple[str, ...]
    """Tensor names: one, or one a layer where ours is stacked."""
    stacked: bool
    """Whether ours has a leading axis over `names`."""
    shape: tuple[int, ...]
    """Shape of each tensor."""
    view: tuple[int, ...]
    """The same with its axes split."""
    pick: tuple[int | slice, ...] = ()
    """The part of the view that is ours; the rest of a fused tensor belongs to other parameters."""

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Our part of a tensor, a view of it: [3 N H, D] -> [N, 3, H, D] -> [N, H, D], say."""
        return tensor.reshape(self.view)[self.pick]

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of our part of each tensor."""
        return np.broadcast_to(np.int8(0), self.view)[self.pick].shape


Path = tuple[str | int, ...]


@functools.lru_cache(maxsize=64)
def weight_table(config: DecoderConfig) -> Mapping[Path, Weight]:
    """Path of each parameter in the decoder's state -> its place in a checkpoint of the config's family."""
    config = dataclasses.replace(config, vocab_padding=0, lora=None)
    shapes = nnx.to_flat_state(nnx.state(abstract_decoder(config, make_mesh(devices=jax.devices()[:1]))))
    paths = [(parameter_path(parts), variable.get_value().shape) for parts, variable in shapes]
    return {path: _weight(config, path, shape) for path, shape in paths}


def parameter_path(parts: Iterable[Any]) -> Path:
    """A parameter's path as `weight_table` has it, from its place in a flat state."""
    return tuple(part if isinstance(part, int) else str(part) for part in parts)


def _weight(config: DecoderConfig, path: Path, shape: tuple[int, ...]) -> Weight:
    family, period = FAMILIES[config.family], len(config.pattern)
    # ("layers", 3, "attention_norm", "scale"), ("rest", 0, "q_bias"), ("final_norm", "scale"), ("head",)
    inner = [str(part) for part in path[2:] or path[:1]] if path[0] in ("layers", "rest") else [str(path[0]), *path[1:]]
    stem, kind = str(inner[0]), "bias" if "bias" in str(inner[-1]) else "weight"
    stem = stem.removesuffix("_bias")
    stacked = path[0] == "layers"
    if stacked:
        layers = range(int(path[1]), config.groups * period, period)
        shape = shape[1:]
    else:
        layers = [config.groups * period + int(path[1])] if path[0] == "rest" else []
    fused = family.fused(config)
    name, rows, pick = fused[stem] if stem in fused else (family.names[stem], None, ())
    names = tuple(family.names["layer"].format(layer) + name for layer in layers) or (name,)
    lone = kind == "bias" or stem.endswith("norm")
    view = shape if rows is None else rows if lone else (*rows, shape[-1])
    split = 1 if stem in ("o", "down") else len(view) - 1  # how many axes of the view are rows there
    flat = (math.prod(view),) if lone else (math.prod(view[:split]), math.prod(view[split:]))
    weight = Weight(tuple(f"{name}.{kind}" for name in names), stacked, flat, view, pick)
    if weight.part_shape != shape:
        raise ValueError(f"{'.'.join(map(str, path))} of shape {shape} is not {pick} of {name} {view}")
    return weight


def normal_name(name: str, hf: Mapping[str, Any]) -> str | None:
    """A tensor's name as in a text-only checkpoint; None where it belongs to another part of a multimodal model."""
    if hf.get("model_type") not in _MULTIMODAL:
        return name
    inner = name.removeprefix("model.")
    if inner.startswith(("vision_tower.", "multi_modal_projector.")):
        return None
    if inner.startswith("language_model."):
        inner = inner.removeprefix("language_model.")
        return inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"
    return name
