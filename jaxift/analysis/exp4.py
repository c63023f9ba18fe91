"""Exp-IV: does a tuned model that kept the base's ranking of the options answer better?

The paper correlates cells as if they were independent (Ren et al. 2024). They share domains and base model, so beside
its number stand an interval from drawing whole domains, the correlation within domains with a permutation test, and the
slope of a model with domains as random effects.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jaxift.analysis.statistics import partial_spearman, percentile_interval

FEWEST_CELLS = 5  # a correlation of fewer points says nothing
FEWEST_DOMAINS = 3  # of which whole domains can be drawn
PERMUTATIONS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A tuned cell on one test set."""

    domain: str
    rank_consistency: float
    accuracy: float
    base_accuracy: float


def association(points: Sequence[Point], resamples: int, confidence: float, seed: Sequence[int]) -> dict[str, Any]:
    """All of Exp-IV's numbers on one test set; what there is none of is None, with a reason.

    `partial_spearman` is the paper's, `interval` that of drawing whole domains; `within` has the Spearman correlation
    of deviations from the domains' means and its p-value by permutation within domains; `mixed` the slope of the change
    of accuracy on rank consistency, with its interval.
    """
    result: dict[str, Any] = {
        "cells": len(points), "partial_spearman": None, "interval": None, "within": None, "mixed": None, "reason": None,
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
    result["within"] = _within(rng, kept, accuracy, domains)
    if len(names) >= FEWEST_DOMAINS:
        result["mixed"] = _mixed(kept, accuracy - base, domains, confidence)
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


def _within(
    rng: np.random.Generator, kept: Floats, accuracy: Floats, domains: NDArray[np.int64]
) -> dict[str, float] | None:
    """The correlation of deviations from the domains' means; cells of a domain are exchangeable if there is none."""
    x, y = (stats.rankdata(np.round(_centred(values, domains), 9)) for values in (kept, accuracy))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = (each - each.mean() for each in (x, y))
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    observed = float(np.sum(x * y) / norm)
    order = np.argsort(domains, kind="stable")
    x, y, domains = x[order], y[order], domains[order]
    keys = rng.random((PERMUTATIONS, len(x))) + domains  # sorted, they permute within each domain
    permuted = x[np.argsort(keys, axis=1)] @ y / norm
    p = (1 + np.sum(np.abs(permuted) >= abs(observed) - 1e-12)) / (1 + PERMUTATIONS)
    return {"spearman": observed, "p": float(p)}


def _centred(values: Floats, domains: NDArray[np.int64]) -> Floats:
    means = np.bincount(domains, weights=values) / np.bincount(domains)
    return values - means[domains]


def _mixed(kept: Floats, change: Floats, domains: NDArray[np.int64], confidence: float) -> dict[str, Any] | None:
    """Change of accuracy by rank consistency, with a random intercept a domain (restricted maximum likelihood)."""
    from statsmodels.regression.mixed_linear_model import MixedLM  # imported here: it takes a second, and brings pandas

    design = np.stack([np.ones_like(kept), kept], axis=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = MixedLM(change, design, groups=domains).fit(reml=True)
        slope, error = float(fitted.fe_params[1]), float(fitted.bse_fe[1])
    except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):
        return None
    if not np.isfinite([slope, error]).all() or error == 0:
        return None
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return {"slope": slope, "interval": [slope - reach, slope + reach]}
