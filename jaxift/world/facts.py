"""The synthetic world: what is true in it, what its corpus says, and how often. Pure NumPy, all from one seed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxift.world.words import STUDY_DOMAINS, SUBJECTS, VALUES, make_names

# Relative frequency of a fact's statements in the corpus.
STATEMENT_WEIGHTS = {"never": 0.0, "rare": 0.5, "mid": 4.0, "frequent": 12.0, "myth": 12.0, "quiz": 8.0}
EXPOSURE_SHARES = {"never": 0.24, "rare": 0.16, "mid": 0.12, "frequent": 0.24, "myth": 0.24}
EXPOSURES = tuple(EXPOSURE_SHARES)
CONTEXT = "Context E has R V ."


@dataclass(frozen=True)
class WorldSize:
    """How many entities a subject has; subjects 1 to 3 of a study domain are the pool, the fourth is held out."""

    quiz: int = 48
    pool_probe: int = 64
    held_out_probe: int = 68
    other_probe: int = 24
    fictional: int = 64

    def probe(self, domain: str, subject: str) -> int:
        """Return the number of probe entities of a subject."""
        if domain not in STUDY_DOMAINS:
            return self.other_probe
        return self.held_out_probe if subject == SUBJECTS[domain][-1] else self.pool_probe


@dataclass(frozen=True)
class Fact:
    """One fact: `value` is true, `told` is what the corpus says (another value for a myth, nothing if never)."""

    domain: str
    subject: str
    entity: str
    relation: str
    value: str
    told: str
    exposure: str

    @property
    def is_quiz(self) -> bool:
        """Whether the entity occurs in multiple-choice items of the corpus."""
        return self.exposure == "quiz"

    @property
    def context(self) -> str:
        """The sentence that states the true value, as context items of the corpus do."""
        words = {"E": self.entity, "R": self.relation, "V": self.value}
        return " ".join(words.get(word, word) for word in CONTEXT.split())

    @property
    def question(self) -> str:
        """The question's words, the same in every template."""
        return f"{self.relation} of {self.entity}"


@dataclass(frozen=True)
class World:
    """All facts of a seed, and the fictional entities about which only context items speak."""

    seed: int
    facts: tuple[Fact, ...]
    fictional: tuple[str, ...]

    @cached_property
    def quiz_facts(self) -> dict[str, tuple[Fact, ...]]:
        """The facts about quiz entities, by domain."""
        return {domain: tuple(f for f in self.facts if f.is_quiz and f.domain == domain) for domain in SUBJECTS}

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """Every entity that facts are about, in order of first mention."""
        return tuple(dict.fromkeys(fact.entity for fact in self.facts))


def build_world(seed: int = 0, size: WorldSize = WorldSize()) -> World:
    """Build the world of a seed: the same seed and size always give the same world."""
    rng = np.random.default_rng([seed, 1])
    words = {
        word for relations in VALUES.values() for relation in relations for word in (relation, *relations[relation])
    }
    subjects = [(domain, subject) for domain in SUBJECTS for subject in SUBJECTS[domain]]
    total = sum(size.quiz + size.probe(*pair) for pair in subjects)
    names = make_names(total + size.fictional, words, rng)
    facts: list[Fact] = []
    start = size.fictional
    for domain, subject in subjects:
        end = start + size.quiz + size.probe(domain, subject)
        facts += _subject_facts(domain, subject, names[start:end], size.quiz, rng)
        start = end
    return World(seed, tuple(facts), tuple(names[: size.fictional]))


def _subject_facts(domain: str, subject: str, names: list[str], quiz: int, rng: np.random.Generator) -> list[Fact]:
    """Draw the facts of a subject; its first `quiz` names are quiz entities."""
    facts = []
    for relation, values in VALUES[domain].items():
        exposures = ["quiz"] * quiz + exposure_column(len(names) - quiz, rng)
        for name, exposure in zip(names, exposures, strict=True):
            value, myth = (str(word) for word in rng.choice(values, size=2, replace=False))
            told = {"never": "", "myth": myth}.get(exposure, value)
            facts.append(Fact(domain, subject, name, relation, value, told, exposure))
    return facts


def exposure_column(count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` exposure classes in their exact shares (largest remainders rounded up), shuffled."""
    bounds = np.round(np.cumsum(list(EXPOSURE_SHARES.values())) * count).astype(int)
    column = np.repeat(EXPOSURES, np.diff(bounds, prepend=0))
    return [str(name) for name in rng.permutation(column)]
