"""How long a device program takes that repeats itself as often as it is told."""

import time
from collections.abc import Callable
from typing import Any

import jax

TRIALS = 3
"""Runs of which the fastest counts: others on the machine can only slow a run down."""


def seconds_each(
    program: Callable[[int], Any], seconds: float, agreed: Callable[[int], int] = lambda times: times
) -> float:
    """Seconds of one repetition of `program(repetitions)`, in runs of about `seconds`; compiles it first.

    `agreed` is asked how often to repeat: a program of several processes must run equally often in all of them.
    """
    _seconds(program, 1)
    once = _seconds(program, 2) / 2
    times = agreed(max(2, min(round(seconds / max(once, 1e-7)), 100_000)))
    return min(_seconds(program, times) for _ in range(TRIALS)) / times


def _seconds(program: Callable[[int], Any], times: int) -> float:
    started = time.perf_counter()
    jax.block_until_ready(program(times))
    return time.perf_counter() - started
