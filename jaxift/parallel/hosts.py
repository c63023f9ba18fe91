"""Several processes as one program: how they join, how many they are, and what their hosts are called.

Nothing here imports JAX unless there is something to join: where it is not loaded there is one process.
"""

import math
import platform
import re
import socket
import sys
import time
from typing import Any

from jaxift.errors import UserError
from jaxift.parallel.clusters import Place, detected, hinted

TIMEOUT = 300.0  # seconds that processes may be apart when they meet
WORK_TIMEOUT = 24 * 3600.0  # seconds that the first process may work alone
HOST_TIMEOUT = 100.0  # seconds without a sign of life after which a host counts as lost
OF_ANOTHER_HOST = ("gloo", "unavailable", "coordination", "connection", "socket", "barrier", "deadline", "heartbeat")
"""Words of errors that come of another host's end."""
_ADDRESS = re.compile(r"\S+:\d+")
_names: list[str] = []


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = TIMEOUT,
    host_timeout: float = HOST_TIMEOUT,
) -> None:
    """Joins this process to the others; to be called before any device is touched, and without effect the second time.

    `coordinator` is the address `host:port` of process 0, `processes` their number and `process` this one's, from 0.
    Without all three the cluster is asked (see `clusters`), and where there is none this is the only process.
    `coordinator="auto"` demands a cluster, `"none"` never joins. JAX's own heartbeats are given longer than
    `host_timeout` seconds, since ours tell whom they miss. Raises UserError where the three do not fit together, or not
    all processes come within `timeout` seconds.
    """
    place = _place(coordinator, processes, process, timeout)
    if place is None:
        return
    import jax
    from jax._src import distributed  # its state is not public

    if jax.distributed.is_initialized():
        state = distributed.global_state
        if (state.coordinator_address, state.num_processes, state.process_id) != (
            place.coordinator, place.processes, place.process,
        ):  # fmt: skip
            raise UserError("processes: joined already, with another coordinator, number or place; start a new process")
        return
    if place.process:
        _wait_for(place.coordinator, timeout)
    try:
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process,
            # of a cluster JAX still asks which of a host's devices are this process'
            cluster_detection_method=None if place.cluster else "deactivate",
            initialization_timeout=math.ceil(timeout),
            heartbeat_timeout_seconds=math.ceil(2 * host_timeout + 30),
            shutdown_timeout_seconds=math.ceil(host_timeout),
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"--coordinator {place.coordinator}: process {place.process} could not join ({reason(error)}); "
            "start all processes, with one address"
        ) from None


def _place(coordinator: str | None, processes: int | None, process: int | None, timeout: float) -> Place | None:
    """Where this process is to stand; None where it is the only one."""
    named = processes is not None or process is not None
    if coordinator in ("auto", "none") and named:
        raise UserError(f"--coordinator {coordinator}: goes without --processes and --process; leave them out")
    if coordinator == "none":
        return None
    if coordinator in (None, "auto") and not named:
        found = detected(timeout) if hinted() else None
        if found is None and coordinator == "auto":
            raise UserError("--coordinator auto: no cluster is detected; give --coordinator, --processes and --process")
        return found if found is not None and found.processes > 1 else None
    return _checked(coordinator, processes, process)


def _checked(coordinator: str | None, processes: int | None, process: int | None) -> Place:
    """The place that the three arguments say."""
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes, --process: give all three, --coordinator auto, or none")
    if not _ADDRESS.fullmatch(coordinator):
        raise UserError(f"--coordinator {coordinator}: is no address; give host:port of process 0")
    if processes < 1:
        raise UserError(f"--processes {processes}: give a number from 1")
    if not 0 <= process < processes:
        raise UserError(f"--process {process}: give a number from 0 to {processes - 1}")
    return Place("", coordinator, processes, process)


def _wait_for(coordinator: str, timeout: float) -> None:
    """Waits until process 0 listens: JAX's client would end the process, with a stack trace, where it never does."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(1.0, timeout / 4)).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator {coordinator}: cannot be reached within {timeout:g} s ({error}); "
                    "start process 0 there, and check address and firewall"
                ) from None
            time.sleep(0.2)


def _state() -> Any:
    """JAX's state of the joined processes, or None where this is the only one."""
    distributed = sys.modules.get("jax._src.distributed")
    state = distributed and distributed.global_state
    return state if state is not None and state.client is not None else None


def process_count() -> int:
    """How many processes were joined; touches no device."""
    state = _state()
    return 1 if state is None else state.num_processes


def process_index() -> int:
    """Which of them this one is, from 0; touches no device."""
    state = _state()
    return 0 if state is None else state.process_id


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return process_index() == 0


def client() -> Any:
    """The client of the coordinator's barriers and key-value store; there is one where processes were joined."""
    return _state().client


def host_names() -> list[str]:
    """What the processes' hosts are called, in their order; each is asked once."""
    if process_count() == 1:
        return [platform.node()]
    if not _names:
        place = "jaxift/name"
        client().key_value_set(f"{place}/{process_index()}", platform.node(), allow_overwrite=True)
        found = [client().blocking_key_value_get(f"{place}/{n}", int(TIMEOUT * 1000)) for n in range(process_count())]
        _names.extend(found)
    return list(_names)


def named(process: int) -> str:
    """A process by its host's name, as far as that is known."""
    names = _names or ([platform.node()] if process_count() == 1 else [])
    return f"host {names[process]} (process {process})" if names else f"process {process}"


def of_another_host(error: Exception) -> bool:
    """Whether an error may come of another host's end: of a collective, a barrier or the coordinator."""
    text = f"{type(error).__name__} {error}".lower()
    return process_count() > 1 and any(word in text for word in OF_ANOTHER_HOST)


def reason(error: Exception) -> str:
    """The start of a runtime error's message: what follows are addresses and hints for programmers."""
    return str(error).strip().split("\n")[0][:160]
