"""Examples to fixed-shape batches: the loss mask, the packing, and the order as a function of (seed, step)."""

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.buckets import BUCKETS, bucket

LOOKED_AT = 256
"""Steps, evenly over all, by which a shape is chosen; that the others fit is made sure of afterwards."""

ROW_UNIT = {"cpu": 32}
"""Rows of packed examples are a multiple of this long; a platform that is not named takes the default."""
DEFAULT_ROW_UNIT = 128

PART_COST = 24
"""What summing a part's gradients costs, in tokens of a shard: they are read and written once more."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation in token ids; the loss covers `tokens[start:]`, the response and its end-of-sequence."""

    tokens: tuple[int, ...]
    start: int
    weights: tuple[float, ...] = ()
    """What the loss of each of `tokens[start:]` counts; empty: 1."""

    @property
    def fed(self) -> int:
        """Tokens that go through the model: all but the last."""
        return len(self.tokens) - 1

    @property
    def scored(self) -> int:
        """Tokens that the loss looks at."""
        return len(self.tokens) - self.start


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all batches of a program have in common: `micro` batches one after another of `rows` rows.

    A row holds `length` tokens; the rows of each of the `shards` of the batch axis have `slots` places for the loss.
    """

    micro: int
    rows: int
    length: int
    shards: int
    slots: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Host arrays of one optimizer step, of which the first `micro` parts hold examples.

    `slots` are places in the tokens of a shard's rows laid end to end, after which `targets` follow; `weights` is 0
    where a target is padding.
    """

    micro: int
    tokens_MRT: np.ndarray
    positions_MRT: np.ndarray
    segments_MRT: np.ndarray
    slots_MHS: np.ndarray
    targets_MHS: np.ndarray
    weights_MHS: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays in the order that the step takes them."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self)[1:])


def encode_examples(
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    truncate: bool = False,
    weights: Sequence[float] = (),
) -> list[Example]:
    """Tokenises (prompt, response) pairs and appends end-of-sequence; `weights` (default 1) is what each counts.

    The seam is always lm-eval's, whatever the tokenizer's own is for scoring: the response's first token is learned as
    it follows the prompt. An example longer than `max_length` is cut there where `truncate` is true. Raises UserError
    where the tokenizer has no end-of-sequence token, or an example is too long, or would be cut within its prompt.
    """
    tokenizer = dataclasses.replace(tokenizer, seam="lm-eval")
    if tokenizer.eos is None:
        raise UserError("the tokenizer has no end-of-sequence token; name one in its tokenizer_config.json")
    examples = []
    for number, (prompt, response) in enumerate(pairs):
        context, continuation = tokenizer.encode_pair(prompt, response)
        if not context:
            raise UserError(f"example {number} has an empty prompt and the model adds no BOS token; give a prompt")
        tokens = (*context, *continuation, tokenizer.eos)
        if len(tokens) > max_length and (not truncate or len(context) >= max_length):
            raise UserError(
                f"example {number} ({prompt[-60:]!r}) has {len(tokens)} tokens, {len(context)} of them its prompt; "
                "raise tune.max_length, or set tune.too_long to truncate"
            )
        tokens = tokens[:max_length]
        counts = () if not weights else (float(weights[number]),) * (len(tokens) - len(context))
        examples.append(Example(tokens, len(context), counts))
    return examples


