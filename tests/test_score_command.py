"""`jaxift score`: its rows are what the function gives, a stopped run goes on, and nothing is mixed or lost unasked."""

import functools
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from launcher import run_processes

import jaxift
from jaxift import score_command
from jaxift.cli import main
from jaxift.scoring import engine
from jaxift.scoring.packing import Layout
from jaxift.scoring.store import ScoreStore

ROOT = Path(__file__).resolve().parents[1]
COUNT = 200
KILLS = int(os.environ.get("JAXIFT_KILLS", "3"))
PART_STEPS = max(12 // KILLS, 1)  # two parts more for every kill, as far as there are steps
COLUMNS = ["id", "option", "logprob", "num_tokens", "num_bytes", "num_chars", "is_greedy"]


def rows(count, seed=0):
    """Requests of several lengths, some of which share their beginning; options of one to four tokens."""
    rng = random.Random(seed)
    shared = " ".join(f"w{rng.randrange(45)}" for _ in range(12))
    made = []
    for number in range(count):
        own = " ".join(f"w{rng.randrange(45)}" for _ in range(1 + number % 17))
        options = [" " + " ".join(rng.choices("ABCDE", k=1 + rng.randrange(4))) for _ in range(1 + number % 4)]
        made.append({"id": f"q{number}", "context": f"{shared} {own}" if number % 3 else own, "options": options})
    return made


@pytest.fixture
def requests(tmp_path):
    """Writes requests (default: COUNT of them) into a file and returns its path."""

    def write(made=None, name="requests.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in made or rows(COUNT)))
        return path

    return write


def command(file, out, model, *more):
    small = ("--batch-tokens", 64)
    return [str(each) for each in ("score", file, "-o", out, "--model", model, *small, *more)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Cuts a run into many parts, so that it can be stopped between them."""
    monkeypatch.setattr(engine, "Layout", functools.partial(Layout, part_steps=PART_STEPS))


def run(capsys, *arguments, code=0):
    """Runs a command; returns the lines that it printed, or its one line of error."""
    assert main(command(*arguments)) == code
    printed = capsys.readouterr()
    if not code:
        return printed.out.splitlines()
    [line] = printed.err.splitlines()
    assert line.startswith("jaxift: ")
    return line


def test_rows_are_what_the_function_gives(capsys, requests, tiny_folder, tiny_model, tmp_path):
    made = [*rows(20), {"id": "ünï", "context": "", "options": ["w1 A", "é", "w2  w3"], "gold": 2}]
    [said] = run(capsys, requests(made), tmp_path / "new" / "out.parquet", tiny_folder, "--tokens")
    table = pq.read_table(tmp_path / "new" / "out.parquet")
    assert table.column_names == [*COLUMNS, "token_logprobs"]
    found = table.to_pylist()
    expected = jaxift.score(tiny_model, [jaxift.Request(row["context"], tuple(row["options"])) for row in made])
    places = [(index, option) for index, row in enumerate(made) for option in range(len(row["options"]))]
    assert [(row["id"], row["option"]) for row in found] == [(made[index]["id"], option) for index, option in places]
    for row, (index, option) in zip(found, places, strict=True):
        text, score = made[index]["options"][option], expected[index]
        assert (row["num_bytes"], row["num_chars"]) == (len(text.encode()), len(text))
        assert (row["num_tokens"], row["is_greedy"]) == (score.num_tokens[option], score.is_greedy[option])
        assert row["logprob"] == pytest.approx(score.logprobs[option], abs=1e-5)
        assert row["logprob"] == sum(np.float64(each) for each in row["token_logprobs"])
        assert len(row["token_logprobs"]) == row["num_tokens"]
    assert f"21 requests, {len(places)} options" in said
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.parquet"]
    told = json.loads(table.schema.metadata[b"jaxift"])
    assert told["tokenizer policy"] == tiny_model.tokenizer.describe()
    assert (told["facts"]["model"], told["facts"]["--dtype"]) == (tiny_model.fingerprint, "float32")
    assert told["versions"]["jax"] == jax.__version__


def test_what_is_done_is_left_and_what_is_other_is_not_replaced_unasked(
    capsys, requests, make_folder, tiny_folder, tmp_path
):
    file, out = requests(), tmp_path / "out.parquet"
    run(capsys, file, out, tiny_folder)
    before = out.read_bytes(), out.stat().st_mtime_ns
    assert run(capsys, file, out, tiny_folder) == [f"{out}: {COUNT} requests done before"]
    other_model = make_folder(tmp_path / "model", seed=1)
    for named, arguments in {
        "another --dtype;": (file, out, tiny_folder, "--dtype", "bfloat16"),
        "another --tokens;": (file, out, tiny_folder, "--tokens"),
        "another tokenizer, --bos or --seam, token ids;": (file, out, tiny_folder, "--bos", "never"),
        "another model;": (file, out, other_model),
        "another requests, token ids;": (requests(rows(COUNT, seed=1), "other.jsonl"), out, tiny_folder),
    }.items():
        line = run(capsys, *arguments, code=2)
        assert named in line
        assert "--overwrite" in line
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    run(capsys, file, out, other_model, "--overwrite")
    assert out.read_bytes() != before[0]
    out.write_text("notes")
    assert "no file of scores" in run(capsys, file, out, tiny_folder, code=2)
    assert out.read_text() == "notes"
    run(capsys, file, out, tiny_folder, "--overwrite")
    assert out.read_bytes() == before[0]


def test_a_change_inside_of_a_weight_is_another_model(capsys, requests, make_folder, tmp_path):
    """The quick fingerprint of a model looks at both ends of its tensors alone."""
    folder = make_folder(tmp_path / "model", intermediate_size=512)
    file, out = requests(), tmp_path / "out.parquet"
    run(capsys, file, out, folder)
    weights = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].reshape(-1)[8000] += 1
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    assert "another weights;" in run(capsys, file, out, folder, code=2)


def test_the_file_of_requests_is_not_overwritten(capsys, requests, tiny_folder):
    file = requests()
    before = file.read_bytes()
    assert "is the file of requests" in run(capsys, file, file, tiny_folder, "--overwrite", code=2)
    assert file.read_bytes() == before


@pytest.fixture
def stop_after(monkeypatch):
    """Makes a run stop as if by control-C once some parts are written; returns the numbers of the parts written."""

    plain = ScoreStore.write

    def arm(count=10**6):
        written = []

        def write(self, part, answers):
            if len(written) == count:
                raise KeyboardInterrupt
            plain(self, part, answers)
            written.append(part)

        monkeypatch.setattr(ScoreStore, "write", write)
        return written

    return arm


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(capsys, requests, tiny_folder, tmp_path, stop_after):
    file, out = requests(), tmp_path / "out.parquet"
    everything = stop_after()
    run(capsys, file, tmp_path / "whole.parquet", tiny_folder, "--tokens")
    assert len(everything) >= 3
    done = []
    for count in (1, len(everything) - 2):
        now = stop_after(count)
        assert "the same command goes on" in run(capsys, file, out, tiny_folder, "--tokens", code=130)
        done += now
        assert not out.exists()
    # damaged meanwhile: written again
    damaged = tmp_path / "out.parquet.parts" / f"part-{done[0]:05d}.p0.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    rest = stop_after()
    run(capsys, file, out, tiny_folder, "--tokens")
    assert sorted(done + rest) == sorted([*everything, done[0]])
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


def test_parts_of_another_run_are_neither_mixed_nor_lost(capsys, requests, tiny_folder, tmp_path, stop_after):
    file, out = requests(), tmp_path / "out.parquet"
    stop_after()
    run(capsys, file, tmp_path / "whole.parquet", tiny_folder, "--dtype", "bfloat16")
    stop_after(2)
    run(capsys, file, out, tiny_folder, code=130)
    parts = sorted((tmp_path / "out.parquet.parts").iterdir())
    before = [path.read_bytes() for path in parts]
    stop_after()
    assert "another --dtype;" in run(capsys, file, out, tiny_folder, "--dtype", "bfloat16", code=2)
    assert "another --mesh;" in run(capsys, file, out, tiny_folder, "--mesh.data", 2, code=2)
    assert [path.read_bytes() for path in parts] == before
    run(capsys, file, out, tiny_folder, "--dtype", "bfloat16", "--overwrite")
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_shards_are_the_whole(capsys, requests, tiny_folder, tmp_path):
    file = requests(rows(10))
    run(capsys, file, tmp_path / "whole.parquet", tiny_folder)
    for number in (1, 2, 3):
        run(capsys, file, tmp_path / "shards" / "out.parquet", tiny_folder, "--shard", f"{number}/3")
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        f"out-0000{number}-of-00003.parquet" for number in (1, 2, 3)
    ]
    whole, joined = (pq.read_table(tmp_path / name).to_pydict() for name in ("whole.parquet", "shards"))
    np.testing.assert_allclose(joined.pop("logprob"), whole.pop("logprob"), atol=1e-5)
    assert joined == whole


def test_progress_and_trace(capsys, requests, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(score_command, "LINE_SECONDS", -1.0)
    told = run(capsys, requests(), tmp_path / "out.parquet", tiny_folder, "--profile", tmp_path / "trace")
    lines = [line for line in told if line.startswith("score: ")]
    assert lines
    assert lines[-1].startswith("score: 100% of ")
    assert any(path.name.endswith(".xplane.pb") for path in (tmp_path / "trace").rglob("*"))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--shard", "0/4"], "--shard 0/4: give I/N"),
        (["--shard", "5/4"], "--shard 5/4"),
        (["--shard", "2"], "--shard 2"),
        (["--shard", f"1/{COUNT + 1}"], "fewer requests than shards"),
        (["--batch-tokens", "0"], "--batch-tokens 0"),
        (["--max-positions", "16"], "request 'q1' has 17 "),
        (["--max-positions", "99"], "max_positions 99"),
        (["--mesh.data", "99"], "99"),
        (["--bos", "often"], "--bos"),
        (["--dtype", "int8"], "--dtype"),
        (["--coordinator", "host:1"], "give all three"),
        (["--processes", "2", "--process", "0"], "give all three"),
        (["--profile", "/proc/nowhere"], "--profile /proc/nowhere"),
        (["--out", "DIR"], "is a folder"),
        (["--out", "/proc/nowhere/out.parquet"], "cannot be written"),
        (["--model", "absent/model/folder"], "no such model folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_weight_is_read(
    capsys, requests, tiny_folder, tmp_path, monkeypatch, more, named
):
    monkeypatch.setattr("jaxift.models.weights.load", None)
    given = [each.replace("DIR", str(tmp_path)) for each in more]
    assert named in run(capsys, requests(), tmp_path / "out.parquet", tiny_folder, *given, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.jsonl"]


def test_wrong_requests_are_named_by_their_line(capsys, requests, tiny_folder, tmp_path):
    file = requests([*rows(2), {"id": "q0", "context": "A", "options": ["B"]}])
    assert "requests.jsonl:3: id 'q0'" in run(capsys, file, tmp_path / "out.parquet", tiny_folder, code=2)


def test_a_text_that_has_no_tokens_is_named_by_its_id_in_every_shard(capsys, requests, tiny_folder, tmp_path):
    file = requests([*rows(9), {"id": "last", "context": "A", "options": [" B", "  "]}])
    for more in ((), ("--shard", "2/2")):
        assert "requests.jsonl: request 'last': " in run(
            capsys, file, tmp_path / "out.parquet", tiny_folder, *more, code=2
        )


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed: gs:// can be opened")
@pytest.mark.parametrize("place", ["requests", "out"])
def test_an_address_that_needs_another_package_is_refused(capsys, requests, tiny_folder, tmp_path, place):
    given = {"requests": requests(), "out": tmp_path / "out.parquet", place: "gs://bucket/file"}
    assert "install jaxift[gcs]" in run(capsys, given["requests"], given["out"], tiny_folder, code=2)


# arguments: the command; a part is slow, so that a signal finds the run at work
SLOW_PARTS = """
import functools, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
from jaxift.scoring import engine
from jaxift.scoring.store import ScoreStore
plain = ScoreStore.write
def write(self, part, answers):
    time.sleep(0.5)
    plain(self, part, answers)
ScoreStore.write = write
engine.Layout = functools.partial(engine.Layout, part_steps=PART_STEPS)
from jaxift.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(capsys, requests, tiny_folder, tmp_path):
    file, out, parts = requests(), tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    run(capsys, file, tmp_path / "whole.parquet", tiny_folder)
    rng, counts = random.Random(0), [0]
    for _ in range(KILLS):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        slow = SLOW_PARTS.replace("PART_STEPS", str(PART_STEPS))
        asked = [sys.executable, "-c", slow, *command(file, out, tiny_folder)]
        process = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and len(list(parts.glob("*.parquet"))) <= counts[-1]:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.55))
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(list(parts.glob("*.parquet"))))
        assert not out.exists()
    assert counts == sorted(set(counts))  # each went on where the one before was
    run(capsys, file, out, tiny_folder)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


