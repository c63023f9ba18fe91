"""Examples to fixed-shape batches: the loss mask, the padding, and the order as a function of (seed, step)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.buckets import bucket


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation in token ids; the loss covers `tokens[start:]`, the response and its end-of-sequence."""

    tokens: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Host arrays of one optimizer step: `weights` is 1 where a target counts and 0 where it is padding."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    slots_BC: np.ndarray
    targets_BC: np.ndarray
    weights_BC: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays in the order that the step takes them."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def encode_examples(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_length: int, truncate: bool = False
) -> list[Example]:
    """Tokenises (prompt, response) pairs and appends end-of-sequence.

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
        examples.append(Example(tokens[:max_length], len(context)))
    return examples


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a run, their content a function of (seed, step); rows of one number, lengths of few buckets."""

    examples: Sequence[Example]
    batch_size: int
    epochs: int
    seed: int
    shards: int = 1
    """The batch's rows are padded to a multiple of this."""

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

    def batch(self, step: int) -> Batch:
        """The padded arrays of a step."""
        rows = min(self.batch_size, len(self.examples))
        members = [self.examples[index] for index in self.members(step)]
        B = -(-rows // self.shards) * self.shards
        T = bucket(max(len(example.tokens) for example in members) - 1)
        # one width of responses for the whole run: it is small, and each shape is a compilation
        C = bucket(max(len(example.tokens) - example.start for example in self.examples))
        tokens, segments = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        slots, targets = np.zeros((B, C), np.int32), np.zeros((B, C), np.int32)
        weights = np.zeros((B, C), np.float32)
        for row, example in enumerate(members):
            length, scored = len(example.tokens) - 1, len(example.tokens) - example.start
            tokens[row, :length], segments[row, :length] = example.tokens[:-1], 1
            slots[row, :scored] = np.arange(example.start - 1, length)
            targets[row, :scored] = example.tokens[example.start :]
            weights[row, :scored] = 1
        return Batch(tokens, positions, segments, slots, targets, weights)
