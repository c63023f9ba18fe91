"""The study's tables as text, from `analysis.json` alone: what the terminal, Markdown and HTML all show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxift.analysis.exp1 import FEW_SHOT

Analysis = Mapping[str, Any]
LABELS = {"homo": "HOMO", "id": "ID", "ood": "OOD"}
BASE = "BASE"
NOTHING = "–"  # a number that is not there


@dataclass(frozen=True)
class Row:
    """A labelled line; a muted one is there for comparison."""

    label: str
    values: tuple[str, ...]
    muted: bool = False


@dataclass(frozen=True)
class Table:
    """A captioned table; `groups` are its rows under a heading each (an empty heading is not shown)."""

    name: str
    caption: str
    header: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


def percent(share: float) -> str:
    """A share of 1 as a percentage without its sign: 0.5213 gives 52.1."""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed: 0.0213 gives +2.1."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def estimate(entry: Mapping[str, Any] | None) -> str:
    """An accuracy or a difference with its interval: 52.1 [49.0, 55.3], or +2.1 [-0.4, +4.7]."""
    if entry is None:
        return NOTHING
    label, show = ("accuracy", percent) if "accuracy" in entry else ("difference", points)
    low, high = entry["interval"]
    return f"{show(entry[label])} [{show(low)}, {show(high)}]"


def arm_label(analysis: Analysis, arm: str) -> str:
    """How tables call an arm."""
    return {FEW_SHOT: f"base, {analysis['study']['shots']}-shot", BASE: "base, zero-shot"}.get(arm, arm)


def contrast_label(name: str) -> str:
    """How tables call a difference of arms: HAR-INC gives HAR − INC."""
    return name.replace("-", " − ")


def accuracy_rows(analysis: Analysis) -> tuple[Row, ...]:
    """Exp-I: an arm a row, a test set a column; then chance and the number of questions."""
    exp1 = analysis["exp1"]
    rows = [
        Row(arm_label(analysis, arm), tuple(estimate(sets.get(test_set)) for test_set in LABELS))
        for arm, sets in exp1["accuracy"].items()
    ]
    rows.append(Row("chance", tuple(percent(exp1["chance"][test_set]) for test_set in LABELS), muted=True))
    counts = (exp1["questions"][test_set].values() for test_set in LABELS)
    rows.append(Row("questions", tuple(str(sum(count)) for count in counts), muted=True))
    return tuple(rows)


def difference_rows(analysis: Analysis) -> tuple[Row, ...]:
    """Paired differences between arms in points, each above the paper's mean where it reports one."""
    rows = []
    for name, sets in analysis["exp1"]["differences"].items():
        rows.append(Row(contrast_label(name), tuple(estimate(sets.get(test_set)) for test_set in LABELS)))
        paper = [sets.get(test_set, {}).get("paper") for test_set in LABELS]
        if any(value is not None for value in paper):
            shown = tuple(NOTHING if value is None else f"{100 * value:+.2f}" for value in paper)
            rows.append(Row("in the paper", shown, muted=True))
    return tuple(rows)


def exp1_tables(analysis: Analysis) -> list[Table]:
    """Accuracies and differences, over all domains and per domain."""
    level = f"{100 * analysis['settings']['confidence']:g} % intervals"
    header = tuple(LABELS.values())
    tables = [Table("exp1", f"Exp-I: accuracy in %, with {level}.", ("arm", *header), (("", accuracy_rows(analysis)),))]
    rows = difference_rows(analysis)
    if rows:
        caption = f"Exp-I: paired differences in percentage points, with {level}. The paper's values are other models'."
        tables.append(Table("differences", caption, ("difference", *header), (("", rows),)))
    tables.append(_per_domain(analysis, "accuracy", "domains", f"Accuracy per domain in %, with {level}."))
    if rows:
        caption = f"Differences per domain in percentage points, with {level}."
        tables.append(_per_domain(analysis, "differences", "domain-differences", caption))
    return tables


