"""Model folders that cannot be loaded: each is refused in one line that names what is wrong."""

import shutil

import numpy as np
import pytest
from breaking import configured, reweighed

import jaxift
from jaxift.cli import main
from jaxift.errors import UserError
from jaxift.models.families import decoder_config
from jaxift.models.weights import check_folder

Q = "model.layers.1.self_attn.q_proj.weight"


def filled(name, value):
    def edit(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[7] = value

    return reweighed(edit)


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def renamed(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "no folder": (shutil.rmtree, "no such model folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
    "config is no JSON": (text("config.json", b"{"), "config.json: not valid JSON"),
    "config is not UTF-8": (text("config.json", b'{"model_type": "\xff"}'), "config.json: not valid JSON"),
    "config is a list": (text("config.json", b"[]"), "config.json: not a JSON object"),
    "unknown model_type": (configured(model_type="gpt_bigcode"), "model_type 'gpt_bigcode' is not supported"),
    "no model_type": (configured(model_type=...), "model_type None is not supported"),
    "model_type is a list": (configured(model_type=["llama"]), "model_type ['llama'] is not supported"),
    "mixture of experts": (configured(model_type="mixtral", num_local_experts=8), "is a mixture of experts"),
    "unknown rope": (configured(rope_scaling={"type": "spiral", "factor": 2.0}), "'spiral'"),
    "rope lacks a field": (
        configured(rope_parameters={"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}),
        "rope type 'llama3' lacks low_freq_factor, high_freq_factor",
    ),
    "rope has an unknown field": (
        configured(rope_scaling={"type": "linear", "factor": 2.0, "twist": 1.0}), "twist",
    ),
    "rope factor is a text": (configured(rope_scaling={"type": "linear", "factor": "2"}), "factor = '2'"),
    "rope that depends on the length": (
        configured(rope_scaling={"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}),
        "rope type 'dynamic' depends on the length beyond 32 tokens",
    ),
    "part of a rotation": (configured(partial_rotary_factor=0.5), "field partial_rotary_factor = 0.5 is not"),
    "not causal": (configured(is_causal=False), "is_causal = False is not supported (only True)"),
    "theta of one": (configured(rope_theta=1.0), "rope_theta = 1.0 is not above 1"),
    "stretched over nothing": (
        configured(rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0.5}),
        "original_max_position_embeddings = 0.5 is less than 2",
    ),
    "more than the head is rotated": (
        configured(model_type="gpt_neox", rotary_pct=1e308), "partial_rotary_factor = 1e+308 is more than the whole",
    ),
    "key groups of a NeoX": (configured(model_type="gpt_neox"), "GPT-NeoX has no key groups"),
    "eps beyond every float": (configured(rms_norm_eps=10**400), "is not a positive number"),
    "size beyond reason": (configured(hidden_size=10**30), "is not a positive integer"),
    "layers beyond reason": (configured(num_hidden_layers=2 * 10**9), "num_hidden_layers = 2000000000 is more than"),
    "head differs from the embedding that it is tied to": (
        configured(tie_word_embeddings=True), "tensor lm_head.weight differs from the embedding",
    ),
    "unknown field": (configured(logit_softcap=30.0), "field logit_softcap = 30.0 is not understood"),
    "quantised": (configured(quantization_config={"bits": 4}), "field quantization_config"),
    "attention bias without its tensors": (
        configured(attention_bias=True), "tensor model.layers.0.self_attn.k_proj.bias is missing",
    ),
    "MLP bias without its tensors": (configured(mlp_bias=True), "tensor model.layers.0.mlp.down_proj.bias is missing"),
    "bias is a text": (configured(attention_bias="yes"), "attention_bias = 'yes' is not true or false"),
    "activation": (configured(hidden_act="relu"), "hidden_act = 'relu' is not supported"),
    "activation is a list": (configured(hidden_act=["silu"]), "hidden_act = ['silu'] is not supported"),
    "window of a Llama": (configured(sliding_window=8), "field sliding_window = 8 is not understood"),
    "size missing": (configured(hidden_size=..., vocab_size=...), "vocab_size, hidden_size missing"),
    "size is a text": (configured(hidden_size="32", head_dim=...), "hidden_size = '32' is not a positive integer"),
    "layers are a text": (configured(num_hidden_layers="2"), "num_hidden_layers = '2' is not a positive integer"),
    "negative size": (configured(intermediate_size=-64), "intermediate_size = -64 is not a positive integer"),
    "size is null": (configured(vocab_size=None), "vocab_size missing"),
    "no heads": (configured(num_attention_heads=0), "num_attention_heads = 0 is not a positive integer"),
    "heads do not group": (configured(num_key_value_heads=3), "num_heads 4 is not a multiple of num_kv_heads 3"),
    "head dimension is odd": (configured(head_dim=7), "7 rotary dimensions cannot be turned in pairs"),
    "theta is a text": (configured(rope_theta="much"), "rope_theta = 'much' is not a positive number"),
    "rope is a text": (configured(rope_scaling="linear"), "rope parameters 'linear' are not an object"),
    "eps is a text": (configured(rms_norm_eps="1e-5"), "rms_norm_eps = '1e-5' is not a positive number"),
    "tied is a text": (configured(tie_word_embeddings="no"), "tie_word_embeddings = 'no' is not true or false"),
    "window of nothing": (configured(model_type="mistral", sliding_window=0), "sliding_window = 0 is not a positive"),
    "truncated weights": (truncated, "model.safetensors: damaged or not safetensors"),
    "garbage for weights": (text("model.safetensors", b"\x00\x01garbage" * 40), "model.safetensors: damaged or not"),
    "empty weights": (text("model.safetensors", b""), "model.safetensors: damaged or not safetensors"),
    "pickle only": (renamed("model.safetensors", "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "old pickle only": (renamed("model.safetensors", "consolidated.00.pth"), "consolidated.00.pth is a pickle"),
    "weights for an index": (
        renamed("model.safetensors", "model.safetensors.index.json"), "model.safetensors.index.json: not valid JSON",
    ),
    "shard without its index": (
        renamed("model.safetensors", "model-00001-of-00002.safetensors"), "but not model.safetensors.index.json",
    ),
    "GGUF only": (renamed("model.safetensors", "model.Q4_K_M.gguf"), "model.Q4_K_M.gguf is GGUF, which is not read"),
    "weights are a folder": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "holds no model.safetensors",
    ),
    "dangling link": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").symlink_to("absent"),
        ),
        "holds no model.safetensors",
    ),
    "trailing bytes": (
        lambda folder: text("model.safetensors", (folder / "model.safetensors").read_bytes() + b"\0")(folder),
        "1 bytes follow the last tensor",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    "missing tensor": (reweighed(lambda tensors: tensors.pop(Q)), f"tensor {Q} is missing"),
    "extra tensor": (
        reweighed(lambda tensors: tensors.update({Q.replace("weight", "bias"): np.zeros(32, np.float32)})),
        f"tensor {Q.replace('weight', 'bias')} is left over",
    ),
    "extra layer": (configured(num_hidden_layers=1), "tensor model.layers.1.input_layernorm.weight is left over"),
    "layer missing": (configured(num_hidden_layers=3), "tensor model.layers.2.input_layernorm.weight is missing"),
    "head is tied in the weights alone": (
        reweighed(lambda tensors: tensors.pop("lm_head.weight")), "tensor lm_head.weight is missing",
    ),
    "wrong shape": (
        reweighed(lambda tensors: tensors.update({Q: np.zeros((32, 31), np.float32)})),
        f"tensor {Q} has shape (32, 31), not (32, 32)",
    ),
    "transposed embedding": (
        reweighed(lambda tensors: tensors.update({"lm_head.weight": np.zeros((32, 64), np.float32)})),
        "tensor lm_head.weight has shape (32, 64), not (64, 32)",
    ),
    "NaN": (filled(Q, np.nan), f"tensor {Q} holds NaN or infinity"),
    "infinity": (filled("model.norm.weight", np.inf), "tensor model.norm.weight holds NaN or infinity"),
    "integers": (
        reweighed(lambda tensors: tensors.update({Q: np.ones((32, 32), np.int8)})), f"tensor {Q} has type I8, not F32",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "damaged tokenizer": (text("tokenizer.json", b"{}"), "its tokenizer cannot be loaded"),
}  # fmt: skip


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the tiny folder, to be broken."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folder_is_refused_in_one_line(name, copy):
    change, expected = BROKEN[name]
    change(copy)
    message = refusal(jaxift.load, copy)
    assert str(copy) in message
    assert expected in message


def test_all_problems_of_a_file_are_told_at_once(copy):
    def edit(tensors):
        tensors["more"] = tensors.pop(Q)
        tensors["lm_head.weight"] = np.zeros((64, 31), np.float32)
        tensors["model.norm.weight"] = np.zeros(32, np.int8)

    reweighed(edit)(copy)
    message = refusal(jaxift.load, copy)
    for expected in (
        f"{Q} is missing",
        "more is left over",
        "lm_head.weight has shape (64, 31)",
        "norm.weight has type",
    ):
        assert expected in message


def test_all_tensors_that_are_not_finite_are_told_at_once(copy):
    filled(Q, np.nan)(copy)
    filled("lm_head.weight", np.inf)(copy)
    assert f"tensor lm_head.weight holds NaN or infinity; tensor {Q} holds NaN or infinity" in refusal(
        jaxift.load, copy
    )


def test_a_long_list_is_cut(copy):
    reweighed(lambda tensors: tensors.clear())(copy)
    assert "is missing; and 16 more; the weights" in refusal(jaxift.load, copy)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"dtype": "bfloat16", "param_dtype": "int8"}])
def test_a_type_that_is_not_computed_in_is_refused(options, tiny_folder):
    wrong = list(options.values())[-1]
    assert f"dtype {wrong!r} is not supported; use float32 or bfloat16" in refusal(jaxift.load, tiny_folder, **options)


IN_THE_SHELL = (
    "no folder",
    "config is no JSON",
    "unknown model_type",
    "truncated weights",
    "pickle only",
    "NaN",
    "no tokenizer",
    "eps beyond every float",
    "layers beyond reason",
)


@pytest.mark.parametrize("name", IN_THE_SHELL)
def test_the_command_line_refuses_it_with_exit_code_2(name, copy, capsys):
    change, expected = BROKEN[name]
    change(copy)
    assert main(["world", "check", "--model", str(copy)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxift: error: ")
    assert expected in line


def test_control_characters_of_a_file_do_not_reach_the_terminal(copy, capsys):
    reweighed(lambda tensors: tensors.update({"\x1b[2Jgone": np.zeros(2, np.float32)}))(copy)
    assert "\\x1b[2Jgone is left over" in refusal(jaxift.load, copy)
    assert main(["inspect", str(copy)]) == 2
    assert "\x1b" not in "".join(capsys.readouterr())


def test_a_link_to_itself_is_no_obstacle(copy):
    (copy / "loop.json").symlink_to("loop.json")
    assert jaxift.load(copy).config.num_layers == 2


def test_all_problems_of_a_config_are_told_at_once(copy):
    configured(attention_bias=2, logit_softcap=30.0, rms_norm_eps=-1, vocab_size=...)(copy)
    message = refusal(check_folder, copy)
    for expected in ("attention_bias = 2", "logit_softcap = 30.0", "rms_norm_eps = -1", "vocab_size missing"):
        assert expected in message


@pytest.mark.parametrize(
    ("mesh", "fields", "expected"),
    [
        ("4x1x2", {"num_key_value_heads": 1}, "num_kv_heads 1 does not divide by mesh.tensor 2"),
        ("4x1x2", {"intermediate_size": 65}, "intermediate_size 65 does not divide by mesh.tensor 2"),
        ("2x2x2", {"hidden_size": 33}, "hidden_size 33 does not divide by mesh.fsdp 2"),
    ],
)
def test_mesh_that_does_not_divide_is_refused(mesh, fields, expected, meshes, make_folder, tmp_path):
    assert expected in refusal(jaxift.load, make_folder(tmp_path / "model", **fields), meshes[mesh])


@pytest.mark.parametrize("fields", [{"logit_softcap": None}, {"attention_bias": False}, {"sliding_window": 0}])
def test_field_that_is_switched_off_is_no_obstacle(fields, copy):
    configured(**fields)(copy)
    assert check_folder(copy).num_layers == 2


def test_derived_buffers_and_a_tied_head_written_twice_are_no_obstacle(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model", tie_word_embeddings=True)

    def edit(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    reweighed(edit)(folder)
    assert jaxift.load(folder).decoder.head is None


def test_checking_a_folder_does_not_read_its_weights(copy):
    truncated(copy)
    assert check_folder(copy).hidden_size == 32


def test_real_configs_are_read():
    llama = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
    }  # fmt: skip
    mistral = {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    first, second = decoder_config(llama, "llama"), decoder_config(mistral, "mistral")
    [first_span], [second_span] = first.pattern, second.pattern
    assert (first.num_kv_heads, first.head_dim, first_span.rope.theta, first_span.window) == (32, 128, 10000.0, None)
    assert (second.num_kv_heads, second.head_dim, second_span.window, second.max_positions) == (8, 128, 4096, 32768)
