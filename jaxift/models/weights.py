"""Loads a language model: its config, tokenizer and weights, checked and laid out on a mesh."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxift.config import Seam
from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder, abstract_decoder, laid_out
from jaxift.models.families import Path as ParameterPath
from jaxift.models.families import Weight, decoder_config, normal_name, parameter_path, weight_table
from jaxift.models.family_tables import FAMILIES
from jaxift.models.files.fingerprint import fingerprint
from jaxift.models.files.folder import ModelFolder, model_config, open_model
from jaxift.models.files.placing import Parameter, place
from jaxift.models.files.safetensors_file import FLOATS, Tensor
from jaxift.models.files.shards import read_tensors, told, weights_file
from jaxift.models.files.storage import Storage, read
from jaxift.parallel.mesh import make_mesh

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder on a mesh with its tokenizer: what `load` returns and `score` takes.

    `folder` is local and holds config and tokenizer, wherever the weights came from.
    """

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

    @property
    def is_described(self) -> bool:
        """Whether shapes and layouts stand in place of weights."""
        return isinstance(jax.tree.leaves(nnx.state(self.decoder))[0], jax.ShapeDtypeStruct)

    def with_state(self, *states: nnx.State) -> "LanguageModel":
        """The same model with other weights, in as many parts as they come."""
        return dataclasses.replace(self, decoder=nnx.merge(nnx.graphdef(self.decoder), *states))

    def on(self, mesh: Mesh) -> "LanguageModel":
        """The same model on another mesh whose `tensor` axis is as long, laid out by the same rules."""
        if mesh == self.mesh:
            return self
        graph, state = nnx.split(self.decoder)
        if self.is_described:
            return dataclasses.replace(self, decoder=nnx.merge(graph, laid_out(state, mesh)), mesh=mesh)
        state = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, x.sharding.spec)), state)
        return dataclasses.replace(self, decoder=nnx.merge(graph, state), mesh=mesh)


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    *,
    bos: str = "auto",
    seam: Seam = "lm-eval",
    param_dtype: str | None = None,
    max_positions: int | None = None,
) -> LanguageModel:
    """Loads a model onto a mesh (default: one device) from a folder, the Hugging Face Hub or an object store.

    `path`: see `open_model`. `dtype` (`float32` or `bfloat16`) is what is computed in; weights are held in
    `param_dtype`, by default the same. `bos` and `seam`: see `Tokenizer.load`. `max_positions` shortens the length
    limit. Raises UserError, collecting everything that is wrong with the weights.
    """
    held = param_dtype or dtype
    unknown = [name for name in (dtype, held) if name not in DTYPES]
    if unknown:
        raise UserError(f"dtype {unknown[0]!r} is not supported; use {' or '.join(DTYPES)}")
    model = open_model(path, weights=False)
    config = _checked(model, max_positions)
    mesh = make_mesh() if mesh is None else mesh
    config = _laid_over(config, mesh)
    if not model.has_all_names:  # of a Hub model the weights are not here yet
        model = open_model(path)
    tokenizer = Tokenizer.load(model.local, bos, seam)
    decoder = load_decoder(model, config, mesh, jnp.dtype(held))
    return LanguageModel(decoder, tokenizer, mesh, jnp.dtype(dtype), model.local, fingerprint(model))


def described(
    path: str | Path,
    mesh: Mesh,
    dtype: str,
    *,
    bos: str = "auto",
    seam: Seam = "lm-eval",
    param_dtype: str | None = None,
    max_positions: int | None = None,
) -> LanguageModel:
    """What `load` would give, with shapes and layouts in place of weights; takes config and tokenizer alone.

    The mesh may be of devices that are not here. Raises UserError where the model could not be laid out on it.
    """
    model = open_model(path, weights=False)
    config = _laid_over(_read_config(model, max_positions), mesh)
    graph, state = nnx.split(abstract_decoder(config, mesh))
    decoder = nnx.merge(graph, laid_out(state, mesh, jnp.dtype(param_dtype or dtype)))
    tokenizer = Tokenizer.load(model.local, bos, seam)
    return LanguageModel(decoder, tokenizer, mesh, jnp.dtype(dtype), model.local, "")


def check_config(path: str | Path, max_positions: int | None = None) -> DecoderConfig:
    """Reads a model's config; raises UserError where it is none that we know. Weights need not be there."""
    return _read_config(open_model(path, weights=False), max_positions)


def check_folder(path: str | Path, max_positions: int | None = None) -> DecoderConfig:
    """Reads a model's config without its weights; raises UserError where it could not be loaded."""
    return _checked(open_model(path, weights=False), max_positions)


def _read_config(model: ModelFolder, max_positions: int | None) -> DecoderConfig:
    return decoder_config(model_config(model), model.storage.where("config.json"), max_positions)


def _laid_over(config: DecoderConfig, mesh: Mesh) -> DecoderConfig:
    """The config with its vocabulary padded for a mesh, over which all else must divide."""
    _check_divisible(config, mesh)
    return dataclasses.replace(config, vocab_padding=-config.vocab_size % mesh.shape["tensor"])


