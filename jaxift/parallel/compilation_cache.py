"""Compiled programs kept between runs of the command line: on by default, bounded, and never in a run's way.

JAX's own persistent compilation cache does the work, and its own settings win. JAX is not needed until it compiles.
"""

import contextlib
import glob
import hashlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jaxift.artifacts import cache_folder
from jaxift.errors import UserError, printable

SWITCH = "JAXIFT_COMPILATION_CACHE"
FOLDER = "JAX_COMPILATION_CACHE_DIR"
BOUND = 4 * 2**30
"""Bytes that stay in the default folder when a run ends."""
_TROUBLE = re.compile(
    r"Error (?P<doing>reading|writing) persistent compilation cache entry for '(?P<program>.*?)': (?P<why>.*)",
    re.DOTALL,
)
# what a damaged entry raises: zlib, zstd, XLA; anything else (no network, no permission) says nothing of the entry
_DAMAGE = re.compile(r"(error|ZstdError|EOFError|JaxRuntimeError|XlaRuntimeError|ValueError): ")


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Frames a command line: sets the cache up before JAX is imported, and at the end says what came from it.

    Raises UserError where the switch has a value that it does not know.
    """
    folder = configure()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", "Error (reading|writing) persistent compilation cache")
        warnings.showwarning = _Notices(folder, warnings.showwarning)
        try:
            yield
            _say_counts()
        finally:
            default = default_folder()
            # a folder of the user's own may hold others' programs, and where JAX is told a size, it cleans itself
            if folder == str(default) and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
                clean(default, BOUND)


def configure() -> str | None:
    """Sets JAX's environment variables that are not set, and returns the cache's folder or address; None: it is off."""
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UserError(f"{SWITCH}={switch}: give on or off; {FOLDER} says where the programs are kept")
    folder = os.environ.setdefault(FOLDER, str(default_folder()))
    if switch == "off" or not folder:
        # an empty folder alone would leave XLA's own caches in the working directory
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return None
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    return folder


def default_folder() -> Path:
    """Where programs are kept unless the user says otherwise.

    One for each kind of processor: programs for CPUs hold its instructions, and a home may be shared between machines.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    features = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    kind = f"{platform.machine()} {features.group() if features else platform.processor()}"
    return cache_folder("programs") / hashlib.sha256(kind.encode()).hexdigest()[:12]


def clean(folder: Path, bound: int) -> None:
    """Removes the entries that were not used for the longest time until the others have at most `bound` bytes."""
    entries = []
    with contextlib.suppress(OSError):  # there is none yet
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another run has removed it
                state = path.stat()
                # file systems keep the time of reading by the day, or not at all: then the oldest go
                entries.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    left = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if left <= bound:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            left -= size


class _Notices:
    """Shows warnings as before, but JAX's of the cache as one line each for reading and writing.

    A damaged entry is removed: JAX never writes over an entry, and would find it damaged for ever.
    """

    def __init__(self, folder: str | None, otherwise: Callable[..., Any]):
        self.folder, self.otherwise = folder, otherwise
        self.told: set[str] = set()

    def __call__(self, message: Warning | str, *place: Any, **more: Any) -> None:
        found = _TROUBLE.match(str(message))
        if found is None or self.folder is None:
            self.otherwise(message, *place, **more)
            return
        doing, program, why = found["doing"], found["program"], " ".join(found["why"].split())[:200]
        damaged = doing == "reading" and _DAMAGE.match(why) is not None
        if damaged and _is_first_process():
            _remove(self.folder, program)
        if doing not in self.told:
            self.told.add(doing)
            line = f"{program} is damaged: removed and compiled anew ({why})"
            if not damaged:
                line = f"{doing} failed ({why}); the run goes on without ({FOLDER} moves it, {SWITCH}=off turns it off)"
            print(printable(f"jaxift: compilation cache {self.folder}: {line}"), file=sys.stderr)


def _remove(folder: str, program: str) -> None:
    """Removes every entry of a program's name: which one was damaged is not told."""
    with contextlib.suppress(OSError, ImportError):
        for path in epath.Path(folder).glob(f"{glob.escape(program)}-*"):
            path.unlink(missing_ok=True)


def _is_first_process() -> bool:
    """Whether this is the one process that JAX lets write entries; JAX is at work where this is asked."""
    from jaxift.parallel.hosts import process_index

    return process_index() == 0


def _say_counts() -> None:
    """Says how many programs came from the cache, where it is in use and had something to do."""
    if "jaxift.parallel.compilations" not in sys.modules:
        return
    import jax

    from jaxift.parallel.compilations import total

    if jax.config.values["jax_enable_compilation_cache"] and (total.cached or total.compiled) and _is_first_process():
        print(f"jaxift: {total.sentence()}", file=sys.stderr)
