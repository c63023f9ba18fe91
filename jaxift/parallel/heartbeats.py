"""Signs of life: each process writes one into the coordinator's store every few seconds, and reads the others'.

A sign says where its process is, and at its end how it ended. How old a sign is, each reader measures by its own clock.
"""

import dataclasses
import json
import threading
import time
from typing import Any

from jaxift import progress

PERIOD = 2.0  # seconds between two signs
FOLDER = "jaxift/alive"
MARK_SECONDS = 2.0  # that an end may take to be told


@dataclasses.dataclass
class Sign:
    """The newest sign of one process, and since when it is there, on this process' monotonic clock."""

    number: int
    position: str
    still: float
    """Seconds since its process had got anywhere."""
    ended: int | None = None
    """Its exit code, when it has one."""
    line: str = ""
    """What it said at its end."""
    abrupt: bool = False
    """Whether it left without waiting for the others."""
    since: float = 0.0


class Heartbeats:
    """Sends this process' signs and keeps the others'; `start` it once."""

    def __init__(self, client: Any, process: int, processes: int, period: float = PERIOD):
        self.client, self.process, self.processes, self.period = client, process, processes, period
        now = time.monotonic()
        self.signs = {other: Sign(-1, "", 0.0, since=now) for other in range(processes) if other != process}
        self.answered = now
        """When the coordinator answered last."""
        self._number, self._ended = 0, (None, "", False)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> None:
        """Sends no more, and returns when nothing is under way, within a few seconds."""
        self._stop.set()
        self._thread.join(2 * self.period)

    def mark(self, code: int, line: str, abrupt: bool = False) -> None:
        """Tells the others how this process ends; gives up after a moment where the coordinator does not answer."""
        self._ended = (code, line, abrupt)
        sending = threading.Thread(target=self._exchange, daemon=True)
        sending.start()
        sending.join(MARK_SECONDS)

    def all_ended(self) -> bool:
        """Whether every other process has told its end."""
        return all(sign.ended is not None for sign in self.signs.values())

    def silent(self, now: float) -> dict[int, float]:
        """Seconds since each other process' last sign; those that have ended owe none."""
        return {other: now - sign.since for other, sign in self.signs.items() if sign.ended is None}

    def forgive(self, seconds: float) -> None:
        """Leaves out of all ages a time in which this process itself stood still."""
        self.answered += seconds
        for sign in self.signs.values():
            sign.since += seconds

    def _beat(self) -> None:
        while not self._stop.is_set():
            self._exchange()
            self._stop.wait(self.period)

    def _exchange(self) -> None:
        import jax

        try:
            with self._lock:
                self._send()
                self._receive()
        except jax.errors.JaxRuntimeError:  # how long the coordinator has not answered is what counts
            return
        self.answered = time.monotonic()

    def _send(self) -> None:
        self._number += 1
        code, line, abrupt = self._ended
        told = {
            "number": self._number, "position": progress.here.told, "ended": code, "line": line, "abrupt": abrupt,
            "still": round(time.monotonic() - progress.here.moved_at, 1),
        }  # fmt: skip
        self.client.key_value_set(f"{FOLDER}/{self.process}", json.dumps(told), allow_overwrite=True)

    def _receive(self) -> None:
        now = time.monotonic()
        for key, text in self.client.key_value_dir_get(FOLDER):
            other, told = int(key.rpartition("/")[2]), json.loads(text)
            if other != self.process and told["number"] != self.signs[other].number:
                self.signs[other] = Sign(**told, since=now)
