"""The scorer against a slow reference, and what must not change its answers."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxift
from jaxift.errors import UserError
from jaxift.models import prefix
from jaxift.parallel.compiled import Compiled
from jaxift.scoring import packing, programs
from jaxift.scoring.engine import score, score_tokens
from jaxift.scoring.requests import Request, TokenRequest, encode_requests

TOLERANCE = 1e-5
LETTERS = (" A", " B", " C", " D")
# one-token, several-token and mixed options, three to five of them, contexts of several buckets
REQUESTS = (
    Request("w1 w2 w3", LETTERS),
    Request("w4", (" w5 w6 w7", " w8", " w9 1 2 3 4 5 6 7 8 9")),
    Request("w1 w2 w3", (" A", " B", " C", " D", " E")),
    Request("0 1 2 3 4 5 6 7 8 9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19", (" w20 w21", " w20 w22", " w20 w21")),
    Request("w1 w2 w3 w4 w5 w6 w7", (" w8 w9", " w10")),
    Request("w1 w2 w3", LETTERS),
)


def same(found, expected, tolerance=TOLERANCE):
    """Whether two lists of scores agree, request by request."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(one.num_tokens, other.num_tokens)
        np.testing.assert_array_equal(one.is_greedy, other.is_greedy)


@pytest.fixture(scope="module")
def answers(tiny_model):
    return score(tiny_model, REQUESTS)


