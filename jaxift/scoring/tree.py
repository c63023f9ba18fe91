"""Requests as a prefix tree: what they share is found in their token ids, whoever asked.

A *leaf* is what must be fed to score some options: their context and all of their tokens but the last. Leaves are
sorted, so that a node of the tree is an interval of them. Options of one token after the same context are one leaf.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxift.scoring.requests import TokenRequest

ENCODING = np.dtype(">u4")  # big-endian: the order of the bytes is the order of the tokens
MERGED_SHARE = 16
"""Leaves travel together where that saves at least a sixteenth of their tokens."""
CUT_OVERHEAD = 256
"""Tokens that computing a prefix on its own must save at least."""
FAR, NEIGHBOURS = 64, 64
"""Leaves that are scored so many tokens before most of so many neighbours on each side stand apart from them."""
PADDED_COLUMNS = 32
"""Columns by which the keys of a prefix are padded on average."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a leaf answers: `targets` are scored one after another, the first as the token after place `first`.

    `options` are the running numbers, over all requests, of the options that this is the answer to.
    """

    first: int
    targets: tuple[int, ...]
    options: list[int]


@dataclasses.dataclass(frozen=True)
class Tree:
    """Leaves in the order of their tokens; leaf i has its first `shared[i]` tokens in common with the one before."""

    tokens: list[np.ndarray]
    shared: np.ndarray
    answers: list[list[Answer]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each leaf."""
        return np.array([len(each) for each in self.tokens], np.int64)

    @property
    def firsts(self) -> np.ndarray:
        """The first scored place of each leaf."""
        return np.array([min(answer.first for answer in each) for each in self.answers], np.int64)

    def pairs(self, window: int | None = None) -> int:
        """Query-key pairs of causal attention over all distinct tokens: the tokens after `shared` in each leaf."""
        if window is None:
            return int((self.lengths * (self.lengths + 1) - self.shared * (self.shared + 1)).sum()) // 2
        seen = np.minimum(np.arange(1, int(self.lengths.max(initial=0)) + 1), window)
        before = np.concatenate([[0], np.cumsum(seen)])
        return int((before[self.lengths] - before[self.shared]).sum())

    def scored(self) -> int:
        """Distinct places after which a token is scored."""
        return sum(len(each) for each in self._new_places())

    def _new_places(self) -> list[set[int]]:
        """Scored places of each leaf that are not its neighbour's as well."""
        found: list[set[int]] = []
        path: set[int] = set()
        for answers, shared in zip(self.answers, self.shared, strict=True):
            places = {place for answer in answers for place in range(answer.first, answer.first + len(answer.targets))}
            path = {place for place in path if place < shared}
            found.append(places - path)
            path |= places
        return found

    def digest(self) -> str:
        """Hash of all tokens and of what is asked."""
        total = hashlib.sha256()
        for tokens, answers in zip(self.tokens, self.answers, strict=True):
            asked = [(answer.first, answer.targets, answer.options) for answer in answers]
            total.update(tokens.astype(ENCODING).tobytes() + repr(asked).encode())
        return total.hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Item:
    """Leaves `low` to `high` (excluded), fed together behind a prefix of `depth` tokens: `size` tokens."""

    low: int
    high: int
    depth: int
    size: int

    @property
    def leaves(self) -> range:
        """The leaves that it scores."""
        return range(self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Group:
    """A prefix that is computed once, the first `depth` tokens of `leaf`, and the items that follow it."""

    leaf: int
    depth: int
    items: list[Item]

    @property
    def size(self) -> int:
        """Tokens of all items."""
        return sum(item.size for item in self.items)


def build_tree(requests: Sequence[TokenRequest]) -> Tree:
    """Sorts requests into a tree; every request has a context and at least one option, none of them empty."""
    found: dict[bytes, dict[tuple[int, tuple[int, ...]], Answer]] = {}
    numbers = itertools.count()
    for request in requests:
        context = np.asarray(request.context, ENCODING).tobytes()
        first = len(request.context) - 1
        for option in request.options:
            path = context + np.asarray(option[:-1], ENCODING).tobytes()
            answers = found.setdefault(path, {})
            answer = answers.setdefault((first, tuple(option)), Answer(first, tuple(option), []))
            answer.options.append(next(numbers))
    paths = sorted(found)
    tree = _joined([_sorted(paths, found)])
    apart = _apart(tree)
    if not apart:
        return tree
    sections = [path for place, path in enumerate(paths) if place not in apart], [paths[place] for place in apart]
    return _joined([_sorted(section, found) for section in sections])


def _sorted(paths: Sequence[bytes], found: Mapping[bytes, Mapping[Any, Answer]]) -> Tree:
    """The tree of paths that are sorted."""
    tokens = [np.frombuffer(path, ENCODING).astype(np.int32) for path in paths]
    shared = np.array([0, *(common(one, other) for one, other in itertools.pairwise(tokens))], np.int64)[: len(tokens)]
    return Tree(tokens, shared, [list(found[path].values()) for path in paths])


def _joined(trees: Sequence[Tree]) -> Tree:
    """Trees side by side, as if they shared nothing."""
    tokens = list(itertools.chain.from_iterable(tree.tokens for tree in trees))
    answers = list(itertools.chain.from_iterable(tree.answers for tree in trees))
    return Tree(tokens, np.concatenate([tree.shared for tree in trees]), answers)


def _apart(tree: Tree) -> list[int]:
    """Leaves that are scored far inside of what most of their neighbours share and do not score.

    A prefix holds no scored place: left among the others, one such leaf would keep all of them from having one.
    """
    firsts, lengths = tree.firsts, len(tree.tokens)
    after = np.append(tree.shared[1:], 0)
    found = []
    for leaf in np.flatnonzero(np.maximum(tree.shared, after) - firsts > FAR).tolist():
        low, high = leaf, leaf + 1
        while low and leaf - low < NEIGHBOURS and tree.shared[low] > firsts[leaf] + FAR:
            low -= 1
        while high < lengths and high - leaf < NEIGHBOURS and tree.shared[high] > firsts[leaf] + FAR:
            high += 1
        later = int((firsts[low:high] > firsts[leaf] + FAR).sum())
        if later >= max(2, (high - low) * 3 // 4):
            found.append(leaf)
    return found


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts have in common from their start."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter


def divide(tree: Tree, item_limit: int, pair_cost: float) -> list[Group]:
    """Divides a tree into groups below a common prefix, depth first: neighbours share most of their prefix.

    An item has at most `item_limit` tokens unless it is a single leaf. A prefix is computed on its own where that saves
    more than it costs; `pair_cost` is what attention to one key costs, in tokens' linear work. No scored place lies in
    a prefix.
    """
    lengths, firsts = tree.lengths, tree.firsts
    total_length = np.concatenate([[0], np.cumsum(lengths)])
    total_shared = np.concatenate([[0], np.cumsum(tree.shared)])
    groups = [Group(0, 0, [])]
    waiting = [(0, len(lengths), groups[0])]
    while waiting:
        low, high, group = waiting.pop()
        if low == high:
            continue
        fed = int(total_length[high] - total_length[low]) - (high - low) * group.depth
        size = fed - int(total_shared[high] - total_shared[low + 1]) + (high - low - 1) * group.depth
        inner = tree.shared[low + 1 : high]
        node = int(inner.min()) if high - low > 1 else int(lengths[low])
        if high - low == 1 or (size <= item_limit and node > group.depth and (fed - size) * MERGED_SHARE >= fed):
            group.items.append(Item(low, high, group.depth, size))
            continue
        bounds = [low, *(low + 1 + np.flatnonzero(inner == node)).tolist(), high]
        depth = min(node, int(firsts[low:high].min()))
        gained = (depth - group.depth) * (len(bounds) - 2)
        if gained > CUT_OVERHEAD + (size - depth + group.depth) * PADDED_COLUMNS * pair_cost:
            group = Group(low, depth, [])
            groups.append(group)
        waiting += [(start, end, group) for start, end in reversed(list(itertools.pairwise(bounds)))]
    return [group for group in groups if group.items]


@dataclasses.dataclass(frozen=True)
class Laid:
    """An item as a row's piece: a token sees those before it whose `reach` lies behind it (its ancestors).

    `slots` are scored places, as offsets into the piece, each with the tokens that are asked for there; answer number i
    reads, one after another, the (slot, target) pairs `reads[i]`.
    """

    tokens: np.ndarray
    positions: np.ndarray
    reach: np.ndarray
    slots: list[int]
    targets: list[list[int]]
    answers: list[Answer]
    reads: list[list[tuple[int, int]]]


def lay(tree: Tree, item: Item, most_targets: int) -> Laid:
    """Lays an item out depth first: [5 6] and [5 7] behind a prefix give tokens 5 6 7 and reach 3 2 3.

    A slot has at most `most_targets` targets; a place where more are asked for becomes several slots.
    """
    tokens = np.empty(item.size, np.int32)
    positions, reach = np.empty(item.size, np.int32), np.full(item.size, item.size, np.int32)
    where = np.empty(max(len(tree.tokens[leaf]) for leaf in item.leaves), np.int64)
    slots: list[int] = []
    targets: list[list[int]] = []
    places: dict[tuple[int, int], tuple[int, int]] = {}  # (offset, token) -> (slot, target)
    open_slots: dict[int, int] = {}  # offset -> the slot there that has room
    answers, reads = [], []
    offset, length = 0, item.depth
    for leaf in item.leaves:
        new = item.depth if leaf == item.low else int(tree.shared[leaf])
        reach[where[new:length]] = offset  # what the leaf before had beyond the common part is closed
        length = len(tree.tokens[leaf])
        where[new:length] = np.arange(offset, offset + length - new)
        tokens[offset : offset + length - new] = tree.tokens[leaf][new:]
        positions[offset : offset + length - new] = np.arange(new, length)
        offset += length - new
        for answer in tree.answers[leaf]:
            read = []
            asked_at = where[answer.first : answer.first + len(answer.targets)].tolist()
            for at, target in zip(asked_at, answer.targets, strict=True):
                if (at, target) not in places:
                    slot = open_slots.get(at)
                    if slot is None or len(targets[slot]) == most_targets:
                        slot = open_slots[at] = len(slots)
                        slots.append(at)
                        targets.append([])
                    places[at, target] = (slot, len(targets[slot]))
                    targets[slot].append(target)
                read.append(places[at, target])
            answers.append(answer)
            reads.append(read)
    return Laid(tokens, positions, reach, slots, targets, answers, reads)
