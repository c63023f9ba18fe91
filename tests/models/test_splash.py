"""Attention by the splash kernel, interpreted on CPU, is attention by XLA; blocks hold what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxift.models import prefix, splash
from jaxift.models.attention import attend_einsums, attention_mask
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.rope import Rope
from jaxift.parallel.mesh import make_mesh, sharding, spec

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 16
CONFIGS = {
    cap: DecoderConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=HEADS, num_kv_heads=KEY_HEADS,
        head_dim=HEAD_DIM, pattern=(Span(Rope(HEAD_DIM)),), attention_soft_cap=cap,
    )
    for cap in (None, 3.0)
}  # fmt: skip


def slow(*case):
    """A case of the slow tier."""
    return pytest.param(*case, marks=pytest.mark.slow)


def drawn(seed, *shapes, dtype="float32"):
    """Of a size that leaves every softmax undecided."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0, 1, shape), dtype) for shape in shapes]


def close(found, rounded, expected, exact, dtype):
    """Both ways agree in the mean; nowhere is the kernel further from float32 than by that, and rounding its results.

    `rounded` is the sum of the absolute values that are rounded on the way to the result, which is rounded too.
    """
    found, rounded, expected, exact = (np.asarray(each, np.float32) for each in (found, rounded, expected, exact))
    assert np.abs(found - expected).mean() <= TOLERANCE[dtype]
    unit = 0 if dtype == "float32" else 2**-8
    over = np.abs(found - exact) - TOLERANCE[dtype] - unit * (rounded + np.abs(exact))
    assert over.max() <= 0, over.max()


def exactly(*arrays):
    """The same numbers in float32."""
    return [each.astype(jnp.float32) for each in arrays]


