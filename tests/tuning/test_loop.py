"""Whole tuning runs: what changes them, what does not, and what is refused."""

import json

import chex
import jax
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.export import hf_tensors
from jaxift.scoring.engine import Request, score
from jaxift.tuning import batches
from jaxift.tuning.loop import Job, tune, tune_cells
from jaxift.tuning.watch import Watch

PAIRS = [(f"w{number} w{number + 1} {'w7 ' * (number % 3)}w9", f" {'ABCD'[number % 4]}") for number in range(10)]
CONFIG = TuneConfig(learning_rate=5e-3, epochs=3, batch_size=4, warmup=0.1, max_length=64)


def losses(tuned):
    return np.array([step["loss"] for step in tuned.metrics])


@pytest.fixture(scope="module")
def tuned(tiny_model):
    return tune(tiny_model, PAIRS, CONFIG, seed=1)


def test_tuning_lowers_the_loss_and_teaches_the_answers(tiny_model, tuned):
    assert losses(tuned)[-1] < 0.5 * losses(tuned)[0]
    requests = [Request(prompt, (answer,)) for prompt, answer in PAIRS]
    before, after = ([one.logprobs[0] for one in score(model, requests)] for model in (tiny_model, tuned.model))
    assert np.mean(after) > np.mean(before) + 1


def test_metrics_say_what_happened(tuned):
    assert [step["step"] for step in tuned.metrics] == list(range(1, 10))
    # two tokens a response: the letter and end-of-sequence; ten examples in batches of four
    assert [step["tokens"] for step in tuned.metrics] == [8, 8, 4] * 3
    assert tuned.metrics[0]["learning_rate"] == 0
    assert max(step["learning_rate"] for step in tuned.metrics) == pytest.approx(5e-3)
    assert all(step["grad_norm"] > 0 for step in tuned.metrics)


def test_first_loss_is_the_scorers(tiny_model, tuned):
    examples = batches.encode_examples(tiny_model.tokenizer, PAIRS, 64)
    first = batches.Plan(examples, CONFIG.batch_size, CONFIG.epochs, seed=1).members(0)
    answers = score(tiny_model, [Request(PAIRS[index][0], (f"{PAIRS[index][1]} <eos>",)) for index in first])
    assert losses(tuned)[0] == pytest.approx(-np.mean([one.logprobs[0] / 2 for one in answers]), rel=1e-5)


def test_base_model_is_untouched(tiny_folder):
    model = jaxift.load(tiny_folder)
    before = hf_tensors(model.decoder)
    result = tune(model, PAIRS, CONFIG).model
    chex.assert_trees_all_equal(hf_tensors(model.decoder), before)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model.decoder)))
    changed = hf_tensors(result.decoder)
    assert all(not np.array_equal(changed[name], before[name]) for name in before if "norm" not in name)


def test_runs_with_the_same_seed_are_bit_identical(tiny_model, tuned):
    again, other = (tune(tiny_model, PAIRS, CONFIG, seed=seed) for seed in (1, 2))
    assert again.metrics == tuned.metrics
    chex.assert_trees_all_equal(hf_tensors(again.model.decoder), hf_tensors(tuned.model.decoder))
    assert other.metrics != tuned.metrics


@pytest.mark.parametrize("mesh", ["8x1x1", "4x1x2"])
def test_mesh_and_its_padding_rows_change_nothing(mesh, meshes, tiny_folder, tuned):
    found = tune(jaxift.load(tiny_folder, meshes[mesh]), PAIRS, CONFIG, seed=1)
    np.testing.assert_allclose(losses(found), losses(tuned), rtol=1e-5)
    assert [step["tokens"] for step in found.metrics] == [step["tokens"] for step in tuned.metrics]


def test_models_on_their_way_are_those_whose_next_loss_was_told(tiny_model, tuned):
    models = {}

    class Kept(Watch):
        def model(self, name, step, model):
            models[step] = model()

    job = Job("the model", PAIRS, CONFIG.model_copy(update={"export_every": 3}), seed=1)
    [wave] = tune_cells(tiny_model, [job], watch=Kept())
    assert wave.cells[0].metrics == tuned.metrics
    assert list(models) == [3, 6]  # nine steps: the last is the model itself
    plan = batches.Plan(batches.encode_examples(tiny_model.tokenizer, PAIRS, 64), CONFIG.batch_size, 3, seed=1)
    for step, model in models.items():
        prompts = [PAIRS[index] for index in plan.members(step)]
        answers = score(model, [Request(prompt, (f"{answer} <eos>",)) for prompt, answer in prompts])
        assert losses(tuned)[step] == pytest.approx(-np.mean([one.logprobs[0] / 2 for one in answers]), rel=1e-4)


WAYS = {
    "unpacked": {"packing": False},
    "summed over parts": {"micro_tokens": 16},
    "unpacked, summed over parts": {"packing": False, "micro_tokens": 32},
}


@pytest.mark.parametrize("way", WAYS)
def test_how_examples_are_fed_changes_nothing(way, tiny_model, tuned):
    found = tune(tiny_model, PAIRS, CONFIG.model_copy(update=WAYS[way]), seed=1)
    np.testing.assert_allclose(losses(found), losses(tuned), rtol=1e-5)
    assert [step["tokens"] for step in found.metrics] == [step["tokens"] for step in tuned.metrics]


def test_recomputation_changes_nothing(tiny_model, tuned):
    found = tune(tiny_model, PAIRS, CONFIG.model_copy(update={"remat": "full"}), seed=1)
    np.testing.assert_allclose(losses(found), losses(tuned), rtol=1e-5)


def test_bfloat16_computation_keeps_float32_weights(tiny_folder, tuned):
    found = tune(jaxift.load(tiny_folder, dtype="bfloat16"), PAIRS, CONFIG, seed=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(found.model.decoder))} == {np.dtype("float32")}
    np.testing.assert_allclose(losses(found)[:3], losses(tuned)[:3], rtol=0.05)


def test_tuned_model_survives_export(tuned, tmp_path):
    folder = jaxift.export(tuned.model, tmp_path / "model")
    requests = [Request(prompt, (answer,)) for prompt, answer in PAIRS]
    for one, other in zip(score(tuned.model, requests), score(jaxift.load(folder), requests), strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_every_step_is_told_once_and_in_order(tiny_model):
    seen = []
    found = tune(tiny_model, PAIRS, CONFIG, on_step=seen.append)
    assert seen == found.metrics


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        tune(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_diverging_run_is_refused(tiny_model):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    message = refusal(tiny_model, PAIRS, config)
    assert "step 2: the loss or gradient is not finite, on the examples" in message
    assert "lower tune.learning_rate" in message


def test_no_data_is_refused(tiny_model):
    assert "there is no example to tune on" in refusal(tiny_model, [], CONFIG)


@pytest.mark.parametrize("limit", [8, 2048], ids=["tune.max_length", "the model's length"])
def test_over_long_example_is_refused(limit, tiny_model):
    config = CONFIG.model_copy(update={"max_length": limit})
    message = refusal(tiny_model, [PAIRS[0], ("w1 " * 100, " A")], config)
    assert "has 103 tokens, 101 of them its prompt" in message


def test_tokenizer_without_end_of_sequence_is_refused(make_folder, tmp_path):
    model = jaxift.load(make_folder(tmp_path / "model", eos=None))
    assert "no end-of-sequence token" in refusal(model, PAIRS, CONFIG)


def test_token_outside_the_vocabulary_is_refused(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model", vocab_size=40)
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) == 64
    model = jaxift.load(folder)
    assert "outside the model's vocabulary of 40" in refusal(model, [("w1", " w44")], CONFIG)
