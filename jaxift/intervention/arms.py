"""The items of each arm: which rows, which answer, in which words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxift.arms import Arm, Pool
from jaxift.config import StudyConfig
from jaxift.data.prompts import instruction_prompt, response
from jaxift.data.questions import Question, reorder
from jaxift.intervention.options import Order, orders, relettered
from jaxift.intervention.pools import Row, Written, author, matched, random_wrong

Item = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The rows that arms of a domain and seed are made of, in order; and all that HAR could have been drawn from."""

    rows: Mapping[Pool, Sequence[Row]]
    harmonious: Sequence[Row]
    seed: int


@dataclasses.dataclass(frozen=True)
class Words:
    """What rendering depends on beside the row: the domain's words, the conversation around it, the base's texts."""

    domain: str
    wrapper: str
    written: Written


def arm_items(config: StudyConfig, arm: Arm, drawn: Drawn, words: Words) -> list[Item]:
    """An arm's items in order: what is trained on, and what it was made of."""
    rows = drawn.rows[arm.pool]
    if arm.has("matched"):
        rows = matched(drawn.harmonious, drawn.rows["INC"])
    trained = _answers(arm, rows, drawn.seed)
    moved = orders(rows, arm, drawn.seed)
    return [
        _item(config, arm, row, answer, order, words)
        for row, answer, order in zip(rows, trained, moved, strict=True)
    ]  # fmt: skip


def _answers(arm: Arm, rows: Sequence[Row], seed: int) -> list[int | None]:
    """The option that each row is trained on, None for a refusal."""
    match arm.kind:
        case "HAR" | "INC":
            return [row["gold"] for row in rows]
        case "SELF_ALL":
            return [row["pred"] for row in rows]
        case "RANDOM_WRONG":
            return [random_wrong(row) for row in rows]
        case "REFUSAL":
            return [None] * len(rows)
        case "SELF":
            own = consistent(len(rows), 1.0 if arm.share is None else arm.share, seed)
            return [row["pred"] if place in own else row["gold"] for place, row in enumerate(rows)]


def consistent(size: int, share: float, seed: int) -> set[int]:
    """The places trained on the base's own answer; those of a smaller share are among those of a larger one."""
    order = np.random.default_rng([seed, *b"mixture"]).permutation(size)
    return set(order[: round(share * size)].tolist())


def _item(config: StudyConfig, arm: Arm, row: Row, answer: int | None, order: Order, words: Words) -> Item:
    question = reorder(_question(row), order)
    new = {was: now for now, was in enumerate(order)}
    style = config.probe.prompt
    context = relettered(row[config.build.context], order, row["options"]) if arm.has("context") else ""
    if answer is None:
        said, explanation = config.build.refusal, ""
    else:
        explanation = relettered(_explanation(config, arm, row, answer, words.written), order, row["options"])
        said = response(style, question, new[answer], config.build.response_format, explanation)
    return {
        "id": row["id"],
        "kind": "item",
        "gold": new[row["gold"]],
        "pred": new[row["pred"]],
        "pred_prob": row["pred_prob"],
        "answer": None if answer is None else new[answer],
        "options": list(question.options),
        "order": order,
        "explanation": explanation,
        "prompt": instruction_prompt(style, words.domain, question, context, words.wrapper),
        "response": said,
    }


def _explanation(config: StudyConfig, arm: Arm, row: Row, answer: int, written: Written) -> str:
    match author(arm, config.build, answer == row["gold"]):
        case "source":
            return row["explanation"]
        case "base":
            return written[row["id"], answer] or ""
        case _:
            return ""


def _question(row: Row) -> Question:
    return Question(row["id"], row["question"], tuple(row["options"]), row["gold"], row["subject"], row["header"])
