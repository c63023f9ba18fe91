"""How fast each device multiplies matrices, beside what its maker says."""

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from jaxift.parallel.peaks import Chip, chip
from jaxift.selfcheck.lines import Line, failed_hosts, from_hosts
from jaxift.selfcheck.timing import seconds_each

SIZE = {"cpu": 1024}
"""Rows and columns of the matrices; a platform that is not named takes the default."""
DEFAULT_SIZE = 8192
SECONDS = {"cpu": 0.05}
DEFAULT_SECONDS = 0.2
SHARE = 0.5
"""Of the peak, below which a device is not as it should be: large matrices reach 80 % and more of it."""
SLOW = 0.8
"""Of the median device, below which one is named."""


def lines() -> list[Line]:
    """One line for all devices of all hosts, judged where the maker's figure is known."""
    found = from_hosts("matmul", _here)
    if failed := failed_hosts(found):
        return [Line("matmul", "bad", failed)]
    return [judged({name: speed for each in found for name, speed in each["flops"].items()}, _chip(), _dtype())]


def judged(flops: dict[str, float], known: Chip | None, dtype: str) -> Line:
    """What FLOP/s by device say, beside the chip's peak."""
    median = statistics.median(flops.values())
    slow = {name: speed for name, speed in flops.items() if speed < SLOW * median}
    text = f"{median / 1e12:.3g} TFLOP/s {dtype} a device (median of {len(flops)})"
    named = ", ".join(f"{name} {speed / 1e12:.3g}" for name, speed in slow.items())
    facts: dict[str, Any] = {"dtype": dtype, "flops": flops, "median": median}
    if known is None:
        return Line("matmul", "told", text + (f"; slower: {named}" if slow else ""), facts)
    share = median / known.flops
    text += f", {share:.0%} of {known.name}'s {known.flops / 1e12:.0f}"
    facts["share"] = share
    if share < SHARE:
        text += f": below {SHARE:.0%}; another program may use the devices, or they are throttled"
    elif slow:
        text += f"; slow: {named}; another program may use them, or the chip is faulty: stop it, or get another host"
    return Line("matmul", "bad" if slow or share < SHARE else "good", text, facts)


def device_flops(device: Any, size: int, dtype: str, seconds: float) -> float:
    """Floating-point operations a second of a chain of products of [size, size] matrices."""
    key = jax.random.key(0)
    with jax.default_device(device):
        # rows of length about one stay so, whatever the number of products
        weight = (jax.random.normal(key, (size, size)) / size**0.5).astype(dtype)
        start = jnp.ones((size, size), dtype)
    weight, start = jax.device_put((weight, start), device)
    return 2 * size**3 / seconds_each(lambda times: _chain(start, weight, times), seconds)


@jax.jit
def _chain(x: jax.Array, weight: jax.Array, times: int) -> jax.Array:
    return jax.lax.fori_loop(0, times, lambda _, x: x @ weight, x)


def _here() -> dict[str, Any]:
    local = jax.local_devices()
    platform = local[0].platform
    size, seconds = SIZE.get(platform, DEFAULT_SIZE), SECONDS.get(platform, DEFAULT_SECONDS)
    return {"flops": {str(device): device_flops(device, size, _dtype(), seconds) for device in local}}


def _chip() -> Chip | None:
    return chip(jax.local_devices()[0].device_kind)


def _dtype() -> str:
    return "float32" if jax.local_devices()[0].platform == "cpu" else "bfloat16"
