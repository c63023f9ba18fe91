"""The arrays of a plan's pieces: rows of tokens, what they see, and where their answers stand."""

import dataclasses

import numpy as np

from jaxift.scoring.plan import Plan, Prefill, Step
from jaxift.scoring.tree import lay


@dataclasses.dataclass(frozen=True)
class Filled:
    """The arrays of a step, and where its answers stand in what comes back.

    tokens, positions and reach [lanes, rows * length] (reach 0: padding), slots [lanes, C] and targets [lanes, C, A].
    Answer number i is to the options `answers[i].options`; its tokens' log-probabilities are those at
    `reads[ends[i - 1]:ends[i]]` of the flattened [lanes, C, A].
    """

    tokens: np.ndarray
    positions: np.ndarray
    reach: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    options: list[list[int]]
    reads: np.ndarray
    ends: np.ndarray


def fill(plan: Plan, step: Step) -> Filled:
    """Lays out a step's rows."""
    shape, lanes = step.shape, plan.layout.lanes
    tokens, reach = (np.zeros((lanes, shape.tokens), np.int32) for _ in range(2))
    # padding stands at the first place, so that windows are not thought to reach further back
    positions = np.repeat(np.array(step.depths, np.int32)[:, None], shape.tokens, axis=1)
    slots = np.zeros((lanes, shape.slots), np.int32)
    targets = np.zeros((lanes, shape.slots, shape.targets), np.int32)
    options: list[list[int]] = []
    reads: list[int] = []
    ends: list[int] = []
    for lane, rows in enumerate(step.rows):
        used = 0
        for number, row in enumerate(rows):
            start = number * shape.length
            for item in row:
                laid = lay(plan.tree, item, shape.targets)
                piece = slice(start, start + item.size)
                tokens[lane, piece], positions[lane, piece] = laid.tokens, laid.positions
                reach[lane, piece] = laid.reach + (start - number * shape.length)
                for slot, (at, asked) in enumerate(zip(laid.slots, laid.targets, strict=True), used):
                    slots[lane, slot] = start + at
                    targets[lane, slot, : len(asked)] = asked
                base = (lane * shape.slots + used) * shape.targets
                for answer, pairs in zip(laid.answers, laid.reads, strict=True):
                    options.append(answer.options)
                    reads += [base + slot * shape.targets + target for slot, target in pairs]
                    ends.append(len(reads))
                used += len(laid.slots)
                start += item.size
    return Filled(tokens, positions, reach, slots, targets, options, np.array(reads), np.array(ends))


def prefill_arrays(plan: Plan, piece: Prefill) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and reach [lanes, length] of a piece of prefixes."""
    tokens, reach = (np.zeros((plan.layout.lanes, piece.length), np.int32) for _ in range(2))
    for lane, (leaf, start, count) in enumerate(zip(piece.leaves, piece.starts, piece.counts, strict=True)):
        tokens[lane, :count] = plan.tree.tokens[leaf][start : start + count]
        reach[lane, :count] = count
    positions = np.array(piece.starts, np.int32)[:, None] + np.arange(piece.length, dtype=np.int32)
    return tokens, positions, reach
