"""What several tests of tuning share: a task, settings, and the bounds that hold between layouts."""

import numpy as np

from jaxift.config import TuneConfig
from jaxift.models.export import hf_tensors

PAIRS = [
    (f"w{number % 7} w{number % 9 + 1} {'w7 ' * (number % 4)}w9", f" {'ABCD'[number % 4]}{' w3' * (number % 2)}")
    for number in range(40)
]
# 20 steps: 40 examples in batches of 8, four times
ADAMW = TuneConfig(learning_rate=2e-3, epochs=4, batch_size=8, warmup=0.1, max_length=64, epsilon=1e-6)
SGD = TuneConfig(
    learning_rate=0.05, epochs=4, batch_size=8, warmup=0.1, max_length=64,
    chain=({"name": "sgd", "options": {"momentum": 0.9}},),
)  # fmt: skip
OPTIMIZERS = {"AdamW": ADAMW, "SGD": SGD}


def losses(metrics):
    """Losses of all steps."""
    return np.array([step["loss"] for step in metrics])


def weights(model):
    """Weights by Hugging Face name, without rows that pad the vocabulary."""
    return {name: np.asarray(value, np.float64) for name, value in hf_tensors(model.decoder).items()}


def assert_same_run(found, expected, base, config):
    """Holds two runs (weights, metrics) from the weights `base` to the bounds that hold between layouts.

    Losses of all steps within 1e-5; weights within 1e-5 under SGD, updates within a hundredth of their norm under
    AdamW, which makes whole steps of tiny gradients.
    """
    (after, metrics), (others, other_metrics) = found, expected
    assert len(metrics) == len(other_metrics)
    np.testing.assert_allclose(losses(metrics), losses(other_metrics), rtol=0, atol=1e-5)
    for name, before in base.items():
        difference = after[name] - others[name]
        if config.chain:
            assert np.abs(difference).max() <= 1e-5, name
        else:
            assert np.linalg.norm(difference) <= 1e-2 * np.linalg.norm(others[name] - before), name
