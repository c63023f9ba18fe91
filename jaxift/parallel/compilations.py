"""How many programs this process compiled, and how many it took from the cache: JAX's own events, counted."""

import dataclasses
import threading
from typing import Any

import jax
import jax.monitoring

# recorded around every compilation, also where the program came from the cache; the two others come before it, in the
# same thread, where it did
COMPILED = "/jax/core/compile/backend_compile_duration"
FOUND = "/jax/compilation_cache/cache_hits"
SAVED = "/jax/compilation_cache/compile_time_saved_sec"


@dataclasses.dataclass
class Compilations:
    """Programs so far; small are those compiled too quickly to be kept. Seconds saved are those that compiling took."""

    cached: int = 0
    compiled: int = 0
    small: int = 0
    cached_seconds: float = 0.0
    compiled_seconds: float = 0.0
    small_seconds: float = 0.0
    saved_seconds: float = 0.0

    def sentence(self) -> str:
        """The counts in a line."""
        parts = [f"{self.cached} from the cache", f"{self.compiled} compiled"]
        saved = f"; {self.saved_seconds:.0f} s saved" if self.saved_seconds >= 1 else ""
        small = f"; {self.small} small ones in {self.small_seconds:.1f} s" if self.small else ""
        return f"programs: {', '.join(parts)} ({self.compiled_seconds:.1f} s{saved}){small}"


total = Compilations()
_lock = threading.Lock()
_here = threading.local()  # what the compilation under way in this thread has told so far
_listening = False


def listen() -> None:
    """Begins to count; without effect the second time."""
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_listener(_event)
            jax.monitoring.register_event_duration_secs_listener(_duration)
            _listening = True


def record() -> dict[str, Any]:
    """The counts so far, rounded, for a manifest or a log."""
    return {name: round(value, 3) for name, value in dataclasses.asdict(total).items()}


def _event(event: str, **_: Any) -> None:
    if event == FOUND:
        _here.found = True


def _duration(event: str, duration_secs: float, **_: Any) -> None:
    if event == SAVED:
        with _lock:
            total.saved_seconds += max(duration_secs, 0.0)  # JAX keeps whole seconds: what took less seems to cost time
    elif event == COMPILED:
        found, _here.found = getattr(_here, "found", False), False
        kept = duration_secs >= jax.config.values["jax_persistent_cache_min_compile_time_secs"]
        kind = "cached" if found else "compiled" if kept else "small"
        with _lock:
            setattr(total, kind, getattr(total, kind) + 1)
            setattr(total, f"{kind}_seconds", getattr(total, f"{kind}_seconds") + duration_secs)
