"""Whole studies in several processes: what one process would find, whatever host is lost on the way."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from command_processes import ROOT, Processes, log
from launcher import run_processes
from safetensors.numpy import load_file
from test_study import questions, small

from jaxift.artifacts import RunDirectory
from jaxift.config import dump_study

__all__ = ["questions"]  # a fixture
pytestmark = pytest.mark.slow
PATIENCE = ["--host-timeout", "12"]


def study(questions, folder, name, devices, **changes):
    """A file of a study small enough for several processes on one machine, over so many devices, and its run."""
    config = small(
        questions, folder / name,
        probe={"shots": 1, "rotations": False}, build={"cap": 6, "arms": ["HAR", "INC"]},
        tune={"epochs": 3, "batch_size": 3, "checkpoint_every": 1}, mesh={"cell": 2, "data": devices // 2},
        **changes,
    )  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(dump_study(config))
    return path, Path(config.run_path)


@pytest.fixture(scope="module")
def alone(questions, tmp_path_factory):
    """The run of one process with four devices."""
    path, run = study(questions, tmp_path_factory.mktemp("alone"), "run", 4)
    with Processes("run", path, processes=1, devices=4, join=False) as one:
        assert one.codes() == [0], one.said(0)
    return run


def assert_same_study(run, expected):
    """Probabilities within 1e-4, the same answers, arms and steps."""
    ours, theirs = RunDirectory.open(str(run)), RunDirectory.open(str(expected))
    tables = sorted(path.relative_to(expected) for path in expected.rglob("*.parquet"))
    assert len(tables) == 4 + 3 + 2 * 4
    for table in tables:
        pairs = list(zip(ours.read_rows(str(table)), theirs.read_rows(str(table)), strict=True))
        assert all((one["id"], one["pred"]) == (other["id"], other["pred"]) for one, other in pairs), table
        np.testing.assert_allclose(
            [p for one, _ in pairs for p in one["probs"]], [p for _, other in pairs for p in other["probs"]], atol=1e-4
        )
    for arm in expected.rglob("arms/**/*.jsonl"):
        assert (run / arm.relative_to(expected)).read_text() == arm.read_text()
    for metrics in expected.rglob("metrics.jsonl"):
        found, wanted = (each.read_jsonl(str(metrics.relative_to(expected))) for each in (ours, theirs))
        assert [step["step"] for step in found] == [step["step"] for step in wanted]
        np.testing.assert_allclose([s["loss"] for s in found], [s["loss"] for s in wanted], atol=1e-4)
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}
    assert ours.read_json("analysis.json")["exp1"].keys() == theirs.read_json("analysis.json")["exp1"].keys()


def lost(errors, index):
    """Whether the last line of a process' errors says, cleanly, that this one is gone."""
    return (
        errors[-1].startswith("jaxift: error: host ")
        and f"(process {index})" in errors[-1]
        and errors[-1].endswith("start the same command again on all hosts")
        and not any("Check failure" in line or "Traceback" in line for line in errors)
    )


def test_killed_and_stopped_in_turn_two_processes_end_with_what_one_finds(questions, alone, tmp_path):
    path, run = study(questions, tmp_path, "run", 4)
    command = ["run", path, *PATIENCE]
    with Processes(*command) as two:  # during the probe
        two.until(lambda: "probe probe/medicine: begins" in log(run, 1))
        two.signal(1, signal.SIGKILL)
        assert two.code(0) == 3
        assert lost(two.errors(0), 1), two.said(0)
    with Processes(*command) as two:  # the coordinator, while a checkpoint is written
        two.until(lambda: list(run.glob("cells/*/checkpoints/*.orbax-checkpoint-tmp*")))
        two.signal(0, signal.SIGKILL)
        assert two.code(1) == 3
        assert lost(two.errors(1), 0), two.said(1)
    saved = set(run.glob("cells/*/checkpoints/[0-9]"))
    with Processes("run", path, "--host-timeout", "120", "--stall-timeout", "20") as two:
        two.until(lambda: set(run.glob("cells/*/checkpoints/[0-9]")) - saved)  # in a step, or in the write of the next
        two.signal(1, signal.SIGSTOP)
        assert two.code(0) == 3
        errors = two.errors(0)
        assert "is stuck" in errors[-1], errors
        assert "no sign of life from host" in errors[-1]
        assert any(line.startswith("Thread 0x") or line.startswith("Current thread") for line in errors)
        assert "where its threads are" in log(run, 0)
    with Processes(*command) as two:
        assert two.codes() == [0, 0], two.said(1)
        assert two.said(1) == ["", ""]
        assert "probe     1 of 1 done before" in two.said(0)[0]
        assert "report: " in two.said(0)[0]
    assert_same_study(run, alone)
    assert log(run, 1).count("start the same command again") == 1  # the coordinator was lost once
    assert log(run, 1).endswith("done\n")


