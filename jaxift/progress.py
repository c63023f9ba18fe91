"""When this process last got anywhere and what it is at, for whoever watches that it does not stand still."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

WORKING, COMPILING, WAITING = "working", "compiling", "waiting"


@dataclasses.dataclass
class Position:
    """Where a process is; written by the one that works, read by the thread that watches."""

    stage: str = ""
    unit: str = ""
    phase: str = WORKING
    waits_for: str = ""
    moved_at: float = dataclasses.field(default_factory=time.monotonic)
    """When something was finished last, on the monotonic clock."""

    @property
    def told(self) -> str:
        """Stage and unit in words."""
        return " ".join(part for part in (self.stage, self.unit) if part) or "its start"


here = Position()


def moved() -> None:
    """Something was finished: a step, a part, a file."""
    here.moved_at = time.monotonic()


def at(stage: str, unit: str = "") -> None:
    """A stage, or a unit of it, begins."""
    here.stage, here.unit = stage, unit
    moved()


@contextlib.contextmanager
def phase(kind: str, waits_for: str = "") -> Iterator[None]:
    """Frames what has a limit of its own: compilation, or waiting for another process."""
    before = here.phase, here.waits_for
    here.phase, here.waits_for = kind, waits_for
    moved()
    try:
        yield
    finally:
        here.phase, here.waits_for = before
        moved()
