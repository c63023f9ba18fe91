"""What a person sees while a study runs: live bars on a terminal, a plain line a finished unit elsewhere."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jaxift import progress

LOG = logging.getLogger("jaxift")


@dataclasses.dataclass
class Stage:
    """How far a stage has come when it is left."""

    now: int


class Reporter:
    """Shows the progress of one stage after another."""

    def __init__(self, console: Console):
        self.console = console
        self.below: RenderableType = ""
        """What a terminal shows below the bars."""
        self._bars: Progress | None = None
        self._detail: TaskID | None = None
        self._whole: TaskID | None = None

    @contextmanager
    def stage(self, name: str, total: int, done: int) -> Iterator[Stage]:
        """Frames a stage of `total` units, `done` of them finished before; whoever leaves units for later says so."""
        stage = Stage(total)
        progress.at(name)
        LOG.info("%s: %d of %d done before", name, done, total)
        if done == total:
            self.console.print(f"{name:9s} {total} of {total} done before", highlight=False)
            yield stage
            return
        started = time.monotonic()
        columns = (TextColumn("{task.description:24s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bars = Progress(*columns, console=self.console)
        self._bars, self._whole = bars, bars.add_task(name, total=total, completed=done)
        self._detail, self.below = bars.add_task("", total=None), ""
        shown = Live(
            get_renderable=lambda: Group(bars, self.below), console=self.console, transient=True, refresh_per_second=4
        )
        try:
            with shown if self.console.is_terminal else nullcontext():
                yield stage
        finally:
            self._bars = None
        before = f" ({done} done before)" if done else ""
        seconds = time.monotonic() - started
        LOG.info("%s: %d of %d done in %.1f s", name, stage.now, total, seconds)
        self.console.print(f"{name:9s} {stage.now} of {total} done in {seconds:.1f} s{before}", highlight=False)

    def reason(self, stage: str, name: str, state: str) -> None:
        """Says why a unit that was done is done again; `state` is missing, or stale and what has changed."""
        if state.startswith("stale"):
            LOG.info("%s %s: done again, %s", stage, name, state)
            self.console.print(f"{stage:9s} {name}: done again, {state}", highlight=False, markup=False)

    @contextmanager
    def unit(self, stage: str, name: str, units: int = 1) -> Iterator[None]:
        """Frames one unit, or several that are done together."""
        started = time.monotonic()
        progress.at(stage, name)
        LOG.info("%s %s: begins", stage, name)
        if self._bars and self._detail is not None:
            self._bars.reset(self._detail, description=f"  {name}", total=None)
        yield
        if self._bars and self._whole is not None:
            self._bars.advance(self._whole, units)
        seconds = time.monotonic() - started
        LOG.info("%s %s: %.1f s", stage, name, seconds)
        if not self.console.is_terminal:
            self.console.print(f"{stage:9s} {name}: {seconds:.1f} s", highlight=False, markup=False)

    def note(self, stage: str, name: str, text: str) -> None:
        """Says what a unit's result is worth knowing for."""
        LOG.info("%s %s: %s", stage, name, text)
        self.console.print(f"{stage:9s} {name}: {text}", highlight=False, markup=False)

    def advance(self, done: int, total: int) -> None:
        """Progress inside the current unit."""
        progress.moved()
        if self._bars and self._detail is not None:
            self._bars.update(self._detail, completed=done, total=total)
