"""What a model believes about multiple-choice questions: option scores turned into probabilities and a prediction."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxift.config import ProbeConfig
from jaxift.data.prompts import Template, continuations
from jaxift.data.questions import Question, rotate
from jaxift.models.weights import LanguageModel
from jaxift.scoring.engine import Progress, Request, Score, score


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
    prompt: Callable[[Question], str],
    template: Template,
    probe: ProbeConfig,
    *,
    rotations: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Belief]:
    """Scores each question's options after its prompt.

    With `rotations`, each question is asked once a rotation of its options; the mean probability of an option over the
    places that it took is its probability, so that a preference for a letter or place cancels out.
    """
    asked = [
        [rotate(question, shift) for shift in range(len(question.options) if rotations else 1)]
        for question in questions
    ]
    flat = [variant for variants in asked for variant in variants]
    requests = [Request(prompt(variant), continuations(template, variant, probe.formulation)) for variant in flat]
    answers = iter(zip(flat, score(model, requests, batch_tokens=batch_tokens, progress=progress), strict=True))
    return [_belief([next(answers) for _ in variants], probe) for variants in asked]


def _belief(answers: Sequence[tuple[Question, Score]], probe: ProbeConfig) -> Belief:
    """Joins the rotations of one question; answer number r is the question rotated by r."""
    scores, probs = [], []
    for shift, (question, answer) in enumerate(answers):
        normalised = answer.logprobs / _lengths(question, answer, probe)
        scores.append(np.roll(normalised, -shift))
        probs.append(np.roll(softmax(normalised), -shift))
    return Belief(np.mean(scores, axis=0), np.mean(probs, axis=0))


def _lengths(question: Question, answer: Score, probe: ProbeConfig) -> np.ndarray:
    """What each option's log-probability is divided by: its own text's length; letters are never divided."""
    if probe.formulation == "mcf" or probe.normalization == "sum":
        return np.ones(len(question.options))
    if probe.normalization == "per_token":
        return answer.num_tokens.astype(float)
    per_byte = probe.normalization == "per_byte"
    return np.array([len(option.encode() if per_byte else option) for option in question.options], float)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the options alone."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
