"""Multiple-choice questions: the type that every stage shares."""

import dataclasses
import random
import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
Fingerprint = tuple[str, frozenset[str]]


@dataclasses.dataclass(frozen=True)
class Question:
    """One multiple-choice question with 2 to 26 options; `answer` is the index of the true one.

    `header` is what a prompt's header says it is about (empty: its domain's words), `explanation` why the answer is
    true, `context` the knowledge that it needs.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""
    header: str = ""
    explanation: str = ""
    context: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError where the options or the answer's index are out of range."""
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"{len(self.options)} options; give 2 to {len(LETTERS)}")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer {self.answer} is not among the {len(self.options)} options")


def reorder(question: Question, order: Sequence[int]) -> Question:
    """The same question with its options moved: place i gets the option that was at `order[i]`."""
    options = tuple(question.options[place] for place in order)
    return dataclasses.replace(question, options=options, answer=list(order).index(question.answer))


def rotate(question: Question, shift: int) -> Question:
    """The same question with its options turned: option i moves to place (i + shift) mod k."""
    k = len(question.options)
    return reorder(question, [(place - shift) % k for place in range(k)])


def demonstrations(dev: Sequence[Question], shots: int, seed: int) -> tuple[Question, ...]:
    """The first `shots` dev questions after one shuffle by Python's `random.seed(seed)`, as the study's authors did."""
    order = list(dev)
    random.Random(seed).shuffle(order)
    return tuple(order[:shots])


def fingerprint(question: Question) -> Fingerprint:
    """What is equal for two spellings of one question: its text and options without case, spacing and punctuation."""
    return _plain(question.question), frozenset(map(_plain, question.options))


def _plain(text: str) -> str:
    """Letters and digits alone; a text without any is itself."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text
