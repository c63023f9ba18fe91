"""A config as transformers 4 wrote it, and the same config after transformers 5 read and wrote it, mean the same."""

import json

import pytest
from test_real_configs import PARAMETERS, published

from jaxift.models.families import decoder_config
from jaxift.models.rope import Linear, LongRope, Yarn

# within the unscaled range of each
LIMIT = 2048
LONGROPE = {"short_factor": [1.0 + index / 48 for index in range(48)], "long_factor": [2.0] * 48}
# A published config and what is changed in it; the spellings are those of the Hub.
SPELLINGS = {
    "linear, named by type": ("llama-2-7b", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "dynamic, named by type": ("llama-2-7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "another base": ("llama-2-7b", {"rope_theta": 5e5, "attention_bias": True, "mlp_bias": True}),
    "yarn, named by type": (
        "qwen2.5-7b",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    ),
    "yarn without its original length": ("qwen3-8b", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    "windows in the upper layers": (
        "qwen2.5-7b",
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 21},
    ),
    "no window": ("mistral-7b-v0.1", {"sliding_window": None, "rope_theta": 1e6}),
    "Gemma 1 by its first config": (
        "gemma-2-9b",
        {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu", "hidden_activation": None,
         "attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": None,
         "sliding_window": None, "sliding_window_size": None},
    ),
    "linear on the global layers": (
        "gemma-3-1b",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 5e3, "rope_theta": 2e6},
    ),
    "another pattern": ("gemma-3-1b", {"sliding_window_pattern": 4}),
    "longrope": (
        "phi-3-mini-4k",
        {"rope_scaling": {"type": "longrope", **LONGROPE}, "max_position_embeddings": 131072, "sliding_window": 262144},
    ),
    "part of the head": ("phi-3-mini-4k", {"partial_rotary_factor": 0.75}),
    "another part and base": (
        "pythia-12b",
        {"rotary_pct": 0.5, "rotary_emb_base": 20000, "use_parallel_residual": False},
    ),
    "scaled Pythia": ("pythia-12b", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "scaled OLMo": ("olmo-2-7b", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
}  # fmt: skip


def respelled(old, folder):
    """The config.json that transformers 5 writes after reading one of transformers 4."""
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(old))
    AutoConfig.from_pretrained(folder).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def both(old, folder, max_positions=None):
    new = respelled(old, folder)
    text = new.get("text_config", new)
    assert "rope_parameters" in text
    assert "dtype" in new
    assert not {"rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base"} & text.keys()
    assert "torch_dtype" not in new
    return decoder_config(old, "old", max_positions), decoder_config(new, "new", max_positions)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_config_means_the_same_in_both_spellings(name, tmp_path):
    old, new = both(published(name), tmp_path)
    assert old == new


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_changed_config_means_the_same_in_both_spellings(spelling, tmp_path):
    name, changes = SPELLINGS[spelling]
    old, new = both({**published(name), **changes}, tmp_path, LIMIT)
    assert old == new
    # the change is seen, not skipped
    unchanged = decoder_config({**published(name)}, name, LIMIT)
    assert old != unchanged or spelling.startswith("dynamic")


@pytest.mark.parametrize(
    ("spelling", "scaling"),
    [
        ("linear, named by type", Linear(2.0)),
        ("yarn, named by type", Yarn),
        ("longrope", LongRope),
        ("dynamic, named by type", type(None)),
        ("scaled Pythia", Linear(2.0)),
        ("linear on the global layers", Linear(8.0)),
    ],
)
def test_scaling_is_read(spelling, scaling):
    name, changes = SPELLINGS[spelling]
    found = decoder_config({**published(name), **changes}, name, LIMIT).pattern[-1].rope.scaling
    assert isinstance(found, scaling) if isinstance(scaling, type) else found == scaling


def test_longrope_has_an_older_name():
    name, changes = SPELLINGS["longrope"]
    old = {**changes, "rope_scaling": {**changes["rope_scaling"], "type": "su"}}
    first, second = ({**published(name), **fields} for fields in (changes, old))
    assert decoder_config(first, "longrope", LIMIT) == decoder_config(second, "su", LIMIT)
