"""Learning rates, and the optax chain that a configuration asks for."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxift.config import ChainPart, TuneConfig
from jaxift.errors import UserError

OPTIMIZER = {"chain", "clip_norm", "beta1", "beta2", "epsilon", "weight_decay"}
"""Settings that the optimizer is made of."""


def learning_rates(config: TuneConfig, steps: int) -> np.ndarray:
    """The rate of every step, [steps]: linear warm-up from 0, then cosine to 0 (as in the Hugging Face Trainer)."""
    warmup = int(np.ceil(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32)


def optimizer(config: TuneConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or the configured chain, at a learning rate of 1: each step multiplies its own.

    Equal settings give the same object, for which programs are compiled once. Raises UserError where a part of the
    chain is none of optax, or does not take its options.
    """
    return _optimizer(config.model_dump_json(include=OPTIMIZER))


@functools.lru_cache(maxsize=64)
def _optimizer(settings: str) -> optax.GradientTransformation:
    config = TuneConfig.model_validate_json(settings)
    if config.chain:
        rest = [_part(number, part) for number, part in enumerate(config.chain)]
    else:
        rest = [
            optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
            optax.scale(-1.0),
        ]
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), *rest)


def _part(number: int, part: ChainPart) -> optax.GradientTransformation:
    where = f"tune.chain[{number}]"
    make = getattr(optax, part.name, None)
    if not inspect.isfunction(make):
        raise UserError(f"{where}: {part.name} is no function of optax; name one such as adamw, sgd or lion")
    takes = inspect.signature(make).parameters
    if unknown := set(part.options) - set(takes):
        raise UserError(f"{where}: optax.{part.name} takes no {sorted(unknown)[0]}; it takes {', '.join(takes)}")
    options: dict[str, Any] = dict(part.options)
    if "learning_rate" in takes:
        if "learning_rate" in options:
            raise UserError(f"{where}: learning_rate is that of the schedule; set tune.learning_rate instead")
        options["learning_rate"] = 1.0
    try:
        made = make(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: optax.{part.name} refuses its options: {error}") from None
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(f"{where}: optax.{part.name} is no optimizer; name one such as adamw, sgd or lion")
    return made


def decayed(params: Any) -> Any:
    """Weight decay spares norms and biases."""

    def is_matrix(path: Sequence[Any], _: jax.Array) -> bool:
        return not any(word in jax.tree_util.keystr(tuple(path)) for word in ("norm", "bias"))

    return jax.tree.map_with_path(is_matrix, params)
