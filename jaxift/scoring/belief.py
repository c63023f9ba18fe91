"""What a model believes about multiple-choice questions: option scores turned into probabilities and a prediction."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxift.config import ProbeConfig
from jaxift.data.prompts import Template, continuations
from jaxift.data.questions import Question, rotate
from jaxift.models.stack import ModelStack
from jaxift.models.weights import LanguageModel
from jaxift.scoring.engine import Progress, Report, score, score_stack
from jaxift.scoring.requests import Request, Score
from jaxift.scoring.store import ScoreStore

Prompt = Callable[[Question], str]


@dataclasses.dataclass(frozen=True)
class Belief:
    """A model's read-out of one question, an entry an option: normalised log-likelihoods and probabilities."""

    scores: np.ndarray
    probs: np.ndarray

    def row(self, question: Question) -> dict[str, Any]:
        """The columns that every score file has; `pred` is the first of the most probable options."""
        pred = int(np.argmax(self.probs))
        return {
            "id": question.id,
            "subject": question.subject,
            "gold": question.answer,
            "scores": self.scores.tolist(),
            "probs": self.probs.tolist(),
            "pred": pred,
            "pred_prob": float(self.probs[pred]),
            "gold_prob": float(self.probs[question.answer]),
            "correct": pred == question.answer,
        }


