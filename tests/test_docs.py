"""What the documents say about the repository is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(path: Path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert "@@" not in text


def test_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = {
        path.name for path in (ROOT / "jaxift").iterdir() if path.suffix == ".py" and not path.stem.startswith("__")
    }
    parts |= {f"{path.parent.name}/" for path in (ROOT / "jaxift").glob("*/__init__.py")}
    assert [part for part in sorted(parts) if f"jaxift/{part}" not in readme] == []


def test_the_acceptance_page_names_tests_that_exist():
    text = (ROOT / "docs" / "acceptance.md").read_text(encoding="utf-8")
    named = re.findall(r"tests/[\w/.]+", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
