"""Hugging Face's rotary fields, in the spellings of transformers 4 and 5, as a Rope."""

from collections.abc import Mapping
from typing import Any

from jaxift.models.rope import Linear, Llama3, LongRope, Rope, Yarn, longrope_attention_factor, yarn_attention_factor

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_READ = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor",),
}
# Phi-3's first name for it.
_ALIASES = {"su": "longrope"}


def rope_fields(values: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """The rotary fields of one kind of layer: transformers 5 nests them (by layer type or not), 4 did not.

    Raises ValueError where they are no object.
    """
    found = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if isinstance(found, Mapping) and {"full_attention", "sliding_attention"} & found.keys():
        found = found.get(layer_type) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"rope parameters {found!r} are not an object")
    return dict(found)


def read_rope(
    fields: Mapping[str, Any], head_dim: int, theta: float | int, part: float | int, positions: int, limit: int
) -> Rope:
    """Builds a Rope from rotary fields; `theta` and `part` (of the head that is rotated) hold where they are silent.

    `positions` is the config's max_position_embeddings, `limit` the longest text that will be fed. Raises ValueError,
    naming the field, where something is not understood or depends on the length of the text.
    """
    kind = fields.get("rope_type", fields.get("type", "default"))
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _READ:
        raise ValueError(f"rope type {kind!r} is not supported; known are {', '.join(_READ)}")
    unknown = sorted(name for name, value in fields.items() if name not in _COMMON | _READ[kind] and value)
    if unknown:
        raise ValueError(f"rope parameter {', '.join(unknown)} is not understood with rope type {kind!r}")
    missing = [name for name in _REQUIRED.get(kind, ()) if fields.get(name) is None]
    if missing:
        raise ValueError(f"rope type {kind!r} lacks {', '.join(missing)}")
    theta = _number(fields, "rope_theta", theta)
    part = _number(fields, "partial_rotary_factor", part)
    original = _number(fields, "original_max_position_embeddings", positions)
    if theta <= 1:
        raise ValueError(f"rope_theta = {theta} is not above 1")
    if part > 1:
        raise ValueError(f"partial_rotary_factor = {part} is more than the whole head")
    if original < 2:
        raise ValueError(f"rope parameter original_max_position_embeddings = {original} is less than 2")
    dim = int(head_dim * part)
    return Rope(dim, theta, _scaling(kind, fields, dim, positions, original, limit))


def _scaling(
    kind: str, fields: Mapping[str, Any], dim: int, positions: int, original: float, limit: int
) -> Linear | Llama3 | Yarn | LongRope | None:
    if kind == "linear":
        return Linear(_number(fields, "factor"))
    if kind == "llama3":
        low, high = _number(fields, "low_freq_factor"), _number(fields, "high_freq_factor")
        if high <= low:
            raise ValueError(f"rope parameter high_freq_factor = {high} is not above low_freq_factor = {low}")
        return Llama3(_number(fields, "factor"), low, high, int(original))
    if kind == "yarn":
        return _yarn(fields, positions / original, int(original))
    if kind in ("dynamic", "longrope") and limit > original:
        raise ValueError(
            f"rope type {kind!r} depends on the length beyond {int(original)} tokens, and the limit is {limit}; "
            f"set max_positions to at most {int(original)}"
        )
    if kind == "longrope":
        factors = _factors(fields, dim // 2)
        factor = _number(fields, "factor", positions / original)
        raised = _number(fields, "attention_factor", longrope_attention_factor(factor, int(original)))
        return LongRope(factors, raised)
    return None


def _yarn(fields: Mapping[str, Any], implied: float, original: int) -> Yarn:
    factor = _number(fields, "factor", implied)
    mscale, all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
    raised = yarn_attention_factor(factor)
    if mscale and all_dim:
        mscale, all_dim = _number(fields, "mscale"), _number(fields, "mscale_all_dim")
        raised = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, all_dim)
    truncate = fields.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"rope parameter truncate = {truncate!r} is not true or false")
    return Yarn(
        factor,
        original,
        _number(fields, "attention_factor", raised),
        _number(fields, "beta_fast", 32.0),
        _number(fields, "beta_slow", 1.0),
        truncate,
    )


def _factors(fields: Mapping[str, Any], count: int) -> tuple[float, ...]:
    values = fields["short_factor"]
    if not isinstance(values, list) or len(values) != count or not all(map(is_positive, values)):
        raise ValueError(f"rope parameter short_factor is not a list of {count} positive numbers")
    return tuple(float(value) for value in values)


def _number(fields: Mapping[str, Any], name: str, default: float | int | None = None) -> float:
    value: Any = default if fields.get(name) is None else fields[name]
    if not is_positive(value):
        label = name if name == "rope_theta" else f"rope parameter {name}"
        raise ValueError(f"{label} = {value!r} is not a positive number")
    return float(value)


def is_positive(value: Any) -> bool:
    """Whether a config's value is a positive finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < float(value) < float("inf")
    except OverflowError:  # an integer beyond every float
        return False
