"""Probe: what the base model believes about every question, few-shot."""

from collections.abc import Mapping, Sequence

from jaxift.artifacts import RunDirectory
from jaxift.config import SPLITS, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, probe_prompt
from jaxift.data.questions import Question, demonstrations
from jaxift.errors import UserError
from jaxift.models.weights import LanguageModel
from jaxift.scoring.belief import beliefs
from jaxift.scoring.engine import Progress


def probe(
    config: StudyConfig,
    run: RunDirectory,
    domain: DomainConfig,
    splits: Mapping[str, Sequence[Question]],
    model: LanguageModel,
    progress: Progress | None = None,
) -> list[str]:
    """Writes probe/DOMAIN/SPLIT.parquet for the training pool and the test sets; returns the files.

    A row holds the question, its options and gold index, and the belief columns of `Belief.row`. The training pool is
    averaged over option rotations where the config says so.
    """
    settings = config.probe
    if len(splits["dev"]) < settings.shots:
        raise UserError(
            f"domain {domain.name}: {len(splits['dev'])} dev questions for probe.shots {settings.shots}; "
            "lower it or add some"
        )
    shown = demonstrations(splits["dev"], settings.shots, settings.demonstration_seed)
    files = []
    for split in SPLITS:
        found = beliefs(
            model,
            splits[split],
            lambda question: probe_prompt(settings.prompt, domain.words or domain.name, shown, question),
            STYLES[settings.prompt].probe,
            settings,
            rotations=settings.rotations and split == "train",
            batch_tokens=config.batch_tokens,
            progress=progress,
        )
        rows = [
            {"question": question.question, "options": list(question.options), **belief.row(question)}
            for question, belief in zip(splits[split], found, strict=True)
        ]
        files.append(f"probe/{domain.name}/{split}.parquet")
        run.write_rows(files[-1], rows)
    return files
