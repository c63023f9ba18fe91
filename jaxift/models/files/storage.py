"""Where bytes are read from: the files of a local folder, or of a remote one by range requests."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from fsspec import AbstractFileSystem

from jaxift.errors import UserError


@runtime_checkable
class Storage(Protocol):
    """The files of one folder; reading is safe from several threads."""

    @property
    def chunk_bytes(self) -> int:
        """How much one read should ask for."""
        ...

    @property
    def workers(self) -> int:
        """How many reads should be under way at a time."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by name; -1 for a folder."""
        ...

    def where(self, name: str) -> str:
        """The file as messages name it."""
        ...

    def fill(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` with the file's bytes from `start` on; raises UserError where there are too few."""
        ...


def read(storage: Storage, name: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file."""
    out = bytearray(end - start)
    storage.fill(name, start, memoryview(out))
    return bytes(out)


@dataclasses.dataclass(frozen=True)
class LocalStorage:
    """A local folder. Chunks stay in the processor's cache until they are copied on."""

    root: Path
    shown: str
    chunk_bytes: int = 2 << 20
    workers: int = min(8, (os.cpu_count() or 1) + 1)  # one more than can copy, so that the disk never waits

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by name; -1 for a folder."""
        # stat follows links: the Hub's cache links to its blobs, and a dangling link is an absent file
        found = {}
        try:
            entries = sorted(self.root.iterdir())
        except OSError as error:
            raise UserError(f"{self.shown}: cannot be read ({error.strerror}); give a readable folder") from None
        for entry in entries:
            with contextlib.suppress(OSError):
                found[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
        return found

    def where(self, name: str) -> str:
        """The file's path."""
        return f"{self.shown}/{name}"

    def fill(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` with the file's bytes from `start` on; raises UserError where there are too few."""
        try:
            descriptor = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if hasattr(os, "posix_fadvise"):  # one large request of the disk in place of many small ones
                    os.posix_fadvise(descriptor, start, len(out), os.POSIX_FADV_WILLNEED)
                done = 0
                while done < len(out):
                    count = os.preadv(descriptor, [out[done:]], start + done)
                    if not count:
                        raise UserError(f"{self.where(name)}: ends at byte {start + done}; copy the file again")
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(f"{self.where(name)}: cannot be read ({error.strerror}); copy the file again") from None


@dataclasses.dataclass(frozen=True)
class RemoteStorage:
    """A folder of an object store or the Hub. Few large requests: each waits for the network."""

    files: AbstractFileSystem
    root: str
    shown: str
    listing: Mapping[str, int]
    chunk_bytes: int = 16 << 20
    workers: int = 16

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by name; -1 for a folder."""
        return self.listing

    def where(self, name: str) -> str:
        """The file's address."""
        return f"{self.shown}/{name}"

    def fill(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` with the file's bytes from `start` on; raises UserError where there are too few."""
        if not len(out):
            return  # an empty range is the whole file to some servers
        try:
            found = cast(bytes, self.files.cat_file(f"{self.root}/{name}", start=start, end=start + len(out)))
        except Exception as error:  # every file system has exceptions of its own
            reason = str(error) or type(error).__name__
            raise UserError(f"{self.where(name)}: cannot be read ({reason}); try again") from None
        if len(found) != len(out):
            raise UserError(f"{self.where(name)}: gave {len(found)} bytes of {len(out)} at {start}; copy it again")
        out[:] = found
