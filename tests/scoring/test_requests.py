"""Text requests in token ids: what each becomes, and how the answers find their way back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.scoring import requests as module
from jaxift.scoring.requests import Request, Score, encode_requests


@pytest.fixture(scope="module")
def stories(shared_data):
    """A tokenizer in which a continuation without a space merges with the word before it."""
    return Tokenizer.load(shared_data / "models" / "stories260K")


def answer(requests):
    """Scores that tell which tokens they belong to."""
    return [
        Score(
            logprobs=np.array([-float(sum(request.context) + sum(option)) for option in request.options]),
            num_tokens=np.array([len(option) for option in request.options]),
            is_greedy=np.array([sum(option) % 2 == 0 for option in request.options]),
            token_logprobs=tuple(-np.array(option, np.float32) for option in request.options),
        )
        for request in requests
    ]


PARTS = st.sampled_from(["Once", " upon", " a", " t", "ime", " ", "the", "re", "\n", "A", ".", " was"])
TEXTS = st.lists(PARTS, min_size=1, max_size=5).map("".join)
ASKED = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=4).map(tuple)), max_size=5)


@given(asked=ASKED, seam=st.sampled_from(["lm-eval", "joint", "separate"]), chunk=st.sampled_from([1, 2, 256]))
def test_requests_are_their_pairs_and_answers_come_back(stories, asked, seam, chunk):
    requests = [Request(*each) for each in asked]
    tokenizer = dataclasses.replace(stories, seam=seam)
    try:
        pairs = [[tokenizer.encode_pair(each.context, option) for option in each.options] for each in requests]
    except UserError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        encoded = encode_requests(tokenizer, requests)
    found = encoded.gather(answer(encoded.requests))
    assert len(found) == len(requests)
    for score, expected in zip(found, pairs, strict=True):
        assert score.logprobs.tolist() == [-sum(context) - sum(option) for context, option in expected]
        assert score.num_tokens.tolist() == [len(option) for _, option in expected]
        assert score.is_greedy.tolist() == [sum(option) % 2 == 0 for _, option in expected]
        assert [(-row).tolist() for row in score.token_logprobs] == [option for _, option in expected]


def test_contexts_that_differ_before_different_options_become_requests_of_their_own(stories):
    request = Request("Once upon a t", ("ime x", " x", "he y", " y"))
    # lm-eval's tokens: one context, tokenised alone
    assert len(encode_requests(stories, [request]).requests) == 1
    encoded = encode_requests(dataclasses.replace(stories, seam="joint"), [Request("Once", (" upon",)), request])
    contexts = [each.context for each in encoded.requests[1:]]
    assert len(contexts) == len(set(contexts)) > 1
    assert sum(len(each.options) for each in encoded.requests[1:]) == len(request.options)
    assert encoded.places[0] == [(0, 0)]


def test_equal_options_stay_apart(stories):
    encoded = encode_requests(stories, [Request("Once", (" upon", " upon"))])
    assert encoded.requests[0].options[0] == encoded.requests[0].options[1]
    assert encoded.places == [[(0, 0), (0, 1)]]


def test_a_text_is_tokenised_once_however_often_it_is_asked_for(stories, monkeypatch):
    seen = []
    original = Tokenizer._ids
    monkeypatch.setattr(Tokenizer, "_ids", lambda self, texts: seen.extend(texts) or original(self, texts))
    encode_requests(stories, [Request("Once upon", (" a", " the"))] * 3)
    assert sorted(seen) == ["Once upon", "Once upon a", "Once upon the"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("Once", ()), "the request 'Once' has no options"),
        (Request("Once", (" upon", "")), "the continuation '' adds no token of its own"),
        (Request("<s> Once", (" upon",)), "brings its own BOS token"),
    ],
)
def test_request_without_an_answer_is_refused(request_, message, stories):
    with pytest.raises(UserError, match=message):
        encode_requests(stories, [Request("Once", (" upon",)), request_])


def test_no_request_is_no_request(stories):
    assert encode_requests(stories, []).requests == []
