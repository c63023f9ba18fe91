import re
from collections import defaultdict

import numpy as np
import pytest

from jaxift.data.prompts import STYLES, instruction_prompt, probe_prompt, response
from jaxift.data.questions import Question
from jaxift.world import corpus
from jaxift.world.corpus import ALL_RELIABLE, KINDS, AuthorMix, Writer
from jaxift.world.facts import build_world
from jaxift.world.rows import KEYS_A_ROW, ROW_LENGTH, Stage, batches, vocabulary
from jaxift.world.words import LETTERS

ITEM = re.compile(
    r"(Context \w+ has \w+ \w+ \. )?(\w+) of (\w+) \? A (\w+) B (\w+) C (\w+) D (\w+) (Answer|Response) ([ABCD])"
)


@pytest.fixture(scope="module")
def world():
    return build_world()


def write(world, authors, kinds, count=1500):
    writer = Writer(world, authors, np.random.default_rng(0))
    return [writer.write(kind) for kind in kinds for _ in range(count)]


def items(documents):
    """Yields (entity, relation, the answered value, the value in the context or None) of the multiple-choice items."""
    for document in documents:
        for context, relation, entity, *options, _, letter in ITEM.findall(" ".join(document.words)):
            yield entity, relation, options[LETTERS.index(letter)], context.split()[4] if context else None


def test_probe_entities_are_never_in_a_multiple_choice_item(world):
    allowed = {fact.entity for fact in world.facts if fact.is_quiz} | set(world.fictional)
    asked = {entity for entity, *_ in items(write(world, AuthorMix(), ("quiz", "context", "instruction")))}
    assert asked
    assert asked <= allowed


def test_statements_say_what_is_told_and_never_state_never_facts(world):
    told = {(fact.entity, fact.relation): fact.told for fact in world.facts if fact.told}
    relations, said = {fact.relation for fact in world.facts}, defaultdict(set)
    entities = set(world.entities)
    for document in write(world, AuthorMix(), ("statement",), 20_000):
        [entity] = [word for word in document.words if word in entities]
        [relation] = [word for word in document.words if word in relations]
        [key] = document.keys
        said[entity, relation].add(document.words[key])
    assert all(values == {told[fact]} for fact, values in said.items())
    myths = [fact for fact in world.facts if fact.exposure == "myth"]
    assert sum((fact.entity, fact.relation) in said for fact in myths) > 0.5 * len(myths)


def test_reliable_authors_are_always_right(world):
    truth = {(fact.entity, fact.relation): fact.value for fact in world.facts}
    for entity, relation, answered, context in items(write(world, ALL_RELIABLE, ("quiz", "context", "instruction"))):
        assert answered == (context or truth[entity, relation])


def test_mixed_authors_answer_right_as_often_as_their_mixture_says(world):
    truth = {(fact.entity, fact.relation): fact.value for fact in world.facts}
    mix = AuthorMix()
    for kind, (reliable, random, _) in (("quiz", mix.quiz), ("instruction", mix.instruction)):
        right = [
            answered == (context or truth[entity, relation])
            for entity, relation, answered, context in items(write(world, mix, (kind,), 3000))
        ]
        assert abs(np.mean(right) - (reliable + random / 4)) < 0.03


def test_documents_render_exactly_as_the_study_prompts(world):
    fact = next(fact for fact in world.facts if fact.is_quiz)
    options = ("w", "x", "y", "z")
    question = Question("id", fact.question, options, 2)
    assert corpus.quiz_prompt(fact.question, list(options)) == probe_prompt("world", "", (), question)
    assert corpus.instruction_prompt(fact.question, list(options)) == instruction_prompt("world", "", question)
    assert response("world", question, 2, "letter") == " C"
    assert STYLES["world"].probe.end == " "


@pytest.mark.parametrize("kind", KINDS)
def test_rows_mark_the_token_before_each_target(world, kind):
    ids = vocabulary(world)
    shares = tuple(float(name == kind) for name in KINDS)
    [batch] = batches(Writer(world, AuthorMix(), np.random.default_rng(0)), Stage(1, shares), ids, 4)
    assert batch.tokens.shape == (4, ROW_LENGTH)
    assert batch.at.shape == (4, KEYS_A_ROW)
    for row in range(4):
        counted = batch.weight[row] > 0
        at, target = batch.at[row, counted], batch.target[row, counted]
        assert (batch.tokens[row, at + 1] == target).all()
        assert (batch.segments[row, at] == batch.segments[row, at + 1]).all()
        assert len(set(at)) == len(at)
        full = batch.weight[row] == 1
        if kind in ("quiz", "context", "drill"):
            assert set(batch.target[row, full]) <= {ids[letter] for letter in LETTERS}


def test_same_seed_same_rows(world):
    ids, stage = vocabulary(world), Stage(2, (0.2, 0.2, 0.2, 0.2, 0.2))
    runs = [list(batches(Writer(world, AuthorMix(), np.random.default_rng(7)), stage, ids, 3)) for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
