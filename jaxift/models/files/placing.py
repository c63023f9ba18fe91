"""Brings parameters from a checkpoint's files onto the mesh, without ever holding the model on the host twice."""

import collections
import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxift.errors import UserError
from jaxift.models.families import Path, Weight
from jaxift.models.files.conversion import convert, is_finite
from jaxift.models.files.row_plan import Read, plan_reads, taker
from jaxift.models.files.safetensors_file import FLOATS, Tensor
from jaxift.models.files.shard_buffers import Shards, assemble, empty_shards
from jaxift.models.files.storage import Storage
from jaxift.progress import moved

# Host memory for what is on its way to devices that have memory of their own.
STAGING_BYTES = 2.0**30


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of ours: where it lies in the checkpoint, and where it goes."""

    path: Path
    weight: Weight
    shape: tuple[int, ...]
    dtype: np.dtype
    mesh: Mesh
    spec: PartitionSpec

    @property
    def target(self) -> NamedSharding:
        """How it is wanted."""
        return NamedSharding(self.mesh, self.spec)

    @property
    def layout(self) -> NamedSharding:
        """How it is read: as it goes, or, on several processes, so that each byte is read by one of them."""
        return reading_layout(self) if _is_spread(self.target) else self.target


def _is_spread(layout: NamedSharding) -> bool:
    """Whether the mesh has devices of several processes."""
    return len({device.process_index for device in layout.device_set}) > 1


def reading_layout(parameter: Parameter) -> NamedSharding:
    """A sharding over all devices by rows of the file, so that each device's part is one range of bytes a tensor.

    Mesh axes that do not divide the rows split the layers, then the columns; what divides nothing is read repeatedly.
    """
    shape, mesh = parameter.shape, parameter.mesh
    first = 1 if parameter.weight.stacked else 0
    axes: list[list[str]] = [[] for _ in shape]
    for name, size in sorted(mesh.shape.items(), key=lambda item: -item[1]):
        for dim in (*range(first, first + 1), *range(first), *range(first + 1, len(shape))):
            if shape[dim] % (size * math.prod(mesh.shape[taken] for taken in axes[dim])) == 0:
                axes[dim].append(name)
                break
    return NamedSharding(mesh, PartitionSpec(*(tuple(names) or None for names in axes)))


def place(
    parameters: Sequence[Parameter], tensors: Mapping[str, Tensor], storage: Storage
) -> tuple[dict[Path, jax.Array], list[str]]:
    """Reads every parameter onto its devices; returns the arrays by path, and what is wrong with tensors' values.

    Each process reads the rows that its devices need, each once, in blocks that are converted while they are in the
    processor's cache. On CPU the blocks go straight to where JAX keeps them.
    """
    arrays: dict[Path, jax.Array] = {}
    read = _Reader(storage, _is_spread(parameters[0].target))
    with ThreadPoolExecutor(storage.workers) as pool:
        for batch in _batches(parameters, _staging_bytes(parameters[0].target)):
            shards = [empty_shards(part.shape, part.parameter.dtype, part.parameter.layout) for part in batch]
            for _ in pool.map(read, list(_reads(batch, shards, tensors, storage.chunk_bytes))):
                moved()  # and asking for the results raises what a thread raised
            for part, filled in zip(batch, shards, strict=True):
                arrays[part.parameter.path] = _deliver(part, filled, arrays.get(part.parameter.path))
            if len(batch) < len(parameters):  # the next batch needs this one's memory
                jax.block_until_ready([arrays[part.parameter.path] for part in batch])
    return arrays, _problems(read, sorted(tensor.name for tensor in tensors.values()))


@dataclasses.dataclass(frozen=True)
class _Part:
    """Layers [first, ...) of a parameter; all of it where it is not stacked, or need not be cut."""

    parameter: Parameter
    first: int
    shape: tuple[int, ...]

    @property
    def host_bytes(self) -> int:
        """What a process's shards take; the same number on all processes, which must form the same batches."""
        layout = self.parameter.layout
        part = math.prod(layout.shard_shape(self.shape)) * self.parameter.dtype.itemsize
        devices = collections.Counter(device.process_index for device in layout.device_set)
        return part * max(devices.values())

    def layers(self) -> Iterator[tuple[int | None, str]]:
        """Place on the part's leading axis, and name, of each tensor."""
        weight = self.parameter.weight
        if not weight.stacked:
            yield None, weight.names[0]
        else:
            yield from enumerate(weight.names[self.first : self.first + self.shape[0]])


def _staging_bytes(target: NamedSharding) -> float:
    """How much of the model may be on the host: CPU devices keep what was read, others get it batch by batch."""
    on_host = all(device.platform == "cpu" for device in target.device_set)
    return math.inf if on_host and not _is_spread(target) else STAGING_BYTES


