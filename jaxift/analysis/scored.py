"""A model's answers to a test set, and what they say beside the base model's. Letters: N questions, K options."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jaxift.analysis import consistency
from jaxift.analysis.calibration import KNOWLEDGE, brier, calibration_error, knowledge_class

MEASURES = (
    "rank_consistency", "spearman", "kendall", "kl", "reverse_kl", "js", "agreement", "right_to_wrong",
    "wrong_to_right", "commonest_place", "letters_from_true", "letters_from_base", "confidence", "calibration_error",
    "brier",
)  # fmt: skip
"""The numbers of `beside_base` that are averaged over seeds and domains; flips as shares of the questions."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """Log-probabilities [N, K] (NaN where there is no option), prediction, true option and verdict [N]."""

    log_probs: NDArray[np.float64]
    pred: NDArray[np.int64]
    gold: NDArray[np.int64]
    correct: NDArray[np.bool_]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the most probable option, [N]."""
        return np.exp(np.fmax.reduce(self.log_probs, axis=1))

    def letters(self, answers: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of some answers stand at each place, [K]."""
        return np.bincount(answers, minlength=self.log_probs.shape[1])


def in_order_of(table: pa.Table, questions: pa.Table) -> pa.Table:
    """Answers in the order of the questions, by their `id`; those to none of them come first."""
    if table["id"].equals(questions["id"]):
        return table
    order = {name: number for number, name in enumerate(questions["id"].to_pylist())}
    places = np.array([order.get(name, -1) for name in table["id"].to_pylist()], dtype=np.int64)
    return table.take(np.argsort(places, kind="stable"))


def alone(scored: Scored) -> dict[str, Any]:
    """What a model's answers say without another's: accuracy, calibration, and where the answers stand."""
    letters, true = scored.letters(scored.pred), scored.letters(scored.gold)
    return {
        "n": len(scored.correct),
        "accuracy": float(scored.correct.mean()),
        "letters": letters.tolist(),
        "commonest_place": float(letters.max() / letters.sum()),
        "letters_from_true": consistency.total_variation(letters, true),
        "confidence": float(scored.confidence.mean()),
        "calibration_error": calibration_error(scored.confidence, scored.correct),
        "brier": brier(np.exp(scored.log_probs), scored.gold),
    }


def beside_base(base: Scored, tuned: Scored, threshold: float) -> dict[str, Any]:
    """What a model's answers say, also of how its beliefs compare with the base's; two of the same questions."""
    right_to_wrong, wrong_to_right = consistency.flips(base.correct, tuned.correct)
    before, after = base.log_probs, tuned.log_probs
    return {
        **alone(tuned),
        "base_accuracy": float(base.correct.mean()),
        "rank_consistency": float(consistency.rank_consistency(before, after).mean()),
        "spearman": float(consistency.spearman(before, after).mean()),
        "kendall": float(consistency.kendall(before, after).mean()),
        "kl": float(consistency.kl_divergence(before, after).mean()),
        "reverse_kl": float(consistency.kl_divergence(after, before).mean()),
        "js": float(consistency.js_divergence(before, after).mean()),
        "agreement": float(np.mean(base.pred == tuned.pred)),
        "right_to_wrong": right_to_wrong,
        "wrong_to_right": wrong_to_right,
        "letters_from_base": consistency.total_variation(base.letters(base.pred), tuned.letters(tuned.pred)),
        "knowledge": by_knowledge(base, tuned, threshold),
    }


def by_knowledge(base: Scored, tuned: Scored, threshold: float) -> dict[str, dict[str, float]]:
    """By what the base knew of the questions: their number, accuracy, and share with the base's answer kept."""
    classes = knowledge_class(base.confidence, base.correct, threshold)
    result = {}
    for number, name in enumerate(KNOWLEDGE):
        here = classes == number
        if here.any():
            result[name] = {
                "n": int(here.sum()),
                "accuracy": float(tuned.correct[here].mean()),
                "kept": float(np.mean(base.pred[here] == tuned.pred[here])),
            }
    return result
