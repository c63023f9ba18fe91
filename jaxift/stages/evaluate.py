"""Evaluate: models, zero-shot on their domain's three test sets, and tuned ones on what they were trained on.

Tuned models of a domain are asked in one program.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.arms import parse_arm
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, instruction_prompt
from jaxift.data.questions import Question
from jaxift.data.sources import DomainQuestions
from jaxift.models.stack import ModelStack
from jaxift.models.weights import LanguageModel
from jaxift.parallel.hosts import process_count, process_index
from jaxift.scoring.belief import Belief, beliefs, stack_beliefs
from jaxift.scoring.costs import cost
from jaxift.scoring.engine import Progress, Statistics
from jaxift.scoring.store import unit_store

TRAINED = "trained"
"""The file of a tuned model's answers to its own training questions."""


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
) -> list[tuple[list[str], dict[str, Any]]]:
    """Writes cells/ID/scores/SET.parquet with the columns of `Belief.row`; returns each cell's files and facts.

    Of a tuned model also trained.parquet, with the questions that it was trained on, the arm's `answer` and the base's
    own (`base_pred`) beside the true one. `models` is the base model, for its own cell, or a stack of the cells'
    models; all cells are asked the same, and each other's training questions. An interrupted evaluation of the same
    `key` goes on from what is in the folder `parts`, which the caller removes. `wrapper` is the conversation around an
    instruction where it is not the study's own.
    """
    style = config.probe.prompt
    trained = {cell: _trained(run, cell) for cell in cells}
    prompts = {question: item["prompt"] for items in trained.values() for question, item in items}
    asked = [*questions.tested, *prompts]
    like = models if isinstance(models, LanguageModel) else models.like
    store = unit_store(run.path(parts), key, like.mesh.shape, process_index(), process_count())
    told: list[Statistics] = []

    def prompt(question: Question) -> str:
        if question in prompts:
            return prompts[question]
        return instruction_prompt(style, domain.called, question, context_shown(config, cells[0], question), wrapper)

    how: dict[str, Any] = {
        "batch_tokens": config.batch_tokens, "store": store, "progress": progress, "report": told.append,
    }  # fmt: skip
    template = STYLES[style].instruction
    if isinstance(models, LanguageModel):
        found = [beliefs(models, asked, prompt, template, config.probe, **how)]
    else:
        found = stack_beliefs(models, asked, prompt, template, config.probe, **how)
    facts = {"cost": cost(told, like.mesh, str(like.dtype), len(cells))}
    tested = len(questions.tested)
    files = []
    for cell, each in zip(cells, found, strict=True):
        files.append(_write(run, cell, questions, each[:tested]))
        if trained[cell]:
            files[-1].append(_write_trained(run, cell, trained[cell], dict(zip(prompts, each[tested:], strict=True))))
    return [(each, facts) for each in files]


def _trained(run: RunDirectory, cell: Cell) -> list[tuple[Question, Mapping[str, Any]]]:
    """The items that a cell was trained on to give an answer, each as a question whose text is the whole prompt."""
    if cell.arm == BASE:
        return []
    items = run.read_jsonl(f"arms/{cell.domain}/s{cell.seed}/{cell.arm}.jsonl")
    return [
        (Question(item["id"], item["prompt"], tuple(item["options"]), item["gold"]), item)
        for item in items
        if item["kind"] == "item" and item["answer"] is not None
    ]


def _write(run: RunDirectory, cell: Cell, questions: DomainQuestions, found: Sequence[Belief]) -> list[str]:
    files = [f"cells/{cell.id}/cell.json"]
    run.write_json(files[0], {"id": cell.id, **dataclasses.asdict(cell)})
    answers = iter(found)
    for test_set in TEST_SETS:
        files.append(f"cells/{cell.id}/scores/{test_set}.parquet")
        run.write_rows(files[-1], [next(answers).row(question) for question in questions[test_set]])
    return files


def _write_trained(
    run: RunDirectory,
    cell: Cell,
    trained: Sequence[tuple[Question, Mapping[str, Any]]],
    found: Mapping[Question, Belief],
) -> str:
    file = f"cells/{cell.id}/scores/{TRAINED}.parquet"
    taught = [{"answer": item["answer"], "base_pred": item["pred"]} for _, item in trained]
    run.write_rows(
        file, [{**found[question].row(question), **more} for (question, _), more in zip(trained, taught, strict=True)]
    )
    return file


def context_shown(config: StudyConfig, cell: Cell, question: Question) -> str:
    """The context before a tested question: none, unless the study asks contextualised cells with theirs."""
    if cell.arm == BASE or config.build.context_when == "training" or not parse_arm(cell.arm).has("context"):
        return ""
    return question.context if config.build.context == "context" else question.explanation
