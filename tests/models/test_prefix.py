"""Rows behind a prefix that was computed before: the plain forward pass, token by token, whatever the family."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from jaxift.models import prefix, splash
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import abstract_decoder
from jaxift.models.rope import Rope
from jaxift.parallel.mesh import make_mesh, sharding

VOCABULARY, LANES, COLUMNS, LENGTH = 64, 8, 768, 24
TOLERANCE = 1e-4
FULL = Span(Rope(16))
# each lane's prefix: both sides of the bounds of large and small blocks
DEPTHS = ((0, 1, 63, 64, 65, 255, 600, 257), (256, 100, 0, 511, 512, 513, 320, 650))
PIECE = 128
# the token before each token of two rows, -1: a new text, None: padding. The first row's stem has two branches, the
# second of which has two again; the second row has two texts side by side.
PARENTS = (
    (-1, *range(7), 7, *range(8, 12), 7, 13, 14, 15, 16, 15, 18, 19, None, None, None),
    (-1, *range(9), -1, *range(10, 18), *[None] * 5),
)


def family(**fields):
    defaults = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "pattern": (FULL,)}
    shape = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "head_dim": 16}
    return DecoderConfig(**{**shape, **defaults, **fields})


FAMILIES = {
    "grouped": family(),
    # windows shorter than a text behind the prefix, and longer than a large block
    "near": family(pattern=(Span(Rope(16), 4),)),
    "one key head": family(num_kv_heads=1, pattern=(Span(Rope(16), 300),)),
    # Gemma 2 and 3: windows (here shorter than a large block) by turns, a layer left over, soft caps, another scale
    "capped": family(
        num_layers=3, pattern=(Span(Rope(16), 100), Span(Rope(16, theta=1e6))), attention_soft_cap=3.0,
        logit_soft_cap=5.0, query_scale=0.4, embedding_scale=7.0, norm_placement="around", norm_unit_offset=True,
    ),
    # GPT-NeoX and Phi: a quarter of a head is rotated
    "partly rotated": family(
        pattern=(Span(Rope(4)),), num_kv_heads=4, norm="layer", parallel_residual=True, qkv_bias=True,
        output_bias=True, mlp_bias=True, gated_mlp=False, activation="gelu",
    ),
}  # fmt: skip


@functools.cache
def random_decoder(name):
    """A decoder of eight lanes with wide weights: with the usual ones a wrong mask would hardly show."""
    mesh = make_mesh(LANES)
    graph, state = nnx.split(abstract_decoder(FAMILIES[name], mesh))
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jax.device_put(
            rng.normal(0, 0.3, leaf.shape).astype(np.float32), NamedSharding(mesh, leaf.sharding.spec)
        )

    drawn = jax.tree.map(draw, state)
    return nnx.merge(graph, drawn), mesh


@functools.partial(jax.jit, static_argnames=("graph", "dtype", "kernel"))
def prefilled(graph, state, room, *arrays, dtype, kernel):
    assert splash.is_used() == kernel  # programs are kept for each way
    return prefix.prefill(nnx.merge(graph, state), room, *arrays, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("graph", "length", "dtype", "kernel"))
def scored(graph, state, room, *arrays, length, dtype, kernel):
    assert splash.is_used() == kernel
    return prefix.score_rows(nnx.merge(graph, state), room, *arrays, length=length, dtype=dtype)


def placed(mesh, *arrays):
    return [
        jax.device_put(np.asarray(x, np.int32), sharding(mesh, "batch", *[None] * (np.ndim(x) - 1))) for x in arrays
    ]


def filled_prefix(decoder, mesh, texts, depths, piece=PIECE, dtype=np.float32):
    """The prefixes of all lanes, computed in pieces; a lane that is done writes padding behind its own."""
    split = nnx.split(decoder)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        room = prefix.empty_prefix(decoder.config, len(depths), COLUMNS, dtype)
        for start in range(0, max(depths), piece):
            starts = np.minimum(start, depths)[:, None]
            counts = np.clip(np.asarray(depths)[:, None] - start, 0, piece)
            place = np.arange(piece)[None]
            tokens = np.take_along_axis(texts, np.minimum(starts + place, texts.shape[1] - 1), axis=1)
            arrays = (np.where(place < counts, tokens, 0), starts + place, np.where(place < counts, counts, 0))
            room = prefilled(*split, room, *placed(mesh, *arrays), dtype=np.dtype(dtype), kernel=splash.is_used())
    return room


def row_arrays(depths):
    """Positions and reach [lanes, T] of the rows of PARENTS, and the offsets of the tokens that are no padding."""
    positions, reach, places = [], [], []
    for row, parents in enumerate(PARENTS):
        heights = []
        for parent in parents:
            heights.append(0 if parent is None or parent < 0 else heights[parent] + 1)
        inside = [place for place, parent in enumerate(parents) if parent is not None]
        reach += [max(end for end in inside if at in path(row, end)) + 1 if at in inside else 0 for at in range(LENGTH)]
        positions += heights
        places += [row * LENGTH + place for place in inside]
    shape = (len(depths), len(PARENTS) * LENGTH)
    return np.add.outer(depths, positions), np.broadcast_to(reach, shape), places


def path(row, place):
    """Offsets of a token and of those before it, from the first on."""
    parent = PARENTS[row][place]
    return [place] if parent is None or parent < 0 else [*path(row, parent), place]


def row_logprobs(decoder, mesh, room, depths, rows, dtype=np.float32):
    """Log-probabilities of all tokens, and which is the likeliest, after each place of the rows: [lanes, places, V]."""
    positions, reach, places = row_arrays(depths)
    slots = np.broadcast_to(places, (len(depths), len(places)))
    targets = np.broadcast_to(np.arange(VOCABULARY), (*slots.shape, VOCABULARY))
    arrays = placed(mesh, depths, rows, positions, reach, slots, targets)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        how = {"length": LENGTH, "dtype": np.dtype(dtype), "kernel": splash.is_used()}
        found = scored(*nnx.split(decoder), room, *arrays, **how)
    return [np.asarray(each) for each in found]


def random_texts(depths, seed=0):
    """Tokens of a prefix [lanes, COLUMNS] and of the rows behind it [lanes, T]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, (len(depths), size)) for size in (COLUMNS, len(PARENTS) * LENGTH)]


