"""The units of a study: the smallest pieces of work, what goes into each, and how it is done."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxift.artifacts import RunDirectory, digest
from jaxift.config import BASE, ON_THE_WAY, SPLITS, Cell, DomainConfig, StudyConfig
from jaxift.data.release import read_imported
from jaxift.data.sources import DomainQuestions, check_demonstrations, read_domain
from jaxift.errors import UserError
from jaxift.intervention.general import read_general
from jaxift.intervention.pools import base_explains
from jaxift.stages.analyze import analyze
from jaxift.stages.build import build
from jaxift.stages.report import report

STAGES = ("probe", "explain", "build", "tune", "evaluate", "analyze", "report")
# Analyze and report take what they find in the run directory: a part of a study, or a run copied from elsewhere.
MODEL_STAGES = STAGES[:5]
# Need no device: of several processes the first one does them.
FIRST_HOST_STAGES = ("build", "analyze", "report")
# Done for each cell, several cells at a time.
CELL_STAGES = ("tune", "evaluate")
# Raised when a stage's numbers may change with the code alone; what was made before is stale then.
STAGE_VERSIONS = {"probe": 5, "explain": 1, "build": 3, "tune": 5, "evaluate": 6, "analyze": 5, "report": 5}

Made = tuple[list[str], dict[str, Any]]
Advance = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Unit:
    """The smallest piece of work that is done or not done; `inputs` is everything that goes into it, by name.

    Work on a `cell` has no `work` of its own: cells are tuned and evaluated several at a time.
    """

    stage: str
    name: str
    inputs: Mapping[str, Any]
    work: Callable[[Advance], Made] | None
    parts: str = ""
    """Folder of what an interrupted one goes on from: of no use once it is done."""
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """The configuration's sections that its result depends on, as they are kept beside it."""
    cell: Cell | None = None

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each input, the stage's version among them."""
        return {"jaxift": digest([self.stage, STAGE_VERSIONS[self.stage]])} | {
            name: digest(value) for name, value in self.inputs.items()
        }

    @property
    def key(self) -> str:
        """Digest of all inputs."""
        return digest(self.digests)


def cells(config: StudyConfig) -> list[Cell]:
    """All evaluated models of a study: a BASE cell a domain, then domains x arms x seeds."""
    base = [Cell(domain.name, BASE) for domain in config.domains]
    return base + [
        Cell(domain.name, arm, seed) for domain in config.domains for arm in config.build.arms for seed in config.seeds
    ]


