"""What all processes must have alike before they compute anything together: code, versions, configuration."""

import functools
import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxift
from jaxift.artifacts import versions
from jaxift.parallel.meeting import same_everywhere


@functools.cache
def code_digest() -> str:
    """Hash of the package's Python files and their places."""
    root, total = Path(jaxift.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:24]


def check_code() -> None:
    """Refuses processes that run other code; to be asked right after joining."""
    try:
        libtpu = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        libtpu = "absent"
    same_everywhere("software", {**versions(), "libtpu": libtpu, "jaxift's code": code_digest()})


def check_settings(label: str, settings: Mapping[str, Any]) -> None:
    """Refuses processes that were started with other settings, and names the fields."""
    same_everywhere(label, dict(_leaves(settings)))


def _leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested value's fields by their dotted names."""
    if isinstance(value, Mapping) and value:
        return [leaf for key, each in value.items() for leaf in _leaves(each, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        return [leaf for place, each in enumerate(value) for leaf in _leaves(each, f"{name}.{place}")]
    return [(name, str(value))]
