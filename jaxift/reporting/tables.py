"""The study's tables as text, from `analysis.json` alone: what the terminal, Markdown and HTML all show."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxift.analysis.exp1 import FEW_SHOT
from jaxift.arms import contrasts
from jaxift.config import BASE

Analysis = Mapping[str, Any]
LABELS = {"homo": "HOMO", "id": "ID", "ood": "OOD"}


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
    return f"{round(100 * share, 1) + 0.0:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed: 0.0213 gives +2.1."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def estimate(entry: Mapping[str, Any]) -> str:
    """An accuracy or a difference with its interval: 52.1 [49.0, 55.3], or +2.1 [-0.4, 4.7]."""
    label, show = ("accuracy", percent) if "accuracy" in entry else ("difference", points)
    low, high = entry["interval"]
    return f"{show(entry[label])} [{percent(low)}, {percent(high)}]"


def arm_label(analysis: Analysis, arm: str) -> str:
    """How tables call an arm."""
    shots = analysis["study"]["shots"]
    return {FEW_SHOT: f"base, {shots}-shot" if shots else "base, as probed", BASE: "base, zero-shot"}.get(arm, arm)


def arms_shown(analysis: Analysis, among: Collection[str]) -> list[str]:
    """The arms that `among` holds, in the order of all tables: the base first, then the study's."""
    return [arm for arm in (FEW_SHOT, BASE, *analysis["study"]["arms"]) if arm in among]


def contrasts_shown(analysis: Analysis) -> list[str]:
    """Names of the differences that the analysis holds, in the order of all tables."""
    names = ("-".join(pair) for pair in contrasts(analysis["study"]["arms"]))
    return [name for name in names if name in analysis["exp1"]["differences"]]


def contrast_label(name: str) -> str:
    """How tables call a difference of arms: HAR-INC gives HAR − INC."""
    return name.replace("-", " − ")


def accuracy_rows(analysis: Analysis) -> tuple[Row, ...]:
    """Exp-I: an arm a row, a test set a column; then chance and the number of questions."""
    exp1 = analysis["exp1"]
    rows = [
        Row(arm_label(analysis, arm), tuple(estimate(exp1["accuracy"][arm][test_set]) for test_set in LABELS))
        for arm in arms_shown(analysis, exp1["accuracy"])
    ]
    rows.append(Row("chance", tuple(percent(exp1["chance"][test_set]) for test_set in LABELS), muted=True))
    rows.append(
        Row("questions", tuple(str(exp1["questions"][test_set]["distinct"]) for test_set in LABELS), muted=True)
    )
    return tuple(rows)


def difference_rows(analysis: Analysis) -> tuple[Row, ...]:
    """Paired differences between arms in points, each above the paper's mean where it reports one."""
    rows = []
    for name in contrasts_shown(analysis):
        sets = analysis["exp1"]["differences"][name]
        rows.append(Row(contrast_label(name), tuple(estimate(sets[test_set]) for test_set in LABELS)))
        paper = [sets[test_set]["paper"] for test_set in LABELS]
        if None not in paper:
            rows.append(Row("in the paper", tuple(f"{100 * value:+.2f}" for value in paper), muted=True))
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
    found = analysis["exp1"][kind]
    if kind == "accuracy":
        labels = {arm: arm_label(analysis, arm) for arm in arms_shown(analysis, found)}
    else:
        labels = {contrast: contrast_label(contrast) for contrast in contrasts_shown(analysis)}
    groups = []
    for domain in analysis["study"]["domains"]:
        rows = []
        for key, label in labels.items():
            by_domain = [found[key][test_set]["by_domain"] for test_set in LABELS]
            if domain in by_domain[0]:
                rows.append(Row(label, tuple(estimate(entries[domain]) for entries in by_domain)))
        if rows:
            groups.append((domain, tuple(rows)))
    return Table(name, caption, ("domain", *LABELS.values()), tuple(groups))


