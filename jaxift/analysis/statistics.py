"""Standard errors and intervals of means over questions and seeds, paired tests, and a partial rank correlation.

Shape letters: R resamples, N items, C cells, S seeds.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from jaxift.analysis.consistency import flips

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK = 128  # resamples drawn at once; bounds memory at CHUNK x items
DIGITS = 9  # residuals that differ by less are ties


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, and the degrees of freedom with which that is known."""

    value: float
    error: float
    freedom: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """The interval by Student's t, as (low, high)."""
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the true value is 0."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    def detectable(self, confidence: float, power: float) -> float:
        """The smallest true value that a study of this size tells from 0 with such power. Source: Bloom 1995."""
        quantiles = stats.t.ppf((1 + confidence) / 2, self.freedom) + stats.t.ppf(power, self.freedom)
        return float(quantiles) * self.error


def seed_variance(values: Floats) -> tuple[float, float]:
    """What the choice of seeds adds to the variance of the mean over N items and S seeds; [N, S] of one domain.

    Seeds answer the same items, so that their means differ by chance alone even where seeds do not matter: the part
    that their interaction with the items explains is taken off (a two-way analysis of variance with random effects,
    Searle, Casella and McCulloch 1992). Returns the variance, which may come out negative, and the share of its own
    uncertainty that Satterthwaite's rule sums over components: squared mean squares by their degrees of freedom.
    """
    items, seeds = values.shape
    if seeds == 1 or items == 1:
        return 0.0, 0.0
    by_seed, by_item = values.mean(axis=0), values.mean(axis=1)
    rest = values - by_seed - by_item[:, None] + values.mean()
    between = items * by_seed.var(ddof=1)
    within = np.sum(rest * rest) / ((items - 1) * (seeds - 1))
    size = items * seeds
    uncertainty = between**2 / (seeds - 1) + within**2 / ((items - 1) * (seeds - 1))
    return float((between - within) / size), float(uncertainty / size**2)


def estimate(value: float, draws: Floats, domains: Sequence[Floats], items: int) -> Estimate:
    """A mean over domains of means over items and seeds, its error from resampled items and from the seeds' spread.

    `draws` [R] are the value with resampled items and the same seeds; `domains` holds what the mean is of, [N, S] a
    domain, in which stand `items` different ones. The degrees of freedom are Satterthwaite's (1946). Few items that all
    agree are no certainty: the error is at least that of two answers each way more (Agresti and Coull 1998).
    """
    of_items = max(float(np.var(draws, ddof=1)) if len(draws) > 1 else 0.0, 2 / (items + 4) ** 2)
    parts = [seed_variance(values) for values in domains]
    count = len(domains)
    of_seeds = max(sum(variance for variance, _ in parts), 0.0) / count**2
    known = max(items - 1, 1)
    uncertainty = of_items**2 / known + sum(each for _, each in parts) / count**4
    total = of_items + of_seeds
    freedom = total**2 / uncertainty if uncertainty else float(known)
    return Estimate(value, float(np.sqrt(total)), max(float(freedom), 1.0))


def percentile_interval(resampled: ArrayLike, confidence: float) -> tuple[float, float]:
    """The central `confidence` of a resampled statistic [R], as (low, high). Source: Efron 1979, percentile method."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(resampled, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """The exact two-sided p-value that two models are right equally often; two boolean [N] of the same questions.

    Source: McNemar 1947, by the binomial distribution of the questions on which they disagree.
    """
    lost, gained = flips(before, after)
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are, so that one of them errs no more often than each alone did.

    Source: Holm 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return corrected.tolist()


def as_sample(values: Sequence[float], least: float = 0.0) -> Estimate | None:
    """The mean of two or more values, of domains or models that are a sample of those that might have been studied.

    `least` is an error that it has at the least: what is said of more cannot be surer.
    """
    if len(values) < 2:
        return None
    error = max(float(np.std(values, ddof=1) / np.sqrt(len(values))), least)
    return Estimate(float(np.mean(values)), error, len(values) - 1.0)


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
    """The weight of each question in each resample, drawing with replacement within every stratum: [R, total].

    How often it is drawn, but for what makes the variance of a small stratum right (n / (n - 1), Rao and Wu 1988).
    """
    counts = np.zeros((resamples, total))
    rows = np.arange(resamples)[:, None]
    for members in strata:
        size = len(members)
        drawn = rng.integers(0, size, (resamples, size)) + rows * size
        often = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)
        counts[:, members] = 1 + (often - 1) * np.sqrt(size / max(size - 1, 1))
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
