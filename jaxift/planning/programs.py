"""The programs that a study would run on a topology, compiled for it: what they take, and whether they fit."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxift.models.config import DecoderConfig
from jaxift.models.flops import head_flops, pair_flops, token_flops
from jaxift.models.splash import visited, visited_prefix
from jaxift.models.stack import device_bytes
from jaxift.parallel.peaks import GIB
from jaxift.planning.hlo import Instruction, parse
from jaxift.planning.roofline import Times, times
from jaxift.planning.topology import Topology
from jaxift.planning.traffic import Traffic, traffic
from jaxift.scoring.plan import Shape
from jaxift.scoring.programs import Compiler
from jaxift.tuning.group import Group
from jaxift.tuning.loss import slots_together
from jaxift.tuning.waves import peak_bytes

# forward; the backward pass' two kernels compute the scores again: seven products for the forward pass' two
_BACKWARD_ATTENTION = 7 / 2
# as different versions of the compiler say it
_OUT_OF_MEMORY = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program, compiled for a topology; all numbers are those of one device and one run."""

    name: str
    seconds: float
    """That compiling took."""
    flops: float
    """That it computes, padding and what is computed again included."""
    arguments: int
    """Bytes of what it is given, as it lies."""
    parts: dict[str, int]
    """Bytes of memory by what they are for."""
    total: int
    """Bytes of memory, as the compiler says: of a program that does not fit, what it would take."""
    limit: int | None = None
    """Bytes that there are, where it does not fit."""
    moved: Traffic | None = None
    times: Times | None = None

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        return self.limit is None


def compile_step(compiler: Compiler, shape: Shape, topology: Topology, depth: int) -> Compiled:
    """The program that scores rows of a shape behind prefixes of `depth` tokens."""
    config, tensor = compiler.scored.config, compiler.scored.mesh.shape["tensor"]
    pairs = visited(shape.tokens, shape.length) + visited_prefix(shape.tokens, depth)
    flops = shape.tokens * token_flops(config) + pairs * pair_flops(config) * config.num_layers
    flops += shape.slots * head_flops(config)
    name = f"score {shape.rows} x {shape.length}"
    return _compiled(name, lambda: compiler.step(shape), compiler, flops / tensor, topology)


def compile_prefill(compiler: Compiler, length: int, topology: Topology, depth: int) -> Compiled:
    """The program that computes columns of each lane's prefix, behind `depth` that are there."""
    config, tensor = compiler.scored.config, compiler.scored.mesh.shape["tensor"]
    pairs = visited(length, length) + visited_prefix(length, depth)
    flops = length * token_flops(config) + pairs * pair_flops(config) * config.num_layers
    return _compiled(f"prefill {length}", lambda: compiler.prefill(length), compiler, flops / tensor, topology)


def _compiled(name: str, build: Callable[[], Any], compiler: Compiler, flops: float, topology: Topology) -> Compiled:
    scored = compiler.scored
    given = scored.own, scored.shared, compiler.described_room
    weights, room = device_bytes(given[:2]), device_bytes(given[2])
    models = scored.cells or 1
    cells = models // scored.mesh.shape["cell"]
    return _measured(
        name, build, flops * cells, weights + room, {"weights": weights, "prefixes": room}, topology,
        scored.mesh, lambda _: None,
    )  # fmt: skip


def compile_tuning(group: Group, cells: int, topology: Topology) -> Compiled:
    """The optimizer step of a stack of so many models."""
    mesh, shape, config = group.model.mesh, group.shape, group.model.config
    stack, shared, *_, batch = group.described(cells)
    weights = device_bytes(stack.params)
    parts = {
        "weights": weights, "moments": device_bytes(stack) - weights, "gradients": weights,
        "shared": device_bytes(shared),
    }  # fmt: skip
    vocabulary = (config.vocab_size + config.vocab_padding) // mesh.shape["tensor"]
    blocks = -(-shape.slots // slots_together(vocabulary, "tpu", group.recipe.reference_graph is not None))

    def trips(loop: Instruction) -> float:
        return float(blocks if "shard_map" in loop.attributes else shape.micro)

    name = f"tune {cells} x {shape.micro} x {shape.rows} x {shape.length}"
    flops = step_flops(group) * cells / mesh.shape["cell"]
    arguments = device_bytes(stack) + device_bytes(shared) + device_bytes(batch)
    return _measured(name, lambda: group.program(cells), flops, arguments, parts, topology, mesh, trips)


def step_flops(group: Group) -> float:
    """Operations of a step of one model on each device that it lies on: those that its recomputation asks for."""
    config, shape, mesh = group.model.config, group.shape, group.model.mesh
    rows = shape.rows // shape.shards
    again = int(group.config.remat == "full")
    passes, attention = again + (3 if config.lora is None else 2), again + 1 + _BACKWARD_ATTENTION
    pairs = _pairs(config, shape.length, group.recipe.longest) * rows
    tokens = rows * shape.length
    forward = tokens * token_flops(config) * passes + pairs * attention
    return shape.micro * (forward + 3 * shape.slots * head_flops(config)) / mesh.shape["tensor"]


def _pairs(config: DecoderConfig, length: int, longest: int) -> float:
    """Operations of attention's forward pass over one row in all layers, whole blocks."""
    total = 0
    for layer in range(config.num_layers):
        window = config.pattern[layer % len(config.pattern)].window
        total += visited(length, min(window or length, longest, length), rows=False)
    return total * pair_flops(config)


def _measured(
    name: str,
    build: Callable[[], Any],
    flops: float,
    arguments: int,
    parts: dict[str, int],
    topology: Topology,
    mesh: jax.sharding.Mesh,
    trips: Callable[[Instruction], float | None],
) -> Compiled:
    started = time.perf_counter()
    try:
        program = build()
    except jax.errors.JaxRuntimeError as error:
        told = [found for pattern in _OUT_OF_MEMORY if (found := pattern.search(str(error)))]
        if not told:
            raise
        used, limit = (int(float(told[0][at]) * _UNITS[told[0][at + 1]]) for at in (1, 3))
        return Compiled(name, time.perf_counter() - started, flops, arguments, parts, used, limit)
    seconds = time.perf_counter() - started
    total = peak_bytes(program, "tpu")
    moved = traffic(parse(program.as_text()), trips)
    rest = {"activations": max(total - sum(parts.values()), 0)}
    took = times(flops, moved.hbm_bytes, moved.collectives, topology.chip, mesh.devices, topology.received_a_second)
    return Compiled(name, seconds, flops, arguments, {**parts, **rest}, total, None, moved, took)


def told(sizes: dict[str, int]) -> str:
    """Parts of memory in words, in GiB."""
    return ", ".join(f"{name} {size / GIB:.3g}" for name, size in sizes.items() if size >= 1e-3 * GIB) or "0"
