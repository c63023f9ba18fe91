"""What a study has still to do, and what that takes: requests, optimizer steps, tokens, disk; nothing is written."""

import dataclasses
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxift.config import BASE, Cell, DomainConfig
from jaxift.data.prompts import STYLES, continuations, instruction_prompt, probe_prompt, response
from jaxift.data.questions import Question
from jaxift.data.tokenizer import Tokenizer
from jaxift.intervention.general import read_general
from jaxift.intervention.pools import base_explains, imported_pools
from jaxift.models.files.folder import open_model
from jaxift.models.inspection import count_parameters, inspect_model, readable_bytes
from jaxift.study import Study
from jaxift.units import MODEL_STAGES, STAGES

BLOCKED = "a stage before is not done"
SAMPLE = 64  # texts that are tokenised for the mean length of a set


@dataclasses.dataclass(frozen=True)
class Line:
    """A domain's share of a stage: for each of `count` pieces `work` in words and `tokens`; `note` says how sure."""

    stage: str
    domain: str
    count: int
    work: str
    tokens: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All that a study asks for; `states` are the units' by stage, as far as they can be told yet."""

    cells: list[Cell]
    lines: list[Line]
    states: dict[str, list[str]]
    steps: int
    disk: int


def forecast(study: Study) -> Forecast:
    """Counts what each stage takes in all; raises UserError for bad inputs, as running the study would."""
    study.units.check_inputs()
    settings = study.config.model
    tokenizer = Tokenizer.load(open_model(settings.path, weights=False).local, settings.bos, settings.seam)
    counter = _Counter(study, tokenizer)
    lines, steps = [], 0
    for domain in study.config.domains:
        cells = [cell for cell in study.cells if cell.domain == domain.name]
        tuned = sum(cell.arm != BASE for cell in cells)
        lines.append(counter.probe(domain))
        if base_explains(study.config.build):
            lines.append(counter.explain(domain))
        if tuned:
            taken, line = counter.tune(domain, tuned)
            steps += taken * tuned
            lines.append(line)
        if cells:
            lines.append(counter.evaluate(domain, len(cells)))
    config = inspect_model(settings.path, settings.max_positions).config
    tuned = sum(cell.arm != BASE for cell in study.cells)
    disk = 4 * count_parameters(config) * tuned if config else 0
    return Forecast(study.cells, lines, _states(study), steps, disk)


def show(found: Forecast, console: Console) -> None:
    """Prints a forecast as tables."""
    arms = dict.fromkeys(cell.arm for cell in found.cells)
    seeds = dict.fromkeys(str(cell.seed) for cell in found.cells if cell.seed is not None)
    _print(console, f"{len(found.cells)} cells: {', '.join(arms)}; seeds {', '.join(seeds) or 'none'}")
    work = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "domain", "pieces", "each", "tokens of all", ""):
        work.add_column(name, justify="right" if name in ("pieces", "tokens of all") else "left")
    for line in sorted(found.lines, key=lambda line: STAGES.index(line.stage)):
        tokens = f"{line.count * line.tokens:,}"
        work.add_row(line.stage, Text(line.domain), f"{line.count:,}", line.work, tokens, line.note)
    console.print(work)
    stages = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "done", "to do", "why"):
        stages.add_column(name, justify="right" if name in ("done", "to do") else "left")
    for stage, states in found.states.items():
        done = states.count("done")
        why = ", ".join(dict.fromkeys(state for state in states if state != "done"))
        known = why != BLOCKED
        stages.add_row(stage, str(done) if known else "", str(len(states) - done) if known else "", why)
    console.print(stages)
    tokens = sum(line.count * line.tokens for line in found.lines)
    _print(
        console,
        f"in all: {found.steps:,} optimizer steps, about {tokens:,} tokens (before prompts share their prefixes), "
        f"{readable_bytes(found.disk)} of checkpoints",
    )
    if any(line.note for line in found.lines):
        _print(console, "at most: the probe tells how many questions qualify")


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _states(study: Study) -> dict[str, list[str]]:
    """The states of all units by stage; beyond a stage that is not done they cannot be told, and all are to do."""
    found: dict[str, list[str]] = {}
    for stage in MODEL_STAGES:
        if any(state != "done" for states in found.values() for state in states):
            found[stage] = [BLOCKED]
        else:
            found[stage] = [study.units.state(unit) for unit in study.units.of(stage, study.cells)]
    return found


