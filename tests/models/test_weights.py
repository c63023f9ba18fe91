"""Weights reach the mesh as they stand in the files: whatever the family, mesh, place, block size and type."""

import dataclasses
import hashlib
import itertools
import json
import math

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from launcher import run_processes
from safetensors.numpy import load_file, save_file

import jaxift
from jaxift.errors import UserError
from jaxift.models.families import Weight, weight_table
from jaxift.models.files import placing
from jaxift.models.files.conversion import convert, is_finite
from jaxift.models.files.folder import open_model
from jaxift.models.files.placing import Parameter, reading_layout
from jaxift.models.files.row_plan import plan_reads, taker
from jaxift.models.files.safetensors_file import Tensor
from jaxift.models.files.shard_buffers import empty_shards
from jaxift.models.files.shards import read_tensors
from jaxift.models.weights import check_folder, load_decoder

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
# plain; both kinds of fused tensors; a pattern with a remainder
FAMILIES = {
    "llama": {},
    "phi3": {"rope_theta": 10000.0, "original_max_position_embeddings": 64},
    "gpt_neox": {
        "num_key_value_heads": ..., "rms_norm_eps": ..., "hidden_act": "gelu", "rotary_pct": 0.25, "head_dim": ...,
        "rope_theta": ...,
    },
    "gemma3_text": {
        "num_hidden_layers": 5, "sliding_window": 8, "sliding_window_pattern": 3, "hidden_act": ...,
        "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(make_folder, tmp_path_factory):
    """A tiny model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {name: make_folder(root / name, model_type=name, **fields) for name, fields in FAMILIES.items()}


def on_host(decoder):
    return {path: np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(nnx.state(decoder))}


def in_files(folder, config):
    """The parameters as NumPy finds them in the checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    return {
        path: np.stack([weight.ours(tensors[name]) for name in weight.names])
        if weight.stacked
        else weight.ours(tensors[weight.names[0]])
        for path, weight in weight_table(config).items()
    }


def assert_same(found, expected):
    assert {tuple(path) for path in found} == {tuple(path) for path in expected}
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=str(path))


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A storage that keeps which bytes of the data were read."""

    inner: object
    read: list
    chunk_bytes: int
    workers: int = 3

    def sizes(self):
        return self.inner.sizes()

    def where(self, name):
        return self.inner.where(name)

    def fill(self, name, start, out):
        self.read.append((name, start, start + len(out)))
        self.inner.fill(name, start, out)


def recorded(folder, chunk):
    model = open_model(folder)
    return dataclasses.replace(model, storage=Recorder(model.storage, [], chunk))


@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2", "8x1x1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_file_and_each_byte_is_read_once(family, mesh, chunk, folders, meshes):
    model, config = recorded(folders[family], chunk), check_folder(folders[family])
    found = load_decoder(model, config, meshes[mesh], jnp.dtype(np.float32))
    assert_same(on_host(found), in_files(folders[family], config))
    tensors = read_tensors(open_model(folders[family]).storage).values()
    data = min(tensor.start for tensor in tensors)
    reads = sorted((start, end) for _, start, end in model.storage.read if start >= data)
    assert reads[0][0] == data
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(reads))
    assert reads[-1][1] == max(tensor.end for tensor in tensors)


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_a_remote_folder_gives_the_same_bits(mesh, folders, meshes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, config = fsspec.filesystem("memory"), check_folder(folders["phi3"])
    for path in folders["phi3"].iterdir():
        files.pipe_file(f"/weights/{path.name}", path.read_bytes())
    found = load_decoder("memory://weights", config, meshes[mesh], jnp.dtype(np.float32))
    files.rm("/weights", recursive=True)
    assert_same(on_host(found), in_files(folders["phi3"], config))


@pytest.mark.parametrize("limit", [1.0, 20_000.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_devices_with_memory_of_their_own_get_the_same_bits_batch_by_batch(family, limit, folders, meshes, monkeypatch):
    monkeypatch.setattr(placing, "_staging_bytes", lambda target: limit)
    config = check_folder(folders[family])
    found = load_decoder(folders[family], config, meshes["2x2x2"], jnp.dtype(np.float32))
    assert_same(on_host(found), in_files(folders[family], config))


def test_cpu_devices_hold_what_was_read_and_no_copy_of_it(folders, meshes, monkeypatch):
    made = []
    plain = placing.empty_shards

    def kept(*arguments):
        shards = plain(*arguments)
        made.extend(shard.data.ctypes.data for shard in shards.values())
        return shards

    monkeypatch.setattr(placing, "empty_shards", kept)
    config = check_folder(folders["llama"])
    decoder = load_decoder(folders["llama"], config, meshes["2x2x2"], jnp.dtype(np.float32))
    held = [
        shard.data.unsafe_buffer_pointer()
        for array in jax.tree.leaves(nnx.state(decoder))
        for shard in array.addressable_shards
    ]
    assert sorted(held) == sorted(made)


def test_shards_that_devices_share_survive_a_donation(folders, meshes):
    config = check_folder(folders["llama"])
    first, second = (load_decoder(folders["llama"], config, meshes["8x1x1"], jnp.dtype(np.float32)) for _ in range(2))
    with jax.set_mesh(meshes["8x1x1"]):
        doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(first.final_norm.scale[...])
    np.testing.assert_array_equal(doubled, 2 * np.asarray(second.final_norm.scale[...]))
    for shard in doubled.addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * np.asarray(second.final_norm.scale[...]))


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
def test_types_are_converted_as_numpy_converts(stored, held, make_folder, meshes, tmp_path):
    folder = make_folder(tmp_path / "model", dtype=stored)
    config = check_folder(folder)
    found = load_decoder(folder, config, meshes["2x2x2"], jnp.dtype(held))
    expected = {path: value.astype(jnp.dtype(held)) for path, value in in_files(folder, config).items()}
    assert all(value.dtype == held for value in on_host(found).values())
    assert_same(on_host(found), expected)


FLOATS = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


@pytest.mark.parametrize("target", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("source", FLOATS[:2])
def test_every_16_bit_number_is_converted_as_numpy_converts_it(source, target):
    numbers = np.arange(1 << 16, dtype=np.uint16).view(source)
    numbers = numbers[np.isfinite(numbers.astype(np.float32))]
    out = np.empty(numbers.shape, target)
    convert(numbers, out)
    np.testing.assert_array_equal(out.view(np.uint8), numbers.astype(target).view(np.uint8))


@given(bits=hnp.arrays(np.uint64, st.integers(1, 9)), kind=st.sampled_from(FLOATS))
def test_finite_is_what_numpy_calls_finite(bits, kind):
    numbers = bits.view(kind)
    assert is_finite(numbers) == bool(np.isfinite(numbers).all())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("kind", FLOATS)
def test_one_number_that_is_not_finite_is_seen(kind, value):
    numbers = np.linspace(-3, 3, 100).astype(kind)
    assert is_finite(numbers)
    numbers[41] = value
    assert not is_finite(numbers)


def test_numbers_too_large_for_the_type_they_are_held_in_are_refused(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full(32, 3.4e38, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert jaxift.load(folder, dtype="float32")
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight holds NaN or infinity"):
        jaxift.load(folder, dtype="bfloat16")


@pytest.mark.parametrize("tied", [False, True])
def test_a_padded_vocabulary_changes_no_logits(tied, make_folder, meshes, tmp_path, all_logits):
    folder = make_folder(tmp_path / "model", vocab_size=67, tie_word_embeddings=tied)
    tokens = np.random.default_rng(0).integers(0, 67, (2, 9))
    plain, padded = jaxift.load(folder), jaxift.load(folder, meshes["1x1x2"])
    assert padded.config.vocab_padding == 1
    assert not np.asarray(padded.decoder.embedding[...])[67:].any()
    expected = all_logits(plain.decoder, plain.mesh, tokens)
    found = all_logits(padded.decoder, padded.mesh, tokens)
    np.testing.assert_allclose(found[..., :67], expected, atol=1e-5)
    assert (found[..., 67:] < -1e20).all()


def test_a_shorter_length_limit_is_kept_and_a_longer_one_refused(tiny_folder):
    assert jaxift.load(tiny_folder, max_positions=16).config.max_positions == 16
    with pytest.raises(UserError, match="max_positions 65"):
        jaxift.load(tiny_folder, max_positions=65)


def test_a_multimodal_checkpoint_gives_its_text_model(folders, tmp_path):
    text = folders["gemma3_text"]
    tensors = {f"language_model.{name}": value for name, value in load_file(text / "model.safetensors").items()} | {
        "vision_tower.weight": np.ones(3, np.float32),
        "multi_modal_projector.weight": np.ones(3, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    nested = json.loads((text / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": nested}))
    config, one = check_folder(tmp_path), jax.devices()[:1]
    found = load_decoder(tmp_path, config, jaxift.make_mesh(devices=one), jnp.dtype(np.float32))
    assert_same(on_host(found), in_files(text, config))
    spoilt = "language_model.model.layers.4.mlp.up_proj.weight"
    tensors[spoilt] = np.full_like(tensors[spoilt], np.nan)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"tensor {spoilt} holds NaN"):
        load_decoder(tmp_path, config, jaxift.make_mesh(devices=one), jnp.dtype(np.float32))


def ranges_of_devices(shape, stacked, mesh, pick, view):
    """Bytes that each device reads of each layer's tensor, for a float32 parameter."""
    layers = shape[0] if stacked else 1
    size = 4 * math.prod(view)
    weight = Weight(tuple(f"t{layer}" for layer in range(layers)), stacked, (size // 4,), view, pick)
    parameter = Parameter(("p",), weight, shape, np.dtype(np.float32), mesh, jax.P())
    found = []
    for shard in empty_shards(shape, parameter.dtype, reading_layout(parameter)).values():
        for layer in range(layers):
            tensor = Tensor(weight.names[layer], "f", "F32", weight.shape, 0, size)
            share = taker(weight, layer if stacked else None, [shard])
            found += [(layer, read.start, read.end) for read in plan_reads(tensor, [share], 1 << 20)]
    return sorted(found)


@pytest.mark.parametrize("mesh", ["2x2x2", "4x1x2", "8x1x1"])
@pytest.mark.parametrize(
    ("shape", "stacked", "pick", "view"),
    [
        ((64, 6), False, (), (64, 6)),  # an embedding
        ((3, 8, 5, 7), True, (), (8, 5, 7)),  # rows divide
        ((8, 3, 5), True, (), (3, 5)),  # only layers divide
        ((5, 2, 4, 7), True, (), (2, 4, 7)),  # rows divide in part, then columns
        ((3, 32), True, (), (32,)),
        ((3, 8, 5), True, (1,), (2, 8, 5)),  # the second half of a fused tensor
        ((3, 8, 5), True, (slice(4, 12),), (16, 5)),
    ],
)
def test_processes_share_the_reading(shape, stacked, pick, view, mesh, meshes):
    read = ranges_of_devices(shape, stacked, meshes[mesh], pick, view)
    total = sum(end - start for _, start, end in read)
    wanted = 4 * math.prod(shape)
    if (shape, mesh) == ((5, 2, 4, 7), mesh):
        assert wanted <= total <= 8 * wanted  # columns do not make ranges
    else:
        assert total == wanted
        assert len(set(read)) == len(read)


def test_heads_of_a_fused_tensor_are_read_where_they_are(meshes):
    read = ranges_of_devices((8, 4, 3), False, meshes["2x2x2"], (slice(None), 1), (8, 3, 4, 3))
    assert [end - start for _, start, end in read] == [3 * 4 * 3 * 4] * 8


# arguments: the folder, and `broken` where the second process cannot read all of it
PROCESS = """
import hashlib, json
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxift.errors import UserError
from jaxift.models.files import storage
from jaxift.models.weights import check_folder, load_decoder
from jaxift.parallel.mesh import make_mesh
mesh, read, folder = make_mesh(2, 2, 2), [], sys.argv[1]
plain = storage.LocalStorage.fill
def fill(self, name, start, out):
    if len(out) > 8 and self.chunk_bytes:
        read.append(len(out))
    if len(sys.argv) > 2 and {index} == 1 and start > 50_000:
        raise UserError("the disk is gone")
    plain(self, name, start, out)
storage.LocalStorage.fill = fill
try:
    decoder = load_decoder(folder, check_folder(folder), mesh, jnp.dtype("float32"))
except UserError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))
total = hashlib.sha256()
for path, variable in sorted(nnx.to_flat_state(nnx.state(decoder)), key=lambda item: str(item[0])):
    total.update(np.asarray(whole(variable.get_value()).addressable_data(0)).tobytes())
print(json.dumps({"read": sum(read), "digest": total.hexdigest()}))
"""


def two_processes(folder, *more):
    """Loads a folder in two processes of four devices each; what each of them found."""
    return [json.loads(output[-1]) for output, _ in run_processes(PROCESS, folder, *more, devices=4, timeout=300)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_two_processes_read_half_of_the_bytes_each_and_hold_the_same(family, folders):
    first, second = two_processes(folders[family])
    assert first["digest"] == second["digest"]
    expected = in_files(folders[family], check_folder(folders[family]))
    total = hashlib.sha256()
    for path in sorted(expected, key=str):
        total.update(np.ascontiguousarray(expected[path]).tobytes())
    assert first["digest"] == total.hexdigest()
    size = (folders[family] / "model.safetensors").stat().st_size
    header = 2 * 8192  # each process reads all of the small files' headers
    for process in (first, second):
        assert 0.45 * size <= process["read"] <= 0.55 * size + header


@pytest.mark.slow
def test_what_one_process_cannot_read_all_processes_are_told(folders):
    first, second = two_processes(folders["llama"], "broken")
    assert "could not be read by every process" in first["error"]
    assert "could not be read by every process" in second["error"]


@pytest.mark.slow
def test_a_nan_that_one_process_reads_all_processes_are_told(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][60, 3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    for process in two_processes(folder):
        assert "tensor lm_head.weight holds NaN or infinity" in process["error"]
