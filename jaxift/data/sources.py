"""A study's questions: sources read, joined, shuffled and limited, and no set leaking into another."""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from etils import epath

from jaxift.config import SPLITS, TEST_SETS, DomainConfig
from jaxift.data import mmlu, xiezhi
from jaxift.data.fields import kept, question_of
from jaxift.data.questions import Question, fingerprint
from jaxift.data.tables import jsonl_rows, source_rows
from jaxift.errors import UserError
from jaxift.source_config import QuestionSource


@dataclasses.dataclass(frozen=True)
class DomainQuestions:
    """A domain's questions by split (dev, train, homo, id, ood); `dropped` counts those left out, by split and why."""

    splits: dict[str, list[Question]]
    dropped: dict[str, dict[str, int]]

    def __getitem__(self, split: str) -> list[Question]:
        """The questions of a split."""
        return self.splits[split]


def read_domain(domain: DomainConfig, data_dir: str) -> DomainQuestions:
    """Reads a domain's questions.

    Raises UserError where a set is empty or an id occurs twice, and, unless the domain says to drop them, where a
    question of dev or train is also tested on, one of train is shown in dev, or one stands twice in dev or train: by
    its id, or by its text and options whatever their case, spacing and punctuation.
    """
    splits = {split: read_sources(getattr(domain, split), data_dir) for split in ("dev", *SPLITS)}
    dropped: dict[str, dict[str, int]] = {}
    for split in ("dev", "train"):
        others = (*TEST_SETS, "dev") if split == "train" else TEST_SETS
        splits[split], found = _distinct(splits[split], {other: splits[other] for other in others})
        if found and domain.overlap == "refuse":
            raise UserError(
                f"domain {domain.name}: {split} has questions that {_told(found)}; remove them, or set the domain's "
                "overlap to drop"
            )
        if found:
            dropped[split] = dict(Counter(reason for _, reason in found))
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"domain {domain.name}: its {split} set is empty; check the files and limits of domains.{split}"
            )
    return DomainQuestions(splits, dropped)


def _distinct(
    questions: Iterable[Question], others: dict[str, list[Question]]
) -> tuple[list[Question], list[tuple[str, str]]]:
    """The questions that stand nowhere else and here for the first time; of the others, id and reason."""
    known = {
        key: f"are also in {name}" for name, members in others.items() for each in members
        for key in (each.id, fingerprint(each))
    }  # fmt: skip
    left, dropped = [], []
    for question in questions:
        reason = known.get(question.id) or known.get(fingerprint(question))
        if reason:
            dropped.append((question.id, reason))
        else:
            left.append(question)
            known[fingerprint(question)] = "stand there before"
    return left, dropped


def _told(dropped: Sequence[tuple[str, str]]) -> str:
    """How many there are for each reason, and an example."""
    first = {reason: id_ for id_, reason in reversed(dropped)}
    counts = Counter(reason for _, reason in dropped)
    return ", and ".join(f"{reason} ({count}, e.g. {first[reason]})" for reason, count in counts.items())


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
    if source.explanations:
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


def _explained(questions: Iterable[Question], path: epath.Path) -> list[Question]:
    """The questions with explanations from a file; those that it does not explain keep theirs."""
    found = {}
    for _, where, row in jsonl_rows(path):
        if "id" not in row or not isinstance(row.get("explanation"), str):
            raise UserError(f"{where}: fields 'id' and 'explanation' (a text) are needed in a file of explanations")
        if found.setdefault(str(row["id"]), row["explanation"].strip()) != row["explanation"].strip():
            raise UserError(f"{where}: id {row['id']} is explained twice; remove one")
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
