"""The comparison of test_parity.py fails by far where weights are in the wrong place."""

import dataclasses

import numpy as np
import pytest
from rebuilding import MARGIN, parameters, rebuilt


def stacked(change, *names):
    """Changes parameters of the stacked layers, each by itself."""
    return lambda values: {
        path: change(value) for path, value in values.items() if path[0] == "layers" and path[2] in names
    }


def exchanged(first, second):
    """Puts the parameters below two paths in each other's place."""

    def change(values):
        there = {path: second + path[len(first) :] for path in values if path[: len(first)] == first}
        pairs = [*there.items(), *((other, path) for path, other in there.items())]
        return {path: values[other] for path, other in pairs}

    return change


def at(values, *names):
    return [values["layers", 0, name] for name in names]


def permuted_heads(weight):
    """[L, N, H, D] with the heads in reverse."""
    return weight[:, ::-1]


def swapped_halves(weight):
    """[L, N, H, D] with the halves that are rotated against each other exchanged."""
    return np.roll(weight, weight.shape[2] // 2, axis=2)


def pairs_for_halves(weight):
    """[L, N, H, D] for a rotation of neighbours instead of halves."""
    return np.moveaxis(weight.reshape(*weight.shape[:2], 2, -1, weight.shape[3]), 2, 3).reshape(weight.shape)


def fused_as_blocks(values):
    """GPT-NeoX's query_key_value read as all queries, all keys, all values."""
    LNTHD = np.stack(at(values, "q", "k", "v"), axis=2)
    parts = np.moveaxis(LNTHD.reshape(LNTHD.shape[0], 3, -1, *LNTHD.shape[3:]), 1, 0)
    return {("layers", 0, name): part for name, part in zip("qkv", parts, strict=True)}


def interleaved_mlp(values):
    """Phi-3's gate_up_proj read as alternating rows."""
    LFD = np.concatenate(at(values, "gate", "up"), axis=1)
    return {("layers", 0, "gate"): LFD[:, ::2], ("layers", 0, "up"): LFD[:, 1::2]}


def transposed_square(weight):
    """[L, D, N, H] with its rows for its columns."""
    L, D, N, H = weight.shape
    return np.swapaxes(weight.reshape(L, D, N * H), 1, 2).reshape(L, D, N, H)


def reversed_layers(values):
    return {path: value[::-1] for path, value in values.items() if path[0] == "layers"}


def embedding_for_head(values):
    return {("head",): values["embedding",]}


WEIGHT_MUTATIONS = {
    "mistral": {
        "query heads permuted": stacked(permuted_heads, "q"),
        "key and value heads permuted": stacked(permuted_heads, "k", "v"),
        "halves of the rotation swapped": stacked(swapped_halves, "q"),
        "neighbours rotated for halves": stacked(pairs_for_halves, "q", "k"),
        "output projection transposed": stacked(transposed_square, "o"),
        "gate and up exchanged": exchanged(("layers", 0, "gate"), ("layers", 0, "up")),
        "keys and values exchanged": exchanged(("layers", 0, "k"), ("layers", 0, "v")),
        "layers in reverse": reversed_layers,
        "norms exchanged": exchanged(("layers", 0, "attention_norm"), ("layers", 0, "mlp_norm")),
        "norm scales forgotten": stacked(np.ones_like, "attention_norm"),
        "embedding for the head": embedding_for_head,
    },
    "gemma2": {
        "groups in reverse": exchanged(("layers", 0), ("layers", 1)),
        "post-norms exchanged": exchanged(("layers", 0, "attention_post_norm"), ("layers", 0, "mlp_post_norm")),
        "norm before for norm after": exchanged(("layers", 0, "mlp_norm"), ("layers", 0, "mlp_post_norm")),
    },
    "gemma3": {
        "remainder in reverse": exchanged(("rest", 0), ("rest", 1)),
        "pattern rotated": exchanged(("layers", 1), ("layers", 2)),
        "q and k norm exchanged": exchanged(("layers", 2, "q_norm"), ("layers", 2, "k_norm")),
    },
    "qwen2": {"biases of keys permuted": stacked(lambda bias: bias[:, ::-1], "k_bias")},
    "phi3": {"gate_up_proj interleaved": interleaved_mlp},
    "neox": {"query_key_value in blocks": fused_as_blocks, "layers in reverse": reversed_layers},
}
WEIGHT_CASES = [(name, mutation) for name, mutations in WEIGHT_MUTATIONS.items() for mutation in mutations]


@pytest.mark.parametrize(("name", "mutation"), WEIGHT_CASES, ids=lambda part: part)
def test_comparison_fails_with_weights_in_the_wrong_place(name, mutation, reference, difference):
    model, ours, length = reference(name)
    changed = WEIGHT_MUTATIONS[name][mutation](parameters(ours))
    assert changed
    assert difference(model, rebuilt(ours, ours.config, changed), ours.mesh, length) > MARGIN


@pytest.mark.parametrize(("name", "axes"), [("olmo2", (-1,)), ("qwen3", (-2, -1))], ids=["each head", "all heads"])
def test_comparison_fails_with_the_wrong_kind_of_query_and_key_norm(name, axes, reference, difference):
    model, ours, length = reference(name)
    decoder = rebuilt(ours, ours.config)
    for norm in [getattr(decoder.layers[0], norm) for norm in ("q_norm", "k_norm")]:
        assert norm.axes != axes
        norm.axes = axes
    assert difference(model, decoder, ours.mesh, length) > MARGIN


def test_comparison_fails_with_norms_at_the_wrong_place(reference, difference):
    model, ours, length = reference("olmo2")
    moved = {
        (*path[:2], str(path[2]).replace("post_norm", "norm"), path[3]): value
        for path, value in parameters(ours).items()
        if "post_norm" in str(path[2:3])
    }
    wrong = dataclasses.replace(ours.config, norm_placement="before")
    assert difference(model, rebuilt(ours, wrong, moved), ours.mesh, length) > MARGIN
