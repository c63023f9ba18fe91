"""A run that is killed, asked to end, or finds its checkpoints damaged goes on as if nothing had happened."""

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tuning_runs import SGD, assert_same_run, weights

import jaxift
from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.export import hf_tensors
from jaxift.parallel.mesh import make_mesh
from jaxift.tuning.batches import Example, encode_examples
from jaxift.tuning.checkpoint import restore_params
from jaxift.tuning.group import run_key
from jaxift.tuning.loop import Job, tune, tune_cells

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("JAXIFT_KILLS", "3"))
PAIRS = [(f"w{number} w{number + 1}", f" {'ABCD'[number % 4]}") for number in range(8)]
CONFIG = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 4, "warmup": 0.1, "max_length": 64, "checkpoint_every": 2}

# arguments: model folder, folder of checkpoints, where the result goes
RUN = f"""
import json, sys, time
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
import jaxift
from jaxift.config import TuneConfig
from jaxift.models.export import export
from jaxift.tuning.loop import Job, tune_cells
from jaxift.errors import Terminated
from jaxift.tuning.watch import Watch

class Told(Watch):
    def step(self, name, metrics):
        with open(sys.argv[2] + ".told", "a") as file:
            file.write(f"{{name}} {{metrics['step']:.0f}}\\n")
        time.sleep(0.02)

    def say(self, line):
        print(line, flush=True)

folder, checkpoints, out = map(Path, sys.argv[1:])
model = jaxift.load(folder)
config = TuneConfig(**{CONFIG!r} | {{"epochs": 12, "checkpoint_every": 1}})
jobs = [Job(f"cell {{seed}}", {PAIRS!r}, config, seed, checkpoints / str(seed)) for seed in range(3)]
try:
    [wave] = tune_cells(model, jobs, watch=Told())
except Terminated as ended:
    print(ended)
    sys.exit(143)
for number, cell in enumerate(wave.cells):
    export(wave.stack.model(number), out / str(number))
    (out / str(number) / "metrics.json").write_text(json.dumps(cell.metrics))
"""


def start(*arguments):
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


def end(process):
    """Exit code and output of a process, when it has ended."""
    output, _ = process.communicate()
    return process.returncode, output


def told(folder):
    """How many steps were told so far."""
    path = Path(f"{folder}.told")
    return len(path.read_text().splitlines()) if path.exists() else 0


def results(folder):
    """Bytes of all results."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in ("model.safetensors", "metrics.json")
    }


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """Results of three cells that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert end(start(tiny_folder, folder / "checkpoints", folder / "out"))[0] == 0
    return results(folder / "out")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tiny_folder, tmp_path, whole):
    rng, checkpoints = random.Random(0), tmp_path / "checkpoints"
    for _ in range(KILLS):
        before = told(checkpoints)
        process = start(tiny_folder, checkpoints, tmp_path / "out")
        # a step is told every few hundredths of a second, and saved after each: most kills fall into a write
        while told(checkpoints) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, output = end(start(tiny_folder, checkpoints, tmp_path / "out"))
    assert code == 0
    assert "damaged" not in output
    assert results(tmp_path / "out") == whole
    assert len(whole) == 6


@pytest.mark.slow
def test_asked_to_end_it_saves_and_goes_on_from_there(tiny_folder, tmp_path, whole):
    checkpoints = tmp_path / "checkpoints"
    process = start(tiny_folder, checkpoints, tmp_path / "out")
    while told(checkpoints) < 9:
        time.sleep(0.005)
    process.terminate()
    code, output = end(process)
    assert code == 143
    assert "the same command goes on from there" in output
    steps = told(checkpoints)
    assert end(start(tiny_folder, checkpoints, tmp_path / "out"))[0] == 0
    lines = Path(f"{checkpoints}.told").read_text().splitlines()
    assert sorted(lines) == sorted({f"cell {cell} {step}" for cell in range(3) for step in range(1, 25)})
    assert steps < len(lines)
    assert results(tmp_path / "out") == whole


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A finished run and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "checkpoints"
    return tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=folder), folder


class Stopped(Exception):
    """Raised by a watcher, as if the process had been killed there."""


def interrupted(model, folder, after=5, config=None, **changes):
    """Tunes until `after` steps are told; what was saved stays."""

    def stop(metrics):
        if metrics["step"] == after:
            raise Stopped

    with pytest.raises(Stopped):
        tune(model, PAIRS, config or TuneConfig(**{**CONFIG, **changes}), folder=folder, on_step=stop)


def steps_of(folder):
    return sorted(int(path.name) for path in Path(folder).iterdir() if path.name.isdigit())


