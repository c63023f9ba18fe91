"""What is asked of the scorer and what it answers, and how texts become token ids on the way."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxift.data.tokenizer import Pair, Tokenizer
from jaxift.errors import UserError

CHUNK = 256  # requests whose texts are held and tokenised at a time: their long contexts stand in memory once an option


@dataclasses.dataclass(frozen=True)
class Request:
    """A context and the texts that may continue it; options are appended verbatim, no space added."""

    context: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TokenRequest:
    """A request in token ids; the context begins with BOS where the tokenizer's policy has one."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """The answer to a request, an entry an option.

    `logprobs`: natural-log probability of the whole option, `token_logprobs`: of each of its tokens; `is_greedy`:
    whether greedy decoding would say it.
    """

    logprobs: np.ndarray
    num_tokens: np.ndarray
    is_greedy: np.ndarray
    token_logprobs: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Text requests in token ids.

    `places[i][j]` is the number of a token request and of an option in it: where option j of text request i stands.
    Options before which a context is tokenised differently stand in token requests of their own.
    """

    requests: list[TokenRequest]
    places: list[list[tuple[int, int]]]

    def gather(self, scores: Sequence[Score]) -> list[Score]:
        """The scores of the text requests, from those of `requests`."""
        return [_gathered([(scores[request], option) for request, option in places]) for places in self.places]


def encode_requests(tokenizer: Tokenizer, requests: Sequence[Request], names: Sequence[str] | None = None) -> Encoded:
    """Token ids of text requests, split at the seam as `Tokenizer.encode_pair` does.

    Raises UserError where a request has no options, or an option adds no token of its own; it calls a request by its
    name, or its number from 0 where there are no `names`.
    """
    encoded = Encoded([], [])
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        for request in chunk:
            if not request.options:
                raise UserError(f"the request {request.context[-40:]!r} has no options; give at least one")
        called = range(start, start + len(chunk)) if names is None else names[start : start + CHUNK]
        pairs = iter(_pairs(tokenizer, chunk, called))
        for request in chunk:
            _append(encoded, [next(pairs) for _ in request.options])
    return encoded


def _pairs(tokenizer: Tokenizer, chunk: Sequence[Request], names: Sequence[str | int]) -> list[Pair]:
    """All options of some requests; of those that cannot be tokenised, the first one is named."""
    try:
        return tokenizer.encode_pairs([(each.context, option) for each in chunk for option in each.options])
    except UserError:
        for name, request in zip(names, chunk, strict=True):
            try:
                tokenizer.encode_pairs([(request.context, option) for option in request.options])
            except UserError as error:
                raise UserError(f"request {name!r}: {error}") from None
        raise


def _append(encoded: Encoded, pairs: Sequence[tuple[list[int], list[int]]]) -> None:
    """Adds one text request: a token request for each of its distinct contexts, in the order of their first option."""
    by_context: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    first, places = len(encoded.requests), []
    for context, option in pairs:
        options = by_context.setdefault(tuple(context), [])
        places.append((tuple(context), len(options)))
        options.append(tuple(option))
    numbers = {context: first + number for number, context in enumerate(by_context)}
    encoded.requests.extend(TokenRequest(context, tuple(options)) for context, options in by_context.items())
    encoded.places.append([(numbers[context], option) for context, option in places])


def _gathered(found: Sequence[tuple[Score, int]]) -> Score:
    return Score(
        logprobs=np.array([score.logprobs[option] for score, option in found]),
        num_tokens=np.array([score.num_tokens[option] for score, option in found]),
        is_greedy=np.array([score.is_greedy[option] for score, option in found]),
        token_logprobs=tuple(score.token_logprobs[option] for score, option in found),
    )