def plain_logprobs(all_logits, decoder, mesh, depths, texts, rows):
    """What `row_logprobs` should find, from one forward pass over each text whole."""
    leaves = [(row, end) for row, ends in enumerate(((12, 17, 20), (9, 18))) for end in ends]
    whole = np.zeros((LANES * len(leaves), COLUMNS), np.int64)  # one length, one program
    found = {}
    for number, (lane, (row, end)) in enumerate((lane, leaf) for lane in range(LANES) for leaf in leaves):
        offsets = [row * LENGTH + place for place in path(row, end)]
        text = [*texts[lane, : depths[lane]], *rows[lane, offsets]]
        whole[number, : len(text)] = text
        found.update({(lane, at): (number, depths[lane] + place) for place, at in enumerate(offsets)})
    logits = all_logits(decoder, mesh, whole)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    _, _, places = row_arrays(depths)
    return np.array([[logprobs[found[lane, place]] for place in places] for lane in range(LANES)])


@pytest.fixture
def kernel(request, monkeypatch):
    """Attention by XLA, or by the splash kernel, interpreted."""
    monkeypatch.setattr(splash, "is_used", lambda: request.param)
    return request.param


def ways():
    """Every family by XLA, and by the kernel, most of these in the slow tier."""
    for name in FAMILIES:
        yield name, False
        yield pytest.param(name, True, marks=() if name == "capped" else pytest.mark.slow)


