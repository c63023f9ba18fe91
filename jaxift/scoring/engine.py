"""Log-likelihoods of options after a context: batched, bucketed, sharded over the mesh.

The plain engine: options of one token each share one forward of their context; every other option is a row of its own.
Rows are sorted long-first and padded to few lengths, so that few programs are compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.models.decoder import Decoder
from jaxift.models.readout import target_logprobs
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import batch_shards, sharding

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
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
    """One row of a batch: `tokens` are fed; after position `positions[c]` each of `targets[c]` is scored.

    A row answers option `option` of request `request`, or all of its one-token options where `option` is None.
    """

    request: int
    option: int | None
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


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
    answers = _blank(requests)
    graph, state = nnx.split(decoder)
    with jax.set_mesh(mesh):
        done = 0
        for batch, shape in _batches(rows, decoder.config.vocab_size, batch_tokens, batch_shards(mesh)):
            arrays = [
                jax.device_put(array, sharding(mesh, "batch", *[None] * (array.ndim - 1)))
                for array in _pad(batch, shape)
            ]
            logprobs, greedy = jax.device_get(_score_rows(graph, state, *arrays, dtype=np.dtype(dtype)))
            for row, row_logprobs, row_greedy in zip(batch, logprobs, greedy, strict=False):
                _record(answers[row.request], row, row_logprobs, row_greedy)
            done += len(batch)
            if progress:
                progress(done, len(rows))
    assert not any(np.isnan(answer.logprobs).any() for answer in answers), "a request was left unanswered"
    return answers


def _rows(requests: Sequence[TokenRequest], max_positions: int) -> list[_Row]:
    """All rows, longest first; the order is a function of the requests alone."""
    rows: list[_Row] = []
    for index, request in enumerate(requests):
        if not request.context:
            raise UserError(
                "a request's context is empty and the model adds no BOS token; give at least one token of context"
            )
        if not request.options or not all(request.options):
            raise UserError(f"request {index}: an option is empty; give every option at least one token")
        before = len(request.context)
        if all(len(option) == 1 for option in request.options):
            targets = tuple(option[0] for option in request.options)
            rows.append(_Row(index, None, request.context, (before - 1,), (targets,)))
            continue
        for number, option in enumerate(request.options):
            positions = tuple(range(before - 1, before + len(option) - 1))
            targets = tuple((token,) for token in option)
            rows.append(_Row(index, number, request.context + option[:-1], positions, targets))
    longest = max((len(row.tokens) for row in rows), default=0)
    if longest > max_positions:
        raise UserError(f"a request has {longest} tokens, but the model's length limit is {max_positions}; shorten it")
    return sorted(rows, key=lambda row: (-len(row.tokens), -len(row.positions), row.request, row.option or 0))


def bucket(length: int) -> int:
    """The padded length that a row of this length gets."""
    return next((size for size in BUCKETS if size >= length), -(-length // 1024) * 1024)


def _batches(rows: Sequence[_Row], vocab_size: int, batch_tokens: int, shards: int):
    """Cuts sorted rows into batches and gives each its shape (rows, tokens, scored positions, options a position)."""
    start = 0
    while start < len(rows):
        T = bucket(len(rows[start].tokens))
        fits = max(1, batch_tokens // T)
        C = bucket(max(len(row.positions) for row in rows[start : start + fits]))
        C = 1 if all(len(row.positions) == 1 for row in rows[start : start + fits]) else C
        fits = max(1, min(fits, LOGITS_BYTES // (4 * vocab_size * C)))
        fits = -(-fits // shards) * shards
        batch = rows[start : start + fits]
        # a short last batch keeps the full shape: one program a bucket is worth a few padded rows
        options = max(len(targets) for row in batch for targets in row.targets)
        yield batch, (fits, T, C, options)
        start += len(batch)


def _pad(batch: Sequence[_Row], shape: tuple[int, int, int, int]) -> tuple[np.ndarray, ...]:
    """Host arrays of a batch: tokens and segments [B, T], scored positions [B, C], targets [B, C, K]."""
    B, T, C, K = shape
    tokens, segments = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    positions, targets = np.zeros((B, C), np.int32), np.zeros((B, C, K), np.int32)
    for index, row in enumerate(batch):
        tokens[index, : len(row.tokens)] = row.tokens
        segments[index, : len(row.tokens)] = 1
        positions[index, : len(row.positions)] = row.positions
        for place, ids in enumerate(row.targets):
            targets[index, place, : len(ids)] = ids
    return tokens, segments, positions, targets


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
    """Writes a row's result [C, K] into its request's answer."""
    if row.option is None:
        count = len(row.targets[0])
        answer.logprobs[:], answer.is_greedy[:] = logprobs[0, :count], greedy[0, :count]
    else:
        count = len(row.positions)
        answer.logprobs[row.option] = logprobs[:count, 0].sum(dtype=np.float64)
        answer.is_greedy[row.option] = greedy[:count, 0].all()