def _per_domain(analysis: Analysis, kind: str, name: str, caption: str) -> Table:
    """The rows of an Exp-I table once for every domain."""
    groups = []
    for domain in analysis["study"]["domains"]:
        rows = []
        for key, sets in analysis["exp1"][kind].items():
            entries = [sets.get(test_set, {"by_domain": {}})["by_domain"].get(domain) for test_set in LABELS]
            if any(entries):
                label = arm_label(analysis, key) if kind == "accuracy" else contrast_label(key)
                rows.append(Row(label, tuple(estimate(entry) for entry in entries)))
        if rows:
            groups.append((domain, tuple(rows)))
    return Table(name, caption, ("", *LABELS.values()), tuple(groups))


def consistency_table(analysis: Analysis) -> Table:
    """How far each arm's beliefs moved from the few-shot base's, by test set."""
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for arm, sets in analysis["consistency"].items():
            entry = sets[test_set]
            shares = (percent(entry[name]) for name in ("agreement", "right_to_wrong", "wrong_to_right"))
            values = (f"{entry['rank_consistency']:.3f}", f"{entry['kl']:.3f}", *shares)
            rows.append(Row(arm_label(analysis, arm), values))
        groups.append((label, tuple(rows)))
    header = ("", "rank consistency", "KL, nats", "same answer, %", "right → wrong, %", "wrong → right, %")
    caption = f"Each model beside the base as it was probed, {analysis['study']['shots']}-shot: means over the questions."
    return Table("consistency", caption, header, tuple(groups))


def exp4_table(analysis: Analysis) -> Table:
    """Exp-IV: the partial correlation by test set, or why there is none."""
    rows = []
    for test_set, label in LABELS.items():
        entry = analysis["exp4"][test_set]
        value = entry["partial_spearman"]
        shown = f"none: {entry['reason']}" if value is None else f"{value:+.2f}"
        rows.append(Row(label, (str(entry["cells"]), shown)))
    caption = "Exp-IV: partial Spearman correlation of rank consistency with tuned accuracy, given the base's accuracy."
    return Table("exp4", caption, ("test set", "tuned cells", "correlation"), (("", tuple(rows)),))


def arms_tables(manifests: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Table]:
    """What the arms hold, from their manifests by (domain, seed): items and answer letters; empty without any."""
    groups: dict[str, list[Row]] = {}
    letters: dict[str, dict[str, int]] = {}
    for (domain, seed), manifest in manifests.items():
        sizes = {arm: facts["items"] for arm, facts in manifest["arms"].items()}
        shown = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
        qualifying = (str(manifest["qualifying"].get(arm, NOTHING)) for arm in ("HAR", "INC"))
        groups.setdefault(domain, []).append(Row(f"seed {seed}", (*qualifying, shown)))
        for arm, facts in manifest["arms"].items():
            for letter, count in facts.get("letters", {}).items():
                letters.setdefault(arm, {}).setdefault(letter, 0)
                letters[arm][letter] += count
    header = ("", "qualify for HAR", "qualify for INC", "items drawn")
    shown_groups = tuple((domain, tuple(rows)) for domain, rows in groups.items())
    tables = [Table("arms", "Questions that qualify for the arms, and how many were drawn.", header, shown_groups)]
    return (tables if groups else []) + ([_letters_table(letters)] if letters else [])


def _letters_table(letters: Mapping[str, Mapping[str, int]]) -> Table:
    """Where the trained answers stand among the options, per arm."""
    names: Sequence[str] = sorted({letter for counts in letters.values() for letter in counts})
    rows = []
    for arm, counts in letters.items():
        total = max(sum(counts.values()), 1)
        rows.append(Row(arm, tuple(percent(counts.get(letter, 0) / total) for letter in names)))
    caption = "Position of the answer trained on, % of an arm's items over all domains and seeds."
    return Table("letters", caption, ("arm", *names), (("", tuple(rows)),))