def _checked(model: ModelFolder, max_positions: int | None) -> DecoderConfig:
    config = _read_config(model, max_positions)
    if model.has_all_names and not model.is_orbax:
        weights_file(model.storage)
    return config


def load_decoder(model: str | Path | ModelFolder, config: DecoderConfig, mesh: Mesh, dtype: jnp.dtype) -> Decoder:
    """Reads a model's weights into a decoder sharded over `mesh`, converted to `dtype` on the way.

    Strict: missing, left-over, twofold and wrongly shaped tensors are collected and raised together, before any weight
    is read; so are, after it, tensors that hold NaN or infinity.
    """
    model = model if isinstance(model, ModelFolder) else open_model(model)
    if model.is_orbax:
        from jaxift.models.files.orbax_folder import restore_decoder  # imported here: orbax takes seconds to import

        return restore_decoder(model.root, config, mesh, dtype)
    where = model.storage.where(weights_file(model.storage))
    table = weight_table(config)
    tensors, problems = renamed(read_tensors(model.storage), model_config(model))
    problems += mismatches(tensors, table, config) or _untied_head(tensors, config, model.storage)
    _refuse(where, problems, "the weights do not match config.json")
    graph, abstract = nnx.split(abstract_decoder(config, mesh))
    parameters = []
    for parts, variable in nnx.to_flat_state(abstract):
        path, leaf = parameter_path(parts), variable.get_value()
        parameters.append(Parameter(path, table[path], leaf.shape, jnp.dtype(dtype), mesh, leaf.sharding.spec))
    arrays, problems = place(parameters, tensors, model.storage)
    _refuse(where, problems, "copy the files again, or use another checkpoint")
    return nnx.merge(
        graph, nnx.map_state(lambda parts, variable: variable.replace(arrays[parameter_path(parts)]), abstract)
    )


def _refuse(where: str, problems: list[str], mend: str) -> None:
    if problems:
        raise UserError(f"{where}: {told(problems)}; {mend}")


def renamed(found: Mapping[str, Tensor], hf: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the names that they have in a text-only checkpoint, and those that two have alike."""
    tensors: dict[str, Tensor] = {}
    problems = []
    for name, tensor in found.items():
        normal = normal_name(name, hf)
        if normal in tensors:
            problems.append(f"tensors {tensors[normal].name} and {name} are the same one")
        elif normal is not None:
            tensors[normal] = tensor
    return tensors, problems


def mismatches(
    tensors: Mapping[str, Tensor], table: Mapping[ParameterPath, Weight], config: DecoderConfig
) -> list[str]:
    """Tensors that are missing, left over, of a wrong shape or not floats."""
    family = FAMILIES[config.family]
    shapes = {name: weight.shape for weight in table.values() for name in weight.names}
    # some exporters write a tied head beside the embedding
    head = f"{family.names['head']}.weight"
    left_over = sorted(
        name
        for name in tensors.keys() - shapes.keys()
        if not name.endswith(family.derived) and not (config.tie_embeddings and name == head)
    )
    problems = [f"tensor {name} is missing" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"tensor {name} is left over" for name in left_over]
    for name, tensor in tensors.items():
        if name in shapes and tensor.shape != shapes[name]:
            problems.append(f"tensor {name} has shape {tensor.shape}, not {shapes[name]}")
        elif name in shapes and tensor.dtype not in FLOATS:
            problems.append(f"tensor {name} has type {tensor.dtype}, not {', '.join(FLOATS)}")
    return problems


def _untied_head(tensors: Mapping[str, Tensor], config: DecoderConfig, storage: Storage) -> list[str]:
    """A head that stands beside the embedding that it is tied to must be the same: transformers would not tie it."""
    names = FAMILIES[config.family].names
    embedding, head = (tensors.get(f"{names[part]}.weight") for part in ("embedding", "head"))
    if not config.tie_embeddings or head is None or embedding is None:
        return []
    size, step = embedding.end - embedding.start, storage.chunk_bytes

    def block(tensor: Tensor, at: int) -> bytes:
        return read(storage, tensor.file, tensor.start + at, tensor.start + min(at + step, size))

    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
        block(head, at) == block(embedding, at) for at in range(0, size, step)
    ):
        return []
    return [f"tensor {head.name} differs from the embedding, but the config ties them (tie_word_embeddings)"]


def _check_divisible(config: DecoderConfig, mesh: Mesh) -> None:
    shards = {"tensor": ("num_heads", "num_kv_heads", "intermediate_size"), "fsdp": ("hidden_size",)}
    problems = [
        f"{field} {getattr(config, field)} does not divide by mesh.{axis} {mesh.shape[axis]}"
        for axis, fields in shards.items()
        for field in fields
        if getattr(config, field) % mesh.shape[axis]
    ]
    if problems:
        raise UserError("; ".join(problems) + "; choose another mesh")
