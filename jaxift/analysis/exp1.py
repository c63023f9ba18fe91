"""Exp-I: accuracy of every arm on every test set, and the paired differences between arms, with intervals.

Statistics are means over seeds, then over domains (macro average). The bootstrap draws questions within each domain and
test set, the same for all arms and seeds; what the choice of seeds adds is estimated from their spread beyond that (see
`statistics.estimate`). Intervals speak of these domains, and where it is said so, of domains like them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxift.analysis.statistics import Estimate, as_sample, estimate, holm, mcnemar, resample_means

POWER = 0.8
"""With which the smallest detectable differences would be told from 0."""

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
    """Verdicts of one domain [N, C], and accuracies [R, C] over resampled questions; a column a key."""

    questions: NDArray[np.int64]
    keys: tuple[Key, ...]
    correct: NDArray[np.bool_]
    draws: Floats

    def seeds(self, *arms: str) -> list[int | None]:
        """The seeds that all of these arms have, in order."""
        tuned = [arm for arm in arms if (arm, None) not in self.keys]
        first = (tuned or arms)[0]
        return [seed for arm, seed in self.keys if arm == first and all((other, seed) in self.keys for other in tuned)]

    def places(self, arm: str, seeds: Sequence[int | None]) -> list[int]:
        """The columns of an arm's seeds; a model without seeds stands beside each of them."""
        return [self.keys.index((arm, None) if (arm, None) in self.keys else (arm, seed)) for seed in seeds]


def resample(answers: Mapping[str, Answers], resamples: int, seed: Sequence[int]) -> dict[str, Resampled]:
    """Bootstraps one test set in all domains at once; `answers` and the result are keyed by domain."""
    values = [domain.correct for domain in answers.values()]
    groups = [domain.questions for domain in answers.values()]
    draws = resample_means(np.random.default_rng(list(seed)), groups, values, resamples)
    return {
        name: Resampled(domain.questions, domain.keys, domain.correct, drawn)
        for (name, domain), drawn in zip(answers.items(), draws, strict=True)
    }


def arm_accuracy(domains: Mapping[str, Resampled], arm: str, confidence: float) -> dict[str, Any] | None:
    """Accuracy of an arm, over the domains that have it and in each; None where no domain has."""
    found = _estimates(domains, arm, None)
    if not found:
        return None

    def told(each: Estimate) -> dict[str, Any]:
        return {"accuracy": each.value, "interval": share_interval(each, confidence)}

    by_domain = {name: {**told(each), "seeds": domains[name].seeds(arm)} for name, each in found.domains.items()}
    return {**told(found.mean), "by_domain": by_domain}


def share_interval(each: Estimate, confidence: float) -> list[float]:
    """The interval of what lies between 0 and 1."""
    low, high = each.interval(confidence)
    return [max(low, 0.0), min(high, 1.0)]


def model_interval(domain: Resampled, place: int, confidence: float) -> list[float]:
    """The interval of one model's accuracy, over questions alone; `place` is its column."""
    mine = domain.correct[:, [place]].astype(np.float64)
    return share_interval(estimate(float(mine.mean()), domain.draws[:, place], [mine], len(mine)), confidence)


def arm_difference(domains: Mapping[str, Resampled], arms: tuple[str, str], confidence: float) -> dict[str, Any] | None:
    """Accuracy of the first arm minus the second's, over the domains and seeds that have both; None without any."""
    found = _estimates(domains, *arms)
    if not found:
        return None

    def told(each: Estimate) -> dict[str, Any]:
        return {
            "difference": each.value,
            "interval": list(each.interval(confidence)),
            "error": each.error,
            "freedom": each.freedom,
            "p": each.p_value,
        }

    by_domain = {}
    for name, each in found.domains.items():
        domain, seeds = domains[name], domains[name].seeds(*arms)
        pairs = zip(*(domain.places(arm, seeds) for arm in arms), strict=True)
        tests = [mcnemar(domain.correct[:, second], domain.correct[:, first]) for first, second in pairs]
        by_domain[name] = {**told(each), "seeds": seeds, "mcnemar": tests}
    wide = as_sample([each.value for each in found.domains.values()], found.mean.error)
    beyond = None if wide is None else list(wide.interval(confidence))
    return {**told(found.mean), "beyond_domains": beyond, "by_domain": by_domain}


def correct(entries: Sequence[dict[str, Any]], confidence: float) -> None:
    """Adds to differences their p-values as corrected for all of these, and what could have been seen after that.

    `detectable` is the smallest true difference that is clear four times in five, where it alone was corrected for all.
    """
    level = 1 - (1 - confidence) / max(len(entries), 1)
    for entry, p in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = p
        entry["detectable"] = Estimate(entry["difference"], entry["error"], entry["freedom"]).detectable(level, POWER)


def best_arm(domains: Mapping[str, Resampled], arms: Sequence[str], confidence: float) -> dict[str, Any] | None:
    """The arm of the highest accuracy among two or more, and whether it is clearly ahead of every other one.

    Corrected for the other arms, on this test set.
    """
    found = {arm: each.mean.value for arm in arms if (each := _estimates(domains, arm, None))}
    if len(found) < 2:
        return None
    best = max(found, key=lambda arm: found[arm])
    others = [_estimates(domains, best, arm) for arm in found if arm != best]
    corrected = holm([1.0 if each is None else each.mean.p_value for each in others])
    ahead = all(each is not None and each.mean.value > 0 for each in others)
    return {"arm": best, "clear": ahead and max(corrected) < 1 - confidence}


@dataclass(frozen=True)
class _Found:
    """A statistic over the domains, and in each."""

    mean: Estimate
    domains: dict[str, Estimate]


def _estimates(domains: Mapping[str, Resampled], arm: str, minus: str | None) -> _Found | None:
    """An arm's accuracy, or its lead on another's on the same questions, seed by seed; None where no domain has it."""
    arms = (arm,) if minus is None else (arm, minus)
    values, draws, single = [], [], {}
    for name, domain in domains.items():
        seeds = domain.seeds(*arms)
        if not seeds:
            continue
        places = [domain.places(each, seeds) for each in arms]
        mine = domain.correct[:, places[0]].astype(np.float64)
        drawn = domain.draws[:, places[0]].mean(axis=1)
        if minus is not None:
            mine = mine - domain.correct[:, places[1]]
            drawn = drawn - domain.draws[:, places[1]].mean(axis=1)
        values.append(mine)
        draws.append(drawn)
        single[name] = estimate(float(mine.mean()), drawn, [mine], len(mine))
    if not values:
        return None
    mean = float(np.mean([each.value for each in single.values()]))
    items = len(np.unique(np.concatenate([domains[name].questions for name in single])))
    return _Found(estimate(mean, np.mean(draws, axis=0), values, items), single)
