"""Looks whether all hosts are there and this one gets anywhere; where not, says who is missing and ends the process.

A thread of its own: when another host is gone, the main thread may hang for ever inside a collective.
"""

import dataclasses
import threading
import time
from collections.abc import Callable

from jaxift import progress
from jaxift.errors import HostLost
from jaxift.parallel.heartbeats import Heartbeats
from jaxift.parallel.hosts import HOST_TIMEOUT, named, process_index

STALL_TIMEOUT = 1800.0
"""Seconds without progress after which one of several hosts counts as stuck."""
COMPILING = 4
"""Times as long compilation may take."""
GRACE = 5.0
"""Seconds that a host which sees that another has failed is given to come to the same end by itself."""
LOOK = 0.5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why a process is to end: its exit code, the line, and whether it is this process that stands still."""

    code: int
    line: str
    stuck: bool = False


class Watchdog:
    """Calls `end` with a verdict, from a thread of its own, as soon as there is one.

    `stall_timeout` 0 never finds this process stuck; without `heartbeats` there is no other one to be missed.
    """

    def __init__(
        self,
        end: Callable[[Verdict], None],
        heartbeats: Heartbeats | None = None,
        host_timeout: float = HOST_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
    ):
        self.end, self.heartbeats = end, heartbeats
        self.host_timeout, self.stall_timeout = host_timeout, stall_timeout
        self._looked, self._stop = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stop.set()

    def look(self, now: float) -> Verdict | None:
        """What is to be said at a time of the monotonic clock."""
        asleep, self._looked = now - self._looked, now
        if asleep > max(10 * LOOK, self.host_timeout / 4):  # the whole process was stopped, or its machine
            if self.heartbeats:
                self.heartbeats.forgive(asleep)
            progress.here.moved_at += asleep
        return self.missing(now, self.host_timeout) or self._failed(now) or self._stalled(now)

    def missing(self, now: float, timeout: float) -> Verdict | None:
        """The hosts that gave no sign of life for so long."""
        if self.heartbeats is None:
            return None
        if process_index() and now - self.heartbeats.answered > timeout:
            return Verdict(3, str(HostLost(f"{named(0)} does not answer since {now - self.heartbeats.answered:.0f} s")))
        lost = {other: age for other, age in self.heartbeats.silent(now).items() if age > timeout}
        if not lost:
            return None
        who = ", ".join(named(other) for other in sorted(lost))
        return Verdict(3, str(HostLost(f"{who} gave no sign of life for {max(lost.values()):.0f} s, is lost")))

    def _failed(self, now: float) -> Verdict | None:
        """A host that has ended otherwise than well; each is given time to come to the same end."""
        for other, sign in sorted(self.heartbeats.signs.items()) if self.heartbeats else ():
            if sign.ended and now - sign.since > GRACE:
                return self.followed(other)
        return None

    def followed(self, other: int) -> Verdict:
        """The end that this process comes to because another has ended."""
        assert self.heartbeats
        sign = self.heartbeats.signs[other]
        if sign.ended == 2:
            return Verdict(2, f"{named(other)}: {sign.line}")
        if sign.ended == 3:  # what it says of a third host is right here too
            return Verdict(3, sign.line if "(process " in sign.line else f"{named(other)}: {sign.line}")
        return Verdict(3, str(HostLost(f"{named(other)} has stopped ({sign.line or f'exit code {sign.ended}'})")))

    def _stalled(self, now: float) -> Verdict | None:
        here = progress.here
        limit = self.stall_timeout * (COMPILING if here.phase == progress.COMPILING else 1)
        still = now - here.moved_at
        # who waits for another host waits as long as that meeting says, and as that host lives
        if not self.stall_timeout or here.phase == progress.WAITING or still <= limit:
            return None
        doing = "compiling for" if here.phase == progress.COMPILING else "without progress since"
        where = f"{named(process_index())} is stuck, {doing} {still:.0f} s, in {here.told}"
        return Verdict(3, str(HostLost(f"{where}{self._others(now)}")), stuck=True)

    def _others(self, now: float) -> str:
        """What the other hosts do meanwhile: those without a sign of life first."""
        if self.heartbeats is None:
            return ""
        ages = self.heartbeats.silent(now)
        late = [f"{named(other)} since {age:.0f} s" for other, age in ages.items() if age > 3 * self.heartbeats.period]
        if late:
            return f"; no sign of life from {', '.join(late)}"
        signs = self.heartbeats.signs
        told = [
            f"{named(each)} is in {signs[each].position} since {signs[each].still:.0f} s" for each in list(ages)[:4]
        ]
        return "; " + ", ".join(told) if told else ""

    def _watch(self) -> None:
        while not self._stop.wait(LOOK):
            verdict = self.look(time.monotonic())
            if verdict:
                self.end(verdict)
                return
