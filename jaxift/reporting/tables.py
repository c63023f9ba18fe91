"""The study's tables as text, from `analysis.json` alone: what terminal, page and files all show."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jaxift.analysis.calibration import KNOWLEDGE
from jaxift.analysis.exp1 import FEW_SHOT
from jaxift.arms import contrasts
from jaxift.config import BASE

Analysis = Mapping[str, Any]
LABELS = {"homo": "HOMO", "id": "ID", "ood": "OOD"}


@dataclass(frozen=True)
class Row:
    """A labelled line; a muted one is there for comparison, `strong` are the numbers of values that stand out."""

    label: str
    values: tuple[str, ...]
    muted: bool = False
    strong: frozenset[int] = frozenset()


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
    best = [exp1["best"].get(test_set, {"clear": False}) for test_set in LABELS]
    rows = []
    for arm in arms_shown(analysis, exp1["accuracy"]):
        values = tuple(estimate(exp1["accuracy"][arm][test_set]) for test_set in LABELS)
        strong = frozenset(place for place, each in enumerate(best) if each["clear"] and each["arm"] == arm)
        rows.append(Row(_told_domains(analysis, arm), values, strong=strong))
    rows.append(Row("chance", tuple(percent(exp1["chance"][test_set]) for test_set in LABELS), muted=True))
    rows.append(
        Row("questions", tuple(str(exp1["questions"][test_set]["distinct"]) for test_set in LABELS), muted=True)
    )
    return tuple(rows)


def _told_domains(analysis: Analysis, arm: str) -> str:
    """An arm's label, with the number of domains where it is not there in all that were probed."""
    label, there = arm_label(analysis, arm), len(analysis["exp1"]["accuracy"][arm]["homo"]["by_domain"])
    every = len(analysis["probe"])
    return label if there == every else f"{label} ({there} of {every} domains)"


def difference_rows(analysis: Analysis) -> tuple[Row, ...]:
    """Paired differences between arms in points, each above the paper's mean where it reports one."""
    rows = []
    for name in contrasts_shown(analysis):
        sets = analysis["exp1"]["differences"][name]
        rows.append(_difference_row(analysis, name))
        paper = [sets[test_set]["paper"] for test_set in LABELS]
        if None not in paper:
            rows.append(Row("in the paper", tuple(f"{100 * value:+.2f}" for value in paper), muted=True))
    return tuple(rows)


def _difference_row(analysis: Analysis, name: str) -> Row:
    """A difference on all test sets, those that are clear standing out."""
    sets = analysis["exp1"]["differences"][name]
    strong = frozenset(place for place, test_set in enumerate(LABELS) if is_clear(analysis, sets[test_set]))
    return Row(contrast_label(name), tuple(estimate(sets[test_set]) for test_set in LABELS), strong=strong)


def exp1_tables(analysis: Analysis) -> list[Table]:
    """Accuracies and differences, over all domains and per domain."""
    level = f"{100 * analysis['settings']['confidence']:g} % intervals"
    header = tuple(LABELS.values())
    caption = (
        f"Exp-I: accuracy in %, with {level}. Bold: a tuned arm that is clearly ahead of every other one on that test "
        "set, corrected for their number."
    )
    tables = [Table("exp1", caption, ("arm", *header), (("", accuracy_rows(analysis)),))]
    rows = difference_rows(analysis)
    if rows:
        caption = (
            f"Exp-I: paired differences in percentage points, with {level}. Bold: clear, also after Holm's correction "
            "for all differences of this table. The paper's values are other models'."
        )
        tables.append(Table("differences", caption, ("difference", *header), (("", rows),)))
        tables.append(certainty_table(analysis))
    tables.append(_per_domain(analysis, "accuracy", "domains", f"Accuracy per domain in %, with {level}."))
    if rows:
        caption = f"Differences per domain in percentage points, with {level}."
        tables.append(_per_domain(analysis, "differences", "domain-differences", caption))
    return tables


def is_clear(analysis: Analysis, entry: Mapping[str, Any]) -> bool:
    """Whether a difference is told from 0, also after Holm's correction for all of them."""
    return entry["p_holm"] < 1 - analysis["settings"]["confidence"]


