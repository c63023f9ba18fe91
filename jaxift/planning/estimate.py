"""What a mesh, a recomputation and a batch would take, by formula: quick enough to try them all, and no more than that.

Formulas rank; the best are compiled, and what is told comes from the compiler. Per device, with P parameters of all
layers, V of embedding and head, D, F, N, K, H as in the decoder, L layers, T tokens a device at once:

    tuning, memory    parameters, moments, gradients and their sum 20 (P + V) / (fsdp tensor), bfloat16 copies of the
                      layers 2 P / (fsdp tensor); kept activations of L T tokens; the head's gradient 8 V / tensor
    scoring, memory   parameters 2 (P + V) / (fsdp tensor), keys and values of the prefixes, two gathered layers
    network           gathered over fsdp: 2 P / tensor bytes a pass; summed over tensor: 4 T D bytes twice a layer and
                      pass; gradients: 2 P / tensor bytes over fsdp, 4 P / (fsdp tensor) over data
    memory traffic    gathered weights written and read a pass, activations about 20 D + 10 F / tensor numbers a layer
                      and pass, the update 40 bytes a parameter
"""

import dataclasses

from jax.sharding import Mesh

from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Remat
from jaxift.models.flops import head_flops, pair_flops, token_flops
from jaxift.planning.roofline import Times
from jaxift.planning.topology import Topology

PASSES: dict[Remat, int] = {"none": 2, "dots": 2, "full": 3}
"""How often a layer's weights are gathered for a step: for the forward pass, what is computed again, and the backward
pass, of which the last two share where the compiler sees it."""
HEAD_LOGITS = 3 << 27
"""Bytes that logits take while the loss is computed."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on a device, and the times of a step."""

    bytes: float
    times: Times


@dataclasses.dataclass(frozen=True)
class Place:
    """A model on a mesh of a topology."""

    config: DecoderConfig
    mesh: Mesh
    topology: Topology

    def size(self, axis: str) -> int:
        """Devices along an axis."""
        return self.mesh.shape[axis]

    @property
    def layer_parameters(self) -> int:
        """Of all layers' matrices."""
        return token_flops(self.config) // 2

    @property
    def outer_parameters(self) -> int:
        """Of embedding and head."""
        return (1 if self.config.tie_embeddings else 2) * self.config.vocab_size * self.config.hidden_size

    @property
    def share(self) -> int:
        """Devices over which a parameter is split."""
        return self.size("fsdp") * self.size("tensor")

    def exchanged(self, axis: str, size: float, factor: float = 1.0) -> float:
        """Seconds that gathering arrays of `size` bytes over an axis takes; summing takes twice that."""
        length = self.size(axis)
        if length == 1 or not size:
            return 0.0
        place = list(self.mesh.axis_names).index(axis)
        line = self.mesh.devices.swapaxes(0, place).reshape(length, -1)[:, 0]
        return factor * size * (length - 1) / length / self.topology.received_a_second(list(line))


def tuning(place: Place, remat: Remat, micro: int, rows: int, length: int, slots: int) -> Estimate:
    """A step of a model a group of devices; `rows` of `length` tokens a device in each of `micro` parts."""
    config, tensor = place.config, place.size("tensor")
    tokens, D, F = rows * length, config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_dim
    own = (place.layer_parameters + place.outer_parameters) / place.share
    kept = {"full": D, "dots": 3 * D + (4 * heads + 2 * F) / tensor, "none": 8 * D + (7 * heads + 5 * F) / tensor}[
        remat
    ]
    held = 20 * own + 2 * place.layer_parameters / place.share + 2 * kept * config.num_layers * tokens
    held += 8 * config.vocab_size * D / tensor + HEAD_LOGITS + 2 * tokens * (10 * D + 4 * F / tensor)

    passes = PASSES[remat]
    work = tokens * token_flops(config) * (passes + 1)
    work += (passes + 2.5) * pair_flops(config) * config.num_layers * tokens * min(length, 1024) / 2
    work += 3 * slots * head_flops(config)
    weights = 2 * (place.layer_parameters + place.outer_parameters) / tensor
    network = place.exchanged("fsdp", weights, 3) + place.exchanged("data", 2 * weights / place.size("fsdp"), 1)
    summed = 2 * tokens * D * 2 * config.num_layers
    network += place.exchanged("tensor", summed, 2 * passes)
    moved = passes * 2 * weights + 16 * own
    moved += config.num_layers * tokens * 2 * (20 * D + 10 * F / tensor) * (passes + 1)
    return _estimate(place, held, micro * work / tensor, micro * moved + 40 * own, micro * network)


def scoring(place: Place, tokens: int, slots: int, columns: int, pairs: float) -> Estimate:
    """A step of a model a group of devices, of so many tokens a lane; `pairs` of a token and what it sees."""
    config, tensor = place.config, place.size("tensor")
    D, F = config.hidden_size, config.intermediate_size
    own = (place.layer_parameters + place.outer_parameters) / place.share
    room = 4 * config.num_layers * config.num_kv_heads * config.head_dim * columns / tensor
    layer = 2 * place.layer_parameters / config.num_layers / tensor
    held = 2 * own + room + 2 * layer + 2 * tokens * (10 * D + 4 * F / tensor)
    held += 4 * config.vocab_size * D / tensor
    work = tokens * token_flops(config) + pairs * pair_flops(config) * config.num_layers + slots * head_flops(config)
    weights = 2 * (place.layer_parameters + place.outer_parameters) / tensor
    network = place.exchanged("fsdp", weights)
    network += place.exchanged("tensor", 2 * tokens * D * 2 * config.num_layers, 2)
    moved = 2 * weights + config.num_layers * tokens * 2 * (20 * D + 10 * F / tensor)
    return _estimate(place, held, work / tensor, moved, network)


def _estimate(place: Place, held: float, work: float, moved: float, network: float) -> Estimate:
    chip = place.topology.chip
    assert chip.hbm_bandwidth is not None
    return Estimate(held, Times(work / chip.flops, moved / chip.hbm_bandwidth, network))


def legal_meshes(config: DecoderConfig, devices: int, cells: int) -> list[tuple[int, int, int, int]]:
    """Sizes (cell, data, fsdp, tensor) of all meshes of so many devices on which `cells` models, or fewer, can lie."""
    found = []
    for tensor in _divisors(devices):
        if any(size % tensor for size in (config.num_heads, config.num_kv_heads, config.intermediate_size)):
            continue
        for fsdp in _divisors(devices // tensor):
            if config.hidden_size % fsdp:
                continue
            for cell in _divisors(devices // tensor // fsdp):
                if cell <= cells:
                    found.append((cell, devices // tensor // fsdp // cell, fsdp, tensor))
    return found


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
