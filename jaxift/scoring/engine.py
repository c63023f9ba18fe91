"""Log-likelihoods of options after a context: what requests share is computed once, the rest is fed densely packed.

requests -> prefix tree -> plan -> compiled programs -> steps -> the answers in the order of the requests, each exactly
once. Plan and programs: see `packing` and `programs`; the numbers: see `models/prefix.py`.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.models.buckets import check_tokens
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder
from jaxift.models.flops import attention_flops, head_flops, pair_flops, token_flops
from jaxift.models.stack import ModelStack
from jaxift.models.weights import LanguageModel
from jaxift.parallel import pace
from jaxift.parallel.arrays import gather
from jaxift.parallel.hosts import WORK_TIMEOUT, process_index
from jaxift.parallel.meeting import everywhere, on_every_process, same_everywhere
from jaxift.parallel.mesh import CELL, batch_shards
from jaxift.progress import moved
from jaxift.scoring.filling import Filled, fill, prefill_arrays
from jaxift.scoring.packing import Layout
from jaxift.scoring.plan import Plan, Prefill, Step, make_plan, needed_prefills
from jaxift.scoring.programs import Programs, Scored, compile_plan
from jaxift.scoring.requests import Request, Score, TokenRequest, encode_requests
from jaxift.scoring.store import Answers, ScoreStore
from jaxift.scoring.tree import build_tree

BATCH_TOKENS = {"cpu": 1024}
"""Tokens that go through the model at once, over all devices' lanes; a platform that is not named takes the default."""
DEFAULT_LANE_TOKENS = 8192
AHEAD = 3
"""Steps that are laid out and dispatched before the first of them is waited for."""
AT_ONCE = {"cpu": 2}
"""Steps that one device runs at the same time: on CPU each fills the gaps in which the other's threads wait."""

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a run of the scorer took. Tokens: `asked` without any sharing, one forward a request; `useful` when each
    distinct one is fed once; `fed` with padding and repetitions. FLOPs are those of the useful tokens."""

    requests: int
    options: int
    asked_tokens: int
    useful_tokens: int
    fed_tokens: int
    resumed_tokens: int
    """Those of them that an earlier run had fed."""
    useful_flops: float
    programs: int
    compile_seconds: float
    seconds: float
    """Of this run, without compilation."""


Report = Callable[[Statistics], None]


def score(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[Score]:
    """Scores text requests with a model, in their order; arguments: see `score_tokens`.

    Raises UserError where an option is empty or adds no token, or where a request exceeds the model's length.
    """
    encoded = encode_requests(model.tokenizer, requests)
    return encoded.gather(
        score_tokens(
            model.decoder, encoded.requests, model.mesh,
            dtype=model.dtype, batch_tokens=batch_tokens, store=store, progress=progress, report=report,
        )
    )  # fmt: skip


def score_tokens(
    decoder: Decoder,
    requests: Sequence[TokenRequest],
    mesh: Mesh,
    *,
    dtype: np.dtype | type = np.float32,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[Score]:
    """Scores token requests in their order.

    About `batch_tokens` tokens go through the model at once. With a `store`, parts that are done are written there, and
    those that it has already are not done again: the result is the same to the bit. `progress(done, total)` counts
    tokens, `report` is told at the end what it took. Raises UserError where a request cannot be scored.
    """
    found = _score(
        Scored.of(decoder, mesh), requests, dtype=dtype, batch_tokens=batch_tokens, store=store, progress=progress,
        report=report,
    )  # fmt: skip
    return found[0]


def score_stack(
    stack: ModelStack,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    store: ScoreStore | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[list[Score]]:
    """Scores text requests with every model of a stack, in one program; a list for each. Arguments: see `score`."""
    encoded = encode_requests(stack.like.tokenizer, requests)
    found = _score(
        Scored.stacked(stack), encoded.requests, dtype=stack.like.dtype, batch_tokens=batch_tokens, store=store,
        progress=progress, report=report,
    )  # fmt: skip
    return [encoded.gather(scores) for scores in found[: stack.size]]


def _score(
    scored: Scored,
    requests: Sequence[TokenRequest],
    *,
    dtype: np.dtype | type,
    batch_tokens: int | None,
    store: ScoreStore | None,
    progress: Progress | None,
    report: Report | None,
) -> list[list[Score]]:
    """Scores of each model; the answers of a stack are kept as those of as many times the requests."""
    cells = scored.cells or 1
    _check(requests, scored.config)
    if not requests:
        return [[] for _ in range(cells)]
    plan = make_plan(build_tree(requests), layout(scored.config, scored.mesh, batch_tokens))
    planned = plan.digest if scored.cells is None else f"{plan.digest} of {cells} models"
    same_everywhere("scoring plan", planned, WORK_TIMEOUT)
    store = None if store is None else store.for_plan(planned)
    programs = compile_plan(scored, plan, np.dtype(dtype))
    options = sum(len(request.options) for request in requests)
    started = time.perf_counter()
    with jax.set_mesh(scored.mesh):
        found, resumed = _run(plan, programs, options, store, progress)
    scores = _in_order([*requests] * cells, found)
    if report:
        report(_statistics(requests, plan, programs, resumed, time.perf_counter() - started))
    return [scores[start : start + len(requests)] for start in range(0, len(scores), len(requests))]


def _check(requests: Sequence[TokenRequest], config: DecoderConfig) -> None:
    for index, request in enumerate(requests):
        if not request.context:
            raise UserError(f"request {index}: the context is empty; give it at least one token")
        if not request.options or not all(request.options):
            raise UserError(f"request {index}: an option is empty; give every option at least one token")
        longest = len(request.context) + max(map(len, request.options)) - 1
        if longest > config.max_positions:
            raise UserError(
                f"request {index} has {longest} tokens, but the model's limit is {config.max_positions}; shorten it"
            )
        for tokens in (request.context, *request.options):
            check_tokens(tokens, config.vocab_size)


def layout(config: DecoderConfig, mesh: Mesh, batch_tokens: int | None = None) -> Layout:
    """What plans of a model on a mesh depend on: a lane a share of the batch axis, and the tokens of a step."""
    lanes, platform = batch_shards(mesh), mesh.devices.flat[0].platform
    default = BATCH_TOKENS.get(platform, DEFAULT_LANE_TOKENS * lanes)
    pair_cost = pair_flops(config) * config.num_layers / token_flops(config)
    return Layout(lanes=lanes, step_tokens=max((batch_tokens or default) // lanes, 1), pair_cost=pair_cost)


def _run(
    plan: Plan, programs: Programs, options: int, store: ScoreStore | None, progress: Progress | None
) -> tuple[list[Answers], int]:
    """The answers of all parts and processes, and the tokens of parts that were done before."""
    with _Devices(plan, programs, options) as devices:
        return _run_parts(plan, devices, store, progress)


def _run_parts(
    plan: Plan, devices: "_Devices", store: ScoreStore | None, progress: Progress | None
) -> tuple[list[Answers], int]:
    parts = len(plan.parts)
    done = np.zeros(parts, bool) if store is None else everywhere(store.finished(parts), WORK_TIMEOUT)
    found, fed, resumed, total = [], 0, 0, plan.fed_tokens
    for part, pieces in enumerate(plan.parts):
        answers = []
        for piece in pieces:
            fed += plan.tokens(plan.work[piece])
            answers += devices.skip(plan.work[piece]) if done[part] else devices.take(plan.work[piece])
            if progress:
                progress(fed, total)
        if done[part]:
            resumed += sum(plan.tokens(plan.work[piece]) for piece in pieces)
            continue
        answers = _joined([*answers, *devices.finish()])
        if store is None:
            found.append(answers)
        else:
            # where one process cannot, none goes on: the next step would wait for it
            on_every_process(functools.partial(_kept, store, part, answers), WORK_TIMEOUT)
    if store is None:
        return _gathered(_joined(found)), 0
    return [store.read(part) for part in range(parts)], resumed


def _kept(store: ScoreStore, part: int, answers: Answers) -> None:
    """Writes a part, in this host's own time."""
    with pace.own_work():
        store.write(part, answers)
    moved()


