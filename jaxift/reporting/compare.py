"""Several studies side by side, as the paper's table of four models: from their `analysis.json` alone."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from jaxift.analysis.exp1 import FEW_SHOT, share_interval
from jaxift.analysis.statistics import Estimate, as_sample
from jaxift.config import BASE
from jaxift.reporting.page import environment
from jaxift.reporting.tables import LABELS, Row, Table, contrast_label, estimate, is_clear, percent, points

Analyses = Mapping[str, Mapping[str, Any]]
MEAN = "mean"


def labels(analyses: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    """What the studies are called: by their models where these differ, else by their names, else by their folders."""
    models = [PurePosixPath(each["study"]["model"]).name for each in analyses]
    names = [each["study"]["name"] for each in analyses]
    for found in (models, names, [f"{name}, {model}" for name, model in zip(names, models, strict=True)]):
        if len(set(found)) == len(found):
            return found
    return list(paths)


def comparison(analyses: Analyses) -> list[Table]:
    """The tables that compare studies by label; a mean is over the models, its interval takes them as a sample."""
    found = [_accuracies(analyses), _differences(analyses), _training(analyses), _associations(analyses)]
    return [table for table in found if any(rows for _, rows in table.groups)]


def _accuracies(analyses: Analyses) -> Table:
    arms = dict.fromkeys(arm for each in analyses.values() for arm in (FEW_SHOT, BASE, *each["study"]["arms"]))
    names = {FEW_SHOT: "base, as probed", BASE: "base, zero-shot"}
    groups = []
    for test_set, label in LABELS.items():
        rows = []
        for arm in arms:
            cells = [each["exp1"]["accuracy"].get(arm, {}).get(test_set) for each in analyses.values()]
            if any(cells):
                best = [each["exp1"]["best"].get(test_set, {}) for each in analyses.values()]
                strong = (place for place, each in enumerate(best) if each.get("clear") and each["arm"] == arm)
                rows.append(_row(analyses, names.get(arm, arm), cells, "accuracy", strong=frozenset(strong)))
        groups.append((label, tuple(rows)))
    caption = (
        f"Accuracy in % of every study, with {_levels(analyses)}. Bold: a tuned arm that is clearly ahead of every "
        "other one."
    )
    return Table("compare-accuracy", caption, ("test set", *_columns(analyses)), tuple(groups))


def _differences(analyses: Analyses) -> Table:
    contrasts = dict.fromkeys(name for each in analyses.values() for name in each["exp1"]["differences"])
    groups = []
    for name in contrasts:
        rows = []
        for test_set, label in LABELS.items():
            cells = [each["exp1"]["differences"].get(name, {}).get(test_set) for each in analyses.values()]
            pairs = enumerate(zip(cells, analyses.values(), strict=True))
            strong = frozenset(place for place, (cell, each) in pairs if cell and is_clear(each, cell))
            paper = next(cell["paper"] for cell in cells if cell)
            row = _row(analyses, label, cells, "difference", strong=strong)
            rows.append(Row(row.label, (*row.values, "–" if paper is None else points(paper)), strong=row.strong))
        groups.append((contrast_label(name), tuple(rows)))
    caption = (
        f"Paired differences in percentage points of every study, with {_levels(analyses)}. Bold: clear, after Holm's "
        "correction for all differences of the study. The paper's are means over four models of its own."
    )
    return Table("compare-differences", caption, ("difference", *_columns(analyses), "in the paper"), tuple(groups))


def _training(analyses: Analyses) -> Table:
    arms = dict.fromkeys(arm for each in analyses.values() for arm in each["training"])
    rows = []
    for arm in arms:
        found = [each["training"].get(arm) for each in analyses.values()]
        shown = tuple("–" if each is None else percent(each["recall"]) for each in found)
        rows.append(Row(arm, shown))
    caption = "How many of its own training questions each study's models answer as they were taught, in %."
    return Table("compare-training", caption, ("arm", *analyses), (("", tuple(rows)),))


def _associations(analyses: Analyses) -> Table:
    rows = []
    for test_set, label in LABELS.items():
        found = [each["exp4"][test_set]["partial_spearman"] for each in analyses.values()]
        if any(each is not None for each in found):
            rows.append(Row(label, tuple("–" if each is None else f"{each:+.2f}" for each in found)))
    caption = "Exp-IV: partial Spearman correlation of rank consistency with accuracy, given the base's accuracy."
    return Table("compare-exp4", caption, ("test set", *analyses), (("", tuple(rows)),))


def _levels(analyses: Analyses) -> str:
    """The level of the studies' intervals."""
    levels = sorted({each["settings"]["confidence"] for each in analyses.values()})
    return " and ".join(f"{100 * level:g} %" for level in levels) + " intervals"


def _has_mean(analyses: Analyses) -> bool:
    """Whether the studies are of different models, which can be taken as a sample, and alike in their level."""
    models = {each["study"]["model"] for each in analyses.values()}
    return len(models) == len(analyses) and len({each["settings"]["confidence"] for each in analyses.values()}) == 1


def _columns(analyses: Analyses) -> tuple[str, ...]:
    return (*analyses, MEAN) if _has_mean(analyses) else tuple(analyses)


def _row(
    analyses: Analyses, label: str, cells: Sequence[Mapping[str, Any] | None], kind: str, strong: frozenset[int]
) -> Row:
    """A line of estimates, a study each, and their mean."""
    shown = ["–" if cell is None else estimate(cell) for cell in cells]
    if _has_mean(analyses):
        mean = as_sample([cell[kind] for cell in cells if cell is not None])
        shown.append(
            "–" if mean is None else _mean(mean, kind, next(iter(analyses.values()))["settings"]["confidence"])
        )
    return Row(label, tuple(shown), strong=strong)


def _mean(mean: Estimate, kind: str, confidence: float) -> str:
    interval = share_interval(mean, confidence) if kind == "accuracy" else mean.interval(confidence)
    return estimate({kind: mean.value, "interval": interval})


def render(analyses: Analyses, tables: Sequence[Table]) -> dict[str, str]:
    """The comparison as a page and as Markdown, by file name."""
    facts = {
        label: f"study {each['study']['name']}, base model {each['study']['model']}, "
        f"{len(each['study']['domains'])} domains, {len(each['study']['seeds'])} seeds"
        + (f", {len(each['missing'])} models without scores" if each["missing"] else "")
        for label, each in analyses.items()
    }
    context = {"facts": facts, "tables": tables, "mean": MEAN if _has_mean(analyses) else ""}
    found = environment()
    return {name: found.get_template(name).render(context) for name in ("compare.md", "compare.html")}
