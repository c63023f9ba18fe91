"""How long each host's own work takes between collectives: all wait for the slowest, so it is named."""

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator

from jaxift.parallel.hosts import host_names, named, process_count
from jaxift.parallel.meeting import exchange

SLOW = 1.3
"""Times the median from which on a host is named."""
WORTH_TELLING = 1.0
"""Seconds that must have been lost."""
_lock, _seconds = threading.Lock(), 0.0


@contextlib.contextmanager
def own_work() -> Iterator[None]:
    """Counts what this host does by itself: preparing input, reading, writing."""
    started = time.perf_counter()
    try:
        yield
    finally:
        count(time.perf_counter() - started)


def count(seconds: float) -> None:
    """Adds to this host's own work."""
    global _seconds
    with _lock:
        _seconds += seconds


def slowest() -> str:
    """The slowest host since the last time, in words, where it held the others up; all processes must ask."""
    global _seconds
    with _lock:
        mine, _seconds = _seconds, 0.0
    if process_count() == 1:
        return ""
    told = [float(each) for each in exchange("own work", repr(mine).encode())]
    host_names()
    return compared(told)


def compared(seconds: list[float]) -> str:
    """What is said of some hosts' seconds; nothing where they are about alike."""
    most, middle = max(seconds), statistics.median_low(seconds)
    if most <= SLOW * middle or most - middle < WORTH_TELLING:
        return ""
    times = f"{most / middle:.1f} times" if middle > 0 else "unlike"
    return (
        f"{named(seconds.index(most))} was the slowest: {most:.1f} s of work of its own, {times} the median's "
        f"{middle:.1f} s; the others waited for it"
    )
