"""What scoring took, as it is kept beside the results."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from jaxift.parallel.peaks import devices_used
from jaxift.scoring.engine import Statistics


def cost(told: Sequence[Statistics], mesh: Mesh, dtype: str, share: int = 1) -> dict[str, Any]:
    """The time, tokens and useful FLOPs of runs of the scorer, of several models together one model's `share`."""
    return {
        "seconds": {
            "compile": sum(each.compile_seconds for each in told) / share,
            "step": sum(each.seconds for each in told) / share,
        },
        "tokens": sum(each.asked_tokens for each in told) / share,
        "places": sum(each.fed_tokens - each.resumed_tokens for each in told) / share,
        "flops": sum(each.useful_flops * (1 - each.resumed_tokens / max(each.fed_tokens, 1)) for each in told) / share,
        **devices_used(mesh, dtype),
    }
