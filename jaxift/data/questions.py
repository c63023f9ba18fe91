"""Multiple-choice questions: the type that every stage shares."""

import dataclasses
import random
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Question:
    """One multiple-choice question with 2 to 26 options; `answer` is the index of the true one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError where the options or the answer's index are out of range."""
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"{len(self.options)} options; give 2 to {len(LETTERS)}")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer {self.answer} is not among the {len(self.options)} options")


def rotate(question: Question, shift: int) -> Question:
    """The same question with its options turned: option i moves to place (i + shift) mod k."""
    k = len(question.options)
    options = tuple(question.options[(place - shift) % k] for place in range(k))
    return dataclasses.replace(question, options=options, answer=(question.answer + shift) % k)


def demonstrations(dev: Sequence[Question], shots: int, seed: int) -> tuple[Question, ...]:
    """The first `shots` dev questions after one shuffle by Python's `random.seed(seed)`, as the study's authors did."""
    order = list(dev)
    random.Random(seed).shuffle(order)
    return tuple(order[:shots])
