"""A row of named columns becomes a question, or is refused in one line that names row and field."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.data.questions import LETTERS, Question
from jaxift.errors import UserError
from jaxift.source_config import Fields, QuestionSource

ABSENT = object()


def question_of(row: Mapping[str, Any], where: str, default_id: str, source: QuestionSource) -> Question:
    """The question that a row holds; raises UserError that begins with `where`."""
    fields = source.fields
    text = _needed(row, fields.question, where)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: field {fields.question!r} must be a non-empty text")
    options = _options(row, fields, where)
    answer, at = _needed(row, fields.answer, where), f"{where}: field {fields.answer!r}"
    if fields.labels:
        index = _labelled(answer, _needed(row, fields.labels, where), options, at)
    else:
        index = answer_index(answer, options, at, source.answers)
    return checked(
        where,
        id=_identity(row, fields.id, default_id, where),
        question=text,
        options=tuple(options),
        answer=index,
        subject=_optional(row, fields.subject, where),
        explanation=_optional(row, fields.explanation, where),
        context=_optional(row, fields.context, where),
    )


def kept(row: Mapping[str, Any], where: str, source: QuestionSource) -> bool:
    """Whether a row has the values that its source asks for; raises UserError where a column is absent."""
    shown = str if source.kind == "csv" else lambda value: value  # a CSV file's values are all texts
    if any(_needed(row, name, where) != shown(value) for name, value in source.where.items()):
        return False
    texts = (_needed(row, name, where) for name in source.nonempty)
    return all(isinstance(text, str) and text.strip() for text in texts)


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, ABSENT where there is none; a dot goes into a nested one."""
    if name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    nested = row.get(outer) if dot else None
    return column(nested, inner) if isinstance(nested, Mapping) else ABSENT


def checked(where: str, **values: Any) -> Question:
    """A question of these values; raises UserError where they make none, or cannot be written."""
    writable(where, *(value for value in values.values() if isinstance(value, str)), *values["options"])
    try:
        return Question(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def writable(where: str, *texts: str) -> None:
    """Raises UserError where a text holds a lone surrogate, which no file can."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {error}") from None


def answer_index(answer: Any, options: Sequence[str], where: str, kind: str = "auto") -> int:
    """The index that an answer of a kind (see `QuestionSource.answers`) means; it may be out of range."""
    number = None
    if isinstance(answer, int) and not isinstance(answer, bool):
        number = answer
    elif isinstance(answer, str) and answer.strip().isdecimal() and kind != "text":
        number = int(answer)  # as in a CSV file, whose values are all texts
    if kind in ("index", "index_from_1") or not isinstance(answer, str):
        if number is not None and kind in ("auto", "index", "index_from_1"):
            return number - (kind == "index_from_1")
    else:
        means = {
            "text": list(options).index(answer) if answer in options else None,
            "letter": LETTERS.index(answer) if len(answer) == 1 and answer in LETTERS[: len(options)] else None,
            "index": number if number is not None and number < len(options) else None,
        }
        found = {means[each] for each in means if kind in ("auto", each) and means[each] is not None}
        if len(found) > 1:
            raise UserError(
                f"{where}: answer {answer!r} could be an option's text, its letter or its index; set the source's "
                "answers to text, letter or index"
            )
        if found and (index := found.pop()) is not None:
            return index
    raise UserError(f"{where}: answer {answer!r} is not among the options; give an index, a letter or an option's text")


def _labelled(answer: Any, labels: Any, options: Sequence[str], where: str) -> int:
    """The index of an answer that is one of the options' own names."""
    if not isinstance(labels, list) or len(labels) != len(options) or answer not in labels:
        raise UserError(f"{where}: answer {answer!r} is none of the labels {labels!r}; they must be a name an option")
    return labels.index(answer)


def _options(row: Mapping[str, Any], fields: Fields, where: str) -> list[str]:
    """The texts of a column that lists them, or of a column each, of which the last may be empty."""
    if isinstance(fields.options, str):
        options, name = _needed(row, fields.options, where), fields.options
    else:
        options, name = [_needed(row, each, where) for each in fields.options], ", ".join(fields.options)
        while options and (options[-1] is None or str(options[-1]).strip() == ""):
            options.pop()
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise UserError(f"{where}: field {name!r} must be a list of non-empty texts")
    return options


def _needed(row: Mapping[str, Any], name: str, where: str) -> Any:
    value = column(row, name)
    if value is ABSENT:
        raise UserError(f"{where}: field {name!r} is missing; set the source's `fields` to the file's column names")
    return value


def _optional(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text that may be absent or null."""
    value = column(row, name)
    if value is ABSENT or value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} must be a text, or null")
    return value.strip()


def _identity(row: Mapping[str, Any], name: str, default: str, where: str) -> str:
    value = column(row, name)
    if value is ABSENT or value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: field {name!r} must be a text or a whole number")
    return str(value)
