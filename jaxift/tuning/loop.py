"""Tuning many models at once: waves of cells, each wave one program; what is interrupted goes on where it was saved."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from etils import epath
from jax.sharding import Mesh

from jaxift.config import TuneConfig
from jaxift.errors import UserError
from jaxift.models.stack import ModelStack, device_bytes
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import CELL, filled
from jaxift.tuning.checkpoint import Metrics
from jaxift.tuning.group import Group, Job, Prepared, group, prepare
from jaxift.tuning.run import Run, Timing
from jaxift.tuning.watch import Watch
from jaxift.tuning.waves import StepMemory, memory_limit, most_cells, split


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A tuned model, what happened at each of its optimizer steps, and how many examples fill the length limit."""

    model: LanguageModel
    metrics: list[Metrics]
    at_limit: int


@dataclasses.dataclass(frozen=True)
class TunedCell:
    """One model of a wave: its job, what happened at each of its steps, and why it stopped where it did not end."""

    job: Job
    metrics: list[Metrics]
    at_limit: int
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Wave:
    """Models that were tuned together, on the devices."""

    cells: Sequence[TunedCell]
    stack: ModelStack
    memory: StepMemory
    timing: Timing


@dataclasses.dataclass(frozen=True)
class PlannedWave:
    """Models that are to be tuned together, the `number`-th wave (from 1) of `waves`."""

    number: int
    waves: int
    group: Group
    members: Sequence[Prepared]
    memory: StepMemory

    @property
    def names(self) -> list[str]:
        """What its jobs are called."""
        return [each.job.name for each in self.members]

    @property
    def steps(self) -> int:
        """Optimizer steps of all its models."""
        return sum(each.plan.steps for each in self.members)

    def execute(self, watch: Watch) -> Wave:
        """Tunes them. Raises Terminated, with everything saved, where the process is asked to end."""
        with contextlib.closing(Run(self.group, self.members, watch)) as run:
            run.execute()
        cells = [TunedCell(each.job, *found) for each, found in zip(self.members, run.found(), strict=True)]
        return Wave(cells, run.models, self.memory, run.timing)


def tune(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    config: TuneConfig | None = None,
    *,
    seed: int = 0,
    folder: epath.PathLike | None = None,
    on_step: Callable[[Metrics], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Tuned:
    """Fine-tunes a model on (prompt, response) pairs, the loss on the responses alone.

    Tuned weights and moments are float32, the computation is in the model's dtype. With `folder`, checkpoints are
    written there, and an interrupted run with the same data and settings goes on where it stopped, bit-identical on the
    same mesh. The metrics of a step are step (from 1), loss (nats a token), learning_rate, grad_norm, tokens (that the
    loss counts) and skipped; `on_step` gets each when it is known, `warn` a line where a checkpoint is damaged. Raises
    UserError where the loss or gradient becomes infinite or NaN.
    """
    watch = _Told(on_step or (lambda metrics: None), warn or (lambda line: None))
    job = Job("the model", pairs, config or TuneConfig(), seed, folder)
    [wave] = tune_cells(model, [job], watch=watch)
    [cell] = wave.cells
    if cell.failure:
        raise UserError(cell.failure)
    return Tuned(wave.stack.model(0), cell.metrics, cell.at_limit)


@dataclasses.dataclass(frozen=True)
class _Told(Watch):
    """Passes on what happens to the one model."""

    on_step: Callable[[Metrics], None]
    warn: Callable[[str], None]

    def step(self, name: str, metrics: Metrics) -> None:
        self.on_step(metrics)

    def say(self, line: str) -> None:
        self.warn(line)


def tune_cells(
    model: LanguageModel,
    jobs: Sequence[Job],
    *,
    mesh: Mesh | None = None,
    memory_per_device: float | None = None,
    watch: Watch | None = None,
) -> Iterator[Wave]:
    """Fine-tunes copies of a model, as many in one program as fit into the devices' memory; yields wave after wave.

    A cell whose loss becomes infinite or NaN stops alone, and says so in its `failure`. Arguments: see `plan_waves`.
    """
    for planned in plan_waves(model, jobs, mesh=mesh, memory_per_device=memory_per_device):
        yield planned.execute(watch or Watch())


def plan_waves(
    model: LanguageModel, jobs: Sequence[Job], *, mesh: Mesh | None = None, memory_per_device: float | None = None
) -> list[PlannedWave]:
    """Encodes all jobs' examples, compiles, and says which of them are tuned together, in order.

    `mesh` is that of the cells (default: the model's), on the model's devices; a `cell` axis spreads them over it.
    Jobs may differ in data, seed, learning rate, epochs, warm-up and batch size; those that differ in other settings go
    into different waves. `memory_per_device` is in GiB, see `waves.memory_limit`. Raises UserError where a job cannot
    be tuned.
    """
    prepared = [prepare(model, job) for job in jobs]
    model = model if mesh is None else model.on(mesh)
    programs: dict[str, list[Prepared]] = collections.defaultdict(list)
    for each in prepared:
        programs[each.job.program].append(each)
    limit = memory_limit(model.mesh, memory_per_device)
    groups = [group(model, members) for members in programs.values()]
    waves = [(each, members) for each in groups for members in _waves(each, limit)]
    return [
        PlannedWave(number, len(waves), each, members, each.memory(filled(len(members), each.model.mesh)))
        for number, (each, members) in enumerate(waves, 1)
    ]


def _waves(group: Group, limit: int) -> list[list[Prepared]]:
    """The jobs of a group, as many at once as fit."""
    groups, mesh = group.model.mesh.shape[CELL], group.model.mesh
    cells = filled(len(group.jobs), mesh)
    rough = _bytes_at_least(group) * (cells // groups)
    if cells > groups and rough < limit and group.memory(cells).total <= limit:
        return split(group.jobs, cells, groups)
    most = most_cells(group.memory(groups), limit, mesh)
    while True:
        waves = split(group.jobs, most, groups)
        cells = filled(len(waves[0]), mesh)
        total = group.memory(cells).total
        if total <= limit or cells <= groups:
            return waves
        most = max(min(most, cells) - groups, groups)


def _bytes_at_least(group: Group) -> int:
    """What a cell takes on its devices at the least: weights, moments and gradients."""
    stack, *_ = group.described(group.model.mesh.shape[CELL])
    return device_bytes(stack) + device_bytes(stack.params)