def consistency_table(analysis: Analysis) -> Table:
    """How far each arm's beliefs moved from the few-shot base's, by test set."""
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for arm in arms_shown(analysis, analysis["consistency"]):
            entry = analysis["consistency"][arm][test_set]
            names = ("agreement", "right_to_wrong", "wrong_to_right", "commonest_place", "confidence")
            shares = (percent(entry[name]) for name in names)
            values = (f"{entry['rank_consistency']:.3f}", f"{entry['kl']:.3f}", *shares)
            rows.append(Row(arm_label(analysis, arm), values))
        groups.append((label, tuple(rows)))
    header = (
        "test set", "rank consistency", "KL, nats", "same answer, %", "right → wrong, %", "wrong → right, %",
        "commonest letter, %", "confidence, %",
    )  # fmt: skip
    caption = (
        f"Each model beside the base as it was probed, {analysis['study']['shots']}-shot: means over the questions; "
        "and the share of the answers that name its commonest letter (or place), and how sure it is of its answers."
    )
    return Table("consistency", caption, header, tuple(groups))


def mixture_table(analysis: Analysis) -> Table:
    """Exp-III: what a share of the base's own answers does; without rows where no arm mixes both answers."""
    rows = []
    for arm, share in sorted(analysis["exp3"].items(), key=lambda each: each[1]):
        sets = analysis["exp1"]["accuracy"].get(arm)
        if sets:
            kept = (f"{analysis['consistency'][arm][test_set]['rank_consistency']:.3f}" for test_set in LABELS)
            rows.append(Row(percent(share), (*(estimate(sets[test_set]) for test_set in LABELS), *kept)))
    header = ("own answers, %", *LABELS.values(), *(f"rank consistency, {label}" for label in LABELS.values()))
    caption = "Exp-III: the items of INC, a share of them trained on the base's own answer, the rest on the true one."
    return Table("exp3", caption, header, (("", tuple(rows)),))


def exp4_table(analysis: Analysis) -> Table:
    """Exp-IV: the partial correlation by test set, or why there is none."""
    rows = []
    for test_set, label in LABELS.items():
        entry = analysis["exp4"][test_set]
        value = entry["partial_spearman"]
        shown = f"none: {entry['reason']}" if value is None else f"{value:+.2f}"
        rows.append(Row(label, (str(entry["cells"]), shown)))
    over = "the mixtures of Exp-III" if analysis["exp3"] else "all tuned cells"
    caption = (
        "Exp-IV: partial Spearman correlation of rank consistency with tuned accuracy, given the base's accuracy, over "
        f"{over}."
    )
    return Table("exp4", caption, ("test set", "tuned cells", "correlation"), (("", tuple(rows)),))


def arms_tables(manifests: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Table]:
    """What the arms hold, from their manifests by (domain, seed): items and answer letters; empty without any."""
    groups: dict[str, list[Row]] = {}
    letters: dict[str, dict[str, int]] = {}
    for (domain, seed), manifest in manifests.items():
        sizes = {arm: facts["items"] for arm, facts in manifest["arms"].items()}
        shown = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
        qualifying = (str(manifest["qualifying"][arm]) for arm in ("HAR", "INC"))
        groups.setdefault(domain, []).append(Row(f"seed {seed}", (*qualifying, shown)))
        for arm, facts in manifest["arms"].items():
            for letter, count in facts.get("letters", {}).items():
                letters.setdefault(arm, {}).setdefault(letter, 0)
                letters[arm][letter] += count
    header = ("domain", "qualify for HAR", "qualify for INC", "items drawn")
    shown_groups = tuple((domain, tuple(rows)) for domain, rows in groups.items())
    tables = [Table("arms", "Questions that qualify for the arms, and how many were drawn.", header, shown_groups)]
    return (tables if groups else []) + ([_letters_table(letters)] if letters else [])


def _letters_table(letters: Mapping[str, Mapping[str, int]]) -> Table:
    """Where the trained answers stand among the options, per arm."""
    names: Sequence[str] = sorted({letter for counts in letters.values() for letter in counts})
    rows = []
    for arm in sorted(letters):
        counts = letters[arm]
        total = max(sum(counts.values()), 1)
        rows.append(Row(arm, tuple(percent(counts.get(letter, 0) / total) for letter in names)))
    caption = "Position of the answer trained on, % of an arm's items over all domains and seeds."
    return Table("letters", caption, ("arm", *names), (("", tuple(rows)),))
