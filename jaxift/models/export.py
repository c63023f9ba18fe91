"""Writes a decoder as a Hugging Face folder: config, safetensors (with an index where they are several), tokenizer."""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from jaxift.errors import UserError
from jaxift.models.decoder import Decoder
from jaxift.models.families import Weight, text_config, weight_table
from jaxift.models.files.folder import ORBAX_FOLDER, read_hf_config
from jaxift.models.files.safetensors_writer import (
    PARTIAL,
    HostTensor,
    index_of,
    is_weights_file,
    partial_files,
    plan_files,
)
from jaxift.models.files.shards import INDEX_FILE
from jaxift.models.weights import LanguageModel
from jaxift.parallel.meeting import on_first_process

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
MAX_SHARD_BYTES = 5_000_000_000
_ARCHITECTURES = {"gemma3_text": "Gemma3ForCausalLM"}
_FOREIGN = ("adapter_config.json", ORBAX_FOLDER)
_FOREIGN_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors")


def export(model: LanguageModel, folder: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
    """Writes a model as a Hugging Face folder that `transformers` loads; returns the folder.

    Config and tokenizer files are those of the folder that the model was loaded from; the dtype is the weights'. Files
    of weights hold at most `max_shard_bytes` each. A Hugging Face model that is in the folder is replaced. Raises
    UserError where the folder cannot be written or holds other weights (pickles, adapters, orbax).
    """
    return export_decoder(model.decoder, model.folder, folder, max_shard_bytes=max_shard_bytes)


def export_decoder(
    decoder: Decoder, source: Path, folder: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """`export` of a decoder whose config and tokenizer files lie in the local folder `source`.

    All processes take part; the first one writes. A folder that was not written to its end cannot be loaded: its
    config.json comes last.
    """
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes {max_shard_bytes}: give a positive number of bytes")
    folder, tensors = Path(folder), host_tensors(decoder)
    on_first_process(lambda: _check_target(folder))

    def write() -> None:
        _write(folder, tensors, small_files(source, tensors[0].dtype), max_shard_bytes)

    if jax.process_index() != 0:
        for tensor in tensors:
            tensor.read()  # the first process gathers what the devices of this one hold
    on_first_process(write)
    return folder


def write_weights(decoder: Decoder, folder: Path) -> None:
    """Writes the weights alone, in one file."""
    tensors = host_tensors(decoder)
    _swap_weights(folder, tensors, sum(tensor.size for tensor in tensors))


def _write(folder: Path, tensors: Sequence[HostTensor], small: Mapping[str, bytes], max_shard_bytes: int) -> None:
    staged = {name: folder / (name + PARTIAL) for name in small}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in small.items():
            staged[name].write_bytes(content)
        _swap_weights(folder, tensors, max_shard_bytes)
        for name in TOKENIZER_FILES:
            if name not in small:
                (folder / name).unlink(missing_ok=True)
        for name, path in staged.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); give a folder on a disk with room") from None
    finally:
        for path in staged.values():
            with contextlib.suppress(OSError):
                path.unlink()


def _swap_weights(folder: Path, tensors: Sequence[HostTensor], max_shard_bytes: int) -> None:
    """Writes all weights beside those of an earlier export, then puts them in their place."""
    files = plan_files(tensors, max_shard_bytes)
    index = index_of(files)
    with partial_files(folder, files):
        (folder / "config.json").unlink(missing_ok=True)  # from here to the end the folder is no model
        for path in folder.iterdir():
            if is_weights_file(path.name) and path.name.removesuffix(PARTIAL) not in files:
                path.unlink()
        for name in files:
            os.replace(folder / (name + PARTIAL), folder / name)
    if index is not None:
        (folder / INDEX_FILE).write_text(index, encoding="utf-8")


def _check_target(folder: Path) -> None:
    """Refuses a folder with files that would be mixed with the model's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new or empty folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [
        name for name in names if name in _FOREIGN or (name.endswith(_FOREIGN_ENDS) and not is_weights_file(name))
    ]
    if foreign:
        raise UserError(
            f"{folder}: holds {foreign[0]}, which would be mixed with the model; give a new or empty folder"
        )


def small_files(source: Path, dtype: np.dtype) -> dict[str, bytes]:
    """What a model of `source` has beside its weights: tokenizer files, then config.json."""
    found = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()}
    return {**found, "config.json": config_text(source, dtype).encode()}


def config_text(source: Path, dtype: np.dtype) -> str:
    """Text of an export's config.json: the source's, its text part where it was multimodal, with the weights' dtype."""
    hf = read_hf_config(source)
    config = dict(text_config(hf))
    if config.get("model_type") != hf.get("model_type"):
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        config = {**{name: hf[name] for name in ids if name in hf}, **config}
        config["architectures"] = [_ARCHITECTURES[config["model_type"]]]
    config.pop("torch_dtype", None)
    config.pop("auto_map", None)  # the code that it names is not copied
    return json.dumps({**config, "dtype": str(dtype)}, indent=2) + "\n"


def hf_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """The decoder's weights under their Hugging Face names and shapes, all on the host."""
    return {tensor.name: tensor.read() for tensor in host_tensors(decoder)}


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One parameter's share of a tensor; `layer` is its place on the leading axis, None where it has none."""

    weight: Weight
    value: jax.Array
    layer: int | None


def host_tensors(decoder: Decoder) -> list[HostTensor]:
    """The decoder's weights as Hugging Face tensors in the order of layers, each brought to the host when it is read.

    Of stacked parameters only the layer that is asked for leaves the devices, and rows of vocabulary padding do not.
    """
    state = {tuple(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(decoder))}
    pieces: dict[str, list[_Piece]] = collections.defaultdict(list)
    for path, weight in weight_table(decoder.config).items():
        for layer, name in enumerate(weight.names):
            pieces[name].append(_Piece(weight, state[path], layer if weight.stacked else None))
    return [
        HostTensor(name, parts[0].weight.shape, np.dtype(parts[0].value.dtype), functools.partial(_assembled, parts))
        for name, parts in sorted(pieces.items(), key=lambda item: _natural(item[0]))
    ]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer 10 behind layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _assembled(pieces: Sequence[_Piece]) -> np.ndarray:
    out = np.empty(pieces[0].weight.shape, pieces[0].value.dtype)
    for piece in pieces:
        ours = piece.weight.ours(out)
        for index, values in _on_host(piece.value, piece.layer):
            part = ours[index]
            part[...] = values[tuple(slice(size) for size in part.shape)]  # padding of the vocabulary stays behind
    return out


def _on_host(value: jax.Array, layer: int | None) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """The parts of an array (of one of its layers), and where each belongs."""
    if not value.is_fully_addressable:
        whole = multihost_utils.process_allgather(value if layer is None else value[layer], tiled=True)
        return [((slice(None),) * whole.ndim, np.asarray(whole))]
    shards = [shard for shard in value.addressable_shards if shard.replica_id == 0]
    # shard by shard: np.asarray of the whole would stay on the host as long as the array lives
    if layer is None:
        return [(shard.index, np.asarray(shard.data)) for shard in shards]
    return [(shard.index[1:], _layer(shard.data, layer)) for shard in shards]


def _layer(stack: jax.Array, layer: int) -> np.ndarray:
    """One layer of a stack on one device; what is on the host anyway is not copied first."""
    on_host = all(device.platform == "cpu" for device in stack.devices())
    return np.asarray(stack)[layer] if on_host else np.asarray(stack[layer])