def same_bits(found, expected):
    ours, theirs = hf_tensors(found.decoder), hf_tensors(expected.decoder)
    return all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_run_goes_on_and_ends_bit_identical(tiny_model, finished, tmp_path):
    interrupted(tiny_model, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [2, 4]
    seen = []
    tuned = tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path / "run", on_step=seen.append)
    assert [step["step"] for step in seen] == [5, 6, 7, 8]
    assert tuned.metrics == finished[0].metrics
    assert same_bits(tuned.model, finished[0].model)
    assert steps_of(tmp_path / "run") == [8]


def test_only_the_newest_checkpoints_are_kept(tiny_model, tmp_path):
    interrupted(tiny_model, tmp_path / "run", after=8, checkpoint_every=1, keep=3)
    assert steps_of(tmp_path / "run") == [5, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 4, "tensor": 2}, {"cell": 2, "fsdp": 2}], ids=str)
def test_it_goes_on_with_other_devices(sizes, tiny_folder, tiny_model, tmp_path):
    config = SGD.model_copy(update={"checkpoint_every": 2, "epochs": 4, "batch_size": 4})
    expected = tune(tiny_model, PAIRS, config)
    interrupted(tiny_model, tmp_path / "run", config=config)
    seen = []
    model = jaxift.load(tiny_folder, make_mesh(**sizes))
    tuned = tune(model, PAIRS, config, folder=tmp_path / "run", on_step=seen.append)
    assert seen[0]["step"] == 5
    found = weights(tuned.model), tuned.metrics
    assert_same_run(found, (weights(expected.model), expected.metrics), weights(tiny_model), config)


# a read that fails leaves others of orbax' behind, which it does not wait for
LEFT_BEHIND = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


@pytest.fixture
def swept():
    """Afterwards nothing is left that another test would be blamed for."""
    yield
    gc.collect()


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(bytes(content))


@LEFT_BEHIND
@pytest.mark.usefixtures("swept")
def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(tiny_model, finished, tmp_path):
    rng, found = random.Random(1), []
    interrupted(tiny_model, tmp_path / "run")
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    newest = sorted(path for path in kept if "4" in path.parts and kept[path])
    # all files have a chance, the large ones more
    chosen = rng.sample(newest, 8) + sorted(newest, key=lambda path: -len(kept[path]))[:2] * 4
    for path in chosen:
        for folder in (tmp_path / "run").iterdir():
            if folder.name.isdigit():
                assert folder.name in "24"
        for other, content in kept.items():
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(content)
        flipped(path, rng.randrange(len(kept[path])))
        said, seen = [], []

        def stop(metrics, seen=seen):
            seen.append(metrics)
            raise Stopped

        with pytest.raises(Stopped):
            tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path / "run", on_step=stop, warn=said.append)
        [first] = seen
        assert first == finished[0].metrics[int(first["step"]) - 1]
        assert first["step"] == (3 if said else 5)
        found.append(bool(said))
        if said:
            assert "checkpoint of step 4 is damaged" in said[0]
            assert "it is left out" in said[0]
    assert sum(found[8:]) >= 6  # of what is in the large ones, next to nothing is without meaning


