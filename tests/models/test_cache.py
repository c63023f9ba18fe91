"""Reading a text piece by piece through the cache is reading it at once, whatever kind of decoder reads."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from jaxift.models.config import DecoderConfig, Span
from jaxift.models.continuation import continue_rows
from jaxift.models.decoder import abstract_decoder, empty_cache
from jaxift.models.rope import Llama3, Rope
from jaxift.models.sampling import generate_tokens
from jaxift.parallel.mesh import sharding

V, PROMPT, NEW = 61, 9, 12
HALF, WHOLE, FAR = Rope(4), Rope(8), Rope(8, 1e6, Llama3(8.0, 1.0, 4.0, 16))
UNIFORM = DecoderConfig(V, 32, 48, 3, 4, 2, 8, pattern=(Span(WHOLE),), max_positions=64)
CONFIGS = {
    "uniform": UNIFORM,
    "sliding window": dataclasses.replace(UNIFORM, pattern=(Span(WHOLE, 4),)),
    "rolled, one key head": dataclasses.replace(UNIFORM, num_layers=8, num_kv_heads=1, tie_embeddings=True),
    "local and global with a remainder": dataclasses.replace(
        UNIFORM, num_layers=8, pattern=(Span(WHOLE, 4), Span(WHOLE, 4), Span(FAR)), norm_unit_offset=True,
        norm_placement="around", qk_norm="head", embedding_scale=32**0.5, query_scale=0.4, activation="gelu_tanh",
    ),
    "parallel residual, partly rotated": dataclasses.replace(
        UNIFORM, num_kv_heads=4, pattern=(Span(HALF),), norm="layer", parallel_residual=True, qkv_bias=True,
        output_bias=True, mlp_bias=True, gated_mlp=False, activation="gelu",
    ),
    "soft caps": dataclasses.replace(
        UNIFORM, pattern=(Span(WHOLE, 4), Span(WHOLE)), attention_soft_cap=2.0, logit_soft_cap=3.0
    ),
}  # fmt: skip
LENGTHS = (9, 1, 6, 4)
PROMPTS = [np.random.default_rng(length).integers(4, V, length).tolist() for length in LENGTHS]


def random_decoder(config, mesh):
    """A decoder with weights so wide that it does not repeat itself, its norms and biases not neutral."""
    rng, (graph, abstract) = np.random.default_rng(0), nnx.split(abstract_decoder(config, mesh))

    def fill(path, variable):
        shape = variable.get_value().shape
        values = rng.uniform(0.5, 1.5, shape) if path[-1] == "scale" else rng.normal(0, 0.3, shape)
        spread = jax.NamedSharding(mesh, variable.get_value().sharding.spec)
        return variable.replace(jax.device_put(values.astype(np.float32), spread))

    return nnx.merge(graph, nnx.map_state(fill, abstract))


@pytest.fixture(scope="module", params=list(CONFIGS))
def decoder(request, meshes):
    return random_decoder(CONFIGS[request.param], meshes["1x1x1"])


@functools.partial(jax.jit, static_argnames=("graph", "pieces"))
def piecewise(graph, state, tokens, positions, segments, pieces):
    """Logits of [B, T] tokens that are read in pieces of the given lengths."""
    decoder, start, logits = nnx.merge(graph, state), 0, []
    cache = empty_cache(decoder.config, *tokens.shape, np.float32)
    for size in pieces:
        columns = slice(start, start + size)
        hidden, cache = decoder.extend(tokens[:, columns], positions[:, columns], segments[:, columns], cache)
        logits.append(decoder.logits(hidden))
        start += size
    return jax.numpy.concatenate(logits, axis=1)


def read(decoder, mesh, tokens, positions, segments, pieces):
    arrays = [np.asarray(x, np.int32) for x in (tokens, positions, segments)]
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        placed = jax.device_put(arrays, sharding(mesh, "batch", None))
        return np.asarray(piecewise(*nnx.split(decoder), *placed, pieces))


def test_pieces_are_the_whole(decoder, meshes, all_logits):
    tokens = np.random.default_rng(0).integers(4, V, (2, 12))
    positions = np.tile(np.arange(12), (2, 1))
    # the second row has padding between its prompt and what follows, as generation has
    segments = np.ones_like(tokens)
    segments[1, 3:7] = 0
    positions[1, 7:] -= 4
    whole = all_logits(decoder, meshes["1x1x1"], tokens, segments, positions)
    pieces = read(decoder, meshes["1x1x1"], tokens, positions, segments, (7, 5))
    seen = segments > 0
    np.testing.assert_allclose(pieces[seen], whole[seen], atol=1e-4)
    late = read(decoder, meshes["1x1x1"], tokens, positions + (np.arange(12) == 8), segments, (7, 5))
    assert np.abs(late[seen] - whole[seen]).max() > 1e-2


def growing(decoder, mesh, all_logits):
    """Greedy continuations by reading the whole text again for each token."""
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW):
        padded = np.array([text + [0] * (PROMPT + NEW - len(text)) for text in texts])
        logits = all_logits(decoder, mesh, padded)
        for text, row in zip(texts, logits, strict=True):
            text.append(int(row[len(text) - 1, :V].argmax()))
    return [tuple(text[len(prompt) :]) for text, prompt in zip(texts, PROMPTS, strict=True)]


def test_generation_with_a_cache_is_that_without(decoder, meshes, all_logits):
    found = generate_tokens(decoder, PROMPTS, meshes["1x1x1"], max_new_tokens=NEW)
    assert found == growing(decoder, meshes["1x1x1"], all_logits)
    assert min(len(set(tokens)) for tokens in found) >= 4  # no decoder that says one word


def test_the_cache_is_updated_in_place(meshes):
    config = dataclasses.replace(UNIFORM, num_layers=8, num_kv_heads=4)
    mesh, rows, size = meshes["1x1x1"], 8, 256
    graph, state = nnx.split(random_decoder(config, mesh))
    nothing = np.zeros(0, np.int32)
    with jax.set_mesh(mesh):
        tokens = jax.device_put(np.ones((rows, 8), np.int32), sharding(mesh, "batch", None))
        per_row = jax.device_put((np.full(rows, 8, np.int32), np.zeros(rows, np.uint32)), sharding(mesh, "batch"))
        program = continue_rows.lower(
            graph, state, tokens, *per_row, (np.float32(0), np.float32(1)), nothing, nothing,
            max_new_tokens=size - 7, mode="greedy", dtype=np.dtype(np.float32),
        )  # fmt: skip
        needed = program.compile().memory_analysis().temp_size_in_bytes
    held = 2 * config.num_layers * rows * size * config.num_kv_heads * config.head_dim * 4
    assert held <= needed <= 1.6 * held  # a second buffer would make it 2
