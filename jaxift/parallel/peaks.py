"""What devices can do at most, by their makers' data sheets."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

# dense bfloat16 FLOP/s of one JAX device: cloud.google.com/tpu/docs, nvidia.com data sheets; v2 and v3 count a core,
# v4 and later a chip
BFLOAT16: dict[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
}


def peak_flops(device: Any, dtype: str) -> float | None:
    """Floating-point operations a second of a device, where its maker says: in bfloat16 alone."""
    if dtype != "bfloat16":
        return None
    kind = device.device_kind
    return next((BFLOAT16[name] for name in sorted(BFLOAT16, key=len, reverse=True) if kind.startswith(name)), None)


def devices_used(mesh: Mesh, dtype: str) -> dict[str, Any]:
    """A mesh's devices and what one of them can do at most (None where it is not known), for a record."""
    device = mesh.devices.flat[0]
    return {"device": device.device_kind, "devices": mesh.size, "dtype": dtype, "peak": peak_flops(device, dtype)}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at most: `flops` in bfloat16, bytes of memory, and bytes a second of memory and links.

    `ici_bandwidth` is that of all links of a chip together, both directions, as its maker counts.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float


# cloud.google.com/tpu/docs: the pages of each version
CHIPS = (
    Chip("TPU v4", 275e12, 32 * 2**30, 1200e9, 600e9),
    Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 400e9),
    Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 1200e9),
    Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 1200e9),
    Chip("TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 800e9),
)


def chip(kind: str) -> Chip | None:
    """The chip of a device kind, or None where it is not in the table."""
    return next((each for each in sorted(CHIPS, key=lambda each: -len(each.name)) if kind.startswith(each.name)), None)
