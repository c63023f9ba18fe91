"""`jaxift inspect`, `convert` and `generate`: look at a model, change its format, let it write."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from jaxift.artifacts import digest, writable_folder
from jaxift.config import MeshConfig
from jaxift.errors import UserError, printable
from jaxift.parallel.agreement import check_settings
from jaxift.parallel.hosts import is_first
from jaxift.parallel.meeting import on_every_process

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]


@dataclasses.dataclass(frozen=True)
class Inspect:
    """What a model is, what it needs and why it would be refused, without loading its weights (exit code 2 then)."""

    model: Model
    """A Hugging Face or orbax folder, a Hub id, or an address such as gs://bucket/model."""
    max_positions: int | None = None
    """Shortens the length limit."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Writes a Hugging Face model as an orbax folder, which loads onto any mesh, and an orbax folder back."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A Hugging Face or orbax folder, a Hub id, or an address such as gs://bucket/model."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write; new or empty."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the written weights; by default what they have."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continues prompts; prints each with its continuation, or writes one JSON object a line."""

    model: Model
    """A Hugging Face or orbax folder, a Hub id, or an address such as gs://bucket/model."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text to continue; may be given several times."""
    prompts: Path | None = None
    """A file of texts to continue: one a line, or (.jsonl) objects with a `prompt`."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Draws from the most likely tokens that have this probability together."""
    seed: int = 0
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text at which a continuation ends; may be given several times."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_positions: int | None = None
    """Shortens the length limit."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    out: Path | None = None
    """The JSONL file to write: prompt, text, tokens, stopped."""


KINDS = {"inspect": Inspect, "convert": Convert, "generate": Generate}


def main(verb: Inspect | Convert | Generate, console: Console) -> int:
    """Carries out one verb and returns the exit code."""
    match verb:
        case Inspect():
            return _inspect(verb, console)
        case Convert():
            from jaxift.models.convert import convert  # imported here: it brings JAX

            _say(console, f"model: {convert(verb.source, verb.target, verb.dtype)}")
        case Generate():
            _generate(verb, console)
    return 0


def _inspect(verb: Inspect, console: Console) -> int:
    from jaxift.models.inspection import inspect_model, summary  # imported here: it brings JAX

    found = inspect_model(verb.model, verb.max_positions)
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in summary(found):
        # piped output is read by programs: one line a fact
        table.add_row(Text(label, "bold"), Text(printable(value)))
        if not console.is_terminal:
            _say(console, f"{label}: {value}")
    if console.is_terminal:
        console.print(table)
    for problem in found.refused:
        _say(console, f"would be refused: {problem}")
    return 2 if found.refused else 0


def _generate(verb: Generate, console: Console) -> None:
    check_settings("generate", dataclasses.asdict(verb))
    prompts = on_every_process(lambda: _prompts(verb))
    check_settings("generate", {"prompts": digest(prompts)})
    if verb.out is not None and is_first():
        if verb.out.is_dir():
            raise UserError(f"--out {verb.out}: is a folder; give a file")
        writable_folder(verb.out.parent, "--out")  # asked before there is work to lose
    from jaxift.models.sampling import generate  # imported here: it brings JAX
    from jaxift.models.weights import load
    from jaxift.parallel.mesh import joint_mesh

    mesh = joint_mesh(verb.mesh)
    if verb.seed < 0:
        raise UserError(f"--seed {verb.seed}: give a number from 0")
    model = load(verb.model, mesh, verb.dtype, max_positions=verb.max_positions)
    seeds = np.random.SeedSequence(verb.seed).generate_state(len(prompts)).tolist()
    with Progress(console=console, transient=True, disable=not console.is_terminal or not is_first()) as bars:
        bar = bars.add_task("generate", total=len(prompts))
        found = generate(
            model,
            prompts,
            max_new_tokens=verb.max_new_tokens,
            temperature=verb.temperature,
            top_p=verb.top_p,
            seeds=seeds,
            stop=verb.stop,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    rows = [{"prompt": prompt, **dataclasses.asdict(each)} for prompt, each in zip(prompts, found, strict=True)]
    if not is_first():
        return
    if verb.out is not None:
        _write(verb.out, rows)
        _say(console, f"{len(rows)} continuations: {verb.out}")
        return
    for row in rows:
        prompt, text = (printable(str(row[field]), keep="\n\t") for field in ("prompt", "text"))
        console.print(Text(prompt, "dim") + Text(text), soft_wrap=True, highlight=False)


def _prompts(verb: Generate) -> list[str]:
    """The prompts of the command line, then those of the file."""
    prompts = list(verb.prompt)
    if any("\udc80" <= each <= "\udcff" for prompt in prompts for each in prompt):
        raise UserError("--prompt: is not UTF-8; give a text")
    if verb.prompts is not None:
        try:
            lines = verb.prompts.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise UserError(f"--prompts {verb.prompts}: cannot be read ({error}); give a UTF-8 text file") from None
        named = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        is_json = verb.prompts.suffix == ".jsonl"
        prompts += [_json_prompt(verb.prompts, number, line) if is_json else line for number, line in named]
    if not prompts:
        raise UserError("there is nothing to continue; give --prompt TEXT or --prompts FILE with at least one line")
    return prompts


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
        prompt.encode()  # a lone surrogate is no text
    except (ValueError, TypeError, KeyError, AttributeError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{path}:{number}: is no object with a text "prompt"; write {{"prompt": "..."}}')
    return prompt


def _write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error}); give a writable path") from None


def _say(console: Console, line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
