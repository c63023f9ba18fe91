"""The verb `selfcheck`: one screen that says, line by line, whether this machine does what jaxift expects of it."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.text import Text

from jaxift.config import MeshConfig
from jaxift.errors import UserError, printable

if TYPE_CHECKING:  # what brings JAX is imported where it is used: a wrong flag need not wait for it
    from jaxift.selfcheck.lines import Line

MARKS = {"good": ("ok", "green"), "bad": ("FAIL", "bold red"), "told": ("-", "yellow")}


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """Looks at packages, devices and mesh, their speed, scores that are known, and a checkpoint's way and back.

    Exit code 0 where nothing is wrong, 1 where something is. A line without a verdict has nothing to be compared with.
    """

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """The mesh to check; one of a single device, the default, stands for all devices in `data`."""
    bucket: str | None = None
    """A folder, or an address such as gs://bucket/folder, that a checkpoint is written to, read from and removed."""
    checkpoint_mb: int = 64
    """Size of that checkpoint in MB, over all devices."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the findings to this file, as JSON; - prints them instead of the lines."""


def main(verb: SelfCheck, console: Console) -> int:
    """Looks at everything, and returns the exit code; the first of several processes reports."""
    from jaxift.parallel import hosts
    from jaxift.parallel.meeting import on_first_process

    if verb.checkpoint_mb < 1:
        raise UserError(f"--checkpoint-mb {verb.checkpoint_mb}: give a number from 1")
    if verb.json not in (None, "-"):
        path = str(verb.json)
        on_first_process(lambda: _write(path, ""))  # what can be refused is refused before the work
    started, found = time.monotonic(), []
    console = Console(quiet=True) if hosts.process_index() or verb.json == "-" else console
    for line in _lines(verb):
        found.append(line)
        _show(line, console)
    for line in _of_others(found):
        found.append(line)
        _show(line, console)
    bad = sum(line.state == "bad" for line in found)
    seconds = time.monotonic() - started
    told = f"{bad} of {len(found)} lines say that something is wrong" if bad else "nothing is wrong"
    console.print(Text(f"{told}; {seconds:.1f} s", "bold red" if bad else "green"), soft_wrap=True)
    if verb.json is not None and hosts.process_index() == 0:
        _write(verb.json, _as_json(found, bad, seconds))
    return 1 if bad else 0


def _lines(verb: SelfCheck) -> "Iterator[Line]":
    """Every line, as soon as it is known; without devices or mesh there is no sense in those after it."""
    from jaxift.parallel import compilations
    from jaxift.selfcheck import collectives, devices, matmul, probe, software, storage
    from jaxift.selfcheck.lines import Line, guarded, reason

    compilations.listen()  # what the devices do comes before the mesh
    yield from guarded("software", software.lines)
    here = guarded("devices", devices.lines)
    yield from here
    if any(line.state == "bad" for line in here):
        return
    yield from guarded("matmul", matmul.lines)
    try:
        mesh = devices.asked_mesh(verb.mesh)
    except UserError as error:
        yield Line("mesh", "bad", reason(error).removeprefix("mesh: "))
        return
    yield devices.mesh_line(mesh)
    yield from guarded("links", lambda: collectives.lines(mesh))
    yield from guarded("score", lambda: probe.lines(mesh))
    yield from guarded("checkpoint", lambda: storage.lines(mesh, verb.bucket, verb.checkpoint_mb))


def _of_others(found: "list[Line]") -> "list[Line]":
    """What is wrong on other hosts alone, so that all end alike."""
    from jaxift.parallel.meeting import exchange
    from jaxift.selfcheck.lines import Line

    mine = [(line.name, line.text) for line in found if line.state == "bad"]
    told = [json.loads(each) for each in exchange("selfcheck end", json.dumps(mine).encode())]
    return [
        Line(name, "bad", f"host {place}: {text}")
        for place, each in enumerate(told)
        for name, text in each
        if (name, text) not in mine
    ]


def _show(line: "Line", console: Console) -> None:
    mark, style = MARKS[line.state]
    console.print(Text.assemble((f"{mark:5}", style), f"{line.name:16}", printable(line.text)), soft_wrap=True)


def _as_json(found: "list[Line]", bad: int, seconds: float) -> str:
    from jaxift.parallel.compilations import record

    lines = [dataclasses.asdict(line) for line in found]
    told = {"ok": not bad, "seconds": round(seconds, 3), "lines": lines, "programs": record()}
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def _write(path: str, text: str) -> None:
    """Writes the findings to a file, or prints them where it is -."""
    from etils import epath

    if path == "-":
        print(text, end="")
        return
    try:
        epath.Path(path).write_text(text)
    except (OSError, ImportError) as error:
        raise UserError(f"--json {path}: cannot be written ({error}); give a path in a folder that is there") from None
