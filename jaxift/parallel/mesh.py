"""The device mesh and the logical names by which arrays are laid out on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxift.config import MeshConfig
from jaxift.errors import UserError
from jaxift.parallel import compilations
from jaxift.parallel.hosts import process_count

MESH_AXES = ("cell", "data", "fsdp", "tensor")
EXPLICIT = (AxisType.Explicit,) * len(MESH_AXES)
CELL = MESH_AXES[0]
"""The axis that models of a stack are split over; it is no logical name, since a model knows nothing of the others."""

# The one rules object: a logical axis name -> the mesh axes that split it.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),  # rows of tokens
    "embed": "fsdp",  # the embedding dimension of a weight (activations keep it whole)
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
}


def spec(*names: str | None) -> PartitionSpec:
    """Turns logical axis names into a PartitionSpec.

    `None` leaves a dimension whole. An unknown name raises KeyError; a mesh axis used twice raises ValueError.
    """
    entries = tuple(None if name is None else RULES[name] for name in names)
    used = [axis for entry in entries if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {names} use a mesh axis twice: {used}")
    return PartitionSpec(*entries)


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None, *, cell: int = 1
) -> Mesh:
    """Builds the explicit mesh (cell, data, fsdp, tensor); one device is the 1x1x1x1 mesh and takes the same path.

    `cell * data * fsdp * tensor` devices are taken from `devices` (default: all local and remote devices, in order).
    Raises ValueError where there are too few.
    """
    compilations.listen()  # whatever is compiled runs on a mesh
    devices = jax.devices() if devices is None else list(devices)
    sizes = (cell, data, fsdp, tensor)
    needed = math.prod(sizes)
    if needed > len(devices):
        shown = "x".join(map(str, sizes if cell > 1 else sizes[1:]))
        raise ValueError(f"mesh {shown} needs {needed} devices, but {len(devices)} are visible")
    if devices[0].platform != "tpu":
        return jax.make_mesh(sizes, MESH_AXES, axis_types=EXPLICIT, devices=devices[:needed])
    return Mesh(_on_the_network(sizes, devices[:needed]), MESH_AXES, axis_types=EXPLICIT)


def _on_the_network(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """TPUs in the order in which neighbours of a mesh are neighbours of the network.

    Between slices there is the data centre's network alone: they are split over cells first, then over rows of the
    batch. Raises ValueError where slices do not divide the axes.
    """
    left, between = len({getattr(device, "slice_index", 0) for device in devices}), []
    for size in sizes:
        between.append(math.gcd(size, left))
        left //= between[-1]
    if left > 1:
        raise ValueError(f"mesh {'x'.join(map(str, sizes))} does not divide over the slices: {left} are left")
    inside = [size // slices for size, slices in zip(sizes, between, strict=True)]
    if max(between) == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def configured_mesh(settings: MeshConfig) -> Mesh:
    """The mesh of a configuration for one model, where cells' devices take rows of the batch.

    Raises UserError where there are too few devices.
    """
    sizes = settings.model_dump()
    cells = sizes.pop("cell")
    try:
        return make_mesh(**{**sizes, "data": cells * sizes["data"]})
    except ValueError as error:
        raise UserError(f"mesh: {error}; make the mesh smaller") from None


def joint_mesh(settings: MeshConfig) -> Mesh:
    """`configured_mesh`; raises UserError where devices of one of several processes would be left out."""
    mesh = configured_mesh(settings)
    if process_count() > 1 and mesh.size != jax.device_count():
        raise UserError(
            f"mesh: has {mesh.size} of the {jax.device_count()} devices of {process_count()} processes; "
            "give --mesh.data, --mesh.fsdp and --mesh.tensor sizes that use all"
        )
    return mesh


def cell_mesh(settings: MeshConfig) -> Mesh:
    """The mesh of a configuration for a stack of models, on the devices of `configured_mesh` in the same order."""
    sizes = [settings.model_dump()[axis] for axis in MESH_AXES]
    return Mesh(configured_mesh(settings).devices.reshape(sizes), MESH_AXES, axis_types=EXPLICIT)


def platform() -> str:
    """What the mesh in use is made of: cpu, gpu or tpu; known while tracing, even of devices only described."""
    return jax.sharding.get_abstract_mesh().abstract_device.platform


def batch_shards(mesh: Mesh) -> int:
    """Number of pieces that the batch axis is cut into; a batch must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def stacked(layout: PartitionSpec) -> PartitionSpec:
    """The layout of arrays [cells, ...] of which each cell's lies in this one."""
    return PartitionSpec(CELL, *layout)


def filled(cells: int, mesh: Mesh) -> int:
    """Models of a stack that fills the mesh's cell axis."""
    return cells + -cells % mesh.shape[CELL]


def sharding(mesh: Mesh, *names: str | None) -> NamedSharding:
    """The sharding of an array whose dimensions carry these logical names."""
    return NamedSharding(mesh, spec(*names))
