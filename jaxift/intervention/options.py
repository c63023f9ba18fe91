"""Where the options of an arm's items stand: as they are, shuffled, or balanced over the letters."""

import re
from collections.abc import Sequence

import numpy as np

from jaxift.arms import Arm
from jaxift.data.questions import LETTERS
from jaxift.intervention.pools import Row

Order = list[int]
"""Place i gets the option that was at order[i]."""


def orders(rows: Sequence[Row], arm: Arm, seed: int) -> list[Order]:
    """An order of options for each item; arms that share items and variations share them too."""
    if arm.has("shuffled"):
        return [_shuffled(row, seed) for row in rows]
    if arm.has("balanced"):
        return _balanced(rows, arm, seed)
    return [list(range(len(row["options"]))) for row in rows]


def _shuffled(row: Row, seed: int) -> Order:
    return np.random.default_rng([seed, *row["id"].encode()]).permutation(len(row["options"])).tolist()


def _balanced(rows: Sequence[Row], arm: Arm, seed: int) -> list[Order]:
    """Orders in which, for each number of options, every place holds the true answer equally often (to one), and the
    base's own too.

    Item n of those with k options gets the true answer at n mod k, and where the base is wrong its own a distance d
    further, which changes after every k items: any number of items is balanced in both.
    """
    generator = np.random.default_rng([seed, *b"balanced"])
    turns: dict[int, tuple[list[int], list[int]]] = {}
    counts: dict[tuple[int, bool], int] = {}
    found = []
    for row in rows:
        k, right = len(row["options"]), row["gold"] == row["pred"]
        if k not in turns:
            turns[k] = generator.permutation(k).tolist(), (1 + generator.permutation(k - 1)).tolist()
        places, distances = turns[k]
        number = counts.get((k, right), 0)
        counts[k, right] = number + 1
        true = places[number % k]
        own = true if right else (true + distances[number // k % (k - 1)]) % k
        found.append(_placed(row, {true: row["gold"], own: row["pred"]}))
    return found


def _placed(row: Row, fixed: dict[int, int]) -> Order:
    """The order that has these options at these places, the others as they came."""
    others = iter(option for option in range(len(row["options"])) if option not in fixed.values())
    return [fixed[place] if place in fixed else next(others) for place in range(len(row["options"]))]


_NAMED = re.compile(r"\b((?:answer|option|choice)(?:\s+is)?|ans)(\s*[:.]?\s*\(?)([A-Z])(?=[\s).,:;\"']|$)", re.I)


def letters_named(text: str) -> list[str]:
    """The letters that an explanation calls answers or options: `The answer is D.` names D."""
    return [found[3] for found in _NAMED.finditer(text) if found[3].isupper()]


def relettered(text: str, order: Order) -> str:
    """An explanation whose letters are those of the moved options."""
    moved = {LETTERS[was]: LETTERS[now] for now, was in enumerate(order)}

    def replace(found: re.Match[str]) -> str:
        return found[1] + found[2] + moved.get(found[3], found[3])

    return _NAMED.sub(replace, text)


def argues_otherwise(text: str, letter: str) -> bool:
    """Whether an explanation begins by calling another letter the answer."""
    found = re.search(r"\b(?:answer|ans)(?:\s+is)?\s*[:.]?\s*\(?([A-Z])(?=[\s).,:;\"']|$)", text[:200], re.I)
    return bool(found) and found[1].isupper() and found[1] != letter
