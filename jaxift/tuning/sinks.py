"""Where the metrics of cells go while they are tuned, beside their files: TensorBoard, Weights & Biases."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.adapters import write_model
from jaxift.models.weights import LanguageModel
from jaxift.parallel.hosts import is_first
from jaxift.parallel.meeting import on_first_process
from jaxift.tuning.checkpoint import Metrics
from jaxift.tuning.watch import Watch

STEPS = "steps"
"""Where models on their way are, in the folder of their cell."""


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


class Steps(Watch):
    """Writes the models on their way, each into a folder called by its step, in `steps` of its cell's folder."""

    def __init__(self, folder: Callable[[str], epath.PathLike], base: str):
        self.folder, self.base = folder, base

    def begins(self, name: str) -> None:
        """Removes those of an earlier run."""
        on_first_process(lambda: epath.Path(self._steps(name)).rmtree(missing_ok=True))

    def model(self, name: str, step: int, model: Callable[[], LanguageModel]) -> None:
        """Writes a model."""
        write_model(model(), self._steps(name) / f"{step:06d}", self.base)

    def _steps(self, name: str) -> Path:
        return Path(self.folder(name)) / STEPS


class Together(Watch):
    """Tells several."""

    def __init__(self, *watches: Watch):
        self.watches = watches

    def begins(self, name: str) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.begins(name)

    def step(self, name: str, metrics: Metrics) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.step(name, metrics)

    def model(self, name: str, step: int, model: Callable[[], LanguageModel]) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.model(name, step, model)

    def say(self, line: str) -> None:
        """Tells all."""
        for watch in self.watches:
            watch.say(line)


@contextlib.contextmanager
def sinks(
    settings: TuneConfig, folder: epath.PathLike, group: str, cell: Callable[[str], epath.PathLike], base: str
) -> Iterator[list[Watch]]:
    """What the settings ask for, opened, and closed at the end.

    Event files go into `folder`, runs are of the `group`, models on their way go below the folder `cell(name)`; `base`
    is what adapters belong to.
    """
    opened: list[Any] = [Steps(cell, base)] if settings.export_every else []
    with contextlib.ExitStack() as stack:
        if settings.tensorboard and is_first():
            opened.append(stack.enter_context(contextlib.closing(TensorBoard(folder))))
        if settings.wandb and is_first():
            opened.append(stack.enter_context(contextlib.closing(Wandb(settings.wandb, group))))
        yield opened
