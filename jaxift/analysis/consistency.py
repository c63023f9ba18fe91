"""How far a tuned model's beliefs about each question agree with the base model's. Shape letters: N items, K options.

Questions may have different numbers of options: an array's row holds its K_n values first, and NaN after them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def pad_options(rows: Sequence[Sequence[float]]) -> Floats:
    """Stacks per-option values of questions with unequal numbers of options.

    Returns [N, K] with NaN where a question has fewer than K options: [[1, 2], [3, 4, 5]] gives
    [[1, 2, nan], [3, 4, 5]].
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    padded = np.full((len(rows), int(lengths.max(initial=0))), np.nan)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = [value for row in rows for value in row]
    return padded


def log_softmax(scores: ArrayLike) -> Floats:
    """Log-probabilities (natural) of each question's options from their scores.

    [N, K] to [N, K]; NaN marks the options that a question does not have. A score of -inf is a probability of zero.
    """
    scores = np.asarray(scores, dtype=np.float64)
    shifted = scores - np.fmax.reduce(scores, axis=1, keepdims=True)
    return shifted - np.log(np.nansum(np.exp(shifted), axis=1, keepdims=True))


def dense_ranks(values: ArrayLike) -> Floats:
    """Ranks within each row: the largest value has rank 1, equal values share a rank, no rank is left out.

    [N, K] to [N, K], NaN stays NaN: [0.5, 0.2, 0.2, 0.1] gives [1, 2, 2, 3]. Source: Ren et al. 2024, released code.
    """
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(-values, axis=1, kind="stable")
    descending = np.take_along_axis(values, order, axis=1)
    falls = np.ones_like(values)
    falls[:, 1:] = descending[:, 1:] != descending[:, :-1]
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.cumsum(falls, axis=1), axis=1)
    return np.where(np.isnan(values), np.nan, ranks)


def average_ranks(values: ArrayLike) -> Floats:
    """Ranks within each row: the largest value has rank 1, equal values share the mean of their ranks.

    [N, K] to [N, K], NaN stays NaN: [0.5, 0.2, 0.2, 0.1] gives [1, 2.5, 2.5, 4].
    """
    values = np.asarray(values, dtype=np.float64)
    larger = np.sum(values[:, None, :] > values[:, :, None], axis=2)
    equal = np.sum(values[:, None, :] == values[:, :, None], axis=2)
    return np.where(np.isnan(values), np.nan, larger + (equal + 1) / 2)


def row_pearson(left: ArrayLike, right: ArrayLike) -> Floats:
    """Pearson correlation of each row of one array with the same row of the other.

    Two [N, K] with NaN at the same places to [N]; NaN where a row is constant.
    """
    a, b = (_centred(np.asarray(values, dtype=np.float64)) for values in (left, right))
    norms = np.sqrt(np.sum(a * a, axis=1) * np.sum(b * b, axis=1))
    products = np.sum(a * b, axis=1)
    defined = norms > 0
    return np.where(defined, np.clip(products / np.where(defined, norms, 1.0), -1.0, 1.0), np.nan)


def _centred(values: Floats) -> Floats:
    """Rows minus their means; zero in place of NaN, so that sums over a row pass over the missing options."""
    present = ~np.isnan(values)
    total = np.sum(values, axis=1, keepdims=True, where=present)
    return np.where(present, values - total / np.maximum(present.sum(axis=1, keepdims=True), 1), 0.0)


def rank_consistency(base: ArrayLike, tuned: ArrayLike) -> Floats:
    """Per question, the Pearson correlation of the dense ranks that two models give its options.

    Two [N, K] of probabilities, or of anything that rises with them, to [N] in [-1, 1]; a model that ranks all options
    alike has no correlation with anything, which counts as 0. Source: Ren et al. 2024 and their released code.
    """
    return np.nan_to_num(row_pearson(dense_ranks(base), dense_ranks(tuned)), nan=0.0)


def spearman(base: ArrayLike, tuned: ArrayLike) -> Floats:
    """Per question, Spearman's correlation of the options' values; two [N, K] to [N], 0 where one ranks all alike."""
    return np.nan_to_num(row_pearson(average_ranks(base), average_ranks(tuned)), nan=0.0)


def kendall(base: ArrayLike, tuned: ArrayLike) -> Floats:
    """Per question, Kendall's tau-b of the options' values; two [N, K] to [N], 0 where one ranks all alike.

    Source: Kendall 1945.
    """
    a, b = (_orders(np.asarray(values, dtype=np.float64)) for values in (base, tuned))
    untied = np.sqrt(np.sum(a * a, axis=1, dtype=np.float64) * np.sum(b * b, axis=1, dtype=np.float64))
    return np.sum(a * b, axis=1, dtype=np.float64) / np.maximum(untied, 1)


def _orders(values: Floats) -> NDArray[np.int8]:
    """For each pair of options which is larger, as 1, 0 or -1, and 0 where one is missing: [N, K] to [N, pairs]."""
    one, other = np.triu_indices(values.shape[1], 1)
    left, right = values[:, one], values[:, other]
    return (left > right).astype(np.int8) - (left < right).astype(np.int8)


def kl_divergence(base_log: ArrayLike, tuned_log: ArrayLike) -> Floats:
    """Per question, KL(base || tuned) in nats: what is lost by describing the base's belief with the tuned model's.

    Two [N, K] of natural log-probabilities to [N]; an option that the base rules out (-inf) adds nothing, one that the
    tuned model alone rules out makes it infinite. Source: Ren et al. 2024.
    """
    base_log, tuned_log = np.asarray(base_log, dtype=np.float64), np.asarray(tuned_log, dtype=np.float64)
    counted = np.exp(base_log) > 0  # false for NaN and for -inf
    difference = np.subtract(base_log, tuned_log, out=np.zeros_like(base_log), where=counted)
    return np.sum(np.exp(base_log) * difference, axis=1, where=counted)


def js_divergence(base_log: ArrayLike, tuned_log: ArrayLike) -> Floats:
    """Per question, the Jensen-Shannon divergence of two beliefs in nats, from 0 to ln 2.

    Two [N, K] of natural log-probabilities to [N]. Source: Lin 1991.
    """
    base_log, tuned_log = np.asarray(base_log, dtype=np.float64), np.asarray(tuned_log, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # NaN beside NaN
        middle = np.logaddexp(base_log, tuned_log) - np.log(2)
    return (kl_divergence(base_log, middle) + kl_divergence(tuned_log, middle)) / 2


def total_variation(left: ArrayLike, right: ArrayLike) -> float:
    """Half the sum of absolute differences of two histograms' shares, from 0 to 1; two [K] of counts, none empty."""
    one, other = (np.asarray(counts, dtype=np.float64) for counts in (left, right))
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def flips(before: ArrayLike, after: ArrayLike) -> tuple[int, int]:
    """Numbers of questions that went from right to wrong and from wrong to right; two boolean [N]."""
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    return int(np.sum(before & ~after)), int(np.sum(~before & after))
