"""What a study has to score and to tune, before anything of it is known: its texts, and stand-ins for its arms."""

import dataclasses
from collections.abc import Sequence

from jaxift.config import BASE, DomainConfig, StudyConfig
from jaxift.data.prompts import STYLES, instruction_prompt, response
from jaxift.data.questions import Question
from jaxift.scoring.belief import asked
from jaxift.scoring.requests import Request
from jaxift.stages.probe import in_rotations, prompts_of
from jaxift.units import Units, cells


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Requests that are scored together with one model, or with each of `models` tuned ones."""

    name: str
    requests: Sequence[Request]
    models: int = 1

    @property
    def amount(self) -> int:
        """How much there is to do: the requests of all models."""
        return len(self.requests) * self.models


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Examples on which each of `cells` models of a domain is tuned, at most: the probe says how many qualify."""

    name: str
    pairs: Sequence[tuple[str, str]]
    cells: int

    @property
    def amount(self) -> int:
        """How much there is to do: the examples of all models."""
        return len(self.pairs) * self.cells


def probes(units: Units) -> list[Scoring]:
    """What the probe asks the base model, by domain."""
    found = []
    for domain in units.config.domains:
        questions, settings = units.questions(domain.name), units.config.probe
        prompts, template = prompts_of(settings, domain.called, questions), STYLES[settings.prompt].probe
        pool = questions["train"]
        requests = asked(pool, prompts, template, settings, in_rotations(settings, pool)) if pool else []
        requests += asked(questions.tested, prompts[0], template, settings)
        found.append(Scoring(f"probe {domain.name}", requests))
    return found


def evaluations(units: Units) -> list[Scoring]:
    """What the tuned models of each domain are asked."""
    found = []
    for domain in units.config.domains:
        settings, wrapper = units.config.probe, units.wrapper
        template = STYLES[settings.prompt].instruction

        def prompt(question: Question, domain: DomainConfig = domain, wrapper: str = wrapper) -> str:
            return instruction_prompt(units.config.probe.prompt, domain.called, question, wrapper=wrapper)

        questions = [*units.questions(domain.name).tested, *_pool(units, domain)]
        requests = asked(questions, prompt, template, settings)
        found.append(Scoring(f"evaluate {domain.name}", requests, _tuned(units.config, domain)))
    return found


def tunings(units: Units) -> list[Tuning]:
    """What the cells of each domain are tuned on."""
    build, style, wrapper = units.config.build, units.config.probe.prompt, units.wrapper
    found = []
    for domain in units.config.domains:
        pairs = [
            (
                instruction_prompt(style, domain.called, question, wrapper=wrapper),
                response(
                    style, question, question.answer, build.response_format,
                    question.explanation if build.explanations else "",
                ),
            )
            for question in _pool(units, domain)
        ]  # fmt: skip
        found.append(Tuning(f"tune {domain.name}", pairs, _tuned(units.config, domain)))
    return found


def _pool(units: Units, domain: DomainConfig) -> list[Question]:
    """As many training questions as an arm can have."""
    pool = units.questions(domain.name)["train"]
    return pool[: units.config.build.cap or len(pool)]


def _tuned(config: StudyConfig, domain: DomainConfig) -> int:
    return sum(cell.domain == domain.name and cell.arm != BASE for cell in cells(config))
