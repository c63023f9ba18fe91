"""A safetensors file's header: which tensors it holds, of what type and shape, and where."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from jaxift.errors import UserError
from jaxift.models.files.storage import Storage, read

# What weights may be; the rest of the format's types is known by size alone.
FLOATS: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `dtype` as the format spells it, bytes [start, end) of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(storage: Storage, file: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises UserError, naming file and tensor, unless the header is well formed and the tensors tile the file exactly.
    Format: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data).
    """
    where, size = storage.where(file), storage.sizes()[file]
    if size < 8:
        _refuse(where, f"{size} bytes are too few for a header")
    length = int.from_bytes(read(storage, file, 0, 8), "little")
    if length > min(size - 8, _MAX_HEADER):
        _refuse(where, f"its header of {length} bytes does not fit into {size}")
    fields = _parse(read(storage, file, 8, 8 + length), where)
    tensors = [_tensor(name, file, entry, 8 + length, where) for name, entry in fields.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_tiling(tensors, 8 + length, size, where)
    return {tensor.name: tensor for tensor in tensors}


def _refuse(where: str, problem: str) -> NoReturn:
    raise UserError(f"{where}: damaged or not safetensors ({problem}); copy the file again")


def _parse(header: bytes, where: str) -> dict[str, Any]:
    """The header's entries without its metadata; a name given twice is refused, where JSON would keep the last."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
            _refuse(where, f"{twice} stands twice in its header")
        return fields

    try:
        fields = json.loads(header.decode("utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"its header is not JSON: {error}")
    if not isinstance(fields, dict):
        _refuse(where, "its header is not a JSON object")
    if not isinstance(fields.pop("__metadata__", {}), dict):
        _refuse(where, "__metadata__ is not a JSON object")
    return fields


def _tensor(name: str, file: str, entry: Any, data: int, where: str) -> Tensor:
    """A tensor from its header entry; `data` is where the file's data begins."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(where, f"tensor {name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        _refuse(where, f"tensor {name} has unknown type {dtype!r}")
    if not _counts(shape):
        _refuse(where, f"tensor {name} has shape {shape!r}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(where, f"tensor {name} has data_offsets {offsets!r}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        _refuse(where, f"tensor {name} of {dtype} {shape} has {offsets[1] - offsets[0]} bytes, not {bits // 8}")
    return Tensor(name, file, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _counts(values: Any) -> bool:
    """Whether this is a list of non-negative integers."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_tiling(tensors: list[Tensor], data: int, size: int, where: str) -> None:
    """Refuses overlaps, holes, missing and trailing bytes."""
    at = data
    for tensor in tensors:
        if tensor.start != at:
            _refuse(where, f"tensor {tensor.name} begins at byte {tensor.start}, but the one before it ends at {at}")
        at = tensor.end
    if at > size:
        _refuse(where, f"it is truncated: {size} bytes, but its tensors end at {at}")
    if at < size:
        _refuse(where, f"{size - at} bytes follow the last tensor")
