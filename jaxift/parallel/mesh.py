"""The device mesh and the logical names by which arrays are laid out on it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxift.config import MeshConfig
from jaxift.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

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


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the explicit mesh (data, fsdp, tensor); one device is the 1x1x1 mesh and takes the same path.

    `data * fsdp * tensor` devices are taken from `devices` (default: all local and remote devices, in order).
    Raises ValueError where there are too few.
    """
    devices = jax.devices() if devices is None else list(devices)
    needed = data * fsdp * tensor
    if needed > len(devices):
        raise ValueError(f"mesh {data}x{fsdp}x{tensor} needs {needed} devices, but {len(devices)} are visible")
    return jax.make_mesh(
        (data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES), devices=devices[:needed]
    )


def configured_mesh(settings: MeshConfig) -> Mesh:
    """`make_mesh` of a configuration's sizes; raises UserError where there are too few devices."""
    try:
        return make_mesh(**settings.model_dump())
    except ValueError as error:
        raise UserError(f"mesh: {error}; make the mesh smaller") from None


def platform() -> str:
    """What the mesh in use is made of: cpu, gpu or tpu; known while tracing, even of devices only described."""
    return jax.sharding.get_abstract_mesh().abstract_device.platform


def batch_shards(mesh: Mesh) -> int:
    """Number of pieces that the batch axis is cut into; a batch must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def sharding(mesh: Mesh, *names: str | None) -> NamedSharding:
    """The sharding of an array whose dimensions carry these logical names."""
    return NamedSharding(mesh, spec(*names))
