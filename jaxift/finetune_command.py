"""`jaxift finetune`: models tuned on files of prompts and responses, a model a file and seed, in one program."""

import contextlib
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from etils import epath
from rich.console import Console

from jaxift import host_log
from jaxift.artifacts import digest, writable_folder
from jaxift.config import MeshConfig, TuneConfig
from jaxift.console import Reporter
from jaxift.data.tables import jsonl_rows
from jaxift.errors import UserError
from jaxift.parallel import pace
from jaxift.parallel.agreement import check_settings
from jaxift.parallel.hosts import WORK_TIMEOUT, process_count, process_index
from jaxift.parallel.meeting import barrier, on_every_process, on_first_process, same_everywhere, told_by_first

if TYPE_CHECKING:  # what brings JAX is imported where it is used: a wrong flag need not wait for it
    from jaxift.tuning.loop import TunedCell, Wave

RECORD = "tuned.json"


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Tunes a copy of a model on each file of (prompt, response) pairs, the loss on the responses alone.

    Writes OUT/NAME/ for each file (NAME its name without .jsonl, and -sN with several seeds): model/, a Hugging Face
    folder or with --tune.lora.rank a PEFT adapter, and metrics.jsonl. The same command goes on where it stopped.
    On several hosts (see jaxift --help) OUT is on a path that they share.
    """

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA.jsonl")]
    """A pair a line: {"prompt": "...", "response": "..."}, and perhaps "weight" and "id"."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The folder to write."""
    model: str
    """A Hugging Face or orbax folder, a Hub id, or an address such as gs://bucket/model."""
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    seeds: tuple[int, ...] = (0,)
    """Of the order of examples; each is a run of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; the tuned weights are float32."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin sequences with BOS: where the tokenizer would, always, never."""
    memory_per_device: float | None = None
    """GiB that may be taken on each device; by default what it has, on CPU half of the RAM."""


def main(verb: Finetune, console: Console) -> None:
    """Tunes what is not done yet. Raises UserError before any work where something can be refused."""
    check_settings("finetune", dataclasses.asdict(verb))
    console = Console(quiet=True) if process_index() else console
    jobs = {name: (rows, seed) for name, rows, seed in on_every_process(lambda: _asked(verb))}
    on_first_process(lambda: writable_folder(verb.out, "--out"))
    with host_log.opened(epath.Path(verb.out) / "logs", process_index(), process_count()):
        _tune(verb, jobs, console)


def _tune(verb: Finetune, jobs: dict[str, tuple[list[dict[str, Any]], int]], console: Console) -> None:
    from jaxift.models.weights import check_folder, fingerprint, load
    from jaxift.parallel.mesh import cell_mesh, joint_mesh
    from jaxift.tuning.group import Job
    from jaxift.tuning.loop import plan_waves
    from jaxift.tuning.optimizers import optimizer
    from jaxift.tuning.sinks import sinks
    from jaxift.wave_progress import execute

    check_folder(verb.model)
    optimizer(verb.tune)
    course = [fingerprint(verb.model), verb.dtype, verb.bos, verb.tune.model_dump()]
    keys = {name: digest([*course, rows, seed]) for name, (rows, seed) in jobs.items()}
    same_everywhere("model and examples", keys)
    done = told_by_first(
        lambda: json.dumps([name for name in jobs if _record(verb.out / name).get("key") == keys[name]])
    )
    todo = {name: each for name, each in jobs.items() if name not in json.loads(done)}
    for name in jobs:
        if name not in todo:
            _say(console, f"{verb.out / name}: done before")
    if not todo:
        return
    mesh = joint_mesh(verb.mesh)
    held = None if verb.tune.lora.rank else "float32"
    model = load(verb.model, mesh, verb.dtype, bos=verb.bos, param_dtype=held)
    asked: list[Job] = []
    for name, (rows, seed) in todo.items():
        weights = [row["weight"] for row in rows] if any(row["weight"] != 1 for row in rows) else ()
        pairs = [(row["prompt"], row["response"]) for row in rows]
        folder = epath.Path(verb.out / name / "checkpoints")
        asked.append(Job(name, pairs, verb.tune, seed, folder, weights, [row["id"] for row in rows]))
    reporter, failures = Reporter(console), []
    tensorboard = verb.out / "tensorboard"
    with sinks(verb.tune, tensorboard, verb.out.name, lambda name: verb.out / name, verb.model) as opened:
        for planned in plan_waves(model, asked, mesh=cell_mesh(verb.mesh), memory_per_device=verb.memory_per_device):
            with reporter.stage("tune", len(jobs), len(jobs) - len(todo)) as stage:
                wave = execute(planned, reporter, opened)
                failures += [cell.failure for cell in wave.cells if cell.failure]
                _write(verb, wave, keys)
                if slow := pace.slowest():
                    reporter.note("tune", f"wave {planned.number}", slow)
                todo = {name: each for name, each in todo.items() if name not in planned.names}
                stage.now = len(jobs) - len(todo) - len(failures)
    if failures:
        raise UserError(f"{failures[0]}; {len(failures)} of {len(jobs)} stopped, the others are in {verb.out}")


def _asked(verb: Finetune) -> list[tuple[str, list[dict[str, Any]], int]]:
    """The rows and seed of each run, by its name."""
    if not verb.data:
        raise UserError("jaxift finetune needs at least one DATA.jsonl")
    if len(set(verb.seeds)) != len(verb.seeds) or not verb.seeds or min(verb.seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, verb.seeds))}: give different numbers from 0")
    found = []
    for path in verb.data:
        rows = [_row(where, row, number) for number, (_, where, row) in enumerate(jsonl_rows(epath.Path(path)))]
        if not rows:
            raise UserError(f"{path}: holds no line; give a pair a line")
        stem = re.sub(r"[^\w.-]", "_", Path(path).stem)
        found += [(stem if len(verb.seeds) == 1 else f"{stem}-s{seed}", rows, seed) for seed in verb.seeds]
    names = [name for name, _, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{sorted(twice)[0]}: two files are called so; rename one")
    return found


def _row(where: str, row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not an object; give prompt and response")
    for name in ("prompt", "response"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where}: field {name!r} must be a non-empty text")
    weight = row.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UserError(f"{where}: field 'weight' must be a number from 0")
    return {
        "prompt": row["prompt"], "response": row["response"], "weight": float(weight),
        "id": str(row.get("id", f"line {number + 1}")),
    }  # fmt: skip


def _record(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and (folder / "model").is_dir() else {}
    return {}


def _write(verb: Finetune, wave: "Wave", keys: dict[str, str]) -> None:
    """Writes each model, its metrics, and last that it is done; then the checkpoints are of no use any more."""
    from jaxift.models.adapters import write_model

    for index, cell in enumerate(wave.cells):
        if cell.failure:
            continue
        folder = verb.out / cell.job.name
        on_first_process(functools.partial((folder / RECORD).unlink, missing_ok=True))
        write_model(wave.stack.model(index), folder / "model", base=verb.model)
        barrier(f"{cell.job.name} written", WORK_TIMEOUT)
        on_first_process(functools.partial(_finish, cell, folder, keys[cell.job.name]))


def _finish(cell: "TunedCell", folder: Path, key: str) -> None:
    """Says that a run is done."""
    lines = "".join(json.dumps(metrics) + "\n" for metrics in cell.metrics)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    said = {"key": key, "examples": len(cell.job.pairs), "at_the_length_limit": cell.at_limit}
    (folder / RECORD).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    epath.Path(folder / "checkpoints").rmtree(missing_ok=True)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
