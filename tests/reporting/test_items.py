"""The browser's data: texts and answers come back as they were, whatever they hold; the page keeps its size."""

import base64
import json

import numpy as np
import pytest
from made_up_study import all_cells, make_config, write_study

from jaxift.artifacts import RunDirectory
from jaxift.reporting import items as items_module
from jaxift.reporting.items import as_script, items

NASTY = (
    "</script><script>alert(1)</script>",
    "quotes \" ' `",
    "مرحبا بالعالم",
    "漢字かな交じり文",
    "🧪👩\u200d🔬",
    "a\u2028b <!-- c",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = make_config()
    run = RunDirectory.create(str(tmp_path_factory.mktemp("run")))
    write_study(run, config, all_cells(config))
    return run


def read(found, name, model):
    """Questions, predictions and probabilities of a model, from what the page has."""
    here = found["sets"][name]
    asked = np.frombuffer(base64.b64decode(here["ask"]), "<u4")
    said = np.frombuffer(base64.b64decode(here["say"][str(model)]), np.uint8)
    questions = [found["questions"][number] for number in asked]
    ends = np.cumsum([len(options) for _, options, _, _ in questions])
    return questions, said[: len(asked)], np.split(said[len(asked) :], ends[:-1])


def test_answers_come_back_as_they_were(run):
    cells = all_cells(make_config())
    found = items(run, ["medicine", "history"], cells, 0.5)
    assert found["shown"] == found["of"] == 2 * (90 + 70 + 110)
    assert len(found["questions"]) == 2 * (90 + 70) + 110  # those out of domain are the same for both
    for number, (domain, arm, seed) in enumerate(found["models"]):
        for test_set in ("homo", "ood"):
            rows = run.read_rows(f"probe/{domain}/{test_set}.parquet")
            questions, preds, probs = read(found, f"{domain}/{test_set}", number)
            assert [each[0] for each in questions] == [row["question"] for row in rows]
            if arm != "BASE_FEW_SHOT":
                cell = f"{domain}-{arm}" + ("" if seed is None else f"-s{seed}")
                said = {row["id"]: row for row in run.read_rows(f"cells/{cell}/scores/{test_set}.parquet")}
                rows = [said[row["id"]] for row in rows]
            assert (preds & 127).tolist() == [row["pred"] for row in rows]
            assert (preds > 127).tolist() == [row["pred_prob"] > 0.5 for row in rows]
            for shown, row in zip(probs, rows, strict=True):
                assert np.abs(shown / 255 - row["probs"]).max() <= 0.5 / 255 + 1e-9


def test_script_holds_any_text():
    text = as_script({"q": NASTY})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"q": list(NASTY)}


def test_of_more_than_fits_an_even_share_is_shown(run, monkeypatch):
    monkeypatch.setattr(items_module, "LIMIT", 30_000)
    found = items(run, ["medicine", "history"], all_cells(make_config()), 0.5)
    assert 0 < found["shown"] < found["of"] == 540
    assert len(as_script(found).encode()) <= 30_000
    questions, _, _ = read(found, "medicine/homo", 0)
    rows = run.read_rows("probe/medicine/homo.parquet")
    assert (questions[0][0], questions[-1][0]) == (rows[0]["question"], rows[-1]["question"])