def beliefs(
    model: LanguageModel,
    questions: Sequence[Question],
    prompt: Prompt | Sequence[Prompt],
    template: Template,
    probe: ProbeConfig,
    *,
    rotations: bool | Sequence[bool] = False,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[Belief]:
    """Scores each question's options after its prompt; several prompts (draws of demonstrations) are averaged.

    With `rotations` (one for all questions, or one each), a question is asked once a rotation of its options; the mean
    probability of an option over the places that it took is its probability, so that a preference for a letter or place
    cancels out. What the variants share is computed once.
    """
    found = readings(
        model, questions, prompt, template, probe,
        rotations=rotations, batch_tokens=batch_tokens, store=store, progress=progress,
        report=report,
    )  # fmt: skip
    return [believe(reading) for reading in found]


def readings(
    model: LanguageModel,
    questions: Sequence[Question],
    prompt: Prompt | Sequence[Prompt],
    template: Template,
    probe: ProbeConfig,
    *,
    rotations: bool | Sequence[bool] = False,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[np.ndarray]:
    """Normalised log-likelihoods [prompts, rotations, places] of each question; arguments: see `beliefs`.

    Entry [p, r, i] is that of place i under prompt p where the options are rotated by r.
    """
    asked = _Asked.of(questions, prompt, template, probe, rotations)
    found = score(model, asked.requests, batch_tokens=batch_tokens, store=store, progress=progress, report=report)
    return asked.readings(found)


def asked(
    questions: Sequence[Question],
    prompt: Prompt | Sequence[Prompt],
    template: Template,
    probe: ProbeConfig,
    rotations: bool | Sequence[bool] = False,
) -> list[Request]:
    """The requests that `readings` scores."""
    return _Asked.of(questions, prompt, template, probe, rotations).requests


def stack_beliefs(
    stack: ModelStack,
    questions: Sequence[Question],
    prompt: Prompt,
    template: Template,
    probe: ProbeConfig,
    *,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[list[Belief]]:
    """`beliefs` of every model of a stack, in one program; a list for each model."""
    asked = _Asked.of(questions, prompt, template, probe, False)
    found = score_stack(stack, asked.requests, batch_tokens=batch_tokens, store=store, progress=progress, report=report)
    return [[believe(reading) for reading in asked.readings(scores)] for scores in found]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The variants of each question: one a prompt and rotation; and the requests that they become."""

    probe: ProbeConfig
    prompts: int
    variants: list[list[Question]]
    requests: list[Request]

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        prompt: Prompt | Sequence[Prompt],
        template: Template,
        probe: ProbeConfig,
        rotations: bool | Sequence[bool],
    ) -> "_Asked":
        prompts = [prompt] if callable(prompt) else list(prompt)
        turned = [rotations] * len(questions) if isinstance(rotations, bool) else rotations
        asked = [
            [rotate(question, shift) for _ in prompts for shift in range(len(question.options) if turns else 1)]
            for question, turns in zip(questions, turned, strict=True)
        ]
        requests = [
            Request(
                prompts[number * len(prompts) // len(variants)](variant),
                continuations(template, variant, probe.formulation),
            )
            for variants in asked
            for number, variant in enumerate(variants)
        ]
        return cls(probe, len(prompts), asked, requests)

    def readings(self, scores: Sequence[Score]) -> list[np.ndarray]:
        """What the scores of the requests say of each question."""
        answers = iter(scores)
        return [
            np.stack(
                [(answer := next(answers)).logprobs / _lengths(variant, answer, self.probe) for variant in variants]
            ).reshape(self.prompts, -1, len(variants[0].options))
            for variants in self.variants
        ]


def believe(reading: np.ndarray) -> Belief:
    """What a reading [prompts, rotations, places] says of the options, averaged over prompts and rotations."""
    return Belief(by_option(reading).mean(0), by_option(softmax(reading)).mean(0))


def corrected(reading: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
    """A reading with a prior over the places divided out of it (Zheng et al. 2024, PriDe, equation 7)."""
    return reading if prior is None else reading - np.log(prior)


def place_prior(found: Sequence[np.ndarray]) -> np.ndarray:
    """How probable each place is whatever stands there, from readings with all rotations and equally many options.

    The softmax of the mean log-probability over a question's rotations, averaged over questions (Zheng et al. 2024,
    PriDe, equations 6 and 8); a few dozen questions are enough to correct the others, asked once each. Raises
    ValueError where a reading lacks rotations or has another number of options.
    """
    shapes = {reading.shape[1:] for reading in found}
    if len(shapes) != 1 or any(rotations != places for rotations, places in shapes):
        raise ValueError(f"a place prior needs readings of all rotations and equally many options, not {shapes}")
    means = [np.log(softmax(reading)).mean(axis=(0, 1)) for reading in found]
    return np.mean([softmax(mean) for mean in means], axis=0)


def by_option(reading: np.ndarray) -> np.ndarray:
    """A reading [prompts, rotations, places] as [variants, options]: each option's value wherever it stood."""
    return np.concatenate([np.roll(reading[:, r], -r, axis=-1) for r in range(reading.shape[1])])


def knowledge(reading: np.ndarray, gold: int, samples: int, temperature: float, seed: Sequence[int]) -> dict[str, Any]:
    """How well a question is known over its prompts and rotations (Gekhman et al. 2024, table 2).

    `greedy_share`: how often the best option is the true one. `known`: HighlyKnown (always), MaybeKnown (sometimes),
    WeaklyKnown (never, but among `samples` answers drawn at `temperature`, as many of each variant as can be), Unknown.
    """
    scores = by_option(reading)
    share = float(np.mean(scores.argmax(-1) == gold))
    drawn = np.random.default_rng(list(seed)).random(samples)
    cumulative = np.cumsum(softmax(scores / temperature), axis=-1)[np.arange(samples) % len(scores)]
    answers = (cumulative < drawn[:, None]).sum(-1)
    if share:
        known = "HighlyKnown" if share == 1 else "MaybeKnown"
    else:
        known = "WeaklyKnown" if (answers == gold).any() else "Unknown"
    return {"greedy_share": share, "known": known}


def _lengths(question: Question, answer: Score, probe: ProbeConfig) -> np.ndarray:
    """What each option's log-probability is divided by: its own text's length; letters are never divided."""
    if probe.formulation == "mcf" or probe.normalization == "sum":
        return np.ones(len(question.options))
    if probe.normalization == "per_token":
        return answer.num_tokens.astype(float)
    per_byte = probe.normalization == "per_byte"
    return np.array([len(option.encode() if per_byte else option) for option in question.options], float)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, the options alone."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
