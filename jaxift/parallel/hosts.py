"""Several processes as one program: how they start, wait for each other, compare notes and share arrays.

On one process everything here returns at once. Small things go through the coordinator's key-value store, which needs
no device and no collective, so that processes that disagree can still be told so.
"""

import collections
import hashlib
import json
import math
import platform
import re
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax._src import distributed  # the coordinator's client (barriers with a timeout, key-value store) is not public
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxift.errors import UserError

TIMEOUT = 300.0  # seconds that processes may be apart when they meet
WORK_TIMEOUT = 24 * 3600.0  # seconds that the first process may work alone
_ADDRESS = re.compile(r"\S+:\d+")

T = TypeVar("T")

# how often each meeting was held: a barrier or key serves once, and all processes count alike
_held: collections.Counter[str] = collections.Counter()


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = TIMEOUT,
) -> None:
    """Joins this process to the others; to be called before any device is touched, and without effect the second time.

    `coordinator` is the address `host:port` of process 0, `processes` their number and `process` this one's, from 0.
    `coordinator="auto"` alone asks the cluster (TPU pod, Slurm, MPI, Kubernetes); nothing at all means one process.
    Raises UserError where the three do not fit together, or not all processes come within `timeout` seconds.
    """
    if (coordinator, processes, process) == (None, None, None):
        return
    found = _checked(coordinator, processes, process)
    if jax.distributed.is_initialized():
        state = distributed.global_state
        if found and (state.coordinator_address, state.num_processes, state.process_id) != (
            coordinator, processes, process,
        ):  # fmt: skip
            raise UserError("processes: joined already, with another coordinator, number or place; start a new process")
        return
    if process:
        _wait_for(str(coordinator), timeout)
    try:
        jax.distributed.initialize(**found, initialization_timeout=math.ceil(timeout))
    except ValueError as error:
        raise UserError(
            f"--coordinator auto: no cluster is detected ({error}); give --coordinator, --processes and --process"
        ) from None
    except RuntimeError as error:
        where = "--coordinator auto" if coordinator == "auto" else f"--coordinator {coordinator}"
        raise UserError(
            f"{where}: process {process} could not join ({_reason(error)}); start all processes, with one address"
        ) from None