class _Counter:
    """Counts tokens of a study's texts, from samples of them."""

    def __init__(self, study: Study, tokenizer: Tokenizer):
        self.units, self.config, self.tokenizer = study.units, study.config, tokenizer
        self.style = self.config.probe.prompt

    def probe(self, domain: DomainConfig) -> Line:
        settings, questions = self.config.probe, self.units.questions(domain.name)
        template, shown = STYLES[self.style].probe, questions.shown(settings.shots, settings.demonstration_seed)

        def text(question: Question) -> str:
            longest = max(continuations(template, question, settings.formulation), key=len)
            return probe_prompt(self.style, domain.called, shown.get(question.header, ()), question) + longest

        pool = questions["train"]  # none where arms are imported
        turned = (
            min(settings.prior_questions, len(pool)) if settings.prior_questions else settings.rotations * len(pool)
        )
        options = sum(len(question.options) for question in pool) / max(len(pool), 1)
        asked = round(settings.draws * (len(pool) + turned * (options - 1)))
        tested = questions.tested
        tokens = asked * self._mean(pool, text) + len(tested) * self._mean(tested, text)
        return Line("probe", domain.name, 1, f"{asked + len(tested):,} prompts", round(tokens))

    def explain(self, domain: DomainConfig) -> Line:
        pool = len(self.units.questions(domain.name)["train"])
        tokens = self.config.build.explain.max_new_tokens * pool
        return Line("explain", domain.name, 1, f"{pool:,} texts", tokens, "at most")

    def tune(self, domain: DomainConfig, cells: int) -> tuple[int, Line]:
        tune, general = self.config.tune, self.config.build.general
        size, known = self._size(domain)
        share = general.share if general else 0.0
        wrapper, form = self.units.wrapper, self.config.build.response_format

        def text(question: Question) -> str:
            explanation = question.explanation if self.config.build.explanations else ""
            prompt = instruction_prompt(self.style, domain.called, question, wrapper=wrapper)
            return prompt + response(self.style, question, question.answer, form, explanation)

        tokens = size * self._mean(self._pool(domain), text)
        if general:
            items = read_general(self.units.data / general.path, wrapper)
            tokens += round(share * size) * self._mean(items, lambda item: item["prompt"] + item["response"])
        total = size + round(share * size)
        steps = -(-total // tune.batch_size) * tune.epochs
        note = "" if known else "at most"
        work = f"{total:,} examples, {steps:,} steps"
        return steps, Line("tune", domain.name, cells, work, round(tokens * tune.epochs), note)

    def evaluate(self, domain: DomainConfig, cells: int) -> Line:
        tested, wrapper = self.units.questions(domain.name).tested, self.units.wrapper
        mean = self._mean(
            tested, lambda question: instruction_prompt(self.style, domain.called, question, wrapper=wrapper)
        )
        return Line("evaluate", domain.name, cells, f"{len(tested):,} prompts", round(len(tested) * mean))

    def _size(self, domain: DomainConfig) -> tuple[int, bool]:
        """Items of an arm, and whether that is known already."""
        build = self.config.build
        if build.released:
            found = imported_pools(self.units.imported(domain), build).largest(build.parsed)
            return min(found, build.cap or found), True
        before = [f"probe/{domain.name}", *([f"explanations/{domain.name}"] * base_explains(self.config.build))]
        if all(self.units.run.manifest(unit) for unit in before):
            unit = self.units.build_unit(domain, self.config.seeds[0])
            built = self.units.run.manifest(unit.name)
            if built and self.units.state(unit) == "done":
                return next(iter(built["arms"].values()))["items"], True
        pool = len(self._pool(domain))
        return min(pool, self.config.build.cap or pool), False

    def _pool(self, domain: DomainConfig) -> list[Question]:
        """The questions that arms are drawn from."""
        if not self.config.build.released:
            return self.units.questions(domain.name)["train"]
        rows = [row for members in self.units.imported(domain).values() for row in members]
        return [
            Question(row["id"], row["question"], tuple(row["options"]), row["gold"], explanation=row["explanation"])
            for row in rows
        ]

    def _mean(self, items: Sequence, text: Callable[..., str]) -> float:
        """Mean tokens of the items' texts, from a sample at even distances."""
        if not items:
            return 0.0
        sample = items[:: max(1, len(items) // SAMPLE)]
        return sum(len(self.tokenizer.encode(text(item))) for item in sample) / len(sample)
