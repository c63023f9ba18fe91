"""MMLU's 57 subjects, and which of them belong to a domain of the study.

A subject's subcategory is that of the benchmark's authors (Hendrycks et al. 2021); the domains' subcategories are those
of Ren et al. 2024.
"""

import csv
import io
from collections.abc import Iterator

from etils import epath

from jaxift.data.fields import checked
from jaxift.data.questions import LETTERS, Question
from jaxift.data.tables import read_text
from jaxift.errors import UserError
from jaxift.source_config import MmluSubjects

_SUBJECTS = {
    "biology": ("college_biology", "high_school_biology"),
    "business": ("business_ethics", "management", "marketing"),
    "chemistry": ("college_chemistry", "high_school_chemistry"),
    "computer science": (
        "college_computer_science", "computer_security", "high_school_computer_science", "machine_learning",
    ),
    "culture": ("human_sexuality", "sociology"),
    "economics": ("econometrics", "high_school_macroeconomics", "high_school_microeconomics"),
    "engineering": ("electrical_engineering",),
    "geography": ("high_school_geography",),
    "health": (
        "anatomy", "clinical_knowledge", "college_medicine", "human_aging", "medical_genetics", "nutrition",
        "professional_medicine", "virology",
    ),
    "history": (
        "high_school_european_history", "high_school_us_history", "high_school_world_history", "prehistory",
    ),
    "law": ("international_law", "jurisprudence", "professional_law"),
    "math": (
        "abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics",
        "high_school_statistics",
    ),
    "other": ("global_facts", "miscellaneous", "professional_accounting"),
    "philosophy": (
        "formal_logic", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy", "world_religions",
    ),
    "physics": ("astronomy", "college_physics", "conceptual_physics", "high_school_physics"),
    "politics": (
        "high_school_government_and_politics", "public_relations", "security_studies", "us_foreign_policy",
    ),
    "psychology": ("high_school_psychology", "professional_psychology"),
}  # fmt: skip
SUBCATEGORY = {subject: name for name, subjects in _SUBJECTS.items() for subject in subjects}
"""Subject -> its subcategory."""

_DOMAINS = {
    "medicine": {"health"},
    "history": {"history"},
    "engineering": {"engineering"},
    "jurisprudence": {"law", "politics", "culture", "economics", "geography", "psychology"},
    "law": {"law"},
}


def chosen_subjects(which: MmluSubjects) -> list[str]:
    """The subjects of a domain, or with `not` before it all others, sorted."""
    domain = which.removeprefix("not ")
    return sorted(
        subject
        for subject, name in SUBCATEGORY.items()
        if which == "all" or (name in _DOMAINS[domain]) == (which == domain)
    )


def questions(path: epath.Path, which: MmluSubjects) -> Iterator[Question]:
    """The questions of a file SUBJECT_SPLIT.csv, or of a folder of them those of the chosen subjects.

    Raises UserError naming file, row and what is wrong with it.
    """
    return (question for file in _files(path, which) for question in _rows(file))


def _files(path: epath.Path, which: MmluSubjects) -> list[epath.Path]:
    """The file itself, or the files of a folder that hold the chosen subjects."""
    if not path.is_dir():
        if which != "all" and _subject(path) not in chosen_subjects(which):
            raise UserError(f"{path}: is not of the subjects {which}; give a folder of MMLU, or set subjects to all")
        return [path]
    found = sorted(path.glob("*.csv"))
    files = {_subject(file): file for file in found}
    if twice := [file for file in found if file != files[_subject(file)]]:
        raise UserError(
            f"{path}: holds more than one file of a subject, e.g. {twice[0].name}; give a folder of one split"
        )
    if unknown := sorted(files.keys() - SUBCATEGORY.keys()):
        raise UserError(f"{files[unknown[0]]}: {unknown[0]!r} is no subject of MMLU; name files SUBJECT_SPLIT.csv")
    wanted = chosen_subjects(which)
    if absent := [subject for subject in wanted if subject not in files]:
        raise UserError(
            f"{path}: holds no file of {', '.join(absent[:3])} ({len(absent)} subjects are missing); add them"
        )
    return [files[subject] for subject in wanted]


def _subject(path: epath.Path) -> str:
    return path.stem.rsplit("_", 1)[0]


def _rows(path: epath.Path) -> Iterator[Question]:
    subject = _subject(path)
    for number, row in enumerate(_csv_rows(path), 1):
        where = f"{path}: row {number}"
        if len(row) < 4:
            raise UserError(f"{where}: has {len(row)} columns; expected question, options, letter")
        question, *options, letter = row
        if not question.strip() or not all(option.strip() for option in options):
            raise UserError(f"{where}: the question and its options must be non-empty texts")
        if len(letter) != 1 or letter not in LETTERS[: len(options)]:
            raise UserError(
                f"{where}: answer {letter!r} is not among the options; give a letter A to {LETTERS[len(options) - 1]}"
            )
        answer = LETTERS.index(letter)
        yield checked(
            where, id=f"{path.stem}-{number}", question=question, options=tuple(options), answer=answer, subject=subject
        )


def _csv_rows(path: epath.Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(read_text(path), newline=""))
    except csv.Error as error:
        raise UserError(f"{path}: not valid CSV ({error})") from None
