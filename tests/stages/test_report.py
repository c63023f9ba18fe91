"""The report of a made-up study: right numbers, everything escaped, the same bytes twice, partial studies too."""

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_up_study import all_cells, make_config, write_study
from rich.console import Console

from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, Cell
from jaxift.errors import UserError
from jaxift.reporting import summary
from jaxift.reporting.terminal import exp1_table
from jaxift.stages.analyze import analyze
from jaxift.stages.report import report

FIGURES = ["exp1", "differences", "exp4", "letters"]
TABLES = [
    "exp1", "differences", "tests", "domains", "domain-differences", "training", "exp4", "consistency", "knowledge",
    "behaviour", "arms", "styles", "letters",
]  # fmt: skip


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    config = make_config(prompt="world")
    run = RunDirectory.create(str(tmp_path_factory.mktemp("run")))
    write_study(run, config, all_cells(config))
    analyze(config, run, all_cells(config))
    files = report(config, run, all_cells(config))
    assert sorted(files) == sorted(
        [f"report/{name}.{ending}" for name in FIGURES for ending in ("svg", "png")]
        + [f"report/{name}.{ending}" for name in TABLES for ending in ("csv", "md", "tex")]
        + ["report.md", "report.html"]
    )
    return config, run


class Page(HTMLParser):
    """Collects what a browser would make of a page: tags, attributes, text, unclosed elements."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID and tag != "input":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_well_formed_and_self_contained(reported):
    text = reported[1].read_text("report.html")
    page = Page(text)
    assert not page.open
    addresses = [value for _, name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert "@import" not in text
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_page_shows_names_as_text(reported):
    _, run = reported
    html, markdown = run.read_text("report.html"), run.read_text("report.md")
    assert "models/<script>alert(1)</script>|`x`" in "".join(Page(html).text)
    assert Page(html).tags.count("script") == 2  # the questions, and what browses them
    assert "<script>alert" not in html
    assert "<script" not in markdown
    assert "models/&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`x\\`" in markdown


def test_tables_and_figures_can_be_read_aloud(reported):
    page = Page(reported[1].read_text("report.html"))
    assert page.tags.count("caption") == page.tags.count("table") >= 6
    labels = [value for tag, name, value in page.attributes if tag == "div" and name == "aria-label"]
    assert sum("HAR − INC +" in label for label in labels) == 3
    assert sum("base, zero-shot" in label for label in labels) == 6  # accuracies, and letters
    assert sum("rank consistency and accuracy of 12 tuned cells" in label for label in labels) == 3


def test_tables_hold_the_analysis(reported):
    _, run = reported
    markdown, analysis = run.read_text("report.md"), run.read_json("analysis.json")
    for test_set in ("homo", "id", "ood"):
        entry = analysis["exp1"]["accuracy"]["SELF"][test_set]
        low, high = entry["interval"]
        assert f"{100 * entry['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in markdown
    assert "| in the paper | +11.27 | +14.58 | +14.57 |" in markdown
    assert "HAR 20, INC 20, SELF 20" in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_figures_follow_the_page_and_carry_no_date(reported):
    for name in FIGURES:
        assert reported[1].path(f"report/{name}.png").read_bytes()[:4] == b"\x89PNG"
        text = reported[1].read_text(f"report/{name}.svg")
        ElementTree.fromstring(text)
        assert "currentColor" in text
        assert "prefers-color-scheme" in text
        assert "#010203" not in text
        assert "<metadata" not in text


def test_same_input_gives_same_bytes(reported):
    config, run = reported
    files = report(config, run, all_cells(config))
    before = [run.path(name).read_bytes() for name in files]
    assert report(config, run, all_cells(config)) == files
    assert [run.path(name).read_bytes() for name in files] == before


def test_only_the_world_has_the_note(reported, tmp_path):
    assert summary.WORLD_NOTE in reported[1].read_text("report.md")
    config = make_config(domains=("medicine",), seeds=(0,))
    run = RunDirectory.create(str(tmp_path))
    write_study(run, config, all_cells(config))
    analyze(config, run, all_cells(config))
    report(config, run, all_cells(config))
    assert "positive control" not in run.read_text("report.md")
    assert "one seed says nothing" in run.read_text("report.md")


def test_partial_study_says_what_is_missing(tmp_path):
    config = make_config()
    run = RunDirectory.create(str(tmp_path))
    cells = [Cell("medicine", BASE), Cell("medicine", "INC", 1)]
    write_study(run, config, cells)
    analyze(config, run, cells)
    report(config, run, cells)
    markdown = run.read_text("report.md")
    assert "No two arms have scores to compare yet" in markdown
    assert "12 of the study's models have no scores yet" in markdown
    assert "history-SELF-s1" in markdown
    assert not Page(run.read_text("report.html")).open


def test_probe_alone_is_reported(tmp_path):
    config = make_config()
    run = RunDirectory.create(str(tmp_path))
    write_study(run, config, [])
    analyze(config, run, [])
    report(config, run, [])
    assert "base, 5-shot" in run.read_text("report.md")
    assert not Page(run.read_text("report.html")).open


def test_unanalysed_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage that writes it first"):
        report(make_config(), RunDirectory.create(str(tmp_path)), [])


def test_terminal_table_fits_80_columns(reported):
    console = Console(width=80, file=io.StringIO())
    console.print(exp1_table(reported[1].read_json("analysis.json")))
    lines = console.file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "…" not in console.file.getvalue()
    order = [
        label
        for line in lines
        for label in ("base, 5-shot", "base, zero-shot", "HAR ", "INC ", "SELF ")
        if label in line
    ]
    assert order[:5] == ["base, 5-shot", "base, zero-shot", "HAR ", "INC ", "SELF "]