def test_four_processes_find_what_one_does(questions, alone, tmp_path):
    path, run = study(questions, tmp_path, "run", 8)
    with Processes("run", path, processes=4) as four:
        assert four.codes() == [0, 0, 0, 0], [four.said(index) for index in range(4)]
    assert_same_study(run, alone)


def test_processes_that_differ_are_refused_by_name_before_they_compute(questions, tmp_path):
    path, run = study(questions, tmp_path, "run", 4)
    with Processes("run", path, each={1: ["--tune.learning-rate", "0.5"]}) as two:
        assert two.codes() == [2, 2]
        for index in range(2):
            line = two.errors(index)[-1]
            assert "(process 1) has another tune.learning_rate (0.5, not 0.0002) than 1 of 2" in line, line
    shutil.copytree(ROOT / "jaxift", tmp_path / "other/jaxift", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other/jaxift/errors.py").open("a") as file:
        file.write("# changed\n")
    with Processes("run", path, roots={1: tmp_path / "other"}) as two:
        assert two.codes() == [2, 2], two.said(1)
        assert all("(process 1) has another jaxift's code" in two.errors(index)[-1] for index in range(2))
    assert not run.exists()


ELSEWHERE = """
import os
from jaxift.cli import main
from jaxift.parallel import meeting
meeting.SEEN_TIMEOUT = 1
os.makedirs(sys.argv[-1] + "/{index}")
os.chdir(sys.argv[-1] + "/{index}")
joined = ["--coordinator", "127.0.0.1:{port}", "--processes", "{processes}", "--process", "{index}"]
sys.exit(main([*sys.argv[1:-1], *joined]))
"""


def test_a_run_directory_that_is_not_shared_is_refused_by_name(questions, tmp_path):
    path, _ = study(questions, tmp_path, "run", 4)
    told = run_processes(ELSEWHERE, "run", path, "--run-dir", "own/run", tmp_path / "homes", join=False, code=2)
    for _, errors in told:
        assert "run directory own/run: host " in errors[-1]
        assert "(process 1) does not see there what host " in errors[-1]
        assert errors[-1].endswith("give a path that all hosts share")


def test_two_processes_tune_adapters_and_write_texts_as_one_does(tiny_folder, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"w{number} w{number + 1}", "response": f" {'ABCD'[number % 4]}"} for number in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune = [
        "finetune",
        pairs,
        "--model",
        tiny_folder,
        "--tune.lora.rank",
        "2",
        "--tune.epochs",
        "2",
        "--mesh.fsdp",
        "4",
    ]
    write = [
        "generate",
        tiny_folder,
        "--prompt",
        "w1 w2",
        "--prompt",
        "w3",
        "--max-new-tokens",
        "4",
        "--mesh.data",
        "4",
    ]
    for name, processes in (("one", 1), ("two", 2)):
        for command in ([*tune, "-o", tmp_path / name], [*write, "--out", tmp_path / f"{name}.jsonl"]):
            with Processes(*command, processes=processes, devices=4 // processes, join=processes > 1) as started:
                assert started.codes() == [0] * processes, started.said(0)
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()
    ours, theirs = (load_file(tmp_path / name / "pairs/model/adapter_model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=1e-5, err_msg=name)
    assert any(np.abs(values).max() > 0 for name, values in theirs.items() if "lora_B" in name)
