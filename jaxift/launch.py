"""How a command starts as one process of several, by flags or by the cluster's own word, and how it leaves them."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxift.errors import UserError
from jaxift.parallel import hosts
from jaxift.parallel.agreement import check_code
from jaxift.parallel.clusters import hinted
from jaxift.parallel.native_output import NativeOutput
from jaxift.parallel.session import Session
from jaxift.parallel.watchdog import STALL_TIMEOUT

VERBS = (
    "demo", "run", "probe", "explain", "build", "tune", "evaluate", "analyze", "report", "score", "generate",
    "finetune", "selfcheck",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flags:
    """What a command line says of processes."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    host_timeout: float = hosts.HOST_TIMEOUT
    stall_timeout: float | None = None

    @property
    def stalls(self) -> float:
        """Seconds without progress that end a process, 0 for never; one that is alone is left alone."""
        if self.stall_timeout is not None:
            return self.stall_timeout
        return STALL_TIMEOUT if hosts.process_count() > 1 else 0.0


FIELDS = {f"--{field.name.replace('_', '-')}": field.name for field in dataclasses.fields(Flags)}
_NUMBERS = {"processes": int, "process": int, "host_timeout": float, "stall_timeout": float}


def split(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags among a command line's arguments, and the others; raises UserError where one has no right value."""
    given: dict[str, Any] = {}
    left, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name not in FIELDS:
            left.append(argument)
            continue
        if not equals and not rest:
            raise UserError(f"{name}: needs a value; see jaxift --help")
        given[FIELDS[name]] = _value(FIELDS[name], value if equals else rest.pop(0))
    return Flags(**given), left


def _value(name: str, text: str) -> str | int | float:
    kind = _NUMBERS.get(name, str)
    with contextlib.suppress(ValueError):
        value = kind(text)
        if kind is not float or (0 <= value < float("inf") and (value or name == "stall_timeout")):
            return value
    wanted = "a whole number" if kind is int else "seconds"
    raise UserError(f"--{name.replace('_', '-')} {text}: give {wanted}")


class Launch:
    """A command's part in a joined program; where it is the only process nothing is joined, watched or told."""

    def __init__(self):
        self._session: Session | None = None

    def join(self, flags: Flags) -> None:
        """Joins the other processes where there are some, and refuses those that run other code."""
        alone = (flags.coordinator, flags.processes, flags.process) == (None, None, None) and not hinted()
        if alone or flags.coordinator == "none":
            self._watch_alone(flags)
            return
        hosts.initialize(flags.coordinator, flags.processes, flags.process, host_timeout=flags.host_timeout)
        if hosts.process_count() == 1:
            self._watch_alone(flags)
            return
        self._session = Session(flags.host_timeout, flags.stalls, NativeOutput())
        check_code()

    def _watch_alone(self, flags: Flags) -> None:
        """Watches that this process gets on, where that is asked for."""
        if flags.stalls:
            self._session = Session(flags.host_timeout, flags.stalls)

    @property
    def watches(self) -> bool:
        """Whether there is somebody to be told how this process ends."""
        return self._session is not None

    def explain(self, error: Exception) -> None:
        """Says which host is lost, and ends the process, where that is what an error comes of."""
        if self._session:
            self._session.explain(error)

    def leave(self, code: int, line: str) -> None:
        """Tells the others how this process ends, where there are some."""
        if self._session:
            self._session.leave(code, line)
