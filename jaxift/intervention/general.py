"""General instructions, mixed into every arm of a domain at the same places."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxift.data.fields import writable
from jaxift.data.prompts import general_prompt
from jaxift.data.tables import jsonl_rows, read_text
from jaxift.errors import UserError

Item = dict[str, Any]


def read_general(path: epath.Path, wrapper: str = "") -> list[Item]:
    """Instructions from a JSON list or a JSONL file of objects with instruction, output and perhaps input.

    Raises UserError naming file, entry and field.
    """
    if path.suffix == ".jsonl":
        entries = [(where, row) for _, where, row in jsonl_rows(path)]
    else:
        try:
            found = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON ({error}); give a list of objects") from None
        if not isinstance(found, list):
            raise UserError(f"{path}: holds {type(found).__name__}, not a list; give a list of objects")
        entries = [(f"{path}: entry {number}", row) for number, row in enumerate(found, 1)]
    return [_item(where, row, number, wrapper) for number, (where, row) in enumerate(entries)]


def _item(where: str, row: Any, number: int, wrapper: str) -> Item:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not an object; give instruction, input and output")
    for name in ("instruction", "output"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where}: field {name!r} must be a non-empty text")
    text = row.get("input") or ""
    if not isinstance(text, str):
        raise UserError(f"{where}: field 'input' must be a text")
    writable(where, row["instruction"], text, row["output"])
    prompt = general_prompt(row["instruction"], text, wrapper)
    return {"id": f"general-{number}", "kind": "general", "prompt": prompt, "response": row["output"]}


def draw_general(items: Sequence[Item], count: int, seed: int, name: str) -> list[Item]:
    """So many of them in random order; raises UserError, with the largest number, where there are fewer."""
    if count > len(items):
        raise UserError(
            f"{name}: {count} general instructions are needed, it holds {len(items)}; add some, or lower "
            "build.general.share or build.cap"
        )
    return [items[place] for place in np.random.default_rng([seed, *b"general"]).permutation(len(items))[:count]]


def interleave(items: Sequence[Item], general: Sequence[Item], seed: int) -> list[Item]:
    """Items and general instructions, each in their order, mixed by the seed and the two counts alone."""
    if not general:
        return list(items)
    total = len(items) + len(general)
    slots = set(np.random.default_rng([seed, *b"slots"]).permutation(total)[: len(general)].tolist())
    streams = iter(items), iter(general)
    return [next(streams[place in slots]) for place in range(total)]
