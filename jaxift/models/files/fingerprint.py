"""What tells one model from another without reading all of it."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxift.errors import UserError
from jaxift.models.files.folder import ORBAX_FOLDER, ModelFolder, open_model
from jaxift.models.files.safetensors_file import read_header
from jaxift.models.files.storage import Storage, read

_SMALL = (".json", ".model", ".txt", ".jinja")
_SAMPLE = 1 << 12


def fingerprint(model: str | Path | ModelFolder) -> str:
    """Hash that tells models apart: small files whole, of safetensors the header and both ends of each tensor.

    Reading all of a large checkpoint would take longer than loading it. Raises UserError where there is no such model.
    """
    model = model if isinstance(model, ModelFolder) else open_model(model)
    total = hashlib.sha256()
    for name, size in sorted(model.storage.sizes().items()):
        if name.endswith(_SMALL) and size >= 0:
            total.update(name.encode() + read(model.storage, name, 0, size))
        elif name.endswith(".safetensors") and size >= 0:
            total.update(name.encode())
            for sample in _samples(model.storage, name, size):
                total.update(sample)
        elif name == ORBAX_FOLDER:
            for sample in _orbax_samples(model.local / name):
                total.update(sample)
    return total.hexdigest()[:24]


def _samples(storage: Storage, name: str, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, then up to 4 KiB at both ends of each tensor; of a damaged file its start."""
    try:
        tensors = read_header(storage, name).values()
    except UserError:  # the loader will say what is wrong
        yield read(storage, name, 0, min(size, _SAMPLE))
        return
    yield read(storage, name, 8, min([size, *(tensor.start for tensor in tensors)]))
    places = [
        (at, min(at + _SAMPLE, tensor.end))
        for tensor in tensors
        for at in (tensor.start, max(tensor.start, tensor.end - _SAMPLE))
    ]
    with ThreadPoolExecutor(storage.workers) as pool:  # remote reads wait for the network, not for each other
        yield from pool.map(lambda place: read(storage, name, *place), places)


def _orbax_samples(folder: Path) -> Iterator[bytes]:
    """Name, size and both ends of every file below a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        yield f"{path.relative_to(folder).as_posix()} {size}".encode()
        with path.open("rb") as file:
            yield file.read(_SAMPLE)
            file.seek(max(0, size - _SAMPLE))
            yield file.read(_SAMPLE)