def _batches(parameters: Sequence[Parameter], limit: float) -> Iterator[list[_Part]]:
    """Parameters, large ones cut by layers, in batches of about `limit` bytes; sharers of a tensor go together."""
    sharers = collections.defaultdict(list)
    for parameter in parameters:
        sharers[parameter.weight.names].append(parameter)
    batch: list[_Part] = []
    held = 0
    for members in sharers.values():
        for parts in _cut(members, limit):
            size = sum(part.host_bytes for part in parts)
            if batch and held + size > limit:
                yield batch
                batch, held = [], 0
            batch, held = batch + parts, held + size
    yield batch


def _cut(members: Sequence[Parameter], limit: float) -> Iterator[list[_Part]]:
    """Parameters of the same tensors, in runs of layers of at most `limit` bytes where their layers are not sharded."""
    whole = [_Part(parameter, 0, parameter.shape) for parameter in members]
    layers = len(members[0].weight.names)
    apart = all(parameter.weight.stacked and not any(parameter.layout.spec[:1]) for parameter in members)
    size = sum(part.host_bytes for part in whole)
    run = layers if size <= limit else max(int(limit // (size / layers)), 1)
    if not apart or run >= layers:
        yield whole
        return
    for first in range(0, layers, run):
        count = min(run, layers - first)
        yield [_Part(parameter, first, (count, *parameter.shape[1:])) for parameter in members]


def _reads(
    batch: Sequence[_Part], shards: Sequence[Shards], tensors: Mapping[str, Tensor], chunk: int
) -> Iterator[Read]:
    """The reads that fill a batch's shards, in the order of the files' bytes."""
    takers = collections.defaultdict(list)
    for part, filled in zip(batch, shards, strict=True):
        distinct = list({id(shard): shard for shard in filled.values()}.values())
        for layer, name in part.layers():
            takers[name].append(taker(part.parameter.weight, layer, distinct))
    for name in sorted(takers, key=lambda name: (tensors[name].file, tensors[name].start)):
        yield from plan_reads(tensors[name], takers[name], chunk)


class _Reader:
    """Does one read: fetches the block, looks for NaN and infinity, converts it, and hands it to its takers."""

    def __init__(self, storage: Storage, is_spread: bool):
        self.storage, self.is_spread = storage, is_spread
        self.not_finite: set[str] = set()
        self.unread: dict[str, str] = {}
        self._memory = threading.local()

    def __call__(self, read: Read) -> None:
        tensor = read.tensor
        raw = self._scratch("read", read.end - read.start)
        try:
            self.storage.fill(tensor.file, tensor.start + read.start, raw.data)
        except UserError as error:
            if not self.is_spread:
                raise
            self.unread[tensor.name] = str(error)  # the other processes wait: told when all have come this far
            return
        block = raw.view(FLOATS[tensor.dtype])
        converted = self._converted(block, read.takers[0].shards[0].data.dtype)
        narrower = ml_dtypes.finfo(converted.dtype).max < ml_dtypes.finfo(block.dtype).max
        if not is_finite(block) or (narrower and not is_finite(converted)):
            self.not_finite.add(tensor.name)
        for part in read.takers:
            part.take(converted, read.start // ((tensor.end - tensor.start) // part.view[0]))

    def _converted(self, block: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if block.dtype == dtype:
            return block
        out = self._scratch("converted", block.size * dtype.itemsize).view(dtype)
        convert(block, out)
        return out

    def _scratch(self, use: str, size: int) -> np.ndarray:
        """This thread's memory for one use, kept from block to block."""
        held = getattr(self._memory, use, None)
        if held is None or held.nbytes < size:
            held = np.empty(size, np.uint8)
            setattr(self._memory, use, held)
        return held[:size]


def _deliver(part: _Part, shards: Shards, so_far: jax.Array | None) -> jax.Array:
    """The parameter with this part of it in place, laid out as it is wanted."""
    parameter = part.parameter
    value = assemble(part.shape, parameter.layout, shards)
    if parameter.layout != parameter.target:
        with warnings.catch_warnings():  # given away to be freed; few layouts let its memory be used again
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            value = _mover(parameter.target)(value)
    if part.shape == parameter.shape:
        return value
    if so_far is None:
        empty = functools.partial(jnp.zeros, parameter.shape, parameter.dtype)
        so_far = jax.jit(empty, out_shardings=parameter.target)()
    with jax.set_mesh(parameter.mesh):
        return _write_layers(so_far, value, part.first)


@functools.lru_cache(maxsize=64)
def _mover(target: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Moves an array between devices, over their own network."""
    return jax.jit(lambda x: x, out_shardings=target, donate_argnums=0)


@functools.partial(jax.jit, donate_argnums=0)
def _write_layers(whole: jax.Array, part: jax.Array, first: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=0)


def _problems(read: _Reader, names: Sequence[str]) -> list[str]:
    """What any process found wrong with the tensors' values; all processes are told the same."""
    found = np.array([2 if name in read.unread else name in read.not_finite for name in names], np.uint8)
    if read.is_spread:
        found = np.max(multihost_utils.process_allgather(found), axis=0)
    told = {1: "holds NaN or infinity", 2: "could not be read by every process"}
    return [f"tensor {name} {told[code]}" for name, code in zip(names, found.tolist(), strict=True) if code] + [
        *read.unread.values()
    ]
