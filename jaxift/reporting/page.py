"""The page: what stands where, and the templates that it is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from jaxift.analysis.calibration import KNOWLEDGE
from jaxift.reporting import manifest_tables, summary, tables
from jaxift.reporting.figures import FigureOf
from jaxift.reporting.items import as_script
from jaxift.reporting.tables import Analysis, Table
from jaxift.reporting.writers import as_markdown, escape_markdown

TEMPLATES = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: its figures, its tables, and those that are folded away."""

    id: str
    title: str
    drawn: tuple[FigureOf, ...] = ()
    tables: tuple[Table, ...] = ()
    details: tuple[Table, ...] = ()
    more: str = ""
    """What is folded away."""

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The figures as the page shows them."""
        return [
            {
                "name": figure.name,
                "caption": figure.caption,
                "panels": [
                    {"words": words, "svg": Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))}
                    for words, svg in figure.panels()
                ],
            }
            for figure in self.drawn
        ]


def sections(
    analysis: Analysis,
    drawn: Sequence[FigureOf],
    manifests: Mapping[tuple[str, int], Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
) -> list[Section]:
    """The parts of the page that have something to show, in reading order."""
    accuracy, *rest = tables.exp1_tables(analysis)
    differences = [table for table in rest if table.name == "differences"]
    others = [table for table in rest if table.name != "differences"]
    moved, arms = [tables.consistency_table(analysis)], manifest_tables.arms_tables(manifests)
    title = "Exp-I: which answers serve the model?"
    wanted = [
        Section("exp1", title, (), (accuracy, *differences), tuple(others), "How sure that is, and each domain alone"),
        Section("training", "Did it learn what it was taught?", (), (tables.training_table(analysis),)),
        Section("exp2", "Exp-II: the knowledge given along", (), (tables.context_table(analysis),)),
        Section("exp3", "Exp-III: is consistency everything?", (), (tables.mixture_table(analysis),)),
        Section(
            "exp4", "Exp-IV: what matters?", (), (tables.exp4_table(analysis),), tuple(moved), "How far beliefs moved"
        ),
        Section("knowledge", "By what the base knew", (), (tables.knowledge_table(analysis),)),
        Section(
            "confounds", "Confounds: letters, confidence, style", (), (tables.behaviour_table(analysis),), tuple(arms),
            "What the arms hold",
        ),
        Section("costs", "What it took", (), (manifest_tables.cost_table(costs),)),
    ]  # fmt: skip
    filled = [
        dataclasses.replace(
            section,
            drawn=tuple(figure for figure in drawn if figure.section == section.id),
            tables=_with_rows(section.tables),
            details=_with_rows(section.details),
        )
        for section in wanted
    ]
    return [section for section in filled if section.drawn or section.tables or section.details]


def _with_rows(some: Sequence[Table]) -> tuple[Table, ...]:
    return tuple(table for table in some if any(rows for _, rows in table.groups))


def render(analysis: Analysis, sections: Sequence[Section], browsed: Mapping[str, Any], world: bool) -> dict[str, str]:
    """The page, and the same in Markdown, by file name."""
    context = {
        "study": analysis["study"],
        "answer": summary.answer(analysis),
        "note": summary.WORLD_NOTE if world else "",
        "sections": sections,
        "limits": summary.limits(analysis),
        "missing": analysis["missing"],
        "items": Markup(as_script(browsed)) if browsed["shown"] else "",
        "shown": browsed["shown"],
        "of": browsed["of"],
        "knowledge": KNOWLEDGE,
    }
    found = environment()
    return {name: found.get_template(name).render(context) for name in ("report.md", "report.html")}


def environment() -> Environment:
    """The templates' environment: HTML is escaped as a whole, Markdown by the filter `md`; unknown names are errors."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"md": escape_markdown, "markdown": as_markdown}
    return found
