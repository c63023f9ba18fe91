"""Reads questions from files and refuses what does not make sense, naming file, row and field."""

import csv
import io
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxift.config import SPLITS, DomainConfig, Fields, QuestionSource
from jaxift.data import mmlu, xiezhi
from jaxift.data.questions import LETTERS, Question
from jaxift.errors import UserError

XIEZHI_OPTIONS = 4  # items with another number of options are left out


def read_domain(domain: DomainConfig, data_dir: str) -> dict[str, list[Question]]:
    """Reads a domain's questions: split name (`dev`, `train`, `homo`, `id`, `ood`) -> questions.

    Raises UserError where a set is empty, an id occurs twice, or a question of `dev` or `train` is also tested on, by
    its id or by its text and options; `dev` and `train` must be disjoint as well.
    """
    splits = {split: read_sources(getattr(domain, split), data_dir) for split in ("dev", *SPLITS)}
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"domain {domain.name}: its {split} set is empty; check the files and limits of domains.{split}"
            )
    for first, second in (("dev", "train"), *((known, test) for test in SPLITS[1:] for known in ("train", "dev"))):
        _check_disjoint(domain.name, first, splits[first], second, splits[second])
    return splits


def _check_disjoint(
    domain: str, first: str, known: Sequence[Question], second: str, questions: Sequence[Question]
) -> None:
    ids = {question.id for question in known}
    texts = {(question.question, frozenset(question.options)) for question in known}
    shared = [q.id for q in questions if q.id in ids or (q.question, frozenset(q.options)) in texts]
    if shared:
        raise UserError(
            f"domain {domain}: {second} shares {len(shared)} questions with {first}, e.g. {shared[0]}; "
            "make the sets disjoint"
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
    """Reads one file or folder, then shuffles and limits as the source says."""
    path = epath.Path(data_dir) / source.path
    match source.format:
        case "mmlu_csv":
            questions = [question for file in _mmlu_files(path, source) for question in _mmlu_rows(file)]
        case "xiezhi":
            questions = _xiezhi_part(path, source)
        case _:
            questions = list(_jsonl_rows(path, source))
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


def _jsonl_rows(path: epath.Path, source: QuestionSource) -> Iterator[Question]:
    for number, where, row in _objects(path):
        yield _question(row, where, f"{source.path.removesuffix(path.suffix)}-{number}", source.fields)


def _objects(path: epath.Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of a JSONL file, each with the number of its line, and how a message names it."""
    # not splitlines(): a JSON string may hold U+2028 and the like, which are no line ends of JSONL
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: holds {type(row).__name__}, not an object; write one object a line")
        yield number, where, row


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
        "".join((values["id"], values["question"], *values["options"])).encode()  # a lone surrogate cannot be written
        return Question(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _answer_index(answer: Any, options: Sequence[str], where: str) -> int:
    """The index that an answer means: an index, an option's text, or a letter."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, str):
        found = {list(options).index(answer)} if answer in options else set()
        if len(answer) == 1 and answer in LETTERS[: len(options)]:
            found.add(LETTERS.index(answer))
        if len(found) > 1:
            raise UserError(f"{where}: answer {answer!r} is a letter and also another option's text; give its index")
        if found:
            return found.pop()
    raise UserError(f"{where}: answer {answer!r} is not among the options; give an index, a letter or an option's text")


def _xiezhi_part(path: epath.Path, source: QuestionSource) -> list[Question]:
    """The items of a raw source that belong to a part of the study's split, with their places in the source as ids."""
    assert source.xiezhi is not None
    domain, fields = source.xiezhi.domain, Fields()
    usable = []
    for _, where, row in _objects(path):
        options, labels = row.get("options"), row.get("labels")
        if not isinstance(options, str) or not isinstance(labels, list):
            raise UserError(f"{where}: fields 'options' (a text) and 'labels' (a list) are needed in a Xiezhi source")
        if domain in labels and len(options.split("\n")) == XIEZHI_OPTIONS:
            options = options.split("\n")
            if row.get("answer") not in options:
                raise UserError(
                    f"{where}: answer {row.get('answer')!r} is not among the options; give an option's text"
                )
            # the first of equal options counts, as in the study's own split
            given = {**row, "options": options, "answer": options.index(row["answer"])}
            given["id"] = f"xiezhi-{domain.lower()}-{len(usable)}"
            usable.append(_question(given, where, "", fields))
    return [usable[place] for place in xiezhi.split(domain, len(usable))[source.xiezhi.part]]


def _mmlu_files(path: epath.Path, source: QuestionSource) -> list[epath.Path]:
    """The file itself, or the files of a folder that hold the chosen subjects."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.csv"))
    files = {_mmlu_subject(file): file for file in found}
    if twice := [file for file in found if file != files[_mmlu_subject(file)]]:
        raise UserError(
            f"{path}: holds more than one file of a subject, e.g. {twice[0].name}; give a folder of one split"
        )
    if unknown := sorted(files.keys() - mmlu.SUBCATEGORY.keys()):
        raise UserError(f"{files[unknown[0]]}: {unknown[0]!r} is no subject of MMLU; name files SUBJECT_SPLIT.csv")
    wanted = mmlu.chosen_subjects(source.subjects)
    if absent := [subject for subject in wanted if subject not in files]:
        raise UserError(
            f"{path}: holds no file of {', '.join(absent[:3])} ({len(absent)} subjects are missing); add them"
        )
    return [files[subject] for subject in wanted]


def _mmlu_subject(path: epath.Path) -> str:
    return path.stem.rsplit("_", 1)[0]


def _mmlu_rows(path: epath.Path) -> Iterator[Question]:
    subject = _mmlu_subject(path)
    for number, row in enumerate(csv.reader(io.StringIO(_read_text(path), newline="")), 1):
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
