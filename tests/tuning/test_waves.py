"""How many cells are tuned at once follows from memory, and does not change what comes out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_runs import SGD, losses

from jaxift.errors import UserError
from jaxift.tuning.loop import Job, plan_waves, tune_cells
from jaxift.tuning.waves import GIB, split

PAIRS = [(f"w{number % 7} w{number % 9 + 1}", f" {'ABCD'[number % 4]}") for number in range(8)]
CONFIG = SGD.model_copy(update={"epochs": 2, "batch_size": 4})


@given(count=st.integers(1, 60), most=st.integers(1, 20), groups=st.sampled_from([1, 2, 4]))
def test_waves_hold_everything_in_order_and_are_nearly_equal(count, most, groups):
    most *= groups
    waves = split(range(count), most, groups)
    assert [item for wave in waves for item in wave] == list(range(count))
    assert all(len(wave) <= most for wave in waves)
    assert all(len(wave) % groups == 0 for wave in waves[:-1])
    assert len(waves) == -(-count // most) or groups > 1
    assert max(map(len, waves)) - min(map(len, waves[:-1] or waves)) <= groups


def jobs(count):
    return [Job(f"cell {seed}", PAIRS, CONFIG, seed) for seed in range(count)]


def test_as_many_cells_as_fit_go_into_a_wave_and_no_more(tiny_model):
    [all_at_once] = plan_waves(tiny_model, jobs(6), memory_per_device=1.0)
    one = plan_waves(tiny_model, jobs(1))[0].memory
    assert all_at_once.memory.total > 4 * one.total
    limit = 3.3 * one.total / GIB
    waves = plan_waves(tiny_model, jobs(6), memory_per_device=limit)
    assert 2 <= len(waves) <= 3
    assert all(wave.memory.total <= limit * GIB for wave in waves)
    assert [name for wave in waves for name in wave.names] == [f"cell {seed}" for seed in range(6)]
    assert [(wave.number, wave.waves) for wave in waves] == [
        (number, len(waves)) for number in range(1, len(waves) + 1)
    ]
    found = [cell for wave in tune_cells(tiny_model, jobs(6), memory_per_device=limit) for cell in wave.cells]
    [whole] = tune_cells(tiny_model, jobs(6))
    for cell, other in zip(found, whole.cells, strict=True):
        np.testing.assert_allclose(losses(cell.metrics), losses(other.metrics), atol=1e-5)


def test_the_parts_of_memory_are_those_of_the_model(tiny_model):
    [wave] = plan_waves(tiny_model, jobs(3))
    weights = 4 * 22688  # of the tiny model's parameters
    assert wave.memory.weights == 3 * weights
    assert weights * 3 <= wave.memory.moments <= weights * 3 + 100  # SGD's momentum, and a few numbers
    assert wave.memory.activations > 0
    assert "GiB a device (weights" in wave.memory.told


def test_what_does_not_fit_is_refused_with_its_parts(tiny_model):
    with pytest.raises(UserError, match=r"tuning needs .* GiB a device, .* may be used: .*set tune.remat full"):
        plan_waves(tiny_model, jobs(2), memory_per_device=1e-5)
