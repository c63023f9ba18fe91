"""A run that is killed and started again ends as if nothing had happened."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jaxift
from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.export import hf_tensors
from jaxift.tuning.batches import Example, encode_examples
from jaxift.tuning.checkpoint import restore_params
from jaxift.tuning.group import run_key
from jaxift.tuning.loop import tune

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(f"w{number} w{number + 1}", f" {'ABCD'[number % 4]}") for number in range(8)]
CONFIG = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 4, "warmup": 0.1, "max_length": 64, "checkpoint_every": 2}

# arguments: model folder, checkpoints, where the result goes, the step to die at (0: none)
RUN = f"""
import json, os, signal, sys
from pathlib import Path
import jaxift
from jaxift.config import TuneConfig
from jaxift.tuning.loop import tune

folder, checkpoints, out, fatal = *map(Path, sys.argv[1:4]), int(sys.argv[4])
told = []

def on_step(metrics):
    told.append(metrics["step"])
    if metrics["step"] == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

model = jaxift.load(folder)
tuned = tune(model, {PAIRS!r}, TuneConfig(**{CONFIG!r}), seed=7, folder=checkpoints, on_step=on_step)
jaxift.export(tuned.model, out)
(out / "metrics.json").write_text(json.dumps([tuned.metrics, told]))
"""


def run(*arguments):
    """Runs the script in a process of its own; returns its exit code (-9: killed)."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.slow
def test_killed_and_resumed_run_ends_bit_identical(tiny_folder, tmp_path):
    assert run(tiny_folder, tmp_path / "whole", tmp_path / "expected", 0) == 0
    # step 5 is told after step 4's checkpoint was begun, which waits until that of step 2 is written
    assert run(tiny_folder, tmp_path / "killed", tmp_path / "found", 5) == -9
    assert not (tmp_path / "found").exists()
    assert run(tiny_folder, tmp_path / "killed", tmp_path / "found", 0) == 0
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found"))
    base = load_file(tiny_folder / "model.safetensors")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
        assert not np.array_equal(expected[name], base[name])
    (whole, _), (resumed, told) = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("expected", "found")
    )
    assert resumed == whole
    assert len(whole) == 8
    # it did go on from a checkpoint, and not from the start
    assert told[0] in (3, 5)
    assert told == list(range(int(told[0]), 9))


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A finished run and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "checkpoints"
    return tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=folder), folder


def test_finished_run_is_not_run_again(tiny_model, finished):
    tuned, folder = finished
    seen = []
    again = tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=folder, on_step=seen.append)
    assert seen == []
    assert again.metrics == tuned.metrics


def test_parameters_of_a_finished_run_are_restored_bit_for_bit(tiny_model, finished):
    tuned, folder = finished
    restored = tiny_model.with_state(restore_params(folder, nnx.state(tuned.model.decoder)))
    expected = hf_tensors(tuned.model.decoder)
    for name, value in hf_tensors(restored.decoder).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_run_with_other_data_does_not_go_on_from_it(tiny_model, tmp_path):
    tune(tiny_model, PAIRS, TuneConfig(**CONFIG), folder=tmp_path)
    seen = []
    others = [*PAIRS[:-1], ("w1 w2", " B")]
    found = tune(tiny_model, others, TuneConfig(**CONFIG), folder=tmp_path, on_step=seen.append)
    assert [step["step"] for step in seen] == list(range(1, 9))
    assert found.metrics == tune(tiny_model, others, TuneConfig(**CONFIG)).metrics


def test_everything_that_a_runs_course_depends_on_is_in_its_key(tiny_model, make_folder, tmp_path):
    examples = encode_examples(tiny_model.tokenizer, PAIRS, 64)
    config, course = TuneConfig(**CONFIG), {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "weight_decay": 0.1}
    key = run_key(tiny_model, examples, config, 7)
    other = jaxift.load(make_folder(tmp_path / "other", seed=1))
    changed = [
        run_key(tiny_model, examples[::-1], config, 7),
        run_key(tiny_model, examples[:-1], config, 7),
        run_key(tiny_model, [Example(example.tokens, example.start + 1) for example in examples], config, 7),
        run_key(tiny_model, examples, config, 8),
        run_key(other, examples, config, 7),
        run_key(dataclasses.replace(tiny_model, dtype=np.dtype("float16")), examples, config, 7),
        *[run_key(tiny_model, examples, config.model_copy(update={name: value}), 7) for name, value in course.items()],
    ]
    assert len({key, *changed}) == 1 + len(changed)
    assert run_key(tiny_model, list(examples), config.model_copy(update={"checkpoint_every": 5}), 7) == key


def test_how_often_it_is_saved_does_not_matter(tiny_model, finished):
    tuned, folder = finished
    seen = []
    config = TuneConfig(**{**CONFIG, "checkpoint_every": 3})
    assert tune(tiny_model, PAIRS, config, folder=folder, on_step=seen.append).metrics == tuned.metrics
    assert seen == []


def test_folder_without_a_checkpoint_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; run `jaxift tune` again"):
        restore_params(tmp_path, nnx.state(tiny_model.decoder))
