"""Whether the scorer gives, on these devices and this mesh, the log-probabilities that a plain forward pass gives.

`golden.json` holds requests about the embedded model and what NumPy makes of them in float64
(`acceptance/selfcheck_golden.py`).
"""

import contextlib
import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxift.models.weights import check_folder, load
from jaxift.parallel.mesh import make_mesh
from jaxift.scoring.engine import score
from jaxift.scoring.requests import Request
from jaxift.selfcheck.devices import shape
from jaxift.selfcheck.lines import Line
from jaxift.world import MODEL_DIR

TOLERANCES = {"float32": 5e-4, "bfloat16": 0.15}
"""Of a log-probability. On CPU 5e-6 and 0.045 were seen (jax 0.10.2); a wrong constant of the model is off by 1e-2."""


def lines(mesh: Mesh) -> list[Line]:
    """A line for each type that models are scored in."""
    fit = fitting(mesh)
    return [judged(dtype, golden(), scored(fit, dtype), "" if fit is mesh else shape(fit)) for dtype in TOLERANCES]


def fitting(mesh: Mesh) -> Mesh:
    """The mesh, or where its tensor axis does not divide the embedded model's few heads, one of the same devices."""
    heads = check_folder(MODEL_DIR).num_kv_heads
    whole = mesh.shape["tensor"]
    tensor = math.gcd(heads, whole)
    if tensor == whole:
        return mesh
    rows = mesh.shape["cell"] * mesh.shape["data"] * whole // tensor
    return make_mesh(rows, mesh.shape["fsdp"], tensor, mesh.devices.flatten().tolist())


def golden() -> list[dict[str, Any]]:
    """Requests with their `context`, `options` and `logprobs`."""
    text = resources.files("jaxift.selfcheck").joinpath("golden.json").read_text(encoding="utf-8")
    return json.loads(text)["requests"]


def scored(mesh: Mesh, dtype: str) -> list[list[float]]:
    """The log-probabilities of the golden requests' options, by the way that `jaxift score` takes."""
    asked = [Request(each["context"], tuple(each["options"])) for each in golden()]
    with _precise() if dtype == "float32" else contextlib.nullcontext():
        return [each.logprobs.tolist() for each in score(load(MODEL_DIR, mesh, dtype), asked)]


def judged(dtype: str, wanted: list[dict[str, Any]], found: list[list[float]], where: str = "") -> Line:
    """What the largest difference says; `where` names the mesh if it is not the one asked for."""
    pairs = [(want, have) for each, row in zip(wanted, found, strict=True)
             for want, have in zip(each["logprobs"], row, strict=True)]  # fmt: skip
    off = np.abs([want - have for want, have in pairs])
    worst, bound = float(off.max()), TOLERANCES[dtype]
    good = bool(np.isfinite(off).all() and worst <= bound)
    text = f"{len(pairs)} golden log-probabilities, largest difference {worst:.1e} (at most {bound:g})"
    if where:
        text += f", on {where}: the embedded model has few heads"
    if not good:
        text += f"; {int((~(off <= bound)).sum())} are off: what is scored here cannot be trusted; try another jax"
    return Line(f"score {dtype}", "good" if good else "bad", text, {"largest difference": worst, "tolerance": bound})


@contextlib.contextmanager
def _precise() -> Iterator[None]:
    """Products of float32 in float32: TPUs and GPUs round what they multiply unless they are asked not to.

    For all threads: the scorer has some of its own.
    """
    before = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)
