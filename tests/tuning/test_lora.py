"""Adapters: they change nothing before the first step, are all that is tuned, and leave as others read them."""

import numpy as np
import pytest
from tuning_runs import ADAMW, PAIRS, SGD, assert_same_run, losses

import jaxift
from jaxift.config import LoraConfig, TuneConfig
from jaxift.models.adapters import adapted, export_adapter, merged, without_adapters
from jaxift.models.config import LoraShape
from jaxift.models.export import hf_tensors
from jaxift.parallel.mesh import make_mesh
from jaxift.scoring.engine import Request, score, score_stack
from jaxift.tuning.loop import Job, tune, tune_cells

LORA = {"lora": LoraConfig(rank=4, alpha=8)}
CONFIG = ADAMW.model_copy(update={**LORA, "learning_rate": 1e-2})
REQUESTS = [Request(prompt, (" A", " B w3", " C")) for prompt, _ in PAIRS[:9]]


def logprobs(model):
    return np.array([answer.logprobs for answer in score(model, REQUESTS)])


@pytest.fixture(scope="module")
def tuned(tiny_model):
    return tune(tiny_model, PAIRS, CONFIG, seed=1)


def test_new_adapters_leave_every_logit_unchanged(tiny_model):
    model = adapted(tiny_model, LoraShape(4, 2.0), seed=0)
    np.testing.assert_array_equal(logprobs(model), logprobs(tiny_model))
    _, adapters, _ = without_adapters(model)
    assert {path[-1] for path in adapters} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert all(np.abs(adapter.a).max() > 0 == np.abs(adapter.b).max() for adapter in adapters.values())


def test_tuning_adapters_learns_and_leaves_the_weights_alone(tiny_model, tuned):
    assert losses(tuned.metrics)[-1] < 0.5 * losses(tuned.metrics)[0]
    plain, adapters, _ = without_adapters(tuned.model)
    for name, value in hf_tensors(plain.decoder).items():
        np.testing.assert_array_equal(value, hf_tensors(tiny_model.decoder)[name])
    assert all(np.abs(adapter.b).max() > 0 for adapter in adapters.values())


def test_merged_adapters_are_the_adapters(tiny_model, tuned):
    plain, adapters, scale = without_adapters(tuned.model)
    found, expected = logprobs(merged(plain, adapters, scale)), logprobs(tuned.model)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - logprobs(tiny_model)).max() > 0.5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_reads_the_adapters_and_gives_the_same_logits(make_torch, tmp_path, all_logits):
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    peft = pytest.importorskip("peft", reason="peft is not installed; parity needs it")
    shape = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    theirs = make_torch(tmp_path / "base", "llama", **shape)
    tuned = tune(jaxift.load(tmp_path / "base"), PAIRS, CONFIG).model
    plain, adapters, scale = without_adapters(tuned)
    folder = export_adapter(plain, adapters, tmp_path / "adapter", scale=scale)
    tokens = np.random.default_rng(0).integers(4, 64, (3, 20))
    before = theirs(torch.tensor(tokens)).logits.detach().numpy()
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(theirs, folder)(torch.tensor(tokens)).logits.numpy()
    found = all_logits(tuned.decoder, tuned.mesh, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - before).max() > 0.1


def adapter_weights(model):
    _, adapters, _ = without_adapters(model)
    return {
        f"{path} {part}": np.asarray(getattr(adapter, part), np.float64)
        for path, adapter in adapters.items()
        for part in "ab"
    }


@pytest.mark.slow
def test_a_stack_of_adapters_over_one_model_is_each_alone(tiny_folder, tiny_model):
    config = SGD.model_copy(update=LORA)
    jobs = [Job(str(seed), PAIRS[seed:], config, seed) for seed in range(3)]
    model = jaxift.load(tiny_folder, make_mesh(cell=2, fsdp=2, tensor=2))
    [wave] = tune_cells(model, jobs)
    assert wave.stack.filled == 4
    scored = score_stack(wave.stack, REQUESTS)
    for number, job in enumerate(jobs):
        alone = tune(tiny_model, job.pairs, config, seed=job.seed)
        base = adapter_weights(adapted(tiny_model, LoraShape(4, 2.0), seed=job.seed))
        found = adapter_weights(wave.stack.model(number)), wave.cells[number].metrics
        assert_same_run(found, (adapter_weights(alone.model), alone.metrics), base, config)
        np.testing.assert_allclose([answer.logprobs for answer in scored[number]], logprobs(alone.model), atol=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_of_adapters_goes_on(tiny_model, tuned, tmp_path):
    class Stopped(Exception):
        pass

    def stop(metrics):
        if metrics["step"] == 5:
            raise Stopped

    config, seen = CONFIG.model_copy(update={"checkpoint_every": 2}), []
    with pytest.raises(Stopped):
        tune(tiny_model, PAIRS, config, seed=1, folder=tmp_path, on_step=stop)
    again = tune(tiny_model, PAIRS, config, seed=1, folder=tmp_path, on_step=seen.append)
    assert seen[0]["step"] == 5
    assert again.metrics == tuned.metrics
    np.testing.assert_array_equal(logprobs(again.model), logprobs(tuned.model))


def test_only_the_matrices_that_are_asked_for_get_adapters(tiny_model):
    config = TuneConfig(**{**CONFIG.model_dump(), "epochs": 1, "lora": {"rank": 2, "targets": ["q", "v"]}})
    _, adapters, scale = without_adapters(tune(tiny_model, PAIRS, config).model)
    assert {path[-1] for path in adapters} == {"q", "v"}
    assert scale == 16
