"""The decoder against transformers and torch, built in process.

With this recipe a right port differs by about 1e-4 and a wrong one by 1e-2 and more; the tests of mutations show that
the bound separates them.
"""

import jax.numpy as jnp
import numpy as np
import parity_cases
import pytest

import jaxift
from jaxift.models.decoder import UNROLLED_LAYERS
from jaxift.models.family_tables import FAMILIES

T = parity_cases.SHORT


@pytest.mark.parametrize("case", parity_cases.CASES, ids=str)
def test_logits_are_those_of_torch(case, make_torch, difference, note_difference, tmp_path):
    model = make_torch(tmp_path, case.family, **case.fields)
    ours = jaxift.load(tmp_path, max_positions=case.max_positions)
    found = difference(model, ours.decoder, ours.mesh, case.length)
    note_difference(case.family, found)
    assert found <= parity_cases.TOLERANCE


def test_every_family_is_compared():
    assert {case.family for case in parity_cases.CASES} == set(FAMILIES)


def test_text_decoder_of_a_multimodal_gemma3(make_torch, difference, note_difference, tmp_path):
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = parity_cases.named("gemma3_text GQA tied linear")
    fields = {"text_config": dict(text.fields), "vision_config": vision, "mm_tokens_per_image": 4}
    model = make_torch(tmp_path, "gemma3", **fields, image_token_index=3, boi_token_index=1, eoi_token_index=2)
    ours = jaxift.load(tmp_path)
    found = difference(model, ours.decoder, ours.mesh, text.length)
    note_difference("gemma3", found)
    assert found <= parity_cases.TOLERANCE


@pytest.mark.parametrize(("name", "layers"), [("llama GQA untied default", 8), ("gemma3_text GQA tied linear", 14)])
def test_rolled_loop_over_many_layers_is_right_too(name, layers, make_torch, difference, tmp_path):
    assert layers > UNROLLED_LAYERS
    case = parity_cases.named(name)
    model = make_torch(tmp_path, case.family, **{**case.fields, "num_hidden_layers": layers})
    ours = jaxift.load(tmp_path)
    assert ours.config.groups > 1
    assert difference(model, ours.decoder, ours.mesh, case.length) <= parity_cases.TOLERANCE


@pytest.mark.parametrize("name", ["mistral GQA untied yarn", "gemma2 GQA tied linear", "gpt_neox MHA untied default"])
def test_bfloat16_logits_are_as_near_to_float32_as_those_of_torch(name, make_torch, torch_logits, all_logits, tmp_path):
    import torch

    case = parity_cases.named(name)
    model = make_torch(tmp_path, case.family, **case.fields)
    tokens = np.random.default_rng(1).integers(4, case.fields["vocab_size"], (2, T))
    exact = torch_logits(model, tokens)
    theirs = torch_logits(type(model).from_pretrained(tmp_path, dtype=torch.bfloat16), tokens)
    ours = jaxift.load(tmp_path, dtype="bfloat16")
    found = all_logits(ours.decoder, ours.mesh, tokens, dtype=jnp.dtype("bfloat16"))
    assert np.sqrt(np.mean((found - exact) ** 2)) <= 1.1 * np.sqrt(np.mean((theirs - exact) ** 2))


def test_stories260k_matches(shared_data, torch_logits, all_logits):
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
def test_smollm2_matches(torch_logits, all_logits, smollm2_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, attn_implementation="eager").eval()
    ours = jaxift.load(smollm2_folder)
    text = "The mitochondria are the part of the cell that makes its energy. " * 12
    tokens = np.array([ours.tokenizer.encode(text)[:T]])
    assert tokens.shape == (1, T)
    found = all_logits(ours.decoder, ours.mesh, tokens)
    assert np.abs(torch_logits(model, tokens) - found).max() <= parity_cases.TOLERANCE
