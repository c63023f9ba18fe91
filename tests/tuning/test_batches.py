"""Examples and batches: the loss mask, the padding, and the order as a function of (seed, step)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.tuning.batches import Example, Plan, encode_examples

PAIRS = [("w1 w2 Answer", " A"), ("w1", " B w4 w5"), ("w7 w8 w9 0 1 2 3 4 5", " C")]


def scored_tokens(batch, row):
    """Targets that count in a row, and the tokens that they are predicted after."""
    counted = batch.weights_BC[row] == 1
    return batch.targets_BC[row][counted].tolist(), batch.tokens_BT[row][batch.slots_BC[row][counted]].tolist()


def test_mask_covers_the_response_and_end_of_sequence_token_by_token(tiny_folder):
    tokenizer = Tokenizer.load(tiny_folder)
    words = tokenizer.backend.convert_tokens_to_ids
    batch = Plan(encode_examples(tokenizer, PAIRS, 64), 3, 1, seed=0).batch(0)
    found = {tuple(scored_tokens(batch, row)[0]): scored_tokens(batch, row)[1] for row in range(3)}
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
    targets, before = scored_tokens(Plan([example], 1, 1, seed=0).batch(0), 0)
    assert targets == list(example.tokens[example.start :])
    assert before == list(example.tokens[example.start - 1 : -1])


def test_trailing_space_of_a_chat_prompt_belongs_to_the_response(shared_data):
    tokenizer = Tokenizer.load(shared_data / "models" / "stories260K")
    spaced, joined = encode_examples(tokenizer, [("Lily said: ", "yes"), ("Lily said:", " yes")], 64)
    assert spaced == joined


lengths = st.tuples(st.integers(1, 20), st.integers(1, 9))


@given(shape=st.lists(lengths, min_size=1, max_size=12), size=st.integers(1, 6), shards=st.sampled_from([1, 4, 8]))
def test_padding_never_counts(shape, size, shards):
    rng = np.random.default_rng(len(shape))
    examples = [Example(tuple(rng.integers(3, 60, before + after).tolist()), before) for before, after in shape]
    plan = Plan(examples, size, 1, seed=1, shards=shards)
    widths = set()
    for step in range(plan.steps):
        batch, members = plan.batch(step), plan.members(step)
        assert len(batch.tokens_BT) % shards == 0
        widths.add(batch.slots_BC.shape)
        for row in range(len(batch.tokens_BT)):
            if row >= len(members):
                assert not batch.weights_BC[row].any()
                assert not batch.segments_BT[row].any()
                continue
            example = examples[members[row]]
            fed = batch.segments_BT[row] == 1
            assert batch.tokens_BT[row][fed].tolist() == list(example.tokens[:-1])
            assert batch.positions_BT[row][fed].tolist() == list(range(len(example.tokens) - 1))
            assert not batch.tokens_BT[row][~fed].any()
            assert scored_tokens(batch, row)[0] == list(example.tokens[example.start :])
    assert len(widths) == 1


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
    assert (plan.steps, plan.batch(0).tokens_BT.shape[0]) == (2, 3)


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
