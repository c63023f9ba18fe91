"""Real requests in lm-evaluation-harness' own prompt formats, and its `hf` model to answer them."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxift.data.prompts import instruction_prompt
from jaxift.data.questions import Question
from jaxift.scoring.requests import Request

ANSWERS = (" A", " B", " C", " D")


def subjects(data: Path) -> list[str]:
    """The subjects of MMLU that are in the folder `mmlu`."""
    return sorted(path.name.removesuffix("_test.csv") for path in (data / "mmlu" / "test").glob("*_test.csv"))


def _rows(data: Path, split: str, subject: str) -> list[list[str]]:
    with open(data / "mmlu" / split / f"{subject}_{split}.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _item(row: Sequence[str]) -> str:
    return row[0].strip() + "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))


def mmlu(data: Path, subject: str, shots: int = 5) -> list[Request]:
    """A subject's test questions as the task mmlu_SUBJECT asks them: the first dev questions shown, four letters."""
    words = subject.replace("_", " ")
    shown = "".join(f"{_item(row)}\nAnswer: {row[5]}\n\n" for row in _rows(data, "dev", subject)[:shots])
    head = f"The following are multiple choice questions (with answers) about {words}.\n\n{shown}"
    return [Request(f"{head}{_item(row)}\nAnswer:", ANSWERS) for row in _rows(data, "test", subject)]


def chat(data: Path, subject: str) -> list[Request]:
    """A subject's test questions as the study asks a tuned model: zero-shot, behind a chat preamble, by letter."""
    return [
        Request(
            instruction_prompt("paper", subject.replace("_", " "), Question("", row[0], tuple(row[1:5]), 0)),
            tuple("ABCD"),
        )
        for row in _rows(data, "test", subject)
    ]


def arc(data: Path) -> list[Request]:
    """ARC-Easy test questions as the task arc_easy asks them: zero-shot, by the options' own text."""
    lines = (data / "arc" / "arc_easy_test.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Request(f"Question: {row['question']}\nAnswer:", tuple(f" {choice}" for choice in row["choices"]))
        for row in map(json.loads, lines)
    ]


def written(data: Path) -> list[str]:
    """General texts of a few hundred words."""
    rows = json.loads((data / "instructions" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    return ["\n".join(filter(None, (row["instruction"], row["input"], row["output"]))) for row in rows]


def unshared(data: Path) -> list[Request]:
    """Texts that share nothing: the first half as context, the second as its one option."""
    requests = []
    for text in written(data):
        words = text.split(" ")
        middle = len(words) // 2
        if middle:
            requests.append(Request(" ".join(words[:middle]), (" " + " ".join(words[middle:]),)))
    return requests


def drawn(requests: Sequence[Request], count: int, seed: int) -> list[Request]:
    """A seeded random choice, in the order in which they stand."""
    chosen = sorted(random.Random(seed).sample(range(len(requests)), min(count, len(requests))))
    return [requests[index] for index in chosen]


class Asked:
    """A request as the harness makes it."""

    def __init__(self, *args: str):
        self.args = args


def asked(requests: Sequence[Request]) -> list[Asked]:
    """The harness' requests: one an option."""
    return [Asked(request.context, option) for request in requests for option in request.options]


def by_request(
    requests: Sequence[Request], answers: Sequence[tuple[float, bool]]
) -> list[tuple[np.ndarray, list[bool]]]:
    """The harness' answers, an entry a request: log-probabilities and greediness of its options."""
    rest = iter(answers)
    found = [[next(rest) for _ in request.options] for request in requests]
    return [(np.array([value for value, _ in each]), [greedy for _, greedy in each]) for each in found]


def hf_model(folder: str, dtype: str = "float32", batch_size: int = 1, max_length: int | None = None):
    """The harness' own model on the CPU, with torch's usual number of threads."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(folder, device="cpu", dtype=dtype, batch_size=batch_size, max_length=max_length)
