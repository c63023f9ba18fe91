"""A study's units on several processes: the first one decides and writes, the others follow when they see the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxift.artifacts import digest
from jaxift.errors import UserError
from jaxift.parallel.hosts import WORK_TIMEOUT, is_first, process_count
from jaxift.parallel.meeting import (
    barrier,
    on_every_process,
    on_first_process,
    same_everywhere,
    told_by_first,
    until_seen,
)
from jaxift.units import FIRST_HOST_STAGES, Advance, Made, Unit, Units


def check_inputs(units: Units) -> None:
    """Refuses bad inputs on any process, and processes that read another model or other questions."""
    on_every_process(units.check_inputs, WORK_TIMEOUT)
    if process_count() > 1:
        same_everywhere("what is read", units.inputs())


def agreed(units: Units, find: Callable[[], list[Unit]]) -> list[tuple[Unit, str]]:
    """The units that are found and their states, as the first process sees them.

    The other processes wait until they see the same: a shared folder may show things a moment later.
    """
    found: list[tuple[Unit, str]] = []

    def look() -> str:
        found[:] = [(unit, units.state(unit)) for unit in find()]
        return digest([[unit.name, unit.key, state] for unit, state in found])

    def sees() -> bool:
        try:
            return look() == told
        except UserError:  # a file that is not there yet
            return False

    told = told_by_first(look)
    _followed(sees, str(units.run.root))
    return found


def made(unit: Unit, advance: Advance) -> Made:
    """What a unit's work has made; where no device is needed, the first process does it alone."""
    assert unit.work is not None
    if unit.stage not in FIRST_HOST_STAGES:
        return unit.work(advance)
    found: list[Made] = []
    work = unit.work
    on_first_process(lambda: found.append(work(advance)))
    return found[0] if found else ([], {})


def finish(units: Units, unit: Unit, files: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Marks a unit as done when all processes are done with it; returns when all see that it is."""
    barrier(f"{unit.name} made", WORK_TIMEOUT)
    on_first_process(lambda: units.finish(unit, files, facts))
    _followed(lambda: units.state(unit) == "done", f"{units.run.root}: {unit.name}")


def _followed(sees: Callable[[], bool], what: str) -> None:
    """Returns when every process sees what the first one does."""
    on_every_process(lambda: None if is_first() else until_seen(sees, what), WORK_TIMEOUT)
