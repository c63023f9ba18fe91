"""Runs a study: what is done is skipped, what is stale is done again, what was killed goes on."""

import uuid
from collections.abc import Sequence
from fnmatch import fnmatchcase

from etils import epath

from jaxift import host_log
from jaxift.artifacts import STUDY_FILE, RunDirectory, versions
from jaxift.config import Cell, StudyConfig, dump_study
from jaxift.console import Reporter
from jaxift.errors import UserError
from jaxift.joint_units import agreed, check_inputs, finish, made
from jaxift.parallel import pace
from jaxift.parallel.hosts import is_first, process_count, process_index
from jaxift.parallel.meeting import on_every_process, on_first_process, told_by_first, until_seen
from jaxift.units import CELL_STAGES, MODEL_STAGES, STAGES, Units, cells
from jaxift.wave_runner import WaveRunner, told


class Study:
    """One study in one run directory.

    `only` are patterns (as of file names) of the cells that tuning and evaluation are limited to; none: all. Raises
    UserError where a pattern matches none.
    """

    def __init__(self, config: StudyConfig, only: Sequence[str] = ()):
        self.config, self.whole = config, not only
        self.run = RunDirectory(epath.Path(config.run_path), writes=is_first())
        self.units = Units(config, self.run)
        every = cells(config)
        for pattern in only:
            if not any(fnmatchcase(cell.id, pattern) for cell in every):
                raise UserError(f"--only {pattern}: matches no cell; they are {_listed(every)}")
        self.cells = [cell for cell in every if any(fnmatchcase(cell.id, pattern) for pattern in only or ("*",))]

    def execute(self, stages: Sequence[str], reporter: Reporter) -> None:
        """Runs the stages in order: skips what is done, redoes what is stale.

        Raises UserError where a stage before the first one is not done with the present configuration.
        """
        self._claim()
        with host_log.opened(self.run.root / "logs", process_index(), process_count()):
            self._execute(stages, reporter)

    def _claim(self) -> None:
        """Makes the run directory; refuses it by name where not all processes see the same."""

        def mark() -> str:
            name = f".shared-{uuid.uuid4().hex}"
            RunDirectory.create(self.config.run_path).write_text(name, "")
            return name

        name = told_by_first(mark)
        on_every_process(lambda: until_seen(lambda: self.run.exists(name), f"run directory {self.run.root}"))
        if is_first():
            (self.run.root / name).unlink(missing_ok=True)

    def _execute(self, stages: Sequence[str], reporter: Reporter) -> None:
        if set(stages) & set(MODEL_STAGES):
            check_inputs(self.units)
        if stages[0] in MODEL_STAGES:
            for stage in STAGES[: STAGES.index(stages[0])]:
                self._require(stage)
            self.run.write_text(STUDY_FILE, dump_study(self.config))
        runner = WaveRunner(self.config, self.run, self.units, reporter)
        of_cells = [stage for stage in stages if stage in CELL_STAGES]
        for stage in stages:
            if stage not in of_cells:
                self._execute_stage(stage, reporter)
            elif stage == of_cells[0]:
                runner.execute(of_cells, self.cells)
        if runner.failures:
            raise told(list(runner.failures.values()))
        if tuple(stages) == STAGES and self.whole:
            on_first_process(self._write_manifest)

    def _require(self, stage: str) -> None:
        for unit, state in agreed(self.units, lambda: self.units.of(stage, self.cells)):
            if state != "done":
                raise UserError(
                    f"{self.run.root}: {unit.name} is {state}; run `jaxift {stage}` with the same arguments first"
                )

    def _execute_stage(self, stage: str, reporter: Reporter) -> None:
        units = agreed(self.units, lambda: self.units.of(stage, self.cells))
        if not units:
            return
        with reporter.stage(stage, len(units), [state for _, state in units].count("done")):
            for unit, state in units:
                if state == "done":
                    continue
                reporter.reason(stage, unit.name, state)
                with reporter.unit(stage, unit.name):
                    self.run.discard(unit.name)
                    files, facts = made(unit, reporter.advance)
                    finish(self.units, unit, files, facts)
                    if "note" in facts:
                        reporter.note(stage, unit.name, facts["note"])
                    if slow := pace.slowest():
                        reporter.note(stage, unit.name, slow)
                    if unit.parts:
                        self.run.remove(unit.parts)

    def _write_manifest(self) -> None:
        """The run's own manifest, written last: versions, and the digest of every unit."""
        made = {unit.name: self.run.outputs(unit.name) for stage in STAGES for unit in self.units.of(stage, self.cells)}
        self.run.write_json("manifest.json", {"versions": versions(), "units": made})


def _listed(cells: Sequence[Cell]) -> str:
    """Some cells' ids."""
    names = [cell.id for cell in cells]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
