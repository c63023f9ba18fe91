"""One wave: batches are placed, steps dispatched, the metrics of the step before read, cells saved and resumed."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxift.errors import Terminated
from jaxift.models.flops import tuning_flops
from jaxift.models.stack import ModelStack, put, take
from jaxift.parallel import pace
from jaxift.parallel.arrays import global_array
from jaxift.parallel.hosts import process_count
from jaxift.parallel.meeting import exchange
from jaxift.parallel.mesh import CELL, filled, spec, stacked
from jaxift.progress import moved
from jaxift.tuning.batches import Batch, empty_batch
from jaxift.tuning.checkpoint import Checkpoints, Metrics
from jaxift.tuning.group import Group, Prepared
from jaxift.tuning.signals import Terminations
from jaxift.tuning.watch import Watch

SAVE_SECONDS = 600.0
"""About how much work may be lost where nothing else is configured."""


@dataclasses.dataclass
class Timing:
    """Where a wave's time went, in seconds, and what it got through in `step`."""

    compile: float = 0.0
    input: float = 0.0
    step: float = 0.0
    checkpoint: float = 0.0
    tokens: int = 0
    """Of examples, fed; padding is not counted."""
    places: int = 0
    """Tokens fed, with padding."""
    flops: float = 0.0
    """Useful ones, of all models."""


@dataclasses.dataclass
class _Cell:
    """One cell of the stack while it is tuned."""

    prepared: Prepared
    checkpoints: Checkpoints | None
    metrics: list[Metrics]
    dispatched: int
    """Steps that were given to the devices."""
    failure: str = ""
    saved: int = -1
    """Steps after which it was saved last."""

    @property
    def goes_on(self) -> bool:
        return not self.failure and self.dispatched < self.prepared.plan.steps


_Step = tuple[_Cell, int, int, float]
"""A cell, its place in the stack, the number of the step from 1, and its learning rate."""


