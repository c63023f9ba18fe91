"""Processes wait for each other and compare notes, over the coordinator's store: no device, no collective is needed.

On one process everything here returns at once. Processes that disagree, or miss one, can so still be told.
"""

import collections
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import numpy as np

from jaxift import progress
from jaxift.errors import HostLost, UserError
from jaxift.parallel.hosts import (
    TIMEOUT,
    WORK_TIMEOUT,
    client,
    host_names,
    is_first,
    named,
    process_count,
    process_index,
    reason,
)

SEEN_TIMEOUT = 60.0  # seconds until all see in a shared folder what one wrote there: NFS caches folders so long
SHOWN = 4  # differences that are named

T = TypeVar("T")

# how often each meeting was held: a barrier or key serves once, and all processes count alike
_held: collections.Counter[str] = collections.Counter()


def barrier(name: str, timeout: float = TIMEOUT) -> None:
    """Waits until every process is here; raises HostLost, naming the barrier and who is missing, after `timeout` s."""
    if process_count() == 1:
        return
    import jax

    host_names()
    try:
        with progress.phase(progress.WAITING, name):
            client().wait_at_barrier(_meeting("barrier", name), int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        missing = re.findall(r"^\d+$", str(error), re.MULTILINE)
        who = ", ".join(named(int(each)) for each in missing) or f"not every host ({reason(error)})"
        raise HostLost(f"{who} did not come to the barrier {name} within {timeout:g} s") from None


def same_everywhere(label: str, value: str | Mapping[str, str], timeout: float = TIMEOUT) -> None:
    """Compares a value, or several by their names; where one differs, every process raises UserError that says which.

    The value of the most processes counts as right, of equally many that of the first.
    """
    if process_count() == 1:
        return
    mine = {"": value} if isinstance(value, str) else dict(value)
    told = [json.loads(each) for each in exchange(f"same {label}", json.dumps(mine).encode(), timeout)]
    names = {name: None for each in told for name in each}
    common = {name: collections.Counter(each.get(name) for each in told).most_common(1)[0][0] for name in names}
    others = {
        process: [name for name in names if each.get(name) != common[name]]
        for process, each in enumerate(told)
        if any(each.get(name) != common[name] for name in names)
    }
    if others:
        host_names()
        who = "; ".join(f"{named(process)} {_differing(told[process], common, others[process])}"
                        for process in others)  # fmt: skip
        raise UserError(
            f"{label}: differs between processes: {who} than {len(told) - len(others)} of {len(told)}; "
            "give all the same files, arguments and versions"
        )


def _differing(mine: Mapping[str, str], common: Mapping[str, str], names: list[str]) -> str:
    """What one process has otherwise than the others."""
    if names == [""]:
        return "has another"
    shown = [f"{name} ({mine.get(name)}, not {common[name]})" for name in names[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"has another {', '.join(shown)}{more}"


def everywhere(flags: np.ndarray, timeout: float = TIMEOUT) -> np.ndarray:
    """What is true in every process: the logical and of their flags, bool of any one shape."""
    told = exchange("flags", np.packbits(flags).tobytes(), timeout)
    rows = [np.unpackbits(np.frombuffer(each, np.uint8), count=flags.size) for each in told]
    return np.logical_and.reduce(rows).astype(bool).reshape(flags.shape)


def on_first_process(work: Callable[[], object]) -> None:
    """Does something on the first of the processes; what it refuses, all refuse. Returns when it is done."""

    def look() -> str:
        work()
        return ""

    told_by_first(look)


def told_by_first(look: Callable[[], str]) -> str:
    """What the first process finds, told to all; what it refuses, all refuse."""
    if process_count() == 1:
        return look()
    key = _meeting("work", "first")
    if not is_first():
        with progress.phase(progress.WAITING, "the first process"):
            state, _, text = _get(key, 0, WORK_TIMEOUT).decode().partition(": ")
        if state == "failed":
            raise HostLost(f"{named(0)} {text}")
        if state == "refused":
            raise UserError(text)
        return text
    told = "failed: stopped at what it does for all"
    try:
        found = look()
        told = f"done: {found}"
        return found
    except UserError as error:
        told = f"refused: {error}"
        raise
    finally:
        client().key_value_set(key, told)


def on_every_process(work: Callable[[], T], timeout: float = TIMEOUT) -> T:
    """Does something on every process, without a collective; what one refuses, all refuse."""
    refused, result = "", None
    try:
        result = work()
    except UserError as error:
        refused = str(error)
    told = [each.decode() for each in exchange("every", refused.encode(), timeout)]
    if refused or any(told):
        raise UserError(refused or next(f"{named(place)}: {line}" for place, line in enumerate(told) if line))
    return cast(T, result)


def until_seen(sees: Callable[[], bool], what: str, timeout: float | None = None) -> None:
    """Waits until this process sees what another wrote: a shared folder may show it a moment later.

    Raises UserError, naming `what` and this host, after `timeout` seconds.
    """
    limit = SEEN_TIMEOUT if timeout is None else timeout
    deadline, pause = time.monotonic() + limit, 0.02
    while not sees():
        if time.monotonic() > deadline:
            host_names()
            raise UserError(
                f"{what}: {named(process_index())} does not see there what {named(0)} does; "
                "give a path that all hosts share"
            )
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def exchange(label: str, value: bytes, timeout: float = TIMEOUT) -> list[bytes]:
    """Every process' value, a few kilobytes, in the order of processes; needs no device."""
    if process_count() == 1:
        return [value]
    place = _meeting("exchange", label)
    client().key_value_set_bytes(f"{place}/{process_index()}", value)
    with progress.phase(progress.WAITING, label):
        return [_get(f"{place}/{number}", number, timeout) for number in range(process_count())]


def _get(key: str, process: int, timeout: float) -> bytes:
    import jax

    try:
        return client().blocking_key_value_get_bytes(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise HostLost(f"{named(process)} gave no answer within {timeout:g} s ({reason(error)})") from None


def _meeting(kind: str, label: str) -> str:
    """A name that no other meeting has, short whatever the label."""
    _held[f"{kind} {label}"] += 1
    text = hashlib.sha256(label.encode()).hexdigest()[:16]
    return f"jaxift/{kind}/{text}/{_held[f'{kind} {label}']}"
