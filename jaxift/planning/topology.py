"""TPU slices that are not here: their devices for the compiler, and what their network carries."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxift.errors import UserError
from jaxift.parallel.peaks import Chip, chip

KINDS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
"""Generations, and the dimensions of their networks."""
# v4 has two cores a chip, which work as one device
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
_NAME = re.compile(r"(\w+):(\d+(?:x\d+)+)")
# only compiles: asks no server what machine this is, shares the library with others, and says nothing
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its devices in the compiler's order, and the chip that they are of."""

    name: str
    devices: Sequence[Any]
    chip: Chip
    sizes: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Chips, of which each may be several devices."""
        return len({tuple(device.coords) for device in self.devices})

    @property
    def hosts(self) -> int:
        """Machines that the chips stand in."""
        return len({device.process_index for device in self.devices})

    def received_a_second(self, group: Sequence[Any]) -> float:
        """Bytes that every device of a group can receive in a second from the others, all at once.

        Along each dimension of the network in which they differ, a chip has links to both sides where the group goes
        around a ring, and at its ends to one side: the slowest device counts.
        """
        assert self.chip.link_bandwidth is not None
        links = 0
        for axis, size in enumerate(self.sizes):
            places = {device.coords[axis] for device in group}
            if len(places) > 1:
                links += 2 if len(places) == size and self._is_ring(size) else 1
        # cores of one chip exchange over its memory
        return self.chip.link_bandwidth * links if links else self.chip.hbm_bandwidth or float("inf")

    def _is_ring(self, size: int) -> bool:
        """Whether a whole dimension is closed: whole cubes of four of three-dimensional networks, 16 of the others."""
        return size % 4 == 0 if len(self.sizes) == 3 else size == 16


def described(name: str) -> Topology:
    """The topology of a name such as v5e:4x4 or v5p:4x4x4; raises UserError where there is none, or no compiler."""
    found = _NAME.fullmatch(name)
    if not found or KINDS.get(found[1]) != found[2].count("x") + 1:
        known = ", ".join(f"{kind}:{'x'.join('4' * axes)}" for kind, axes in KINDS.items())
        raise UserError(f"--topology {name}: is no slice; give a generation and its sizes, as in {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology: needs the TPU compiler; install jaxift[plan]")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **_OPTIONS.get(found[1], {})).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {name}: {str(error).splitlines()[0]}; choose another one") from None
    known_chip = chip(devices[0].device_kind)
    assert known_chip, devices[0].device_kind
    return Topology(name, devices, known_chip, tuple(int(size) for size in found[2].split("x")))
