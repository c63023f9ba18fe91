"""The question type, its rotations, and the order of demonstrations."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.questions import Question, demonstrations, rotate


def question(options=4, answer=0, number=0):
    return Question(f"q{number}", f"Question {number}", tuple(f"option {index}" for index in range(options)), answer)


@pytest.mark.parametrize("count", [0, 1, 27])
def test_number_of_options_is_limited(count):
    with pytest.raises(ValueError, match=f"{count} options; give 2 to 26"):
        question(count)


@pytest.mark.parametrize("answer", [-1, 4])
def test_answer_must_be_an_option(answer):
    with pytest.raises(ValueError, match=f"answer {answer} is not among the 4 options"):
        question(answer=answer)


@given(count=st.integers(2, 26), data=st.data())
def test_rotation_is_a_bijection_and_keeps_the_gold_text(count, data):
    answer, shift = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3 * count))
    original = question(count, answer)
    turned = rotate(original, shift)
    assert sorted(turned.options) == sorted(original.options)
    assert turned.options[turned.answer] == original.options[original.answer]
    assert all(turned.options[(place + shift) % count] == option for place, option in enumerate(original.options))
    assert rotate(turned, -shift) == original
    assert dataclasses.replace(turned, options=original.options, answer=original.answer) == original


def test_all_rotations_bring_every_option_to_every_place():
    turned = [rotate(question(5), shift).options for shift in range(5)]
    assert all(len({options[place] for options in turned}) == 5 for place in range(5))


def test_demonstrations_have_the_releases_order():
    dev = [question(number=number) for number in range(10)]
    order = [int(shown.id[1:]) for shown in demonstrations(dev, 10, 42)]
    assert order == [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]
    assert demonstrations(dev, 5, 42) == demonstrations(dev, 10, 42)[:5]
    assert [shown.id for shown in dev] == [f"q{number}" for number in range(10)]


def test_demonstrations_are_at_most_the_dev_questions():
    assert len(demonstrations([question()], 5, 42)) == 1
    assert demonstrations([question()], 0, 42) == ()
