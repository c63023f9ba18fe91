"""Evaluate: one cell, zero-shot on its domain's three test sets."""

import dataclasses

from flax import nnx

from jaxift.arms import parse_arm
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, instruction_prompt
from jaxift.data.questions import Question
from jaxift.data.sources import DomainQuestions
from jaxift.models.weights import LanguageModel
from jaxift.scoring.belief import beliefs
from jaxift.scoring.engine import Progress
from jaxift.scoring.store import unit_store
from jaxift.tuning.checkpoint import restore_params


def evaluate(
    config: StudyConfig,
    run: RunDirectory,
    cell: Cell,
    domain: DomainConfig,
    questions: DomainQuestions,
    base: LanguageModel,
    key: str,
    parts: str,
    wrapper: str = "",
    progress: Progress | None = None,
) -> list[str]:
    """Writes cells/ID/scores/SET.parquet with the columns of `Belief.row`; returns the files.

    The model is read from the cell's checkpoints; the BASE cell is the base model itself. An interrupted evaluation of
    the same `key` goes on from what is in the folder `parts`, which the caller removes. `wrapper` is the conversation
    around an instruction where it is not the study's own.
    """
    model = base
    if cell.arm != BASE:
        model = base.with_state(restore_params(run.path(cell.checkpoints), nnx.state(base.decoder)))
    style = config.probe.prompt
    files = [f"cells/{cell.id}/cell.json"]
    run.write_json(files[0], {"id": cell.id, **dataclasses.asdict(cell)})
    asked = [(test_set, question) for test_set in TEST_SETS for question in questions[test_set]]
    store = unit_store(run.path(parts), key, model.mesh.shape)
    found = beliefs(
        model,
        [question for _, question in asked],
        lambda question: instruction_prompt(
            style, domain.called, question, context_shown(config, cell, question), wrapper
        ),
        STYLES[style].instruction,
        config.probe,
        batch_tokens=config.batch_tokens,
        store=store,
        progress=progress,
    )
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
