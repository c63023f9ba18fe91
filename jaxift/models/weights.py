"""Hugging Face folders in and out: config.json, model.safetensors and the tokenizer's files."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.decoder import Decoder, DecoderConfig, abstract_decoder
from jaxift.models.families import Weight, decoder_config, weight_table
from jaxift.parallel.mesh import make_mesh

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_SAMPLE = 1 << 12
# Buffers that old checkpoints carry beside their weights; they can be computed.
_DERIVED = ("rotary_emb.inv_freq",)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder on a mesh with its tokenizer: what `load` returns and `score` takes."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: Mesh
    dtype: jnp.dtype
    folder: Path
    fingerprint: str

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shape and constants."""
        return self.decoder.config

    def with_state(self, state: nnx.State) -> "LanguageModel":
        """The same model with other weights."""
        return dataclasses.replace(self, decoder=nnx.merge(nnx.graphdef(self.decoder), state))


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    *,
    bos: str = "auto",
    param_dtype: str | None = None,
) -> LanguageModel:
    """Loads a Hugging Face folder onto a mesh (default: one device).

    `dtype` (`float32` or `bfloat16`) is what is computed in; weights are held in `param_dtype`, by default the same.
    `bos`: see `Tokenizer.load`. Raises UserError, collecting everything that is wrong with the weights.
    """
    folder = Path(path)
    config = check_folder(folder)
    mesh = make_mesh() if mesh is None else mesh
    _check_divisible(config, mesh)
    tokenizer = Tokenizer.load(folder, bos)
    decoder = load_decoder(folder, config, mesh, jnp.dtype(param_dtype or dtype))
    return LanguageModel(decoder, tokenizer, mesh, jnp.dtype(dtype), folder, fingerprint(folder))


def fingerprint(folder: str | Path) -> str:
    """Hash that tells model folders apart: small files whole, of safetensors the header and both ends of each tensor.

    Reading all of a large checkpoint would take longer than loading it.
    """
    total = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in (".json", ".model", ".txt", ".jinja"):
            total.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            total.update(path.name.encode())
            for sample in _samples(path):
                total.update(sample)
    return total.hexdigest()[:24]


