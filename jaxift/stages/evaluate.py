"""Evaluate: models, zero-shot on their domain's three test sets; tuned ones that are asked the same in one program."""

import dataclasses
from collections.abc import Sequence

from jaxift.arms import parse_arm
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, instruction_prompt
from jaxift.data.questions import Question
from jaxift.data.sources import DomainQuestions
from jaxift.models.stack import ModelStack
from jaxift.models.weights import LanguageModel
from jaxift.scoring.belief import Belief, beliefs, stack_beliefs
from jaxift.scoring.engine import Progress
from jaxift.scoring.store import unit_store


def evaluate(
    config: StudyConfig,
    run: RunDirectory,
    cells: Sequence[Cell],
    domain: DomainConfig,
    questions: DomainQuestions,
    models: LanguageModel | ModelStack,
    key: str,
    parts: str,
    wrapper: str = "",
    progress: Progress | None = None,
) -> list[list[str]]:
    """Writes cells/ID/scores/SET.parquet with the columns of `Belief.row`; returns the files of each cell.

    `models` is the base model, for its own cell, or a stack of the cells' models; all cells are asked the same. An
    interrupted evaluation of the same `key` goes on from what is in the folder `parts`, which the caller removes.
    `wrapper` is the conversation around an instruction where it is not the study's own.
    """
    style = config.probe.prompt
    asked = [(test_set, question) for test_set in TEST_SETS for question in questions[test_set]]
    tested = [question for _, question in asked]
    like = models if isinstance(models, LanguageModel) else models.like
    store = unit_store(run.path(parts), key, like.mesh.shape)

    def prompt(question: Question) -> str:
        return instruction_prompt(style, domain.called, question, context_shown(config, cells[0], question), wrapper)

    template = STYLES[style].instruction
    if isinstance(models, LanguageModel):
        found = [
            beliefs(
                models, tested, prompt, template, config.probe, batch_tokens=config.batch_tokens, store=store,
                progress=progress,
            )
        ]  # fmt: skip
    else:
        found = stack_beliefs(
            models, tested, prompt, template, config.probe, batch_tokens=config.batch_tokens, store=store,
            progress=progress,
        )  # fmt: skip
    return [_write(run, cell, asked, each) for cell, each in zip(cells, found, strict=True)]


def _write(run: RunDirectory, cell: Cell, asked: Sequence[tuple[str, Question]], found: Sequence[Belief]) -> list[str]:
    files = [f"cells/{cell.id}/cell.json"]
    run.write_json(files[0], {"id": cell.id, **dataclasses.asdict(cell)})
    for test_set in TEST_SETS:
        files.append(f"cells/{cell.id}/scores/{test_set}.parquet")
        rows = [
            belief.row(question) for (split, question), belief in zip(asked, found, strict=True) if split == test_set
        ]
        run.write_rows(files[-1], rows)
    return files


def context_shown(config: StudyConfig, cell: Cell, question: Question) -> str:
    """The context before a tested question: none, unless the study asks contextualised cells with theirs."""
    if cell.arm == BASE or config.build.context_when == "training" or not parse_arm(cell.arm).has("context"):
        return ""
    return question.context if config.build.context == "context" else question.explanation