@LEFT_BEHIND
@pytest.mark.usefixtures("swept")
def test_where_all_checkpoints_are_damaged_it_begins_again(tiny_model, finished, tmp_path):
    interrupted(tiny_model, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and {"2", "4"} & set(path.parts):
            path.write_bytes(path.read_bytes()[:-5])
    said, seen = [], []
    tuned = tune(
        tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path / "run", on_step=seen.append, warn=said.append
    )
    assert len(said) == 2
    assert len(seen) == 8
    assert same_bits(tuned.model, finished[0].model)


FULL = """
import resource, sys, time
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
import jaxift
from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.tuning.loop import tune

def fill(metrics):
    if metrics["step"] == 3:
        while not Path(sys.argv[2], "2").exists():  # it is written beside the steps
            time.sleep(0.01)
        # no file may grow beyond a few bytes from here on, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

model = jaxift.load(sys.argv[1])
try:
    tune(model, PAIRS, TuneConfig(**CONFIG), folder=sys.argv[2], on_step=fill)
except UserError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint(tiny_folder, tiny_model, finished, tmp_path):
    program = FULL.replace("PAIRS", repr(PAIRS)).replace("CONFIG", repr(CONFIG))
    command = [sys.executable, "-c", program, str(tiny_folder), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert "the checkpoint of step 4 cannot be written" in done.stdout, done.stderr
    assert "that of step 2 is whole; make room" in done.stdout
    seen = []
    tuned = tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path / "run", on_step=seen.append)
    assert seen[0]["step"] == 3
    assert same_bits(tuned.model, finished[0].model)


def test_finished_run_is_not_run_again(tiny_model, finished):
    tuned, folder = finished
    seen = []
    again = tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=folder, on_step=seen.append)
    assert seen == []
    assert again.metrics == tuned.metrics
    assert same_bits(again.model, tuned.model)


def test_parameters_of_a_finished_run_are_restored_bit_for_bit(tiny_model, finished):
    tuned, folder = finished
    restored = tiny_model.with_state(restore_params(folder, nnx.state(tuned.model.decoder)))
    assert same_bits(restored, tuned.model)


@LEFT_BEHIND
@pytest.mark.usefixtures("swept")
def test_damaged_parameters_of_a_finished_run_are_refused(tiny_model, tmp_path):
    tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path)
    [largest, *_] = sorted((path for path in tmp_path.rglob("d/*") if path.is_file()), key=lambda p: -p.stat().st_size)
    flipped(largest, largest.stat().st_size // 2)
    with pytest.raises(UserError, match=r"8: is damaged .*; remove it and run `jaxift tune` again"):
        restore_params(tmp_path, nnx.state(tiny_model.decoder))


def test_a_run_with_other_data_does_not_go_on_from_it(tiny_model, tmp_path):
    tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path)
    seen = []
    others = [*PAIRS[:-1], ("w1 w2", " B")]
    found = tune(tiny_model, others, TuneConfig(**CONFIG), folder=tmp_path, on_step=seen.append)
    assert [step["step"] for step in seen] == list(range(1, 9))
    assert found.metrics == tune(tiny_model, others, TuneConfig(**CONFIG)).metrics


def test_cells_of_a_wave_that_were_saved_at_different_steps_go_on_together(tiny_model, finished, tmp_path):
    interrupted(tiny_model, tmp_path / "0")
    config = TuneConfig(**CONFIG)
    [wave] = tune_cells(tiny_model, [Job("old", PAIRS, config, 0, tmp_path / "0"), Job("new", PAIRS, config, 0)])
    for number, cell in enumerate(wave.cells):
        assert [step["step"] for step in cell.metrics] == list(range(1, 9))
        np.testing.assert_allclose(
            [step["loss"] for step in cell.metrics], [step["loss"] for step in finished[0].metrics], atol=1e-5
        )
        assert_same_run(
            (weights(wave.stack.model(number)), cell.metrics),
            (weights(finished[0].model), finished[0].metrics),
            weights(tiny_model),
            config,
        )


def test_everything_that_a_runs_course_depends_on_is_in_its_key(tiny_model, make_folder, tmp_path):
    examples = encode_examples(tiny_model.tokenizer, PAIRS, 64)
    config, course = (
        TuneConfig(**CONFIG),
        {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "weight_decay": 0.1, "kl": 0.5},
    )
    key = run_key(tiny_model, examples, config, 7)
    other = jaxift.load(make_folder(tmp_path / "other", seed=1))
    changed = [
        run_key(tiny_model, examples[::-1], config, 7),
        run_key(tiny_model, examples[:-1], config, 7),
        run_key(tiny_model, [Example(example.tokens, example.start + 1) for example in examples], config, 7),
        run_key(tiny_model, [dataclasses.replace(each, weights=(2.0,) * each.scored) for each in examples], config, 7),
        run_key(tiny_model, examples, config, 8),
        run_key(other, examples, config, 7),
        run_key(dataclasses.replace(tiny_model, dtype=np.dtype("float16")), examples, config, 7),
        *[run_key(tiny_model, examples, config.model_copy(update={name: value}), 7) for name, value in course.items()],
    ]
    assert len({key, *changed}) == 1 + len(changed)
    for name, value in {"checkpoint_every": 5, "packing": False, "micro_tokens": 64, "remat": "full"}.items():
        assert run_key(tiny_model, list(examples), config.model_copy(update={name: value}), 7) == key


def test_how_often_it_is_saved_does_not_matter(tiny_model, finished):
    tuned, folder = finished
    seen = []
    config = TuneConfig(**{**CONFIG, "checkpoint_every": 3})
    assert tune(tiny_model, PAIRS, config, folder=folder, on_step=seen.append).metrics == tuned.metrics
    assert seen == []


def test_folder_without_a_checkpoint_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; run `jaxift tune` again"):
        restore_params(tmp_path, nnx.state(tiny_model.decoder))


def test_a_folder_with_other_files_is_refused_and_left_alone(tiny_model, tmp_path):
    (tmp_path / "notes.txt").write_text(json.dumps("mine"))
    with pytest.raises(UserError, match="holds other files than checkpoints"):
        tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
