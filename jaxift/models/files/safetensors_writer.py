"""Writes safetensors files tensor by tensor: the host holds one tensor at a time, and no file is half written."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxift.models.files.safetensors_file import FLOATS
from jaxift.models.files.shards import INDEX_FILE, WEIGHTS_FILE

PARTIAL = ".partial"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_CODES = {dtype: code for code, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class HostTensor:
    """A tensor to be written: its name, shape and dtype, and the call that brings its elements to the host."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_files(tensors: Sequence[HostTensor], max_shard_bytes: int) -> dict[str, list[HostTensor]]:
    """File name -> its tensors, in their order: one file where they fit, else several of at most that size.

    A tensor that is larger than `max_shard_bytes` has a file to itself.
    """
    shards: list[list[HostTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.size
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


@contextlib.contextmanager
def partial_files(folder: Path, files: dict[str, list[HostTensor]]) -> Iterator[None]:
    """Writes every file under a name of its own, which nothing reads; removes what is left of them at the end."""
    try:
        for name, tensors in files.items():
            write_tensors(folder / (name + PARTIAL), tensors)
        yield
    finally:
        for name in files:
            (folder / (name + PARTIAL)).unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Iterable[HostTensor]) -> None:
    """Writes one safetensors file, each tensor brought to the host when its turn comes."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # every element aligned to its size
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.size
        fields[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in ordered:
            file.write(_bytes(tensor))


def _bytes(tensor: HostTensor) -> memoryview:
    values = np.ascontiguousarray(tensor.read())
    if (values.shape, values.dtype) != (tensor.shape, tensor.dtype):
        raise ValueError(f"{tensor.name} is {values.dtype} {values.shape}, not {tensor.dtype} {tensor.shape}")
    return values.reshape(-1).view(np.uint8).data


def index_of(files: dict[str, list[HostTensor]]) -> str | None:
    """Text of the index that tells which tensor lies in which of several files; None for a single file."""
    if WEIGHTS_FILE in files:
        return None
    total = sum(tensor.size for tensors in files.values() for tensor in tensors)
    weight_map = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def is_weights_file(name: str) -> bool:
    """Whether a file's name is one that the writer gives: weights, index, or what an interrupted run left of them."""
    stem = name.removesuffix(PARTIAL)
    return name == INDEX_FILE or stem == WEIGHTS_FILE or _SHARD.fullmatch(stem) is not None
