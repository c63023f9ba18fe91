"""Safetensors headers: read as the format's own library reads them, and refused where anything is off."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxift.errors import UserError
from jaxift.models.files.safetensors_file import FLOATS, read_header
from jaxift.models.files.storage import LocalStorage, read

FILE = "some.safetensors"


def headed(folder, header, data=b""):
    """Writes a file of these parts; a header that is no bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return LocalStorage(folder, str(folder))


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_tensors_are_those_that_the_formats_library_wrote(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "half": rng.normal(size=(7,)).astype(np.float16),
        "brain": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=(1, 1)),
        "counts": np.arange(6),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.0, np.float32),
    }
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    storage = LocalStorage(tmp_path, str(tmp_path))
    found = read_header(storage, FILE)
    assert found.keys() == tensors.keys()
    for name, value in load_file(tmp_path / FILE).items():
        assert found[name].shape == value.shape
        content = read(storage, FILE, found[name].start, found[name].end)
        assert content == value.tobytes()
        if found[name].dtype in FLOATS:
            assert FLOATS[found[name].dtype] == value.dtype
        else:
            assert name == "counts"


BROKEN = {
    "nothing": (b"", "0 bytes are too few"),
    "too short for a length": (b"\0" * 7, "7 bytes are too few"),
    "length beyond the file": ((1 << 40).to_bytes(8, "little") + b"{}", "does not fit into 10"),
    "largest length": (b"\xff" * 8 + b"{}", "does not fit into 10"),
}
HEADERS = {
    "no JSON": (b"{", "is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "is not JSON"),
    "deeply nested": (b"[" * 100_000, "is not JSON"),
    "a list": ([], "is not a JSON object"),
    "metadata is a list": ({"__metadata__": []}, "__metadata__ is not"),
    "name twice": (b'{"a": {}, "a": {}}', "a stands twice"),
    "entry is a number": ({"a": 1}, "tensor a is not described"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "tensor a is not described"),
    "a field too many": ({"a": {**entry(), "stride": 1}}, "tensor a is not described"),
    "unknown type": ({"a": entry("F33")}, "tensor a has unknown type 'F33'"),
    "type is a list": ({"a": entry(["F32"])}, "tensor a has unknown type"),
    "negative size": ({"a": entry(shape=(-2,))}, "tensor a has shape [-2]"),
    "size is a truth": ({"a": entry(shape=(True, 2))}, "tensor a has shape [True, 2]"),
    "size is a fraction": ({"a": entry(shape=(2.0,))}, "tensor a has shape [2.0]"),
    "shape is a number": ({"a": {**entry(), "shape": 2}}, "tensor a has shape 2"),
    "one offset": ({"a": entry(offsets=(8,))}, "tensor a has data_offsets [8]"),
    "offsets turned round": ({"a": entry(offsets=(8, 0))}, "tensor a has data_offsets [8, 0]"),
    "a size beyond every float": ({"a": entry(shape=(10**400,))}, "tensor a of F32"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, "tensor a has data_offsets [-8, 0]"),
    "too few bytes": ({"a": entry(shape=(3,))}, "tensor a of F32 [3] has 8 bytes, not 12"),
    "hole at the start": ({"a": entry(offsets=(4, 12))}, "tensor a begins at byte"),
    "hole in the middle": ({"a": entry(), "b": entry(offsets=(12, 20))}, "tensor b begins at byte"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, "tensor b begins at byte"),
    "one place for two": ({"a": entry(), "b": entry()}, "tensor b begins at byte"),
    "truncated": ({"a": entry(), "b": entry(offsets=(8, 16)), "c": entry(offsets=(16, 24))}, "it is truncated"),
    "trailing bytes": ({"a": entry()}, "12 bytes follow the last tensor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused(name, tmp_path):
    content, expected = BROKEN[name]
    (tmp_path / FILE).write_bytes(content)
    assert expected in refusal(LocalStorage(tmp_path, str(tmp_path)))


@pytest.mark.parametrize("name", HEADERS)
def test_broken_header_is_refused(name, tmp_path):
    header, expected = HEADERS[name]
    assert expected in refusal(headed(tmp_path, header, b"\0" * 20))


def refusal(storage):
    with pytest.raises(UserError) as caught:
        read_header(storage, FILE)
    message = str(caught.value)
    assert message.startswith(f"{storage.root / FILE}: damaged or not safetensors (")
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound file of two tensors, to be damaged; its folder and content."""
    folder = tmp_path_factory.mktemp("sound")
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.float16)}, folder / FILE)
    return folder, (folder / FILE).read_bytes()


@given(data=st.data())
def test_whatever_is_cut_off_is_noticed(sound, data):
    folder, content = sound
    (folder / FILE).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refusal(LocalStorage(folder, str(folder)))


@given(data=st.data())
def test_no_changed_byte_leads_out_of_the_file(sound, data):
    folder, content = sound
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / FILE).write_bytes(changed)
    try:
        found = read_header(LocalStorage(folder, str(folder)), FILE)
    except UserError:
        return
    assert sum(tensor.end - tensor.start for tensor in found.values()) == 34
    assert all(8 < tensor.start <= tensor.end <= len(content) for tensor in found.values())


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    storage = headed(tmp_path, {"a": entry()}, b"\0" * 8)
    tensor = read_header(storage, FILE)["a"]
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(UserError, match="ends at byte"):
        read(storage, FILE, tensor.start, tensor.end)