class _Devices:
    """What runs on the devices: the prefixes that they hold, and the steps that were dispatched and not waited for."""

    def __init__(self, plan: Plan, programs: Programs, options: int):
        self.plan, self.programs, self.options = plan, programs, options
        self.prefix = programs.start()
        self.waiting: list[Prefill] = []
        self.running: collections.deque[tuple[Filled, tuple[jax.Array, jax.Array]]] = collections.deque()
        mesh, cells = programs.scored.mesh, programs.scored.cells
        groups = mesh.devices.reshape(mesh.shape[CELL], plan.layout.lanes, -1)[..., 0]
        mine = np.array([[device.process_index == process_index() for device in group] for group in groups])
        # [cells, lanes]; one model that lies on all groups is answered for by the first
        self.mine = mine[:1] if cells is None else np.repeat(mine, cells // len(groups), axis=0)
        # what one thread dispatches runs in turn; steps that meet those of other devices keep one order everywhere
        at_once = AT_ONCE.get(groups[0, 0].platform, 1) if mesh.size == 1 else 1
        self.threads = [ThreadPoolExecutor(1) for _ in range(at_once)]

    def __enter__(self) -> "_Devices":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.shutdown()

    def skip(self, piece: Prefill | Step) -> list[Answers]:
        """Leaves out a piece that was done before; of prefixes, those that are needed later are computed then."""
        if isinstance(piece, Prefill):
            self.waiting.append(piece)
        return []

    def take(self, piece: Prefill | Step) -> list[Answers]:
        """Starts a piece, and returns the answers of an earlier one as soon as enough others are under way."""
        if isinstance(piece, Prefill):
            self.waiting.append(piece)
            return []
        for prefill in needed_prefills(self.waiting):
            self.prefix = self.programs.prefill(self.prefix, prefill_arrays(self.plan, prefill))
        self.waiting.clear()
        with pace.own_work():
            filled = fill(self.plan, piece)
        arrays = (np.array(piece.depths, np.int32), filled.tokens, filled.positions, filled.reach)
        self.threads.append(self.threads.pop(0))
        dispatched = self.threads[-1].submit(
            self.programs.step, piece.shape, self.prefix, (*arrays, filled.slots, filled.targets)
        )
        self.running.append((filled, dispatched.result()))
        return [self._answers(*self.running.popleft())] if len(self.running) > AHEAD else []

    def finish(self) -> list[Answers]:
        """Waits for what is under way."""
        found = [self._answers(*each) for each in self.running]
        self.running.clear()
        return found

    def _answers(self, filled: Filled, scored: tuple[jax.Array, jax.Array]) -> Answers:
        """What this process' lanes have found, of one model after another."""
        cells, lane_size = len(self.mine), filled.targets[0].size
        logprobs, greedy = (_on_host(each).reshape(cells, -1) for each in scored)
        moved()
        starts, ends = np.concatenate([[0], filled.ends[:-1]]), filled.ends
        # options that stand for the same tokens share an entry
        entries = np.repeat(np.arange(len(ends)), [len(numbers) for numbers in filled.options])
        options = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, filled.options)]).astype(np.int64)
        best = np.logical_and.reduceat(greedy[:, filled.reads], starts, axis=1)[:, entries]
        counts, lanes = (ends - starts)[entries], filled.reads[starts][entries] // lane_size
        reads = filled.reads[np.arange(counts.sum()) + np.repeat(starts[entries] - np.cumsum(counts) + counts, counts)]
        found = []
        for cell in range(cells):
            mine = self.mine[cell, lanes]
            found.append(
                Answers(
                    options[mine] + cell * self.options,
                    counts[mine].astype(np.int32),
                    logprobs[cell, reads[np.repeat(mine, counts)]],
                    best[cell, mine],
                )
            )
        return _joined(found)


