"""Tunes and evaluates a study's cells, wave by wave: what was just tuned is evaluated where it is, in memory."""

import collections
from collections.abc import Sequence
from typing import Any

from jaxift.artifacts import RunDirectory, digest
from jaxift.config import BASE, Cell, StudyConfig
from jaxift.console import Reporter
from jaxift.errors import UserError
from jaxift.joint_units import agreed, finish
from jaxift.parallel import pace
from jaxift.units import Unit, Units

RESTORED_SHARE = 0.5
"""Of the memory that tuning may take, what the weights of models may take that are read from checkpoints."""


class WaveRunner:
    """Runs what is to do of the stages tune and evaluate for some cells; `failures` says why which ones stopped."""

    def __init__(self, config: StudyConfig, run: RunDirectory, units: Units, reporter: Reporter):
        self.config, self.run, self.units, self.reporter = config, run, units, reporter
        self.failures: dict[str, str] = {}
        self.evaluated = 0

    def execute(self, stages: Sequence[str], cells: Sequence[Cell]) -> None:
        """Runs one of the stages, or both; evaluation needs cells that are tuned."""
        if "tune" in stages:
            self._tune(cells, "evaluate" in stages)
        if "evaluate" in stages:
            self._evaluate([cell for cell in cells if cell.id not in self.failures])

    def _tune(self, cells: Sequence[Cell], evaluates: bool) -> None:
        found = agreed(self.units, lambda: self.units.of("tune", cells))
        units, states = [unit for unit, _ in found], {unit.name: state for unit, state in found}
        todo = {unit.cell.id: unit for unit in units if unit.cell and states[unit.name] != "done"}
        done = len(units) - len(todo)
        if not units:
            return
        if not todo:
            with self.reporter.stage("tune", len(units), done):
                return
        from jaxift.stages import tune  # imported here: it brings JAX
        from jaxift.tuning.sinks import sinks
        from jaxift.wave_progress import execute

        for unit in todo.values():
            self.reporter.reason("tune", unit.name, states[unit.name])
            self.run.discard(unit.name)
        planned = tune.plan(self.config, self.run, [unit.cell for unit in todo.values() if unit.cell], self.units.model)
        config, run = self.config, self.run
        with sinks(
            config.tune, run.root / "tensorboard", config.name, lambda name: run.path(f"cells/{name}"),
            config.model.path,
        ) as opened:  # fmt: skip
            for each in planned:
                with self.reporter.stage("tune", len(units), done) as stage:
                    wave = execute(each, self.reporter, opened)
                    for index, cell in enumerate(wave.cells):
                        if cell.failure:
                            self.failures[cell.job.name] = cell.failure
                            continue
                        unit = todo[cell.job.name]
                        assert unit.cell
                        files, facts = tune.write_cell(self.config, self.run, unit.cell, wave, index)
                        finish(self.units, unit, files, facts)
                        done += 1
                    stage.now = done
                    if slow := pace.slowest():
                        self.reporter.note("tune", f"wave {each.number}", slow)
                if evaluates:
                    self._evaluate_wave(wave, [todo[cell.job.name] for cell in wave.cells], cells)
                del wave

    def _evaluate_wave(self, wave: Any, tuned: Sequence[Unit], cells: Sequence[Cell]) -> None:
        """Evaluates the models of a wave from memory."""
        members, places = [], {}
        for index, (cell, unit) in enumerate(zip(wave.cells, tuned, strict=True)):
            if not cell.failure:
                assert unit.cell
                [(evaluation, state)] = agreed(self.units, lambda cell=unit.cell: [self.units.evaluate_unit(cell)])
                self.reporter.reason("evaluate", evaluation.name, state)
                if state != "done":
                    members.append(evaluation)
                    places[evaluation.name] = index
        if not members:
            return
        done = self.evaluated
        with self.reporter.stage("evaluate", len(cells), done) as stage:
            for alike in _alike(members):
                self._score(alike, wave.stack.some([places[unit.name] for unit in alike]))
            self.evaluated = stage.now = done + len(members)

    def _evaluate(self, cells: Sequence[Cell]) -> None:
        """Evaluates what is left: the base model, and cells that were tuned before."""
        found = agreed(self.units, lambda: self.units.of("evaluate", cells))
        units, states = [unit for unit, _ in found], {unit.name: state for unit, state in found}
        todo = [unit for unit in units if states[unit.name] != "done"]
        if not units:
            return
        with self.reporter.stage("evaluate", len(units), len(units) - len(todo)):
            for unit in todo:
                self.reporter.reason("evaluate", unit.name, states[unit.name])
            base = [unit for unit in todo if unit.cell and unit.cell.arm == BASE]
            for unit in base:
                self._score([unit], self.units.model)
            for alike in _alike([unit for unit in todo if unit not in base]):
                self._evaluate_restored(alike)

    def _evaluate_restored(self, units: Sequence[Unit]) -> None:
        """Evaluates cells that are asked the same, as many at once as memory holds, from their checkpoints."""
        from jaxift.models.stack import device_bytes
        from jaxift.parallel.mesh import CELL, cell_mesh
        from jaxift.tuning.group import restored_stack, tuned_arrays, with_adapters
        from jaxift.tuning.waves import memory_limit, split

        model = with_adapters(self.units.model.on(cell_mesh(self.config.mesh)), self.config.tune)
        limit = RESTORED_SHARE * memory_limit(model.mesh, self.config.memory_per_device)
        groups = model.mesh.shape[CELL]
        each = device_bytes(tuned_arrays(model))
        for part in split(units, groups * max(1, int(limit // each)), groups):
            folders = [self.run.path(unit.cell.checkpoints) for unit in part if unit.cell]
            self._score(part, restored_stack(model, folders))

    def _score(self, units: Sequence[Unit], models: Any) -> None:
        """Scores cells that are asked the same with their models, and marks them as done."""
        from jaxift.stages.evaluate import evaluate

        cells = [unit.cell for unit in units if unit.cell]
        for unit in units:
            self.run.discard(unit.name)
        domain = self.units.domain(cells[0].domain)
        key = digest([unit.key for unit in units])
        parts = f"cells/{cells[0].id}/scores/parts"
        name = cells[0].id if len(cells) == 1 else f"{len(cells)} cells of {domain.name}"
        with self.reporter.unit("evaluate", name, len(cells)):
            found = evaluate(
                self.config, self.run, cells, domain, self.units.questions(domain.name), models, key, parts,
                self.units.wrapper, self.reporter.advance,
            )  # fmt: skip
            for unit, (files, facts) in zip(units, found, strict=True):
                finish(self.units, unit, files, facts)
        if slow := pace.slowest():
            self.reporter.note("evaluate", name, slow)
        self.run.remove(parts)


def _alike(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units by what is asked of them."""
    found: dict[tuple[str, str], list[Unit]] = collections.defaultdict(list)
    for unit in units:
        assert unit.cell
        found[unit.cell.domain, unit.digests["the questions"]].append(unit)
    return list(found.values())


def told(failures: Sequence[str]) -> UserError:
    """What is said at the end where cells stopped."""
    more = f" (and {len(failures) - 1} more cells)" if len(failures) > 1 else ""
    return UserError(f"{failures[0]}{more}; all other cells are done")
