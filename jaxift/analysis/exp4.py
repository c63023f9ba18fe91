"""Exp-IV: does a tuned model that kept the base's ranking of the options answer better?

The paper correlates cells as if they were independent (Ren et al. 2024). They share domains, and cells of one arm share
what they were trained on: a handful of arms is a handful of points. So beside its number stand an interval from drawing
whole domains (which speaks of other domains with these arms), and what the means of arms say, each a point.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jaxift.analysis.statistics import partial_spearman, percentile_interval

FEWEST_CELLS = 5  # a correlation of fewer points says nothing
FEWEST_DOMAINS = 3  # of which whole domains can be drawn
FEWEST_ARMS = 5  # whose permutations can tell anything from chance
PERMUTATIONS = 2000
EXACT = 6  # arms of which all permutations are tried
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A tuned cell on one test set."""

    domain: str
    arm: str
    rank_consistency: float
    accuracy: float
    base_accuracy: float


def association(points: Sequence[Point], resamples: int, confidence: float, seed: Sequence[int]) -> dict[str, Any]:
    """All of Exp-IV's numbers on one test set; what there is none of is None, with a reason.

    `partial_spearman` is the paper's, `interval` that of drawing whole domains; `arms` has what the means of arms say:
    their number, the Spearman correlation of deviations from the domains' means, its p-value by permutation of the
    arms, and the slope of accuracy on rank consistency with its interval.
    """
    result: dict[str, Any] = {
        "cells": len(points), "partial_spearman": None, "interval": None, "arms": None, "reason": None,
    }  # fmt: skip
    if len(points) < FEWEST_CELLS:
        return {**result, "reason": f"{len(points)} tuned cells; at least {FEWEST_CELLS} are needed"}
    kept, accuracy, base = (
        np.array([getattr(point, name) for point in points])
        for name in ("rank_consistency", "accuracy", "base_accuracy")
    )
    names, domains = np.unique([point.domain for point in points], return_inverse=True)
    try:
        result["partial_spearman"] = partial_spearman(kept, accuracy, base)
    except ValueError:
        return {**result, "reason": "rank consistency or accuracy does not vary beyond the base's accuracy"}
    rng = np.random.default_rng(list(seed))
    if len(names) >= FEWEST_DOMAINS:
        result["interval"] = _cluster_interval(rng, kept, accuracy, base, domains, resamples, confidence)
    result["arms"] = _arms(rng, points, kept, accuracy, domains, confidence)
    return result


def _cluster_interval(
    rng: np.random.Generator,
    kept: Floats,
    accuracy: Floats,
    base: Floats,
    domains: NDArray[np.int64],
    resamples: int,
    confidence: float,
) -> list[float] | None:
    """The percentile interval of the partial correlation where whole domains are drawn with replacement."""
    members = [np.flatnonzero(domains == number) for number in range(domains.max() + 1)]
    found = []
    for drawn in rng.integers(0, len(members), (resamples, len(members))):
        chosen = np.concatenate([members[number] for number in drawn])
        try:
            found.append(partial_spearman(kept[chosen], accuracy[chosen], base[chosen]))
        except ValueError:
            continue
    return list(percentile_interval(found, confidence)) if len(found) > resamples / 2 else None


def _arms(
    rng: np.random.Generator,
    points: Sequence[Point],
    kept: Floats,
    accuracy: Floats,
    domains: NDArray[np.int64],
    confidence: float,
) -> dict[str, Any] | None:
    """What arms say, each by the mean of its cells' deviations from the domains' means; None of fewer than three."""
    names, which = np.unique([point.arm for point in points], return_inverse=True)
    x, y = (
        np.round(np.bincount(which, weights=_centred(values, domains)) / np.bincount(which), 9)
        for values in (kept, accuracy)
    )
    count = len(names)
    if count < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = {"count": count, "spearman": _spearman(x, y), "p": None, "slope": None, "interval": None}
    if count >= FEWEST_ARMS:
        result["p"] = _permutation_p(rng, x, y)
        fitted: Any = stats.linregress(x, y)
        reach = float(stats.t.ppf((1 + confidence) / 2, count - 2)) * float(fitted.stderr)
        result |= {"slope": float(fitted.slope), "interval": [fitted.slope - reach, fitted.slope + reach]}
    return result


def _spearman(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _permutation_p(rng: np.random.Generator, x: Floats, y: Floats) -> float:
    """The share of permutations whose correlation is at least as far from 0: of all, or of some and this one."""
    left, right = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    observed = abs(left @ right) - 1e-9
    if len(x) <= EXACT:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        assert len(orders) == math.factorial(len(x))
        return float(np.mean(np.abs(left[orders] @ right) >= observed))
    orders = np.argsort(rng.random((PERMUTATIONS, len(x))), axis=1)
    return float((1 + np.sum(np.abs(left[orders] @ right) >= observed)) / (1 + PERMUTATIONS))


def _centred(values: Floats, domains: NDArray[np.int64]) -> Floats:
    means = np.bincount(domains, weights=values) / np.bincount(domains)
    return values - means[domains]
