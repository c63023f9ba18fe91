"""Examples and batches: the loss mask, the padding, and the order as a function of (seed, step)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.tuning.batches import Example, Plan, choose_shape, encode_examples, pack

PAIRS = [("w1 w2 Answer", " A"), ("w1", " B w4 w5"), ("w7 w8 w9 0 1 2 3 4 5", " C")]


def shape_of(*plans, packing=False, micro_tokens=1 << 20, shards=1, limit=1 << 10):
    return choose_shape(plans, packing=packing, micro_tokens=micro_tokens, shards=shards, limit=limit)


def batch_of(plan, step=0, **how):
    return plan.batch(step, shape_of(plan, **how), how.get("packing", False))


def fed(batch):
    """What a batch feeds and scores: (input tokens, positions, (place, target, weight) of the loss) an example."""
    found = []
    M, R, T = batch.tokens_MRT.shape
    H = batch.slots_MHS.shape[1]
    for micro in range(M):
        for row in range(R):
            shard, base = row // (R // H), (row % (R // H)) * T
            segments = batch.segments_MRT[micro, row]
            assert not batch.tokens_MRT[micro, row][segments == 0].any()
            for segment in range(1, segments.max() + 1):
                [places] = np.nonzero(segments == segment)
                assert (np.diff(places) == 1).all()
                scored = [
                    (int(slot - base - places[0]), int(target), float(weight))
                    for slot, target, weight in zip(
                        batch.slots_MHS[micro, shard],
                        batch.targets_MHS[micro, shard],
                        batch.weights_MHS[micro, shard],
                        strict=True,
                    )
                    if weight and slot - base in places
                ]
                tokens, positions = (
                    part[micro, row][places].tolist() for part in (batch.tokens_MRT, batch.positions_MRT)
                )
                found.append((tuple(tokens), tuple(positions), tuple(scored)))
    assert sum(len(scored) for _, _, scored in found) == np.count_nonzero(batch.weights_MHS)
    return Counter(found)


def expected(example):
    """What an example should feed and score."""
    weights = example.weights or (1.0,) * example.scored
    places = range(example.start - 1, example.fed)
    scored = zip(places, example.tokens[example.start :], weights, strict=True)
    return example.tokens[:-1], tuple(range(example.fed)), tuple(each for each in scored if each[2])


def test_mask_covers_the_response_and_end_of_sequence_token_by_token(tiny_folder):
    tokenizer = Tokenizer.load(tiny_folder)
    words = tokenizer.backend.convert_tokens_to_ids
    batch = batch_of(Plan(encode_examples(tokenizer, PAIRS, 64), 3, 1, seed=0))
    found = {
        tuple(target for _, target, _ in scored): [tokens[place] for place, _, _ in scored]
        for tokens, _, scored in fed(batch)
    }
    eos = words("<eos>")
    assert found == {
        (words("A"), eos): [words("<unk>"), words("A")],
        (words("B"), words("w4"), words("w5"), eos): [words("w1"), words("B"), words("w4"), words("w5")],
        (words("C"), eos): [words("5"), words("C")],
    }


def test_mask_is_right_with_a_real_tokenizer(shared_data):
    tokenizer = Tokenizer.load(shared_data / "models" / "stories260K")
    [example] = encode_examples(tokenizer, [("Once upon a time, Lily was", " very happy.")], 64)
    assert example.tokens[0] == tokenizer.bos
    assert example.tokens[-1] == tokenizer.eos
    assert tokenizer.backend.decode(example.tokens[1 : example.start]) == "Once upon a time, Lily was"
    assert tokenizer.backend.decode(example.tokens[example.start : -1]).strip() == "very happy."
    [(tokens, _, scored)] = fed(batch_of(Plan([example], 1, 1, seed=0)))
    assert [target for _, target, _ in scored] == list(example.tokens[example.start :])
    assert [tokens[place] for place, _, _ in scored] == list(example.tokens[example.start - 1 : -1])


def test_trailing_space_of_a_chat_prompt_belongs_to_the_response(shared_data):
    tokenizer = Tokenizer.load(shared_data / "models" / "stories260K")
    spaced, joined = encode_examples(tokenizer, [("Lily said: ", "yes"), ("Lily said:", " yes")], 64)
    assert spaced == joined


lengths = st.tuples(st.integers(1, 20), st.integers(1, 9))


@given(
    shape=st.lists(lengths, min_size=1, max_size=12),
    size=st.integers(1, 6),
    shards=st.sampled_from([1, 4, 8]),
    packing=st.booleans(),
    micro_tokens=st.sampled_from([16, 100, 1 << 20]),
    weighted=st.booleans(),
)
def test_every_example_is_fed_and_scored_once_however_it_is_laid_out(
    shape, size, shards, packing, micro_tokens, weighted
):
    rng = np.random.default_rng(len(shape))
    examples = [
        Example(
            tuple(rng.integers(3, 60, before + after).tolist()),
            before,
            tuple(rng.integers(0, 3, after).astype(float).tolist()) if weighted else (),
        )
        for before, after in shape
    ]
    plan = Plan(examples, size, 1, seed=1)
    laid_out = shape_of(plan, packing=packing, micro_tokens=micro_tokens, shards=shards, limit=64)
    assert laid_out.rows % shards == 0
    for step in range(plan.steps):
        batch = plan.batch(step, laid_out, packing)
        assert fed(batch) == Counter(expected(examples[index]) for index in plan.members(step))
        assert not batch.segments_MRT[batch.micro :].any()
        assert batch.segments_MRT[: batch.micro].any(axis=(1, 2)).all()
        assert batch.tokens_MRT.shape == (laid_out.micro, laid_out.rows, laid_out.length)


@given(lengths=st.lists(st.integers(1, 50), max_size=60), size=st.integers(50, 120))
def test_packing_splits_nothing_and_leaves_no_two_rows_that_fit_into_one(lengths, size):
    rows = pack(lengths, size)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    used = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(each <= size for each in used)
    assert len(used) < 2 or used[0] + used[1] > size


def test_packing_feeds_less_padding_and_rows_of_one_length():
    rng = np.random.default_rng(0)
    examples = [Example(tuple(range(3, 3 + int(length))), 1) for length in rng.integers(5, 60, 200)]
    plan = Plan(examples, 50, 1, seed=0)
    used = sum(example.fed for example in examples)
    fed_tokens = {}
    for packing in (False, True):
        shape = shape_of(plan, packing=packing, micro_tokens=2048)
        batches = [plan.batch(step, shape, packing) for step in range(plan.steps)]
        fed_tokens[packing] = sum(batch.micro for batch in batches) * shape.rows * shape.length
    assert used / fed_tokens[True] > 0.9 > used / fed_tokens[False]


@given(count=st.integers(1, 30), size=st.integers(1, 8), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_each_epoch_covers_every_example_once(count, size, epochs, seed):
    examples = [Example((1, 2, 3), 1)] * count
    plan = Plan(examples, size, epochs, seed)
    assert plan.steps == epochs * -(-count // size)
    for epoch in range(epochs):
        first = epoch * plan.steps_per_epoch
        steps = [plan.members(step) for step in range(first, first + plan.steps_per_epoch)]
        assert Counter(index for step in steps for index in step) == Counter(range(count))
        assert all(len(step) == size for step in steps[:-1])


def test_order_is_a_function_of_seed_and_step_alone():
    examples = [Example((1, 2, 3), 1)] * 40
    plan = Plan(examples, 8, 3, seed=5)
    forward = [plan.members(step) for step in range(plan.steps)]
    backward = [Plan(examples, 8, 3, seed=5).members(step) for step in reversed(range(plan.steps))][::-1]
    assert forward == backward
    assert forward != [Plan(examples, 8, 3, seed=6).members(step) for step in range(plan.steps)]
    epochs = [[index for step in forward[start : start + 5] for index in step] for start in (0, 5, 10)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_batch_larger_than_the_data_has_one_step_an_epoch():
    plan = Plan([Example((1, 2, 3), 1)] * 3, 256, 2, seed=0)
    assert (plan.steps, batch_of(plan).tokens_MRT.shape[1]) == (2, 3)


def test_over_long_example_is_refused(tiny_folder):
    tokenizer = Tokenizer.load(tiny_folder)
    assert len(encode_examples(tokenizer, [("w1 w2", " A")], 5)[0].tokens) == 5
    with pytest.raises(UserError, match=r"example 1 \('w1 w2 w3'\) has 6 tokens, 4 of them its prompt"):
        encode_examples(tokenizer, [("w1 w2", " A"), ("w1 w2 w3", " A")], 5)


def test_over_long_example_is_cut_at_its_end_where_asked(tiny_folder):
    tokenizer = Tokenizer.load(tiny_folder)
    pairs = [("w1 w2", " A B C"), ("w1", " A")]
    whole, short = encode_examples(tokenizer, pairs, 10)
    cut, kept = encode_examples(tokenizer, pairs, 5, truncate=True)
    assert cut.tokens == whole.tokens[:5] != whole.tokens
    assert (cut.start, kept) == (whole.start, short)
    with pytest.raises(UserError, match="has 7 tokens, 3 of them its prompt"):  # nothing would be left to learn
        encode_examples(tokenizer, pairs, 3, truncate=True)


@pytest.mark.parametrize("seam", ["lm-eval", "joint", "separate", "isolated"])
def test_what_is_learned_does_not_depend_on_how_options_are_scored(tiny_folder, shared_data, seam):
    pairs = [("Answer: ASSISTANT: ", "A. cat\n\nSo."), ("Name it. ASSISTANT: ", "B")]
    for folder in (tiny_folder, shared_data / "models" / "stories260K"):
        plain, other = (encode_examples(Tokenizer.load(folder, seam=each), pairs, 99) for each in ("lm-eval", seam))
        assert other == plain
        assert all(example.tokens[example.start :] for example in plain)


def test_tokenizer_without_end_of_sequence_is_refused(make_folder, tmp_path):
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", eos=None))
    with pytest.raises(UserError, match="the tokenizer has no end-of-sequence token"):
        encode_examples(tokenizer, PAIRS, 64)


def test_empty_response_is_refused(tiny_folder):
    with pytest.raises(UserError, match="adds no token of its own"):
        encode_examples(Tokenizer.load(tiny_folder), [("w1", "")], 64)
