"""The report's figures, drawn from `analysis.json`: one panel a test set, as SVG that follows the page, and as PNG."""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxift.analysis.exp1 import FEW_SHOT
from jaxift.config import BASE
from jaxift.reporting import tables
from jaxift.reporting.tables import LABELS, Analysis

INK = "#010203"  # stands for the page's text colour until the SVG is written
FONT = "DejaVu Sans"  # ships with matplotlib, so text is measured alike everywhere
COLOURS = {"HAR": "#2f8f83", "INC": "#d0643b", "SELF": "#8b6fc6"}  # readable on white and on near-black
MARKERS = {"HAR": "o", "INC": "s", "SELF": "D"}
DOMAINS = ("#2f8f83", "#d0643b", "#8b6fc6", "#b08a1e", "#4f86c6", "#c2558a", "#6b8e23", "#8c6d5a")
SHAPES = "osD^vPX*"
LETTERS = ("#2f8f83", "#4f86c6", "#b08a1e", "#d0643b", "#8b6fc6", "#c2558a", "#6b8e23", "#8c6d5a")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxift",
    "font.family": FONT,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)
ADAPTIVE = "<style>svg{color:#1f2328}@media (prefers-color-scheme:dark){svg{color:#e6e9ed}}</style>"
PNG_DPI = 150


@dataclasses.dataclass(frozen=True)
class FigureOf:
    """A figure: how a test set's panel is drawn, how high that is in inches, and what it says in words."""

    name: str
    section: str
    draw: Callable[[Axes, str], None]
    height: float
    caption: str
    words: Callable[[str], str]
    """What a test set's panel shows, for those who do not see it."""

    def files(self) -> tuple[str, bytes]:
        """The whole figure as an SVG file that follows the reader's colour scheme, and as a PNG file on white."""
        with matplotlib.rc_context(STYLE):
            drawing = _drawn(self, list(LABELS))
            buffer = io.BytesIO()
            drawing.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
            return as_svg(drawing, self.name).replace(">", f">{ADAPTIVE}", 1) + "\n", buffer.getvalue()

    def panels(self) -> list[tuple[str, str]]:
        """What each test set's panel says, and its SVG."""
        with matplotlib.rc_context(STYLE):
            return [
                (self.words(test_set), as_svg(_drawn(self, [test_set]), f"{self.name}-{test_set}"))
                for test_set in LABELS
            ]


def figures(analysis: Analysis) -> list[FigureOf]:
    """The figures for which the analysis has something to show, in reading order."""
    found = [
        _rows_figure(
            "exp1", "exp1", lambda axes, test_set: draw_accuracy(axes, analysis, test_set),
            tables.accuracy_rows(analysis),
            "Accuracy after tuning, mean over domains with its interval; small marks are single domains. Vertical "
            "lines: the base model few-shot (dotted) and zero-shot (dashed).",
        )
    ]  # fmt: skip
    if analysis["exp1"]["differences"]:
        found.append(
            _rows_figure(
                "differences", "exp1", lambda axes, test_set: draw_differences(axes, analysis, test_set),
                tables.difference_rows(analysis),
                "Paired differences between arms with their intervals. Hollow diamonds: the paper's means, of other "
                "models.",
            )
        )  # fmt: skip
    if tables.context_contrasts(analysis):
        [(_, rows)] = tables.context_table(analysis).groups
        caption = "Exp-II: accuracy with the knowledge before the question, minus without; with intervals."
        found.append(
            _rows_figure("exp2", "exp2", lambda axes, test_set: draw_contexts(axes, analysis, test_set), rows, caption)
        )
    shares = tables.mixtures_shown(analysis)
    if len(shares) > 1:
        [(_, rows)] = tables.mixture_table(analysis).groups
        words = _words(rows)
        found.append(
            FigureOf(
                "exp3", "exp3", lambda axes, test_set: draw_mixtures(axes, analysis, test_set), 2.7,
                "Exp-III: accuracy by the share of items trained on the base's own answer, the rest on the true one; "
                "the band is the interval. Dashed: the base, zero-shot.",
                lambda test_set: f"{LABELS[test_set]}: accuracy by share of own answers: {words(test_set)}",
            )
        )  # fmt: skip
    if analysis["exp4"]["homo"]["cells"]:
        found.append(
            FigureOf(
                "exp4", "exp4", lambda axes, test_set: draw_association(axes, analysis, test_set), 3.0,
                "Exp-IV: each tuned model's rank consistency with the base and its accuracy, by domain.",
                lambda test_set: f"{LABELS[test_set]}: {_association_words(analysis, test_set)}",
            )
        )  # fmt: skip
    if analysis["consistency"]:
        found.append(
            FigureOf(
                "letters", "confounds", lambda axes, test_set: draw_letters(axes, analysis, test_set),
                0.9 + 0.26 * len(_letter_rows(analysis, "homo")),
                "Where the answers stand among the options: the share of each letter (or place).",
                lambda test_set: f"{LABELS[test_set]}: {_letter_words(analysis, test_set)}",
            )
        )  # fmt: skip
    return found


