"""Programs compiled for TPU slices by the real compiler, which needs no TPU: what they take is what was counted."""

import dataclasses
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxift.config import TuneConfig
from jaxift.data.tokenizer import Tokenizer
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import abstract_decoder, laid_out
from jaxift.models.flops import pair_flops
from jaxift.models.rope import Rope
from jaxift.models.splash import visited
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import make_mesh
from jaxift.planning import topology
from jaxift.planning.programs import compile_step, compile_tuning
from jaxift.scoring.plan import Shape as StepShape
from jaxift.scoring.programs import Compiler, Scored
from jaxift.tuning.batches import Shape
from jaxift.tuning.group import Group
from jaxift.tuning.optimizers import optimizer
from jaxift.tuning.step import Recipe, Shared
from jaxift.world import MODEL_DIR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxift[plan]"),
]
LENGTH, LONGEST = 2048, 512
CONFIG = DecoderConfig(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_layers=8, num_heads=16, num_kv_heads=16,
    head_dim=128, pattern=(Span(Rope(128)),),
)  # fmt: skip


def described(config, place, dtype, *sizes):
    """A model of some shape on a mesh of a topology."""
    mesh = make_mesh(*sizes, place.devices)
    graph, state = nnx.split(abstract_decoder(config, mesh))
    decoder = nnx.merge(graph, laid_out(state, mesh, jnp.dtype(dtype)))
    return LanguageModel(decoder, Tokenizer.load(MODEL_DIR), mesh, jnp.dtype("bfloat16"), Path("."), "")


def tuned(config, name, remat, sizes, micro):
    """A tuning step of one row a device, compiled, and what the compiler says of it."""
    place = topology.described(name)
    model = described(config, place, "float32", *sizes)
    settings, shards = TuneConfig(remat=remat), sizes[0] * sizes[1]
    graph, dtype = nnx.graphdef(model.decoder), jnp.dtype("bfloat16")
    recipe = Recipe(graph, None, optimizer(settings), dtype, remat, 0.0, 0.0, LONGEST, False)
    shape = Shape(micro, shards, LENGTH, shards, LENGTH // 2)
    group = Group(model, settings, [], shape, recipe, Shared(None, None))
    return compile_tuning(group, 1, place), group.program(1)


def parameters(config):
    """Of all matrices, norms left out."""
    D, F, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    return config.num_layers * (4 * D * heads + 3 * D * F) + 2 * config.vocab_size * D


def test_flops_and_arguments_are_those_of_the_compiler():
    config = dataclasses.replace(CONFIG, num_layers=2)  # few enough to be compiled one by one: of a loop one run counts
    found, program = tuned(config, "v5e:2x2", "none", (1, 1, 1), 1)
    kernels = visited(LENGTH, LONGEST, rows=False) * pair_flops(config) * config.num_layers * (1 + 7 / 2)
    counted = program.cost_analysis()["flops"]
    assert abs(found.flops - kernels - counted) <= 0.02 * counted
    given = program.memory_analysis().argument_size_in_bytes
    assert abs(found.arguments - given) <= 0.01 * given
    assert found.fits


def test_a_tuning_step_moves_no_more_than_its_sharding_asks_for():
    found, _ = tuned(CONFIG, "v5e:4x4", "full", (1, 16, 1), 2)
    assert not found.moved.unknown_loops
    # each part gathers all matrices in bfloat16 for the forward and for the backward pass, and sums their gradients
    least = 2 * 3 * 2 * parameters(CONFIG) * 15 / 16
    assert found.moved.received <= 1.1 * least
    sizes = {shape.sizes for each in found.moved.collectives for shape in [each.shape]}
    # what bears the vocabulary is the matrix itself, no logits
    assert {size for size in sizes if CONFIG.vocab_size in size} <= {(1, 32000, 2048), (32000, 2048)}
    # a layer is computed twice and no more
    assert found.moved.kernels["splash_mha_fwd_segmented_residuals"] == 2 * 2 * CONFIG.num_layers


def test_scoring_gathers_each_weight_once_and_what_does_not_fit_is_told():
    place = topology.described("v5e:4x4")
    model = described(CONFIG, place, "bfloat16", 1, 16, 1)
    compiler = Compiler(Scored.of(model.decoder, model.mesh), 16, 512, jnp.dtype("bfloat16"))
    found = compile_step(compiler, StepShape(4, 512, 64, 4), place, 400)
    assert found.fits
    assert found.moved.received <= 1.1 * 2 * parameters(CONFIG) * 15 / 16
    assert set(found.moved.kernels) == {"splash_mha_fwd_residuals", "splash_mha_fwd_segmented_residuals"}
    assert all(
        CONFIG.vocab_size not in each.shape.sizes[:1] or each.kind == "all-gather" for each in found.moved.collectives
    )

    large = dataclasses.replace(CONFIG, num_layers=200)
    model = described(large, place, "bfloat16", 16, 1, 1)
    compiler = Compiler(Scored.of(model.decoder, model.mesh), 16, 512, jnp.dtype("bfloat16"))
    found = compile_step(compiler, StepShape(4, 512, 64, 4), place, 400)
    assert not found.fits
    assert found.limit < 16 * 2**30
    assert found.total > found.limit
    assert found.total > sum(found.parts.values()) > found.limit