class Run:
    """Tunes the cells of one wave; `close` it in any case."""

    def __init__(self, group: Group, wave: Sequence[Prepared], watch: Watch):
        self.group, self.watch, self.mesh = group, watch, group.model.mesh
        size = filled(len(wave), self.mesh)
        self.program = group.program(size)
        self.timing = Timing(compile=group.compile_seconds[size])
        self.size, self._open = size, contextlib.ExitStack()
        self.cells: list[_Cell] = []
        self._writing: list[Checkpoints] = []
        self._pending: tuple[list[_Step], dict[str, Any]] | None = None
        self._clock = time.perf_counter()
        try:
            with jax.set_mesh(self.mesh):
                self.stack = group.stack(size)
                for index, prepared in enumerate(wave):
                    self.cells.append(self._cell(index, prepared))
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        """Waits for checkpoints under way."""
        self._open.close()

    def found(self) -> list[tuple[list[Metrics], int, str]]:
        """Metrics, examples at the length limit, and failure of each cell."""
        return [(cell.metrics, cell.prepared.at_limit, cell.failure) for cell in self.cells]

    def _cell(self, index: int, prepared: Prepared) -> _Cell:
        """A cell as it was saved last, or before its first step."""
        job, place, found = prepared.job, jnp.int32(index), None
        checkpoints = None
        if job.folder is not None:
            checkpoints = Checkpoints(job.folder, prepared.key, job.config.keep, self.watch.say)
            self._open.enter_context(checkpoints)
            state = self.group.described_state
            found = checkpoints.restore(state.params, state._replace(params=()))
        moved()
        if found is None:
            self.watch.begins(job.name)
            if job.config.lora.rank:  # drawn from the cell's own seed
                self.stack = put(self.stack, place, self.group.first_state(job.seed))
            return _Cell(prepared, checkpoints, [], 0)
        params, rest, metrics = found
        if rest is None:  # a result: nothing else of it is asked for
            self.stack = self.stack._replace(params=put(self.stack.params, place, params))
        else:
            self.stack = put(self.stack, place, rest._replace(params=params))
        return _Cell(prepared, checkpoints, metrics, len(metrics), saved=len(metrics))

    def execute(self) -> None:
        """Takes all steps of all cells, saving on the way and at the end.

        Raises Terminated, after everything is saved, where the process is asked to end.
        """
        with jax.set_mesh(self.mesh), Terminations() as terminations:
            taken = 0
            self._clock = time.perf_counter()
            while any(cell.goes_on for cell in self.cells):
                self._show_models(self._dispatch())
                taken += 1
                if terminations.noticed(taken):
                    self._settle()
                    self._save()
                    self._wait()
                    raise Terminated(f"asked to end after {taken} steps; the same command goes on from there")
                if self._due(taken):
                    self._settle()
                    self._save()
            self._settle()
            self._spent("step")
            self._save()
            self._wait()

    def _spent(self, on: str) -> None:
        """Books the time since the last call."""
        now = time.perf_counter()
        if on == "input":  # what no other host is waited for in
            pace.count(now - self._clock)
        setattr(self.timing, on, getattr(self.timing, on) + now - self._clock)
        self._clock = now

    def _dispatch(self) -> list[_Step]:
        """Gives the next step of every cell to the devices, then reads the metrics of the step before."""
        batches = [self._batch(cell) for cell in self.cells]
        batches += [empty_batch(self.group.shape)] * (self.size - len(batches))
        rates = np.zeros(self.size, np.float32)
        active = np.zeros(self.size, bool)
        steps = []
        for index, cell in enumerate(self.cells):
            if cell.goes_on:
                rates[index], active[index] = cell.prepared.rates[cell.dispatched], True
                steps.append((cell, index, cell.dispatched + 1, float(rates[index])))
        arrays = [np.stack(each) for each in zip(*(batch.arrays for batch in batches), strict=True)]
        places = stacked(spec(None, "batch", None))
        placed = tuple(global_array(each, jax.NamedSharding(self.mesh, places)) for each in arrays)
        by_cell = jax.NamedSharding(self.mesh, jax.P(CELL))
        parts = max(batch.micro for batch in batches)
        micro = global_array(np.array(parts, np.int32), jax.NamedSharding(self.mesh, jax.P()))
        self._spent("input")
        self.stack, measured = self.program(
            self.stack, self.group.shared, global_array(rates, by_cell), global_array(active, by_cell), micro, placed
        )
        for cell, *_ in steps:
            cell.dispatched += 1
        before, self._pending = self._pending, (steps, measured)
        self._read(before)
        self._count(steps, parts)
        self._spent("step")
        return steps

    def _batch(self, cell: _Cell) -> Batch:
        if not cell.goes_on:
            return empty_batch(self.group.shape)
        return cell.prepared.plan.batch(cell.dispatched, self.group.shape, self.group.config.packing)

    def _count(self, steps: list, micro: int) -> None:
        shape = self.group.shape
        self.timing.places += micro * shape.rows * shape.length * self.size
        for cell, _, step, _ in steps:
            plan = cell.prepared.plan
            examples = [plan.examples[index] for index in plan.members(step - 1)]
            lengths = [example.fed for example in examples]
            self.timing.tokens += sum(lengths)
            scored = sum(example.scored for example in examples)
            self.timing.flops += tuning_flops(self.group.model.config, lengths, scored)

    def _settle(self) -> None:
        """Waits for the step in flight."""
        pending, self._pending = self._pending, None
        self._read(pending)

    def _read(self, pending: tuple[list, dict[str, Any]] | None) -> None:
        """Keeps the metrics of a step and tells them; marks cells that cannot go on."""
        if pending is None:
            return
        steps, measured = pending
        values = jax.device_get(measured)
        moved()
        for cell, index, step, rate in steps:
            if cell.failure:  # dispatched before it was known
                continue
            mine = {name: float(value[index]) for name, value in values.items()}
            if not np.isfinite([mine["loss"], mine["grad_norm"]]).all():
                cell.failure = self._failure(cell, step)
                self.watch.say(cell.failure)
                continue
            told = {"step": float(step), "learning_rate": rate, **mine}
            cell.metrics.append(told)
            self.watch.step(cell.prepared.job.name, told)

    def _failure(self, cell: _Cell, step: int) -> str:
        job, plan = cell.prepared.job, cell.prepared.plan
        members = plan.members(step - 1)
        names = [job.ids[index] if job.ids else str(index) for index in members]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"{job.name}: step {step}: the loss or gradient is not finite, on the examples {shown}; "
            "it stops here; lower tune.learning_rate"
        )

    def _show_models(self, steps: list[_Step]) -> None:
        """Shows the watch the cells that have come to a step of `export_every`, other than their last."""
        every = self.group.config.export_every
        shown = [(cell, index, step) for cell, index, step, _ in steps if every and step % every == 0 and cell.goes_on]
        if not shown:
            return
        self._settle()
        for cell, index, step in shown:
            if not cell.failure:
                self.watch.model(cell.prepared.job.name, step, functools.partial(self.models.model, index))
        self._spent("checkpoint")

    @property
    def models(self) -> ModelStack:
        """The cells' models as they are."""
        return ModelStack(self.group.model, self.stack.params, self.group.shared.frozen, len(self.cells))

    def _due(self, taken: int) -> bool:
        """Whether resumable checkpoints are wanted now; all processes come to the same answer."""
        every = self.group.config.checkpoint_every
        if every is None:
            if taken < 3:
                return False
            if taken == 3:  # the first ones wait for the devices to begin
                self._settle()
                seconds = self.timing.step / 3
                told = exchange("seconds a step", str(seconds).encode())[0]
                self._every = max(1, round(SAVE_SECONDS / max(float(told), 1e-6)))
            every = self._every
        return every > 0 and taken % every == 0 and any(cell.goes_on for cell in self.cells)

    def _wait(self) -> None:
        """Returns when all checkpoints are written; raises UserError where one could not be."""
        for cell in self.cells:
            if cell.checkpoints:
                cell.checkpoints.wait()
                moved()
        self._spent("checkpoint")

    def _save(self) -> None:
        """Saves every cell that has changed: those at their end as results, the others to be resumed."""
        self._spent("step")
        # no more than two copies; writes of several processes meet in barriers that bear one name in all managers
        at_once = 2 if process_count() == 1 else 1
        for index, cell in enumerate(self.cells):
            ended = len(cell.metrics) == cell.prepared.plan.steps
            if cell.checkpoints is None or cell.failure or cell.saved == len(cell.metrics):
                continue
            state = take(self.stack, jnp.int32(index))
            rest = None if ended else state._replace(params=())
            while len(self._writing) >= at_once:
                self._writing.pop(0).wait()
            cell.checkpoints.save(state.params, rest, cell.metrics)
            cell.saved = len(cell.metrics)
            self._writing.append(cell.checkpoints)
            moved()
        self._spent("checkpoint")
