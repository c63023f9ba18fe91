"""What `inspect` says of a model is so, and it names every reason for which loading would be refused."""

import json
import math
import shutil
from pathlib import Path

import jax
import pytest
from breaking import reweighed
from flax import nnx
from safetensors.numpy import load_file
from test_export import FAMILIES

import jaxift
from jaxift.errors import UserError
from jaxift.models.convert import convert
from jaxift.models.families import decoder_config
from jaxift.models.files.folder import ModelFolder
from jaxift.models.inspection import count_parameters, inspect_model, readable_bytes, summary

CONFIGS = Path(__file__).parent / "configs"
# from the models' cards and papers
PUBLISHED = {
    "llama-2-7b": 6_738_415_616, "llama-2-70b": 68_976_648_192, "llama-3.1-8b": 8_030_261_248,
    "mistral-7b-v0.1": 7_241_732_096, "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920,
    "gemma-2-9b": 9_241_705_984, "gemma-3-1b": 999_885_952, "olmo-2-7b": 7_298_617_344,
    "pythia-12b": 11_846_072_320, "phi-3-mini-4k": 3_821_079_552,
}  # fmt: skip


def lines(found):
    return [f"{label}: {value}" for label, value in summary(found)]


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_counts_are_those_of_the_loaded_model(make_folder, meshes, tmp_path, fields):
    folder = make_folder(tmp_path / "m", vocab_size=65, dtype="bfloat16", **fields)
    found, model = inspect_model(folder), jaxift.load(folder)
    held = [leaf.size for leaf in jax.tree.leaves(nnx.state(model.decoder))]
    assert found.parameters == sum(held)
    assert found.config == model.config
    assert found.refused == ()
    tensors = load_file(folder / "model.safetensors")
    assert found.tensors == {"BF16": len(tensors)}
    assert (found.files, found.file_bytes) == (1, (folder / "model.safetensors").stat().st_size)
    if "tied" not in fields:
        assert found.parameters == sum(math.prod(value.shape) for value in tensors.values())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items(), ids=PUBLISHED)
def test_real_models_have_the_size_that_they_are_known_for(name, parameters):
    assert count_parameters(decoder_config(json.loads((CONFIGS / f"{name}.json").read_text()), name)) == parameters


def test_no_weight_is_read(tiny_folder, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    path = folder / "model.safetensors"
    header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    # a file of a size that could not be read, its data nothing but a hole
    size = path.stat().st_size
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    assert lines(inspect_model(folder))[1:] == lines(inspect_model(tiny_folder))[1:]


def test_orbax_and_sharded_folders_are_described_alike(tiny_folder, tiny_model, tmp_path):
    plain = inspect_model(tiny_folder)
    sharded = inspect_model(jaxift.export(tiny_model, tmp_path / "hf", max_shard_bytes=20_000))
    orbax = inspect_model(convert(tiny_folder, tmp_path / "orbax"))
    assert plain.parameters == sharded.parameters == orbax.parameters
    assert plain.config == sharded.config == orbax.config
    assert sharded.files == len(list((tmp_path / "hf").glob("*.safetensors")))
    assert (orbax.layout, orbax.refused) == ("orbax", ())
    assert orbax.tensors == {"float32": len(jax.tree.leaves(nnx.state(tiny_model.decoder)))}
    assert orbax.file_bytes == sum(p.stat().st_size for p in (tmp_path / "orbax" / "orbax").rglob("*") if p.is_file())


def test_local_and_global_layers_and_memory_are_told(tmp_path):
    shutil.copyfile(CONFIGS / "gemma-3-27b.json", tmp_path / "config.json")
    told = lines(inspect_model(tmp_path))
    assert "attention: window of 1,024, 128 rotary dimensions of base 10,000: 52 of 62 layers" in told
    assert (
        "attention: everything before, 128 rotary dimensions of base 1,000,000, Linear scaling by 8: 10 of 62 layers"
    ) in told
    assert "parameters: 27,009,346,304" in told
    assert "in bfloat16: 54.02 GB" in told
    assert "training with AdamW in float32: 432.15 GB" in told


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (54.02e9, "54.02 GB")])
def test_sizes_are_readable(size, shown):
    assert readable_bytes(int(size)) == shown


def configured(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def several(folder):
    configured(num_hidden_layers=3)(folder)
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (configured(model_type="bert"), ["model_type 'bert' is not supported"]),
        (configured(num_local_experts=8), ["mixture of experts"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json: missing"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["holds no model.safetensors"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), ["too few for a header"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["holds no tokenizer.json"]),
        (
            reweighed(lambda tensors: tensors.update(extra=tensors.pop("model.norm.weight"))),
            ["tensor model.norm.weight is missing", "tensor extra is left over"],
        ),
        (
            configured(vocab_size=70),
            ["lm_head.weight has shape (64, 32), not (70, 32)", "embed_tokens.weight has shape"],
        ),
        (several, [*["is missing"] * 9, "its tokenizer cannot be loaded"]),
    ],
)
def test_every_reason_to_refuse_is_named(tiny_folder, tmp_path, broken, named):
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    broken(folder)
    found = inspect_model(folder).refused
    assert len(found) == len(named)
    assert [name for name, line in zip(named, found, strict=True) if name not in line or "\n" in line] == []
    with pytest.raises(UserError):
        jaxift.load(folder)


def test_a_broken_orbax_folder_is_told_too(tiny_folder, tmp_path):
    folder = convert(tiny_folder, tmp_path / "orbax")
    (folder / "orbax" / "_METADATA").write_bytes(b"")
    configured(num_hidden_layers=3)(folder)
    found = inspect_model(folder).refused
    assert any("parameter layers.0.q has shape (2, 4, 8, 32), not (3, 4, 8, 32)" in line for line in found)
    assert any("file _METADATA has 0 bytes" in line for line in found)


def test_lengths_for_which_rotary_scaling_is_not_supported(make_folder, tmp_path):
    folder = make_folder(tmp_path / "m", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    configured(max_position_embeddings=128, rope_scaling={
        "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64,
    })(folder)  # fmt: skip
    assert "set max_positions to at most 64" in inspect_model(folder).refused[0]
    assert inspect_model(folder, max_positions=64).refused == ()


def test_headers_of_a_hub_model_are_read_where_they_are(tiny_folder, monkeypatch):
    from jaxift.models import inspection
    from jaxift.models.files.storage import LocalStorage

    asked = []

    def opened(path, *, weights=True):
        asked.append((str(path), weights))
        small = not str(path).startswith("hf://")
        return ModelFolder(str(path), tiny_folder, LocalStorage(tiny_folder, str(path)), has_all_names=not small)

    monkeypatch.setattr(inspection, "open_model", opened)
    assert inspect_model("owner/name").refused == ()
    assert asked == [("owner/name", False), ("hf://owner/name", True)]
