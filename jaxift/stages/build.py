"""Build: the intervention arms of one domain, drawn from what the probe found. No JAX."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxift.artifacts import RunDirectory
from jaxift.config import DomainConfig, StudyConfig
from jaxift.data.prompts import instruction_prompt, response
from jaxift.data.questions import LETTERS, Question
from jaxift.errors import UserError

Row = Mapping[str, Any]


def build(config: StudyConfig, run: RunDirectory, domain: DomainConfig, seed: int) -> tuple[list[str], dict[str, Any]]:
    """Writes arms/DOMAIN/sSEED/ARM.jsonl, all of equal size; returns the files and the facts for the manifest.

    HAR: the base is right and sure, trained on the gold answer. INC: the base is wrong and sure, trained on the gold
    answer. SELF: the items of INC in the same order, trained on the base's own answer (Ren et al. 2024, section 3).
    """
    rows = run.read_rows(f"probe/{domain.name}/train.parquet")
    har, inc = qualifying(rows, config.probe.threshold)
    size = _size(config, domain, len(har), len(inc))
    harmonious, incompatible = draw(har, size, seed, "HAR"), draw(inc, size, seed, "INC")
    chosen = {
        "HAR": [(row, row["gold"]) for row in harmonious],
        "INC": [(row, row["gold"]) for row in incompatible],
        "SELF": [(row, row["pred"]) for row in incompatible],
    }
    files, facts = [], {}
    for arm in config.build.arms:
        items = [_item(config, domain, row, answer) for row, answer in chosen[arm]]
        files.append(f"arms/{domain.name}/s{seed}/{arm}.jsonl")
        run.write_jsonl(files[-1], items)
        facts[arm] = _facts(items)
    return files, {"arms": facts, "qualifying": {"HAR": len(har), "INC": len(inc), "probed": len(rows)}, "seed": seed}


def qualifying(rows: Sequence[Row], threshold: float) -> tuple[list[Row], list[Row]]:
    """The items that the base is sure of, above `threshold`: those that it gets right, and those that it gets wrong."""
    sure = [row for row in rows if row["pred_prob"] > threshold]
    return [row for row in sure if row["correct"]], [row for row in sure if not row["correct"]]


def draw(rows: Sequence[Row], size: int, seed: int, purpose: str) -> list[Row]:
    """`size` rows in random order; the draw depends on the seed, the purpose and the rows alone."""
    generator = np.random.default_rng([seed, *purpose.encode()])
    return [rows[index] for index in generator.permutation(len(rows))[:size]]


def _size(config: StudyConfig, domain: DomainConfig, har: int, inc: int) -> int:
    settings = config.build
    size = min(har, inc)
    if size < settings.minimum:
        raise UserError(
            f"domain {domain.name}: only {har} harmonious and {inc} incompatible items above probability "
            f"{config.probe.threshold}, {settings.minimum} needed; "
            "probe more questions, or lower probe.threshold or build.minimum"
        )
    return size if settings.cap is None else min(size, settings.cap)


def _item(config: StudyConfig, domain: DomainConfig, row: Row, answer: int) -> dict[str, Any]:
    question = Question(row["id"], row["question"], tuple(row["options"]), row["gold"], row["subject"])
    style = config.probe.prompt
    return {
        "id": row["id"],
        "gold": row["gold"],
        "pred": row["pred"],
        "pred_prob": row["pred_prob"],
        "answer": answer,
        "prompt": instruction_prompt(style, domain.words or domain.name, question),
        "response": response(style, question, answer, config.build.response_format),
    }


def _facts(items: Sequence[Row]) -> dict[str, Any]:
    letters = Counter(LETTERS[item["answer"]] for item in items)
    return {"items": len(items), "letters": dict(sorted(letters.items()))}
