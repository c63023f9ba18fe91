"""What a person sees while a study runs: live bars on a terminal, a plain line a finished unit elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter:
    """Shows the progress of one stage after another."""

    def __init__(self, console: Console):
        self.console = console
        self._bars: Progress | None = None
        self._detail: TaskID | None = None

    @contextmanager
    def stage(self, name: str, total: int, done: int) -> Iterator[None]:
        """Frames a stage of `total` units, `done` of them finished before."""
        if done == total:
            self.console.print(f"{name:9s} {total} of {total} done before", highlight=False)
            yield
            return
        started = time.monotonic()
        columns = (TextColumn("{task.description:24s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            self._bars, whole = bars, bars.add_task(name, total=total, completed=done)
            self._detail = bars.add_task("", total=None)
            self._whole = whole
            yield
        self._bars = None
        before = f" ({done} done before)" if done else ""
        seconds = time.monotonic() - started
        self.console.print(f"{name:9s} {total} of {total} done in {seconds:.1f} s{before}", highlight=False)

    @contextmanager
    def unit(self, stage: str, name: str, reason: str) -> Iterator[None]:
        """Frames one unit; `reason` says why it is done: missing, or stale and what has changed."""
        started = time.monotonic()
        if self._bars and self._detail is not None:
            self._bars.reset(self._detail, description=f"  {name}", total=None)
        if reason.startswith("stale"):
            self.console.print(f"{stage:9s} {name}: done again, {reason}", highlight=False, markup=False)
        yield
        if self._bars:
            self._bars.advance(self._whole)
        if not self.console.is_terminal:
            seconds = time.monotonic() - started
            self.console.print(f"{stage:9s} {name}: {seconds:.1f} s", highlight=False, markup=False)

    def note(self, stage: str, name: str, text: str) -> None:
        """Says what a unit's result is worth knowing for."""
        self.console.print(f"{stage:9s} {name}: {text}", highlight=False, markup=False)

    def advance(self, done: int, total: int) -> None:
        """Progress inside the current unit."""
        if self._bars and self._detail is not None:
            self._bars.update(self._detail, completed=done, total=total)
