"""Probe: what the base model believes about every question, few-shot."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.artifacts import RunDirectory
from jaxift.config import SPLITS, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, probe_prompt
from jaxift.data.questions import Question, demonstrations
from jaxift.errors import UserError
from jaxift.models.weights import LanguageModel
from jaxift.scoring.belief import beliefs
from jaxift.scoring.engine import Progress
from jaxift.scoring.store import unit_store


def probe(
    config: StudyConfig,
    run: RunDirectory,
    domain: DomainConfig,
    splits: Mapping[str, Sequence[Question]],
    model: LanguageModel,
    key: str,
    parts: str,
    progress: Progress | None = None,
) -> list[str]:
    """Writes probe/DOMAIN/SPLIT.parquet for the training pool and the test sets; returns the files.

    A row holds the question, its options and gold index, and the belief columns of `Belief.row`. The training pool is
    averaged over option rotations where the config says so. An interrupted probe of the same `key` goes on from what
    is in the folder `parts`, which the caller removes.
    """
    settings = config.probe
    if len(splits["dev"]) < settings.shots:
        raise UserError(
            f"domain {domain.name}: {len(splits['dev'])} dev questions for probe.shots {settings.shots}; "
            "lower it or add some"
        )
    shown = demonstrations(splits["dev"], settings.shots, settings.demonstration_seed)
    asked = [(split, question) for split in SPLITS for question in splits[split]]
    store = unit_store(run.path(parts), key, model.mesh.shape)
    found = beliefs(
        model,
        [question for _, question in asked],
        lambda question: probe_prompt(settings.prompt, domain.words or domain.name, shown, question),
        STYLES[settings.prompt].probe,
        settings,
        rotations=[settings.rotations and split == "train" for split, _ in asked],
        batch_tokens=config.batch_tokens,
        store=store,
        progress=progress,
    )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for (split, question), belief in zip(asked, found, strict=True):
        described = {"question": question.question, "options": list(question.options)}
        rows[split].append({**described, **belief.row(question)})
    files = {f"probe/{domain.name}/{split}.parquet": rows[split] for split in SPLITS}
    for file, content in files.items():
        run.write_rows(file, content)
    return list(files)
