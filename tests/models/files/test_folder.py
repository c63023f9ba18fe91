"""Where models are found: local folders, the Hub, addresses; one file or several; what tells models apart."""

import json
import os
import shutil

import fsspec
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.numpy import load_file, save_file

from jaxift.errors import UserError
from jaxift.models.files.fingerprint import fingerprint
from jaxift.models.files.folder import model_config, open_model
from jaxift.models.files.shards import INDEX_FILE, read_tensors
from jaxift.models.weights import check_folder, load_decoder
from jaxift.parallel.mesh import make_mesh

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the tiny folder, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def sharded(copy):
    """The tiny model in two files with their index."""
    split(copy)
    return copy


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache of small files; it starts with nothing in memory:// either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield tmp_path / "cache"
    if files.exists("/models"):
        files.rm("/models", recursive=True)


def split(folder):
    """Replaces a folder's one weight file by two and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for file, part in ((FIRST, names[:9]), (SECOND, names[9:])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def upload(folder, address="memory://models/tiny"):
    files, root = fsspec.core.url_to_fs(address)
    for path in folder.iterdir():
        files.pipe_file(f"{root}/{path.name}", path.read_bytes())
    return address


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights_of(path):
    """All weights of a loaded model, by path, on the host."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    mesh = make_mesh(devices=jax.devices()[:1])
    state = nnx.state(load_decoder(path, check_folder(path), mesh, jnp.dtype(np.float32)))
    return {path: np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_several_files_give_the_weights_of_one(tiny_folder, sharded):
    assert_same(weights_of(sharded), weights_of(tiny_folder))


def test_one_file_goes_before_an_index(copy):
    (copy / INDEX_FILE).write_text("{}")
    assert weights_of(copy)


@pytest.mark.parametrize("kind", ["one file", "several files"])
def test_a_remote_folder_gives_the_weights_of_a_local_one(kind, tiny_folder, copy, cache):
    if kind == "several files":
        split(copy)
    address = upload(copy)
    assert_same(weights_of(address), weights_of(tiny_folder))
    assert fingerprint(address) == fingerprint(copy)
    # config, index and tokenizer were copied, weights were not
    copied = {path.name for path in cache.rglob("*") if path.is_file()}
    assert copied == {path.name for path in copy.iterdir() if path.suffix != ".safetensors"}


def test_a_remote_folders_small_files_are_looked_at_anew(copy):
    address = upload(copy)
    first = open_model(address)
    config = {**model_config(first), "rms_norm_eps": 1e-3}
    files, root = fsspec.core.url_to_fs(address)
    files.pipe_file(f"{root}/config.json", json.dumps(config).encode())
    files.rm(f"{root}/tokenizer_config.json")
    again = open_model(address)
    assert again.local == first.local
    assert model_config(again)["rms_norm_eps"] == 1e-3
    assert not (again.local / "tokenizer_config.json").exists()


def test_two_remote_folders_do_not_share_a_copy(copy):
    first, second = (open_model(upload(copy, f"memory://models/{name}")) for name in "ab")
    assert first.local != second.local


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://models/absent", "memory://models/absent: no such model folder"),
        ("nowhere://models/tiny", "nowhere://models/tiny: cannot be reached (Protocol not known"),
        ("file:///nonexistent/model", "no such model folder"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(address, expected):
    assert expected in refusal(check_folder, address)


def test_a_remote_file_that_breaks_off_is_refused(copy, monkeypatch):
    address = upload(copy)
    files, _ = fsspec.core.url_to_fs(address)
    whole = type(files).cat_file

    def broken(self, path, start=None, end=None, **options):
        if path.endswith(".safetensors") and start and start > 8:
            raise TimeoutError
        return whole(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(files), "cat_file", broken)
    assert "model.safetensors: cannot be read (TimeoutError); try again" in refusal(weights_of, address)


def hub(monkeypatch, folder, calls):
    """Lets the Hub's downloads give a folder; `calls` keeps what was asked for."""

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        calls.append((name, revision, allow_patterns, ignore_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.mark.parametrize(
    ("path", "name", "revision"),
    [("owner/some-model", "owner/some-model", None), ("owner/some.model@v1.0", "owner/some.model", "v1.0")],
)
def test_a_hub_model_is_downloaded_without_pickles(path, name, revision, sharded, monkeypatch):
    calls = []
    hub(monkeypatch, sharded, calls)
    model = open_model(path)
    assert model.local == sharded
    assert model.shown == path
    asked = {pattern for *_, allowed, _ in calls for pattern in allowed}
    assert asked == {"*.json", "*.txt", "*.model", "*.jinja", FIRST, SECOND}
    assert all((called, at, ignored) == (name, revision, ["*/*"]) for called, at, _, ignored in calls)


def test_checking_a_hub_model_downloads_no_weights(tiny_folder, tmp_path, monkeypatch):
    calls = []
    small = tmp_path / "small"
    small.mkdir()
    shutil.copyfile(tiny_folder / "config.json", small / "config.json")
    hub(monkeypatch, small, calls)
    assert check_folder("owner/model").hidden_size == 32
    assert not [pattern for *_, allowed, _ in calls for pattern in allowed if "safetensors" in pattern]


def test_a_hub_model_of_pickles_is_refused_with_the_way_to_convert_it(copy, monkeypatch):
    (copy / "model.safetensors").unlink()
    hub(monkeypatch, copy, [])
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, *, revision: ["pytorch_model.bin"])
    message = refusal(open_model, "owner/model")
    assert message.startswith("owner/model: pytorch_model.bin is a pickle")
    assert "safe_serialization=True" in message


def test_a_local_folder_goes_before_the_hub(tiny_folder, monkeypatch):
    calls = []
    hub(monkeypatch, "nowhere", calls)
    monkeypatch.chdir(tiny_folder.parents[0])
    (tiny_folder.parents[0] / "owner").mkdir(exist_ok=True)
    shutil.copytree(tiny_folder, "owner/model")
    assert check_folder("owner/model").hidden_size == 32
    assert calls == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            LocalEntryNotFoundError("Cannot find an appropriate cached snapshot\nTo enable"),
            "Cannot find an appropriate",
        ),
        (ConnectionError("offline mode is enabled"), "offline mode is enabled"),
        (ValueError("Repo id must be in the form"), "Repo id must be"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "check the name, or give a local folder"),
        (GatedRepoError.__new__(GatedRepoError), "access to it must be granted; ask at https://huggingface.co/owner/m"),
    ],
)
def test_a_hub_model_that_cannot_be_had_is_refused(error, expected, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal(check_folder, "owner/m")
    assert message.startswith("owner/m: ")
    assert expected in message


def test_the_hub_is_not_asked_where_that_is_switched_off():
    assert "no such folder here, and not to be had from the Hugging Face Hub" in refusal(check_folder, "owner/absent")


def test_links_into_the_hubs_cache_are_followed(tiny_folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    snapshot.mkdir()
    shutil.copytree(tiny_folder, blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert_same(weights_of(snapshot), weights_of(tiny_folder))
    (snapshot / "model.safetensors").resolve().unlink()
    assert "holds no model.safetensors" in refusal(check_folder, snapshot)


def change_value(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        change_value,
        lambda folder: (folder / "tokenizer_config.json").write_text("{}"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"),
        lambda folder: split(folder),
        lambda folder: (folder / "config.json").unlink(),
    ],
)
def test_a_changed_model_has_another_fingerprint(change, copy, tiny_folder):
    before = fingerprint(copy)
    assert before == fingerprint(tiny_folder)
    change(copy)
    assert fingerprint(copy) != before


def indexed(change):
    """Changes the index's map from tensor to file."""

    def edit(folder):
        path = folder / INDEX_FILE
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def twofold(folder):
    tensors = load_file(folder / SECOND)
    save_file({**tensors, "lm_head.weight": np.zeros((64, 32), np.float32)}, folder / SECOND)


def content(text):
    return lambda folder: (folder / INDEX_FILE).write_bytes(text)


def led(file):
    return indexed(lambda weight_map: weight_map.update({"lm_head.weight": file}))


NO_PLAIN_FILE = "which is not a safetensors file of this folder"
BROKEN = {
    "index is no JSON": (content(b"{"), "not valid JSON"),
    "index is not UTF-8": (content(b'{"\xff": 1}'), "not valid JSON"),
    "index is a list": (content(b"[]"), "has no weight_map"),
    "index without a map": (content(b'{"metadata": {}}'), "has no weight_map"),
    "map is a list": (content(b'{"weight_map": ["a"]}'), "has no weight_map"),
    "map is empty": (content(b'{"weight_map": {}}'), "has no weight_map"),
    "file is a number": (led(1), NO_PLAIN_FILE),
    "way up": (led("../model.safetensors"), NO_PLAIN_FILE),
    "absolute": (led("/etc/model.safetensors"), NO_PLAIN_FILE),
    "folder below": (led("sub/model.safetensors"), NO_PLAIN_FILE),
    "Windows' separator": (led("..\\model.safetensors"), NO_PLAIN_FILE),
    "drive": (led("C:model.safetensors"), NO_PLAIN_FILE),
    "address": (led("https://host/model.safetensors"), NO_PLAIN_FILE),
    "pickle": (led("pytorch_model.bin"), NO_PLAIN_FILE),
    "absent file": (led("model-00003.safetensors"), "model-00003.safetensors is absent"),
    "absent shard": (lambda folder: (folder / SECOND).unlink(), f"{SECOND} is absent"),
    "shard is a folder": (
        lambda folder: ((folder / SECOND).unlink(), (folder / SECOND).mkdir()),
        f"{SECOND} is absent",
    ),
    "wrong shard": (led(SECOND), f"tensor lm_head.weight is not in {SECOND}"),
    "unlisted": (indexed(lambda weight_map: weight_map.pop("lm_head.weight")), f"lm_head.weight of {FIRST} is not"),
    "twofold": (twofold, f"tensor lm_head.weight is in {FIRST} and in {SECOND}"),
    "truncated shard": (
        lambda folder: (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1]),
        f"{SECOND}: damaged or not safetensors (it is truncated",
    ),
    "no index": (lambda folder: (folder / INDEX_FILE).unlink(), f"holds {FIRST} but not {INDEX_FILE}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_index_is_refused(name, sharded):
    change, expected = BROKEN[name]
    change(sharded)
    message = refusal(lambda: read_tensors(open_model(sharded).storage))
    assert str(sharded) in message
    assert expected in message
