"""What a study took, stage by stage, from the manifests of its units."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxift.artifacts import RunDirectory


def stage_costs(run: RunDirectory, units: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """Sums over the units of each stage that say what they took: seconds by part, tokens, places, useful FLOPs.

    `peak` is what all devices can do together a second, None where it is not known.
    """
    result = {}
    for stage, names in units.items():
        found = [manifest["cost"] for name in names if "cost" in (manifest := run.manifest(name) or {})]
        if not found:
            continue
        first = found[0]
        seconds: dict[str, float] = {}
        for cost in found:
            for part, value in cost["seconds"].items():
                seconds[part] = seconds.get(part, 0.0) + value
        result[stage] = {
            "units": len(found),
            "seconds": seconds,
            **{name: sum(cost[name] for cost in found) for name in ("tokens", "places", "flops")},
            **{name: first[name] for name in ("device", "devices", "dtype")},
            "peak": first["peak"] and first["peak"] * first["devices"],
        }
    return result
