"""Orbax folders: there and back without a changed bit, restored onto any mesh, whole or refused."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_export import FAMILIES, assert_same_bits, tensors

import jaxift
from jaxift.errors import UserError
from jaxift.models import convert as convert_module
from jaxift.models.convert import convert
from jaxift.models.export import hf_tensors
from jaxift.models.files.orbax_folder import read_manifest
from jaxift.models.weights import check_folder


@pytest.fixture(scope="module")
def odd_folder(make_folder, tmp_path_factory):
    """A bfloat16 model whose vocabulary divides over no mesh, with local and remainder layers."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    return make_folder(folder, dtype="bfloat16", vocab_size=65, **FAMILIES["gemma3 with remainder"])


@pytest.fixture(scope="module")
def odd_orbax(odd_folder, tmp_path_factory):
    """The same as an orbax folder; tests that break it copy it."""
    return convert(odd_folder, tmp_path_factory.mktemp("orbax") / "model")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", "float32"),
        ("llama", "bfloat16"),
        ("llama", "float16"),
        ("gemma3 with remainder", "float32"),
        ("phi3, fused", "bfloat16"),
        ("gpt_neox, fused", "bfloat16"),
    ],
)
def test_there_and_back_keeps_every_bit(make_folder, tmp_path, name, dtype):
    source = make_folder(tmp_path / "source", dtype=dtype, vocab_size=65, **FAMILIES[name])
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    orbax = convert(source, tmp_path / "orbax")
    again = convert(orbax, tmp_path / "again")
    assert_same_bits(tensors(again), tensors(source))
    assert {path.name for path in again.iterdir()} == {path.name for path in source.iterdir()}
    assert json.loads((again / "config.json").read_text())["dtype"] == dtype
    assert {str(found) for _, found in read_manifest(orbax).arrays.values()} == {dtype}
    assert not list(orbax.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("mesh", "dtype"), [("1x1x1", "bfloat16"), ("1x1x2", "float32"), ("8x1x1", "float32"), ("2x2x2", "bfloat16")]
)
def test_restored_onto_any_mesh_it_is_the_same_model(odd_folder, odd_orbax, meshes, mesh, dtype):
    expected, found = (jaxift.load(folder, meshes[mesh], dtype) for folder in (odd_folder, odd_orbax))
    assert found.config == expected.config
    assert_same_bits(hf_tensors(found.decoder), hf_tensors(expected.decoder))
    one, other = (each.decoder.embedding.get_value() for each in (expected, found))
    assert other.sharding == one.sharding
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))  # with the padding


def test_the_dtype_can_be_changed_on_the_way(tiny_folder, tmp_path):
    narrow = convert(convert(tiny_folder, tmp_path / "orbax", "bfloat16"), tmp_path / "narrow")
    expected = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors(tiny_folder).items()}
    assert_same_bits(tensors(narrow), expected)
    wide = convert(tmp_path / "orbax", tmp_path / "wide", "float32")
    assert_same_bits(tensors(wide), {name: value.astype(np.float32) for name, value in expected.items()})


def test_mixed_types_become_float32_and_lose_nothing(make_folder, tmp_path):
    source = make_folder(tmp_path / "source", dtype="bfloat16")
    mixed = load_file(source / "model.safetensors")
    for name in mixed:
        if "norm" in name:
            mixed[name] = mixed[name].astype(np.float32) + np.float32(1e-6)
    save_file(mixed, source / "model.safetensors")
    again = convert(convert(source, tmp_path / "orbax"), tmp_path / "again")
    assert_same_bits(tensors(again), {name: value.astype(np.float32) for name, value in mixed.items()})


def test_scores_of_an_orbax_folder_are_those_of_its_source(tiny_folder, tiny_model, tmp_path):
    orbax = convert(tiny_folder, tmp_path / "orbax")
    assert check_folder(orbax) == tiny_model.config
    model, request = jaxift.load(orbax), jaxift.Request("A B", (" 1", " 2"))
    one, other = (jaxift.score(each, [request])[0].logprobs for each in (model, tiny_model))
    np.testing.assert_array_equal(one, other)


def gone(*names):
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


def filled(content):
    """Overwrites every file that may hold data."""

    def change(folder):
        found = [path for path in (folder / "orbax").rglob("d/*") if path.is_file()]
        assert found
        for path in found:
            path.write_bytes(content(path.read_bytes()))

    return change


