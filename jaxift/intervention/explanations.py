"""What the base model is asked to explain, in which words, and what counts as an explanation.

The form is that of Ren et al. 2024 (a few-shot prompt in an assistant's style, the text between code fences); the words
and the shown questions are our own.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxift.config import BuildConfig
from jaxift.data.questions import LETTERS, Question
from jaxift.intervention.pools import Row, answers, author, qualifying

FENCE = "```"
Status = Literal["ok", "empty", "over_long", "no_room"]

_INTRODUCTION = (
    "Below, a user gives multiple choice questions with their answers, and a helpful assistant explains each answer. "
    "The assistant states the reasons plainly and writes every explanation between two lines of three backticks.\n\n"
)
_TURN = (
    "USER: Here is a multiple choice question about {words}.\n\n{question}\n{options}\n"
    "The answer is {letter}. {answer}\nPlease explain why.\nASSISTANT: Here is an explanation.\n" + FENCE + "\n"
)
_SHOWN = (
    (
        "everyday life",
        Question("", "Why does wet washing dry faster on a windy day?", (
            "Wind cools the water until it freezes", "Moving air carries moist air away from the cloth",
            "Wind presses the water through the cloth", "Wind makes the sun shine more brightly",
        ), 1),
        "Water leaves the cloth as vapour, and the air next to the cloth soon holds nearly as much vapour as it can. "
        "Wind replaces that moist air by drier air, so that water goes on evaporating quickly.",
    ),
    (
        "geography",
        Question("", "Which of these cities lies furthest north?", ("Nairobi", "Lima", "Singapore", "Oslo"), 3),
        "Oslo lies at about 60 degrees north. Nairobi and Singapore lie near the equator, Lima south of it.",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An answer (an option's index) of an item that the base model is to explain."""

    row: Row
    answer: int

    @property
    def seed(self) -> int:
        """A number of 32 bits that belongs to the item and the answer alone."""
        return int.from_bytes(hashlib.sha256(f"{self.answer} {self.row['id']}".encode()).digest()[:4], "big")


def wanted(rows: Sequence[Row], threshold: float, build: BuildConfig) -> list[Wanted]:
    """What arms may need the base model to explain, each once, in the probe's order."""
    found: dict[tuple[str, int], Wanted] = {}
    for pool, members in qualifying(rows, threshold).items():
        arms = [arm for arm in build.parsed if arm.pool == pool]
        for row in members if arms else ():
            for arm in arms:
                for answer in answers(arm, row):
                    if author(arm, build, answer == row["gold"]) == "base":
                        found.setdefault((row["id"], answer), Wanted(row, answer))
    places = {row["id"]: place for place, row in enumerate(rows)}
    return sorted(found.values(), key=lambda each: (places[each.row["id"]], each.answer))


def explanation_prompt(words: str, row: Row, answer: int) -> str:
    """The prompt after which the base model writes an explanation and closes it with a fence."""
    shown = "".join(
        _turn(about, question.question, question.options, question.answer) + f"{text}\n{FENCE}\n\n"
        for about, question, text in _SHOWN
    )
    return _INTRODUCTION + shown + _turn(row["header"].strip() or words, row["question"], row["options"], answer)


def _turn(words: str, question: str, options: Sequence[str], answer: int) -> str:
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return _TURN.format(words=words, question=question, options=listed, letter=LETTERS[answer], answer=options[answer])


def status(text: str, stopped: bool) -> Status:
    """What a written text is worth: it must come to its end, and say something."""
    if not stopped:
        return "over_long"
    return "ok" if text.strip() else "empty"


def texts(rows: Sequence[Mapping[str, object]]) -> dict[tuple[str, int], str | None]:
    """What the base model wrote, from rows of id, answer, status, text: by item and answer, None where it failed."""
    return {
        (str(row["id"]), int(str(row["answer"]))): str(row["text"]) if row["status"] == "ok" else None for row in rows
    }
