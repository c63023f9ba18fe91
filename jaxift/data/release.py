"""The authors' released arms: read from their files, kept in ours, and read back to be tuned on.

Their files (Ren et al. 2024), in a folder a domain: `consistent-correct-exp-sample.jsonl` holds HAR,
`inconsistent-golden-exp.jsonl` INC, and `inconsistent-predict-model-exp.jsonl` SELF, the items of INC with the model's
own explanation. Ours: DOMAIN/HAR.jsonl and DOMAIN/INC.jsonl, rows as the probe's with `own_explanation` besides: the
model's text, which may be empty, or null where there is no file of SELF.
"""

import json
import math
import types
from typing import Any

from etils import epath

from jaxift.data.fields import checked, writable
from jaxift.data.tables import jsonl_rows
from jaxift.errors import UserError

FILES = {"HAR": "consistent-correct-exp-sample.jsonl", "INC": "inconsistent-golden-exp.jsonl"}
SELF_FILE = "inconsistent-predict-model-exp.jsonl"
Row = dict[str, Any]
_KINDS: dict[str, type | types.UnionType] = {
    "id": str | int, "question": str, "choices": list, "answer": int, "probs": list, "pred": int,
    "explanation": str | None,
}  # fmt: skip
_COLUMNS: dict[str, type | types.UnionType] = {
    "id": str, "question": str, "options": list, "gold": int, "pred": int, "pred_prob": float, "correct": bool,
    "subject": str, "header": str, "explanation": str, "context": str, "own_explanation": str | None,
}  # fmt: skip


def read_release(folder: epath.Path) -> dict[str, dict[str, list[Row]]]:
    """The arms of each domain that a released folder holds: domain -> HAR, INC -> rows in the file's order.

    Raises UserError naming file, line and field, and where a folder holds no domain with both files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds a folder for each domain")
    found = {}
    for domain in sorted(each for each in folder.iterdir() if each.is_dir()):
        if all((domain / name).exists() for name in FILES.values()):
            arms = {
                arm: [_row(where, row, arm == "HAR") for _, where, row in jsonl_rows(domain / FILES[arm])]
                for arm in FILES
            }
            own = _own_explanations(domain / SELF_FILE, arms["INC"]) if (domain / SELF_FILE).exists() else {}
            arms["INC"] = [{**row, "own_explanation": own.get(row["id"])} for row in arms["INC"]]
            found[domain.name] = arms
    if not found:
        raise UserError(f"{folder}: holds no folder with the files {' and '.join(FILES.values())}")
    return found


def write_imported(arms: dict[str, dict[str, list[Row]]], out: epath.Path) -> None:
    """Writes OUT/DOMAIN/{HAR,INC}.jsonl."""
    for domain, rows_of in arms.items():
        (out / domain).mkdir(parents=True, exist_ok=True)
        for arm, rows in rows_of.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / domain / f"{arm}.jsonl").write_text("".join(lines))


def read_imported(folder: epath.Path, domain: str) -> dict[str, list[Row]]:
    """The rows that `write_imported` wrote for a domain; raises UserError where there are none or they are damaged."""
    found: dict[str, list[Row]] = {}
    for arm in FILES:
        path = folder / domain / f"{arm}.jsonl"
        if not path.exists():
            raise UserError(
                f"{path}: no such file; make it with `jaxift import-release`, and name domains as its folders"
            )
        found[arm] = [_imported(where, row) for _, where, row in jsonl_rows(path)]
        if not found[arm]:
            raise UserError(f"{path}: holds no item; import the release again")
    return found


def _imported(where: str, row: Row) -> Row:
    for name, kind in _COLUMNS.items():
        if name not in row or not isinstance(row[name], kind):
            raise UserError(f"{where}: field {name!r} is missing or of another type; import the release again")
    return row


def _row(where: str, released: Row, right: bool) -> Row:
    """A released item as a row of the probe; raises UserError where its parts do not fit together."""
    for name, kind in _KINDS.items():
        if name not in released or not isinstance(released[name], kind) or isinstance(released[name], bool):
            raise UserError(
                f"{where}: field {name!r} is missing or of another type; give the files as the authors released them"
            )
    options, probs = released["choices"], released["probs"]
    if not all(isinstance(option, str) for option in options) or not all(isinstance(p, float | int) for p in probs):
        raise UserError(f"{where}: fields 'choices' and 'probs' must be lists of texts and of numbers")
    explanation = (released["explanation"] or "").strip()
    question = checked(
        where, id=str(released["id"]), question=released["question"], options=tuple(options),
        answer=released["answer"], explanation=explanation,
    )  # fmt: skip
    if len(probs) != len(options) or not math.isclose(sum(probs), 1, abs_tol=1e-3):
        raise UserError(f"{where}: field 'probs' must hold a probability for each of the {len(options)} options")
    pred = max(range(len(probs)), key=lambda place: probs[place])
    if released["pred"] != pred:
        raise UserError(f"{where}: field 'pred' is {released['pred']}, but the largest of 'probs' is at {pred}")
    if (pred == question.answer) != right:
        raise UserError(f"{where}: the model is {'wrong' if right else 'right'} here; it belongs to the other file")
    return {
        "id": question.id,
        "question": question.question,
        "options": list(question.options),
        "gold": question.answer,
        "pred": pred,
        "pred_prob": float(probs[pred]),
        "gold_prob": float(probs[question.answer]),
        "probs": [float(each) for each in probs],
        "correct": pred == question.answer,
        "subject": "",
        "header": "",
        "explanation": explanation,
        "context": "",
        "own_explanation": None,
    }


def _own_explanations(path: epath.Path, incompatible: list[Row]) -> dict[str, str]:
    """The model's own explanations by id; raises UserError where the items are not those of INC in their order."""
    found = {}
    for _, where, row in jsonl_rows(path):
        if not isinstance(row.get("model_exp"), str):
            raise UserError(
                f"{where}: field 'model_exp' (a text) is missing; give the files as the authors released them"
            )
        writable(where, row["model_exp"])
        found[str(row.get("id"))] = row["model_exp"].strip()
    if list(found) != [row["id"] for row in incompatible]:
        raise UserError(f"{path}: its items are not those of {FILES['INC']} in their order; give files of one release")
    return found