class Units:
    """All units of one study in one run directory; model and questions are loaded when first needed."""

    def __init__(self, config: StudyConfig, run: RunDirectory):
        self.config, self.run = config, run
        self.data = epath.Path(config.data_dir)
        self._domains = {domain.name: domain for domain in config.domains}
        self._questions: dict[str, DomainQuestions] = {}

    def of(self, stage: str, chosen: Sequence[Cell]) -> list[Unit]:
        """A stage's units, of tuning and evaluation those of the chosen cells.

        The stages before it must be done, since inputs depend on what they made.
        """
        domains = self.config.domains
        match stage:
            case "probe":
                return [self._probe_unit(domain) for domain in domains]
            case "explain":
                return [self._explain_unit(domain) for domain in domains] if base_explains(self.config.build) else []
            case "build":
                return [self.build_unit(domain, seed) for domain in domains for seed in self.config.seeds]
            case "tune":
                return [self._tune_unit(cell) for cell in chosen if cell.arm != BASE]
            case "evaluate":
                return [self.evaluate_unit(cell) for cell in chosen]
            case "analyze":
                return [self._analyze_unit()]
            case _:
                return [self._report_unit()]

    @functools.cached_property
    def model(self):
        """The base model on its mesh, its weights in float32 as tuning needs them."""
        from jaxift.models.weights import load  # imported here: `analyze` and `report` need no JAX
        from jaxift.parallel.mesh import joint_mesh

        settings = self.config.model
        return load(
            settings.path,
            joint_mesh(self.config.mesh),
            settings.dtype,
            bos=settings.bos,
            seam=settings.seam,
            # full fine-tuning keeps float32 master weights; what adapters stand beside is not tuned
            param_dtype=None if self.config.tune.lora.rank else "float32",
            max_positions=settings.max_positions,
        )

    @functools.cached_property
    def wrapper(self) -> str:
        """The conversation around an instruction, where it is the model's own and not the study's."""
        if self.config.probe.chat == "study":
            return ""
        from jaxift.data.tokenizer import Tokenizer
        from jaxift.models.files.folder import open_model

        settings = self.config.model
        return Tokenizer.load(open_model(settings.path, weights=False).local, settings.bos).conversation

    def questions(self, domain: str) -> DomainQuestions:
        """A domain's questions by split."""
        if domain not in self._questions:
            found = read_domain(self._domains[domain], self.config.data_dir, pool=not self.config.build.released)
            check_demonstrations(domain, found, self.config.probe.shots)
            self._questions[domain] = found
        return self._questions[domain]

    def domain(self, name: str) -> DomainConfig:
        """The settings of a domain."""
        return self._domains[name]

    def check_inputs(self) -> None:
        """Refuses bad inputs before any work is done: the model folder, every domain's questions, other files."""
        from jaxift.tuning.optimizers import optimizer

        _ = self._model_key, self.wrapper, self._general_key, optimizer(self.config.tune)
        for domain in self._domains:
            self.questions(domain)
            self.imported(self._domains[domain])

    def inputs(self) -> dict[str, str]:
        """Digests of what is read from outside the run, by names for people."""
        domains = self._domains.items()
        read = {"model": self._model_key, "general instructions": self._general_key, "chat template": self.wrapper}
        read |= {f"questions of {name}": self._questions_key(each, ("dev", *SPLITS)) for name, each in domains}
        return read | {f"imported arms of {name}": digest(self.imported(each)) for name, each in domains}

    def finish(self, unit: Unit, files: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Marks a unit as done."""
        self.run.finish(unit.name, unit.key, files, inputs=unit.digests, settings=unit.settings, **facts)

    def state(self, unit: Unit) -> str:
        """`done`, `missing`, or `stale: ` and why."""
        state = self.run.state(unit.name, unit.key)
        if state != "stale":
            return state
        changed = self.run.changed(unit.name, unit.digests)
        return f"stale: {', '.join(changed) or 'a file that it made'} changed"

    @functools.cached_property
    def _model_key(self) -> str:
        from jaxift.models.weights import check_folder, fingerprint

        settings = self.config.model
        check_folder(settings.path, settings.max_positions)
        return digest([fingerprint(settings.path), settings.dtype, settings.bos, settings.seam, settings.max_positions])

    @functools.cached_property
    def _general_key(self) -> str:
        general = self.config.build.general
        return "" if general is None else digest(read_general(self.data / general.path))

    def _questions_key(self, domain: DomainConfig, splits: Sequence[str]) -> str:
        questions = self.questions(domain.name)
        return digest([[dataclasses.astuple(question) for question in questions[split]] for split in splits])

    def _asked_key(self, cell: Cell, domain: DomainConfig) -> str:
        """What evaluation asks of the test questions: their explanations and contexts only where they are shown."""
        from jaxift.stages.evaluate import context_shown

        plain = {"explanation": "", "context": ""}
        return digest(
            [
                [context_shown(self.config, cell, each), *dataclasses.astuple(dataclasses.replace(each, **plain))]
                for each in self.questions(domain.name).tested
            ]
        )

    def _read_out(self) -> dict[str, Any]:
        """The part of the probe's settings that evaluation shares."""
        return self.config.probe.model_dump(include={"prompt", "formulation", "normalization"})

    def _probe_unit(self, domain: DomainConfig) -> Unit:
        from jaxift.stages.probe import probe

        settings = {"probe": self.config.probe.model_dump(mode="json", exclude={"threshold", "chat"})}
        inputs = {
            "the model": self._model_key,
            "the questions": self._questions_key(domain, ("dev", *SPLITS)),
            "probe": settings["probe"],
            "words": domain.words,
        }
        parts = f"probe/{domain.name}/parts"

        def work(advance: Advance) -> Made:
            questions, key = self.questions(domain.name), unit.key
            return probe(self.config, self.run, domain, questions, self.model, key, parts, advance)

        unit = Unit("probe", f"probe/{domain.name}", inputs, work, parts, settings)
        return unit

    def _explain_unit(self, domain: DomainConfig) -> Unit:
        from jaxift.intervention.explanations import explanation_prompt, wanted
        from jaxift.stages.explain import explain

        self.run.outputs(f"probe/{domain.name}")
        rows = self.run.read_rows(f"probe/{domain.name}/train.parquet")
        asked = wanted(rows, self.config.probe.threshold, self.config.build)
        inputs = {
            "the model": self._model_key,
            "what is asked": [
                [each.row["id"], each.answer, explanation_prompt(domain.called, each.row, each.answer)]
                for each in asked
            ],
            "build.explain": self.config.build.explain.model_dump(),
        }
        parts = f"explanations/{domain.name}-parts"

        def work(advance: Advance) -> Made:
            return explain(self.config, self.run, domain, self.model, unit.key, parts, advance)

        unit = Unit("explain", f"explanations/{domain.name}", inputs, work, parts)
        return unit

    def build_unit(self, domain: DomainConfig, seed: int) -> Unit:
        """The arms of a domain and seed."""
        inputs = {
            "the probe": self.run.outputs(f"probe/{domain.name}"),
            "build": self.config.build.model_dump(),
            "probe.threshold": self.config.probe.threshold,
            "the prompt": [self.config.probe.prompt, self.wrapper, domain.words],
            "the general instructions": self._general_key,
            "the imported arms": self.imported(domain),
            "seed": seed,
        }
        if base_explains(self.config.build):
            inputs["the explanations"] = self.run.outputs(f"explanations/{domain.name}")
        work = functools.partial(build, self.config, self.run, domain, seed, self.wrapper)
        settings = {
            "build": self.config.build.model_dump(mode="json", exclude={"arms"}),
            "probe": self.config.probe.model_dump(mode="json", include={"threshold", "prompt", "chat"}),
        }
        return Unit("build", f"arms/{domain.name}/s{seed}", inputs, lambda _: work(), settings=settings)

    def imported(self, domain: DomainConfig) -> dict[str, Any]:
        """The imported arms of a domain, where the study takes these."""
        released = self.config.build.released
        return read_imported(self.data / released, domain.name) if released else {}

    def _tune_unit(self, cell: Cell) -> Unit:
        settings = {"tune": self.config.tune.model_dump(mode="json", exclude=ON_THE_WAY)}
        inputs = {
            "the arm": self._arm_key(cell),
            "tune": settings["tune"],
            "the model": self._model_key,
            "seed": cell.seed,
        }
        return Unit("tune", f"cells/{cell.id}/tune", inputs, None, settings=settings, cell=cell)

    def evaluate_unit(self, cell: Cell) -> Unit:
        """The evaluation of a cell, which is tuned already."""
        domain = self.domain(cell.domain)
        inputs = {
            "the model": self._model_key if cell.arm == BASE else self.run.outputs(f"cells/{cell.id}/tune"),
            "the questions": self._asked_key(cell, domain),
            "probe": [self._read_out(), self.wrapper],
            "words": domain.words,
        }
        settings = {
            "probe": {**self._read_out(), "chat": self.config.probe.chat},
            "domain": {"words": domain.words},
        }
        return Unit("evaluate", f"cells/{cell.id}/evaluate", inputs, None, settings=settings, cell=cell)

    def _arm_key(self, cell: Cell) -> str | None:
        """Hash of the file of a cell's arm, as it was built last."""
        folder = f"arms/{cell.domain}/s{cell.seed}"
        return (self.run.manifest(folder) or {"files": {}})["files"].get(f"{folder}/{cell.arm}.jsonl")

    def _is_current(self, cell: Cell) -> bool:
        """Whether a cell's scores were made with the present settings and of what is there, as far as the run tells.

        Neither model nor questions are asked: a run may have been copied from elsewhere.
        """
        probe, arms = f"probe/{cell.domain}", f"arms/{cell.domain}/s{cell.seed}"
        tune, scores = f"cells/{cell.id}/tune", f"cells/{cell.id}/evaluate"
        if self.run.manifest(scores) is None:
            return False
        if cell.arm == BASE:
            units, came_of = (probe, scores), [(scores, "the model", self._input(probe, "the model"))]
        else:
            arm = self._arm_key(cell)
            units = (probe, arms, tune, scores)
            came_of = [
                (arms, "the probe", self._made(probe)),
                (tune, "the arm", arm and digest(arm)),
                (tune, "the model", self._input(probe, "the model")),
                (scores, "the model", self._made(tune)),
            ]
        return all(self._agrees(unit, cell.domain) for unit in units) and all(
            now is None or self._input(unit, name) in (None, now)  # what is not there tells nothing
            for unit, name, now in came_of
        )

    def _input(self, unit: str, name: str) -> str | None:
        """Digest of an input of a finished unit, where there is one."""
        return (self.run.manifest(unit) or {}).get("inputs", {}).get(name)

    def _made(self, unit: str) -> str | None:
        """Digest that a finished unit has as another's input, where there is one."""
        return digest(self.run.outputs(unit)) if self.run.manifest(unit) else None

    @functools.cached_property
    def _present(self) -> dict[str, Any]:
        """The present settings by section, as units record them."""
        return self.config.model_dump(mode="json")

    def _agrees(self, unit: str, domain: str) -> bool:
        """Whether the settings that a unit recorded are the present ones; newer ones it could not know."""
        present = {**self._present, "domain": {"words": self.domain(domain).words}}
        recorded = (self.run.manifest(unit) or {}).get("settings", {})
        return all(
            present[section].get(name, value) == value
            for section, known in recorded.items()
            for name, value in known.items()
        )

    def _analyze_unit(self) -> Unit:
        found = [cell for cell in cells(self.config) if self._is_current(cell)]
        probes = [f"probe/{domain}" for domain in self._domains]
        scored = [cell for cell in cells(self.config) if self.run.manifest(f"cells/{cell.id}/evaluate")]
        if not found and (scored or not any(map(self.run.manifest, probes))):
            raise UserError(
                f"{self.run.root}: no cell is evaluated with the present settings yet; run `jaxift evaluate` first"
            )
        inputs = {
            "the scores": [self.run.outputs(f"cells/{cell.id}/evaluate") for cell in found],
            "the probe": [self.run.outputs(unit) for unit in probes if self.run.manifest(unit)],
            "the study": self.config.model_dump(include={"name", "model", "seeds", "probe", "analyze"}),
            "the cells": [cell.id for cell in cells(self.config)],
        }
        left, note = len(scored) - len(found), {}
        if left:
            note["note"] = f"{left} cells have scores made with other settings, or of other arms; they are left out"
        current = [name for name in self._domains if self._agrees(f"probe/{name}", name)]
        return Unit("analyze", "analysis", inputs, lambda _: (analyze(self.config, self.run, found, current), note))

    def _report_unit(self) -> Unit:
        arms = [f"arms/{domain}/s{seed}" for domain in self._domains for seed in self.config.seeds]
        inputs = {
            "the analysis": self.run.outputs("analysis"),
            "the arms": [self.run.outputs(unit) for unit in arms if self.run.manifest(unit)],
            "the study": self.config.model_dump(include={"name", "model", "seeds", "probe", "build"}),
        }
        return Unit("report", "report", inputs, lambda _: (report(self.config, self.run, cells(self.config)), {}))
