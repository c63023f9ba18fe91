"""Orbax folders: a model's parameters as this package lays them out, read back onto any mesh.

FOLDER/ config.json and tokenizer files as in a Hugging Face folder, orbax/ (one array a parameter, vocabulary without
padding), orbax.json (every array's shape and dtype, every file's size)
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder, abstract_decoder
from jaxift.models.families import weight_table
from jaxift.models.files.folder import ORBAX_FOLDER
from jaxift.models.files.shards import told

MANIFEST = "orbax.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an orbax folder holds: shape and dtype of each parameter, bytes of each file below orbax/."""

    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    files: Mapping[str, int]


def write_arrays(decoder: Decoder, folder: str | Path) -> None:
    """Writes orbax/ and the manifest; all processes take part, and none returns before all is written."""
    arrays = {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(decoder))}
    root = _root(folder)
    with _checkpointer() as orbax:
        orbax.save(root / ORBAX_FOLDER, arrays)
    if jax.process_index() == 0:
        fields = {
            "arrays": {name: {"shape": x.shape, "dtype": str(x.dtype)} for name, x in arrays.items()},
            "files": dict(sorted(_sizes(root / ORBAX_FOLDER))),
        }
        (root / MANIFEST).write_text(json.dumps(fields, indent=1) + "\n")


def read_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest; raises UserError where it is missing or damaged."""
    try:
        fields = json.loads((_root(folder) / MANIFEST).read_text())
        arrays = {
            name: (tuple(int(size) for size in entry["shape"]), np.dtype(entry["dtype"]))
            for name, entry in fields["arrays"].items()
        }
        return Manifest(arrays, {name: int(size) for name, size in fields["files"].items()})
    except FileNotFoundError:
        raise UserError(f"{folder}/{MANIFEST}: missing; convert the model again") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}/{MANIFEST}: damaged ({error!r}); convert the model again") from None


def problems_of(folder: str | Path, manifest: Manifest, config: DecoderConfig) -> list[str]:
    """Parameters that do not match the config, and files that are not there or not as they were written."""
    wanted, held = _shapes(config), manifest.arrays
    problems = [f"parameter {name} is missing" for name in sorted(wanted.keys() - held.keys())]
    problems += [f"parameter {name} is left over" for name in sorted(held.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & held.keys()):
        if held[name][0] != wanted[name]:
            problems.append(f"parameter {name} has shape {held[name][0]}, not {wanted[name]}")
    found = dict(_sizes(_root(folder) / ORBAX_FOLDER))
    for name, size in manifest.files.items():
        if name not in found:
            problems.append(f"file {name} is missing")
        elif found[name] != size:
            problems.append(f"file {name} has {found[name]} bytes, not {size}")
    return problems


def restore_decoder(folder: str | Path, config: DecoderConfig, mesh: Mesh, dtype: np.dtype) -> Decoder:
    """Reads an orbax folder's parameters onto a mesh, converted to `dtype`; rows of vocabulary padding are zero.

    Each process reads what its devices need. Raises UserError where parameters are missing, left over, wrongly shaped
    or not finite, or where the folder is damaged.
    """
    where = f"{folder}/{ORBAX_FOLDER}"
    # before orbax looks at it: its reads run side by side, and those that fail after the first one fill the terminal
    problems = problems_of(folder, read_manifest(folder), config)
    if problems:
        raise UserError(f"{where}: {told(problems)}; convert the model again")
    graph, abstract = nnx.split(abstract_decoder(config, mesh))
    leaves = {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(abstract)}
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=jax.NamedSharding(mesh, leaf.sharding.spec))
        for name, leaf in leaves.items()
    }
    with _checkpointer() as orbax:
        try:
            # not strict: what a shape has more than the stored one, the vocabulary's padding, is filled with zeros
            found = orbax.restore(_root(folder) / ORBAX_FOLDER, wanted, strict=False)
        except Exception as error:  # orbax, tensorstore and the file systems have many kinds
            reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
            raise UserError(f"{where}: damaged ({reason}); convert the model again") from None
    finite = jax.device_get(_are_finite(found))
    spoilt = [f"parameter {name} holds NaN or infinity" for name in sorted(finite) if not finite[name]]
    if spoilt:
        raise UserError(f"{where}: {told(spoilt)}; convert the model again")
    return nnx.merge(graph, nnx.map_state(lambda path, variable: variable.replace(found[_name(path)]), abstract))


@jax.jit
def _are_finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter without padding of the vocabulary."""
    found = {}
    for path, weight in weight_table(config).items():
        inner = weight.ours(np.broadcast_to(np.int8(0), weight.shape)).shape
        found[_name(path)] = (len(weight.names), *inner) if weight.stacked else inner
    return found


def _checkpointer() -> ocp.StandardCheckpointer:
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every step of every write
    return ocp.StandardCheckpointer()


def _root(folder: str | Path) -> epath.Path:
    """The folder, local or remote; orbax takes absolute paths alone."""
    text = str(folder)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def _sizes(folder: epath.Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Relative name and bytes of every file below a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _sizes(path, f"{below}{path.name}/")
        else:
            yield below + path.name, path.stat().length


def _name(path: Iterable[object]) -> str:
    """A parameter's name in the orbax folder, such as layers.0.q."""
    return ".".join(map(str, path))
