"""Changes a model's format: Hugging Face to orbax, and back."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxift.artifacts import writable_folder
from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder
from jaxift.models.export import export_decoder, small_files
from jaxift.models.families import decoder_config, normal_name, weight_table
from jaxift.models.files.folder import ModelFolder, model_config, open_model
from jaxift.models.files.orbax_folder import read_manifest, write_arrays
from jaxift.models.files.safetensors_file import FLOATS
from jaxift.models.files.shards import read_tensors
from jaxift.models.weights import load_decoder
from jaxift.parallel.meeting import on_first_process
from jaxift.parallel.mesh import make_mesh

DTYPES = ("float32", "bfloat16", "float16")


def convert(source: str | Path, target: str | Path, dtype: str | None = None) -> Path:
    """Converts a Hugging Face model (a folder, Hub id or address) to an orbax folder, and an orbax folder back.

    `dtype` (`float32`, `bfloat16`, `float16`) is the new weights', by default what they have. Raises UserError where
    the source cannot be loaded or `target` is not empty. An interrupted conversion leaves a folder without config.json.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; use {', '.join(DTYPES)}")
    target, model = Path(target), open_model(source)
    config = decoder_config(model_config(model), model.storage.where("config.json"))
    held = jnp.dtype(dtype) if dtype else _stored_dtype(model, config)
    on_first_process(lambda: _claim(target))
    decoder = load_decoder(model, config, _spread(config), held)
    if model.is_orbax:
        return export_decoder(decoder, model.local, target)
    _write(decoder, model.local, target)
    return target


def _claim(target: Path) -> None:
    """Makes the folder; refuses one that holds anything."""
    if any(writable_folder(target, "the folder to write").iterdir()):
        raise UserError(f"{target}: is not empty; give a new folder, or empty it")


def _spread(config: DecoderConfig) -> Mesh:
    """All devices where they divide the weights, so that the model need not fit into one."""
    return make_mesh(fsdp=math.gcd(jax.device_count(), config.hidden_size))


def _stored_dtype(model: ModelFolder, config: DecoderConfig) -> np.dtype:
    """What the weights have in common; float32 where they differ, or are wider than what is computed with."""
    if model.is_orbax:
        found = {dtype for _, dtype in read_manifest(model.root).arrays.values()}
    else:
        hf = model_config(model)
        wanted = {name for weight in weight_table(config).values() for name in weight.names}
        tensors = read_tensors(model.storage)
        found = {FLOATS.get(tensor.dtype) for name, tensor in tensors.items() if normal_name(name, hf) in wanted}
    common = found.pop() if len(found) == 1 else None
    return common if common is not None and str(common) in DTYPES else np.dtype(np.float32)


def _write(decoder: Decoder, source: Path, target: Path) -> None:
    """Writes an orbax folder, its config.json last."""
    try:
        write_arrays(decoder, target)
    except OSError as error:
        raise _unwritable(target, error) from None

    def write_small() -> None:
        try:
            for name, content in small_files(source, decoder.embedding.get_value().dtype).items():
                (target / name).write_bytes(content)
        except OSError as error:
            raise _unwritable(target, error) from None

    on_first_process(write_small)


def _unwritable(target: Path, error: OSError) -> UserError:
    return UserError(f"{target}: cannot be written ({error}); give a folder on a disk with room")
