"""Tables as files that others read: CSV, Markdown, and LaTeX with booktabs."""

import csv
import html
import io
import re

from jaxift.reporting.tables import Row, Table

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": "$-$", "–": "--", "→": r"$\rightarrow$", "‖": r"$\|$", "τ": r"$\tau$",
}  # fmt: skip


def as_csv(table: Table) -> str:
    """A table as CSV, its groups as a first column where it has them."""
    grouped = any(heading for heading, _ in table.groups)
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write([_plain(title) for title in (["", *table.header] if grouped else table.header)])
    for heading, rows in table.groups:
        for row in rows:
            line = [row.label, *row.values]
            write([_plain(value) for value in ([heading, *line] if grouped else line)])
    return out.getvalue()


def _plain(value: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    number = re.fullmatch(r"[+-]?[\d.]+( \[[-+.,\d ]+\])?( \(.*\))?", value)
    return f"'{value}" if value[:1] in tuple("=@+-\t\r") and not number else value


def as_latex(table: Table) -> str:
    """A table as a LaTeX `table` of booktabs' rules; needs `\\usepackage{booktabs}`."""
    width = len(table.header)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.header)) + r" \\",
    ]
    for heading, rows in table.groups:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape_latex(heading)}}}}} \\")
        lines += [_latex_row(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_row(row: Row) -> str:
    values = [
        rf"\textbf{{{escape_latex(value)}}}" if place in row.strong else escape_latex(value)
        for place, value in enumerate(row.values)
    ]
    return " & ".join([escape_latex(row.label), *values]) + r" \\"


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def as_markdown(table: Table) -> str:
    """A table as Markdown, its caption above it."""
    lines = [f"**{escape_markdown(table.caption)}**", ""]
    lines.append("| " + " | ".join(map(escape_markdown, table.header)) + " |")
    lines.append("|---|" + "---:|" * (len(table.header) - 1))
    for heading, rows in table.groups:
        if heading:
            lines.append(f"| **{escape_markdown(heading)}** |" + " |" * (len(table.header) - 1))
        for row in rows:
            values = [
                f"**{escape_markdown(value)}**" if place in row.strong else escape_markdown(value)
                for place, value in enumerate(row.values)
            ]
            lines.append("| " + " | ".join([escape_markdown(row.label), *values]) + " |")
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too: no markup, no HTML, no link, no second line."""
    text = re.sub(r"([\\`*_|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return text.replace("](", "]\\(").replace("://", ":&#47;/").replace("www.", "www&#46;")


FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
"""How tables are written, by the ending of their files."""
