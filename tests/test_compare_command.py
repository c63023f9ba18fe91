"""`jaxift compare`: studies side by side, with their means, and what is refused."""

import numpy as np
import pytest
from made_up_study import all_cells, make_config, write_study

from jaxift.artifacts import RunDirectory
from jaxift.cli import main
from jaxift.config import dump_study
from jaxift.stages.analyze import analyze


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three studies: of two models, and one of other arms."""
    found = []
    arms = ("HAR", "INC", "SELF")
    for name, model, mine, seeds in (
        ("one", "org/first<b>", arms, (0, 1)),
        ("two", "org/second", arms, (0, 1)),
        ("more", "org/third", (*arms, "REFUSAL"), (3,)),
    ):
        config = make_config(model={"path": model}, build={"arms": mine}, seeds=seeds, name=name)
        run = RunDirectory.create(str(tmp_path_factory.mktemp("runs") / name))
        run.write_text("study.yaml", dump_study(config))
        write_study(run, config, all_cells(config))
        analyze(config, run, all_cells(config))
        found.append(run)
    return found


def test_all_studies_stand_side_by_side(runs, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["compare", *(str(run.root) for run in runs), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("first<b>", "second", "third", "mean", "in the paper"))
    names = {path.name for path in out.iterdir()}
    tables = ("compare-accuracy", "compare-differences", "compare-training", "compare-exp4")
    assert names == {"compare.html", "compare.md", *(f"{t}.{e}" for t in tables for e in ("csv", "md", "tex"))}
    page = (out / "compare.html").read_text()
    assert "first&lt;b&gt;" in page
    assert "<b>" not in page
    analyses = [run.read_json("analysis.json") for run in runs]
    values = [each["exp1"]["differences"]["HAR-INC"]["ood"]["difference"] for each in analyses]
    shown = (out / "compare-differences.csv").read_text()
    line = next(line for line in shown.splitlines() if line.startswith("HAR − INC,OOD"))
    for value in (*values, np.mean(values)):
        assert f"{100 * value:+.1f} [" in line
    assert line.endswith("+14.6")
    refusal = next(line for line in (out / "compare-accuracy.csv").read_text().splitlines() if "HOMO,REFUSAL" in line)
    assert refusal.split(",")[2:4] == ["–", "–"]


def test_studies_of_one_model_are_called_by_their_names(runs, capsys, tmp_path):
    copy = RunDirectory.create(str(tmp_path / "copy"))
    analysis = runs[0].read_json("analysis.json")
    analysis["study"]["name"] = "another"
    copy.write_json("analysis.json", analysis)
    copy.write_text("study.yaml", "")
    assert main(["compare", str(runs[0].root), str(copy.root)]) == 0
    assert "another" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(runs, capsys, tmp_path):
    one = str(runs[0].root)
    old = RunDirectory.create(str(tmp_path / "old"))
    old.write_text("study.yaml", "")
    old.write_json("analysis.json", {"study": {}, "exp1": {}})
    for arguments, message in (
        ([one], "at least two RUNs"), ([one, one], "stands twice"), ([one, str(tmp_path)], "holds no study.yaml"),
        ([one, str(old.root)], "of an older version"),
    ):  # fmt: skip
        assert main(["compare", *arguments]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
