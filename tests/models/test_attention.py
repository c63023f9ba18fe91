"""Attention's three layouts are one function: on every mesh, for all heads, masks and caps, and in their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxift.models.attention import attend_einsums, attend_fused, attend_heads_first, attention, attention_mask
from jaxift.parallel.mesh import sharding

B, T, N, H = 8, 10, 4, 16
SCALE = 0.3
LAYOUTS = {"heads first": attend_heads_first, "einsums": attend_einsums, "fused": attend_fused}
SEGMENTS = np.array([[1] * T, [1] * 6 + [2] * 4, [1] * 7 + [0] * 3, [1] * 4 + [2] * 3 + [3] * 3] * 2, np.int32)
POSITIONS = np.array([[*range(T)], [*range(6), *range(4)], [*range(7), 0, 0, 0], [*range(4), 4, 5, 6, 4, 5, 6]] * 2)


def values(K, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K)]


def masks(window=None):
    """Who sees whom, spelt out."""
    visible = np.zeros((B, T, T), bool)
    for b, t, s in np.ndindex(visible.shape):
        distance = POSITIONS[b, t] - POSITIONS[b, s]
        visible[b, t, s] = SEGMENTS[b, t] == SEGMENTS[b, s] and 0 <= distance < (window or T)
    return visible


def slow(q, k, v, visible, soft_cap=None):
    """Attention of one query head at a time, in float64."""
    out = np.zeros(q.shape)
    for n in range(N):
        head = n // (N // k.shape[2])
        scores = np.einsum("BTH,BSH->BTS", q[:, :, n].astype(np.float64), k[:, :, head]) * SCALE
        scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
        weights = np.where(visible, np.exp(scores), 0)
        out[:, :, n] = np.einsum("BTS,BSH->BTH", weights / weights.sum(-1, keepdims=True), v[:, :, head])
    return out


def place(mesh, q, k, v, visible):
    names = [("batch", None, "heads", None), *[("batch", None, "kv_heads", None)] * 2, ("batch", None, None)]
    return [jax.device_put(x, sharding(mesh, *each)) for x, each in zip((q, k, v, visible), names, strict=True)]


def run(layout, mesh, parts, soft_cap=None):
    options = {"scale": SCALE} if layout is attend_fused else {"scale": SCALE, "soft_cap": soft_cap}
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        return jax.jit(lambda *parts: layout(*parts, **options))(*place(mesh, *parts))


@pytest.mark.parametrize("window", [None, 3])
def test_mask_is_the_spelt_out_one(window):
    found = attention_mask(*map(jnp.asarray, (SEGMENTS, POSITIONS)), window)
    np.testing.assert_array_equal(found, masks(window))


def test_mask_of_other_keys_is_a_part_of_the_whole():
    columns = jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS)
    late = [x[:, 6:] for x in columns]
    np.testing.assert_array_equal(attention_mask(*late, 3, keys=columns), attention_mask(*columns, 3)[:, 6:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("K", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_layout_is_the_slow_reference(layout, K, soft_cap, meshes):
    if soft_cap and layout == "fused":
        pytest.skip("JAX's own attention knows no soft cap")
    parts = *values(K), masks(3)
    found = run(LAYOUTS[layout], meshes["1x1x1"], parts, soft_cap)
    np.testing.assert_allclose(found, slow(*parts, soft_cap), atol=1e-5)
    # without window, cap or with other heads it would be another function
    assert np.abs(found - slow(*values(K), masks(), soft_cap)).max() > 1e-2
    assert np.abs(found - slow(*parts, None if soft_cap else 1.5)).max() > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mesh", "K"), [("8x1x1", 1), ("4x1x2", 2), ("2x2x2", 4), ("1x1x2", 2)])
def test_layout_is_the_same_on_every_mesh(layout, mesh, K, meshes):
    parts = *values(K), masks()
    found = run(LAYOUTS[layout], meshes[mesh], parts)
    assert found.sharding.is_equivalent_to(sharding(meshes[mesh], "batch", None, "heads", None), 4)
    np.testing.assert_allclose(found, slow(*parts), atol=1e-5)


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_gradients_are_those_of_every_layout(mesh, meshes):
    parts, weights = (*values(2), masks()), values(2, seed=1)[0]

    def gradients(layout):
        def loss(q, k, v, visible):
            out = layout(q, k, v, visible, scale=SCALE, **({} if layout is attend_fused else {"soft_cap": None}))
            return jnp.sum(out * weights)

        with jax.set_mesh(meshes[mesh]), jax.default_matmul_precision("highest"):
            return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*place(meshes[mesh], *parts))

    first, *others = map(gradients, LAYOUTS.values())
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert np.abs(one).max() > 0.1
            np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("layout", ["heads first", "einsums"])
def test_padding_that_sees_nothing_is_finite(layout, meshes):
    nothing = np.zeros((B, T, T), bool)
    assert np.isfinite(run(LAYOUTS[layout], meshes["1x1x1"], (*values(2), nothing))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_near_float32(layout, meshes):
    q, k, v = (np.asarray(x, jnp.bfloat16) for x in values(2))
    found = run(LAYOUTS[layout], meshes["1x1x1"], (q, k, v, masks()))
    assert found.dtype == jnp.bfloat16
    exact = slow(*(x.astype(np.float32) for x in (q, k, v)), masks())
    assert np.abs(np.asarray(found, np.float32) - exact).max() < 0.03


def test_cpu_takes_heads_first(meshes):
    parts = *values(2), masks()

    def chosen(*parts):
        return attention(*parts, SCALE, 1.5)

    with jax.set_mesh(meshes["1x1x1"]):
        placed = place(meshes["1x1x1"], *parts)
        found = jax.jit(chosen)(*placed)
        expected = jax.jit(lambda *parts: attend_heads_first(*parts, scale=SCALE, soft_cap=1.5))(*placed)
    np.testing.assert_array_equal(found, expected)
