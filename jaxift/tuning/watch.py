"""What can be watched while models are tuned."""

from jaxift.tuning.checkpoint import Metrics


class Watch:
    """Is told what happens; this one does nothing with it."""

    def step(self, name: str, metrics: Metrics) -> None:
        """A cell has taken a step."""

    def say(self, line: str) -> None:
        """Something that a person should know: a cell has stopped, a checkpoint is damaged."""