def size(folder):
    return (folder / "orbax" / "_METADATA").stat().st_size


def configured(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (gone("orbax/_METADATA"), r"orbax: file _METADATA is missing; convert the model again"),
        (gone("orbax/manifest.ocdbt"), r"orbax: file manifest\.ocdbt is missing"),
        (filled(lambda data: data[: len(data) // 2]), r"orbax: file \S*d/\S+ has \d+ bytes, not \d+"),
        (filled(lambda data: b""), r"orbax: file \S*d/\S+ has 0 bytes, not \d+"),
        (lambda folder: shutil.rmtree(folder / "orbax" / "d"), r"orbax: file d/\S+ is missing"),
        (lambda folder: (shutil.rmtree(folder / "orbax"), (folder / "orbax").mkdir()), r"; and \d+ more; convert"),
        (gone("orbax.json"), r"orbax\.json: missing"),
        (lambda folder: (folder / "orbax.json").write_text("{"), r"orbax\.json: damaged"),
        (lambda folder: (folder / "orbax.json").write_text('{"arrays": []}'), r"orbax\.json: damaged"),
        (lambda folder: (folder / "orbax" / "_METADATA").write_bytes(b"?" * size(folder)), r"orbax: damaged \("),
        (gone("config.json"), r"config\.json: missing"),
        (gone("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer.json"),
        (configured(vocab_size=66), r"parameter embedding has shape \(65, 32\), not \(66, 32\)"),
        (configured(num_hidden_layers=7), r"parameter rest\.1\.\S+ is left over.*convert the model again"),
        (configured(tie_word_embeddings=False), "parameter head is missing"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(odd_orbax, tmp_path, broken, named):
    folder = tmp_path / "broken"
    shutil.copytree(odd_orbax, folder)
    broken(folder)
    with pytest.raises(UserError, match=named) as caught:
        jaxift.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(make_folder, tmp_path):
    from flax import nnx

    model = jaxift.load(make_folder(tmp_path / "source"))
    state = nnx.state(model.decoder)
    q = state["layers"][0]["q"]
    state["layers"][0]["q"] = q.replace(q.get_value() * np.nan)
    (tmp_path / "out").mkdir()
    convert_module._write(model.with_state(state).decoder, model.folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"orbax: parameter layers\.0\.q holds NaN or infinity"):
        jaxift.load(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_beyond_the_asked_type_are_refused(make_folder, tmp_path, dtype):
    source = make_folder(tmp_path / "source", dtype=dtype)
    found = load_file(source / "model.safetensors")
    found["model.norm.weight"][0] = 1e6
    save_file(found, source / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight holds NaN or infinity"):
        convert(source, tmp_path / "out", "float16")
    with pytest.raises(UserError, match=r"parameter final_norm.scale holds NaN or infinity"):
        convert(convert(source, tmp_path / "orbax"), tmp_path / "again", "float16")


@pytest.mark.parametrize("to_orbax", [True, False])
def test_an_interrupted_conversion_cannot_be_loaded(tiny_folder, tmp_path, monkeypatch, to_orbax):
    source = tiny_folder if to_orbax else convert(tiny_folder, tmp_path / "orbax")

    def full(*_):
        raise OSError("No space left on device")

    patched = (convert_module, "small_files") if to_orbax else ("jaxift.models.export._assembled",)
    monkeypatch.setattr(*patched, full)
    with pytest.raises(UserError, match=r"cannot be written .No space left"):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"config.json: missing"):
        jaxift.load(tmp_path / "out")


def test_targets_and_types_that_make_no_sense_are_refused(tiny_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="full: is not empty"):
        convert(tiny_folder, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="dtype 'int8' is not supported"):
        convert(tiny_folder, tmp_path / "out", "int8")
    with pytest.raises(UserError, match="cannot be written"):
        convert(tiny_folder, "/proc/nowhere")
    with pytest.raises(UserError, match="no such model folder"):
        convert(tmp_path / "absent", tmp_path / "out")


def test_float16_weights_can_be_computed_with(make_folder, tmp_path):
    source = make_folder(tmp_path / "source", dtype="float16")
    model = jaxift.load(convert(source, tmp_path / "orbax"))
    assert model.decoder.embedding.get_value().dtype == jnp.float32
    wide = {name: value.astype(np.float32) for name, value in tensors(source).items()}
    assert_same_bits(hf_tensors(model.decoder), wide)
