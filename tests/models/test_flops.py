"""Arithmetic counted from shapes: that of the weights' matrices, and what the compiler counts."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import abstract_decoder
from jaxift.models.flops import attention_flops, head_flops, pair_flops, token_flops
from jaxift.models.rope import Rope
from jaxift.parallel.mesh import make_mesh, sharding

FULL, NEAR = Span(Rope(32)), Span(Rope(32), 16)


def config(**fields):
    shape = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    return DecoderConfig(**{**shape, "num_layers": 1, "num_heads": 8, "num_kv_heads": 4, "pattern": (FULL,), **fields})


CONFIGS = {
    "gated": config(),
    "two matrices, one key head": config(gated_mlp=False, num_kv_heads=1),
    "heads wider than the stream": config(head_dim=64, num_layers=3),
    "pattern with a layer left over": config(num_layers=5, pattern=(NEAR, FULL)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_is_two_operations_a_weight(name):
    decoder = abstract_decoder(CONFIGS[name], make_mesh(1))
    layers = jax.tree.leaves(nnx.state((decoder.layers, decoder.rest)))
    # norms and biases are small beside the matrices
    weights = sum(leaf.size for leaf in layers)
    assert token_flops(CONFIGS[name]) == pytest.approx(2 * weights, rel=0.01)
    assert head_flops(CONFIGS[name]) == 2 * 512 * 256


def test_attention_is_counted_in_every_layer_with_its_own_window():
    shape = CONFIGS["pattern with a layer left over"]
    work = attention_flops(shape, {16: 10, None: 1000}.__getitem__)
    assert work == pair_flops(shape) * (10 + 1000 + 10 + 1000 + 10)


@pytest.mark.parametrize("name", ["gated", "two matrices, one key head"])
def test_the_compiler_counts_the_same(name):
    length, mesh = 256, make_mesh(1)
    graph, state = nnx.split(abstract_decoder(CONFIGS[name], mesh))
    tokens = jax.ShapeDtypeStruct((1, length), np.int32, sharding=sharding(mesh, "batch", None))

    def forward(state, tokens, positions, segments):
        decoder = nnx.merge(graph, state)
        return decoder.logits(decoder.hidden(tokens, positions, segments))

    with jax.set_mesh(mesh):
        compiled = jax.jit(forward).lower(state, tokens, tokens, tokens).compile()
    # the plain forward looks at all pairs, those that the mask hides too
    pairs = attention_flops(CONFIGS[name], lambda window: length**2)
    expected = (token_flops(CONFIGS[name]) + head_flops(CONFIGS[name])) * length + pairs
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.05)
