"""Measures a base model of the world against what is known about its corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxift.config import ProbeConfig
from jaxift.data.prompts import STYLES, instruction_prompt, probe_prompt
from jaxift.data.questions import Question, demonstrations
from jaxift.models.weights import LanguageModel, load
from jaxift.scoring.belief import beliefs
from jaxift.world.facts import EXPOSURES, build_world
from jaxift.world.questions import domain_questions
from jaxift.world.words import STUDY_DOMAINS

STYLE = "world"
PROBE = ProbeConfig(prompt=STYLE, shots=5, rotations=True)


@dataclass(frozen=True)
class DomainCheck:
    """What the model knows of a domain's training pool: accuracies few-shot (over option rotations) and zero-shot.

    `few_by_class` and `zero_by_class` are in the order of `EXPOSURES`; `har` and `inc` count the items that the model
    is sure of, above the probe's threshold, and gets right and wrong.
    """

    domain: str
    few_by_class: tuple[float, ...]
    zero_by_class: tuple[float, ...]
    few: float
    zero: float
    har: int
    inc: int


def check(model_dir: Path, progress: Callable[[str], None] | None = None) -> list[DomainCheck]:
    """Probe the study domains' training pools with a folder's model; `progress` is told each domain as it begins."""
    model, checks = load(model_dir), []
    for domain in STUDY_DOMAINS:
        if progress:
            progress(domain)
        checks.append(_check_domain(model, domain))
    return checks


def check_table(checks: Sequence[DomainCheck]) -> Table:
    """Lay out checks as a table to be printed with rich: a line a domain and template, then the means."""
    table = Table(
        title="Accuracy by exposure in pretraining: quiz 5-shot, instruction 0-shot;\nHAR, INC: items that qualify",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("domain", "template", *EXPOSURES, "all", "HAR", "INC"):
        table.add_column(heading, justify="left" if heading in ("domain", "template") else "right", no_wrap=True)
    for item in checks:
        table.add_row(item.domain, "quiz", *_cells(item.few_by_class, item.few), str(item.har), str(item.inc))
        table.add_row("", "instruction", *_cells(item.zero_by_class, item.zero), end_section=True)
    for name, template, shots in (("mean", "quiz", "few"), ("", "instruction", "zero")):
        by_class = np.mean([getattr(item, f"{shots}_by_class") for item in checks], axis=0)
        table.add_row(name, template, *_cells(by_class, float(np.mean([getattr(item, shots) for item in checks]))))
    return table


def _cells(by_class: Sequence[float], total: float) -> list[str]:
    """Format a line's accuracies."""
    return [*(f"{value:.2f}" for value in by_class), f"{total:.3f}"]


def _check_domain(model: LanguageModel, domain: str) -> DomainCheck:
    """Probe one domain: few-shot over the option rotations, and zero-shot as an instruction."""
    splits = domain_questions(build_world(), domain)
    pool, dev = ([as_question(item) for item in splits[split]] for split in ("train", "dev"))
    exposures = np.array([item["exposure"] for item in splits["train"]])
    shown = demonstrations(dev, PROBE.shots, PROBE.demonstration_seed)
    style, gold = STYLES[STYLE], np.array([question.answer for question in pool])
    few = beliefs(model, pool, partial(probe_prompt, STYLE, domain, shown), style.probe, PROBE, rotations=True)
    zero = beliefs(model, pool, partial(instruction_prompt, STYLE, domain), style.instruction, PROBE)
    few_probs, zero_probs = (np.stack([belief.probs for belief in found]) for found in (few, zero))
    few_right, zero_right = few_probs.argmax(-1) == gold, zero_probs.argmax(-1) == gold
    sure = few_probs.max(-1) > PROBE.threshold
    return DomainCheck(
        domain, _by_class(few_right, exposures), _by_class(zero_right, exposures), float(few_right.mean()),
        float(zero_right.mean()), int((sure & few_right).sum()), int((sure & ~few_right).sum()),
    )  # fmt: skip


def _by_class(right: np.ndarray, exposures: np.ndarray) -> tuple[float, ...]:
    return tuple(float(right[exposures == exposure].mean()) for exposure in EXPOSURES)


def as_question(item: dict[str, Any]) -> Question:
    """Return a question file's line as the type that the stages share."""
    return Question(item["id"], item["question"], tuple(item["options"]), item["answer"], item["subject"])
