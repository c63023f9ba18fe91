"""Tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from jaxift.reporting.tables import LABELS, Table, accuracy_rows, difference_rows


def exp1_table(analysis: Mapping[str, Any]) -> RichTable:
    """The Exp-I table: accuracy of the base and of every arm, then the differences."""
    level = f"{100 * analysis['settings']['confidence']:g} %"
    title = f"Exp-I: accuracy in %, differences in points, {level} intervals"
    groups = (("", accuracy_rows(analysis)), ("", difference_rows(analysis)))
    return as_rich(Table("exp1", title, ("", *LABELS.values()), groups))


def as_rich(table: Table) -> RichTable:
    """Any table, strong values in bold and muted lines dim."""
    shown = RichTable(title=table.caption, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, title in enumerate(table.header):
        shown.add_column(Text(title), justify="right" if place else "left", no_wrap=True)
    for heading, rows in table.groups:
        if heading:
            shown.add_row(Text(heading, "bold"))
        for row in rows:
            values = (Text(value, "bold" if place in row.strong else "") for place, value in enumerate(row.values))
            shown.add_row(Text(row.label), *values, style="dim" if row.muted else "")
        shown.add_section()
    return shown