def trees(tokens, length, seed=0):
    """Reach and positions of rows filled with texts that branch at random; what is left of a row is padding."""
    rng = np.random.default_rng(seed)
    reach, positions = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    for row in range(0, tokens, length):
        start = 0
        while start < length - 4:
            size = int(rng.integers(3, max(4, min(length - start, length // 2))))
            stem = size // 2
            end = start + size
            reach[row + start : row + start + stem] = end
            branch = start + stem
            positions[row + start : row + start + stem] = np.arange(stem)
            while branch < end:
                width = int(rng.integers(1, end - branch + 1))
                reach[row + branch : row + branch + width] = branch + width
                positions[row + branch : row + branch + width] = stem + np.arange(width)
                branch += width
            start = end
    return reach, positions


def both_ways(tokens, length, columns, used, window, cap, dtype):
    """Attention of one lane by the kernel, the size of its two parts, and attention by XLA, at last in float32."""
    config = CONFIGS[cap]
    reach, offsets = trees(tokens, length)
    positions = jnp.asarray(used + offsets)
    shapes = [(count, size, HEAD_DIM) for count, size in ((HEADS, tokens), *[(KEY_HEADS, tokens)] * 2)]
    q, k, v, *room = drawn(1, *shapes, *[(KEY_HEADS, columns, HEAD_DIM)] * 2, dtype=dtype)
    q = (q.astype(jnp.float32) * config.attention_scale).astype(dtype)
    mesh, whole = make_mesh(1), jax.P()

    def kernel(q, k, v, keys, values, positions, reach, used):
        lane = [jax.sharding.reshard(each[None], spec("batch", None)) for each in (positions, reach)]
        seen = splash.row_masks(*lane, length, window)

        def local(q, k, v, keys, values, positions, seen, used):
            rows = splash.attend_rows(q, k, v, seen[0], length, cap)
            parts = rows, splash.attend_prefix(q, keys, values, used, positions, window, cap)
            sizes = [part._replace(out_NTH=jnp.abs(part.out_NTH)) for part in parts]
            return splash.merged(*parts).astype(dtype), splash.merged(*sizes)

        layouts = (*[whole] * 6, spec("batch"), whole)
        run = jax.shard_map(local, in_specs=layouts, out_specs=whole, check_vma=False)
        return run(q, k, v, keys, values, positions, seen, used)

    def xla(q, k, v, keys, values, positions, reach, used):
        found = prefix._attend_rows(q, k, v, positions, reach, length, config, window)
        return prefix._attend_prefix(q, (keys, values), used, positions, found, config, window).astype(dtype)

    arrays, rest = (q, k, v, *room), (positions, jnp.asarray(reach), jnp.int32(used))
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        expected = [jax.jit(xla)(*each, *rest) for each in (arrays, exactly(*arrays))]
        found = [*jax.jit(kernel)(*arrays, *rest), *expected]
    return [each[:, reach > 0] for each in found]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("tokens", "length", "columns", "used", "window", "cap"),
    [
        (960, 96, 256, 130, None, None),  # rows that divide no block
        (768, 256, 1536, 1400, 300, 3.0),  # a window that reaches some blocks of a prefix
        slow(512, 128, 1024, 777, None, None),  # rows that divide a block
        slow(1280, 320, 512, 512, None, 3.0),
        slow(1280, 640, 64, 64, None, None),  # longer ones than a block
        slow(1536, 1536, 1536, 600, None, None),
        slow(768, 256, 1536, 1500, 5, 3.0),  # a window that is shorter than a text
        slow(240, 24, 512, 0, None, None),  # nothing before
    ],
)
def test_rows_behind_a_prefix_are_those_of_xla(tokens, length, columns, used, window, cap, dtype):
    close(*both_ways(tokens, length, columns, used, window, cap, dtype), dtype)


def packed(length, seed=0):
    """Segments of some rows, with padding at the end, and their positions."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((4, length), np.int32), np.zeros((4, length), np.int32)
    for row in range(4):
        start, number = 0, 1
        while start < length - 8:
            size = int(rng.integers(2, 90))
            segments[row, start : start + size] = number
            positions[row, start : start + size] = np.arange(len(segments[row, start : start + size]))
            start, number = start + size, number + 1
        if row:
            segments[row, -8:] = 0
    return segments, positions


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("length", "window", "longest", "cap"),
    [(384, 30, 90, 3.0), slow(640, None, 90, None), slow(200, None, None, None), slow(96, None, 90, None)],
)
def test_packed_rows_and_their_gradients_are_those_of_xla(length, window, longest, cap, dtype):
    scale, mesh = 0.25, make_mesh(2, 1, 2)  # a power of two: queries are scaled before, which rounds them
    segments, positions = packed(length)
    q, k, v, weight = drawn(
        2, *[(4, length, heads, HEAD_DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)], dtype=dtype
    )
    weight = weight * (segments > 0)[..., None, None]
    reach = min(each for each in (window, longest, length) if each)

    def kernel(q, k, v):
        return splash.attend_packed(q, k, v, placed[1], scale=scale, soft_cap=cap, reach=reach)

    def xla(q, k, v):
        mask = attention_mask(placed[1], placed[2], window)
        return attend_einsums(q, k, v, mask, scale=scale, soft_cap=cap)

    def summed(way, q, k, v):
        return jnp.sum(way(q, k, v).astype(jnp.float32) * placed[0])

    def put(x, *names):
        return jax.device_put(x, sharding(mesh, "batch", None, *names))

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        placed = put(weight.astype(jnp.float32), "heads", None), put(segments), put(positions)
        given = put(q, "heads", None), put(k, "kv_heads", None), put(v, "kv_heads", None)
        found = [jax.jit(kernel)(*given), None, *[jax.jit(xla)(*each) for each in (given, exactly(*given))]]
        slopes = [jax.jit(jax.grad(lambda *x, way=way: summed(way, *x), (0, 1, 2)))(*given) for way in (kernel, xla)]
    found[1] = jnp.zeros_like(found[0])
    close(*[np.asarray(each)[segments > 0] for each in found], dtype)
    for mine, theirs in zip(*slopes, strict=True):
        mine, theirs = (np.asarray(each, np.float32) for each in (mine, theirs))
        assert np.abs(theirs).max() > 0.5
        assert np.abs(mine - theirs).max() <= (2e-5 if dtype == "float32" else 1e-2) * np.abs(theirs).max()


def test_a_wrong_mask_is_found():
    expected = both_ways(512, 128, 1024, 777, None, None, "float32")[-1]
    for used, window in ((776, None), (777, 700)):
        assert np.abs(both_ways(512, 128, 1024, used, window, None, "float32")[0] - expected).max() > 1e-3


def test_blocks_that_nobody_sees_are_left_out():
    block, first, width = splash._row_blocks(8192, 512)
    assert (block, width) == (512, 1)
    assert first.tolist() == list(range(16))
    block, first, width = splash._row_blocks(4096, 320)
    for number, start in enumerate(first):
        seen = [(number * block + at) // 320 * 320 // block for at in range(block)]
        assert min(seen) == start
        assert start + width > number
