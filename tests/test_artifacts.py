import json
from pathlib import Path

import pytest
from etils import epath

from jaxift.artifacts import STUDY_FILE, RunDirectory, digest
from jaxift.errors import UserError


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(str(tmp_path / "run"))


def finish(run: RunDirectory, text: str = "result", key: str = "k") -> None:
    run.write_text("part/file.txt", text)
    run.finish("part/unit", key, ["part/file.txt"], items=3)


def test_a_unit_is_done_only_with_its_manifest_its_files_and_the_same_key(run):
    run.write_text("part/file.txt", "half written")
    assert run.state("part/unit", "k") == "missing"
    finish(run)
    assert run.state("part/unit", "k") == "done"
    assert run.state("part/unit", "other inputs") == "stale"
    (run.root / "part/file.txt").unlink()
    assert run.state("part/unit", "k") == "stale"


def test_a_damaged_manifest_counts_as_missing(run):
    finish(run)
    for damaged in ('{"key": "k", "fil', "{}", "[]"):
        run.write_text("part/unit.manifest.json", damaged)
        assert run.state("part/unit", "k") == "missing"


def test_a_file_that_was_changed_makes_its_unit_stale(run):
    finish(run)
    run.write_text("part/file.txt", "tampered")
    assert run.state("part/unit", "k") == "stale"


def test_a_discarded_unit_is_missing_although_its_files_are_whole(run):
    finish(run)
    run.write_json("manifest.json", {})
    run.discard("part/unit")
    assert run.state("part/unit", "k") == "missing"
    assert not run.exists("manifest.json")


def test_outputs_tell_contents_and_inputs_apart(run):
    seen = set()
    for text, key in (("a", "k"), ("b", "k"), ("a", "l")):
        finish(run, text, key)
        seen.add(run.outputs("part/unit"))
    assert len(seen) == 3


def test_outputs_of_an_unfinished_unit_are_refused(run):
    with pytest.raises(UserError, match="part/unit is not done"):
        run.outputs("part/unit")


def test_the_same_values_give_the_same_bytes(run):
    run.write_json("a.json", {"x": 1, "y": [2.5, "é\u2028"]})
    run.write_json("b.json", {"y": [2.5, "é\u2028"], "x": 1})
    assert (run.root / "a.json").read_bytes() == (run.root / "b.json").read_bytes()
    assert run.read_json("a.json") == {"x": 1, "y": [2.5, "é\u2028"]}


def test_rows_and_lines_come_back_as_written(run):
    rows = [{"id": "a\u2028b", "probs": [0.25, 0.75], "pred": 1}, {"id": "ü", "probs": [1.0], "pred": 0}]
    run.write_rows("x/rows.parquet", rows)
    run.write_jsonl("x/rows.jsonl", rows)
    assert run.read_rows("x/rows.parquet") == rows
    assert run.read_jsonl("x/rows.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("a.json", b"{", lambda run: run.read_json("a.json")),
        ("a.jsonl", b'{"id": 1}\n{"id', lambda run: run.read_jsonl("a.jsonl")),
        ("a.parquet", b"PAR1 no", lambda run: run.read_rows("a.parquet")),
        ("b.json", None, lambda run: run.read_json("b.json")),
        ("b.parquet", None, lambda run: run.read_rows("b.parquet")),
    ],
)
def test_a_missing_or_damaged_file_is_named(run, name, content, read):
    if content is not None:
        run.path(name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read(run)


def test_an_unwritable_run_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.create(str(tmp_path / "file" / "run"))


def test_only_the_directory_of_a_started_study_is_opened(tmp_path):
    with pytest.raises(UserError, match=STUDY_FILE):
        RunDirectory.open(str(tmp_path))


def test_a_folder_may_be_an_output(run):
    run.path("part/checkpoints/3/data").write_text("x")
    run.finish("part/unit", "k", ["part/checkpoints"])
    assert json.loads((run.root / "part/unit.manifest.json").read_text())["files"] == {"part/checkpoints": "folder"}
    (run.root / "part/checkpoints").rmtree()
    assert run.state("part/unit", "k") == "stale"


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})


def test_paths_are_those_of_a_filesystem_layer_that_knows_object_stores(run):
    assert isinstance(run.root, epath.Path)


def test_a_process_that_is_not_the_one_that_writes_changes_nothing(run):
    finish(run)
    run.write_json("manifest.json", {})
    before = {path: path.read_bytes() for path in Path(run.root).rglob("*") if path.is_file()}
    other = RunDirectory(run.root, writes=False)
    other.write_text("part/file.txt", "another")
    other.write_rows("part/rows.parquet", [{"a": 1}])
    other.finish("part/unit", "another key", ["part/file.txt"])
    other.discard("part/unit")
    other.remove("part")
    assert {path: path.read_bytes() for path in Path(run.root).rglob("*") if path.is_file()} == before
    assert other.state("part/unit", "k") == "done"
