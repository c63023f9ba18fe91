"""Ways to run a study's work on a topology: what they are estimated to take, and what the compiler says of them."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from jaxift.config import StudyConfig
from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Remat
from jaxift.models.weights import LanguageModel, described
from jaxift.parallel.mesh import make_mesh
from jaxift.planning.estimate import Estimate, Place
from jaxift.planning.programs import Compiled
from jaxift.planning.roofline import Times
from jaxift.planning.topology import Topology

ROOM = 0.95
"""Of a device's memory, what an estimate may take: compilers keep some, and estimates err."""
Sizes = tuple[int, int, int, int]
"""Of the mesh's axes: cell, data, fsdp, tensor."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to run something, and what it is estimated to take; `seconds` for the whole work, at worst."""

    sizes: Sizes
    remat: Remat
    tokens: int
    """At once, of a device or lane."""
    guess: Estimate
    seconds: float

    @property
    def mesh(self) -> str:
        """Axes that are split."""
        names = zip(("cell", "data", "fsdp", "tensor"), self.sizes, strict=True)
        return ", ".join(f"{name} {size}" for name, size in names if size > 1) or "data 1"

    @property
    def flags(self) -> str:
        """The mesh, as the command line takes it."""
        names = zip(("cell", "data", "fsdp", "tensor"), self.sizes, strict=True)
        return " ".join(f"--mesh.{name} {size}" for name, size in names if size > 1)


@dataclasses.dataclass(frozen=True)
class Result:
    """A choice, compiled: its programs, and the work that they do."""

    choice: Choice
    programs: Sequence[Compiled]
    times: Times
    """Of all of the work."""
    useful: float
    """Operations of the work on each device, none twice and without padding."""

    @property
    def fits(self) -> bool:
        """Whether all programs have room."""
        return all(each.fits for each in self.programs)

    def utilisation(self, topology: Topology) -> tuple[float, float]:
        """The share of the peak that useful operations reach: at best, and at worst."""
        ideal = self.useful / topology.chip.flops
        return ideal / self.times.optimistic, ideal / self.times.pessimistic


@dataclasses.dataclass(frozen=True)
class Site:
    """A study's model on a topology, on whatever mesh of it."""

    config: StudyConfig
    topology: Topology
    shape: DecoderConfig
    _places: dict[Sizes, Place] = dataclasses.field(default_factory=dict)
    _models: dict[tuple[Mesh, bool], LanguageModel] = dataclasses.field(default_factory=dict)

    def place(self, sizes: Sizes) -> Place:
        """The model on a mesh of the topology."""
        if sizes not in self._places:
            cell, data, fsdp, tensor = sizes
            mesh = make_mesh(data, fsdp, tensor, self.topology.devices, cell=cell)
            self._places[sizes] = Place(self.shape, mesh, self.topology)
        return self._places[sizes]

    def model(self, sizes: Sizes, *, tuned: bool) -> LanguageModel:
        """The model as it lies on a mesh to be scored, or to be tuned."""
        mesh, settings = self.place(sizes).mesh, self.config.model
        if (mesh, tuned) not in self._models:
            held = "float32" if tuned and not self.config.tune.lora.rank else settings.dtype
            self._models[mesh, tuned] = described(
                settings.path, mesh, settings.dtype, bos=settings.bos, seam=settings.seam, param_dtype=held,
                max_positions=settings.max_positions,
            )  # fmt: skip
        return self._models[mesh, tuned]

    def best(self, found: Sequence[Choice], count: int) -> list[Choice]:
        """The fastest that seem to fit; where none does, the one that needs least."""
        room = ROOM * (self.topology.chip.hbm_bytes or 0)
        fitting = sorted((each for each in found if each.guess.bytes <= room), key=lambda each: each.seconds)
        return fitting[:count] or sorted(found, key=lambda each: each.guess.bytes)[:1]