COMMAND = """
from jaxift.cli import main
joined = ["--coordinator", "127.0.0.1:{port}", "--processes", "{processes}", "--process", "{index}"]
sys.exit(main([*sys.argv[1:], *joined]))
"""


@pytest.mark.slow
def test_two_processes_write_what_one_would(capsys, requests, tiny_folder, tmp_path):
    file, out = requests(), tmp_path / "out.parquet"
    run(capsys, file, tmp_path / "whole.parquet", tiny_folder, "--mesh.data", 4)
    asked = command(file, out, tiny_folder, "--mesh.data", 4)
    (first, _), (second, _) = run_processes(COMMAND, *asked, join=False)
    assert f"{COUNT} requests" in first[-1]
    assert second == []
    found, whole = (pq.read_table(path).to_pydict() for path in (out, tmp_path / "whole.parquet"))
    np.testing.assert_allclose(found.pop("logprob"), whole.pop("logprob"), atol=1e-5)
    assert found == whole
    assert not (tmp_path / "out.parquet.parts").exists()
    (first, _), _ = run_processes(COMMAND, *asked, join=False)
    assert first == [f"{out}: {COUNT} requests done before"]


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(requests, tiny_folder, tmp_path):
    program = COMMAND.replace("from jaxift", "if {index}: sys.argv[2] += '.gone'\nfrom jaxift")
    asked = command(requests(), tmp_path / "out.parquet", tiny_folder, "--mesh.data", 4)
    told = run_processes(program, *asked, join=False, code=2)
    assert all("requests.jsonl.gone: cannot be read" in errors[-1] for _, errors in told)
    program = COMMAND.replace("*joined]", "*joined, '--batch-tokens', '1{index}']")
    told = run_processes(program, *asked, join=False, code=2)
    assert all("model, requests and settings: differs between processes" in errors[-1] for _, errors in told)
    program = COMMAND.replace("*joined]", "*joined, *['--overwrite'][{index}:]]")
    told = run_processes(program, *asked, join=False, code=2)
    assert all("model, requests and settings: differs between processes" in errors[-1] for _, errors in told)


@pytest.mark.slow
def test_where_one_process_cannot_write_none_goes_on(requests, tiny_folder, tmp_path):
    program = """
from jaxift.errors import UserError
from jaxift.scoring.store import ScoreStore
def refuse(*_):
    raise UserError("no room on process {index}")
if {index}:
    ScoreStore.write = refuse
"""
    out = tmp_path / "out.parquet"
    asked = command(requests(), out, tiny_folder, "--mesh.data", 4)
    told = run_processes(program + COMMAND, *asked, join=False, code=2)
    assert all("no room on process 1" in errors[-1] for _, errors in told)
    assert not out.exists()
