"""What an arm's manifest says of it: counts, letters, confidences, and how far the arms differ in them."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxift.analysis.consistency import total_variation
from jaxift.data.questions import LETTERS
from jaxift.intervention.options import argues_otherwise, bare_letters, letters_named

Item = Mapping[str, Any]
BINS = 10
"""Of the confidence histogram, between 0 and 1."""


def arm_facts(items: Sequence[Item]) -> dict[str, Any]:
    """An arm's counts.

    `name_a_letter`: explanations that name options by letter, which follow where options move; `with_bare_letters`:
    those with letters of which that is not known, which stay. `argue_otherwise` names the items whose explanation
    begins by calling another letter the answer.
    """
    own = [item for item in items if item["kind"] == "item"]
    answered = [item for item in own if item["answer"] is not None]
    letters = Counter(LETTERS[item["answer"]] for item in answered)
    confidences = [item["pred_prob"] for item in own]
    explained = [item for item in answered if item["explanation"]]
    return {
        "items": len(own),
        "general": len(items) - len(own),
        "letters": dict(sorted(letters.items())),
        "trained_on_own_answer": sum(item["answer"] == item["pred"] for item in answered),
        "confidence": np.histogram(confidences, BINS, (0, 1))[0].tolist(),
        "mean_confidence": float(np.mean(confidences)),
        "explained": len(explained),
        "name_a_letter": sum(bool(letters_named(item["explanation"], item["options"])) for item in explained),
        "with_bare_letters": sum(bool(bare_letters(item["explanation"], item["options"])) for item in explained),
        "argue_otherwise": [
            item["id"] for item in explained if argues_otherwise(item["explanation"], LETTERS[item["answer"]])
        ],
    }


def distances(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Total-variation distances between the arms' histograms of letters and of confidence, by pairs "HAR INC"."""
    found: dict[str, dict[str, float]] = {"letters": {}, "confidence": {}}
    for (one, first), (other, second) in itertools.combinations(arms.items(), 2):
        if first["letters"] and second["letters"]:
            names = sorted({*first["letters"], *second["letters"]})
            counts = [[facts["letters"].get(name, 0) for name in names] for facts in (first, second)]
            found["letters"][f"{one} {other}"] = total_variation(*counts)
        found["confidence"][f"{one} {other}"] = total_variation(first["confidence"], second["confidence"])
    return found
