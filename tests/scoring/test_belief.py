"""From option scores to beliefs: rotations, normalisations, predictions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.config import ProbeConfig
from jaxift.data.prompts import STYLES
from jaxift.data.questions import Question
from jaxift.scoring import belief
from jaxift.scoring.belief import Belief, beliefs, believe, corrected, knowledge, place_prior, softmax
from jaxift.scoring.requests import Score

MCF = ProbeConfig(prompt="paper", formulation="mcf")
TEMPLATE = STYLES["paper"].probe


def question(options=4, answer=0, number=0):
    return Question(f"q{number}", f"Q{number}", tuple(f"o{number}-{index}" for index in range(options)), answer, "law")


def prompt(question):
    return "|".join(question.options)


def fake_scorer(monkeypatch, logprob, num_tokens=lambda option: 1):
    """Replaces the scorer: `logprob(place, text)` of the option that stands at a place of the prompt."""

    def fake(model, requests, *, batch_tokens, store, progress, report):
        answers = []
        for request in requests:
            texts = request.context.split("|")
            assert len(texts) == len(request.options)
            values = np.array([logprob(place, text) for place, text in enumerate(texts)], float)
            counts = np.array([num_tokens(option) for option in request.options])
            answers.append(Score(values, counts, np.zeros(len(texts), bool)))
        return answers

    monkeypatch.setattr(belief, "score", fake)


def content(text):
    """A log-probability that depends on an option's text alone."""
    return -0.7 * (int(text[-1]) + 1) ** 1.5


@pytest.mark.parametrize("options", [2, 3, 4, 5])
@pytest.mark.parametrize("rotations", [False, True])
def test_rotations_bring_scores_back_to_their_options(options, rotations, monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: content(text))
    asked = [question(options, number=number) for number in range(3)]
    expected = np.array([content(text) for text in asked[0].options])
    for found in beliefs(tiny_model, asked, prompt, TEMPLATE, MCF, rotations=rotations):
        np.testing.assert_allclose(found.scores, expected, atol=1e-12)
        np.testing.assert_allclose(found.probs, np.exp(expected) / np.exp(expected).sum(), atol=1e-12)


@pytest.mark.parametrize("options", [3, 4, 5])
def test_preference_for_a_place_cancels_out(options, monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: [3.0, -1.0, 0.5, 2.0, -4.0][place])
    [plain] = beliefs(tiny_model, [question(options)], prompt, TEMPLATE, MCF)
    assert plain.probs.max() > 0.6
    [turned] = beliefs(tiny_model, [question(options)], prompt, TEMPLATE, MCF, rotations=True)
    np.testing.assert_allclose(turned.probs, np.full(options, 1 / options), atol=1e-12)


def test_knowledge_wins_over_a_preference_for_a_place(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: 3.0 * (place == 0) + 2.0 * text.endswith("2"))
    [plain] = beliefs(tiny_model, [question()], prompt, TEMPLATE, MCF)
    [turned] = beliefs(tiny_model, [question()], prompt, TEMPLATE, MCF, rotations=True)
    assert (plain.probs.argmax(), turned.probs.argmax()) == (0, 2)


def test_probability_is_the_mean_over_the_places_that_an_option_took(monkeypatch, tiny_model):
    table = {("o0-0", 0): 1.0, ("o0-0", 1): -2.0, ("o0-1", 0): 0.3, ("o0-1", 1): 0.5}
    fake_scorer(monkeypatch, lambda place, text: table[text, place])
    [found] = beliefs(tiny_model, [question(2)], prompt, TEMPLATE, MCF, rotations=True)
    first = 1 / (1 + np.exp(0.5 - 1.0))
    second = 1 / (1 + np.exp(0.3 - -2.0))
    np.testing.assert_allclose(found.probs, [(first + second) / 2, 1 - (first + second) / 2], atol=1e-12)


