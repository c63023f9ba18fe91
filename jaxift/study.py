"""Runs a study: what is done is skipped, what is stale is done again, what was killed goes on."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from etils import epath

from jaxift.artifacts import STUDY_FILE, RunDirectory, versions
from jaxift.config import Cell, StudyConfig, dump_study
from jaxift.console import Reporter
from jaxift.errors import UserError
from jaxift.units import CELL_STAGES, MODEL_STAGES, STAGES, Units, cells
from jaxift.wave_runner import WaveRunner, told


class Study:
    """One study in one run directory.

    `only` are patterns (as of file names) of the cells that tuning and evaluation are limited to; none: all. Raises
    UserError where a pattern matches none.
    """

    def __init__(self, config: StudyConfig, only: Sequence[str] = ()):
        self.config, self.whole = config, not only
        self.run = RunDirectory(epath.Path(config.run_path))
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
        RunDirectory.create(self.config.run_path)
        if set(stages) & set(MODEL_STAGES):
            self.units.check_inputs()
        if stages[0] in MODEL_STAGES:
            for stage in STAGES[: STAGES.index(stages[0])]:
                self._require(stage)
            self.run.write_text(STUDY_FILE, dump_study(self.config))
        runner = WaveRunner(self.config, self.run, self.units, reporter)
        of_cells = [stage for stage in stages if stage in CELL_STAGES]
        for stage in stages:
            if stage not in of_cells:
                self._execute(stage, reporter)
            elif stage == of_cells[0]:
                runner.execute(of_cells, self.cells)
        if runner.failures:
            raise told(list(runner.failures.values()))
        if tuple(stages) == STAGES and self.whole:
            self._write_manifest()

    def _require(self, stage: str) -> None:
        for unit in self.units.of(stage, self.cells):
            state = self.units.state(unit)
            if state != "done":
                raise UserError(
                    f"{self.run.root}: {unit.name} is {state}; run `jaxift {stage}` with the same arguments first"
                )

    def _execute(self, stage: str, reporter: Reporter) -> None:
        units = self.units.of(stage, self.cells)
        if not units:
            return
        states = [self.units.state(unit) for unit in units]
        with reporter.stage(stage, len(units), states.count("done")):
            for unit, state in zip(units, states, strict=True):
                if state == "done":
                    continue
                reporter.reason(stage, unit.name, state)
                with reporter.unit(stage, unit.name):
                    assert unit.work is not None
                    self.run.discard(unit.name)
                    files, facts = unit.work(reporter.advance)
                    self.units.finish(unit, files, facts)
                    if "note" in facts:
                        reporter.note(stage, unit.name, facts["note"])
                    if unit.parts:
                        self.run.path(unit.parts).rmtree(missing_ok=True)

    def _write_manifest(self) -> None:
        """The run's own manifest, written last: versions, and the digest of every unit."""
        made = {unit.name: self.run.outputs(unit.name) for stage in STAGES for unit in self.units.of(stage, self.cells)}
        self.run.write_json("manifest.json", {"versions": versions(), "units": made})


def _listed(cells: Sequence[Cell]) -> str:
    """Some cells' ids."""
    names = [cell.id for cell in cells]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
