"""Packed or not, summed over parts or not, on any mesh, in any number of processes, alone or stacked: the same run."""

import json

import numpy as np
import pytest
from launcher import run_processes
from tuning_runs import ADAMW, OPTIMIZERS, PAIRS, SGD, assert_same_run, losses, weights

import jaxift
from jaxift.parallel.mesh import make_mesh
from jaxift.tuning import loss
from jaxift.tuning.loop import Job, tune, tune_cells


@pytest.fixture(scope="module")
def expected(tiny_model):
    """Runs with each optimizer, unpacked and in one part, on one device."""
    found = {}
    for name, config in OPTIMIZERS.items():
        tuned = tune(tiny_model, PAIRS, config.model_copy(update={"packing": False}), seed=1)
        found[name] = weights(tuned.model), tuned.metrics
    return found


WAYS = {
    "packed": ({}, {}),
    "in parts": ({"packing": False, "micro_tokens": 32}, {}),
    "packed, in parts": ({"micro_tokens": 32}, {}),
    "recomputed": ({"remat": "full"}, {}),
    "8x1": ({}, {"data": 8}),
    "4x2": ({}, {"data": 2, "fsdp": 2, "tensor": 2}),
    "4x2, in parts": ({"micro_tokens": 16}, {"data": 4, "tensor": 2}),
}


def some_slow(name, quick):
    """Cases of which a few are tried each time."""
    return [
        pytest.param(optimizer, case, marks=() if (optimizer, case) in quick else pytest.mark.slow)
        for optimizer in OPTIMIZERS
        for case in name
    ]


QUICK = {("SGD", "packed, in parts"), ("SGD", "8x1"), ("AdamW", "4x2, in parts")}


@pytest.mark.parametrize(("optimizer", "way"), some_slow(WAYS, QUICK))
def test_layout_changes_nothing_but_rounding(way, optimizer, tiny_folder, tiny_model, expected):
    settings, sizes = WAYS[way]
    config = OPTIMIZERS[optimizer]
    model = jaxift.load(tiny_folder, make_mesh(**sizes)) if sizes else tiny_model
    tuned = tune(model, PAIRS, config.model_copy(update=settings), seed=1)
    assert_same_run((weights(tuned.model), tuned.metrics), expected[optimizer], weights(tiny_model), config)


def test_another_order_of_examples_is_told_apart(tiny_model, expected):
    tuned = tune(tiny_model, PAIRS, SGD, seed=2)
    with pytest.raises(AssertionError):
        assert_same_run((weights(tuned.model), tuned.metrics), expected["SGD"], weights(tiny_model), SGD)


def jobs(config):
    """Twelve jobs that differ in data, seed, learning rate and number of steps."""
    return [
        Job(
            f"cell {number}",
            PAIRS[number : 20 + 2 * number],
            config.model_copy(
                update={"learning_rate": config.learning_rate / (1 + number % 3), "epochs": 1 + number % 4}
            ),
            seed=number,
        )
        for number in range(12)
    ]


STACKS = {"one device": {}, "4x2x1x1": {"cell": 4, "data": 2}, "2x1x2x2": {"cell": 2, "fsdp": 2, "tensor": 2}}
FEW_LOGITS = 4 * 64 * 3  # bytes: a stack's loss in several blocks


@pytest.mark.parametrize(("optimizer", "stack"), some_slow(STACKS, {("SGD", "2x1x2x2")}))
def test_a_cell_of_a_stack_of_twelve_is_the_cell_alone(stack, optimizer, tiny_folder, tiny_model, monkeypatch):
    model = jaxift.load(tiny_folder, make_mesh(**STACKS[stack]))
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", FEW_LOGITS)
    [wave] = tune_cells(model, jobs(OPTIMIZERS[optimizer]))
    assert len(wave.cells) == 12
    monkeypatch.undo()
    for number in (0, 3, 10):
        job = wave.cells[number].job
        tuned = tune(tiny_model, job.pairs, job.config, seed=job.seed)
        found = weights(wave.stack.model(number)), wave.cells[number].metrics
        assert_same_run(found, (weights(tuned.model), tuned.metrics), weights(tiny_model), job.config)
    assert [len(cell.metrics) for cell in wave.cells[:4]] == [3, 6, 9, 12]


def test_jobs_of_other_programs_go_into_other_waves_and_come_back_in_turn(tiny_model):
    changed = ADAMW.model_copy(update={"weight_decay": 0.1, "epochs": 1})
    same = ADAMW.model_copy(update={"epochs": 1})
    waves = list(tune_cells(tiny_model, [Job("a", PAIRS, same), Job("b", PAIRS, changed), Job("c", PAIRS[:9], same)]))
    assert [[cell.job.name for cell in wave.cells] for wave in waves] == [["a", "c"], ["b"]]


def test_a_cell_that_diverges_stops_alone(tiny_model):
    healthy = Job("healthy", PAIRS, SGD, seed=1)
    wild = Job(
        "wild", PAIRS, SGD.model_copy(update={"learning_rate": 1e20}), seed=2,
        ids=[f"question-{number}" for number in range(len(PAIRS))],
    )  # fmt: skip
    [wave] = tune_cells(tiny_model, [wild, healthy])
    [tuned] = [cell for cell in wave.cells if cell.job.name == "healthy"]
    assert losses(tuned.metrics).tolist() == pytest.approx(
        losses(tune(tiny_model, PAIRS, SGD, seed=1).metrics), abs=1e-5
    )
    failed = wave.cells[0]
    assert tuned.failure == ""
    assert failed.failure.startswith(f"wild: step {len(failed.metrics) + 1}: the loss or gradient is not finite")
    assert "question-" in failed.failure
    assert all(np.isfinite(value).all() for value in weights(wave.stack.model(0)).values())


SEVERAL = """
import json, sys
sys.path.insert(0, "tests/tuning")
import jaxift
from tuning_runs import *
from jaxift.parallel.mesh import make_mesh
from jaxift.tuning.loop import Job, tune, tune_cells

sizes = json.loads(sys.argv[2])
model = jaxift.load(sys.argv[1], make_mesh(**{name: size for name, size in sizes.items() if name != "cell"},
                                           cell=sizes.get("cell", 1)))
jobs = [Job(str(seed), PAIRS, SGD, seed) for seed in (1, 2)]
[wave] = tune_cells(model, jobs)
found = weights(wave.stack.model(0))
print(json.dumps([{name: value.tolist() for name, value in found.items()}, wave.cells[0].metrics]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "sizes"), [(2, {"data": 4}), (2, {"cell": 2, "fsdp": 2}), (4, {"data": 4, "tensor": 2})]
)
def test_several_processes_are_one(processes, sizes, tiny_folder, tiny_model, expected):
    found = run_processes(SEVERAL, tiny_folder, json.dumps(sizes), processes=processes, timeout=400)
    for output, _ in found:
        after, metrics = json.loads(output[-1])
        after = {name: np.array(value) for name, value in after.items()}
        assert_same_run((after, metrics), expected["SGD"], weights(tiny_model), SGD)