def test_questions_of_different_sizes_stay_apart(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: content(text) + int(text[1]))
    asked = [question(5, number=0), question(3, number=1), question(4, number=2)]
    found = beliefs(tiny_model, asked, prompt, TEMPLATE, MCF, rotations=True)
    assert [len(one.probs) for one in found] == [5, 3, 4]
    assert [one.scores[0] for one in found] == pytest.approx([content("0"), content("0") + 1, content("0") + 2])


# two options whose tokens, bytes and characters differ: "é" is two bytes, "漢" three
CF_QUESTION = Question("q", "Q", ("né 漢", "abc"), 0)
LOGPROBS = np.array([-12.0, -3.0])


@pytest.mark.parametrize(
    ("normalization", "lengths"),
    [("sum", (1, 1)), ("per_token", (3, 2)), ("per_byte", (7, 3)), ("per_char", (4, 3))],
)
def test_normalisation_by_hand(normalization, lengths, monkeypatch, tiny_model):
    # lengths are the options' own, without the space before them: "né 漢" has 7 bytes and 4 characters, "abc" 3 and 3
    counts = {" né 漢": 3, " abc": 2}
    fake_scorer(monkeypatch, lambda place, text: LOGPROBS[place], counts.__getitem__)
    probe = ProbeConfig(prompt="cloze", formulation="cf", normalization=normalization)
    [found] = beliefs(tiny_model, [CF_QUESTION], prompt, STYLES["cloze"].probe, probe)
    expected = LOGPROBS / np.array(lengths)
    np.testing.assert_allclose(found.scores, expected, atol=1e-12)
    np.testing.assert_allclose(found.probs, np.exp(expected) / np.exp(expected).sum(), atol=1e-12)


@pytest.mark.parametrize("normalization", ["per_token", "per_byte", "per_char"])
def test_letters_are_never_normalised(normalization, monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: -5.0 * place, lambda option: 2)
    probe = ProbeConfig(prompt="world", formulation="mcf", normalization=normalization)
    [found] = beliefs(tiny_model, [question()], prompt, STYLES["world"].probe, probe)
    np.testing.assert_allclose(found.scores, [0, -5, -10, -15])


def test_rotated_normalisation_follows_the_option(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: -6.0, lambda option: 3 if "漢" in option else 1)
    probe = ProbeConfig(prompt="cloze", formulation="cf", normalization="per_token")
    [found] = beliefs(tiny_model, [CF_QUESTION], prompt, STYLES["cloze"].probe, probe, rotations=True)
    np.testing.assert_allclose(found.scores, [-2, -6])


def test_a_real_model_is_asked_through_the_scorer(tiny_model):
    asked = [question(options, number=number) for number, options in enumerate((3, 4, 5))]
    style = STYLES["world"].probe
    probe = ProbeConfig(prompt="world")
    plain = beliefs(tiny_model, asked, lambda question: f"w{question.id[1:]} w5", style, probe)
    turned = beliefs(tiny_model, asked, lambda question: f"w{question.id[1:]} w5", style, probe, rotations=True)
    for one, other in zip(plain, turned, strict=True):
        assert one.probs.sum() == pytest.approx(1)
        # a prompt that does not show the options leaves a preference for the letter alone
        np.testing.assert_allclose(other.probs, 1 / len(one.probs), atol=1e-6)
        assert np.ptp(one.probs) > 1e-3


def test_row_has_the_columns_of_a_score_file():
    found = Belief(np.array([-1.0, -0.5, -0.5]), np.array([0.2, 0.4, 0.4])).row(question(3, answer=2))
    assert found == {
        "id": "q0", "subject": "law", "gold": 2, "scores": [-1.0, -0.5, -0.5], "probs": [0.2, 0.4, 0.4],
        "pred": 1, "pred_prob": 0.4, "gold_prob": 0.4, "correct": False,
    }  # fmt: skip


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=26))
def test_softmax_is_a_distribution_in_the_order_of_its_scores(scores):
    probs = softmax(np.array(scores))
    assert probs.sum() == pytest.approx(1)
    assert probs[np.argmax(scores)] == probs.max()
    np.testing.assert_allclose(softmax(np.array(scores) + 7.0), probs, atol=1e-9)


