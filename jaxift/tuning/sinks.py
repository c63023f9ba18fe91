"""Where the metrics of cells go while they are tuned, beside their files: TensorBoard, Weights & Biases."""

import contextlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.tuning.checkpoint import Metrics
from jaxift.tuning.watch import Watch


class TensorBoard(Watch):
    """Writes an event file a cell, in a folder of its name."""

    def __init__(self, folder: epath.PathLike):
        from tensorboardX import SummaryWriter  # imported here: it brings protobuf

        self._make, self.folder = SummaryWriter, folder
        self._writers: dict[str, Any] = {}

    def step(self, name: str, metrics: Metrics) -> None:
        """Adds a step's metrics."""
        if name not in self._writers:
            self._writers[name] = self._make(f"{self.folder}/{name}")
        for metric, value in metrics.items():
            if metric != "step":
                self._writers[name].add_scalar(f"tune/{metric}", value, int(metrics["step"]))

    def close(self) -> None:
        """Writes what is buffered."""
        for writer in self._writers.values():
            writer.close()


class Wandb(Watch):
    """Logs a run a cell."""

    def __init__(self, project: str, group: str):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("tune.wandb: Weights & Biases is not installed; install jaxift[wandb]") from None
        self._wandb, self.project, self.group = wandb, project, group
        self._runs: dict[str, Any] = {}

    def step(self, name: str, metrics: Metrics) -> None:
        """Logs a step's metrics."""
        if name not in self._runs:
            self._runs[name] = self._wandb.init(
                project=self.project, group=self.group, name=name, id=f"{self.group}-{name}", resume="allow",
                reinit="create_new",
            )  # fmt: skip
        values = {f"tune/{metric}": value for metric, value in metrics.items() if metric != "step"}
        self._runs[name].log(values, step=int(metrics["step"]))

    def close(self) -> None:
        """Ends all runs."""
        for run in self._runs.values():
            run.finish()


class Together(Watch):
    """Tells several."""

    def __init__(self, *watches: Watch):
        self.watches = watches

    def step(self, name: str, metrics: Metrics) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.step(name, metrics)

    def say(self, line: str) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.say(line)


@contextlib.contextmanager
def sinks(settings: TuneConfig, folder: epath.PathLike, group: str) -> Iterator[list[Watch]]:
    """What the settings ask for, opened, and closed at the end: event files in `folder`, runs of the `group`."""
    opened: list[Any] = []
    with contextlib.ExitStack() as stack:
        if settings.tensorboard:
            opened.append(stack.enter_context(contextlib.closing(TensorBoard(folder))))
        if settings.wandb:
            opened.append(stack.enter_context(contextlib.closing(Wandb(settings.wandb, group))))
        yield opened
