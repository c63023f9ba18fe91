"""A line of the check's report, and how what each host found becomes one."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from jaxift.errors import UserError, printable
from jaxift.parallel import meeting

State = Literal["good", "bad", "told"]


@dataclasses.dataclass(frozen=True)
class Line:
    """What was looked at, whether it is as it should be (`told`: nothing to compare with), in words and in figures."""

    name: str
    state: State
    text: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def guarded(name: str, look: Callable[[], list[Line]]) -> list[Line]:
    """The lines that `look` makes, or a bad one that says why it could not: a check reports whatever happens."""
    try:
        return look()
    except Exception as error:  # drivers, compilers and stores raise anything
        return [Line(name, "bad", reason(error))]


def from_hosts(label: str, look: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each host finds, in the order of processes; where one cannot look, {"error": why} is what it found."""
    try:
        found = look()
    except Exception as error:
        found = {"error": reason(error)}
    return [json.loads(each) for each in meeting.exchange(f"selfcheck {label}", json.dumps(found).encode())]


def failed_hosts(found: list[dict[str, Any]]) -> str:
    """Which hosts could not look, and why; empty where all could."""
    return "; ".join(host_name(place, found) + each["error"] for place, each in enumerate(found) if "error" in each)


def host_name(process: int, found: list[Any]) -> str:
    """How a host's own words begin; nothing where it is alone."""
    return f"host {process}: " if len(found) > 1 else ""


def reason(error: Exception) -> str:
    """The start of what an error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"[:240])
