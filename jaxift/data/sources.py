"""Reads questions from files and refuses what does not make sense, naming file, row and field."""

import csv
import io
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxift.config import SPLITS, DomainConfig, Fields, QuestionSource
from jaxift.data.questions import LETTERS, Question
from jaxift.errors import UserError


def read_domain(domain: DomainConfig, data_dir: str) -> dict[str, list[Question]]:
    """Reads a domain's questions: split name (`dev`, `train`, `homo`, `id`, `ood`) -> questions.

    Raises UserError where a set is empty, an id occurs twice, or a training question is also tested on.
    """
    splits = {split: read_sources(getattr(domain, split), data_dir) for split in ("dev", *SPLITS)}
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"domain {domain.name}: its {split} set is empty; check the files and limits of domains.{split}"
            )
    trained = {question.id for question in splits["train"]}
    for split in SPLITS[1:]:
        shared = [question.id for question in splits[split] if question.id in trained]
        if shared:
            raise UserError(
                f"domain {domain.name}: {split} holds {len(shared)} training questions, e.g. {shared[0]}; "
                "make the sets disjoint"
            )
    return splits


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
    """Reads one file, then shuffles and limits as the source says."""
    path = epath.Path(data_dir) / source.path
    text = _read_text(path)
    rows = _mmlu_rows(text, path) if source.format == "mmlu_csv" else _jsonl_rows(text, path, source.fields)
    questions = list(rows)
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(questions)
    return questions[: source.limit]


def _read_text(path: epath.Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such question file; check the source's path and --data-dir") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _jsonl_rows(text: str, path: epath.Path, fields: Fields) -> Iterator[Question]:
    # not splitlines(): a JSON string may hold U+2028 and the like, which are no line ends of JSONL
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: holds {type(row).__name__}, not an object; write one object a line")
        yield _question(row, where, f"{path.stem}-{number}", fields)


def _question(row: dict[str, Any], where: str, default_id: str, fields: Fields) -> Question:
    for name in (fields.question, fields.options, fields.answer):
        if name not in row:
            raise UserError(f"{where}: field {name!r} is missing; set the source's `fields` to the file's column names")
    text, options = row[fields.question], row[fields.options]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: field {fields.question!r} must be a non-empty text")
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise UserError(f"{where}: field {fields.options!r} must be a list of non-empty texts")
    return _checked(
        where,
        id=str(row.get(fields.id, default_id)),
        question=text,
        options=tuple(options),
        answer=_answer_index(row[fields.answer], options, f"{where}: field {fields.answer!r}"),
        subject=str(row.get(fields.subject, "")),
    )


def _checked(where: str, **values: Any) -> Question:
    try:
        return Question(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _answer_index(answer: Any, options: Sequence[str], where: str) -> int:
    """The index that an answer means: an index, an option's text, or a letter (a text is looked for first)."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, str):
        if answer in options:
            return list(options).index(answer)
        if len(answer) == 1 and answer in LETTERS:
            return LETTERS.index(answer)
    raise UserError(f"{where}: answer {answer!r} is not among the options; give an index, a letter or an option's text")


def _mmlu_rows(text: str, path: epath.Path) -> Iterator[Question]:
    subject = path.stem.rsplit("_", 1)[0]
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        where = f"{path}: row {number}"
        if len(row) < 4:
            raise UserError(f"{where}: has {len(row)} columns; expected question, options, letter")
        question, *options, letter = row
        if len(letter) != 1 or letter not in LETTERS[: len(options)]:
            raise UserError(
                f"{where}: answer {letter!r} is not among the options; give a letter A to {LETTERS[len(options) - 1]}"
            )
        answer = LETTERS.index(letter)
        yield _checked(
            where, id=f"{path.stem}-{number}", question=question, options=tuple(options), answer=answer, subject=subject
        )
