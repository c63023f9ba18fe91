"""The comparison of test_parity.py fails by far where one constant of the port is wrong."""

import dataclasses

import pytest
from parity_cases import TOLERANCE
from rebuilding import MARGIN, REFERENCES, rebuilt

from jaxift.models.rope import yarn_attention_factor


def with_ropes(config, change):
    """A config with every layer's rotary embedding changed."""
    return {"pattern": tuple(dataclasses.replace(span, rope=change(span.rope)) for span in config.pattern)}


def with_scaling(change):
    return lambda config: with_ropes(config, lambda rope: dataclasses.replace(rope, scaling=change(rope.scaling)))


def without_scaling(config):
    return with_ropes(config, lambda rope: dataclasses.replace(rope, scaling=None))


def theta_times(factor):
    return lambda config: with_ropes(config, lambda rope: dataclasses.replace(rope, theta=factor * rope.theta))


def eps_times(factor):
    return lambda config: {"norm_eps": factor * config.norm_eps}


def with_windows(change):
    def mutate(config):
        spans = [dataclasses.replace(span, window=span.window and change(span.window)) for span in config.pattern]
        return {"pattern": tuple(spans)}

    return mutate


def same(**fields):
    return lambda config: fields


def reversed_pattern(config):
    return {"pattern": config.pattern[::-1]}


def one_base(config):
    """Local layers with the global layers' base."""
    far = config.pattern[-1].rope
    return {"pattern": tuple(dataclasses.replace(span, rope=far) for span in config.pattern)}


def whole_head(config):
    return with_ropes(config, lambda rope: dataclasses.replace(rope, dim=config.head_dim))


no_attention_factor = with_scaling(lambda scaling: dataclasses.replace(scaling, attention_factor=1.0))
no_window, window_plus_one = with_windows(lambda window: None), with_windows(lambda window: window + 1)
BIASES_IGNORED = {
    "qkv bias ignored": same(qkv_bias=False),
    "output bias ignored": same(output_bias=False),
    "mlp bias ignored": same(mlp_bias=False),
}
CONFIG_MUTATIONS = {
    "mistral": {
        "theta doubled": theta_times(2),
        "theta one percent off": theta_times(1.01),
        "eps changed": eps_times(100),
        "window ignored": no_window,
        "window one too long": window_plus_one,
        "window one too short": with_windows(lambda window: window - 1),
        "scaling dropped": without_scaling,
    },
    "linear": {
        "scaling dropped": without_scaling,
        "factor doubled": with_scaling(lambda linear: type(linear)(2 * linear.factor)),
    },
    "llama3": {
        "scaling dropped": without_scaling,
        "factor doubled": with_scaling(lambda scaling: dataclasses.replace(scaling, factor=16.0)),
        "high_freq_factor halved": with_scaling(lambda scaling: dataclasses.replace(scaling, high_freq_factor=2.0)),
        "original length doubled": with_scaling(
            lambda scaling: dataclasses.replace(scaling, original_max_positions=128)
        ),
    },
    "yarn": {
        "scaling dropped": without_scaling,
        "attention factor dropped": no_attention_factor,
        "range not truncated": with_scaling(lambda scaling: dataclasses.replace(scaling, truncate=False)),
    },
    "yarn betas": {
        "beta_fast by default": with_scaling(lambda scaling: dataclasses.replace(scaling, beta_fast=32.0)),
        "beta_slow by default": with_scaling(lambda scaling: dataclasses.replace(scaling, beta_slow=1.0)),
        "range truncated": with_scaling(lambda scaling: dataclasses.replace(scaling, truncate=True)),
        "mscale ignored": with_scaling(
            lambda scaling: dataclasses.replace(scaling, attention_factor=yarn_attention_factor(scaling.factor))
        ),
    },
    "longrope": {
        "scaling dropped": without_scaling,
        "attention factor dropped": no_attention_factor,
        "factors in reverse": with_scaling(lambda scaling: dataclasses.replace(scaling, factors=scaling.factors[::-1])),
    },
    "llama biases": {
        **BIASES_IGNORED,
        "scores not scaled": same(query_scale=1.0),
        "gelu for silu": same(activation="gelu"),
    },
    "qwen2": {
        "qkv bias ignored": same(qkv_bias=False),
        "windows ignored": no_window,
        "windows in the lower layers": reversed_pattern,
    },
    "qwen3": {"q and k norm dropped": same(qk_norm=None), "eps changed": eps_times(100)},
    "gemma": {
        "embedding scale dropped": same(embedding_scale=None),
        "offset of the norms dropped": same(norm_unit_offset=False),
        "silu for gelu": same(activation="silu"),
    },
    "gemma2": {
        "attention cap dropped": same(attention_soft_cap=None),
        "logit cap dropped": same(logit_soft_cap=None),
        "query scale dropped": same(query_scale=None),
        "embedding scale dropped": same(embedding_scale=None),
        "offset of the norms dropped": same(norm_unit_offset=False),
        "post-norms dropped": same(norm_placement="before"),
        "window ignored": no_window,
        "window one too long": window_plus_one,
        "local and global swapped": reversed_pattern,
    },
    "gemma3": {
        "local and global swapped": reversed_pattern,
        "one base for all layers": one_base,
        "q and k norm dropped": same(qk_norm=None),
        "scaling dropped": without_scaling,
        "window ignored": no_window,
        "query scale dropped": same(query_scale=None),
        "eps changed": eps_times(1000),
    },
    "olmo2": {"q and k norm dropped": same(qk_norm=None), "eps changed": eps_times(100)},
    "phi3": {"whole head rotated": whole_head, "theta doubled": theta_times(2)},
    "neox": {
        "residuals in sequence": same(parallel_residual=False),
        "whole head rotated": whole_head,
        "root mean square for layer norm": same(norm="rms"),
        **BIASES_IGNORED,
        "eps changed": eps_times(100),
    },
    "neox sequential": {"residuals in parallel": same(parallel_residual=True)},
}
CONFIG_CASES = [(name, mutation) for name, mutations in CONFIG_MUTATIONS.items() for mutation in mutations]


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_agrees_before_it_is_mutated(name, reference, difference):
    model, ours, length = reference(name)
    assert difference(model, rebuilt(ours, ours.config), ours.mesh, length) <= TOLERANCE


@pytest.mark.parametrize(("name", "mutation"), CONFIG_CASES, ids=lambda part: part)
def test_comparison_fails_with_a_wrong_config(name, mutation, reference, difference):
    model, ours, length = reference(name)
    wrong = dataclasses.replace(ours.config, **CONFIG_MUTATIONS[name][mutation](ours.config))
    assert wrong != ours.config
    assert difference(model, rebuilt(ours, wrong), ours.mesh, length) > MARGIN


@pytest.mark.parametrize(("name", "other"), [("gemma", "gelu"), ("neox", "gelu_tanh")])
def test_comparison_tells_exact_gelu_from_its_approximation(name, other, reference, difference):
    # the two differ by less than 5e-4 in each unit, too little for the margin of the others
    model, ours, length = reference(name)
    right = difference(model, ours.decoder, ours.mesh, length)
    wrong = rebuilt(ours, dataclasses.replace(ours.config, activation=other))
    assert difference(model, wrong, ours.mesh, length) > max(2 * TOLERANCE, 50 * right)
