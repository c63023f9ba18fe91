"""The decoder against transformers and torch, built in process.

With this recipe a right port differs by about 1e-4 and a wrong one by 1e-2 and more: the bound separates them.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.models import attention as attention_module
from jaxift.models import decoder as decoder_module
from jaxift.models.families import FAMILIES
from jaxift.models.weights import load_decoder

TOLERANCE = 5e-4
T = 128
HEADS = 8
SHAPE = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "head_dim": 32, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip
KV_HEADS = {"MHA": HEADS, "GQA": HEADS // 4, "MQA": 1}
EXTRA = {"llama": {}, "mistral": {"sliding_window": 48}}


def tokens_for(vocab_size, length=T, rows=2):
    return np.random.default_rng(1).integers(4, vocab_size, (rows, length))


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(np.asarray(tokens))).logits.float().numpy()


def difference(model, decoder, all_logits, mesh, **options):
    """Largest absolute difference of logits between a torch model and a decoder."""
    tokens = tokens_for(model.config.vocab_size)
    return np.abs(torch_logits(model, tokens) - all_logits(decoder, mesh, tokens, **options)).max()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("heads", KV_HEADS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_torch(family, heads, tied, make_torch, all_logits, tmp_path):
    fields = {"num_key_value_heads": KV_HEADS[heads], "tie_word_embeddings": tied, **EXTRA[family]}
    model = make_torch(tmp_path, family, **SHAPE, **fields)
    ours = jaxift.load(tmp_path)
    assert ours.config.num_kv_heads == KV_HEADS[heads]
    assert ours.config.tie_embeddings == tied
    assert ours.config.sliding_window == EXTRA[family].get("sliding_window")
    assert difference(model, ours.decoder, all_logits, ours.mesh) <= TOLERANCE


@pytest.fixture(scope="module")
def reference(make_torch, tmp_path_factory):
    """One grouped-query Mistral with a window: everything that a port can get wrong is in it."""
    folder = tmp_path_factory.mktemp("reference")
    fields = {"num_key_value_heads": 2, "tie_word_embeddings": False, **EXTRA["mistral"]}
    return make_torch(folder, "mistral", **SHAPE, **fields), folder


def test_reference_of_the_mutations_agrees(reference, all_logits):
    model, folder = reference
    ours = jaxift.load(folder)
    assert difference(model, ours.decoder, all_logits, ours.mesh) <= TOLERANCE


CONFIG_MUTATIONS = {
    "theta doubled": lambda config: {"rope_theta": 2 * config.rope_theta},
    "eps changed": lambda config: {"rms_norm_eps": 100 * config.rms_norm_eps},
    "window ignored": lambda config: {"sliding_window": None},
    "window off by one": lambda config: {"sliding_window": config.sliding_window + 1},
}


@pytest.mark.parametrize("mutation", CONFIG_MUTATIONS)
def test_comparison_fails_with_a_wrong_constant(mutation, reference, all_logits):
    model, folder = reference
    ours = jaxift.load(folder)
    wrong = dataclasses.replace(ours.config, **CONFIG_MUTATIONS[mutation](ours.config))
    decoder = load_decoder(folder, wrong, ours.mesh, jnp.dtype("float32"))
    assert difference(model, decoder, all_logits, ours.mesh) > 10 * TOLERANCE


def swapped_halves(weight_LDNH):
    half = weight_LDNH.shape[-1] // 2
    return jnp.concatenate([weight_LDNH[..., half:], weight_LDNH[..., :half]], axis=-1)


WEIGHT_MUTATIONS = {
    "key and value heads permuted": {"k": lambda w: w[:, :, ::-1], "v": lambda w: w[:, :, ::-1]},
    "query heads permuted": {"q": lambda w: w[:, :, ::-1]},
    "halves of the rotation swapped": {"q": swapped_halves, "k": lambda w: w},
    "gate and up exchanged": {"gate": lambda w, layers: layers["up"], "up": lambda w, layers: layers["gate"]},
    "layers in reverse": {"down": lambda w: w[::-1]},
    "norm scales forgotten": {"attention_norm": jnp.ones_like},
}


@pytest.mark.parametrize("mutation", WEIGHT_MUTATIONS)
def test_comparison_fails_with_weights_in_the_wrong_place(mutation, reference, all_logits):
    model, folder = reference
    ours = jaxift.load(folder)
    layers = ours.decoder.layers
    before = {name: getattr(layers, name)[...] for name in ("q", "k", "v", "gate", "up", "down")}
    for name, change in WEIGHT_MUTATIONS[mutation].items():
        parameter = layers.attention_norm.scale if name == "attention_norm" else getattr(layers, name)
        arguments = (parameter[...], before) if change.__code__.co_argcount == 2 else (parameter[...],)
        parameter[...] = change(*arguments)
    assert difference(model, ours.decoder, all_logits, ours.mesh) > 10 * TOLERANCE


def test_comparison_fails_with_the_embedding_for_a_head(reference, all_logits):
    model, folder = reference
    ours = jaxift.load(folder)
    ours.decoder.head[...] = ours.decoder.embedding[...]
    assert difference(model, ours.decoder, all_logits, ours.mesh) > 10 * TOLERANCE


def test_rolled_loop_over_layers_is_right_too(reference, all_logits, monkeypatch):
    monkeypatch.setattr(decoder_module, "UNROLLED_LAYERS", 0)
    model, folder = reference
    ours = jaxift.load(folder)
    assert difference(model, ours.decoder, all_logits, ours.mesh, program="rolled") <= TOLERANCE


def test_attention_scale_is_part_of_the_comparison(reference, all_logits, monkeypatch):
    plain = attention_module.attention

    def unscaled(q, k, v, mask):
        return plain(q * q.shape[-1] ** 0.5, k, v, mask)

    monkeypatch.setattr(decoder_module, "attention", unscaled)
    model, folder = reference
    ours = jaxift.load(folder)
    assert difference(model, ours.decoder, all_logits, ours.mesh, program="unscaled") > 10 * TOLERANCE


def test_both_spellings_of_a_config_mean_the_same(make_torch, all_logits, tmp_path):
    theta = 500.0
    rope = {"rope_type": "default", "rope_theta": theta}
    fields = {**SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": False}
    model = make_torch(tmp_path, "llama", **fields, rope_parameters=rope)
    path = tmp_path / "config.json"
    new = json.loads(path.read_text())
    assert new["rope_parameters"]["rope_theta"] == theta
    assert "dtype" in new
    old = {name: value for name, value in new.items() if name not in ("rope_parameters", "dtype")}
    old |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "float32", "pretraining_tp": 1}
    first = jaxift.load(tmp_path)
    path.write_text(json.dumps(old))
    second = jaxift.load(tmp_path)
    assert first.config == second.config
    assert first.config.rope_theta == theta
    assert difference(model, second.decoder, all_logits, second.mesh) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_survives_the_round_trip_bit_for_bit(dtype, make_torch, tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    fields = {**SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": False, "dtype": getattr(torch, dtype)}
    make_torch(tmp_path / "there", "llama", **fields).to(getattr(torch, dtype)).save_pretrained(tmp_path / "there")
    ours = jaxift.load(tmp_path / "there", dtype=dtype)
    back = jaxift.export(ours, tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "there", back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert (tmp_path / "there" / "tokenizer.json").read_bytes() == (back / "tokenizer.json").read_bytes()
    assert json.loads((back / "config.json").read_text())["dtype"] == dtype
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tmp_path / "there", back)]
    assert models[1].dtype == getattr(torch, dtype)
    tokens = tokens_for(SHAPE["vocab_size"])
    np.testing.assert_array_equal(*[torch_logits(model, tokens) for model in models])
    same = jaxift.load(back, dtype=dtype)
    chex.assert_trees_all_equal(nnx.state(same.decoder), nnx.state(ours.decoder))


def test_bfloat16_logits_are_as_near_to_float32_as_those_of_torch(reference, all_logits):
    import torch

    model, folder = reference
    tokens = tokens_for(SHAPE["vocab_size"])
    exact = torch_logits(model, tokens)
    theirs = torch_logits(type(model).from_pretrained(folder, dtype=torch.bfloat16), tokens)
    ours = jaxift.load(folder, dtype="bfloat16")
    found = all_logits(ours.decoder, ours.mesh, tokens, dtype=jnp.dtype("bfloat16"))
    assert np.sqrt(np.mean((found - exact) ** 2)) <= 1.1 * np.sqrt(np.mean((theirs - exact) ** 2))


def test_stories260k_matches(shared_data, all_logits):
    pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    from transformers import AutoModelForCausalLM

    folder = shared_data / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ours = jaxift.load(folder)
    text = "Once upon a time, there was a little girl named Lily. She liked to play in the park with her"
    tokens = np.array([ours.tokenizer.encode(text)])
    found = all_logits(ours.decoder, ours.mesh, tokens)
    assert np.abs(torch_logits(model, tokens) - found).max() <= 1e-4
    # a trained model: it continues the story, which a wrong port would not
    assert ours.tokenizer.backend.decode(found[0, -1].argmax()) == "friend"


@pytest.mark.slow
def test_smollm2_matches(all_logits, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    from transformers import AutoModelForCausalLM

    folder = Path(os.environ.get("JAXIFT_SMOLLM2", tmp_path / "smollm2"))
    tool = Path(__file__).resolve().parents[3] / "shared" / "tools" / "get_smollm2"
    if not (folder / "model.safetensors").is_file():
        if not tool.is_file():
            pytest.skip(f"{folder} holds no model (set JAXIFT_SMOLLM2) and {tool} is absent")
        done = subprocess.run([str(tool), str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{tool} failed: {done.stderr.strip()[-200:]}")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ours = jaxift.load(folder)
    text = "The mitochondria are the part of the cell that makes its energy. " * 12
    tokens = np.array([ours.tokenizer.encode(text)[:T]])
    assert tokens.shape == (1, T)
    assert np.abs(torch_logits(model, tokens) - all_logits(ours.decoder, ours.mesh, tokens)).max() <= TOLERANCE
