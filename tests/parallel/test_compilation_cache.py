"""Programs are kept between processes; whatever is wrong with the cache, the run goes on and says so in one line."""

import json
import os
import subprocess
import sys
import zlib

import pytest
from launcher import ROOT, run_processes

from jaxift.errors import UserError
from jaxift.parallel import compilation_cache, compilations

PROGRAM = """
import json
from jaxift.parallel.compilation_cache import kept

with kept():
    import jax
    import numpy as np
    from jaxift.parallel.compilations import listen, record

    listen()

    @jax.jit
    def step(x):
        return (x @ x).sum() + np.float32(0.5)

    value = step(np.arange(16, dtype=np.float32).reshape(4, 4))
    print(json.dumps({"value": float(value), **record()}))
"""


def run(tmp_path, program=PROGRAM, code=0, **environment):
    """The record that a fresh process prints, and its lines of complaint; a word in capitals sets its environment."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "JAXIFT_"))}
    common = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu"}
    common["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={**base, **common, **environment}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def entries(tmp_path):
    return sorted(tmp_path.rglob("*-cache"))


def test_a_second_process_takes_the_program_from_the_cache_with_the_same_result(tmp_path):
    first, [said] = run(tmp_path)
    again, [said_again] = run(tmp_path)
    assert (first["cached"], first["compiled"]) == (0, 1)
    assert (again["cached"], again["compiled"]) == (1, 0)
    assert first["value"] == again["value"]
    assert said.startswith("jaxift: programs: 0 from the cache, 1 compiled (")
    assert said_again.startswith("jaxift: programs: 1 from the cache, 0 compiled (0.0 s")
    [entry] = entries(tmp_path)
    assert entry.is_relative_to(tmp_path / "home" / "jaxift" / "programs")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100],
        pytest.param(lambda data: b"", marks=pytest.mark.slow),
        pytest.param(lambda data: b"x" * len(data), marks=pytest.mark.slow),
        pytest.param(lambda data: zlib.compress(b"\0\0\0\1 no program at all"), marks=pytest.mark.slow),
    ],
    ids=["cut off", "empty", "overwritten", "another program"],
)
def test_a_damaged_entry_is_said_once_replaced_and_found_again(tmp_path, damage):
    first, _ = run(tmp_path)
    [entry] = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    again, [complaint, _] = run(tmp_path)
    assert again["value"] == first["value"]
    assert again["compiled"] == 1
    assert "jit_step is damaged: removed and compiled anew" in complaint
    third, [_] = run(tmp_path)
    assert third["cached"] == 1


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    found, [complaint, _] = run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "below"))
    assert found["compiled"] == 1
    assert "the run goes on without" in complaint


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    first, _ = run(tmp_path)
    [entry] = entries(tmp_path)
    entry.unlink()
    entry.symlink_to(tmp_path / "absent" / "file")  # root may write everywhere but here
    again, [complaint, _] = run(tmp_path)
    assert again["value"] == first["value"]
    assert "writing failed" in complaint


@pytest.mark.parametrize(
    "switch", [{"JAXIFT_COMPILATION_CACHE": "off"}, {"JAX_COMPILATION_CACHE_DIR": ""},
               {"JAX_ENABLE_COMPILATION_CACHE": "false"}]
)  # fmt: skip
def test_switched_off_nothing_is_kept_and_nothing_said(tmp_path, switch):
    found, said = run(tmp_path, **switch)
    assert (found["cached"], said) == (0, [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_bucket_serves_and_a_damaged_entry_in_it_is_replaced(tmp_path):
    program = f"import sys; sys.path.append({str(ROOT / 'tests')!r}); import bucket; bucket.install({str(tmp_path)!r})"
    program += PROGRAM
    where = {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/programs"}
    first, _ = run(tmp_path, program, **where)
    again, _ = run(tmp_path, program, **where)
    assert (first["cached"], again["cached"]) == (0, 1)
    [entry] = entries(tmp_path)
    assert entry.parent == tmp_path / "bucket" / "programs"
    entry.write_bytes(b"")
    damaged, [complaint, _] = run(tmp_path, program, **where)
    assert damaged["compiled"] == 1
    assert "removed and compiled anew" in complaint
    assert run(tmp_path, program, **where)[0]["cached"] == 1


def test_an_unknown_switch_is_refused(monkeypatch):
    monkeypatch.setenv("JAXIFT_COMPILATION_CACHE", "maybe")
    with pytest.raises(UserError, match="JAXIFT_COMPILATION_CACHE=maybe: give on or off"), compilation_cache.kept():
        pass


def test_cleaning_removes_what_was_not_used_for_the_longest_time(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(b"x" * 10)
        os.utime(path, (1e9 - age, 1e9 - 10 * age))
    compilation_cache.clean(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "b-cache"]
    compilation_cache.clean(tmp_path / "absent", 25)


def test_the_end_of_a_run_cleans_the_default_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "BOUND", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for mine in (compilation_cache.default_folder(), tmp_path / "mine"):
        mine.mkdir(parents=True)
        (mine / "a-cache").write_bytes(b"x")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(mine))
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        with compilation_cache.kept():
            pass
    assert entries(tmp_path) == [tmp_path / "mine" / "a-cache"]


def test_other_warnings_are_shown_as_ever():
    import warnings

    with pytest.warns(UserWarning, match="something else"), compilation_cache.kept():
        warnings.warn("something else", stacklevel=1)


def test_the_sentence():
    counted = compilations.Compilations(41, 3, 120, 4.0, 12.34, 4.1, 35.2)
    assert counted.sentence() == (
        "programs: 41 from the cache, 3 compiled (12.3 s; 35 s saved); 120 small ones in 4.1 s"
    )


SHARED = """
import json
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxift.parallel.compilations import listen, record
from jaxift.parallel.mesh import make_mesh
from jaxift.parallel.arrays import global_array

jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[1].replace("HOST", "{index}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
mesh = make_mesh(data=jax.device_count())
x = global_array(np.arange(8, dtype=np.float32), NamedSharding(mesh, PartitionSpec("data")))
with jax.set_mesh(mesh):
    value = jax.jit(lambda x: (x * x).sum())(x)
print(json.dumps({"value": float(value), **record()}))
"""


def counted(folder):
    return [json.loads(out[-1]) for out, _ in run_processes(SHARED, folder)]


@pytest.mark.slow
def test_of_several_processes_the_first_alone_writes_and_finds_it_again(tmp_path):
    folder = tmp_path / "apart-HOST"
    before = counted(folder)
    assert [told["cached"] for told in before] == [0, 0]
    [entry] = entries(tmp_path)
    assert entry.parent.name == "apart-0"
    first, second = counted(folder)
    assert first["cached"] == 1
    assert second["compiled"] == 1
    assert {told["value"] for told in (*before, first, second)} == {140.0}


@pytest.mark.slow
def test_the_command_line_keeps_its_programs(tmp_path):
    program = """
import contextlib, io, json
from jaxift.cli import main
from jaxift.world import MODEL_DIR

with contextlib.redirect_stdout(io.StringIO()):
    assert main(["score", "asked.jsonl", "-o", "OUT", "--model", str(MODEL_DIR)]) == 0
from jaxift.parallel.compilations import record
print(json.dumps(record()))
"""
    (tmp_path / "asked.jsonl").write_text('{"id": "a", "context": "The", "options": [" a", " b"]}\n')
    first, said = run(tmp_path, program.replace("OUT", "first.parquet"))
    again, said_again = run(tmp_path, program.replace("OUT", "again.parquet"))
    assert first["compiled"] > 0
    assert again["compiled"] == 0
    assert again["cached"] == first["compiled"] + first["cached"]
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert "from the cache" in said[-1]
    assert "from the cache" in said_again[-1]