def certainty_table(analysis: Analysis) -> Table:
    """How sure the differences are, and what the study could have seen."""
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for name in contrasts_shown(analysis):
            entry = analysis["exp1"]["differences"][name][test_set]
            wide = entry["beyond_domains"]
            beyond = "–" if wide is None else f"[{percent(wide[0])}, {percent(wide[1])}]"
            domains = [each for domain in entry["by_domain"].values() for each in domain["mcnemar"]]
            below = sum(p < 1 - analysis["settings"]["confidence"] for p in domains)
            found = (p_value(entry["p"]), p_value(entry["p_holm"]), percent(entry["detectable"]), beyond)
            rows.append(Row(contrast_label(name), (*found, f"{below} of {len(domains)}")))
        groups.append((label, tuple(rows)))
    header = ("difference", "p", "p, Holm", "detectable, points", "for other domains", "McNemar")
    level = 1 - analysis["settings"]["confidence"]
    caption = (
        "How sure the differences are: p of no difference; corrected by Holm for all of them; the smallest true "
        "difference that such a study calls clear four times in five, the correction included; the interval if these "
        "domains are a sample of others; and in how many pairs of single models McNemar's exact test has p < "
        f"{level:.2g}."
    )
    return Table("tests", caption, header, tuple(groups))


def p_value(p: float) -> str:
    """A p-value with two digits: 0.034, and < 0.0001 below that."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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
    names = ("rank_consistency", "spearman", "kendall", "kl", "reverse_kl", "js")
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for arm in arms_shown(analysis, analysis["consistency"]):
            entry = analysis["consistency"][arm][test_set]
            values = (f"{entry[name] + 0.0:.3f}" for name in names)
            shares = (percent(entry[name]) for name in ("agreement", "right_to_wrong", "wrong_to_right"))
            rows.append(Row(arm_label(analysis, arm), (*values, *shares)))
        groups.append((label, tuple(rows)))
    header = (
        "test set", "rank consistency", "Spearman", "Kendall τ-b", "KL(base ‖ tuned)", "KL(tuned ‖ base)", "JS",
        "same answer, %", "right → wrong, %", "wrong → right, %",
    )  # fmt: skip
    caption = (
        f"Each model beside the base as it was probed, {analysis['study']['shots']}-shot: means over the questions of "
        "the agreement of the options' order, of divergences in nats, and of the answers."
    )
    return Table("consistency", caption, header, tuple(groups))


def behaviour_table(analysis: Analysis) -> Table:
    """What may be behind a difference beside knowledge: letters and confidence, the few-shot base's among them."""
    groups = []
    for test_set, label in LABELS.items():
        rows = [_behaviour(arm_label(analysis, FEW_SHOT), _mean_probe(analysis, test_set), {})]
        for arm in arms_shown(analysis, analysis["consistency"]):
            entry = analysis["consistency"][arm][test_set]
            rows.append(_behaviour(arm_label(analysis, arm), entry, entry))
        groups.append((label, tuple(rows)))
    header = (
        "test set", "commonest letter, %", "letters from true", "letters from base", "confidence, %",
        "calibration error, %", "Brier",
    )  # fmt: skip
    caption = (
        "What may be behind a difference beside knowledge: the share of answers that name a model's commonest letter "
        "(or place); the distance (total variation) of its letters from those of the true answers and of the base's; "
        "how sure it is of its answers, and how far that is from how often they are true."
    )
    return Table("behaviour", caption, header, tuple(groups))


def _behaviour(label: str, entry: Mapping[str, float], beside: Mapping[str, float]) -> Row:
    return Row(
        label,
        (
            percent(entry["commonest_place"]),
            f"{entry['letters_from_true']:.2f}",
            f"{beside['letters_from_base']:.2f}" if beside else "–",
            percent(entry["confidence"]),
            percent(entry["calibration_error"]),
            f"{entry['brier']:.3f}",
        ),
    )


def _mean_probe(analysis: Analysis, test_set: str) -> dict[str, float]:
    """The few-shot base's numbers on a test set, averaged over domains."""
    found = [sets[test_set] for sets in analysis["probe"].values()]
    names = ("commonest_place", "letters_from_true", "confidence", "calibration_error", "brier")
    return {name: sum(entry[name] for entry in found) / len(found) for name in names}


def knowledge_table(analysis: Analysis) -> Table:
    """Accuracy by what the base knew of the questions."""
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for arm in arms_shown(analysis, analysis["knowledge"]):
            found = analysis["knowledge"][arm][test_set]
            cells = (found.get(name) for name in KNOWLEDGE)
            shown = (
                "–" if each is None else f"{percent(each['accuracy'])} ({percent(each['kept'])})" for each in cells
            )
            rows.append(Row(arm_label(analysis, arm), tuple(shown)))
        groups.append((label, tuple(rows)))
    caption = (
        "Accuracy in % on the questions that the base, as it was probed, answers so; in brackets how many of the "
        f"answers are still the base's. Sure is a probability above {analysis['study']['threshold']:g}."
    )
    return Table("knowledge", caption, ("test set", *KNOWLEDGE), tuple(groups))


