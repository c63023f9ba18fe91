"""The device side of generation: one program that reads a batch of prompts and continues each token by token."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxift.models.attention import NEGATIVE
from jaxift.models.decoder import Cache, empty_cache
from jaxift.parallel.mesh import spec

Mode = Literal["greedy", "sample", "nucleus"]
NOTHING = -1
GATHERED_BYTES = 4 << 30
"""Weights that take no more than this on a device are gathered over `fsdp` once, not at every token."""

Carry = tuple[Int[Array, ""], Int[Array, "B"], Bool[Array, "B"], Int[Array, "B N"], Cache]


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens", "mode", "dtype"))
def continue_rows(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens_BT: Int[Array, "B T"],
    lengths_B: Int[Array, "B"],
    seeds_B: UInt[Array, "B"],
    draw: tuple[Float[Array, ""], Float[Array, ""]],
    end_tokens: Int[Array, "E"],
    stop_tokens: Int[Array, "E2"],
    *,
    max_new_tokens: int,
    mode: Mode,
    dtype: np.dtype,
) -> Int[Array, "B N"]:
    """New tokens of each row, `NOTHING` after its end; a row of length 0 is padding and gets none.

    Rows are right-padded. A row ends before one of `end_tokens` and after one of `stop_tokens`; the program ends when
    all rows have. `draw` is (temperature, top_p). What a row gets depends on its tokens and its seed alone.
    """
    decoder = nnx.merge(graph, _resident(state, dtype))
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T), out_sharding=spec("batch", None))
    segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    # the last token is never read
    cache = empty_cache(decoder.config, B, T + max_new_tokens - 1, dtype)

    def choose(hidden_BD: Array, step: Array) -> Array:
        return choose_tokens(decoder.logits(hidden_BD), seeds_B, step, draw, decoder.config.vocab_size, mode)

    def record(carry: Carry, chosen_B: Array, cache: Cache) -> Carry:
        step, _, done_B, new_BN, _ = carry
        done_B = done_B | _any_of(chosen_B, end_tokens)
        kept_B = jnp.where(done_B, NOTHING, chosen_B)
        new_BN = jax.lax.dynamic_update_slice_in_dim(new_BN, kept_B[:, None], step, axis=1)
        return step + 1, chosen_B, done_B | _any_of(chosen_B, stop_tokens), new_BN, cache

    def more(carry: Carry) -> Array:
        step, _, done_B, _, _ = carry
        return (step < max_new_tokens) & ~done_B.all()

    def body(carry: Carry) -> Carry:
        step, last_B, _, _, cache = carry
        positions_B1 = (lengths_B + step - 1)[:, None]
        hidden_B1D, cache = decoder.extend(
            last_B[:, None], positions_B1, jnp.ones_like(positions_B1), cache, dtype=dtype
        )
        return record(carry, choose(hidden_B1D[:, 0], step), cache)

    hidden_BTD, cache = decoder.extend(tokens_BT, positions_BT, segments_BT, cache, dtype=dtype)
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    hidden_BD = jnp.take_along_axis(hidden_BTD, last_B1[..., None], axis=1)[:, 0]
    new_BN = jnp.full((B, max_new_tokens), NOTHING, jnp.int32, out_sharding=spec("batch", None))
    start = jnp.int32(0), tokens_BT[:, 0], lengths_B == 0, new_BN, cache
    return jax.lax.while_loop(more, body, record(start, choose(hidden_BD, start[0]), cache))[3]


def choose_tokens(
    logits_BV: Float[Array, "B V"],
    seeds_B: UInt[Array, "B"],
    step: Int[Array, ""],
    draw: tuple[Float[Array, ""], Float[Array, ""]],
    vocab_size: int,
    mode: Mode,
) -> Int[Array, "B"]:
    """The most likely token of each row, or one drawn from its softmax with noise of (seed, step) alone.

    `draw` is (temperature, top_p). `nucleus` draws among the most likely tokens whose probability reaches top_p, those
    as likely as the last of them included (Holtzman et al. 2020). Logits from `vocab_size` on are padding.
    """

    def local(logits_BV: Array, seeds_B: Array, step: Array, temperature: Array, top_p: Array) -> Array:
        logits_BV = logits_BV[:, :vocab_size].astype(jnp.float32)  # noise must not depend on the padding
        if mode == "greedy":
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BV = logits_BV / temperature
        if mode == "nucleus":
            logits_BV = jnp.where(_nucleus(logits_BV, top_p), logits_BV, NEGATIVE)
        keys_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds_B)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,), jnp.float32))(keys_B)
        return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)

    # each device sorts and draws for its own rows, with the whole vocabulary at hand
    rows, one = spec("batch"), spec()
    whole_BV = jax.sharding.reshard(logits_BV, spec("batch", None))
    layouts = (spec("batch", None), rows, one, one, one)
    return jax.shard_map(local, in_specs=layouts, out_specs=rows)(whole_BV, seeds_B, step, *draw)


def _nucleus(logits_BV: Array, top_p: Array) -> Array:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    size_B = jnp.maximum((before_BV < top_p).sum(axis=-1), 1)  # the most likely token always stays
    return logits_BV >= jnp.take_along_axis(sorted_BV, size_B[:, None] - 1, axis=-1)


def _any_of(tokens_B: Array, listed: Array) -> Array:
    return (tokens_B[:, None] == listed).any(axis=-1)


def _resident(state: nnx.State, dtype: np.dtype) -> nnx.State:
    """The weights as every token reads them: cast once, and gathered over `fsdp` where a device has the room."""
    leaves = [jax.typeof(variable.get_value()) for _, variable in nnx.to_flat_state(state)]
    shards = [leaf.sharding.update(spec=_without_fsdp(leaf.sharding)).shard_shape(leaf.shape) for leaf in leaves]
    gathers = sum(map(math.prod, shards)) * dtype.itemsize <= GATHERED_BYTES

    def prepare(path: tuple[str | int, ...], variable: nnx.Variable) -> nnx.Variable:
        leaf = variable.get_value()
        if path[-1] not in ("scale", "bias"):  # norms compute in float32
            leaf = leaf.astype(dtype)
        spread = jax.typeof(leaf).sharding
        return variable.replace(jax.sharding.reshard(leaf, _without_fsdp(spread)) if gathers else leaf)

    return nnx.map_state(prepare, state)


def _without_fsdp(spread: jax.NamedSharding) -> jax.P:
    return jax.P(*(None if axes == "fsdp" else axes for axes in spread.spec))
