"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): merged into a decoder, and written as PEFT's folder."""

import dataclasses
import functools
import json
import os
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.models.config import DecoderConfig, LoraShape
from jaxift.models.decoder import Decoder, abstract_decoder, laid_out
from jaxift.models.export import export
from jaxift.models.families import Path as ParameterPath
from jaxift.models.families import Weight, parameter_path, weight_table
from jaxift.models.files.safetensors_writer import PARTIAL, HostTensor, write_tensors
from jaxift.models.layer import LoraParam
from jaxift.models.weights import LanguageModel
from jaxift.parallel.arrays import whole
from jaxift.parallel.meeting import on_first_process

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The change of one weight W [out axes, in axes]: `scale * b @ a`, of rank r.

    `a` is [r, in axes] and `b` [out axes, r]; of a stacked weight both have its leading axis over layers.
    """

    a: jax.Array | np.ndarray
    b: jax.Array | np.ndarray


Adapters = Mapping[ParameterPath, Adapter]
"""Path of a weight in the decoder's state -> its adapter."""


def adapted(model: LanguageModel, lora: LoraShape, seed: int) -> LanguageModel:
    """The model with new adapters beside its matrices, which change nothing yet; its weights are shared, not copied.

    Beside a model that is only described they are described.
    """
    if model.config.lora is not None:
        raise UserError("the model has adapters already; merge them first")
    config = dataclasses.replace(model.config, lora=lora)
    abstract = abstract_decoder(config, model.mesh)
    if model.is_described:
        new = laid_out(nnx.state(abstract, LoraParam), model.mesh)
    else:
        new = new_adapters(config, seed, model.mesh)
    return dataclasses.replace(model, decoder=nnx.merge(nnx.graphdef(abstract), new, nnx.state(model.decoder)))


def new_adapters(config: DecoderConfig, seed: int, mesh: Mesh) -> nnx.State:
    """Adapters before the first update, drawn from `seed`, created in place on the mesh."""
    with jax.set_mesh(mesh):
        # what is not asked for of a decoder is not computed
        return nnx.jit(lambda: nnx.state(Decoder(config, nnx.Rngs(params=seed)), LoraParam))()


def without_adapters(model: LanguageModel) -> tuple[LanguageModel, Adapters, float]:
    """The model that adapters were added to, the adapters by the path of what they change, and their scale."""
    lora = model.config.lora
    if lora is None:
        raise UserError("the model has no adapters")
    _, adapters, frozen = nnx.split(model.decoder, LoraParam, ...)
    config = dataclasses.replace(model.config, lora=None)
    base = dataclasses.replace(model, decoder=nnx.merge(nnx.graphdef(abstract_decoder(config, model.mesh)), frozen))
    parts: dict[ParameterPath, dict[str, jax.Array]] = {}
    for path, variable in nnx.to_flat_state(adapters):
        *before, _, matrix, part = parameter_path(path)
        parts.setdefault((*before, matrix), {})[str(part)] = variable.get_value()
    return base, {path: Adapter(**each) for path, each in parts.items()}, lora.scale


def merged(model: LanguageModel, adapters: Adapters, scale: float) -> LanguageModel:
    """The model with `W + scale * b @ a` in place of every weight W that has an adapter, laid out as before.

    Raises UserError where a path is no weight of the model or an adapter does not fit it.
    """
    _rank(adapters, model.config)
    state = nnx.state(model.decoder)

    def change(path: ParameterPath, variable: nnx.Variable) -> nnx.Variable:
        if tuple(path) not in adapters:
            return variable
        adapter, value = adapters[tuple(path)], variable.get_value()
        terms = _einsum(value.ndim, adapter.a.ndim, stacked=path[0] == "layers")
        return variable.replace(
            _added(value, jnp.asarray(adapter.a), jnp.asarray(adapter.b), jnp.float32(scale), terms)
        )

    with jax.set_mesh(model.mesh):
        return model.with_state(nnx.map_state(change, state))


@functools.partial(jax.jit, static_argnames="terms")
def _added(weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, terms: str) -> jax.Array:
    layout = jax.typeof(weight).sharding.spec
    product = jnp.einsum(terms, b, a, precision="highest", preferred_element_type=jnp.float32, out_sharding=layout)
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)


def _einsum(weight_axes: int, a_axes: int, stacked: bool) -> str:
    """`b @ a` over axes of any number, such as "laz,lzb->lab"."""
    letters = iter(string.ascii_lowercase)
    layer = next(letters) if stacked else ""
    inner = a_axes - 1 - len(layer)
    outer = weight_axes - inner - len(layer)
    out, into = ("".join(next(letters) for _ in range(count)) for count in (outer, inner))
    return f"{layer}{out}z,{layer}z{into}->{layer}{out}{into}"


