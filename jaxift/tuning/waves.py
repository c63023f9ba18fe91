"""How many models are tuned at once: from what a step's program takes of a device's memory."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from jax.sharding import Mesh

from jaxift.errors import UserError
from jaxift.parallel.meeting import exchange
from jaxift.parallel.mesh import CELL
from jaxift.parallel.peaks import GIB

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes on a device, beside what they are for."""

    weights: int
    moments: int
    shared: int
    """Weights that no cell changes."""
    gradients: int
    batches: int
    total: int
    """Peak, as the compiler says."""

    @property
    def activations(self) -> int:
        """What is left: activations, and room that the program needs on the way."""
        return max(self.total - self.weights - self.moments - self.shared - self.gradients - self.batches, 0)

    @property
    def told(self) -> str:
        """The parts in words."""
        parts = ("weights", "moments", "gradients", "activations", "batches", "shared")
        sizes = [f"{name} {getattr(self, name) / GIB:.2f}" for name in parts if getattr(self, name)]
        return f"{self.total / GIB:.2f} GiB a device ({', '.join(sizes)})"


def peak_bytes(compiled: Any, platform: str) -> int:
    """The largest number of bytes that a compiled program takes on a device; 0 where the compiler does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    # on TPU the peak holds the arguments too; the sum would count temporary arrays that lie in the same place one
    # after another. On CPU it is that of temporary arrays alone
    if platform == "tpu" and (peak := getattr(found, "peak_memory_in_bytes", 0)):
        return peak
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )


def memory_limit(mesh: Mesh, given: float | None) -> int:
    """Bytes that tuning may take on each device: `given` in GiB, else the device's own, on CPU half the RAM for all.

    Of several hosts, the smallest.
    """
    if given is not None:
        return int(given * GIB)
    local = mesh.local_devices
    told = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in local if device.platform != "cpu"]
    mine = min(told) if told and min(told) else _ram() // 2 // len(local)
    return min(int(each) for each in exchange("memory limit", str(mine).encode()))


def _ram() -> int:
    """Bytes of memory that this process may use: those of its control group, where that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(total, int(file.read()))
    except (OSError, ValueError):
        return total


def most_cells(memory: StepMemory, limit: int, mesh: Mesh) -> int:
    """How many cells fit into `limit`, from the memory that one takes on each group of devices.

    Raises UserError where not even that fits.
    """
    times = (limit - memory.shared) // max(memory.total - memory.shared, 1)
    if times < 1:
        raise UserError(
            f"tuning needs {memory.total / GIB:.2f} GiB a device, one cell on it, but "
            f"{limit / GIB:.2f} may be used: {memory.told}; set tune.remat full, fewer tune.micro_tokens, "
            "tune.lora.rank, a larger mesh, or --memory-per-device"
        )
    return times * mesh.shape[CELL]


def split(items: Sequence[Item], most: int, groups: int) -> list[list[Item]]:
    """Waves of nearly equal size, in order, none of more than `most`; sizes are multiples of `groups` but the last."""
    waves = -(-len(items) // max(most, 1))
    size = -(-len(items) // waves)
    size += -size % groups
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
