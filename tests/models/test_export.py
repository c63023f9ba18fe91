"""Hugging Face folders that we write: bit for bit what was loaded, whole or not loadable, and right for torch."""

import json
import math
import os

import numpy as np
import pytest
from launcher import run_processes
from safetensors.numpy import load_file

import jaxift
from jaxift.errors import UserError
from jaxift.models import export as export_module
from jaxift.models.export import hf_tensors, host_tensors
from jaxift.models.files.safetensors_writer import HostTensor, plan_files, write_tensors

# every family, with the parameters that only some of them have: biases, fused tensors, remainder layers, norms after
FAMILIES = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 16},
    "qwen2 with late windows": {
        "model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3"},
    "gemma": {"model_type": "gemma", "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "num_hidden_layers": 3},
    "gemma3 with remainder": {"model_type": "gemma3_text", "num_hidden_layers": 8, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "phi3, fused": {"model_type": "phi3"},
    "gpt_neox, fused": {"model_type": "gpt_neox", "num_key_value_heads": 4, "hidden_act": "gelu"},
}  # fmt: skip


def tensors(folder):
    """All tensors of a folder, through its index where it has one."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    found = {}
    for name in files:
        found |= load_file(folder / name)
    return found


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_round_trip_keeps_every_bit(make_folder, tmp_path, fields, dtype):
    source = make_folder(tmp_path / "source", dtype=dtype, **fields)
    model = jaxift.load(source, dtype=dtype)
    single = jaxift.export(model, tmp_path / "single")
    sharded = jaxift.export(model, tmp_path / "sharded", max_shard_bytes=9000)
    assert_same_bits(tensors(single), tensors(source))
    assert_same_bits(tensors(sharded), tensors(source))
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    config = json.loads((sharded / "config.json").read_text())
    assert config["dtype"] == dtype
    assert "torch_dtype" not in config
    assert {name: config[name] for name in fields} == fields
    assert_same_bits(hf_tensors(jaxift.load(sharded, dtype=dtype).decoder), tensors(source))


@pytest.mark.parametrize("name", ["llama", "gemma3 with remainder", "phi3, fused", "gpt_neox, fused"])
def test_export_from_eight_devices_equals_that_from_one(make_folder, meshes, tmp_path, name):
    # a vocabulary of 65 does not divide: its padding must stay behind
    source = make_folder(tmp_path / "source", vocab_size=65, **FAMILIES[name])
    model = jaxift.load(source, meshes["2x2x2"])
    assert model.config.vocab_padding == 1
    assert_same_bits(tensors(jaxift.export(model, tmp_path / "out", max_shard_bytes=9000)), tensors(source))


def test_shards_hold_at_most_what_is_asked_and_the_index_tells_where(tiny_model, tmp_path):
    limit = 20_000
    folder = jaxift.export(tiny_model, tmp_path / "out", max_shard_bytes=limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert {name: file for file, found in held.items() for name in found} == index["weight_map"]
    sizes = [sum(value.nbytes for value in found.values()) for found in held.values()]
    assert max(sizes) <= limit
    assert sum(sizes) == index["metadata"]["total_size"]
    assert sorted(held) == [f"model-{number:05d}-of-{len(held):05d}.safetensors" for number in range(1, len(held) + 1)]


def test_layers_are_written_in_their_order(make_folder, tmp_path):
    model = jaxift.load(make_folder(tmp_path / "source", num_hidden_layers=12))
    layers = [int(each.name.split(".")[2]) for each in host_tensors(model.decoder) if ".layers." in each.name]
    assert layers == sorted(layers)
    assert max(layers) == 11


def test_a_tensor_larger_than_a_shard_has_a_file_to_itself():
    sizes = (3, 9, 1, 1)
    found = plan_files([HostTensor(str(n), (n,), np.dtype(np.int8), lambda: None) for n in sizes], 4)
    assert [[each.size for each in shard] for shard in found.values()] == [[3], [9], [1, 1]]


def test_mixed_dtypes_are_aligned(tmp_path):
    values = {"a": np.arange(3, dtype=np.float16), "b": np.arange(2, dtype=np.float32)}
    write_tensors(
        tmp_path / "x.safetensors",
        [HostTensor(name, value.shape, value.dtype, lambda value=value: value) for name, value in values.items()],
    )
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header["b"]["data_offsets"] == [0, 8]
    assert length % 8 == 0
    assert_same_bits(load_file(tmp_path / "x.safetensors"), values)


def test_an_export_over_an_earlier_one_leaves_nothing_of_it(make_folder, tiny_folder, tiny_model, tmp_path):
    other = make_folder(tmp_path / "other", num_hidden_layers=5, seed=3)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    folder = jaxift.export(jaxift.load(other), tmp_path / "out", max_shard_bytes=9000)
    (folder / "model-00001-of-00002.safetensors.partial").write_bytes(b"of a killed run")
    (folder / "README.md").write_text("mine")
    jaxift.export(tiny_model, folder)
    expected = {path.name for path in tiny_folder.iterdir()} | {"README.md"}
    assert {path.name for path in folder.iterdir()} == expected
    assert_same_bits(tensors(folder), tensors(tiny_folder))
    jaxift.export(tiny_model, folder, max_shard_bytes=20_000)
    assert not (folder / "model.safetensors").exists()
    assert_same_bits(tensors(folder), tensors(tiny_folder))


def test_a_model_can_be_exported_into_its_own_folder(make_folder, tmp_path):
    source = make_folder(tmp_path / "source")
    expected, model = tensors(source), jaxift.load(source)
    assert_same_bits(tensors(jaxift.export(model, source, max_shard_bytes=20_000)), expected)
    assert jaxift.load(source).tokenizer.encode("A") == model.tokenizer.encode("A")


@pytest.mark.parametrize("survives", [0, 1, 20])
@pytest.mark.parametrize("over_an_earlier_one", [False, True])
def test_interrupted_export_leaves_no_half_model(
    monkeypatch, make_folder, tiny_model, tmp_path, survives, over_an_earlier_one
):
    folder = tmp_path / "out"
    earlier = make_folder(tmp_path / "earlier", seed=9)
    if over_an_earlier_one:
        jaxift.export(jaxift.load(earlier), folder)
    assembled, count = export_module._assembled, iter(range(100))

    def failing(pieces):
        if next(count) >= survives:
            raise OSError("No space left on device")
        return assembled(pieces)

    monkeypatch.setattr(export_module, "_assembled", failing)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        jaxift.export(tiny_model, folder, max_shard_bytes=20_000)
    assert not list(folder.glob("*.partial"))
    if over_an_earlier_one:
        assert_same_bits(tensors(folder), tensors(earlier))
    else:
        with pytest.raises(UserError, match=r"config.json: missing"):
            jaxift.load(folder)


@pytest.mark.parametrize("step", range(8))
def test_export_that_dies_while_files_change_places_is_whole_or_refused(monkeypatch, tiny_model, tmp_path, step):
    folder = jaxift.export(tiny_model, tmp_path / "out")
    replace, count = os.replace, iter(range(100))

    class Killed(BaseException):
        pass

    def dying(old, new):
        if next(count) == step:
            raise Killed
        replace(old, new)

    monkeypatch.setattr(os, "replace", dying)
    try:
        jaxift.export(tiny_model, folder, max_shard_bytes=30_000)
    except Killed:
        with pytest.raises(UserError):
            jaxift.load(folder)
    else:
        assert step >= 6
        assert_same_bits(tensors(folder), hf_tensors(tiny_model.decoder))


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda out: out.write_text(""), "is a file"),
        (lambda out: (out / "orbax").mkdir(parents=True), "holds orbax"),
        (lambda out: (out.mkdir(), (out / "pytorch_model.bin").write_text("")), "holds pytorch_model.bin"),
        (lambda out: (out.mkdir(), (out / "adapter_config.json").write_text("")), "holds adapter_config.json"),
        (lambda out: (out.mkdir(), (out / "consolidated.safetensors").write_text("")), "holds consolidated.safetens"),
    ],
)
def test_a_folder_with_something_else_is_refused_and_left_alone(tiny_model, tmp_path, made, named):
    out = tmp_path / "out"
    made(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=named):
        jaxift.export(tiny_model, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_sizes_and_places_that_make_no_sense_are_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="max_shard_bytes 0"):
        jaxift.export(tiny_model, tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(UserError, match="cannot be written"):
        jaxift.export(tiny_model, "/proc/nowhere")


TORCH = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def torch_case(family):
    """Fields of a tiny torch model of a family."""
    text = {name: value for name, value in TORCH.items() if family != "gpt_neox" or name != "num_key_value_heads"}
    if family.startswith(("gemma", "qwen3")):
        text["head_dim"] = 8
    if family != "gemma3":
        return text
    nested = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4}
    return {**nested, "image_token_index": 3, "boi_token_index": 1, "eoi_token_index": 2}


@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "olmo2", "phi3", "gpt_neox"],
)
def test_transformers_loads_an_export_as_what_it_was(make_torch, torch_logits, tmp_path, family):
    import transformers

    model = make_torch(tmp_path / "source", family, **torch_case(family))
    folder = jaxift.export(jaxift.load(tmp_path / "source"), tmp_path / "out", max_shard_bytes=30_000)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = np.random.default_rng(0).integers(4, 64, (2, 16))
    np.testing.assert_array_equal(torch_logits(again.eval(), tokens), torch_logits(model, tokens))
    if family == "gemma3":
        assert again.config.model_type == "gemma3_text"


# arguments: model folder, where the result goes
TWO = """
import jaxift
source, out = sys.argv[1:]
model = jaxift.load(source, jaxift.make_mesh(2, 2, 2))
jaxift.export(model, out + "/hf", max_shard_bytes=9000)
from jaxift.models.convert import convert
convert(source, out + "/orbax")
"""


@pytest.mark.slow
def test_two_processes_write_what_one_would(make_folder, tmp_path):
    source = make_folder(tmp_path / "source", vocab_size=65, **FAMILIES["gpt_neox, fused"])
    run_processes(TWO, source, tmp_path, devices=4, timeout=300)
    assert_same_bits(tensors(tmp_path / "hf"), tensors(source))
    assert_same_bits(hf_tensors(jaxift.load(tmp_path / "orbax").decoder), tensors(source))


def test_one_tensor_at_a_time_is_on_the_host(make_folder, meshes, tmp_path):
    model = jaxift.load(make_folder(tmp_path / "source", num_hidden_layers=6), meshes["2x2x2"])
    planned = host_tensors(model.decoder)
    stack = 6 * 64 * 32
    assert max(math.prod(each.shape) for each in planned if ".layers." in each.name) < stack
    for each in planned:
        found = each.read()
        assert found.base is None  # its own memory, which goes with it
        assert (found.shape, found.dtype) == (each.shape, each.dtype)
