"""Loss, gradients and updates against torch, and learning rates against the Hugging Face formula."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.config import TuneConfig
from jaxift.models.export import hf_tensors
from jaxift.tuning.batches import Plan, choose_shape, encode_examples
from jaxift.tuning.loop import tune
from jaxift.tuning.optimizers import learning_rates
from jaxift.tuning.step import response_loss

SHAPE = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
PAIRS = [
    (f"w{number} w{number + 1} {'w7 ' * (number % 3)}w9", f" {'ABCD'[number % 4]}{' w3' * (number % 2)}")
    for number in range(12)
]
CONFIG = TuneConfig(
    learning_rate=1e-2, epochs=2, batch_size=4, warmup=0.2, weight_decay=0.1, epsilon=1e-6, clip_norm=1.0, max_length=64
)


def hugging_face_rate(step, warmup, steps, peak):
    """The formula of transformers.get_cosine_schedule_with_warmup."""
    if step < warmup:
        return peak * step / max(1, warmup)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


SCHEDULES = [(1, 0.03), (2, 0.03), (12, 0.03), (42, 0.03), (100, 0.1), (7, 0.0), (5, 0.5), (4, 1.0)]


@pytest.mark.parametrize(("steps", "share"), SCHEDULES)
def test_learning_rates_are_the_formulas(steps, share):
    rates = learning_rates(TuneConfig(learning_rate=2e-5, warmup=share), steps)
    warmup = math.ceil(share * steps)
    expected = [hugging_face_rate(step, warmup, steps, 2e-5) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(("steps", "share"), SCHEDULES)
def test_learning_rates_are_those_of_transformers(steps, share):
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(share * steps), steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rates = learning_rates(TuneConfig(learning_rate=2e-5, warmup=share), steps)
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-11)


@pytest.fixture
def pair(make_torch, tmp_path):
    """A torch model and ours from the same folder."""
    return make_torch(tmp_path, "llama", **SHAPE).train(), jaxift.load(tmp_path)


def torch_loss(model, examples):
    """transformers' own masked loss over right-padded rows: a mean over the tokens of the whole batch."""
    import torch

    width = max(len(example.tokens) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels, seen = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        ids[row, :length], seen[row, :length] = torch.tensor(example.tokens), 1
        labels[row, example.start : length] = torch.tensor(example.tokens[example.start :])
    return model(input_ids=ids, attention_mask=seen, labels=labels).loss


def whole_batch(examples, packing=False):
    """All examples as one batch of one part, without the axis over parts."""
    plan = Plan(examples, len(examples), 1, seed=0)
    shape = choose_shape([plan], packing=packing, micro_tokens=1 << 20, shards=1, limit=1 << 10)
    return [array[0] for array in plan.batch(0, shape, packing).arrays]


def our_gradient(model, examples, packing=False, remat="none"):
    """Mean loss of a batch and its gradient."""
    graph, state = nnx.split(model.decoder)
    arrays = [jnp.asarray(array) for array in whole_batch(examples, packing)]

    def loss(state):
        losses = response_loss(nnx.merge(graph, state), *arrays, dtype=model.dtype, remat=remat)
        return losses.loss / arrays[-1].sum()

    with jax.set_mesh(model.mesh):
        value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    return float(value), hf_tensors(nnx.merge(graph, gradient))


def worst_relative_error(found, expected):
    """Largest relative norm of a difference, over tensors."""
    assert found.keys() == expected.keys()
    return max(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name]) for name in expected)


def torch_tensors(model, of):
    return {name: of(parameter).detach().numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shift", [0, -1, 1], ids=["right mask", "mask a token early", "mask a token late"])
def test_gradient_is_that_of_torch_and_fails_with_a_wrong_mask(shift, pair):
    theirs, ours = pair
    examples = encode_examples(ours.tokenizer, PAIRS, 64)
    loss = torch_loss(theirs, examples)
    loss.backward()
    moved = [dataclasses.replace(example, start=example.start + shift) for example in examples]
    found, gradient = our_gradient(ours, moved)
    error = worst_relative_error(gradient, torch_tensors(theirs, lambda parameter: parameter.grad))
    if shift == 0:
        assert found == pytest.approx(loss.item(), rel=1e-5)
        assert error <= 1e-4
    else:
        assert error > 0.1


def torch_run(model, examples, config, seed):
    """Losses of a whole run: AdamW, clipping, cosine rates, weight decay on all but norms."""
    import torch

    plan = Plan(examples, config.batch_size, config.epochs, seed)
    named = dict(model.named_parameters())
    groups = [
        {"params": [value for name, value in named.items() if ("norm" in name) == norm], "weight_decay": decay}
        for norm, decay in ((False, config.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    losses, norms = [], []
    for step in range(plan.steps):
        rate = hugging_face_rate(step, math.ceil(config.warmup * plan.steps), plan.steps, config.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = torch_loss(model, [examples[index] for index in plan.members(step)])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_one_step_is_that_of_torch(pair):
    theirs, ours = pair
    config = CONFIG.model_copy(update={"warmup": 0.0, "epochs": 1, "batch_size": len(PAIRS)})
    before = torch_tensors(theirs, lambda parameter: parameter.clone())
    torch_run(theirs, encode_examples(ours.tokenizer, PAIRS, 64), config, seed=0)
    after = torch_tensors(theirs, lambda parameter: parameter)
    found = hf_tensors(tune(ours, PAIRS, config).model.decoder)
    updates = [{name: tensors[name] - before[name] for name in before} for tensors in (found, after)]
    assert worst_relative_error(*updates) <= 1e-3


@pytest.mark.parametrize("clip_norm", [1.0, 1e9], ids=["clipped", "not clipped"])
def test_run_of_several_steps_tracks_torch(clip_norm, pair):
    theirs, ours = pair
    config = CONFIG.model_copy(update={"clip_norm": clip_norm})
    losses, norms = torch_run(theirs, encode_examples(ours.tokenizer, PAIRS, 64), config, seed=3)
    metrics = tune(ours, PAIRS, config, seed=3).metrics
    assert len(metrics) == len(losses) == 6
    np.testing.assert_allclose([step["loss"] for step in metrics], losses, rtol=1e-4)
    np.testing.assert_allclose([step["grad_norm"] for step in metrics], norms, rtol=1e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "change", [{"beta2": 0.9}, {"weight_decay": 0.0}, {"clip_norm": 1e9}, {"warmup": 0.0}], ids=str
)
def test_torch_with_another_setting_is_not_tracked(change, pair):
    theirs, ours = pair
    other = CONFIG.model_copy(update=change)
    losses, _ = torch_run(theirs, encode_examples(ours.tokenizer, PAIRS, 64), other, seed=3)
    metrics = tune(ours, PAIRS, CONFIG, seed=3).metrics
    differences = np.abs(np.array([step["loss"] for step in metrics]) / losses - 1)
    assert differences.max() > 1e-3
