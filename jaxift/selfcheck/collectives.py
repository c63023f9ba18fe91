"""How fast devices exchange arrays along each axis of the mesh, beside what the links of a chip carry."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxift.parallel import meeting
from jaxift.parallel.peaks import Chip, chip
from jaxift.selfcheck.lines import Line
from jaxift.selfcheck.timing import seconds_each

BYTES = {"cpu": 4 * 2**20}
"""That each device holds; a platform that is not named takes the default."""
DEFAULT_BYTES = 64 * 2**20
SECONDS = {"cpu": 0.05}
DEFAULT_SECONDS = 0.2
SHARE = 0.4
"""Of one link in one direction, below which an axis is not as it should be: an axis of the mesh has at least one."""


def lines(mesh: Mesh) -> list[Line]:
    """A line for each axis of several devices, judged where the links' figure is known."""
    device = mesh.devices.flat[0]
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    return [judged(axis, _measured(mesh, axis), chip(device.device_kind), _slices(mesh)) for axis in axes]


def judged(axis: str, speeds: dict[str, float], known: Chip | None, slices: int = 1) -> Line:
    """What bytes a second out of one device say, beside the chip's links."""
    name = f"links {axis}"
    text = ", ".join(f"{kind} {speed / 1e9:.3g} GB/s" for kind, speed in speeds.items()) + " out of a device"
    facts: dict[str, Any] = {"bytes a second": speeds}
    if known is None or known.link_bandwidth is None or slices > 1:
        crossing = f"; the mesh has {slices} slices, joined by the data centre's network" if slices > 1 else ""
        return Line(name, "told", text + crossing, facts)
    link = known.link_bandwidth
    facts["share of a link"] = share = min(speeds.values()) / link
    text += f"; one link of {known.name} carries {link / 1e9:.0f} one way"
    if share < SHARE:
        text += f": below {SHARE:.0%} of it; the axis may run over the hosts' network: check the topology asked for"
    return Line(name, "bad" if share < SHARE else "good", text, facts)


def _slices(mesh: Mesh) -> int:
    """Groups of chips that have links among themselves alone."""
    return len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})


def _measured(mesh: Mesh, axis: str) -> dict[str, float]:
    """Bytes a second that leave a device, where data goes the shortest way: round a ring."""
    platform, devices = mesh.devices.flat[0].platform, mesh.shape[axis]
    held = BYTES.get(platform, DEFAULT_BYTES)
    seconds = SECONDS.get(platform, DEFAULT_SECONDS)
    timed = {
        "all-reduce": (all_reduce, 2 * (devices - 1) / devices * held),
        "all-gather": (all_gather, (devices - 1) * held / devices),
    }
    speeds = {}
    for kind, (step, moved) in timed.items():
        program = _program(mesh, axis, step, held // 4)
        speeds[kind] = moved / seconds_each(program, seconds, _agreed)
    return json.loads(meeting.exchange(f"selfcheck {axis}", json.dumps(speeds).encode())[0])  # the first's, for all


def _agreed(times: int) -> int:
    return int(meeting.exchange("selfcheck repetitions", str(times).encode())[0])


def all_reduce(x: jax.Array, _: Any, axis: str, devices: int) -> jax.Array:
    """The mean over the axis of what each device holds."""
    return jax.lax.psum(x, axis) / devices


def all_gather(x: jax.Array, number: Any, axis: str, devices: int) -> jax.Array:
    """A device's share, put together from everybody's; whose changes, so that the whole has to come."""
    share = x.shape[0] // devices
    whole = jax.lax.all_gather(x[:share], axis, tiled=True)
    return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(whole, (number % devices * share,), (share,)), (0,))


def _program(mesh: Mesh, axis: str, step: Callable[..., jax.Array], elements: int) -> Callable[[int], jax.Array]:
    """A program that repeats a step on `elements` float32 numbers of each device along the axis."""
    layout = PartitionSpec(axis)
    devices = mesh.shape[axis]
    elements -= elements % devices

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(layout, PartitionSpec()), out_specs=layout, check_vma=False)
    def repeated(x: jax.Array, times: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda number, x: step(x, number, axis, devices), x)

    start = jax.jit(lambda: jnp.ones(elements * devices), out_shardings=NamedSharding(mesh, layout))()
    compiled = jax.jit(repeated)
    return lambda times: compiled(start, times)
