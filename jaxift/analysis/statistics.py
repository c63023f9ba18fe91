"""Intervals by the bootstrap, and the partial rank correlation of Exp-IV.

Shape letters: R resamples, N items, C cells, S seeds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK = 128  # resamples drawn at once; bounds memory at CHUNK x items
DIGITS = 9  # residuals that differ by less are ties


def percentile_interval(resampled: ArrayLike, confidence: float) -> tuple[float, float]:
    """The central `confidence` of a resampled statistic [R], as (low, high). Source: Efron 1979, percentile method."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(resampled, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def item_strata(groups: Sequence[Integers]) -> tuple[list[Integers], int]:
    """Sorts questions by the groups that hold them, so that a resample keeps every group's size.

    `groups` has, per group, the question numbers [N_g] from 0 without gaps over all groups. Returns the strata (each an
    array of question numbers) and the number of questions: groups [0, 1] and [1, 2] give [[2], [0], [1]] and 3.
    """
    total = max(int(group.max()) for group in groups) + 1
    membership = np.stack([np.bincount(group, minlength=total) for group in groups], axis=1)
    _, stratum = np.unique(membership, axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    return [np.flatnonzero(stratum == number) for number in range(int(stratum.max()) + 1)], total


def draw_counts(rng: np.random.Generator, resamples: int, strata: Sequence[Integers], total: int) -> Floats:
    """How often each question is drawn in each resample, drawing with replacement within every stratum: [R, total]."""
    counts = np.zeros((resamples, total))
    rows = np.arange(resamples)[:, None]
    for members in strata:
        size = len(members)
        drawn = rng.integers(0, size, (resamples, size)) + rows * size
        counts[:, members] = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)
    return counts


def resample_means(
    rng: np.random.Generator, groups: Sequence[Integers], values: Sequence[ArrayLike], resamples: int
) -> list[Floats]:
    """Bootstraps the cells' means over questions, with the same drawn questions for all cells, group by group.

    All cells of a group answer the same questions, so their differences must be taken within a resample (paired). A
    question that stands in several groups is drawn once for all of them: copies are no new evidence.

    Args:
      groups: per group (a domain), the number of the question in each row, [N_g].
      values: per group, the cells' values (1 right, 0 wrong), [N_g, C_g].
    Returns per group the resampled means, [R, C_g].
    """
    strata, total = item_strata(groups)
    arrays = [np.asarray(group_values, dtype=np.float64) for group_values in values]
    chunks = []
    for start in range(0, resamples, CHUNK):
        counts = draw_counts(rng, min(CHUNK, resamples - start), strata, total)
        chunks.append([counts[:, g] @ array / len(g) for g, array in zip(groups, arrays, strict=True)])
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def resample_seed_mean(columns: Floats, uniforms: Floats) -> Floats:
    """Bootstraps the mean over seeds on top of resampled questions.

    `columns` [R, S] holds one resampled statistic per seed; `uniforms` [R, >= S] in [0, 1) decide which seeds each
    resample draws, so that statistics given the same uniforms stay paired. Returns [R].
    """
    seeds = columns.shape[1]
    drawn = np.floor(uniforms[:, :seeds] * seeds).astype(np.int64)
    return np.take_along_axis(columns, drawn, axis=1).mean(axis=1)


def partial_spearman(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> float:
    """Spearman correlation of x and y with what both owe to a control taken out; three [C] to [-1, 1].

    Ranks all three, residualises the ranks of x and y on those of the control by least squares with an intercept, and
    correlates the residuals by Spearman. A constant control takes nothing out. Raises ValueError with the reason where
    nothing is left to correlate. Source: Ren et al. 2024 and their released code.
    """
    ranks = {name: stats.rankdata(values) for name, values in (("x", x), ("y", y), ("control", control))}
    design = np.stack([np.ones_like(ranks["control"]), ranks["control"]], axis=1)
    residuals = {name: _residual(ranks[name], design) for name in ("x", "y")}
    for name, residual in residuals.items():
        if np.ptp(residual) == 0:
            raise ValueError(f"{name} does not vary beyond its control")
    left, right = (stats.rankdata(residual) for residual in residuals.values())
    return float(np.corrcoef(left, right)[0, 1])


def _residual(ranks: Floats, design: Floats) -> Floats:
    """What the design leaves unexplained of the ranks, rounded so that equal remainders rank as ties."""
    weights, *_ = np.linalg.lstsq(design, ranks, rcond=None)
    return np.round(ranks - design @ weights, DIGITS) + 0.0
