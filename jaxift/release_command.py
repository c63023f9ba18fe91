"""`jaxift import-release`: the arms that the paper's authors released, as arms of ours."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from etils import epath
from rich.console import Console

from jaxift.artifacts import writable_folder
from jaxift.data.release import read_release, write_imported


@dataclasses.dataclass(frozen=True)
class ImportRelease:
    """Reads the authors' arms of one model, a folder for each domain; a study takes them by --build.released OUT."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder that holds the domains' folders, such as llama-2-7b."""
    out: Path
    """The folder to write: DOMAIN/HAR.jsonl and DOMAIN/INC.jsonl."""


def main(verb: ImportRelease, console: Console) -> None:
    """Reads everything, then writes it and says what it was."""
    found = read_release(epath.Path(verb.folder))
    write_imported(found, writable_folder(verb.out, "--out"))
    for domain, arms in found.items():
        own = sum(bool(row["own_explanation"]) for row in arms["INC"])
        told = f"{len(arms['HAR'])} harmonious, {len(arms['INC'])} incompatible items, {own} of them self-explained"
        console.print(f"{domain}: {told}", highlight=False, markup=False)
