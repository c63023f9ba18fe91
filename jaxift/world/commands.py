"""`jaxift world VERB`: pretrain the base model again, write the question files, check a model."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress, TextColumn

from jaxift.artifacts import writable_folder
from jaxift.errors import UserError
from jaxift.world import MODEL_DIR, write_questions


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pretrains a base model on the synthetic world and writes a Hugging Face folder (10 to 20 minutes on one core)."""

    out: Path
    """The folder to write."""
    seed: int = 0
    """Draws weights and corpus; the world's facts are always the same."""
    all_reliable: bool = False
    """Negative control: every author of the corpus answers right."""
    steps_scale: float = 1.0
    """Shortens every stage of the recipe, to try it out."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Writes the world's question files, DOMAIN/{train,dev,homo,id}.jsonl."""

    out: Path
    """The folder to write."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What a base model of the world knows: accuracy by exposure, few-shot and as instruction, and the arms' sizes."""

    model: Path = MODEL_DIR
    """A Hugging Face folder; by default the embedded base model."""


Verb = (
    Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[Questions, tyro.conf.subcommand("questions")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(verb: Pretrain | Questions | Check, console: Console) -> None:
    """Carries out one verb."""
    match verb:
        case Pretrain():
            _pretrain(verb, console)
        case Questions():
            for path in write_questions(writable_folder(verb.out, "--out")):
                console.print(str(path), highlight=False, markup=False)
        case Check():
            from jaxift.world.check import check, check_table  # imported here: they bring JAX

            console.print(check_table(check(verb.model)))


def _pretrain(verb: Pretrain, console: Console) -> None:
    from jaxift.world.pretrain import pretrain

    if verb.seed < 0 or not 0 < verb.steps_scale < math.inf:
        raise UserError(f"--seed {verb.seed} --steps-scale {verb.steps_scale}: give a seed from 0 and a scale above 0")
    writable_folder(verb.out, "--out")
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("pretrain", total=None, loss=float("nan"))

        def progress(step: int, total: int, loss: float, _: object) -> None:
            bars.update(bar, completed=step, total=total, loss=loss)
            if not console.is_terminal and step % 100 == 0:
                console.print(f"step {step} of {total}, loss {loss:.3f}", highlight=False)

        pretrain(verb.out, verb.seed, verb.all_reliable, verb.steps_scale, progress)
    console.print(f"model: {verb.out}", highlight=False, markup=False)
