"""The study's question files: one four-choice question for every fact about a probe entity."""

import json
from typing import Any

import numpy as np
from etils import epath

from jaxift.world.facts import EXPOSURES, Fact, World, build_world
from jaxift.world.words import LETTERS, STUDY_DOMAINS, SUBJECTS, VALUES

HOMO_SHARE = 0.35
DEV_ITEMS = 10
Question = dict[str, Any]


def write_questions(folder: epath.PathLike, seed: int = 0) -> list[epath.Path]:
    """Write `DOMAIN/{train,dev,homo,id}.jsonl` of the world of `seed` into `folder`; return the files' paths."""
    folder, world, paths = epath.Path(folder), build_world(seed), []
    for domain in STUDY_DOMAINS:
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for split, items in domain_questions(world, domain).items():
            paths.append(folder / domain / f"{split}.jsonl")
            paths[-1].write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return paths


def domain_questions(world: World, domain: str) -> dict[str, list[Question]]:
    """Return a domain's questions by split: `train`, `homo` (both subjects 1 to 3), `id` (subject 4) and `dev`.

    `train` and `homo` share no fact and have the same mixture of exposures; `dev` holds demonstrations, about quiz
    entities.
    """
    rng = np.random.default_rng([world.seed, 2, list(SUBJECTS).index(domain)])
    pool, homo = _split([f for f in _probe_facts(world, domain) if f.subject != SUBJECTS[domain][-1]], rng)
    held_out = [f for f in _probe_facts(world, domain) if f.subject == SUBJECTS[domain][-1]]
    quiz = [f for f in world.quiz_facts[domain] if f.subject != SUBJECTS[domain][-1]]
    dev = [quiz[i] for i in rng.choice(len(quiz), DEV_ITEMS, replace=False)]
    splits = {"train": pool, "dev": dev, "homo": homo, "id": held_out}
    return {split: make_questions(facts, rng) for split, facts in splits.items()}


def make_questions(facts: list[Fact], rng: np.random.Generator) -> list[Question]:
    """Turn facts into questions in a shuffled order, the right answer equally often at every letter."""
    facts = [facts[i] for i in rng.permutation(len(facts))]
    answers = rng.permutation(np.arange(len(facts)) % len(LETTERS))
    return [_question(fact, int(answer), rng) for fact, answer in zip(facts, answers, strict=True)]


def _question(fact: Fact, answer: int, rng: np.random.Generator) -> Question:
    """Build one question with the true value at `answer`; what the corpus tells is always among the options."""
    options = options_of(fact, rng)
    options.remove(fact.value)
    options.insert(answer, fact.value)
    return {
        "id": f"{fact.domain}-{fact.entity}-{fact.relation}".lower(),
        "subject": fact.subject,
        "question": fact.question,
        "options": options,
        "answer": answer,
        "exposure": fact.exposure,
        "context": fact.context,
    }


def options_of(fact: Fact, rng: np.random.Generator) -> list[str]:
    """Return four different values of the fact's relation in random order: the true one, the told one, and others."""
    fixed = [fact.value] + ([fact.told] if fact.told not in ("", fact.value) else [])
    others = [value for value in VALUES[fact.domain][fact.relation] if value not in fixed]
    drawn = rng.choice(len(others), len(LETTERS) - len(fixed), replace=False)
    options = fixed + [others[i] for i in drawn]
    return [options[i] for i in rng.permutation(len(options))]


def _probe_facts(world: World, domain: str) -> list[Fact]:
    return [fact for fact in world.facts if fact.domain == domain and not fact.is_quiz]


def _split(facts: list[Fact], rng: np.random.Generator) -> tuple[list[Fact], list[Fact]]:
    """Split facts into the training pool and HOMO, within every exposure class."""
    pool, homo = [], []
    for exposure in EXPOSURES:
        members = [fact for fact in facts if fact.exposure == exposure]
        members = [members[i] for i in rng.permutation(len(members))]
        cut = round(HOMO_SHARE * len(members))
        homo, pool = homo + members[:cut], pool + members[cut:]
    return pool, homo
