"""The loss and its gradient are those of plain code, however few logits exist at a time and wherever they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.models.export import hf_tensors
from jaxift.parallel.mesh import batch_shards, make_mesh, sharding
from jaxift.tuning import loss as loss_module
from jaxift.tuning.step import response_loss

ROWS, LENGTH, SLOTS = 8, 12, 24


def batch(mesh, seed=0):
    """Random rows, places and weights, some of them 0, on a mesh."""
    rng, shards = np.random.default_rng(seed), batch_shards(mesh)
    tokens = rng.integers(4, 63, (ROWS, LENGTH)).astype(np.int32)
    places = np.stack([rng.permutation(LENGTH)[: SLOTS // ROWS] for _ in range(ROWS)])  # the same of every mesh
    slots = (np.arange(ROWS) % (ROWS // shards))[:, None] * LENGTH + places
    targets = rng.integers(4, 63, (ROWS, SLOTS // ROWS))
    weights = rng.integers(0, 3, targets.shape)
    plain = tokens, places, targets, weights
    arrays = (
        tokens,
        np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        np.ones((ROWS, LENGTH), np.int32),
        slots.reshape(shards, -1).astype(np.int32),
        targets.reshape(shards, -1).astype(np.int32),
        weights.reshape(shards, -1).astype(np.float32),
    )
    return plain, tuple(jax.device_put(each, sharding(mesh, "batch", None)) for each in arrays)


def ours(model, reference=None, kl_weight=0.0, arrays=None, used=None):
    """Losses, and the gradient by Hugging Face name."""
    graph, state = nnx.split(model.decoder)
    arrays = arrays or batch(model.mesh)[1]

    def loss(state):
        losses = response_loss(
            nnx.merge(graph, state), *arrays, used=used, dtype=model.dtype, kl_weight=kl_weight,
            reference=None if reference is None else reference.decoder,
        )  # fmt: skip
        return losses.loss, losses

    with jax.set_mesh(model.mesh):
        (_, losses), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    return losses, hf_tensors(nnx.merge(graph, gradient))


def plain(model, reference=None, kl_weight=0.0):
    """The same from all logits at once, by JAX' own differentiation, on one device."""
    graph, state = nnx.split(model.decoder)
    (_tokens, places, targets, weights), arrays = batch(model.mesh)

    def logprobs(decoder):
        hidden = decoder.hidden(*arrays[:3])
        found = jax.nn.log_softmax(jax.sharding.reshard(decoder.logits(hidden), jax.P(None, None, None)))
        return jnp.take_along_axis(found, jnp.asarray(places)[..., None], axis=1)

    def loss(state):
        mine = logprobs(nnx.merge(graph, state))
        cross = -jnp.sum(weights * jnp.take_along_axis(mine, jnp.asarray(targets)[..., None], -1)[..., 0])
        if reference is None:
            return cross
        others = logprobs(reference.decoder)
        return cross + kl_weight * jnp.sum(weights * jnp.sum(jnp.exp(mine) * (mine - others), -1))

    with jax.set_mesh(model.mesh):
        value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    return value, hf_tensors(nnx.merge(graph, gradient))


def assert_same(found, expected, tolerance=1e-5):
    (losses, gradient), (value, others) = found, expected
    assert float(losses.loss) == pytest.approx(float(value), rel=1e-5)
    for name, other in others.items():
        assert np.linalg.norm(gradient[name] - other) <= tolerance * max(np.linalg.norm(other), 1e-3), name


@pytest.fixture(scope="module", params=["tied", "untied", "soft cap"])
def model(request, make_folder, tmp_path_factory):
    """Tiny models whose heads differ; the vocabulary of the last is padded where it is sharded."""
    how = {
        "tied": {},
        "untied": {"tie_word_embeddings": False, "vocab_size": 63},
        "soft cap": {"model_type": "gemma2", "final_logit_softcapping": 3.0, "vocab_size": 63},
    }[request.param]
    return jaxift.load(make_folder(tmp_path_factory.mktemp("model") / "model", **how))


@pytest.mark.parametrize("together", [1, 7, 1 << 20])
def test_loss_and_gradient_do_not_depend_on_how_many_logits_exist_at_a_time(together, model, monkeypatch):
    monkeypatch.setitem(loss_module.LOGITS_BYTES, "cpu", 4 * model.config.vocab_size * together)
    assert_same(ours(model), plain(model))


def test_blocks_of_slots_after_those_in_use_are_left_out(make_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(
        loss_module.LOGITS_BYTES, "cpu", 4 * 32 * 2
    )  # two slots: tensor parallelism halves the vocabulary
    model = jaxift.load(make_folder(tmp_path / "model"), make_mesh(2, 2, 2))
    *inputs, weights = batch(model.mesh)[1]

    def after(used, value):
        filled = np.where(np.arange(weights.shape[1]) < used, np.asarray(weights), value)
        return jax.device_put(filled.astype(np.float32), weights.sharding)

    losses, gradient = ours(model, arrays=(*inputs, after(4, np.nan)), used=3)
    expected, others = ours(model, arrays=(*inputs, after(4, 0)))
    assert float(losses.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    assert all(np.allclose(gradient[name], other, rtol=1e-4, atol=1e-6) for name, other in others.items())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 2)], ids=str)
def test_they_are_the_same_where_the_vocabulary_is_sharded(sizes, model):
    spread = jaxift.load(model.folder, make_mesh(*sizes))
    assert_same(ours(spread), plain(model))


@pytest.mark.parametrize("together", [7, 1 << 20])
def test_divergence_from_a_reference_is_exact(together, tiny_model, make_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(loss_module.LOGITS_BYTES, "cpu", 8 * 64 * together)
    reference = jaxift.load(make_folder(tmp_path / "other", seed=1))
    found = ours(tiny_model, reference, 0.7)
    assert_same(found, plain(tiny_model, reference, 0.7))
    losses = found[0]
    assert float(losses.loss) == pytest.approx(float(losses.cross_entropy + 0.7 * losses.divergence), rel=1e-6)
    assert float(losses.divergence) > 1
    same, _ = ours(tiny_model, tiny_model, 0.7)
    assert float(same.divergence) == pytest.approx(0, abs=1e-4)


def test_no_program_holds_all_logits(make_folder, tmp_path, monkeypatch):
    model = jaxift.load(make_folder(tmp_path / "model", vocab_size=63))  # 63: nothing else is so large
    monkeypatch.setitem(loss_module.LOGITS_BYTES, "cpu", 4 * 63 * 3)
    graph, state = nnx.split(model.decoder)
    _, arrays = batch(model.mesh)

    def loss(state):
        return response_loss(nnx.merge(graph, state), *arrays, dtype=model.dtype).loss

    with jax.set_mesh(model.mesh):
        text = jax.jit(jax.grad(loss)).lower(state).compile().as_text()
    assert f"f32[{SLOTS},63]" not in text
    assert f"f32[{ROWS},{LENGTH},63]" not in text
    assert "f32[3,63]" in text
