"""A study's questions: sources read, joined, shuffled and limited, and no set leaking into another."""

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from etils import epath

from jaxift.config import SPLITS, TEST_SETS, DomainConfig
from jaxift.data import mmlu, xiezhi
from jaxift.data.fields import kept, question_of, writable
from jaxift.data.questions import Fingerprint, Question, demonstrations, fingerprint
from jaxift.data.tables import jsonl_rows, source_rows
from jaxift.errors import UserError
from jaxift.source_config import QuestionSource


@dataclasses.dataclass(frozen=True)
class DomainQuestions:
    """A domain's questions by split (dev, train, homo, id, ood); `overlap` counts those of
    train that were left out and those of dev that are tested on, by why."""

    splits: dict[str, list[Question]]
    overlap: dict[str, dict[str, int]]

    @property
    def tested(self) -> list[Question]:
        """The questions of all test sets, one set after another."""
        return [question for test_set in TEST_SETS for question in self.splits[test_set]]

    def shown(self, shots: int, seed: int) -> dict[str, tuple[Question, ...]]:
        """The demonstrations of a seed by header: a question is shown those that have its own."""
        headers = dict.fromkeys(question.header for question in self.splits["dev"])
        own = {header: [each for each in self.splits["dev"] if each.header == header] for header in headers}
        return {header: demonstrations(members, shots, seed) for header, members in own.items()}

    def __getitem__(self, split: str) -> list[Question]:
        """The questions of a split."""
        return self.splits[split]


def read_domain(domain: DomainConfig, data_dir: str, pool: bool = True) -> DomainQuestions:
    """Reads a domain's questions; without `pool` its training questions are left alone.

    Raises UserError where a set is empty or an id occurs twice in it, and, unless the domain says to drop them, where a
    question of train is also tested on or shown, or one of dev tested on. Questions are compared by text and options,
    whatever their case, spacing and punctuation. Dev questions are never dropped, only counted: which of them are shown
    is part of the protocol, and MMLU itself tests on some of its dev questions.
    """
    splits = {split: read_sources(getattr(domain, split), data_dir) for split in ("dev", *TEST_SETS)}
    splits["train"] = read_sources(domain.train, data_dir) if pool else []
    for split in SPLITS if pool else TEST_SETS:
        if not splits[split]:
            raise UserError(
                f"domain {domain.name}: its {split} set is empty; check the files, limits and filters (where, "
                f"nonempty) of domains.{split}"
            )
    told = {
        "dev": _overlap(splits["dev"], {other: splits[other] for other in TEST_SETS}),
        "train": _overlap(splits["train"], {other: splits[other] for other in (*TEST_SETS, "dev")}),
    }
    for split, reasons in told.items():
        if reasons and domain.overlap == "refuse":
            raise UserError(
                f"domain {domain.name}: {split} has questions that {_listed(reasons)}; remove them, or set "
                "the domain's overlap to drop"
            )
    splits["train"] = [question for question in splits["train"] if question.id not in told["train"]]
    if domain.repeats == "drop":
        again = _repeated(splits["train"])
        told["train"] |= dict.fromkeys(again, "stand there before")
        splits["train"] = [question for question in splits["train"] if question.id not in again]
    counts = {split: dict(Counter(reasons.values())) for split, reasons in told.items() if reasons}
    if pool and not splits["train"]:
        raise UserError(f"domain {domain.name}: no training question is left; all {_listed(told['train'])}")
    return DomainQuestions(splits, counts)


def _overlap(questions: Sequence[Question], others: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    """Ids of the questions that stand in another set too, and in which."""
    known = {fingerprint(each): f"are also in {name}" for name, members in others.items() for each in members}
    return {each.id: known[fingerprint(each)] for each in questions if fingerprint(each) in known}


def _repeated(questions: Sequence[Question]) -> set[str]:
    """Ids of the questions that stood there before under another id."""
    first: dict[Fingerprint, str] = {}
    return {each.id for each in questions if first.setdefault(fingerprint(each), each.id) != each.id}


def _listed(reasons: Mapping[str, str]) -> str:
    """How many there are for each reason, and an example."""
    examples = {reason: id_ for id_, reason in reversed(list(reasons.items()))}
    counts = Counter(reasons.values())
    return ", and ".join(f"{reason} ({count}, e.g. {examples[reason]})" for reason, count in counts.items())


def check_demonstrations(domain: str, questions: DomainQuestions, shots: int) -> None:
    """Raises UserError where questions have fewer dev questions of their header than `shots`."""
    asked = [question for split, members in questions.splits.items() if split != "dev" for question in members]
    shown = Counter(question.header for question in questions["dev"])
    for header in dict.fromkeys(question.header for question in asked):
        if shown[header] < shots:
            about = f" with the header {header.strip()!r}" if header else ""
            raise UserError(
                f"domain {domain}: {shown[header]} dev questions{about} for probe.shots {shots}; lower it, add some, "
                "or set the same header for test and dev sources"
            )


def read_sources(sources: Sequence[QuestionSource], data_dir: str) -> list[Question]:
    """Reads and joins several sources; raises UserError where an id occurs twice."""
    questions = [question for source in sources for question in read_source(source, data_dir)]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UserError(
                f"{', '.join(source.path for source in sources)}: id {question.id} occurs twice; make ids unique"
            )
        seen.add(question.id)
    return questions


def read_source(source: QuestionSource, data_dir: str) -> list[Question]:
    """Reads one source, joins what belongs to it, then shuffles and limits as it says."""
    path = epath.Path(data_dir) / source.path
    match source.kind:
        case "mmlu_csv":
            questions = list(mmlu.questions(path, source.subjects))
        case "xiezhi":
            assert source.xiezhi is not None
            questions = xiezhi.questions(path, source.xiezhi)
        case _:
            questions = _table_questions(source, data_dir)
    if source.explanations and questions:
        questions = _explained(questions, epath.Path(data_dir) / source.explanations)
    if source.header != "domain":
        questions = [dataclasses.replace(question, header=_header(question, source)) for question in questions]
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(questions)
    return questions[: source.limit]


def _table_questions(source: QuestionSource, data_dir: str) -> list[Question]:
    stem = source.path.rsplit(".", 1)[0] if source.kind in ("jsonl", "csv", "parquet") else source.path
    return [
        question_of(row, where, f"{stem}-{number}", source)
        for number, where, row in source_rows(source, data_dir)
        if kept(row, where, source)
    ]


def _explained(questions: Sequence[Question], path: epath.Path) -> list[Question]:
    """The questions with explanations from a file; those that it does not explain keep theirs."""
    found = {}
    for _, where, row in jsonl_rows(path):
        if not isinstance(row.get("id"), str | int) or not isinstance(row.get("explanation"), str):
            raise UserError(f"{where}: fields 'id' and 'explanation' (a text) are needed in a file of explanations")
        writable(where, row["explanation"])
        if found.setdefault(str(row["id"]), row["explanation"].strip()) != row["explanation"].strip():
            raise UserError(f"{where}: id {row['id']} is explained twice; remove one")
    if not any(question.id in found for question in questions):
        raise UserError(f"{path}: explains none of the questions, whose ids are as {questions[0].id!r}; give their ids")
    return [
        dataclasses.replace(question, explanation=found.get(question.id, question.explanation))
        for question in questions
    ]


def _header(question: Question, source: QuestionSource) -> str:
    if not question.subject:
        raise UserError(
            f"{source.path}: question {question.id} has no subject to stand in the header; set header to domain"
        )
    return " " * (source.header == "subject_after_space") + question.subject.replace("_", " ")
