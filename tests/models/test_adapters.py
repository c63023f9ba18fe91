"""Low-rank adapters: merged they change what they say they change, and PEFT computes the same from what we write."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxift
from jaxift.errors import UserError
from jaxift.models.adapters import Adapter, export_adapter, merged
from jaxift.models.export import hf_tensors

RANK, SCALE = 4, 0.75
# q, k, v, o, gate, up, down of the tiny Llama: out and in axes
AXES = {
    "q": ((4, 8), (32,)), "k": ((2, 8), (32,)), "v": ((2, 8), (32,)), "o": ((32,), (4, 8)),
    "gate": ((64,), (32,)), "up": ((64,), (32,)), "down": ((32,), (64,)),
}  # fmt: skip
MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def random_adapters(names=tuple(AXES), layers=2, rank=RANK, at=("layers", 0)):
    rng = np.random.default_rng(0)
    leading = () if layers is None else (layers,)
    made = {}
    for name in names:
        out, into = AXES[name]
        a = rng.normal(0, 0.3, (*leading, rank, *into)).astype(np.float32)
        b = rng.normal(0, 0.3, (*leading, *out, rank)).astype(np.float32)
        made[(*at, name)] = Adapter(a, b)
    return made


def test_merged_weights_are_w_plus_scaled_b_a(tiny_model):
    adapters = random_adapters()
    before = hf_tensors(tiny_model.decoder)
    after = hf_tensors(merged(tiny_model, adapters, SCALE).decoder)
    changed = set()
    for name, module in MODULES.items():
        adapter = adapters[("layers", 0, name)]
        for layer in range(2):
            tensor = f"model.layers.{layer}.{module}.weight"
            a, b = adapter.a[layer].reshape(RANK, -1), adapter.b[layer].reshape(-1, RANK)
            np.testing.assert_allclose(after[tensor], before[tensor] + SCALE * (b @ a), atol=1e-6)
            assert np.abs(after[tensor] - before[tensor]).max() > 0.1
            changed.add(tensor)
    for tensor in before.keys() - changed:
        np.testing.assert_array_equal(after[tensor], before[tensor])
    assert hf_tensors(tiny_model.decoder).keys() == before.keys()  # the base model is as it was
    np.testing.assert_array_equal(hf_tensors(tiny_model.decoder)["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("mesh", ["2x2x2", "8x1x1"])
def test_merging_does_not_depend_on_the_mesh(tiny_folder, tiny_model, meshes, mesh):
    expected = hf_tensors(merged(tiny_model, random_adapters(), SCALE).decoder)
    found = merged(jaxift.load(tiny_folder, meshes[mesh]), random_adapters(), SCALE)
    for name, value in hf_tensors(found.decoder).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_fused_tensors_take_adapters_when_merged(make_folder, tmp_path):
    model = jaxift.load(make_folder(tmp_path / "m", model_type="phi3"))
    before, after = (hf_tensors(each.decoder) for each in (model, merged(model, random_adapters(("k",)), SCALE)))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    same = before[name] == after[name]
    assert same[:32].all()
    assert not same[32:48].any()
    assert same[48:].all()
    with pytest.raises(UserError, match=r"layers\.0\.k: shares model\.layers\.0\.self_attn\.qkv_proj\.weight"):
        export_adapter(model, random_adapters(("k",)), tmp_path / "out", scale=SCALE)
    assert not (tmp_path / "out").exists()


def test_local_and_remainder_layers_have_adapters_of_their_own(make_folder, tmp_path):
    folder = make_folder(tmp_path / "m", model_type="gemma2", num_hidden_layers=3, tie_word_embeddings=True)
    model = jaxift.load(folder)
    adapters = random_adapters(("q", "o"), layers=1) | random_adapters(("q",), layers=None, at=("rest", 0))
    before, after = (hf_tensors(each.decoder) for each in (model, merged(model, adapters, SCALE)))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {
        f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer, kind in ((0, "q"), (0, "o"), (2, "q"))
    }
    out = export_adapter(model, adapters, tmp_path / "out", scale=SCALE)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in changed)


def test_the_folder_is_as_peft_names_things(tiny_model, tmp_path):
    out = export_adapter(tiny_model, random_adapters(("q", "down")), tmp_path / "out", scale=SCALE, base="me/base")
    config = json.loads((out / "adapter_config.json").read_text())
    told = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    assert [config[name] for name in told] == ["LORA", "CAUSAL_LM", "me/base", 4, 3.0, ["down_proj", "q_proj"]]
    shapes = {name: value.shape for name, value in load_file(out / "adapter_model.safetensors").items()}
    prefix = "base_model.model.model.layers.1"
    assert shapes[f"{prefix}.self_attn.q_proj.lora_A.weight"] == (4, 32)
    assert shapes[f"{prefix}.self_attn.q_proj.lora_B.weight"] == (32, 4)
    assert shapes[f"{prefix}.mlp.down_proj.lora_A.weight"] == (4, 64)
    assert len(shapes) == 8


@pytest.mark.parametrize("names", [tuple(AXES), ("q", "v"), ("o", "down")])
# peft 0.21 asks transformers 5.23 by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_computes_what_the_merged_export_computes(tiny_folder, tiny_model, torch_logits, tmp_path, names):
    pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    peft = pytest.importorskip("peft", reason="peft is not installed; parity needs it")
    from transformers import AutoModelForCausalLM

    adapters = random_adapters(names)
    whole = jaxift.export(merged(tiny_model, adapters, SCALE), tmp_path / "merged")
    apart = export_adapter(tiny_model, adapters, tmp_path / "adapter", scale=SCALE)
    base, expected = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tiny_folder, whole))
    tokens = np.random.default_rng(0).integers(4, 64, (2, 32))
    plain = torch_logits(base, tokens)
    found = torch_logits(peft.PeftModel.from_pretrained(base, apart).eval(), tokens)
    np.testing.assert_allclose(found, torch_logits(expected, tokens), atol=2e-4)
    assert np.abs(found - plain).max() > 0.1


@pytest.mark.parametrize(
    ("adapters", "named"),
    [
        ({}, "no adapters"),
        (
            random_adapters(("q",), layers=3),
            r"layers\.0\.q: a \(3, 4, 32\) .* make them \(2, 4, 32\) and \(2, 4, 8, 4\)",
        ),
        (random_adapters(("q",), layers=None), r"layers\.0\.q: a"),
        (random_adapters(("q",), at=("layers", 1)), r"layers\.1\.q: is not a matrix"),
        (random_adapters(("q",), at=()), r"of q: is not a matrix"),
        ({("embedding",): Adapter(np.zeros((4, 32)), np.zeros((64, 4)))}, "embedding: is not a matrix"),
        (
            {("layers", 0, "mlp_norm", "scale"): Adapter(np.zeros((2, 4)), np.zeros((2, 32, 4)))},
            "scale: is not a matrix",
        ),
        (random_adapters(("q",)) | random_adapters(("v",), rank=2), r"ranks \[2, 4\]"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tiny_model, tmp_path, adapters, named):
    with pytest.raises(UserError, match=named):
        merged(tiny_model, adapters, SCALE)
    with pytest.raises(UserError, match=named):
        export_adapter(tiny_model, adapters, tmp_path / "out", scale=SCALE)
