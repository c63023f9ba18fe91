"""The run directory: where a study's files live, and how a finished piece of work is recognised.

A *unit* is the smallest piece that is done or not done (one domain's probe, one cell's tuning). It owns a folder or a
file name of its own, and is complete when its manifest, written last, names the key (a hash of everything that went in)
that is asked for now. Nothing relies on rename, so that object stores serve as well as disks.
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxift.errors import UserError
from jaxift.progress import moved

STUDY_FILE = "study.yaml"
VERSIONED = ("jaxift", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def digest(value: Any) -> str:
    """Short SHA-256 of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept between runs: `name` below the user's cache folder; not made yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxift" / name


def writable_folder(path: epath.PathLike, what: str) -> epath.Path:
    """Makes a folder, and raises UserError, naming `what` it is for, where files cannot be written into it."""
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".writable"
        trial.write_text("")
        trial.unlink(missing_ok=True)  # another process may try the same folder
    except (OSError, ImportError) as error:
        raise UserError(f"{what} {path}: cannot be written ({error}); give a writable path") from None
    return folder


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory; paths given to its methods are relative to it, with forward slashes."""

    root: epath.Path
    writes: bool = True
    """Whether this process writes here: of several that share the directory, one does."""

    @classmethod
    def create(cls, path: str) -> "RunDirectory":
        """Opens or creates the directory; raises UserError where it cannot be written."""
        return cls(writable_folder(path, "run directory"))

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """Opens an existing run; raises UserError where there is none."""
        root = epath.Path(path)
        if not (root / STUDY_FILE).exists():
            raise UserError(f"run directory {path}: holds no {STUDY_FILE}; give the directory of a started study")
        return cls(root)

    def path(self, relative: str) -> epath.Path:
        """Absolute path of a file; its folder is made."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def exists(self, relative: str) -> bool:
        """Whether a file or folder is there."""
        return (self.root / relative).exists()

    def write_text(self, relative: str, text: str) -> None:
        """Writes a UTF-8 text file."""
        self.write_bytes(relative, text.encode())

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Writes a file."""
        if self.writes:
            self.path(relative).write_bytes(content)
            moved()

    def read_text(self, relative: str) -> str:
        """Reads a UTF-8 text file; raises UserError where it is missing."""
        try:
            return (self.root / relative).read_bytes().decode()
        except FileNotFoundError:
            raise UserError(f"{self.root / relative}: missing; run the stage that writes it first") from None

    def write_json(self, relative: str, value: Any) -> None:
        """Writes a JSON file with sorted keys: the same value gives the same bytes."""
        self.write_text(relative, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def read_json(self, relative: str) -> Any:
        """Reads a JSON file; raises UserError where it is missing or damaged."""
        try:
            return json.loads(self.read_text(relative))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.root / relative}: damaged JSON ({error}); delete it and run the stage again"
            ) from None

    def write_jsonl(self, relative: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes one JSON object a line."""
        self.write_text(relative, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_jsonl(self, relative: str) -> list[dict[str, Any]]:
        """Reads one JSON object a line; raises UserError where the file is missing or damaged."""
        # split at newlines alone: a JSON text may hold U+2028 and the like, which splitlines() takes for line ends
        lines = [line for line in self.read_text(relative).split("\n") if line.strip()]
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.root / relative}: damaged JSON ({error}); run the stage that writes it again"
            ) from None

    def write_rows(self, relative: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows as parquet; all rows have the same keys."""
        if not self.writes:
            return
        with self.path(relative).open("wb") as file:
            pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
        moved()

    def remove(self, relative: str) -> None:
        """Removes a folder with all that is in it."""
        if self.writes:
            self.path(relative).rmtree(missing_ok=True)

    def read_rows(self, relative: str) -> list[dict[str, Any]]:
        """Reads a parquet file as rows; raises UserError where it is missing or damaged."""
        return self.read_table(relative).to_pylist()

    def read_table(self, relative: str) -> pa.Table:
        """Reads a parquet file by columns; raises UserError where it is missing or damaged."""
        path = self.root / relative
        try:
            with path.open("rb") as file:
                return pq.read_table(pa.BufferReader(file.read()))
        except FileNotFoundError:
            raise UserError(f"{path}: missing; run the stage that writes it first") from None
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: damaged parquet ({error}); delete its folder and run the stage again") from None

    def finish(self, unit: str, key: str, files: Sequence[str], **facts: Any) -> None:
        """Marks a unit complete: writes its manifest, last, with the hash of each file it made.

        `files` are relative to the run directory; of a folder among them only the presence is kept. `facts` go into the
        manifest as they are.
        """
        if not self.writes:
            return
        hashes = {name: self._hash(name) for name in files}
        self.write_json(f"{unit}.manifest.json", {"key": key, "files": hashes, "versions": versions(), **facts})

    def _hash(self, relative: str) -> str:
        path = self.root / relative
        return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()[:24]

    def discard(self, unit: str) -> None:
        """Takes back that a unit, and with it the whole run, is complete: its files are about to be made again."""
        for name in (f"{unit}.manifest.json", "manifest.json") if self.writes else ():
            (self.root / name).unlink(missing_ok=True)

    def manifest(self, unit: str) -> dict[str, Any] | None:
        """A unit's manifest, or None where it was never finished (or its manifest is damaged)."""
        path = self.root / f"{unit}.manifest.json"
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return found if isinstance(found, dict) and {"key", "files"} <= set(found) else None

    def state(self, unit: str, key: str) -> str:
        """`done`, `missing` or `stale` (its inputs have changed, or a file that it made is gone or another)."""
        manifest = self.manifest(unit)
        if manifest is None:
            return "missing"
        whole = all(self.exists(name) and self._hash(name) == made for name, made in manifest["files"].items())
        return "done" if manifest["key"] == key and whole else "stale"

    def changed(self, unit: str, inputs: Mapping[str, str]) -> list[str]:
        """Names of a unit's inputs whose digests are others than when it was done; those that it had not among them."""
        before = (self.manifest(unit) or {}).get("inputs", {})
        return [name for name, value in inputs.items() if before.get(name) != value]

    def outputs(self, unit: str) -> str:
        """Digest of what a finished unit made; raises UserError where it is not finished."""
        manifest = self.manifest(unit)
        if manifest is None:
            raise UserError(f"{self.root}: {unit} is not done; run its stage first")
        return digest([manifest["key"], manifest["files"]])