def _rows_figure(
    name: str, section: str, draw: Callable[[Axes, str], None], rows: Sequence[tables.Row], caption: str
) -> FigureOf:
    """A figure with a line a row of a table whose columns are the test sets."""
    words = _words(rows)
    height = max(2.7, 0.9 + 0.26 * len(rows))
    return FigureOf(name, section, draw, height, caption, lambda test_set: f"{LABELS[test_set]}: {words(test_set)}")


def _words(rows: Sequence[tables.Row]) -> Callable[[str], str]:
    places = {test_set: place for place, test_set in enumerate(LABELS)}
    return lambda test_set: "; ".join(f"{row.label} {row.values[places[test_set]]}" for row in rows)


def draw_accuracy(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws every arm's accuracy on one test set: mean, interval, and single domains below it."""
    accuracy = analysis["exp1"]["accuracy"]
    arms = tables.arms_shown(analysis, accuracy)
    for arm, line in ((FEW_SHOT, ":"), (BASE, "--")):
        if arm in accuracy:
            axes.axvline(100 * accuracy[arm][test_set]["accuracy"], color=INK, alpha=0.45, lw=0.8, ls=line)
    for place, arm in enumerate(arms):
        entry, colour, marker = accuracy[arm][test_set], COLOURS.get(_kind(arm), INK), MARKERS.get(_kind(arm), "o")
        singles = [100 * domain["accuracy"] for domain in entry["by_domain"].values()]
        axes.plot(singles, [place + 0.26] * len(singles), marker, ms=2.5, color=colour, alpha=0.5, ls="")
        _interval(axes, place, entry["accuracy"], entry["interval"], colour, marker)
        top = (100 * entry["accuracy"], place)
        axes.annotate(
            tables.percent(entry["accuracy"]), top, (0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    drawn = [entry for sets in accuracy.values() for entry in sets.values()]
    singles = [domain["accuracy"] for entry in drawn for domain in entry["by_domain"].values()]
    _span(axes, [*singles, *(bound for entry in drawn for bound in entry["interval"])])
    _name(axes, [tables.arm_label(analysis, arm) for arm in arms], LABELS[test_set], "accuracy, %")


def _kind(arm: str) -> str:
    """What an arm varies or mixes: HAR of HAR+matched."""
    return re.split("[@+]", arm)[0]


def draw_differences(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws the differences between arms on one test set, and the paper's below them."""
    differences = analysis["exp1"]["differences"]
    names = tables.contrasts_shown(analysis)
    axes.axvline(0, color=INK, alpha=0.6, lw=0.8)
    for place, name in enumerate(names):
        entry = differences[name][test_set]
        _interval(axes, place, entry["difference"], entry["interval"], INK, "o")
        if entry["paper"] is not None:
            axes.plot(100 * entry["paper"], place + 0.3, "D", ms=5, mfc="none", mec=INK, alpha=0.6)
    drawn = [entry for sets in differences.values() for entry in sets.values()]
    reported = [entry["paper"] for entry in drawn if entry["paper"] is not None]
    _span(axes, [0.0, *reported, *(bound for entry in drawn for bound in entry["interval"])])
    _name(axes, [tables.contrast_label(name) for name in names], LABELS[test_set], "difference, points")


def _interval(axes: Axes, place: int, value: float, interval: Sequence[float], colour: str, marker: str) -> None:
    """A point with its interval; values are shares of 1."""
    low, high = (100 * bound for bound in interval)
    axes.plot([low, high], [place, place], color=colour, lw=1.8, solid_capstyle="butt")
    axes.plot(100 * value, place, marker, ms=6, color=colour)


def _span(axes: Axes, shares: Sequence[float]) -> None:
    """Lets the axis hold these shares of 1; the panels of a figure get those of all test sets, to compare by eye."""
    low, high = 100 * min(shares), 100 * max(shares)
    margin = 0.06 * (high - low) + 0.5
    axes.set_xlim(low - margin, high + margin)


def _name(axes: Axes, labels: Sequence[str], title: str, unit: str) -> None:
    """Names the rows, the first on top, the panel and the axis."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=INK, alpha=0.12, lw=0.6)
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)


def draw_contexts(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws what contexts change, as bars from zero."""
    differences, names = analysis["exp1"]["differences"], tables.context_contrasts(analysis)
    axes.axvline(0, color=INK, alpha=0.6, lw=0.8)
    for place, name in enumerate(names):
        entry, colour = differences[name][test_set], COLOURS.get(_kind(name), INK)
        axes.barh(place, 100 * entry["difference"], height=0.55, color=colour, alpha=0.75)
        low, high = (100 * bound for bound in entry["interval"])
        axes.plot([low, high], [place, place], color=INK, lw=1.2)
    _span(axes, [0.0, *(bound for name in names for set_ in LABELS for bound in differences[name][set_]["interval"])])
    _name(axes, [tables.contrast_label(name) for name in names], LABELS[test_set], "difference, points")


def draw_mixtures(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws accuracy by the share of own answers, with its band."""
    accuracy, shares = analysis["exp1"]["accuracy"], tables.mixtures_shown(analysis)
    x = [100 * share for share, _ in shares]
    entries = [accuracy[arm][test_set] for _, arm in shares]
    low, high = ([100 * entry["interval"][end] for entry in entries] for end in (0, 1))
    axes.fill_between(x, low, high, color=COLOURS["SELF"], alpha=0.2, lw=0)
    axes.plot(x, [100 * entry["accuracy"] for entry in entries], "o-", ms=4, lw=1.4, color=COLOURS["SELF"])
    if BASE in accuracy:
        axes.axhline(100 * accuracy[BASE][test_set]["accuracy"], color=INK, alpha=0.45, lw=0.8, ls="--")
    axes.grid(color=INK, alpha=0.12, lw=0.6)
    axes.set_title(LABELS[test_set], loc="left")
    axes.set_xlabel("own answers, %")
    axes.set_ylabel("accuracy, %")


def draw_association(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws a point a tuned cell, and what their correlation is."""
    counted = analysis["exp3"] or analysis["study"]["arms"]
    cells = [cell for cell in analysis["cells"] if cell["arm"] in counted]
    for number, domain in enumerate(analysis["study"]["domains"]):
        points = [cell["sets"][test_set] for cell in cells if cell["domain"] == domain]
        colour, shape = DOMAINS[number % len(DOMAINS)], SHAPES[number % len(SHAPES)]
        x = [point["rank_consistency"] for point in points]
        y = [100 * point["accuracy"] for point in points]
        axes.plot(x, y, shape, ms=4, alpha=0.75, color=colour, label=domain, ls="")
    axes.grid(color=INK, alpha=0.12, lw=0.6)
    value = analysis["exp4"][test_set]["partial_spearman"]
    title = LABELS[test_set] if value is None else f"{LABELS[test_set]}: partial ρ = {value:+.2f}"
    axes.set_title(title, loc="left")
    axes.set_xlabel("rank consistency with the base")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=7, handletextpad=0.1, borderpad=0.2)


def _association_words(analysis: Analysis, test_set: str) -> str:
    entry = analysis["exp4"][test_set]
    value = entry["partial_spearman"]
    told = f"no correlation, {entry['reason']}" if value is None else f"partial Spearman correlation {value:+.2f}"
    return f"rank consistency and accuracy of {entry['cells']} tuned cells; {told}"


def _letter_rows(analysis: Analysis, test_set: str) -> list[tuple[str, list[float]]]:
    """Each arm's shares of letters, over all its cells, the few-shot base's first."""
    rows = [(tables.arm_label(analysis, FEW_SHOT), [sets[test_set]["letters"] for sets in analysis["probe"].values()])]
    for arm in tables.arms_shown(analysis, analysis["consistency"]):
        counts = [cell["sets"][test_set]["letters"] for cell in analysis["cells"] if cell["arm"] == arm]
        rows.append((tables.arm_label(analysis, arm), counts))
    return [(label, _shares(counts)) for label, counts in rows]


def _shares(counts: Sequence[Sequence[int]]) -> list[float]:
    width = max(map(len, counts))
    sums = [sum(each[place] for each in counts if place < len(each)) for place in range(width)]
    return [each / max(sum(sums), 1) for each in sums]


def draw_letters(axes: Axes, analysis: Analysis, test_set: str) -> None:
    """Draws each arm's shares of letters as one stacked bar."""
    rows = _letter_rows(analysis, test_set)
    for place, (_, shares) in enumerate(rows):
        left = 0.0
        for number, share in enumerate(shares):
            axes.barh(place, 100 * share, left=left, height=0.72, color=LETTERS[number % len(LETTERS)], alpha=0.85)
            if share > 0.08:
                axes.text(
                    left + 50 * share, place, chr(65 + number), ha="center", va="center", color="#ffffff", fontsize=7
                )
            left += 100 * share
    axes.set_xlim(0, 100)
    _name(axes, [label for label, _ in rows], LABELS[test_set], "answers, %")


def _letter_words(analysis: Analysis, test_set: str) -> str:
    return "; ".join(
        label + " " + ", ".join(f"{chr(65 + number)} {tables.percent(share)}" for number, share in enumerate(shares))
        for label, shares in _letter_rows(analysis, test_set)
    )


def _drawn(figure: FigureOf, test_sets: Sequence[str]) -> Figure:
    """A figure with a panel a test set, which share their axes."""
    drawing = Figure(figsize=(3.7 * len(test_sets), figure.height), layout="constrained")
    panels = drawing.subplots(1, len(test_sets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, test_set in zip(panels, test_sets, strict=True):
        figure.draw(axes, test_set)
    return drawing


def as_svg(drawing: Figure, prefix: str) -> str:
    """A drawing as an SVG element that takes its text colour from where it stands.

    Ids are prefixed, so that several may stand in one page.
    """
    buffer = io.StringIO()
    drawing.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace(INK, "currentColor").replace(f"'{FONT}'", "system-ui, sans-serif")
