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


_GOES_ON = r"(?:is|are|was|were|because|since|and|or|as|which|due|but|while)\b"
# a capital on its own (a word may be glued to it, `DThe`) that begins no phrase (`A man`, `B cells`), or a small letter
# that is closed in or ends a sentence
_LETTER = rf"(?:[A-Z](?!\w|['’]s|\s+(?!{_GOES_ON})[a-z])|[A-Z](?=[A-Z][a-z])|[a-z](?=\s*[)\]'’\"”]|\.(?:\s|$)))"
_ONE = re.compile(_LETTER)
_LIST = rf"{_LETTER}(?:(?:\s*(?:,|/|&|\band\b|\bor\b)\s*)+{_LETTER})*"
_ANSWER = r"[\s:.=\-–—]*(?:\b(?:is|are)\b)?[\s:.=\-–—'‘\"“(\[]*"
_CUES = (
    # the answer is D; Ans. (b); options B, C and D
    re.compile(rf"\b(?i:answers?|options?|choices?|ans)\b{_ANSWER}(?P<list>{_LIST})"),
    # D is correct; A and B are wrong
    re.compile(
        rf"\b(?P<list>{_LIST})\s+(?:is|are|was|were)\s+(?:the\s+)?(?:in)?(?:correct|right|wrong|true|false|answer)\b"
    ),
)
_CLOSED_IN = re.compile(r"[(\[]([A-Z])[)\]]")
_BESIDE = " .:,;-–—'‘’\"“”"


def letters_named(text: str, options: Sequence[str]) -> list[tuple[int, str]]:
    """Where an explanation names options by letter, and the letters, in order: `The answer is D.` gives [(14, D)].

    A letter in brackets, (C), counts beside the option's own text alone.
    """
    found = {}
    for cue in _CUES:
        for match in cue.finditer(text):
            for letter in _ONE.finditer(text, match.start("list")):
                if letter.end() > match.end("list"):
                    break
                found[letter.start()] = letter[0]
    for match in _CLOSED_IN.finditer(text):
        place = LETTERS.index(match[1])
        if place < len(options):
            option = options[place].casefold()
            before, after = (part.casefold() for part in (text[: match.start()], text[match.end() :]))
            if before.rstrip(_BESIDE).endswith(option) or after.lstrip(_BESIDE).startswith(option):
                found[match.start(1)] = match[1]
    return sorted(found.items())


def relettered(text: str, order: Order, options: Sequence[str]) -> str:
    """An explanation whose letters are those of the moved options; `options` are the texts in their old order."""
    moved = {LETTERS[was]: LETTERS[now] for now, was in enumerate(order)}
    characters = list(text)
    for place, letter in letters_named(text, options):
        new = moved.get(letter.upper(), letter)
        characters[place] = new if letter.isupper() else new.lower()
    return "".join(characters)


def bare_letters(text: str, options: Sequence[str]) -> int:
    """How many letters of options, but A, stand in a text for themselves and are not known to name an option."""
    known = {place for place, _ in letters_named(text, options)}
    alone = re.finditer(rf"(?<![\w.'’])[B-{LETTERS[len(options) - 1]}](?![\w'’])", text)
    return sum(match.start() not in known for match in alone)


def argues_otherwise(text: str, letter: str) -> bool:
    """Whether an explanation begins by calling another letter the answer."""
    found = re.search(rf"\b(?i:answer|ans)\b{_ANSWER}(?P<letter>{_LETTER})", text[:200])
    return bool(found) and found["letter"].upper() != letter