def _on_host(value: jax.Array) -> np.ndarray:
    """An array of which this process may hold a part: the rest is zero."""
    if value.is_fully_addressable:
        return np.asarray(value)
    whole = np.zeros(value.shape, value.dtype)
    for shard in value.addressable_shards:
        whole[shard.index] = np.asarray(shard.data)
    return whole


def _joined(found: Sequence[Answers]) -> Answers:
    empty = Answers(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool))
    columns = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*(np.concatenate([getattr(each, name) for each in (empty, *found)]) for name in columns))


def _gathered(mine: Answers) -> list[Answers]:
    """The answers of all processes."""
    columns = [gather(getattr(mine, field.name), WORK_TIMEOUT) for field in dataclasses.fields(Answers)]
    return [Answers(*each) for each in zip(*columns, strict=True)]


def _in_order(requests: Sequence[TokenRequest], found: Sequence[Answers]) -> list[Score]:
    """Scores in the order of the requests; asserts that every option was answered exactly once."""
    answers = _joined(found)
    order = np.argsort(answers.options, kind="stable")
    ends = np.cumsum(answers.num_tokens)
    expected = sum(len(request.options) for request in requests)
    assert np.array_equal(answers.options[order], np.arange(expected)), "an option was not answered exactly once"
    scores, at = [], 0
    for request in requests:
        mine = order[at : at + len(request.options)]
        at += len(request.options)
        tokens = tuple(answers.token_logprobs[ends[each] - answers.num_tokens[each] : ends[each]] for each in mine)
        logprobs = np.array([each.sum(dtype=np.float64) for each in tokens])
        scores.append(Score(logprobs, answers.num_tokens[mine].astype(np.int64), answers.is_greedy[mine], tokens))
    return scores


def _statistics(
    requests: Sequence[TokenRequest], plan: Plan, programs: Programs, resumed_tokens: int, seconds: float
) -> Statistics:
    cells = programs.scored.cells or 1
    return Statistics(
        requests=cells * len(requests),
        options=cells * sum(len(request.options) for request in requests),
        asked_tokens=cells
        * sum(len(request.context) + sum(len(option) - 1 for option in request.options) for request in requests),
        useful_tokens=cells * plan.useful_tokens,
        fed_tokens=cells * plan.fed_tokens,
        resumed_tokens=cells * resumed_tokens,
        useful_flops=float(cells * useful_flops(programs.scored.config, plan)),
        programs=len(programs.steps) + len(programs.prefills),
        compile_seconds=programs.compile_seconds,
        seconds=seconds,
    )


def useful_flops(config: DecoderConfig, plan: Plan) -> int:
    """Operations of a plan's distinct tokens, each fed once, and of the LM head where something is scored."""
    flops = token_flops(config) * plan.useful_tokens + head_flops(config) * plan.tree.scored()
    return flops + attention_flops(config, plan.tree.pairs)
