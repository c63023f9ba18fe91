"""Where a model's files are: a local folder, a model of the Hugging Face Hub, or a folder behind an address."""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
import huggingface_hub
import jax
from huggingface_hub.errors import GatedRepoError

from jaxift.artifacts import cache_folder
from jaxift.errors import UserError
from jaxift.models.files.shards import INDEX_FILE, WEIGHTS_FILE, absent
from jaxift.models.files.storage import LocalStorage, RemoteStorage, Storage

_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
# Config, index and tokenizer: what a model's folder holds beside its weights. Pickles are not among them.
_SMALL = (".json", ".txt", ".model", ".jinja")
_MAX_SMALL = 1 << 28
ORBAX_FOLDER = "orbax"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model's files: `storage` reads the weights, `local` holds config and tokenizer, users call it `shown`."""

    shown: str
    local: Path
    storage: Storage
    has_all_names: bool = True
    """Whether `storage` lists the weights; a Hub model of which only the small files are here does not."""

    @property
    def root(self) -> str:
        """The folder itself: a local path, or the address."""
        return str(self.local) if isinstance(self.storage, LocalStorage) else self.shown

    @property
    def is_orbax(self) -> bool:
        """Whether `jaxift convert` wrote it."""
        return ORBAX_FOLDER in self.storage.sizes()


def open_model(path: str | Path, *, weights: bool = True) -> ModelFolder:
    """Finds a model: a local folder, `owner/name` or `owner/name@revision` on the Hub, or `gs://` and its like.

    A Hub model is downloaded (without its weights where `weights` is false), except on several processes, which read
    their own part of it. Of a remote folder the small files are copied, at each call, since they may have changed.
    Raises UserError where there is no such model or it cannot be reached.
    """
    text = str(path)
    if "://" in text:
        return _open_remote(text.rstrip("/"), text.rstrip("/"))
    folder = Path(text)
    if folder.is_dir():
        return ModelFolder(text, folder, LocalStorage(folder, str(folder)))
    hub = _HUB_ID.fullmatch(text)
    if hub is None:
        raise UserError(f"{folder}: no such model folder; give one with config.json and {WEIGHTS_FILE}")
    if jax.process_count() > 1:
        return _open_remote(f"hf://{text}", text)
    downloaded = _download(text, hub["name"], hub["revision"], weights)
    return ModelFolder(text, downloaded, LocalStorage(downloaded, text), weights)


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """Reads config.json; raises UserError where it is missing or not a JSON object."""
    return _config(Path(folder) / "config.json", f"{folder}/config.json")


def model_config(model: ModelFolder) -> dict[str, Any]:
    """A model's config.json; raises UserError where it is missing or not a JSON object."""
    return _config(model.local / "config.json", model.storage.where("config.json"))


def _config(path: Path, where: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: missing; give a Hugging Face model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{where}: not a JSON object; give a Hugging Face model folder")
    return config


def _download(shown: str, name: str, revision: str | None, weights: bool) -> Path:
    """Downloads a Hub model's top-level files, or finds them in the Hub's own cache."""
    patterns = [f"*{suffix}" for suffix in _SMALL]
    try:
        folder = _snapshot(name, revision, patterns)
        if weights:
            named = _weight_names(folder)
            folder = _snapshot(name, revision, [*patterns, *named])
            if named == [WEIGHTS_FILE] and not (folder / WEIGHTS_FILE).exists():
                others = huggingface_hub.list_repo_files(name, revision=revision)
                raise UserError(f"{shown}: {absent(others)}")
    except GatedRepoError:
        raise UserError(
            f"{shown}: access to it must be granted; ask at https://huggingface.co/{name} and run `hf auth login`"
        ) from None
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{shown}: no such folder here, and not to be had from the Hugging Face Hub ({reason}); "
            "check the name, or give a local folder"
        ) from None
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    # files in subfolders are other formats of the same weights
    return Path(
        huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    )


def _weight_names(folder: Path) -> list[str]:
    """The weight files that a model's index names; without an index there is one file."""
    try:
        named = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(file) for file in named})
    except FileNotFoundError:
        return [WEIGHTS_FILE]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []  # reading the index will say what is wrong


def _open_remote(address: str, shown: str) -> ModelFolder:
    """A folder behind an address: its weights stay there, its small files are copied."""
    try:
        files, root = fsspec.core.url_to_fs(address)
        files.invalidate_cache()
        entries = files.ls(root, detail=True)
    except ImportError as error:
        raise UserError(f"{shown}: {error}; for gs:// install jaxift[gcs]") from None
    except FileNotFoundError:
        raise UserError(f"{shown}: no such model folder; give one with config.json and {WEIGHTS_FILE}") from None
    except Exception as error:  # every file system has exceptions of its own
        reason = str(error) or type(error).__name__
        raise UserError(f"{shown}: cannot be reached ({reason}); check the address") from None
    sizes = {
        PurePosixPath(entry["name"]).name: int(entry["size"] or 0) if entry["type"] == "file" else -1
        for entry in entries
    }
    storage = RemoteStorage(files, root, shown, sizes)
    return ModelFolder(shown, _copy_small(storage, address), storage)


def _copy_small(storage: RemoteStorage, address: str) -> Path:
    """Copies config, index and tokenizer into the cache; files that are gone there go here."""
    folder = cache_folder("models") / hashlib.sha256(address.encode()).hexdigest()[:24]
    wanted = {name: size for name, size in storage.listing.items() if name.endswith(_SMALL) and 0 <= size <= _MAX_SMALL}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in wanted.items():
            content = bytearray(size)
            storage.fill(name, 0, memoryview(content))
            # another process may be reading the old file
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(content)
            os.replace(file.name, folder / name)
        for path in folder.iterdir():
            if path.name not in wanted and path.name.endswith(_SMALL):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); set XDG_CACHE_HOME to a writable folder") from None
    return folder
