"""A wave as a person sees it: a live table on a terminal, a line now and then elsewhere, a summary at its end."""

import logging
import time
from collections.abc import Sequence

from rich.table import Table

from jaxift.console import Reporter
from jaxift.parallel.peaks import peak_flops
from jaxift.tuning.checkpoint import Metrics
from jaxift.tuning.loop import PlannedWave, Wave
from jaxift.tuning.sinks import Together
from jaxift.tuning.watch import Watch

LOG = logging.getLogger("jaxift")
LINE_SECONDS = 30.0
"""Between two lines where there is no terminal."""
SHOWN = 24
"""Cells in the table."""


def execute(planned: PlannedWave, reporter: Reporter, sinks: Sequence[Watch]) -> Wave:
    """Tunes a wave within the reporter's stage, and tells the sinks of every step."""
    live = _Live(reporter, planned)
    wave = planned.execute(Together(live, *sinks))
    live.summary(wave)
    return wave


class _Live(Watch):
    """Shows a wave through the reporter of its stage."""

    def __init__(self, reporter: Reporter, wave: PlannedWave):
        self.reporter, self.planned = reporter, wave
        self.steps = {each.job.name: each.plan.steps for each in wave.members}
        self.latest: dict[str, Metrics] = {}
        self.taken, self._told = 0, time.monotonic()
        if wave.waves > 1:
            self._line(f"wave {wave.number} of {wave.waves}: {len(wave.members)} cells, {wave.memory.told}")

    def step(self, name: str, metrics: Metrics) -> None:
        """Keeps a cell's newest metrics, and shows them."""
        self.taken += 1
        self.latest[name] = metrics
        self.reporter.advance(self.taken, self.planned.steps)
        if self.reporter.console.is_terminal:
            self.reporter.below = self._table()
        elif time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            mean = sum(each["loss"] for each in self.latest.values()) / len(self.latest)
            self._line(f"{self.taken:,} of {self.planned.steps:,} steps, loss {mean:.3f} on the mean of cells")

    def say(self, line: str) -> None:
        """Prints a line at once."""
        self._line(line)

    def summary(self, wave: Wave) -> None:
        """Says where time and memory went."""
        time_of, mesh = wave.timing, wave.stack.like.mesh
        if not time_of.tokens:
            return
        busy = max(time_of.step, 1e-9)
        parts = ("compile", "input", "step", "checkpoint")
        split = ", ".join(f"{name} {getattr(time_of, name):.1f} s" for name in parts)
        peak = peak_flops(mesh.devices.flat[0], str(wave.stack.like.dtype))
        used = f", {time_of.flops / busy / mesh.size / peak:.0%} of the devices' peak" if peak else ""
        self._line(
            f"{time_of.tokens / busy:,.0f} tokens/s ({time_of.tokens / max(time_of.places, 1):.0%} of the places), "
            f"{time_of.flops / busy / 1e9:,.1f} useful GFLOP/s{used}; {split}; "
            f"memory {wave.memory.told}"
        )

    def _line(self, text: str) -> None:
        LOG.info("tune %s", text)
        self.reporter.console.print(f"tune      {text}", highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "step", "loss", "rate", "gradient"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        for name, metrics in list(self.latest.items())[:SHOWN]:
            table.add_row(
                name,
                f"{metrics['step']:.0f}/{self.steps[name]}",
                f"{metrics['loss']:.4f}",
                f"{metrics['learning_rate']:.2e}",
                f"{metrics['grad_norm']:.3f}",
            )
        return table
