"""The questions behind the numbers, for the page's browser: texts once, everyone's probabilities in a byte each."""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxift.analysis.exp1 import FEW_SHOT
from jaxift.analysis.scored import in_order_of
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell

LIMIT = 11_000_000
"""Bytes that the questions and answers may take in the page; of more, an even share of each test set is shown."""
STEPS = 255
"""Of a probability: shown to half a percent."""


def items(run: RunDirectory, domains: Sequence[str], cells: Iterable[Cell], threshold: float) -> dict[str, Any]:
    """All questions and answers of a study, as the page's script reads them.

    questions   [text, options, number of the true option, subject], each distinct one once
    models      [domain, arm, seed or null], the few-shot base of each domain first
    sets        "DOMAIN/SET": {ask: numbers of questions, say: {model: answers}}, both in base64: 32-bit little-endian
                integers, and bytes: a prediction a question, with 128 added where its probability is above the
                threshold, then STEPS times the probability of each option
    shown, of   how many questions are here, and how many there are, over domains and test sets

    Domains whose probe is not there are left out.
    """
    found = _read(run, domains, list(cells), threshold)
    every = sum(len(rows) for rows, _ in found["sets"].values())
    share = 1.0
    while True:
        result = _told(found, share, every)
        size = len(as_script(result).encode())
        if size <= LIMIT or result["shown"] <= len(found["sets"]):
            return result
        share *= 0.95 * LIMIT / size


def _read(run: RunDirectory, domains: Sequence[str], cells: Sequence[Cell], threshold: float) -> dict[str, Any]:
    """Rows of the probe and everyone's answers in the probe's order, by domain and test set."""
    present = [name for name in domains if all(run.exists(f"probe/{name}/{each}.parquet") for each in TEST_SETS)]
    models: list[list[Any]] = [[name, FEW_SHOT, None] for name in present]
    scored = [cell for cell in cells if cell.domain in present]
    models += [[cell.domain, cell.arm, cell.seed] for cell in scored]
    sets: dict[str, tuple[list[dict[str, Any]], dict[int, tuple[np.ndarray, list[list[float]]]]]] = {}
    for name in present:
        for test_set in TEST_SETS:
            probe = run.read_table(f"probe/{name}/{test_set}.parquet")
            columns = ("question", "options", "gold", "subject")
            rows = probe.select(columns).to_pylist()
            answers = {models.index([name, FEW_SHOT, None]): _answers(probe, threshold)}
            for number, cell in enumerate(scored, len(present)):
                if cell.domain == name:
                    table = run.read_table(f"cells/{cell.id}/scores/{test_set}.parquet")
                    answers[number] = _answers(in_order_of(table, probe), threshold)
            sets[f"{name}/{test_set}"] = rows, answers
    return {"models": models, "sets": sets}


def _answers(table: Any, threshold: float) -> tuple[np.ndarray, list[list[float]]]:
    sure = np.asarray(table["pred_prob"]) > threshold
    return (np.asarray(table["pred"]) + 128 * sure).astype(np.uint8), table["probs"].to_pylist()


def _told(found: dict[str, Any], share: float, every: int) -> dict[str, Any]:
    numbers: dict[tuple[Any, ...], int] = {}
    questions: list[list[Any]] = []
    sets, shown = {}, 0
    for name, (rows, answers) in found["sets"].items():
        count = max(1, round(share * len(rows))) if rows else 0
        chosen = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(np.int64)) if count else []
        asked = []
        for place in chosen:
            row = rows[place]
            key = (row["question"], tuple(row["options"]), row["gold"], row["subject"])
            if key not in numbers:
                numbers[key] = len(questions)
                questions.append([row["question"], row["options"], row["gold"], row["subject"]])
            asked.append(numbers[key])
        shown += len(asked)
        said = {}
        for number, (preds, probs) in answers.items():
            flat = [value for place in chosen for value in probs[place]]
            levels = np.round(STEPS * np.asarray(flat)).astype(np.uint8)
            said[str(number)] = _encoded(np.concatenate([preds[chosen], levels]))
        sets[name] = {"ask": _encoded(np.asarray(asked, "<u4")), "say": said}
    return {
        "base": BASE, "probe": FEW_SHOT, "models": found["models"], "questions": questions,
        "sets": sets, "shown": shown, "of": every,
    }  # fmt: skip


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def as_script(value: Any) -> str:
    """JSON that may stand in an HTML script element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
