"""SIGTERM, as sent before a machine is taken away: noticed, so that work is saved before it ends."""

import signal
import threading
from types import FrameType

from jaxift.parallel.hosts import process_count


class Terminations:
    """Notices SIGTERM while it is entered; of several processes, at the same step on all.

    With several processes the runtime's own notice is asked, which agrees on a step over all hosts.
    """

    def __init__(self):
        self._asked = False
        self._before = None

    def __enter__(self) -> "Terminations":
        """Takes the signal over, in a program's main thread alone."""
        if threading.current_thread() is threading.main_thread() and process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def noticed(self, step: int) -> bool:
        """Whether the run should save and end after this step; every process must ask for every step."""
        if process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils  # imported here: it is of use to several hosts alone

        return multihost_utils.reached_preemption_sync_point(step)