def _checked(coordinator: str | None, processes: int | None, process: int | None) -> dict[str, Any]:
    """Arguments of JAX's own function; empty where it is to detect them."""
    if coordinator == "auto":
        if processes is not None or process is not None:
            raise UserError("--coordinator auto: finds the processes itself; leave --processes and --process out")
        return {}
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes, --process: give all three, --coordinator auto, or none")
    if not _ADDRESS.fullmatch(coordinator):
        raise UserError(f"--coordinator {coordinator}: is no address; give host:port of process 0")
    if processes < 1:
        raise UserError(f"--processes {processes}: give a number from 1")
    if not 0 <= process < processes:
        raise UserError(f"--process {process}: give a number from 0 to {processes - 1}")
    return {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


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


def process_count() -> int:
    """How many processes were joined; touches no device."""
    return distributed.global_state.num_processes or 1 if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this one is, from 0; touches no device."""
    return distributed.global_state.process_id if jax.distributed.is_initialized() else 0


def barrier(name: str, timeout: float = TIMEOUT) -> None:
    """Waits until every process is here; raises UserError, naming the barrier, after `timeout` seconds."""
    if process_count() == 1:
        return
    try:
        _client().wait_at_barrier(_meeting("barrier", name), int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        missing = re.findall(r"^\d+$", str(error), re.MULTILINE)
        who = f"process {', '.join(missing)} did not come" if missing else _reason(error)
        raise UserError(
            f"barrier {name}: not all {process_count()} processes came within {timeout:g} s ({who}); "
            "look at what the others say"
        ) from None


def same_everywhere(label: str, value: str, timeout: float = TIMEOUT) -> None:
    """Compares a hash over the processes; where one has another, every process raises UserError that says which.

    The value of the most processes counts as right, of equally many that of the first.
    """
    told = exchange(f"same {label}", f"{platform.node()} {value}".encode(), timeout)
    hosts, values = zip(*(each.decode().split(" ", 1) for each in told), strict=True)
    common = collections.Counter(values).most_common(1)[0][0]
    others = [f"{number} on {host}" for number, host in enumerate(hosts) if values[number] != common]
    if others:
        raise UserError(
            f"{label}: differs between processes: process {', '.join(others)} has another than "
            f"{len(hosts) - len(others)} of {len(hosts)}; give all the same files, arguments and versions"
        )


def everywhere(flags: np.ndarray, timeout: float = TIMEOUT) -> np.ndarray:
    """What is true in every process: the logical and of their flags, bool of any one shape."""
    told = exchange("flags", np.packbits(flags).tobytes(), timeout)
    rows = [np.unpackbits(np.frombuffer(each, np.uint8), count=flags.size) for each in told]
    return np.logical_and.reduce(rows).reshape(flags.shape)


def gather(array: np.ndarray, timeout: float = TIMEOUT) -> list[np.ndarray]:
    """Every process' array, in the order of processes; first dimensions and all others may differ, the type may not."""
    array = np.ascontiguousarray(array)
    if process_count() == 1:
        return [array]
    told = [
        json.loads(each) for each in exchange("gather", json.dumps([array.dtype.str, *array.shape]).encode(), timeout)
    ]
    assert all(dtype == array.dtype.str for dtype, *_ in told), f"processes gather different types: {told}"
    sizes = [math.prod(shape) * array.itemsize for _, *shape in told]
    # as bytes: JAX would make 32 bits of 64
    padded = np.zeros(max(*sizes, 1), np.uint8)
    padded[: array.nbytes] = array.reshape(-1).view(np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[:size].copy().view(array.dtype).reshape(shape)
        for row, size, (_, *shape) in zip(rows, sizes, told, strict=True)
    ]


def global_array(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """Lays out an array that every process knows; each gives its own devices their parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def on_first_process(work: Callable[[], None]) -> None:
    """Does something on the first of the processes; what it refuses, all refuse. Returns when it is done."""
    if process_count() == 1:
        return work()
    key = _meeting("work", "first")
    if process_index() == 0:
        told = "failed: the first process stopped; look at what it says"
        try:
            work()
            told = "done"
        except UserError as error:
            told = f"refused: {error}"
            raise
        finally:
            _client().key_value_set(key, told)
        return None
    state, _, line = _get(key, 0, WORK_TIMEOUT).decode().partition(": ")
    if state != "done":
        raise UserError(line)
    return None


def on_every_process(work: Callable[[], T], timeout: float = TIMEOUT) -> T:
    """Does something on every process, without a collective; what one refuses, all refuse."""
    refused, result = "", None
    try:
        result = work()
    except UserError as error:
        refused = str(error)
    told = [each.decode() for each in exchange("every", refused.encode(), timeout)]
    if refused or any(told):
        raise UserError(refused or next(f"process {place}: {line}" for place, line in enumerate(told) if line))
    return cast(T, result)


def exchange(label: str, value: bytes, timeout: float = TIMEOUT) -> list[bytes]:
    """Every process' value, a few kilobytes, in the order of processes; needs no device."""
    if process_count() == 1:
        return [value]
    place = _meeting("exchange", label)
    _client().key_value_set_bytes(f"{place}/{process_index()}", value)
    return [_get(f"{place}/{number}", number, timeout) for number in range(process_count())]


def _get(key: str, process: int, timeout: float) -> bytes:
    try:
        return _client().blocking_key_value_get_bytes(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {process}: gave no answer within {timeout:g} s ({_reason(error)}); look at what it says"
        ) from None


def _meeting(kind: str, label: str) -> str:
    """A name that no other meeting has, short whatever the label."""
    _held[f"{kind} {label}"] += 1
    text = hashlib.sha256(label.encode()).hexdigest()[:16]
    return f"jaxift/{kind}/{text}/{_held[f'{kind} {label}']}"


def _client() -> Any:
    return distributed.global_state.client


def _reason(error: Exception) -> str:
    """The start of a runtime error's message: what follows are addresses and hints for programmers."""
    return str(error).strip().split("\n")[0][:160]
