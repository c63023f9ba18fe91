"""What a model is and whether it would be loaded, from its config and its files' headers alone."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.families import decoder_config, weight_table
from jaxift.models.files.folder import ModelFolder, model_config, open_model
from jaxift.models.files.orbax_folder import problems_of, read_manifest
from jaxift.models.files.shards import read_tensors
from jaxift.models.weights import mismatches, renamed

_Found = TypeVar("_Found")
# weights, gradients and AdamW's two moments
_TRAINING_COPIES = 4


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A model as its folder tells it; None where that could not be read."""

    source: str
    config: DecoderConfig | None
    parameters: int | None
    """Numbers that training can change."""
    layout: str
    files: int
    """How many files hold weights, and their bytes."""
    file_bytes: int
    tensors: Mapping[str, int]
    """How many tensors (in an orbax folder, parameters) there are of each type."""
    has_tokenizer: bool
    refused: tuple[str, ...]
    """Why loading would be refused; empty where it would not."""


def inspect_model(path: str | Path, max_positions: int | None = None) -> Inspection:
    """Reads config, headers and tokenizer of a model that `load` takes, and no weights.

    `max_positions` shortens the length limit as in `load`. Raises UserError where there is no such model; what is wrong
    with it comes back as `refused`.
    """
    model, refused = _with_headers(path), []

    def attempt(read: Callable[[], _Found]) -> _Found | None:
        try:
            return read()
        except UserError as error:
            refused.append(str(error))
            return None

    def configured() -> tuple[Mapping[str, Any], DecoderConfig]:
        hf = model_config(model)
        return hf, decoder_config(hf, model.storage.where("config.json"), max_positions)

    config = attempt(configured)
    read_weights = _read_orbax if model.is_orbax else _read_safetensors
    found = attempt(lambda: read_weights(model, *config or (None, None)))
    files, file_bytes, tensors, problems = found or (0, 0, {}, [])
    refused += problems
    has_tokenizer = attempt(lambda: Tokenizer.load(model.local)) is not None
    return Inspection(
        model.shown,
        config and config[1],
        config and count_parameters(config[1]),
        "orbax" if model.is_orbax else "safetensors",
        files,
        file_bytes,
        tensors,
        has_tokenizer,
        tuple(refused),
    )


def _with_headers(path: str | Path) -> ModelFolder:
    """Opens a model; a Hub model's weights stay where they are, and its headers are read from there."""
    model = open_model(path, weights=False)
    return model if model.has_all_names else open_model(f"hf://{path}")


def count_parameters(config: DecoderConfig) -> int:
    """How many numbers a decoder's parameters hold, without padding of the vocabulary."""
    return sum(len(weight.names) * math.prod(weight.part_shape) for weight in weight_table(config).values())


def _read_safetensors(
    model: ModelFolder, hf: Mapping[str, Any] | None, config: DecoderConfig | None
) -> tuple[int, int, Mapping[str, int], list[str]]:
    tensors = read_tensors(model.storage)
    files = {tensor.file for tensor in tensors.values()}
    sizes = model.storage.sizes()
    problems = []
    if hf is not None and config is not None:
        named, problems = renamed(tensors, hf)
        problems += mismatches(named, weight_table(config), config)
    types = collections.Counter(tensor.dtype for tensor in tensors.values())
    return len(files), sum(sizes[file] for file in files), types, problems


def _read_orbax(
    model: ModelFolder, hf: Mapping[str, Any] | None, config: DecoderConfig | None
) -> tuple[int, int, Mapping[str, int], list[str]]:
    manifest = read_manifest(model.root)
    problems = problems_of(model.root, manifest, config) if config is not None else []
    types = collections.Counter(str(dtype) for _, dtype in manifest.arrays.values())
    return len(manifest.files), sum(manifest.files.values()), types, problems


def summary(found: Inspection) -> list[tuple[str, str]]:
    """The inspection as labelled lines for people."""
    config = found.config
    rows = [("model", found.source)]
    if config is not None:
        heads = f"{config.num_heads} heads of {config.head_dim}, {config.num_kv_heads} of keys and values"
        tied = "tied to the embedding" if config.tie_embeddings else "apart from the embedding"
        rows += [
            ("family", config.family),
            ("layers", f"{config.num_layers} of width {config.hidden_size:,}, MLP {config.intermediate_size:,}"),
            ("heads", heads),
            *(("attention", line) for line in _attention(config)),
            ("vocabulary", f"{config.vocab_size:,} tokens, head {tied}"),
            ("context", f"{config.max_positions:,} tokens"),
        ]
    if found.parameters is not None:
        count = found.parameters
        rows += [
            ("parameters", f"{count:,}"),
            ("in bfloat16", readable_bytes(2 * count)),
            ("in float32", readable_bytes(4 * count)),
            ("training with AdamW in float32", readable_bytes(4 * _TRAINING_COPIES * count)),
        ]
    types = ", ".join(f"{count} of {name}" for name, count in sorted(found.tensors.items()))
    size = readable_bytes(found.file_bytes)
    rows.append(("files", f"{found.layout}, {found.files} with {size}, tensors: {types or 'none'}"))
    rows.append(("tokenizer", "present" if found.has_tokenizer else "absent or unreadable"))
    return rows


def _attention(config: DecoderConfig) -> list[str]:
    """Each kind of attention and how many layers have it."""
    period = len(config.pattern)
    kinds = collections.Counter(config.pattern[layer % period] for layer in range(config.num_layers))
    return [f"{_kind(span)}: {count} of {config.num_layers} layers" for span, count in kinds.items()]


def _kind(span: Span) -> str:
    rope, scaled = span.rope, ""
    sight = "everything before" if span.window is None else f"window of {span.window:,}"
    if rope.scaling is not None:
        factor = getattr(rope.scaling, "factor", None)
        scaled = f", {type(rope.scaling).__name__} scaling" + (f" by {factor:g}" if factor else "")
    return f"{sight}, {rope.dim} rotary dimensions of base {rope.theta:,.0f}{scaled}"


def readable_bytes(size: int) -> str:
    """Bytes in the largest unit (of 1000) that leaves a number of at least 1."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
