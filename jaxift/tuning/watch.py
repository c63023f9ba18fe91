"""What can be watched while models are tuned."""

from collections.abc import Callable

from jaxift.models.weights import LanguageModel
from jaxift.tuning.checkpoint import Metrics


class Watch:
    """Is told what happens; this one does nothing with it."""

    def begins(self, name: str) -> None:
        """A cell begins at its first step: what an earlier run left of it is of no use, in all processes."""

    def step(self, name: str, metrics: Metrics) -> None:
        """A cell has taken a step."""

    def model(self, name: str, step: int, model: Callable[[], LanguageModel]) -> None:
        """A cell as it is after a step of `tune.export_every`, in all processes."""

    def say(self, line: str) -> None:
        """Something that a person should know: a cell has stopped, a checkpoint is damaged."""
