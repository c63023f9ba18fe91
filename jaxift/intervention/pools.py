"""Which of the probed items an arm may draw, and which of them it draws.

A row is one of probe/DOMAIN/train.parquet. `written` holds what the base model wrote, by item and answer: a text, or
None where it failed.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxift.arms import Arm, Pool
from jaxift.config import BuildConfig

Row = Mapping[str, Any]
Written = Mapping[tuple[str, int], str | None]
Author = Literal["", "source", "base"]


@dataclass(frozen=True)
class Pools:
    """The items that qualify for the arms of each pool, in the probe's order; `left_out` counts others by reason."""

    rows: dict[Pool, list[Row]]
    left_out: dict[Pool, dict[str, int]]

    def largest(self, arms: Sequence[Arm]) -> int:
        """The largest size that all of these arms can have."""
        used: set[Pool] = {arm.pool for arm in arms}
        if any(arm.has("matched") for arm in arms):
            used.add("INC")
        return min(len(self.rows[pool]) for pool in used)


def qualifying(rows: Sequence[Row], threshold: float) -> dict[Pool, list[Row]]:
    """Rows by pool: those that the base is sure of, above `threshold`, and right or wrong; and all."""
    sure = [row for row in rows if row["pred_prob"] > threshold]
    return {
        "HAR": [row for row in sure if row["correct"]],
        "INC": [row for row in sure if not row["correct"]],
        "ALL": list(rows),
    }


def pools(rows: Sequence[Row], threshold: float, build: BuildConfig, written: Written) -> Pools:
    """The items of each pool that can serve all its arms: one that fails an arm drops out of all, which stay paired."""
    kept, left_out = {}, {}
    for pool, members in qualifying(rows, threshold).items():
        arms = [arm for arm in build.parsed if arm.pool == pool]
        reasons = [next(filter(None, (unfit(row, arm, build, written) for arm in arms)), "") for row in members]
        kept[pool] = [row for row, reason in zip(members, reasons, strict=True) if not reason]
        left_out[pool] = dict(Counter(filter(None, reasons)))
    return Pools(kept, left_out)


def imported_pools(rows: Mapping[str, Sequence[Row]], build: BuildConfig) -> Pools:
    """The items of imported arms, all of them whatever the threshold."""
    return pools([*rows["HAR"], *rows["INC"]], 0.0, build, imported_texts(rows))


def imported_texts(rows: Mapping[str, Sequence[Row]]) -> Written:
    """What the base model wrote of its own answers in imported arms."""
    return {(row["id"], row["pred"]): row["own_explanation"] for row in rows["INC"]}


def unfit(row: Row, arm: Arm, build: BuildConfig, written: Written) -> str:
    """Why an item cannot serve an arm; empty where it can."""
    if arm.kind == "RANDOM_WRONG" and len(row["options"]) < 3:
        return "has no third option"
    if arm.has("context") and not row[build.context]:
        return f"has no {build.context} to stand before the question"
    for answer in answers(arm, row):
        match author(arm, build, answer == row["gold"]):
            case "source" if not row["explanation"]:
                return "has no explanation of the true answer"
            case "base" if written.get((row["id"], answer)) is None:
                return "the base model's explanation failed"
    return ""


def answers(arm: Arm, row: Row) -> list[int]:
    """The options that an arm may train on as the answer of an item."""
    match arm.kind:
        case "HAR" | "INC":
            return [row["gold"]]
        case "SELF":
            return [row["pred"]] if arm.share is None else [row["pred"], row["gold"]]
        case "SELF_ALL":
            return [row["pred"]]
        case "RANDOM_WRONG":
            return [random_wrong(row)]
        case _:
            return []


def author(arm: Arm, build: BuildConfig, true: bool) -> Author:
    """Who explains the answer that an arm trains on, be it the true one or not."""
    if arm.kind == "REFUSAL" or arm.has("unexplained"):
        return ""
    if arm.has("self_explained"):
        return "base"
    if not build.explanations:
        return ""
    return "source" if true and arm.kind != "SELF_ALL" else "base"


def base_explains(build: BuildConfig) -> bool:
    """Whether an arm needs explanations by the base model; imported arms bring theirs."""
    arms = () if build.released else build.parsed
    return any(author(arm, build, arm.kind in ("HAR", "INC")) == "base" for arm in arms)


def random_wrong(row: Row) -> int:
    """An option that is neither true nor the base's, where there is one; the same whatever the study's seed."""
    others = [place for place in range(len(row["options"])) if place not in (row["gold"], row["pred"])]
    number = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big")
    return others[number % len(others)] if others else row["pred"]


def draw(
    rows: Sequence[Row], size: int, seed: int, purpose: str, how: Literal["random", "first"] = "random"
) -> list[Row]:
    """`size` rows, the first or in random order; that depends on the seed, the purpose and the rows alone."""
    if how == "first":
        return list(rows[:size])
    generator = np.random.default_rng([seed, *purpose.encode()])
    return [rows[index] for index in generator.permutation(len(rows))[:size]]


def matched(rows: Sequence[Row], to: Sequence[Row]) -> list[Row]:
    """For each row of `to` another one of `rows`, so that their confidences differ least in all."""
    confidences = np.array([row["pred_prob"] for row in rows])
    wanted = np.array([row["pred_prob"] for row in to])
    _, chosen = linear_sum_assignment(np.abs(wanted[:, None] - confidences[None, :]))
    return [rows[place] for place in chosen]
