"""How far a model's confidence can be believed, and how sure it is of what it knows. Letters: N items, K options."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 10
"""Of confidence, equally wide between 0 and 1."""
KNOWLEDGE = ("right, sure", "right, unsure", "wrong, unsure", "wrong, sure")
"""What the base model knows of a question: whether its answer is true, and whether it is sure of it."""


def calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over ten bins, weighted by their size.

    Two [N]: the probability of the predicted option, and whether it is the true one. Source: Guo et al. 2017.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    which = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(which, weights=correct - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def brier(probs: ArrayLike, gold: ArrayLike) -> float:
    """Mean over questions of the squared distance between the probabilities and the truth, from 0 to 2.

    [N, K] with NaN for the options that a question does not have, and the true ones [N]. Source: Brier 1950.
    """
    probs, gold = np.asarray(probs, dtype=np.float64), np.asarray(gold, dtype=np.int64)
    truth = np.arange(probs.shape[1]) == gold[:, None]
    return float(np.nansum((probs - truth) ** 2, axis=1).mean())


def knowledge_class(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """The number in KNOWLEDGE of each question, from the base model's confidence and verdict; two [N] to [N].

    It is sure above the threshold, by which the study's arms are drawn too.
    """
    sure, correct = np.asarray(confidence, dtype=np.float64) > threshold, np.asarray(correct, dtype=bool)
    return np.where(correct, np.where(sure, 0, 1), np.where(sure, 3, 2))
