"""Packing of documents into training rows: tokens, document masks, and where the loss looks. Pure NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxift.world.corpus import KINDS, Document, Writer, structural_words
from jaxift.world.facts import World
from jaxift.world.words import SPECIALS, VALUES

ROW_LENGTH, KEYS_A_ROW = 128, 32
OTHER_WEIGHT = 0.1
MISSES = 3  # a row is closed after so many documents that did not fit


class Batch(NamedTuple):
    """Rows of tokens and their loss slots; a slot's position is that of the token *before* its target.

    `tokens`, `positions`, `segments`: int32 [B, T]; segment 0 is padding. `at`, `target`, `recall`: int32 [B, K],
    `recall` -1 where there is nothing to recall; `weight`: float32 [B, K].
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    at: np.ndarray
    target: np.ndarray
    recall: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Stage:
    """A stretch of pretraining: its steps, the shares of rows by kind (as in `KINDS`), whether authors are mixed."""

    steps: int
    shares: tuple[float, float, float, float, float]
    mixed_authors: bool = False


def vocabulary(world: World) -> dict[str, int]:
    """Return the ids of all words: specials, template words, relations, values, entities, fictional entities."""
    relations = [relation for by_relation in VALUES.values() for relation in by_relation]
    values = [value for by_relation in VALUES.values() for words in by_relation.values() for value in words]
    words = dict.fromkeys((*SPECIALS, *structural_words(), *relations, *values, *world.entities, *world.fictional))
    return {word: i for i, word in enumerate(words)}


def batches(writer: Writer, stage: Stage, ids: dict[str, int], rows: int) -> Iterator[Batch]:
    """Yield the batches of a stage, `rows` rows each, every row of one kind."""
    for _ in range(stage.steps):
        kinds = writer.rng.choice(len(KINDS), rows, p=np.array(stage.shares) / sum(stage.shares))
        packed = [pack_row(writer, KINDS[kind], ids) for kind in kinds]
        yield Batch(*(np.stack(column) for column in zip(*packed, strict=True)))


def pack_row(writer: Writer, kind: str, ids: dict[str, int]) -> Batch:
    """Write documents of a kind until the row is full, and mark its loss slots."""
    tokens, positions, segments = (np.zeros(ROW_LENGTH, np.int32) for _ in range(3))
    slots: list[tuple[int, int, int, float]] = []
    start, segment, misses = 0, 1, 0
    while misses < MISSES:
        document = writer.write(kind)
        end = start + len(document.words)
        if end > ROW_LENGTH:
            misses += 1
            continue
        tokens[start:end] = [ids[word] for word in document.words]
        positions[start:end], segments[start:end] = np.arange(end - start), segment
        slots += _slots(document, start, ids)
        start, segment = end, segment + 1
    return Batch(tokens, positions, segments, *_fill(slots, tokens, segments, writer.rng))


def _slots(document: Document, start: int, ids: dict[str, int]) -> list[tuple[int, int, int, float]]:
    """Return (position before, target, recalled value or -1, weight) of a document's keys."""
    return [
        (start + key - 1, ids[document.words[key]], ids.get(document.recall.get(key, ""), -1), 1.0)
        for key in document.keys
    ]


def _fill(
    slots: list[tuple[int, int, int, float]], tokens: np.ndarray, segments: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Complete a row's loss slots with random other positions at a small weight: some plain language modelling."""
    inside = np.flatnonzero((segments[1:] == segments[:-1]) & (segments[1:] > 0))
    others = np.setdiff1d(inside, [slot[0] for slot in slots])
    for place in rng.choice(others, min(len(others), KEYS_A_ROW - len(slots)), replace=False):
        slots = [*slots, (int(place), int(tokens[place + 1]), -1, OTHER_WEIGHT)]
    slots = slots + [(0, 0, -1, 0.0)] * (KEYS_A_ROW - len(slots))
    at, target, recall, weight = zip(*slots, strict=True)
    return [
        np.array(at, np.int32),
        np.array(target, np.int32),
        np.array(recall, np.int32),
        np.array(weight, np.float32),
    ]