@dataclasses.dataclass(frozen=True)
class Plan:
    """The examples of each optimizer step of one model's run, a function of (seed, step)."""

    examples: Sequence[Example]
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last may hold fewer examples."""
        return -(-len(self.examples) // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.steps_per_epoch * self.epochs

    def members(self, step: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        return order[place * self.batch_size : (place + 1) * self.batch_size].tolist()

    def rows(self, step: int, length: int, packing: bool) -> list[list[Example]]:
        """The examples of a step by row."""
        members = [self.examples[index] for index in self.members(step)]
        if not packing:
            return [[example] for example in members]
        return [[members[index] for index in row] for row in pack([each.fed for each in members], length)]

    def batch(self, step: int, shape: Shape, packing: bool) -> Batch:
        """The arrays of a step."""
        rows = self.rows(step, shape.length, packing)
        batch = empty_batch(shape, -(-len(rows) // shape.rows))
        for micro, part in enumerate(_micro(rows, shape)):
            for shard, mine in enumerate(part):
                _fill(batch, shape, micro, shard, mine)
        return batch


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Best-fit decreasing: the numbers of the lengths that go into each row of `size`; none is split."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    for index in order:
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place == len(room):
            left, row = size, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        bisect.insort(room, (left - lengths[index], row))
    return rows


def row_unit(platform: str) -> int:
    """What the length of rows of packed examples is a multiple of."""
    return ROW_UNIT.get(platform, DEFAULT_ROW_UNIT)


def choose_shape(
    plans: Sequence[Plan],
    *,
    packing: bool,
    micro_tokens: int,
    shards: int,
    limit: int,
    row_cost: Callable[[int], float] = float,
    unit: int = ROW_UNIT["cpu"],
) -> Shape:
    """The shape that lets all steps of all plans through at the least cost.

    A row of some length costs `row_cost` tokens; a micro-batch holds about `micro_tokens` a shard. Rows of packed
    examples are multiples of `unit`, and unless one example is so long, no longer than `limit`.
    """
    longest = max(example.fed for plan in plans for example in plan.examples)
    steps = [(plan, step) for plan in plans for step in range(plan.steps)]
    some = steps[:: -(-len(steps) // LOOKED_AT)]
    found = []
    for length in _lengths(longest, min(limit, micro_tokens), unit) if packing else [bucket(longest)]:
        counts = [len(plan.rows(step, length, packing)) for plan, step in some]
        fewest = -(-max(counts) // (max(micro_tokens // length, 1) * shards))
        for micro in range(fewest, min(4 * fewest, max(counts)) + 1):
            rows = -(-max(counts) // micro)
            rows += -rows % shards
            parts = sum(-(-count // rows) for count in counts)
            cost = parts * (rows * row_cost(length) + PART_COST * shards * (micro > 1))
            found.append((cost, length, rows))
    _, length, rows = min(found)
    packed = [plan.rows(step, length, packing) for plan, step in steps]
    shape = Shape(max(-(-len(each) // rows) for each in packed), rows, length, shards, 0)
    slots = max(
        sum(example.scored for row in mine for example in row)
        for each in packed
        for part in _micro(each, shape)
        for mine in part
    )
    return dataclasses.replace(shape, slots=_rounded(slots))


def _lengths(longest: int, limit: int, unit: int) -> list[int]:
    """Lengths to choose among, from one unit to the next, where they are long a twentieth apart."""
    found = [-(-longest // unit) * unit]
    while (after := max(found[-1] + unit, int(found[-1] * 1.05) // unit * unit)) <= limit:
        found.append(after)
    return found


def _rounded(slots: int) -> int:
    """Places for the loss: few sizes, little padding."""
    return next((size for size in BUCKETS if slots <= size <= 128), -(-slots // 64) * 64)


def _micro(rows: Sequence[list[Example]], shape: Shape) -> Iterator[list[list[list[Example]]]]:
    """The rows of each micro-batch, by shard; as many on each shard as on any other, or one less."""
    for start in range(0, len(rows), shape.rows):
        part = rows[start : start + shape.rows]
        yield [list(part[shard :: shape.shards]) for shard in range(shape.shards)]


def empty_batch(shape: Shape, micro: int = 0) -> Batch:
    """A batch into whose first `micro` parts examples can be written; of 0, for a model that has come to its end."""
    tokens, positions, segments = (np.zeros((shape.micro, shape.rows, shape.length), np.int32) for _ in range(3))
    slots, targets = (np.zeros((shape.micro, shape.shards, shape.slots), np.int32) for _ in range(2))
    return Batch(micro, tokens, positions, segments, slots, targets, np.zeros(slots.shape, np.float32))


def _fill(batch: Batch, shape: Shape, micro: int, shard: int, rows: Iterable[list[Example]]) -> None:
    """Writes a shard's rows of one micro-batch."""
    used = 0
    for row, examples in enumerate(rows):
        place, start = shard * (shape.rows // shape.shards) + row, 0
        for number, example in enumerate(examples, 1):
            here = (micro, place, slice(start, start + example.fed))
            batch.tokens_MRT[here] = example.tokens[:-1]
            batch.positions_MRT[here] = np.arange(example.fed)
            batch.segments_MRT[here] = number
            there = (micro, shard, slice(used, used + example.scored))
            batch.slots_MHS[there] = row * shape.length + start + np.arange(example.start - 1, example.fed)
            batch.targets_MHS[there] = example.tokens[example.start :]
            batch.weights_MHS[there] = example.weights or 1
            used, start = used + example.scored, start + example.fed
