"""The names of intervention arms: a kind, for mixtures a share, and variations.

    HAR            the base is right and sure; trained on the true answer
    INC            the base is wrong and sure; trained on the true answer
    SELF           the items of INC, trained on the base's own (wrong) answer
    SELF@0.4       the items of INC, the base's own answer for a share of them, the true one for the rest (Exp-III)
    RANDOM_WRONG   the items of INC, trained on a wrong answer that is not the base's
    REFUSAL        the items of INC, trained to say that the answer is not known
    SELF_ALL       items whatever the base believes, trained on its own answer

Variations follow, each after a +, in any order:

    +context         the knowledge that an item needs stands before its question, in training alone (Exp-II)
    +balanced        options are moved so that the true answer and the base's own stand equally often at every letter
    +shuffled        options in random order
    +matched         HAR alone: items drawn for the confidence of INC's
    +unexplained     the answer without an explanation
    +self_explained  the explanation is the base model's, for whichever answer is trained on
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["HAR", "INC", "SELF", "RANDOM_WRONG", "REFUSAL", "SELF_ALL"]
Pool = Literal["HAR", "INC", "ALL"]
_POOLS: dict[Kind, Pool] = {
    "HAR": "HAR", "INC": "INC", "SELF": "INC", "RANDOM_WRONG": "INC", "REFUSAL": "INC", "SELF_ALL": "ALL",
}  # fmt: skip
_KINDS: dict[str, Kind] = {kind: kind for kind in _POOLS}
VARIATIONS = ("context", "balanced", "shuffled", "matched", "unexplained", "self_explained")
_CONTRASTS: tuple[tuple[Kind, Kind], ...] = (
    ("HAR", "INC"), ("SELF", "INC"), ("HAR", "SELF"), ("RANDOM_WRONG", "INC"), ("REFUSAL", "INC"), ("SELF_ALL", "INC"),
)  # fmt: skip
_EXCLUSIVE = (("balanced", "shuffled"), ("unexplained", "self_explained"))
_SYNTAX = re.compile(r"(?P<kind>[A-Z_]+)(@(?P<share>\d*\.?\d+))?(?P<variations>(\+[a-z_]+)*)")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm's name says; `share` is that of the base's own answers."""

    kind: Kind
    share: float | None
    variations: frozenset[str]

    @property
    def name(self) -> str:
        """The one spelling of this arm."""
        share = "" if self.share is None else f"@{self.share:g}"
        return self.kind + share + "".join(f"+{name}" for name in VARIATIONS if name in self.variations)

    @property
    def pool(self) -> Pool:
        """Which items it is drawn from: arms of one pool have the same items in the same order."""
        return _POOLS[self.kind]

    @property
    def plain(self) -> str:
        """The name of the arm that it varies."""
        return dataclasses.replace(self, variations=frozenset()).name

    def has(self, variation: str) -> bool:
        """Whether it is varied so."""
        return variation in self.variations


def parse_arm(name: str) -> Arm:
    """Reads an arm's name; raises ValueError with what is wrong and what is known."""
    found = _SYNTAX.fullmatch(name)
    if not found or found["kind"] not in _KINDS:
        raise ValueError(f"{name!r} is no arm; known are {', '.join(_POOLS)}, SELF@SHARE, and variations after a +")
    variations = [each for each in found["variations"].split("+") if each]
    if unknown := [each for each in variations if each not in VARIATIONS]:
        raise ValueError(f"{name}: unknown variation {unknown[0]!r}; known are {', '.join(VARIATIONS)}")
    if len(set(variations)) < len(variations):
        raise ValueError(f"{name}: a variation stands twice; name it once")
    kind, share = _KINDS[found["kind"]], None if found["share"] is None else float(found["share"])
    if share is not None and (kind != "SELF" or share > 1):
        raise ValueError(f"{name}: a share from 0 to 1 goes with SELF alone")
    if "matched" in variations and kind != "HAR":
        raise ValueError(f"{name}: HAR alone is matched, to the confidence of INC's items")
    if kind == "REFUSAL" and {"unexplained", "self_explained"} & set(variations):
        raise ValueError(f"{name}: a refusal is never explained")
    for pair in _EXCLUSIVE:
        if set(pair) <= set(variations):
            raise ValueError(f"{name}: {' and '.join(pair)} exclude each other")
    return Arm(kind, share, frozenset(variations))


def canonical(name: str) -> str:
    """The one spelling of an arm's name; raises ValueError as `parse_arm` does."""
    return parse_arm(name).name


def contrasts(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a study's arms whose difference says something, in the order of all tables.

    HAR - INC, SELF - INC and HAR - SELF, also among arms of the same variations (HAR+matched stands for HAR); the
    controls of INC against INC; then each varied arm against the arm that it varies.
    """
    arms = [parse_arm(name) for name in names]
    pairs = [
        (one.name, other.name)
        for first, second in _CONTRASTS
        for one in arms
        for other in arms
        if (one.kind, other.kind) == (first, second) and one.share is other.share is None
        if one.variations - {"matched"} == other.variations
    ]
    return pairs + [(arm.name, arm.plain) for arm in arms if arm.variations and arm.plain in names]


def mixture_share(name: str) -> float | None:
    """Share of the base's own answers in an arm of INC's items as they are: 0 for INC, 1 for SELF; None for others."""
    arm = parse_arm(name)
    if arm.variations or arm.kind not in ("INC", "SELF"):
        return None
    return arm.share if arm.share is not None else float(arm.kind == "SELF")


def mixtures(names: Sequence[str]) -> dict[str, float]:
    """The arms of Exp-III by rising share, one a share; none where no arm mixes both answers.

    [INC, SELF@0.5, SELF] gives {INC: 0, SELF@0.5: 0.5, SELF: 1}.
    """
    if not any(parse_arm(name).share is not None for name in names):
        return {}
    found: dict[float, str] = {}
    for name in names:
        share = mixture_share(name)
        if share is not None:
            found.setdefault(share, name)
    return {found[share]: share for share in sorted(found)}
