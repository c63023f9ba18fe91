"""The self-check of several joined processes: each looks, the first reports, all end alike."""

import json

import pytest
from launcher import run_processes

PROGRAM = """
import sys
from jaxift.cli import main
from jaxift.selfcheck import collectives, matmul, probe

for module in (matmul, collectives):
    module.SECONDS = {"cpu": 0.001}
matmul.SIZE, collectives.BYTES = {"cpu": 64}, {"cpu": 4096}
some = probe.golden()[2:3]
probe.golden = lambda: some
probe.TOLERANCES = {"float32": probe.TOLERANCES["float32"]}
code = main(["selfcheck", "--coordinator", "127.0.0.1:{port}", "--processes", "{processes}", "--process", "{index}",
             "--checkpoint-mb", "1", *sys.argv[1:]])
print("code", code)
"""


@pytest.mark.slow
def test_two_processes_check_together(tmp_path):
    arguments = ["--bucket", tmp_path, "--json", tmp_path / "found.json"]
    (first, _), (second, _) = run_processes(PROGRAM, *arguments, join=False)
    assert first[-1] == "code 0", first
    assert second == ["code 0"]
    told = {line["name"]: line for line in json.loads((tmp_path / "found.json").read_text())["lines"]}
    assert told["hosts"]["text"].startswith("2 joined: 0 on ")
    assert told["mesh"]["facts"]["shape"]["data"] == 4
    assert len(told["matmul"]["facts"]["flops"]) == 4
    assert {told[name]["state"] for name in ("score float32", "checkpoint")} == {"good"}
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 1])
def test_without_a_shared_folder_the_checkpoint_is_left_out_and_a_wrong_score_of_one_ends_all(wrong):
    program = PROGRAM.replace(
        "code = ",
        """
found = [[value + ({index} == WRONG) for value in some[0]["logprobs"]]]
probe.scored = lambda mesh, dtype: found
code = """.replace("WRONG", str(wrong)),
    )
    (first, _), (second, _) = run_processes(program, join=False)
    assert any("checkpoint" in line and "not checked: give --bucket" in line for line in first), first
    assert (first[-1], second) == ("code 1", ["code 1"])
    assert first[-2].startswith("1 of ")
    assert first[-3].startswith("FAIL score float32   host 1: ") == (wrong == 1)
