"""Writes what came out for people: `report.md`, `report.html` (one self-contained file) and the figures as SVG.

Everything is recomputed from `analysis.json` and the arms' manifests; the same input gives the same bytes.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from jaxift.analysis.exp1 import FEW_SHOT
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, Cell, StudyConfig
from jaxift.reporting import summary, tables

ANALYSIS = "analysis.json"
TEMPLATES = Path(__file__).parents[1] / "reporting" / "templates"
INK = "#010203"  # stands for the page's text colour until the SVG is written
FONT = "DejaVu Sans"  # ships with matplotlib, so text is measured alike everywhere
COLOURS = {"HAR": "#2f8f83", "INC": "#d0643b", "SELF": "#8b6fc6"}  # readable on white and on near-black
MARKERS = {"HAR": "o", "INC": "s", "SELF": "D"}
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
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)
ADAPTIVE = "<style>svg{color:#1f2328}@media (prefers-color-scheme:dark){svg{color:#e6e9ed}}</style>"


def report(config: StudyConfig, run: RunDirectory, cells: Sequence[Cell]) -> list[str]:
    """Writes the report of an analysed study, complete or not; returns the files written.

    Raises UserError where `analysis.json` is missing or damaged.
    """
    analysis = run.read_json(ANALYSIS)
    context = {
        "study": analysis["study"],
        "answer": summary.answer(analysis),
        "note": summary.WORLD_NOTE if config.probe.prompt == "world" else "",
        "tables": _tables(analysis, run, cells),
        "limits": summary.limits(analysis),
        "missing": analysis["missing"],
        "figures": _figures(analysis),
    }
    files = []
    for figure in context["figures"]:
        whole = _svg(figure["draw"], list(tables.LABELS), figure["name"], len(figure["rows"]))
        files.append(f"report/{figure['name']}.svg")
        run.write_text(files[-1], whole.replace(">", f">{ADAPTIVE}", 1) + "\n")
    environment = _environment()
    for name in ("report.md", "report.html"):
        run.write_text(name, environment.get_template(name).render(context))
        files.append(name)
    return files


def exp1_table(analysis: Mapping[str, Any]) -> RichTable:
    """The Exp-I table for the terminal: accuracy of the base and of every arm, then the differences."""
    level = f"{100 * analysis['settings']['confidence']:g} %"
    title = f"Exp-I: accuracy in %, differences in points, {level} intervals"
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for label in tables.LABELS.values():
        table.add_column(label, justify="right", no_wrap=True)
    for rows in (tables.accuracy_rows(analysis), tables.difference_rows(analysis)):
        for row in rows:
            style = "dim" if row.muted else ""
            table.add_row(Text(row.label), *(Text(value) for value in row.values), style=style)
        table.add_section()
    return table


def _tables(analysis: Mapping[str, Any], run: RunDirectory, cells: Sequence[Cell]) -> list[tables.Table]:
    """All tables of the report, in reading order; a table without rows is left out."""
    units = dict.fromkeys((cell.domain, cell.seed) for cell in cells if cell.seed is not None)
    manifests = {(domain, seed): run.manifest(f"arms/{domain}/s{seed}") for domain, seed in units}
    found = {unit: manifest for unit, manifest in manifests.items() if manifest is not None}
    shown = [*tables.exp1_tables(analysis), tables.mixture_table(analysis)]
    shown += [tables.consistency_table(analysis), tables.exp4_table(analysis)]
    return [table for table in (*shown, *tables.arms_tables(found)) if any(rows for _, rows in table.groups)]


def _environment() -> Environment:
    """The templates' environment: HTML is escaped as a whole, Markdown by the filter `md`; unknown names are errors."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    return environment


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too: no markup, no HTML, no link, no second line."""
    text = re.sub(r"([\\`*_|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return text.replace("](", "]\\(")


def _figures(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures' drawing functions, captions and one inline panel a test set."""
    exp1 = analysis["exp1"]
    figures = [
        {
            "name": "exp1",
            "draw": lambda axes, test_set: draw_accuracy(axes, analysis, test_set),
            "rows": tables.accuracy_rows(analysis),
            "caption": "Accuracy after tuning, mean over domains with its interval; small marks are single domains. "
            "Vertical lines: the base model few-shot (dotted) and zero-shot (dashed).",
        }
    ]
    if exp1["differences"]:
        figures.append(
            {
                "name": "differences",
                "draw": lambda axes, test_set: draw_differences(axes, analysis, test_set),
                "rows": tables.difference_rows(analysis),
                "caption": "Paired differences between arms with their intervals. Hollow diamonds: the paper's means, "
                "of other models.",
            }
        )
    for figure in figures:
        figure["panels"] = [_panel(figure, number) for number in range(len(tables.LABELS))]
    return figures


def _panel(figure: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One test set of a figure for the page: the drawing, and the same in words."""
    test_set, label = list(tables.LABELS.items())[number]
    words = "; ".join(f"{row.label} {row.values[number]}" for row in figure["rows"])
    drawing = _svg(figure["draw"], [test_set], f"{figure['name']}-{test_set}", len(figure["rows"]))
    return {"label": f"{label}: {words}", "svg": Markup(drawing.replace("<svg ", '<svg aria-hidden="true" ', 1))}


def draw_accuracy(axes: Axes, analysis: Mapping[str, Any], test_set: str) -> None:
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
    _name(axes, [tables.arm_label(analysis, arm) for arm in arms], tables.LABELS[test_set], "accuracy, %")


def _kind(arm: str) -> str:
    """What an arm varies or mixes: HAR of HAR+matched."""
    return re.split("[@+]", arm)[0]


def draw_differences(axes: Axes, analysis: Mapping[str, Any], test_set: str) -> None:
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
    _name(axes, [tables.contrast_label(name) for name in names], tables.LABELS[test_set], "difference, points")


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


def _svg(draw: Callable[[Axes, str], None], test_sets: Sequence[str], name: str, rows: int) -> str:
    """A figure with a panel a test set as an SVG element that takes its text colour from where it stands.

    Ids are prefixed by the figure's name, so that several may stand in one page.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * len(test_sets), max(2.7, 0.9 + 0.26 * rows)), layout="constrained")
        panels = figure.subplots(1, len(test_sets), sharex=True, sharey=True, squeeze=False)[0]
        for axes, test_set in zip(panels, test_sets, strict=True):
            draw(axes, test_set)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].rstrip()
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    return drawing.replace(INK, "currentColor").replace(f"'{FONT}'", "system-ui, sans-serif")
