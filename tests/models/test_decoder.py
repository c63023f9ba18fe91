"""What holds for the decoder whatever its weights: causality, segments, meshes, recomputation, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.models import decoder as decoder_module
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import abstract_decoder, init_decoder
from jaxift.models.export import hf_tensors
from jaxift.models.families import weight_table
from jaxift.models.rope import Rope
from jaxift.parallel.mesh import batch_shards, make_mesh, sharding, spec
from jaxift.tuning.step import response_loss

T = 12
LAYERS = 2
TOKENS = np.arange(4, 4 + T)


@pytest.fixture(scope="module")
def windowed(make_folder, tmp_path_factory):
    """A tiny Mistral whose two layers see three positions each."""
    folder = tmp_path_factory.mktemp("windowed") / "model"
    return jaxift.load(make_folder(folder, model_type="mistral", sliding_window=3))


def place_on(mesh, *arrays):
    """Host arrays whose first dimension is the batch, laid out on a mesh."""
    return [jax.device_put(np.asarray(x), sharding(mesh, "batch", *[None] * (np.ndim(x) - 1))) for x in arrays]


def sensitivity(model, tokens, place, *, segments=None, positions=None):
    """Norm of the gradient of one position's hidden state by the embedding of each token; tokens must differ."""
    graph, state = nnx.split(model.decoder)
    given = [
        np.asarray(x if x is not None else default, np.int32)[None]
        for x, default in ((tokens, None), (positions, np.arange(T)), (segments, np.ones(T)))
    ]
    direction = np.zeros((1, T, model.config.hidden_size), np.float32)
    direction[0, place] = np.random.default_rng(0).normal(size=model.config.hidden_size)
    with jax.set_mesh(model.mesh):
        gradient = projected_gradient(graph, state, *place_on(model.mesh, *given, direction))
    return np.linalg.norm(np.asarray(gradient["embedding"][...])[tokens], axis=-1)


@functools.partial(jax.jit, static_argnames="graph")
def projected_gradient(graph, state, tokens, positions, segments, direction):
    def projected(state):
        return jnp.sum(nnx.merge(graph, state).hidden(tokens, positions, segments) * direction)

    return jax.grad(projected)(state)


@pytest.mark.parametrize("place", [0, 5, T - 1])
def test_a_position_depends_on_itself_and_what_is_before_it_alone(place, tiny_model):
    found = sensitivity(tiny_model, TOKENS, place)
    assert (found[: place + 1] > 1e-6).all()
    assert (found[place + 1 :] == 0).all()


def test_a_window_reaches_as_far_as_the_layers_carry_it(windowed):
    place, reach = T - 1, LAYERS * (3 - 1)
    found = sensitivity(windowed, TOKENS, place)
    assert (found[place - reach :] > 1e-6).all()
    assert (found[: place - reach] == 0).all()


def test_a_deep_stack_is_the_same_rolled_and_unrolled(make_folder, tmp_path):
    model = jaxift.load(make_folder(tmp_path / "model", num_hidden_layers=decoder_module.UNROLLED_LAYERS + 1))
    arrays = place_on(model.mesh, np.int32(TOKENS)[None], np.arange(T, dtype=np.int32)[None], np.ones((1, T), np.int32))
    with jax.set_mesh(model.mesh):
        rolled, unrolled = (model.decoder.hidden(*arrays, unrolled=way) for way in (False, True))
    np.testing.assert_allclose(unrolled, rolled, atol=1e-5)


@pytest.mark.parametrize("kind", ["tiny_model", "windowed"])
def test_attention_looks_no_further_back_than_the_longest_segment(kind, request, monkeypatch):
    model, rng = request.getfixturevalue(kind), np.random.default_rng(0)
    sizes = [7, 1, 9, 4, 9, 9, 3]
    segments = np.repeat(np.arange(1, 8), sizes)[None].astype(np.int32)
    positions = np.concatenate([np.arange(size) for size in sizes])[None].astype(np.int32)
    tokens = rng.integers(4, 60, segments.shape).astype(np.int32)
    with jax.set_mesh(model.mesh):
        arrays = place_on(model.mesh, tokens, positions, segments)
        whole = model.decoder.hidden(*arrays)  # in one block
        monkeypatch.setitem(decoder_module.QUERY_BLOCK, "cpu", 8)
        monkeypatch.setattr(decoder_module, "ALIGNED", 4)
        causal, found, cut = (model.decoder.hidden(*arrays, longest=reach) for reach in (None, 9, 1))
    np.testing.assert_allclose(causal, whole, atol=2e-5)
    np.testing.assert_allclose(found, whole, atol=2e-5)
    assert np.abs(cut - whole).max() > 1e-2
    seen = sum((end - start) * (end - first) for first, start, end in decoder_module.query_blocks(42, 9, "cpu"))
    assert seen < 0.6 * sum((end - start) * end for _, start, end in decoder_module.query_blocks(42, 42, "cpu"))


