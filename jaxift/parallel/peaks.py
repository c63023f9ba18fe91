"""What devices can do at most, by their makers' data sheets."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at most; None where it is not needed, or its maker does not say.

    `flops` in bfloat16, bytes of memory, and bytes a second of memory. `link_bandwidth` is that of one link between
    chips, one way; each has two of them along every one of `axes` dimensions of its network.
    """

    name: str
    flops: float
    hbm_bytes: int | None = None
    hbm_bandwidth: float | None = None
    link_bandwidth: float | None = None
    axes: int | None = None


# TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, which tell the interconnect of a chip as all its links,
# both ways (v5e 400 GB/s, v5p 1,200 GB/s, v6e 800 GB/s, tpu7x 1,200 GB/s) or, for v4, one way (2,400 Gbps). Of v2, v3
# and v7 a device is a core, of which a chip has two, of all others a chip. NVIDIA: nvidia.com, dense bfloat16.
CHIPS = (
    Chip("TPU v2", 22.5e12),
    Chip("TPU v3", 61.5e12),
    Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 50e9, 3),
    Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 50e9, 2),
    Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 100e9, 3),
    Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 100e9, 2),
    Chip("TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 50e9, 3),
    Chip("NVIDIA A100", 312e12),
    Chip("NVIDIA H100", 989e12),
)


def chip(kind: str) -> Chip | None:
    """What a device of a kind (`device.device_kind`) can do; None where nothing is known of it."""
    return next((each for each in sorted(CHIPS, key=lambda each: -len(each.name)) if kind.startswith(each.name)), None)


def peak_flops(device: Any, dtype: str) -> float | None:
    """Floating-point operations a second of a device, where its maker says: in bfloat16 alone."""
    found = chip(device.device_kind)
    return found.flops if found and dtype == "bfloat16" else None


def devices_used(mesh: Mesh, dtype: str) -> dict[str, Any]:
    """A mesh's devices and what one of them can do at most (None where it is not known), for a record."""
    device = mesh.devices.flat[0]
    return {"device": device.device_kind, "devices": mesh.size, "dtype": dtype, "peak": peak_flops(device, dtype)}