@pytest.mark.parametrize(("name", "kernel"), list(ways()), indirect=["kernel"])
def test_rows_behind_a_prefix_are_the_plain_forward(name, kernel, all_logits):
    decoder, mesh = random_decoder(name)
    for seed, depths in enumerate(DEPTHS):
        texts, rows = random_texts(depths, seed)
        room = filled_prefix(decoder, mesh, texts, depths)
        found, greedy = row_logprobs(decoder, mesh, room, depths, rows)
        expected = plain_logprobs(all_logits, decoder, mesh, depths, texts, rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(greedy.sum(-1), 1)
        chosen = np.take_along_axis(expected, greedy.argmax(-1)[..., None], axis=-1)[..., 0]
        assert (expected.max(-1) - chosen).max() < TOLERANCE


def test_pieces_of_a_prefix_change_nothing():
    decoder, mesh = random_decoder("capped")
    texts, rows = random_texts(DEPTHS[0])
    one, other = (filled_prefix(decoder, mesh, texts, DEPTHS[0], piece) for piece in (PIECE, COLUMNS))
    found, expected = (row_logprobs(decoder, mesh, room, DEPTHS[0], rows)[0] for room in (one, other))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_token_is_seen_by_what_follows_it_in_its_own_text_alone():
    decoder, mesh = random_decoder("grouped")
    depths = (70,) * LANES
    texts, rows = (np.broadcast_to(each[:1], each.shape).copy() for each in random_texts(depths))
    room = filled_prefix(decoder, mesh, texts, depths)
    expected, _ = row_logprobs(decoder, mesh, room, depths, rows)
    _, _, places = row_arrays(depths)
    texts_of = {place: [place - place % LENGTH + at for at in path(*divmod(place, LENGTH))] for place in places}
    total = rows.shape[1]
    for first in range(0, total, LANES):  # each lane changes another token
        changed = rows.copy()
        lanes = np.arange(LANES)
        changed[lanes, first + lanes] = (changed[lanes, first + lanes] + 1) % VOCABULARY
        found, _ = row_logprobs(decoder, mesh, room, depths, changed)
        moved = np.abs(found - expected).max(-1)
        for lane in range(LANES):
            seen = [first + lane in texts_of[place] for place in places]
            assert (moved[lane, seen] > 1e-4).all()
            assert (moved[lane, np.logical_not(seen)] == 0).all()


def test_every_column_of_a_prefix_is_seen_and_none_behind_it():
    decoder, mesh = random_decoder("grouped")
    depths = (70,) * LANES
    texts, rows = (np.broadcast_to(each[:1], each.shape).copy() for each in random_texts(depths))
    expected, _ = row_logprobs(decoder, mesh, filled_prefix(decoder, mesh, texts, depths), depths, rows)
    changed, lanes = texts.copy(), np.arange(LANES)
    places = np.array([0, 1, 40, 63, 64, 69, 70, 90])
    changed[lanes, places] = (changed[lanes, places] + 1) % VOCABULARY
    # longer prefixes are computed, but only the first 70 columns are used
    room = filled_prefix(decoder, mesh, changed, (100,) * LANES)
    found, _ = row_logprobs(decoder, mesh, room, depths, rows)
    moved = np.abs(found - expected).max(-1)
    assert (moved[places < 70] > 1e-5).all()
    np.testing.assert_allclose(moved[places >= 70], 0, atol=TOLERANCE)


def test_bfloat16_is_near_float32():
    decoder, mesh = random_decoder("grouped")
    depths = DEPTHS[0]
    texts, rows = random_texts(depths)
    found, expected = (
        np.exp(row_logprobs(decoder, mesh, filled_prefix(decoder, mesh, texts, depths, dtype=d), depths, rows, d)[0])
        for d in (jax.numpy.bfloat16, np.float32)
    )
    assert np.abs(found - expected).mean() < 2e-3
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-3)


def step_memory(vocabulary, slots, targets):
    """Bytes that a step's program needs beside its arguments and results."""
    mesh = make_mesh(1)
    config = dataclasses.replace(FAMILIES["grouped"], vocab_size=vocabulary)
    with jax.set_mesh(mesh):
        room = jax.eval_shape(lambda: prefix.empty_prefix(config, 1, COLUMNS, np.float32))
        shapes = [(1,), *[(1, 1024)] * 3, (1, slots), (1, slots, targets)]
        arrays = [
            jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding(mesh, "batch", *[None] * (len(shape) - 1)))
            for shape in shapes
        ]
        lowered = scored.lower(
            *nnx.split(abstract_decoder(config, mesh)), room, *arrays, length=128, dtype=np.dtype(np.float32),
            kernel=False,
        )  # fmt: skip
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_vocabulary_times_places():
    vocabulary = 1 << 18
    assert vocabulary * 1024 * 4 > 8 * prefix.LOGITS_BYTES
    small, few, many = step_memory(1 << 8, 1024, 32), step_memory(vocabulary, 64, 1), step_memory(vocabulary, 1024, 32)
    assert many < small + 2 * prefix.LOGITS_BYTES
    assert many < 1.1 * few
