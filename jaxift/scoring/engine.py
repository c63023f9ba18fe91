"""Log-likelihoods of options after a context: batched, bucketed, sharded over the mesh.

The plain engine: a request is a row, its context computed once and its options branching off it. Rows are sorted
long-first and padded to few lengths, so that few programs are compiled. Nothing is shared between requests yet.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.models.buckets import BUCKETS, bucket, check_tokens
from jaxift.models.decoder import Decoder
from jaxift.models.readout import target_logprobs
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import batch_shards, sharding

LOGITS_BYTES = 1 << 28  # float32 logits that one forward may hold

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """A context and the texts that may continue it; options are appended verbatim, no space added."""

    context: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TokenRequest:
    """A request in token ids; the context begins with BOS where the model's policy has one."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """The answer to a request, an entry an option: natural-log probability, tokens, whether greedy decoding says it."""

    logprobs: np.ndarray
    num_tokens: np.ndarray
    is_greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Row:
    """One request as a row: its context, then each option but its last token, branching off the context's end.

    The token after place `slots[c]` is scored as `targets[c]` and belongs to option `owners[c]`.
    """

    request: int
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    slots: tuple[int, ...]
    targets: tuple[int, ...]
    owners: tuple[int, ...]


def score(
    model: LanguageModel, requests: Sequence[Request], *, batch_tokens: int = 4096, progress: Progress | None = None
) -> list[Score]:
    """Scores text requests with a model, in their order.

    Raises UserError where an option is empty or adds no token, or where a request exceeds the model's length.
    """
    return score_tokens(
        model.decoder, [encode(model, request) for request in requests], model.mesh,
        dtype=model.dtype, batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip


def encode(model: LanguageModel, request: Request) -> TokenRequest:
    """Token ids of a request, context and options split as `Tokenizer.encode_pair` does."""
    if not request.options:
        raise UserError(f"the request {request.context[-40:]!r} has no options; give at least one")
    pairs = [model.tokenizer.encode_pair(request.context, option) for option in request.options]
    contexts = {tuple(context) for context, _ in pairs}
    if len(contexts) != 1:
        raise UserError(f"the context {request.context[-40:]!r} is tokenised differently before different options")
    return TokenRequest(contexts.pop(), tuple(tuple(option) for _, option in pairs))


def score_tokens(
    decoder: Decoder,
    requests: Sequence[TokenRequest],
    mesh: Mesh,
    *,
    dtype: np.dtype | type = np.float32,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Score]:
    """Scores token requests in their order: encode -> sort long-first -> batch -> run -> restore order.

    About `batch_tokens` tokens (padding included) go through one forward. `progress(done, total)` counts rows.
    """
    rows = _rows(requests, decoder.config.max_positions)
    for row in rows:
        check_tokens((*row.tokens, *row.targets), decoder.config.vocab_size)
    answers = _blank(requests)
    graph, state = nnx.split(decoder)
    with jax.set_mesh(mesh):
        done = 0
        for batch, shape in _batches(rows, decoder.config.vocab_size, batch_tokens, batch_shards(mesh)):
            arrays = jax.device_put(_pad(batch, shape), sharding(mesh, "batch", None))
            logprobs, greedy = jax.device_get(_score_rows(graph, state, *arrays, dtype=np.dtype(dtype)))
            for row, row_logprobs, row_greedy in zip(batch, logprobs, greedy, strict=False):
                _record(answers[row.request], row, row_logprobs, row_greedy)
            done += len(batch)
            if progress:
                progress(done, len(rows))
    assert not any(np.isnan(answer.logprobs).any() for answer in answers), "a request was left unanswered"
    return answers


def _rows(requests: Sequence[TokenRequest], max_positions: int) -> list[_Row]:
    """One row a request, longest first; the order is a function of the requests alone."""
    for index, request in enumerate(requests):
        if not request.context:
            raise UserError("a context is empty and the model adds no BOS token; give at least one token of context")
        if not request.options or not all(request.options):
            raise UserError(f"request {index}: an option is empty; give every option at least one token")
        longest = len(request.context) + max(len(option) for option in request.options) - 1
        if longest > max_positions:
            raise UserError(f"a request has {longest} tokens, but the model's limit is {max_positions}; shorten it")
    rows = [_row(index, request) for index, request in enumerate(requests)]
    return sorted(rows, key=lambda row: (-len(row.tokens), -len(row.slots), row.request))


def _row(index: int, request: TokenRequest) -> _Row:
    """Lays out a request; options [5 6 7] and [8] after context [1 2] give tokens 1 2 5 6 and slots 1 2 3 | 1."""
    before = len(request.context)
    tokens, positions, segments = list(request.context), list(range(before)), [1] * before
    slots: list[int] = []
    for number, option in enumerate(request.options):
        start, fed = len(tokens), option[:-1]
        slots += [before - 1, *range(start, start + len(fed))]
        tokens += fed
        positions += range(before, before + len(fed))
        segments += [number + 2] * len(fed)
    targets = tuple(token for option in request.options for token in option)
    owners = tuple(number for number, option in enumerate(request.options) for _ in option)
    return _Row(index, tuple(tokens), tuple(positions), tuple(segments), tuple(slots), targets, owners)


def _batches(
    rows: Sequence[_Row], vocab_size: int, batch_tokens: int, shards: int
) -> Iterator[tuple[Sequence[_Row], tuple[int, int, int]]]:
    """Cuts sorted rows into batches and gives each its shape (rows, tokens, slots)."""
    start = 0
    while start < len(rows):
        T = bucket(len(rows[start].tokens))
        fits = -(-max(1, batch_tokens // T) // shards) * shards
        slots = max(len(row.slots) for row in rows[start : start + fits])
        C = slots if slots <= BUCKETS[0] else bucket(slots)
        fits = min(fits, max(1, LOGITS_BYTES // (4 * vocab_size * C) // shards) * shards)
        batch = rows[start : start + fits]
        # a short last batch keeps the full shape: one program a bucket is worth a few padded rows
        yield batch, (fits, T, C)
        start += len(batch)


def _pad(batch: Sequence[_Row], shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Host arrays of a batch: tokens, positions and segments [B, T], slots and targets [B, C]."""
    B, T, C = shape
    tokens, positions, segments = (np.zeros((B, T), np.int32) for _ in range(3))
    slots, targets = (np.zeros((B, C), np.int32) for _ in range(2))
    for index, row in enumerate(batch):
        length, scored = len(row.tokens), len(row.slots)
        tokens[index, :length], positions[index, :length] = row.tokens, row.positions
        segments[index, :length] = row.segments
        slots[index, :scored], targets[index, :scored] = row.slots, row.targets
    return tokens, positions, segments, slots, targets


@functools.partial(jax.jit, static_argnames=("graph", "dtype"))
def _score_rows(
    graph: nnx.GraphDef, state: nnx.State, *arrays: jax.Array, dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
    return target_logprobs(nnx.merge(graph, state), *arrays, dtype=dtype)


def _blank(requests: Sequence[TokenRequest]) -> list[Score]:
    """Answers to be filled in; NaN marks what has not been answered."""
    return [
        Score(
            logprobs=np.full(len(request.options), np.nan),
            num_tokens=np.array([len(option) for option in request.options]),
            is_greedy=np.zeros(len(request.options), bool),
        )
        for request in requests
    ]


def _record(answer: Score, row: _Row, logprobs: np.ndarray, greedy: np.ndarray) -> None:
    """Sums a row's results, [C] each, into its request's answer."""
    owners = np.array(row.owners)
    for option in range(len(answer.logprobs)):
        mine = np.flatnonzero(owners == option)
        answer.logprobs[option] = logprobs[mine].sum(dtype=np.float64)
        answer.is_greedy[option] = greedy[mine].all()