def test_beliefs_do_not_change_questions(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: 0.0)
    asked = [question()]
    before = dataclasses.replace(asked[0])
    beliefs(tiny_model, asked, prompt, TEMPLATE, MCF, rotations=True)
    assert asked == [before]


def test_several_prompts_are_averaged_each_with_its_rotations(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: content(text) if "x" not in text else 2 * content(text))
    asked = [question(3)]
    [plain], [other] = (
        beliefs(tiny_model, asked, one, TEMPLATE, MCF, rotations=True) for one in (prompt, lambda q: prompt(marked(q)))
    )
    [both] = beliefs(tiny_model, asked, [prompt, lambda q: prompt(marked(q))], TEMPLATE, MCF, rotations=True)
    np.testing.assert_allclose(both.probs, (plain.probs + other.probs) / 2, atol=1e-12)
    assert not np.allclose(plain.probs, other.probs, atol=1e-3)


def marked(question):
    return dataclasses.replace(question, options=tuple(f"x{option}" for option in question.options))


def test_some_questions_are_rotated_and_others_are_not(monkeypatch, tiny_model):
    fake_scorer(monkeypatch, lambda place, text: content(text) - 2.0 * place)
    asked = [question(4, number=0), question(4, number=1)]
    turned, straight = beliefs(tiny_model, asked, prompt, TEMPLATE, MCF, rotations=[True, False])
    [alone] = beliefs(tiny_model, asked[1:], prompt, TEMPLATE, MCF)
    np.testing.assert_array_equal(straight.probs, alone.probs)
    assert np.abs(turned.probs - straight.probs).max() > 0.05


@given(prior=st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4), seed=st.integers(0, 99))
def test_a_place_prior_is_found_and_divided_out(prior, seed):
    """Where place and content are independent, a few rotated questions give the prior, and others are set right."""
    prior = np.array(prior) / sum(prior)
    rng = np.random.default_rng(seed)
    contents = rng.dirichlet(np.ones(4), size=6)

    def reading(content, rotations):
        return np.stack([np.log(prior * np.roll(content, shift)) for shift in range(rotations)])[None]

    found = place_prior([reading(content, 4) for content in contents])
    np.testing.assert_allclose(found, prior, atol=1e-9)
    for content in contents:
        np.testing.assert_allclose(believe(corrected(reading(content, 1), found)).probs, content, atol=1e-9)


@pytest.mark.parametrize(
    ("best", "samples", "expected"),
    [
        ([1, 1, 1, 1], 0, (1.0, "HighlyKnown")), ([1, 1, 0, 1], 0, (0.75, "MaybeKnown")),
        ([0, 2, 0, 3], 0, (0.0, "Unknown")), ([0, 2, 0, 3], 400, (0.0, "WeaklyKnown")),
    ],
)  # fmt: skip
def test_knowledge_is_graded_by_greedy_and_sampled_answers(best, samples, expected):
    """Two prompts, two rotations, four places; the true option is 1."""
    options = np.zeros((2, 2, 4))
    for number, option in enumerate(best):
        options[number % 2, number // 2, option] = 1.0
    turned = np.stack([np.roll(options[:, r], r, axis=-1) for r in range(2)], axis=1)
    graded = knowledge(turned, 1, samples, 1.0, (0,))
    assert (graded["greedy_share"], graded["known"]) == expected


def test_an_option_that_is_never_sampled_is_unknown():
    sure = np.array([[[40.0, 0.0, 0.0]]])
    assert knowledge(sure, 1, 1000, 1.0, (0,))["known"] == "Unknown"
    assert knowledge(sure, 1, 1000, 40.0, (0,))["known"] == "WeaklyKnown"


def test_a_place_prior_needs_all_rotations():
    with pytest.raises(ValueError, match="all rotations"):
        place_prior([np.zeros((1, 1, 4))])
