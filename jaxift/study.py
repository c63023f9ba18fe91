"""A study's cells and stage graph: what is done, what is stale, what runs next."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxift.artifacts import STUDY_FILE, RunDirectory, digest, versions
from jaxift.config import BASE, TEST_SETS, Cell, DomainConfig, StudyConfig, dump_study
from jaxift.console import Reporter
from jaxift.data.questions import Question
from jaxift.data.sources import read_domain
from jaxift.errors import UserError
from jaxift.stages.analyze import analyze
from jaxift.stages.build import build
from jaxift.stages.report import report

STAGES = ("probe", "build", "tune", "evaluate", "analyze", "report")
# Analyze and report take what they find in the run directory: a part of a study, or a run copied from elsewhere.
MODEL_STAGES = STAGES[:4]
# Raised when a stage's numbers may change with the code alone; what was made before is stale then.
STAGE_VERSIONS = {"probe": 4, "build": 1, "tune": 4, "evaluate": 4, "analyze": 1, "report": 1}

Made = tuple[list[str], dict[str, Any]]
Advance = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Unit:
    """The smallest piece of work that is done or not done; `key` is a hash of everything that goes into it."""

    name: str
    key: str
    work: Callable[[Advance], Made]
    parts: str = ""
    """Folder of what an interrupted one goes on from: of no use once it is done."""


def cells(config: StudyConfig) -> list[Cell]:
    """All evaluated models of a study: a BASE cell a domain, then domains x arms x seeds."""
    base = [Cell(domain.name, BASE) for domain in config.domains]
    return base + [
        Cell(domain.name, arm, seed) for domain in config.domains for arm in config.build.arms for seed in config.seeds
    ]


class Study:
    """One study in one run directory; model and questions are loaded when first needed."""

    def __init__(self, config: StudyConfig):
        self.config = config
        self.run = RunDirectory.create(config.run_path)
        self._domains = {domain.name: domain for domain in config.domains}
        self._questions: dict[str, dict[str, list[Question]]] = {}

    def execute(self, stages: Sequence[str], reporter: Reporter) -> None:
        """Runs the stages in order: skips what is done, redoes what is stale.

        Raises UserError where a stage before the first one is not done with the present configuration.
        """
        self._check_inputs(stages)
        if stages[0] in MODEL_STAGES:
            for stage in STAGES[: STAGES.index(stages[0])]:
                self._require(stage)
            self.run.write_text(STUDY_FILE, dump_study(self.config))
        for stage in stages:
            self._execute(stage, reporter)
        if tuple(stages) == STAGES:
            self._write_manifest()

    def units(self, stage: str) -> list[Unit]:
        """A stage's units; the stages before it must be done, since keys depend on what they made."""
        domains = self.config.domains
        match stage:
            case "probe":
                return [self._probe_unit(domain) for domain in domains]
            case "build":
                return [self._build_unit(domain, seed) for domain in domains for seed in self.config.seeds]
            case "tune":
                return [self._tune_unit(cell) for cell in cells(self.config) if cell.arm != BASE]
            case "evaluate":
                return [self._evaluate_unit(cell) for cell in cells(self.config)]
            case "analyze":
                return [self._analyze_unit()]
            case _:
                return [self._report_unit()]

    @functools.cached_property
    def model(self):
        """The base model on its mesh, its weights in float32 as tuning needs them."""
        from jaxift.models.weights import load  # imported here: `analyze` and `report` need no JAX
        from jaxift.parallel.mesh import configured_mesh

        settings = self.config.model
        return load(
            settings.path,
            configured_mesh(self.config.mesh),
            settings.dtype,
            bos=settings.bos,
            seam=settings.seam,
            param_dtype="float32",
            max_positions=settings.max_positions,
        )

    def questions(self, domain: str) -> dict[str, list[Question]]:
        """A domain's questions by split."""
        if domain not in self._questions:
            self._questions[domain] = read_domain(self._domains[domain], self.config.data_dir)
        return self._questions[domain]

    def _check_inputs(self, stages: Sequence[str]) -> None:
        """Refuses bad inputs before any work is done: the model folder and every domain's questions."""
        if set(stages) & set(MODEL_STAGES):
            _ = self._model_key
            for domain in self._domains:
                self.questions(domain)

    def _require(self, stage: str) -> None:
        for unit in self.units(stage):
            state = self.run.state(unit.name, unit.key)
            if state != "done":
                raise UserError(
                    f"{self.run.root}: {unit.name} is {state}; run `jaxift {stage}` with the same arguments first"
                )

    def _execute(self, stage: str, reporter: Reporter) -> None:
        units = self.units(stage)
        states = [self.run.state(unit.name, unit.key) for unit in units]
        with reporter.stage(stage, len(units), states.count("done")):
            for unit, state in zip(units, states, strict=True):
                if state == "done":
                    continue
                with reporter.unit(stage, unit.name, state):
                    self.run.discard(unit.name)
                    files, facts = unit.work(reporter.advance)
                    self.run.finish(unit.name, unit.key, files, **facts)
                    if unit.parts:
                        self.run.path(unit.parts).rmtree(missing_ok=True)

    def _write_manifest(self) -> None:
        """The run's own manifest, written last: versions, and the digest of every unit."""
        made = {unit.name: self.run.outputs(unit.name) for stage in STAGES for unit in self.units(stage)}
        self.run.write_json("manifest.json", {"versions": versions(), "units": made})

    @functools.cached_property
    def _model_key(self) -> str:
        from jaxift.models.weights import check_folder, fingerprint

        settings = self.config.model
        check_folder(settings.path, settings.max_positions)
        return digest([fingerprint(settings.path), settings.dtype, settings.bos, settings.seam, settings.max_positions])

    def _questions_key(self, domain: DomainConfig, splits: Sequence[str]) -> str:
        questions = self.questions(domain.name)
        return digest([[dataclasses.astuple(question) for question in questions[split]] for split in splits])

    def _key(self, stage: str, *inputs: Any) -> str:
        return digest([stage, STAGE_VERSIONS[stage], *inputs])

    def _read_out(self) -> dict[str, Any]:
        """The part of the probe's settings that evaluation shares."""
        return self.config.probe.model_dump(include={"prompt", "formulation", "normalization"})

    def _probe_unit(self, domain: DomainConfig) -> Unit:
        from jaxift.stages.probe import probe

        settings = self.config.probe.model_dump(exclude={"threshold"})
        questions = self._questions_key(domain, ("dev", "train", *TEST_SETS))
        key = self._key("probe", self._model_key, questions, settings, domain.words)

        parts = f"probe/{domain.name}/parts"

        def work(advance: Advance) -> Made:
            questions = self.questions(domain.name)
            return probe(self.config, self.run, domain, questions, self.model, key, parts, advance), {}

        return Unit(f"probe/{domain.name}", key, work, parts)

    def _build_unit(self, domain: DomainConfig, seed: int) -> Unit:
        probed = self.run.outputs(f"probe/{domain.name}")
        settings = [self.config.build.model_dump(), self.config.probe.threshold, self.config.probe.prompt]
        key = self._key("build", probed, settings, domain.words, seed)
        return Unit(f"arms/{domain.name}/s{seed}", key, lambda _: build(self.config, self.run, domain, seed))

    def _tune_unit(self, cell: Cell) -> Unit:
        from jaxift.stages.tune import tune_cell

        arms = f"arms/{cell.domain}/s{cell.seed}"
        items = (self.run.manifest(arms) or {"files": {}})["files"].get(f"{arms}/{cell.arm}.jsonl")
        settings = self.config.tune.model_dump(exclude={"checkpoint_every"})
        key = self._key("tune", items, settings, self._model_key, cell.seed)
        return Unit(
            f"cells/{cell.id}/tune",
            key,
            lambda advance: (tune_cell(self.config, self.run, cell, self.model, advance), {}),
        )

    def _evaluate_unit(self, cell: Cell) -> Unit:
        from jaxift.stages.evaluate import evaluate

        domain = self._domains[cell.domain]
        tuned = self._model_key if cell.arm == BASE else self.run.outputs(f"cells/{cell.id}/tune")
        key = self._key("evaluate", tuned, self._questions_key(domain, TEST_SETS), self._read_out(), domain.words)

        parts = f"cells/{cell.id}/scores/parts"

        def work(advance: Advance) -> Made:
            questions = self.questions(cell.domain)
            return evaluate(self.config, self.run, cell, domain, questions, self.model, key, parts, advance), {}

        return Unit(f"cells/{cell.id}/evaluate", key, work, parts)

    def _analyze_unit(self) -> Unit:
        found = [cell for cell in cells(self.config) if self.run.manifest(f"cells/{cell.id}/evaluate")]
        if not found:
            raise UserError(f"{self.run.root}: no cell is evaluated yet; run `jaxift evaluate` first")
        evaluated = [self.run.outputs(f"cells/{cell.id}/evaluate") for cell in found]
        probes = [f"probe/{domain}" for domain in self._domains]
        probed = [self.run.outputs(unit) for unit in probes if self.run.manifest(unit)]
        described = self.config.model_dump(include={"name", "model", "seeds", "probe", "analyze"})
        wanted = [cell.id for cell in cells(self.config)]
        key = self._key("analyze", evaluated, probed, described, wanted)
        return Unit("analysis", key, lambda _: (analyze(self.config, self.run, found), {}))

    def _report_unit(self) -> Unit:
        arms = [f"arms/{domain}/s{seed}" for domain in self._domains for seed in self.config.seeds]
        built = [self.run.outputs(unit) for unit in arms if self.run.manifest(unit)]
        described = self.config.model_dump(include={"name", "model", "seeds", "probe", "build"})
        key = self._key("report", self.run.outputs("analysis"), built, described)
        return Unit("report", key, lambda _: (report(self.config, self.run, cells(self.config)), {}))
