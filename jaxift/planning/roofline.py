"""How long a program takes at least and at most, if each part of the hardware does what its maker says.

    compute       = FLOPs / peak FLOP/s
    memory        = bytes over HBM / bandwidth of HBM
    network       = sum over collectives of (bytes received / bandwidth of the links into a device)
    optimistic    = max(compute, memory, network)          all three overlap
    pessimistic   = compute + memory + network             nothing does

No constant is fitted: products run at the peak, and what hinders them beside memory and network is not seen.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxift.parallel.peaks import Chip
from jaxift.planning.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one run of a program on each device."""

    compute: float
    memory: float
    network: float

    @property
    def optimistic(self) -> float:
        """All parts at once."""
        return max(self.compute, self.memory, self.network)

    @property
    def pessimistic(self) -> float:
        """One after another."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    def __mul__(self, times: float) -> "Times":
        return Times(*(times * each for each in dataclasses.astuple(self)))

    def __add__(self, other: "Times") -> "Times":
        return Times(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def times(
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[Collective],
    chip: Chip,
    devices: np.ndarray,
    received_a_second: Callable[[Sequence[Any]], float],
) -> Times:
    """Times of a program, from what each device computes and moves; `devices` are the mesh's, in its order."""
    assert chip.hbm_bandwidth is not None
    flat = devices.reshape(-1)
    network = 0.0
    for each in collectives:
        if len(each.group) > 1:
            network += each.received / received_a_second([flat[number] for number in each.group])
    return Times(flops / chip.flops, hbm_bytes / chip.hbm_bandwidth, network)
