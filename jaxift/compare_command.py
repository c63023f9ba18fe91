"""`jaxift compare`: several studies side by side."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxift.artifacts import RunDirectory, writable_folder
from jaxift.errors import UserError
from jaxift.reporting.compare import comparison, labels, render
from jaxift.reporting.terminal import as_rich
from jaxift.reporting.writers import FORMATS


@dataclasses.dataclass(frozen=True)
class Compare:
    """Puts the results of several studies side by side, such as those of one config with several models."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")]
    """Run directories that are analysed, local or gs://."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A folder for compare.html, compare.md, and the tables as CSV, Markdown and LaTeX; without it they are printed."""


def main(verb: Compare, console: Console) -> None:
    """Reads everything, then prints it, and writes it where that is asked for."""
    if len(verb.runs) < 2:
        raise UserError("jaxift compare needs at least two RUNs; `jaxift report RUN` shows one")
    if len(set(verb.runs)) < len(verb.runs):
        raise UserError("jaxift compare: a RUN stands twice; name it once")
    analyses = []
    for path in verb.runs:
        analysis = RunDirectory.open(path).read_json("analysis.json")
        if not {"training", "exp4", "exp1", "study"} <= set(analysis) or "best" not in analysis["exp1"]:
            raise UserError(f"{path}/analysis.json: of an older version; run `jaxift analyze {path}` again")
        analyses.append(analysis)
    named = dict(zip(labels(analyses, verb.runs), analyses, strict=True))
    tables = comparison(named)
    if verb.out is not None:
        folder = RunDirectory(writable_folder(verb.out, "--out"))
        for name, text in render(named, tables).items():
            folder.write_text(name, text)
        for table in tables:
            for ending, write in FORMATS.items():
                folder.write_text(f"{table.name}.{ending}", write(table))
    for table in tables:
        shown = as_rich(table)
        width = console.measure(shown, options=console.options.update(max_width=1000)).maximum
        Console(width=max(console.width, width), file=console.file).print(shown)
    if verb.out is not None:
        console.print(f"comparison: {verb.out / 'compare.html'}", highlight=False, markup=False, soft_wrap=True)