def _samples(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file, then up to 4 KiB at both ends of each tensor; of a damaged file its start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 1 << 28))
        yield header
        try:
            offsets = [value["data_offsets"] for name, value in json.loads(header).items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # the loader will say what is wrong
        for start, end in offsets:
            for at in (start, max(start, end - _SAMPLE)):
                file.seek(8 + length + at)
                yield file.read(min(_SAMPLE, end - at))


def check_folder(path: str | Path) -> DecoderConfig:
    """Reads a model folder's config without its weights; raises UserError where it could not be loaded."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; give one with config.json and {WEIGHTS_FILE}")
    config = decoder_config(read_hf_config(folder), str(folder / "config.json"))
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(_absent(folder))
    return config


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Reads config.json; raises UserError where it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give a Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; give a Hugging Face model folder")
    return config


def load_decoder(folder: Path, config: DecoderConfig, mesh: Mesh, dtype: jnp.dtype) -> Decoder:
    """Reads the weights of `folder` into a decoder sharded over `mesh`, converted to `dtype` on the way.

    Strict: missing, left-over, wrongly shaped and non-finite tensors are collected and raised together.
    """
    graph, abstract = nnx.split(abstract_decoder(config, mesh))
    table = weight_table(config)
    with _open_weights(folder) as file:
        problems = _check_names(set(file.keys()), table, config)
        arrays: dict[tuple[str, ...], jax.Array] = {}
        for parts, target in () if problems else nnx.to_flat_state(abstract):
            path = tuple(str(part) for part in parts)
            value, found = _read_parameter(file, table[path], config.num_layers, target.get_value())
            problems += found
            if value is not None:
                # the abstract sharding knows the mesh's shape alone; data needs its devices
                placed = jax.NamedSharding(mesh, target.get_value().sharding.spec)
                arrays[path] = jax.device_put(value.astype(dtype), placed)
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(f"{folder / WEIGHTS_FILE}: {shown}; the file does not match its config.json")
    state = nnx.map_state(lambda parts, variable: variable.replace(arrays[tuple(map(str, parts))]), abstract)
    return nnx.merge(graph, state)


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[Any]:
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); copy the file again") from None


def _absent(folder: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: {pickles[0]} is a pickle, which can run code and is not loaded; "
            "convert it once, where you trust it: "
            f"AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    if (folder / f"{WEIGHTS_FILE}.index.json").is_file():
        return f"{folder}: weights in several files are not read yet; save them with a larger max_shard_size"
    return f"{folder}: holds no {WEIGHTS_FILE}; give a Hugging Face model folder"


def _check_names(names: set[str], table: Mapping[tuple[str, ...], Weight], config: DecoderConfig) -> list[str]:
    wanted = {
        weight.name.format(layer=layer)
        for weight in table.values()
        for layer in range(config.num_layers if weight.stacked else 1)
    }
    left_over = {name for name in names - wanted if not name.endswith(_DERIVED)}
    if config.tie_embeddings:
        left_over.discard("lm_head.weight")  # some exporters write the tied head twice
    return [f"tensor {name} is missing" for name in sorted(wanted - names)] + [
        f"tensor {name} is left over" for name in sorted(left_over)
    ]


def _read_parameter(
    file: Any, weight: Weight, num_layers: int, target: jax.ShapeDtypeStruct
) -> tuple[np.ndarray | None, list[str]]:
    """One parameter of ours from its tensor (or its layers' tensors), and what is wrong with them."""
    shape = target.shape[1:] if weight.stacked else target.shape
    expected = weight.to_hf(np.empty(shape, np.int8)).shape
    parts, problems = [], []
    for name in [weight.name.format(layer=layer) for layer in range(num_layers if weight.stacked else 1)]:
        found = tuple(file.get_slice(name).get_shape())
        if found != expected:
            problems.append(f"tensor {name} has shape {found}, not {expected}")
            continue
        tensor = file.get_tensor(name)
        if tensor.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
            problems.append(f"tensor {name} has type {tensor.dtype}, not a float")
        elif not np.isfinite(tensor).all():
            problems.append(f"tensor {name} holds NaN or infinity")
        parts.append(weight.to_ours(tensor))
    if problems:
        return None, problems
    return (np.stack(parts) if weight.stacked else parts[0]), problems


def _check_divisible(config: DecoderConfig, mesh: Mesh) -> None:
    shards = {"tensor": ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"), "fsdp": ("hidden_size",)}
    problems = [
        f"{field} {getattr(config, field)} does not divide by mesh.{axis} {mesh.shape[axis]}"
        for axis, fields in shards.items()
        for field in fields
        if getattr(config, field) % mesh.shape[axis]
    ]
    if problems:
        raise UserError("; ".join(problems) + "; choose another mesh")


def hf_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """The decoder's weights under their Hugging Face names and layouts, on the host."""
    tensors: dict[str, np.ndarray] = {}
    flat = dict(nnx.to_flat_state(nnx.state(decoder)))
    for path, weight in weight_table(decoder.config).items():
        value = np.asarray(flat[path].get_value())
        for layer, part in enumerate(value if weight.stacked else [value]):
            tensors[weight.name.format(layer=layer)] = np.ascontiguousarray(weight.to_hf(part))
    return tensors


def export(model: LanguageModel, folder: str | Path) -> Path:
    """Writes a model as a Hugging Face folder that `transformers` loads; returns the folder.

    Config and tokenizer files are those of the folder that the model was loaded from; the dtype is the weights'.
    """
    folder, source = Path(folder), model.folder
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hf_tensors(model.decoder)
    config = read_hf_config(source)
    config.pop("torch_dtype", None)
    config["dtype"] = str(next(iter(tensors.values())).dtype)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)
    return folder