def test_segments_do_not_see_each_other(tiny_model):
    segments, positions = [1] * 5 + [2] * 4 + [0] * 3, [*range(5), *range(4), *range(3)]
    found = sensitivity(tiny_model, TOKENS, 8, segments=segments, positions=positions)
    assert (found[5:9] > 1e-6).all()
    assert (found[:5] == 0).all()
    assert (found[9:] == 0).all()


def test_packed_sequences_have_the_logits_of_separate_ones(tiny_model, all_logits):
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    positions = np.array([[*range(5), *range(4), *range(3)]])
    packed = all_logits(tiny_model.decoder, tiny_model.mesh, TOKENS[None], segments, positions)
    for part in (slice(0, 5), slice(5, 9)):
        alone = all_logits(tiny_model.decoder, tiny_model.mesh, TOKENS[None, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_logits_depend_on_distances_not_places(tiny_model, all_logits):
    tokens, positions = TOKENS[None], np.arange(T)[None]
    here = all_logits(tiny_model.decoder, tiny_model.mesh, tokens, positions=positions)
    there = all_logits(tiny_model.decoder, tiny_model.mesh, tokens, positions=positions + 40)
    np.testing.assert_allclose(here, there, atol=1e-4)
    stretched = all_logits(tiny_model.decoder, tiny_model.mesh, tokens, positions=3 * positions)
    assert np.abs(here - stretched).max() > 1e-2


def test_padding_is_finite(tiny_model, all_logits):
    segments = np.array([[1] * 4 + [0] * 8, [0] * 12])
    assert np.isfinite(all_logits(tiny_model.decoder, tiny_model.mesh, np.full((2, T), 5), segments)).all()


def loss_and_gradient(model, rows=8, remat="none"):
    """Summed loss of a fixed batch on a model's mesh, and its gradient under Hugging Face names."""
    rng, shards = np.random.default_rng(3), batch_shards(model.mesh)
    targets, place = rng.integers(4, 64, (rows, 3)), np.array([9, 12, 15])
    slots = 16 * (np.arange(rows)[:, None] % (rows // shards)) + place
    arrays = [
        rng.integers(4, 64, (rows, 16)).astype(np.int32),
        np.tile(np.arange(16, dtype=np.int32), (rows, 1)),
        np.ones((rows, 16), np.int32),
        slots.reshape(shards, -1).astype(np.int32),
        targets.reshape(shards, -1).astype(np.int32),
        np.ones((shards, 3 * rows // shards), np.float32),
    ]
    placed = place_on(model.mesh, *arrays)
    graph, state = nnx.split(model.decoder)

    def loss(state):
        return response_loss(nnx.merge(graph, state), *placed, dtype=model.dtype, remat=remat).loss

    with jax.set_mesh(model.mesh):
        value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    return float(value), hf_tensors(nnx.merge(graph, gradient))


def assert_close_to_scale(found, expected, tolerance):
    """Largest difference of each array, relative to the largest value in it."""
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.fixture(scope="module")
def on_one_device(tiny_model, all_logits):
    tokens = np.random.default_rng(2).integers(4, 64, (8, T))
    return all_logits(tiny_model.decoder, tiny_model.mesh, tokens), *loss_and_gradient(tiny_model)


@pytest.mark.parametrize("mesh", ["8x1x1", "4x1x2", "2x2x2"])
def test_logits_and_gradients_are_the_same_on_every_mesh(mesh, meshes, tiny_folder, all_logits, on_one_device):
    model = jaxift.load(tiny_folder, meshes[mesh])
    logits, loss, gradient = on_one_device
    tokens = np.random.default_rng(2).integers(4, 64, (8, T))
    found_loss, found_gradient = loss_and_gradient(model)
    assert_close_to_scale({"logits": all_logits(model.decoder, model.mesh, tokens)}, {"logits": logits}, 1e-5)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert_close_to_scale(found_gradient, gradient, 1e-5)


def test_weights_are_spread_over_the_mesh(meshes, tiny_folder):
    decoder = jaxift.load(tiny_folder, meshes["2x2x2"]).decoder
    assert decoder.layers[0].q[...].sharding.spec == jax.P(None, "tensor", None, "fsdp")
    assert decoder.layers[0].q[...].addressable_shards[0].data.shape == (2, 2, 8, 16)
    assert decoder.embedding[...].addressable_shards[0].data.shape == (32, 16)


def test_default_mesh_is_one_device_of_the_eight(tiny_model):
    assert jax.device_count() == 8
    assert tiny_model.mesh.shape == {"cell": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_nothing(remat, tiny_model, on_one_device):
    _, loss, gradient = on_one_device
    found_loss, found_gradient = loss_and_gradient(tiny_model, remat=remat)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert_close_to_scale(found_gradient, gradient, 1e-6)


def test_a_wrong_gradient_would_be_seen(tiny_model, on_one_device):
    _, _, gradient = on_one_device
    changed = {name: value * (1 + 1e-4) for name, value in gradient.items()}
    with pytest.raises(AssertionError):
        assert_close_to_scale(changed, gradient, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_dtype_is_promoted_by_accident(dtype, tiny_model):
    tokens, ones = jnp.arange(4, 4 + T)[None], jnp.ones((1, T), jnp.int32)
    with jax.set_mesh(tiny_model.mesh), jax.numpy_dtype_promotion("strict"):
        hidden = tiny_model.decoder.hidden(tokens, jnp.arange(T)[None], ones, dtype=jnp.dtype(dtype))
        logits = tiny_model.decoder.logits(hidden)
    assert (hidden.dtype, logits.dtype) == (jnp.dtype(dtype), jnp.float32)


def test_initialisation_follows_its_seed_on_every_mesh(meshes):
    config = DecoderConfig(32, 8, 16, 2, 2, 2, 4, (Span(Rope(4)),), tie_embeddings=True)
    first, same = (hf_tensors(init_decoder(config, 1, meshes[mesh])) for mesh in ("1x1x1", "1x1x2"))
    for name, value in first.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-6, err_msg=name)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert not np.array_equal(first[name], first[name.replace("1", "0")])


def test_a_spec_does_not_use_a_mesh_axis_twice():
    with pytest.raises(ValueError, match="use a mesh axis twice"):
        spec("batch", "embed")
    with pytest.raises(KeyError):
        spec("unknown")


def test_a_mesh_needs_its_devices():
    with pytest.raises(ValueError, match="mesh 4x4x1 needs 16 devices, but 8 are visible"):
        make_mesh(4, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"head_dim": 4}, "8 rotary dimensions do not fit into head_dim 4"),
        ({"pattern": (Span(Rope(8)), Span(Rope(8), 4))}, "a pattern of 2 does not fit into 1 layers"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 4}
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**shape, "num_kv_heads": 4, "head_dim": 8, "pattern": (Span(Rope(8)),), **fields})


def test_odd_rotary_dimensions_are_refused():
    with pytest.raises(ValueError, match="7 rotary dimensions cannot be turned in pairs"):
        Rope(7)


LOCAL, GLOBAL = Span(Rope(8, 100.0), 3), Span(Rope(8))
PATTERNED = DecoderConfig(
    32, 16, 24, 5, 2, 1, 8, (LOCAL, GLOBAL), norm_placement="around", qk_norm="head", family="gemma3_text"
)


def test_a_pattern_with_remainder_runs_its_layers_in_order(meshes, all_logits):
    """Five layers of a pattern of two (2 groups and 1 more) = the same five layers listed one by one."""
    mesh = meshes["1x1x1"]
    listed = dataclasses.replace(PATTERNED, pattern=tuple(PATTERNED.pattern[layer % 2] for layer in range(5)))
    scanned = init_decoder(PATTERNED, 0, mesh)
    assert len(scanned.rest) == 1
    tensors, table = hf_tensors(scanned), weight_table(listed)
    graph, shapes = nnx.split(abstract_decoder(listed, mesh))

    def filled(path, variable):
        parts = [table[path].ours(tensors[name]) for name in table[path].names]
        value = np.stack(parts) if table[path].stacked else parts[0]
        return variable.replace(jax.device_put(value, jax.NamedSharding(mesh, variable.get_value().sharding.spec)))

    flat = nnx.merge(graph, nnx.map_state(filled, shapes))
    tokens = np.random.default_rng(0).integers(0, 32, (2, T))
    np.testing.assert_allclose(all_logits(scanned, mesh, tokens), all_logits(flat, mesh, tokens), atol=1e-5)
