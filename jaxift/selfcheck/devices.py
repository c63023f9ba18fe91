"""The devices that JAX sees on every host, and the mesh that is asked of them."""

import os
import platform
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxift.config import MeshConfig
from jaxift.errors import UserError
from jaxift.parallel import hosts
from jaxift.parallel.mesh import configured_mesh, make_mesh
from jaxift.selfcheck.lines import Line, failed_hosts, from_hosts, host_name

UNUSED = {"/dev/accel0": "tpu", "/dev/nvidia0": "cuda"}
"""Files that are there where there is an accelerator, and the extra that brings JAX for it."""
SHOWN = 8
"""Hosts that a line names; the others are in the JSON alone."""


def lines() -> list[Line]:
    """Platform, kind, number and memory of the devices; with several hosts a line that names them."""
    found = from_hosts("devices", _here)
    if failed := failed_hosts(found):
        return [Line("devices", "bad", failed)]
    first, total = found[0], sum(each["devices"] for each in found)
    unused = [f"{host_name(place, found)}{each['unused']}" for place, each in enumerate(found) if each["unused"]]
    different = [str(place) for place, each in enumerate(found) if _kind(each) != _kind(first)]
    text = f"{total} x {first['kind']} ({first['platform']})"
    text += f", {_gib(first['memory'])} each" if first["memory"] else f", {_gib(first['host memory'])} of host memory"
    if different:
        text = f"hosts {', '.join(different)} have other devices than host 0 ({text}): start all with the same"
    text = "; ".join([*unused, text])
    made = [Line("devices", "bad" if different or unused else "good", text, {"hosts": found})]
    if len(found) > 1:
        named = [f"{place} on {each['host']} ({each['devices']})" for place, each in enumerate(found)]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        made.append(Line("hosts", "good", f"{len(found)} joined: {', '.join(named[:SHOWN])}{more}"))
    return made


def asked_mesh(settings: MeshConfig) -> Mesh:
    """The mesh asked for; one of a single device, the default, stands for all devices in `data`.

    Raises UserError where it cannot be made, or leaves out devices of several hosts.
    """
    if all(size == 1 for size in settings.model_dump().values()):
        return make_mesh(data=jax.device_count())
    mesh = configured_mesh(settings)
    if hosts.process_count() > 1 and mesh.size != jax.device_count():
        raise UserError(f"mesh: has {mesh.size} of {jax.device_count()} devices; with several hosts use all of them")
    return mesh


def mesh_line(mesh: Mesh) -> Line:
    """What the mesh is made of."""
    text = shape(mesh)
    left = jax.device_count() - mesh.size
    text += f"; {left} devices are left out" if left else ""
    return Line("mesh", "good", text, {"shape": dict(mesh.shape)})


def shape(mesh: Mesh) -> str:
    """The axes of several devices, in words."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"


def _here() -> dict[str, Any]:
    local = jax.local_devices()
    memory = (local[0].memory_stats() or {}).get("bytes_limit")
    return {
        "host": platform.node(),
        "platform": local[0].platform,
        "kind": local[0].device_kind,
        "devices": len(local),
        "unused": _unused(local[0].platform),
        "memory": memory,
        "host memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _unused(platform: str) -> str:
    """What to do about an accelerator that JAX does not use although nobody told it so; empty where there is none."""
    if platform != "cpu" or jax.config.values["jax_platforms"]:
        return ""
    seen = [(path, extra) for path, extra in UNUSED.items() if Path(path).exists()]
    return "; ".join(f"{path} is there, but JAX uses the CPU: pip install 'jaxift[{extra}]'" for path, extra in seen)


def _kind(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["platform"], found["kind"], found["devices"]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