@pytest.fixture(scope="module")
def reference(tiny_model, all_logits):
    """Log-probability and greediness of a continuation: one unbatched forward, log-softmax over all tokens."""

    def of(context, option):
        tokens = np.array([[*context, *option]])
        padded = np.pad(tokens, ((0, 0), (0, 40 - tokens.shape[1])))  # causal: what follows changes nothing
        logits = all_logits(tiny_model.decoder, tiny_model.mesh, padded)[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = range(len(context) - 1, len(context) + len(option) - 1)
        pairs = list(zip(places, option, strict=True))
        return sum(logprobs[place, token] for place, token in pairs), all(logits[p].argmax() == t for p, t in pairs)

    return of


def test_scores_are_those_of_a_slow_reference(tiny_model, answers, reference):
    for request, answer in zip(REQUESTS, answers, strict=True):
        [tokens] = encode_requests(tiny_model.tokenizer, [request]).requests
        expected = [reference(tokens.context, option) for option in tokens.options]
        np.testing.assert_allclose(answer.logprobs, [logprob for logprob, _ in expected], rtol=0, atol=TOLERANCE)
        assert answer.is_greedy.tolist() == [greedy for _, greedy in expected]
        assert answer.num_tokens.tolist() == [len(option.split()) for option in request.options]


def test_context_begins_with_bos_once(tiny_model):
    [tokens] = encode_requests(tiny_model.tokenizer, [Request("w1", LETTERS)]).requests
    assert tokens.context.count(1) == 1


def test_letters_are_the_same_scored_as_option_texts_one_by_one(tiny_model, answers):
    alone = [score(tiny_model, [Request(REQUESTS[0].context, (letter,))])[0] for letter in LETTERS]
    np.testing.assert_allclose(answers[0].logprobs, [one.logprobs[0] for one in alone], rtol=0, atol=TOLERANCE)
    # and beside an option of several tokens
    mixed = score(tiny_model, [Request(REQUESTS[0].context, (*LETTERS, " w1 w2 w3"))])[0]
    np.testing.assert_allclose(answers[0].logprobs, mixed.logprobs[:4], rtol=0, atol=TOLERANCE)


def test_probabilities_of_all_tokens_sum_to_one(tiny_model):
    options = tuple((token,) for token in range(tiny_model.config.vocab_size))
    [answer] = score_tokens(tiny_model.decoder, [TokenRequest((1, 5), options)], tiny_model.mesh)
    assert np.exp(answer.logprobs).sum() == pytest.approx(1, abs=1e-5)
    assert answer.is_greedy.sum() == 1
    assert answer.is_greedy[answer.logprobs.argmax()]


def test_greedy_continuation_is_recognised_and_its_neighbours_are_not(tiny_model, all_logits):
    context, option = [1, 7, 9], []
    for _ in range(4):
        padded = np.pad(np.array([context + option]), ((0, 0), (0, 40 - len(context + option))))
        logits = all_logits(tiny_model.decoder, tiny_model.mesh, padded)
        option.append(int(logits[0, len(context + option) - 1].argmax()))
    wrong_end, wrong_start = [*option[:-1], (option[-1] + 1) % 64], [(option[0] + 1) % 64, *option[1:]]
    request = TokenRequest(tuple(context), tuple(map(tuple, (option, wrong_end, wrong_start))))
    [answer] = score_tokens(tiny_model.decoder, [request], tiny_model.mesh)
    assert answer.is_greedy.tolist() == [True, False, False]
    assert answer.logprobs[0] == max(answer.logprobs[:2])


def test_options_do_not_see_each_other(tiny_model, answers):
    turned = [dataclasses.replace(request, options=request.options[::-1]) for request in REQUESTS]
    for answer, other in zip(answers, score(tiny_model, turned), strict=True):
        np.testing.assert_allclose(other.logprobs[::-1], answer.logprobs, rtol=0, atol=TOLERANCE)
    twice = answers[3]
    assert twice.logprobs[0] == pytest.approx(twice.logprobs[2], abs=TOLERANCE)
    assert twice.logprobs[0] != pytest.approx(twice.logprobs[1], abs=1e-2)


@settings(max_examples=8)
@given(order=st.permutations(range(len(REQUESTS))), batch_tokens=st.sampled_from([1, 4096]))
def test_order_and_batch_size_change_nothing(tiny_model, answers, order, batch_tokens):
    found = score(tiny_model, [REQUESTS[index] for index in order], batch_tokens=batch_tokens)
    same(found, [answers[index] for index in order])


@pytest.mark.parametrize("lengths", [(64,), (13, 27, 64), tuple(range(1, 65))], ids=["one", "odd", "tight"])
def test_row_lengths_change_nothing(lengths, tiny_model, answers, monkeypatch):
    monkeypatch.setattr(packing, "ROW_LENGTHS", lengths)
    same(score(tiny_model, REQUESTS), answers)


def test_fewer_logits_at_a_time_change_nothing(tiny_model, answers, monkeypatch):
    monkeypatch.setattr(prefix, "LOGITS_BYTES", 1)
    monkeypatch.setattr(programs, "_compiled", Compiled(8))
    same(score(tiny_model, REQUESTS), answers)


@pytest.mark.parametrize("mesh", ["8x1x1", "4x1x2"])
def test_mesh_changes_nothing(mesh, meshes, tiny_folder, answers):
    same(score(jaxift.load(tiny_folder, meshes[mesh]), REQUESTS), answers)


def test_window_reaches_back_into_the_context(make_folder, tmp_path, all_logits):
    model = jaxift.load(make_folder(tmp_path / "model", model_type="mistral", sliding_window=3))
    context, option = (1, 5, 6, 7, 8), (9, 10, 11)
    request = TokenRequest(context, ((20,), option))
    [answer] = score_tokens(model.decoder, [request], model.mesh)
    logits = all_logits(model.decoder, model.mesh, np.array([[*context, *option]]))[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [logprobs[4, 20], sum(logprobs[4 + place, token] for place, token in enumerate(option))]
    np.testing.assert_allclose(answer.logprobs, expected, rtol=0, atol=TOLERANCE)


def test_bfloat16_is_near_float32(tiny_folder, answers):
    found = score(jaxift.load(tiny_folder, dtype="bfloat16"), REQUESTS)
    for one, other in zip(found, answers, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0.05, atol=0.2)


def test_a_context_with_a_trailing_space_is_the_same_request(tiny_model):
    spaced = [dataclasses.replace(request, context=request.context + " ") for request in REQUESTS]
    turned = [dataclasses.replace(r, options=tuple(option.strip() for option in r.options)) for r in spaced]
    same(score(tiny_model, turned), score(tiny_model, REQUESTS), 0)


def test_progress_counts_tokens_up_to_all(tiny_model):
    seen = []
    score(tiny_model, REQUESTS, batch_tokens=64, progress=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]


def test_no_request_gives_no_answer(tiny_model):
    assert score(tiny_model, []) == []


def test_every_token_up_to_the_models_limit_can_be_scored(tiny_model):
    limit = tiny_model.config.max_positions
    request = TokenRequest(tuple(range(limit)), ((5,), (6,)))
    assert np.isfinite(score_tokens(tiny_model.decoder, [request], tiny_model.mesh)[0].logprobs).all()


REFUSED = {
    "empty option": (Request("w1", (" A", "")), "adds no token of its own"),
    "option of spaces": (Request("w1", (" A", "  ")), "adds no token of its own"),
    "no options": (Request("w1", ()), "the request 'w1' has no options"),
    "too long a context": (Request("w1 " * 80, (" A",)), "request 1 has 81 tokens, but the model's limit is 64"),
    "too long an option": (Request("w1", (" A", " w2" * 80)), "request 1 has 81 tokens, but the model's limit is 64"),
    "own BOS": (Request("<bos> w1", (" A",)), "brings its own BOS token"),
}


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_request_is_refused_in_one_line(name, tiny_model):
    request, expected = REFUSED[name]
    assert expected in refusal(score, tiny_model, [REQUESTS[0], request])


def test_empty_context_is_the_bos_token_or_else_that_of_an_end(tiny_model, tiny_folder):
    for model, token in ((tiny_model, 1), (jaxift.load(tiny_folder, bos="never"), 1)):
        [answer] = score(model, [Request("", LETTERS)])
        [told] = score_tokens(model.decoder, [TokenRequest((token,), ((4,), (5,), (6,), (7,)))], model.mesh)
        np.testing.assert_array_equal(answer.logprobs, told.logprobs)


def test_tokens_without_context_are_refused(tiny_model):
    request = TokenRequest((), ((5,),))
    assert "request 0: the context is empty" in refusal(score_tokens, tiny_model.decoder, [request], tiny_model.mesh)


@pytest.mark.parametrize(("context", "option"), [((1, 64), (5,)), ((1, 5), (64,)), ((1, -1), (5,))])
def test_token_outside_the_vocabulary_is_refused(context, option, tiny_model):
    message = refusal(score_tokens, tiny_model.decoder, [TokenRequest(context, (option,))], tiny_model.mesh)
    assert "outside the model's vocabulary of 64" in message


@pytest.mark.parametrize("option", [(), (5, 6)])
def test_token_requests_are_checked_too(option, tiny_model):
    request = TokenRequest((1, 5), ((7,), option))
    if option:
        assert len(score_tokens(tiny_model.decoder, [request], tiny_model.mesh)[0].logprobs) == 2
    else:
        assert "option is empty" in refusal(score_tokens, tiny_model.decoder, [request], tiny_model.mesh)
