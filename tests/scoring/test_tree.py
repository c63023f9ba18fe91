"""The prefix tree: every option stands in it once, what is shared counts once, no item shows what it should not."""

import collections
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbolic import OVERHEADS, expected_reads, pairs, read_piece, read_text, token_requests

from jaxift.scoring import tree as tree_module
from jaxift.scoring.requests import TokenRequest
from jaxift.scoring.tree import build_tree, common, divide, lay

LIMITS = st.sampled_from([1, 5, 30, 1024])


def fed_texts(asked):
    """What must be fed for each option: its context and all of its tokens but the last."""
    return [(*request.context, *option[:-1]) for request in asked for option in request.options]


def prefixes(texts):
    """All distinct beginnings of texts."""
    return {text[:end] for text in texts for end in range(1, len(text) + 1)}


def divided(tree, limit=1024, pair_cost=0.0, overhead=256):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "CUT_OVERHEAD", overhead)
        return divide(tree, limit, pair_cost)


@given(pairs())
def test_leaves_are_the_distinct_texts_in_the_order_of_their_tokens(drawn):
    asked = token_requests(drawn)
    tree = build_tree(asked)
    found = [tuple(tokens.tolist()) for tokens in tree.tokens]
    assert found == sorted(set(fed_texts(asked)))
    expected = [0, *(len(prefixes([one]) & prefixes([other])) for one, other in itertools.pairwise(found))]
    assert tree.shared.tolist() == expected


@given(pairs())
def test_every_option_is_asked_once_where_it_belongs(drawn):
    asked = token_requests(drawn)
    tree, seen = build_tree(asked), collections.Counter()
    options = [(request, option) for request in asked for option in request.options]
    for leaf, tokens in enumerate(tree.tokens):
        for answer in tree.answers[leaf]:
            for number in answer.options:
                request, option = options[number]
                assert answer.targets == option
                assert answer.first == len(request.context) - 1
                assert tuple(tokens.tolist()) == (*request.context, *option[:-1])
                seen[number] += 1
    assert seen == dict.fromkeys(range(len(options)), 1)


@given(pairs(), st.sampled_from([None, 1, 2, 7, 100]))
def test_work_is_that_of_the_distinct_prefixes(drawn, window):
    asked = token_requests(drawn)
    tree, distinct = build_tree(asked), prefixes(fed_texts(asked))
    assert (tree.lengths - tree.shared).sum() == len(distinct)
    assert tree.pairs(window) == sum(min(len(text), window or len(text)) for text in distinct)
    scored = {
        (*request.context, *option[:end])
        for request in asked
        for option in request.options
        for end in range(len(option))
    }
    assert tree.scored() == len(scored)


@given(pairs(), LIMITS, OVERHEADS, st.sampled_from([0.0, 0.02]))
def test_groups_divide_the_leaves(drawn, limit, overhead, pair_cost):
    asked = token_requests(drawn)
    tree = build_tree(asked)
    groups = divided(tree, limit, pair_cost, overhead)
    items = [item for group in groups for item in group.items]
    assert sorted(leaf for item in items for leaf in item.leaves) == list(range(len(tree.tokens)))
    for group in groups:
        prefix = tuple(tree.tokens[group.leaf][: group.depth].tolist())
        assert len(prefix) == group.depth
        for item in group.items:
            texts = [tuple(tree.tokens[leaf].tolist()) for leaf in item.leaves]
            assert item.depth == group.depth
            assert all(text[: group.depth] == prefix for text in texts)
            assert item.size == len({text for text in prefixes(texts) if len(text) > group.depth})
            assert item.size <= limit or len(texts) == 1
            # what is scored must go through the head, which prefixes do not
            assert all(tree.firsts[leaf] >= group.depth for leaf in item.leaves)


