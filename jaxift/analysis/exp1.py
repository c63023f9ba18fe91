"""Exp-I: accuracy of every arm on every test set, and the paired differences between arms, with intervals.

The bootstrap follows the study's structure. Questions are drawn within each domain and test set, the same for all arms
and seeds; on top of that, seeds are drawn within each domain, the same for all arms. Statistics are means over seeds,
then over domains (macro average). Domains are not drawn: the numbers speak of these domains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxift.analysis.statistics import percentile_interval, resample_means, resample_seed_mean

FEW_SHOT = "BASE_FEW_SHOT"  # the base model as the probe saw it
Key = tuple[str, int | None]  # arm and seed
Floats = NDArray[np.float64]

# Means over LLaMA-2-7B, 13B and 70B, Mistral-7B and four domains (Ren et al. 2024): HOMO, ID, OOD.
PAPER_DIFFERENCES: dict[str, tuple[float, ...]] = {
    "HAR-INC": (0.1127, 0.1458, 0.1457),
    "SELF-INC": (0.0525, 0.0978, 0.0697),
}


@dataclass(frozen=True)
class Answers:
    """Who answered what right, in one domain and test set: [N] question numbers and [N, C] booleans, a column a key."""

    questions: NDArray[np.int64]
    keys: tuple[Key, ...]
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Resampled:
    """Accuracies of one domain: as observed [C], and resampled over questions [R, C]; uniforms [R, S] draw seeds."""

    keys: tuple[Key, ...]
    observed: Floats
    draws: Floats
    uniforms: Floats

    def seeds(self, *arms: str) -> list[int | None]:
        """The seeds that all of these arms have, in order."""
        return [seed for arm, seed in self.keys if arm == arms[0] and all((other, seed) in self.keys for other in arms)]

    def columns(self, arm: str, seeds: Sequence[int | None]) -> tuple[Floats, Floats]:
        """Observed [S] and resampled [R, S] accuracies of an arm's seeds."""
        chosen = [self.keys.index((arm, seed)) for seed in seeds]
        return self.observed[chosen], self.draws[:, chosen]


def resample(answers: Mapping[str, Answers], resamples: int, seed: Sequence[int]) -> dict[str, Resampled]:
    """Bootstraps one test set in all domains at once; `answers` and the result are keyed by domain."""
    values = [domain.correct for domain in answers.values()]
    groups = [domain.questions for domain in answers.values()]
    draws = resample_means(np.random.default_rng([*seed, 0]), groups, values, resamples)
    rng = np.random.default_rng([*seed, 1])  # a stream of its own: a further cell leaves the drawn questions alone
    result = {}
    for (name, domain), drawn in zip(answers.items(), draws, strict=True):
        uniforms = rng.random((resamples, len(domain.keys)))
        result[name] = Resampled(domain.keys, domain.correct.mean(axis=0), drawn, uniforms)
    return result


def arm_accuracy(domains: Mapping[str, Resampled], arm: str, confidence: float) -> dict[str, Any] | None:
    """Accuracy of an arm, over the domains that have it and in each; None where no domain has."""
    return _summary(domains, (arm,), lambda parts: parts[0], "accuracy", confidence)


def arm_difference(domains: Mapping[str, Resampled], arms: tuple[str, str], confidence: float) -> dict[str, Any] | None:
    """Accuracy of the first arm minus the second's, over the domains and seeds that have both; None without any."""
    return _summary(domains, arms, lambda parts: parts[0] - parts[1], "difference", confidence)


def _summary(
    domains: Mapping[str, Resampled],
    arms: Sequence[str],
    combine: Callable[[Sequence[Floats]], Floats],
    label: str,
    confidence: float,
) -> dict[str, Any] | None:
    """A statistic of arms, combined seed by seed, then averaged over seeds and over domains, with its intervals."""
    values, draws, per_domain = [], [], {}
    for name, domain in domains.items():
        seeds = domain.seeds(*arms)
        if not seeds:
            continue
        observed, drawn = zip(*(domain.columns(arm, seeds) for arm in arms), strict=True)
        values.append(float(combine(observed).mean()))
        draws.append(resample_seed_mean(combine(drawn), domain.uniforms))
        interval = percentile_interval(draws[-1], confidence)
        per_domain[name] = {label: values[-1], "interval": list(interval), "seeds": seeds}
    if not values:
        return None
    interval = percentile_interval(np.mean(draws, axis=0), confidence)
    return {label: float(np.mean(values)), "interval": list(interval), "by_domain": per_domain}
