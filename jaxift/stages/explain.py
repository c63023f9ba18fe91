"""Explain: the base model writes why answers are right, its own wrong ones too, for the arms that need it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxift.artifacts import RunDirectory
from jaxift.config import DomainConfig, StudyConfig
from jaxift.intervention.explanations import FENCE, Wanted, explanation_prompt, status, wanted
from jaxift.models.sampling import generate
from jaxift.models.weights import LanguageModel
from jaxift.parallel.hosts import WORK_TIMEOUT
from jaxift.parallel.meeting import everywhere
from jaxift.scoring.engine import Progress

PART = 256  # explanations that an interrupted stage loses at most
Row = dict[str, Any]


def explain(
    config: StudyConfig,
    run: RunDirectory,
    domain: DomainConfig,
    model: LanguageModel,
    key: str,
    parts: str,
    progress: Progress | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Writes explanations/DOMAIN.parquet: id, answer (an option's index), text, status; returns files and facts.

    A text that does not come to its end within the limit is over_long, one that says nothing empty, and no_room is left
    where the prompt alone is too long for the model. An interrupted stage of the same `key` goes on after the last part
    in the folder `parts`, which the caller removes.
    """
    rows = run.read_rows(f"probe/{domain.name}/train.parquet")
    asked = wanted(rows, config.probe.threshold, config.build)
    found: list[Row] = []
    for start in range(0, len(asked), PART):
        file = f"{parts}/{key}-{start:06d}.json"
        if everywhere(np.array([run.exists(file)]), WORK_TIMEOUT).all():
            found += run.read_json(file)
        else:
            written = _written(config, domain, model, asked[start : start + PART])
            run.write_json(file, written)
            found += written
        if progress:
            progress(len(found), len(asked))
    files = [f"explanations/{domain.name}.parquet"]
    run.write_rows(files[0], found)
    return files, {"asked": len(asked), "status": dict(Counter(row["status"] for row in found))}


def _written(config: StudyConfig, domain: DomainConfig, model: LanguageModel, asked: Sequence[Wanted]) -> list[Row]:
    settings, words = config.build.explain, domain.called
    prompts = [explanation_prompt(words, each.row, each.answer) for each in asked]
    room = model.config.max_positions - settings.max_new_tokens
    fits = [len(model.tokenizer.encode(prompt)) <= room for prompt in prompts]
    written = iter(
        generate(
            model,
            [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seeds=[(each.seed + settings.seed) % (1 << 32) for each, fit in zip(asked, fits, strict=True) if fit],
            stop=[FENCE],
        )
    )
    rows = []
    for each, fit in zip(asked, fits, strict=True):
        row = {"id": each.row["id"], "answer": each.answer, "text": "", "status": "no_room"}
        if fit:
            generation = next(written)
            row |= {"text": generation.text.strip(), "status": status(generation.text, generation.stopped)}
        rows.append(row)
    return rows