@given(pairs(), LIMITS, OVERHEADS, st.sampled_from([0.0, 0.02]))
def test_sharing_never_feeds_more_than_one_text_an_option_would(drawn, limit, overhead, pair_cost):
    asked = token_requests(drawn)
    tree = build_tree(asked)
    groups = divided(tree, limit, pair_cost, overhead)
    columns = prefixes([tuple(tree.tokens[group.leaf][: group.depth].tolist()) for group in groups])
    assert len(columns) + sum(group.size for group in groups) <= tree.lengths.sum()


def test_few_shot_prefix_is_computed_once_and_questions_behind_it():
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 50, 600).tolist()
    asked = [TokenRequest((*shots, *rng.integers(50, 90, 30).tolist()), ((1,), (2,), (3,))) for _ in range(20)]
    tree = build_tree(asked)
    [group] = divided(tree, pair_cost=1 / 3000)
    assert group.depth >= 600
    assert group.depth + group.size == 600 + 20 * 30 - (group.depth - 600) * 19
    assert len(group.items) == 20


def test_what_shares_little_is_not_cut():
    rng = np.random.default_rng(0)
    asked = [TokenRequest((1, 2, 3, *rng.integers(0, 90, 100).tolist()), ((1,),)) for _ in range(20)]
    [group] = divided(build_tree(asked), pair_cost=1 / 3000)
    assert group.depth == 0


def test_an_item_is_laid_out_depth_first():
    tree = build_tree([TokenRequest((9, 5), ((6, 1), (7, 1)))])
    [group] = divided(tree)
    laid = lay(tree, group.items[0], 4)
    assert laid.tokens.tolist() == [9, 5, 6, 7]
    assert laid.positions.tolist() == [0, 1, 2, 2]
    assert laid.reach.tolist() == [4, 4, 3, 4]


@given(pairs(), LIMITS, OVERHEADS, st.sampled_from([1, 2, 32]))
def test_each_answer_is_read_behind_its_own_text(drawn, limit, overhead, most_targets):
    asked = token_requests(drawn)
    tree, found = build_tree(asked), {}
    for group in divided(tree, limit, 0.0, overhead):
        for item in group.items:
            laid = lay(tree, item, most_targets)
            prefix = read_text(tree.tokens[item.low][: item.depth])
            states = read_piece(prefix, item.depth, laid.tokens, laid.positions, laid.reach)
            assert all(0 < len(each) <= most_targets for each in laid.targets)
            for answer, reads in zip(laid.answers, laid.reads, strict=True):
                read = [(states[laid.slots[slot]], laid.targets[slot][target]) for slot, target in reads]
                found.update(dict.fromkeys(answer.options, read))
    assert found == dict(enumerate(expected_reads(asked)))


@given(pairs(), st.randoms(use_true_random=False))
def test_digest_changes_with_every_token_and_with_nothing_else(drawn, chance: random.Random):
    asked = token_requests(drawn)
    assert build_tree(asked).digest() == build_tree(list(asked)).digest()
    place = chance.randrange(len(asked))
    request = asked[place]
    context, options = list(request.context), [list(option) for option in request.options]
    changed = chance.choice([context, *options])
    changed[chance.randrange(len(changed))] += 3  # a token that stands nowhere else
    other = [*asked]
    other[place] = TokenRequest(tuple(context), tuple(map(tuple, options)))
    assert build_tree(other).digest() != build_tree(asked).digest()


def test_the_tree_of_large_token_ids_is_sorted_by_them():
    tree = build_tree([TokenRequest((token, 7), ((1,),)) for token in (70000, 255, 256, 65536, 3)])
    assert [int(tokens[0]) for tokens in tree.tokens] == [3, 255, 256, 65536, 70000]


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_common_counts_equal_tokens_from_the_start(one, other):
    count = common(np.array(one, np.int32), np.array(other, np.int32))
    assert one[:count] == other[:count]
    assert one[count : count + 1] != other[count : count + 1] or count == min(len(one), len(other))