def training_table(analysis: Analysis) -> Table:
    """Whether the models learned what they were trained on."""
    rows = []
    for arm in arms_shown(analysis, analysis["training"]):
        found = analysis["training"][arm]
        shares = (percent(found[name]) for name in ("recall", "probability", "accuracy", "kept"))
        rows.append(Row(arm, tuple(shares)))
    header = ("arm", "as taught, %", "its probability, %", "true, %", "the base's, %")
    caption = (
        "What the tuned models answer to the very questions that they were trained on: as they were taught (and the "
        "probability of that answer), the true answer, the one that the base had given."
    )
    return Table("training", caption, header, (("", tuple(rows)),))


def mixture_table(analysis: Analysis) -> Table:
    """Exp-III: what a share of the base's own answers does; without rows where no arm mixes both answers."""
    rows = []
    for share, arm in mixtures_shown(analysis):
        sets = analysis["exp1"]["accuracy"][arm]
        kept = (f"{analysis['consistency'][arm][test_set]['rank_consistency']:.3f}" for test_set in LABELS)
        rows.append(Row(percent(share), (*(estimate(sets[test_set]) for test_set in LABELS), *kept)))
    header = ("own answers, %", *LABELS.values(), *(f"rank consistency, {label}" for label in LABELS.values()))
    caption = "Exp-III: the items of INC, a share of them trained on the base's own answer, the rest on the true one."
    return Table("exp3", caption, header, (("", tuple(rows)),))


def mixtures_shown(analysis: Analysis) -> list[tuple[float, str]]:
    """The arms of Exp-III that have scores, by their share of own answers."""
    return sorted((share, arm) for arm, share in analysis["exp3"].items() if arm in analysis["exp1"]["accuracy"])


def context_table(analysis: Analysis) -> Table:
    """Exp-II: what the knowledge before a question does in training; without rows where no arm has it."""
    rows = [_difference_row(analysis, name) for name in context_contrasts(analysis)]
    caption = "Exp-II: what it changes, in percentage points, that the knowledge stands before the question."
    return Table("exp2", caption, ("difference", *LABELS.values()), (("", tuple(rows)),))


def context_contrasts(analysis: Analysis) -> list[str]:
    """Names of the differences between a contextualised arm and the same arm without contexts."""
    return [name for name in contrasts_shown(analysis) if name.partition("-")[0] == f"{name.partition('-')[2]}+context"]


def exp4_table(analysis: Analysis) -> Table:
    """Exp-IV: the partial correlation by test set, or why there is none, and what is more careful than it."""
    rows = []
    for test_set, label in LABELS.items():
        entry = analysis["exp4"][test_set]
        value, interval, arms = (entry[name] for name in ("partial_spearman", "interval", "arms"))
        paper = f"none: {entry['reason']}" if value is None else f"{value:+.2f}"
        if interval is not None:
            paper += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        between = slope = "–"
        if arms is not None:
            sure = "too few for a test" if arms["p"] is None else f"p {p_value(arms['p'])}"
            between = f"{arms['spearman']:+.2f} ({sure})"
            if arms["slope"] is not None:
                low, high = arms["interval"]
                slope = f"{10 * arms['slope']:+.1f} [{10 * low:.1f}, {10 * high:.1f}]"
        count = 0 if arms is None else arms["count"]
        rows.append(Row(label, (str(entry["cells"]), paper, str(count), between, slope)))
    over = "the mixtures of Exp-III" if analysis["exp3"] else "all tuned cells"
    caption = (
        f"Exp-IV: rank consistency and tuned accuracy, over {over}: the paper's partial Spearman correlation given the "
        "base's accuracy (interval: whole domains drawn, with these arms); and what the arms say, each a point, the "
        "mean of its cells' deviations from their domains' means: Spearman with a permutation test, and the points of "
        "accuracy that 0.1 of rank consistency goes with."
    )
    header = ("test set", "tuned cells", "partial Spearman", "arms", "between arms", "points per 0.1")
    return Table("exp4", caption, header, (("", tuple(rows)),))
