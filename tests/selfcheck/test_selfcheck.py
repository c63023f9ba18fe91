"""The self-check: green where all is well, and red, with the reason, for everything that can be wrong."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxift.selfcheck.probe as probe_module
from jaxift.cli import main
from jaxift.config import MeshConfig
from jaxift.parallel.mesh import make_mesh
from jaxift.parallel.peaks import Chip, chip
from jaxift.selfcheck import collectives, devices, matmul, probe, software, storage
from jaxift.selfcheck.lines import Line, failed_hosts, from_hosts, guarded
from jaxift.world import MODEL_DIR

ROOT = Path(__file__).resolve().parents[2]
CHIP = Chip("TPU v9", 100e12, 2**34, 1e12, 20e9, 3)


@pytest.fixture
def quick(monkeypatch):
    """Small matrices and short runs."""
    for module in (matmul, collectives):
        monkeypatch.setattr(module, "SECONDS", {"cpu": 0.001})
    monkeypatch.setattr(matmul, "SIZE", {"cpu": 64})
    monkeypatch.setattr(collectives, "BYTES", {"cpu": 4096})


def test_the_golden_values_are_those_of_a_plain_forward_in_float64():
    plain = runpy.run_path(str(ROOT / "acceptance" / "selfcheck_golden.py"))
    requests = probe.golden()
    assert sum(len(each["options"]) for each in requests) == 40
    some = [{**each, "options": each["options"][-1:], "logprobs": each["logprobs"][-1:]} for each in requests[1:4]]
    for request, row in zip(some, plain["golden"](some), strict=True):
        np.testing.assert_allclose(request["logprobs"], row, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_all_golden_values_are_those_of_the_script():
    done = subprocess.run([sys.executable, ROOT / "acceptance" / "selfcheck_golden.py"], check=False)
    assert done.returncode == 0


@pytest.mark.slow
def test_the_whole_check_on_a_mesh_is_green_and_tells_json(quick, tmp_path, capsys):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    out = tmp_path / "found.json"
    arguments = ["--mesh.data", "2", "--mesh.tensor", "4", "--bucket", bucket, "--checkpoint-mb", "1", "--json", out]
    assert main(["selfcheck", *map(str, arguments)]) == 0
    told = json.loads(out.read_text())
    assert told["ok"]
    states = {line["name"]: line["state"] for line in told["lines"]}
    assert states == {
        "software": "good", "devices": "good", "matmul": "told", "mesh": "good", "links data": "told",
        "links tensor": "told", "score float32": "good", "score bfloat16": "good", "checkpoint": "good",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(states) + 1
    assert "FAIL" not in printed
    assert list(bucket.iterdir()) == []
    largest = {line["name"]: line["facts"].get("largest difference") for line in told["lines"]}
    assert largest["score float32"] < 1e-4


@pytest.mark.slow
def test_a_wrong_constant_of_the_model_makes_its_line_red(monkeypatch, tmp_path):
    for number, (name, value) in enumerate({"rope_theta": 10050.0, "rms_norm_eps": 1e-3}.items()):
        folder = tmp_path / str(number)
        shutil.copytree(MODEL_DIR, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        monkeypatch.setattr(probe_module, "MODEL_DIR", folder)
        line = probe.judged("float32", probe.golden(), probe.scored(make_mesh(), "float32"))
        assert line.state == "bad", line
        assert "are off" in line.text


@pytest.mark.parametrize("dtype", probe.TOLERANCES)
@pytest.mark.parametrize("wrong", [2.0, np.nan])
def test_one_wrong_score_makes_the_line_red(dtype, wrong):
    wanted = probe.golden()
    found = [list(each["logprobs"]) for each in wanted]
    assert probe.judged(dtype, wanted, found).state == "good"
    found[3][1] += wrong * probe.TOLERANCES[dtype]
    line = probe.judged(dtype, wanted, found)
    assert line.state == "bad"
    assert "; 1 are off" in line.text


def test_a_tensor_axis_of_more_devices_than_heads_is_scored_on_another_mesh_of_them():
    mesh = make_mesh(tensor=4)
    assert probe.fitting(mesh) is mesh
    fit = probe.fitting(make_mesh(tensor=8))
    assert dict(fit.shape) == {"cell": 1, "data": 2, "fsdp": 1, "tensor": 4}
    wanted = probe.golden()
    line = probe.judged("float32", wanted, [each["logprobs"] for each in wanted], devices.shape(fit))
    assert ", on data 2 x tensor 4: " in line.text


def test_matmul_is_judged_by_the_maker_s_figure_and_the_other_devices():
    flops = {f"TPU_{number}": 80e12 for number in range(4)}
    assert matmul.judged(flops, CHIP, "bfloat16").state == "good"
    slow = matmul.judged({**flops, "TPU_2": 60e12}, CHIP, "bfloat16")
    assert slow.state == "bad"
    assert "slow: TPU_2 60" in slow.text
    weak = matmul.judged(dict.fromkeys(flops, 40e12), CHIP, "bfloat16")
    assert weak.state == "bad"
    assert "40% of TPU v9's 100: below 50%" in weak.text
    unknown = matmul.judged({**flops, "TPU_2": 60e12}, None, "float32")
    assert unknown.state == "told"
    assert "slower: TPU_2 60" in unknown.text


def test_links_are_judged_by_one_link_of_the_chip():
    assert collectives.judged("data", {"all-reduce": 30e9, "all-gather": 9e9}, CHIP).state == "good"
    weak = collectives.judged("data", {"all-reduce": 30e9, "all-gather": 7e9}, CHIP)
    assert weak.state == "bad"
    assert "below 40%" in weak.text
    assert collectives.judged("data", {"all-reduce": 1e9, "all-gather": 1e9}, None).state == "told"
    assert collectives.judged("data", {"all-reduce": 1e9, "all-gather": 1e9}, CHIP, slices=2).state == "told"


def test_the_collectives_do_what_they_are_timed_for():
    mesh = make_mesh(data=2, tensor=4)
    start = np.arange(2 * 8, dtype=np.float32)

    def run(step, number):
        layout = jax.sharding.PartitionSpec("data")

        def once(x):
            return step(x, number, "data", 2)

        program = jax.shard_map(once, mesh=mesh, in_specs=layout, out_specs=layout, check_vma=False)
        placed = jax.device_put(start, jax.sharding.NamedSharding(mesh, layout))
        return np.asarray(jax.jit(program)(placed)).reshape(2, 8)

    np.testing.assert_array_equal(run(collectives.all_reduce, 0), [start.reshape(2, 8).mean(0)] * 2)
    # the share of the other: each holds it in its first half
    np.testing.assert_array_equal(run(collectives.all_gather, 1)[:, :4], [start[8:12]] * 2)
    np.testing.assert_array_equal(run(collectives.all_gather, 0)[:, :4], [start[:4]] * 2)


def test_chips_are_found_by_the_longest_name():
    assert chip("TPU v5 lite") != chip("TPU v5")
    assert chip("TPU v5 lite podslice") == chip("TPU v5 lite")
    assert chip("cpu") is None


def test_a_requirement_that_is_not_met_is_named_with_its_mend(monkeypatch):
    ask = ["jax>=99", "numpy>=1", "absent-package>=2", "torch; extra == 'parity'", "old; python_version < '3'"]
    required = {"jaxift": ask}
    monkeypatch.setattr(software.metadata, "requires", required.get)
    told = software.problems(("jaxift",))
    assert told[0].startswith("jaxift needs jax>=99, but ")
    assert told[0].endswith("pip install 'jax>=99'")
    assert told[1] == "jaxift needs absent-package, which is not installed: pip install 'absent-package>=2'"
    assert len(told) == 2
    monkeypatch.setattr(software, "problems", lambda: told)
    [line] = software.lines()
    assert line.state == "bad"
    assert line.text.startswith(told[0])


def test_what_is_installed_here_fits_together():
    assert software.problems() == []


def test_hosts_that_differ_are_named(monkeypatch):
    def hosts_say(*said):
        monkeypatch.setattr(devices, "from_hosts", lambda label, look: list(said))
        monkeypatch.setattr(software, "from_hosts", lambda label, look: list(said))

    one = {"host": "a", "platform": "tpu", "kind": "TPU v4", "devices": 4, "memory": 2**35, "host memory": 2**38,
           "unused": ""}  # fmt: skip
    hosts_say(one, {**one, "host": "b"})
    assert [line.state for line in devices.lines()] == ["good", "good"]
    assert devices.lines()[1].text == "2 joined: 0 on a (4), 1 on b (4)"
    hosts_say(one, {**one, "devices": 3})
    assert devices.lines()[0].text.startswith("hosts 1 have other devices than host 0")
    assert devices.lines()[0].state == "bad"
    hosts_say(one, {"error": "RuntimeError: TPU in use"})
    assert devices.lines() == [Line("devices", "bad", "host 1: RuntimeError: TPU in use")]
    hosts_say({"versions": {"jax": "1"}, "problems": []}, {"versions": {"jax": "2"}, "problems": []})
    assert "hosts 1 have other versions than host 0" in software.lines()[0].text


def test_an_accelerator_that_jax_does_not_use_is_named(tmp_path, monkeypatch):
    (tmp_path / "accel0").write_text("")
    monkeypatch.setattr(devices, "UNUSED", {str(tmp_path / "accel0"): "tpu", str(tmp_path / "absent"): "cuda"})
    assert devices.lines()[0].state == "good"  # the tests ask for the CPU
    monkeypatch.setattr(devices.jax, "config", SimpleNamespace(values={"jax_platforms": None}))
    [line] = devices.lines()
    assert line.state == "bad"
    assert "accel0 is there, but JAX uses the CPU: pip install 'jaxift[tpu]'; 8 x cpu" in line.text


def test_what_fails_becomes_a_red_line():
    def fails():
        raise RuntimeError("the chip\nis on fire")

    assert guarded("matmul", fails) == [Line("matmul", "bad", "RuntimeError: the chip is on fire")]
    assert failed_hosts(from_hosts("x", fails)) == "RuntimeError: the chip is on fire"


def test_one_type_and_one_request_as_the_command_checks_them(quick, monkeypatch, capsys):
    some = probe.golden()[2:3]
    monkeypatch.setattr(probe, "golden", lambda: some)
    monkeypatch.setattr(probe, "TOLERANCES", {"float32": probe.TOLERANCES["float32"]})
    monkeypatch.setattr(storage, "COLUMNS", 8)
    arguments = ["selfcheck", "--mesh.tensor", "2", "--checkpoint-mb", "1"]
    assert main([*arguments, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in told["lines"]] == [
        "software", "devices", "matmul", "mesh", "links tensor", "score float32", "checkpoint",
    ]  # fmt: skip

    wrong = [[each + 1e-3 for each in some[0]["logprobs"]]]
    monkeypatch.setattr(probe, "scored", lambda mesh, dtype: wrong)
    monkeypatch.setattr(storage, "lines", lambda *_: [])
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == ["score"]
    assert lines[-1].startswith("1 of 6 lines say that something is wrong; ")


def test_a_mesh_that_cannot_be_made_is_red_and_ends_the_check(quick, capsys):
    assert main(["selfcheck", "--mesh.data", "16"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("FAIL mesh")
    assert "needs 16 devices, but 8 are visible" in lines[3]
    assert lines[4].startswith("1 of 4 lines")


def test_the_default_mesh_holds_all_devices():
    assert devices.asked_mesh(MeshConfig()).shape["data"] == 8
    assert devices.asked_mesh(MeshConfig(tensor=2)).size == 2
    assert "6 devices are left out" in devices.mesh_line(devices.asked_mesh(MeshConfig(tensor=2))).text


@pytest.mark.parametrize("arguments", [["--checkpoint-mb", "0"], ["--json", "/proc/x/y"], ["--mesh.data", "no"]])
def test_bad_arguments_are_refused(arguments, capsys):
    assert main(["selfcheck", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert arguments[0] in line


def test_a_checkpoint_leaves_nothing_also_where_it_fails(tmp_path, monkeypatch):
    mesh = make_mesh(data=8)
    [line] = storage.lines(mesh, str(tmp_path), 1)
    assert line.state == "good"
    assert list(tmp_path.iterdir()) == []

    def broken(*_):
        raise OSError("no more")

    monkeypatch.setattr(storage, "restore_params", broken)
    [line] = guarded("checkpoint", lambda: storage.lines(mesh, str(tmp_path), 1))
    assert (line.state, line.text) == ("bad", "OSError: no more")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_comes_back_otherwise_is_red(tmp_path, monkeypatch):
    real = storage.restore_params
    monkeypatch.setattr(storage, "restore_params", lambda *given: jax.tree.map(lambda x: -x, real(*given)))
    [line] = storage.lines(make_mesh(), str(tmp_path), 1)
    assert line.state == "bad"
    assert "is not what was written" in line.text


@pytest.mark.parametrize(
    ("bucket", "said"),
    [("absent", "is no folder; make it first"), ("/proc", "cannot be written"), ("gs://bucket/x", "gcsfs")],
)
def test_a_folder_that_is_refused_is_a_red_line_with_its_mend(bucket, said):
    line, *more = guarded("checkpoint", lambda: storage.lines(make_mesh(), bucket, 1))
    assert more == []
    assert line.state == "bad"
    assert line.text.startswith("--bucket")
    assert said in line.text


def test_what_a_bucket_forbids_is_said_in_a_line(monkeypatch):
    def forbidden(*_):
        raise RuntimeError("403 Forbidden: storage.objects.create denied")

    monkeypatch.setattr(storage, "writable_folder", forbidden)
    [line] = guarded("checkpoint", lambda: storage.lines(make_mesh(), "/tmp", 1))
    assert "403 Forbidden" in line.text
    assert "give this account the right to create, read and delete" in line.text
