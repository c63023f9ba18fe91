"""The tuning loop: place the batch, dispatch the step, log the step before, save, resume."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from jaxift.artifacts import digest
from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.buckets import check_tokens
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import batch_shards, sharding
from jaxift.tuning.batches import Batch, Example, Plan, encode_examples
from jaxift.tuning.checkpoint import Checkpoints
from jaxift.tuning.step import initial_moments, learning_rates, train_step

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A tuned model, what happened at each of its optimizer steps, and how many examples fill the length limit."""

    model: LanguageModel
    metrics: list[Metrics]
    at_limit: int


def tune(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    config: TuneConfig | None = None,
    *,
    seed: int = 0,
    folder: epath.PathLike | None = None,
    on_step: Callable[[Metrics], None] | None = None,
) -> Tuned:
    """Fine-tunes all weights on (prompt, response) pairs, the loss on the responses alone.

    Weights and moments are float32, the computation is in the model's dtype. With `folder`, checkpoints are written
    there, and an interrupted run with the same data and settings goes on where it stopped, bit-identical on the same
    mesh. The metrics of a step are step (from 1), loss (nats a token), learning_rate, grad_norm and tokens; `on_step`
    gets each when it is known.
    """
    config = config or TuneConfig()
    if not pairs:
        raise UserError("there is no example to tune on")
    longest = min(config.max_length, model.config.max_positions)
    examples = encode_examples(model.tokenizer, pairs, longest, config.too_long == "truncate")
    for example in examples:
        check_tokens(example.tokens, model.config.vocab_size)
    plan = Plan(examples, config.batch_size, config.epochs, seed, batch_shards(model.mesh))
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if folder is not None:
            checkpoints = stack.enter_context(Checkpoints(folder, run_key(model, examples, config, seed)))
        params, metrics = _fit(model, plan, config, checkpoints, on_step or (lambda _: None))
        at_limit = sum(len(example.tokens) == longest for example in examples)
        return Tuned(model.with_state(params), metrics, at_limit)


def run_key(model: LanguageModel, examples: Sequence[Example], config: TuneConfig, seed: int) -> str:
    """Hash of everything that a run's course depends on; only a run with the same key is resumed."""
    data = [dataclasses.astuple(example) for example in examples]
    course = config.model_dump(exclude={"checkpoint_every"})
    return digest([data, course, seed, str(model.dtype), dataclasses.asdict(model.config), model.fingerprint])


def _fit(
    model: LanguageModel,
    plan: Plan,
    config: TuneConfig,
    checkpoints: Checkpoints | None,
    on_step: Callable[[Metrics], None],
) -> tuple[nnx.State, list[Metrics]]:
    graph, base = nnx.split(model.decoder)
    # a copy: the step donates its buffers, and the base model serves the next cell
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base)
    rates = learning_rates(config, plan.steps)
    if not rates.any():
        raise UserError(
            f"{plan.steps} optimizer step is all warm-up, at rate 0; raise tune.epochs or set tune.warmup 0"
        )
    metrics: list[Metrics] = []
    with jax.set_mesh(model.mesh):
        moments = initial_moments(config, params)
        if checkpoints and checkpoints.latest:
            params, moments, metrics = checkpoints.restore(params, moments)
        pending: dict[str, Any] | None = None
        for step in range(len(metrics), plan.steps):
            params, moments, measured = train_step(
                graph, config, params, moments, rates[step], _place(plan.batch(step), model), dtype=model.dtype
            )
            _settle(pending, metrics, on_step)  # the step before: reading it does not hold up the one in flight
            pending = {"step": step + 1, "learning_rate": rates[step], **measured}
            if checkpoints and _due(step + 1, plan.steps, config.checkpoint_every):
                _settle(pending, metrics, on_step)
                pending = None
                checkpoints.save(params, moments, metrics)
        _settle(pending, metrics, on_step)
        if checkpoints and checkpoints.latest != plan.steps:
            checkpoints.save(params, None, metrics)
    return params, metrics


def _due(step: int, steps: int, every: int) -> bool:
    """Whether a resumable checkpoint is wanted after `step`; the end is saved anyway, without moments."""
    return every > 0 and step % every == 0 and step < steps


def _place(batch: Batch, model: LanguageModel) -> tuple[jax.Array, ...]:
    return tuple(
        jax.device_put(array, sharding(model.mesh, "batch", *[None] * (array.ndim - 1))) for array in batch.arrays
    )


def _settle(pending: dict[str, Any] | None, metrics: list[Metrics], on_step: Callable[[Metrics], None]) -> None:
    """Waits for a dispatched step's metrics, keeps them and passes them on."""
    if pending is None:
        return
    values = {name: float(value) for name, value in jax.device_get(pending).items()}
    if not np.isfinite([values["loss"], values["grad_norm"]]).all():
        raise UserError(f"step {values['step']:.0f}: the loss or gradient is not finite; lower tune.learning_rate")
    metrics.append(values)
    on_step(values)
