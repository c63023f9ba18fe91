"""Tables as files: what stands in a cell is shown as text, and read back as it was."""

import csv
import io
import shutil
import subprocess

import pytest

from jaxift.reporting.tables import Row, Table
from jaxift.reporting.writers import as_csv, as_latex, as_markdown, escape_latex, escape_markdown

NASTY = [
    "-1+cmd",
    "a & b % $ # _ { } ~ ^ \\ < >",
    "=1+1",
    "a|b\nc",
    "+2.1 [-0.4, 4.7]",
    '"quoted", x',
    "− → τ ‖ –",
    "@SUM(A1)",
]
TABLE = Table(
    "t",
    "A caption with 5 % and a_b",
    ("name", *map(str, range(len(NASTY)))),
    (("HOMO", (Row("HAR", tuple(NASTY), strong=frozenset({4})),)), ("x & y", (Row("INC", tuple(NASTY[::-1])),))),
)


def test_csv_is_read_back_and_holds_no_formula():
    header, first, second = csv.reader(io.StringIO(as_csv(TABLE)))
    assert header == ["", *TABLE.header]
    assert first[:2] == ["HOMO", "HAR"]
    assert [value.removeprefix("'") for value in first[2:]] == NASTY
    assert [value for value in first + second if value[:1] in ("=", "@") or value.startswith("-1+")] == []
    assert first[6] == "+2.1 [-0.4, 4.7]"
    title = Table("t", "", ("=HYPERLINK(1)",), (("", ()),))
    assert as_csv(title) == "'=HYPERLINK(1)\n"


def test_markdown_rows_have_equal_columns():
    text = as_markdown(TABLE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "**+2.1 [-0.4, 4.7]**" in text


def test_markdown_is_escaped():
    assert escape_markdown("a|b\nc <b> & [x](y) *z*_") == "a\\|b c &lt;b&gt; &amp; [x]\\(y) \\*z\\*\\_"


def test_latex_is_booktabs_and_escaped():
    text = as_latex(TABLE)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{A caption with 5 \% and a\_b}"):
        assert rule in text
    assert r"\textbf{+2.1 [-0.4, 4.7]}" in text
    assert escape_latex("\\{") == r"\textbackslash{}\{"
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(NASTY)}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles(tmp_path):
    document = r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}"
    (tmp_path / "t.tex").write_text(document + as_latex(TABLE) + r"\end{document}", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
