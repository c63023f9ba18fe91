"""Probe: what the base model believes about every question, few-shot."""

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxift.artifacts import RunDirectory
from jaxift.config import TEST_SETS, DomainConfig, ProbeConfig, StudyConfig
from jaxift.data.prompts import STYLES, continuations, probe_prompt
from jaxift.data.questions import Question
from jaxift.data.sources import DomainQuestions
from jaxift.models.weights import LanguageModel
from jaxift.parallel.hosts import process_count, process_index
from jaxift.scoring.belief import Prompt, believe, corrected, knowledge, place_prior, readings
from jaxift.scoring.costs import cost
from jaxift.scoring.engine import Progress, Statistics
from jaxift.scoring.store import unit_store

Row = dict[str, Any]


def probe(
    config: StudyConfig,
    run: RunDirectory,
    domain: DomainConfig,
    questions: DomainQuestions,
    model: LanguageModel,
    key: str,
    parts: str,
    progress: Progress | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Writes probe/DOMAIN/SPLIT.parquet for the training pool, where there is one, and the test sets.

    Returns the files and facts for the manifest.

    A row holds the question with all its fields and the columns of `Belief.row`. The training pool is asked as often as
    the config says (draws of demonstrations, rotations); its rows have the columns of `knowledge` besides. An
    interrupted probe of the same `key` goes on from what is in the folder `parts`, which the caller removes.
    """
    settings = config.probe
    prompts = prompts_of(settings, domain.called, questions)
    read = functools.partial(readings, model, template=STYLES[settings.prompt].probe, probe=settings)
    told: list[Statistics] = []
    read = functools.partial(read, batch_tokens=config.batch_tokens, progress=progress, report=told.append)

    pool = questions["train"]
    turned = in_rotations(settings, pool)
    store = unit_store(run.path(f"{parts}/train"), key, model.mesh.shape, process_index(), process_count())
    found = read(questions=pool, prompt=prompts, rotations=turned, store=store) if pool else []
    priors = _priors(pool, found, turned) if settings.prior_questions else {}
    store = unit_store(run.path(f"{parts}/tests"), key, model.mesh.shape, process_index(), process_count())
    answers = iter(read(questions=questions.tested, prompt=prompts[0], store=store))

    rows: dict[str, list[Row]] = {"train": _pool_rows(settings, pool, found, turned, priors)} if pool else {}
    for test_set in TEST_SETS:
        rows[test_set] = [
            {**_described(question), **believe(next(answers)).row(question)} for question in questions[test_set]
        ]
    files = {f"probe/{domain.name}/{split}.parquet": content for split, content in rows.items()}
    for file, content in files.items():
        run.write_rows(file, content)
    return list(files), {
        "overlap": questions.overlap,
        "cost": cost(told, model.mesh, str(model.dtype)),
        "place_prior": {str(k): prior.tolist() for k, prior in priors.items()},
        "tokenizer": model.tokenizer.describe(),
        "answer_tokens": _answer_tokens(settings, model, prompts[0], questions.tested[0]),
    }


def prompts_of(settings: ProbeConfig, words: str, questions: DomainQuestions) -> list[Prompt]:
    """How a question is asked, with each draw of demonstrations."""

    def prompt(draw: int) -> Prompt:
        shown = questions.shown(settings.shots, settings.demonstration_seed + draw)
        return lambda question: probe_prompt(settings.prompt, words, shown.get(question.header, ()), question)

    return [prompt(draw) for draw in range(settings.draws)]


def _answer_tokens(
    settings: ProbeConfig, model: LanguageModel, prompt: Prompt, question: Question
) -> dict[str, list[str]]:
    """The tokens by which options are read, of one question as an example."""
    texts = continuations(STYLES[settings.prompt].probe, question, settings.formulation)
    pairs = model.tokenizer.encode_pairs([(prompt(question), text) for text in texts])
    return {
        text: [str(token) for token in model.tokenizer.backend.convert_ids_to_tokens(ids)]
        for text, (_, ids) in zip(texts, pairs, strict=True)
    }


def in_rotations(settings: ProbeConfig, pool: Sequence[Question]) -> list[bool]:
    """Which training questions are asked in all rotations: all, none, or of each number of options some, drawn."""
    if not settings.prior_questions:
        return [settings.rotations] * len(pool)
    chosen: set[int] = set()
    for k in {len(question.options) for question in pool}:
        places = [place for place, question in enumerate(pool) if len(question.options) == k]
        drawn = random.Random(settings.demonstration_seed)
        chosen.update(drawn.sample(places, min(settings.prior_questions, len(places))))
    return [place in chosen for place in range(len(pool))]


def _priors(pool: Sequence[Question], found: Sequence[np.ndarray], turned: Sequence[bool]) -> dict[int, np.ndarray]:
    """By number of options, how probable each place is whatever stands there."""
    groups: dict[int, list[np.ndarray]] = {}
    for question, reading, whole in zip(pool, found, turned, strict=True):
        if whole:
            groups.setdefault(len(question.options), []).append(reading)
    return {k: place_prior(members) for k, members in groups.items()}


def _pool_rows(
    settings: ProbeConfig,
    pool: Sequence[Question],
    found: Sequence[np.ndarray],
    turned: Sequence[bool],
    priors: Mapping[int, np.ndarray],
) -> list[Row]:
    rows = []
    for place, (question, reading, whole) in enumerate(zip(pool, found, turned, strict=True)):
        told = corrected(reading, None if whole else priors.get(len(question.options)))
        seed = (settings.demonstration_seed, place)
        graded = knowledge(told, question.answer, settings.samples, settings.sample_temperature, seed)
        rows.append({**_described(question), **believe(told).row(question), **graded})
    return rows


def _described(question: Question) -> Row:
    """The columns from which a question can be rebuilt, beside those of `Belief.row`."""
    return {
        "question": question.question,
        "options": list(question.options),
        "header": question.header,
        "explanation": question.explanation,
        "context": question.context,
    }
