from collections import Counter

import numpy as np
import pytest

from jaxift.world import write_questions
from jaxift.world.facts import EXPOSURE_SHARES, EXPOSURES, build_world, exposure_column
from jaxift.world.questions import domain_questions
from jaxift.world.words import STUDY_DOMAINS, SUBJECTS, VALUES


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def questions(world):
    return {domain: domain_questions(world, domain) for domain in STUDY_DOMAINS}


def test_every_relation_has_sixteen_values_of_its_own():
    sets = [values for relations in VALUES.values() for values in relations.values()]
    assert all(len(values) == 16 for values in sets)
    words = [word for values in sets for word in values]
    assert len(words) == len(set(words))


def test_words_have_one_meaning(world):
    words = {word for relations in VALUES.values() for name, values in relations.items() for word in (name, *values)}
    names = {*world.entities, *world.fictional}
    assert len(names) == len(world.entities) + len(world.fictional)
    assert not names & words


def test_corpus_tells_the_truth_except_for_myths_and_nothing_for_never(world):
    for fact in world.facts:
        expected = {"never": fact.told == "", "myth": fact.told not in ("", fact.value)}
        assert expected.get(fact.exposure, fact.told == fact.value), fact


def test_exposure_shares_are_exact():
    column = Counter(exposure_column(1000, np.random.default_rng(0)))
    assert column == {name: round(1000 * share) for name, share in EXPOSURE_SHARES.items()}


def test_questions_have_their_answer_and_what_the_corpus_tells_among_the_options(world, questions):
    facts = {fact.question: fact for fact in world.facts}
    for splits in questions.values():
        for item in (item for items in splits.values() for item in items):
            fact = facts[item["question"]]
            assert item["options"][item["answer"]] == fact.value
            assert len(set(item["options"])) == 4
            assert not fact.told or fact.told in item["options"]
            assert item["exposure"] == fact.exposure


def test_splits_share_no_question_and_only_dev_asks_quiz_entities(questions):
    for domain, splits in questions.items():
        ids = [item["id"] for items in splits.values() for item in items]
        assert len(ids) == len(set(ids))
        assert {item["exposure"] for item in splits["dev"]} == {"quiz"}
        for split in ("train", "homo", "id"):
            assert {item["exposure"] for item in splits[split]} == set(EXPOSURES)
            held_out = {item["subject"] for item in splits[split]} == {SUBJECTS[domain][-1]}
            assert held_out == (split == "id")


def test_splits_have_the_same_mixture_of_exposures_and_balanced_letters(questions):
    for splits in questions.values():
        for split in ("train", "homo", "id"):
            items = splits[split]
            shares = {name: count / len(items) for name, count in Counter(i["exposure"] for i in items).items()}
            assert all(abs(shares[name] - EXPOSURE_SHARES[name]) < 0.02 for name in EXPOSURES)
            letters = Counter(item["answer"] for item in items)
            assert max(letters.values()) - min(letters.values()) <= 1


def test_same_seed_gives_identical_files_and_another_seed_others(tmp_path):
    first, second, other = (write_questions(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert len(first) == 4 * len(STUDY_DOMAINS)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert all(one.read_bytes() != two.read_bytes() for one, two in zip(first, other, strict=True))