def export_adapter(
    model: LanguageModel, adapters: Adapters, folder: str | Path, *, scale: float, base: str | None = None
) -> Path:
    """Writes adapters of a model as a folder that `peft` loads; returns the folder.

    `base` is what the folder names as its base model, by default the folder that the model was loaded from. Raises
    UserError where an adapter does not fit the model, or where PEFT's layout has no place for it: weights that lie in
    one tensor in the model's checkpoints (Phi-3's q, k and v) have one adapter there.
    """
    rank = _rank(adapters, model.config)
    table = weight_table(model.config)
    fused = [path for path in adapters if table[path].pick]
    if fused:
        raise UserError(
            f"adapter of {_shown(fused[0])}: shares {table[fused[0]].names[0]} with other weights, "
            "which PEFT adapts as one; export the merged model instead"
        )
    folder = Path(folder)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or str(model.folder),
        "r": rank, "lora_alpha": scale * rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "target_modules": _target_modules(adapters, table),
    }  # fmt: skip
    tensors = [tensor for path, adapter in adapters.items() for tensor in _peft_tensors(table[path], adapter, rank)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
        write_tensors(folder / (ADAPTER_FILE + PARTIAL), tensors)
        os.replace(folder / (ADAPTER_FILE + PARTIAL), folder / ADAPTER_FILE)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); give a folder on a disk with room") from None
    return folder


def _rank(adapters: Adapters, config: DecoderConfig) -> int:
    """The rank that all adapters have; refuses those that do not fit a weight of the model."""
    table = weight_table(config)
    if not adapters:
        raise UserError("there are no adapters; give at least one")
    ranks = set()
    for path, adapter in adapters.items():
        if path not in table or path[0] not in ("layers", "rest") or len(table[path].shape) != 2:
            raise UserError(f"adapter of {_shown(path)}: is not a matrix of a layer of this model; adapt q, down, ...")
        rank = adapter.b.shape[-1]
        expected = _shapes(table[path], rank)
        if (adapter.a.shape, adapter.b.shape) != expected:
            raise UserError(
                f"adapter of {_shown(path)}: a {adapter.a.shape} and b {adapter.b.shape} do not fit; "
                f"make them {expected[0]} and {expected[1]}"
            )
        ranks.add(rank)
    if len(ranks) > 1:
        raise UserError(f"adapters have the ranks {sorted(ranks)}; give all the same rank")
    return ranks.pop()


def _shapes(weight: Weight, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `a` and `b` that fit a weight."""
    shape = weight.part_shape
    # the axes before `split` are rows of the checkpoint's matrix
    split = 1 if shape[0] == weight.shape[0] and not weight.pick else len(shape) - 1
    layers = (len(weight.names),) if weight.stacked else ()
    return (*layers, rank, *shape[split:]), (*layers, *shape[:split], rank)


def _peft_tensors(weight: Weight, adapter: Adapter, rank: int) -> Iterator[HostTensor]:
    a, b = (np.asarray(value, dtype=np.float32) for value in (adapter.a, adapter.b))
    rows, columns = weight.shape
    for layer, name in enumerate(weight.names):
        module = _PREFIX + name.removesuffix(".weight")
        for part, value, shape in (("A", a, (rank, columns)), ("B", b, (rows, rank))):
            values = (value[layer] if weight.stacked else value).reshape(shape)
            yield HostTensor(f"{module}.lora_{part}.weight", shape, values.dtype, functools.partial(np.asarray, values))


def _target_modules(adapters: Adapters, table: Mapping[ParameterPath, Weight]) -> list[str]:
    """The adapted modules: by last name where all layers' are adapted, else each by its full name."""
    adapted = {name.removesuffix(".weight") for path in adapters for name in table[path].names}
    every = {name.removesuffix(".weight") for weight in table.values() for name in weight.names}
    short = {module.rpartition(".")[2] for module in adapted}
    return sorted(short if adapted == {name for name in every if name.rpartition(".")[2] in short} else adapted)


def _shown(path: ParameterPath) -> str:
    return ".".join(map(str, path))


def write_model(model: LanguageModel, folder: Path, base: str) -> None:
    """Writes a tuned model as a Hugging Face folder, or its adapters as PEFT's, which names `base`."""
    if model.config.lora is None:
        export(model, folder)
    else:
        plain, adapters, scale = without_adapters(model)
        held = {path: Adapter(whole(each.a), whole(each.b)) for path, each in adapters.items()}
        on_first_process(lambda: export_adapter(plain, held, folder, scale=scale, base=base))
