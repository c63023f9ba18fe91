import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxift.artifacts import RunDirectory
from jaxift.config import StudyConfig
from jaxift.errors import UserError
from jaxift.stages.build import build, draw, qualifying


def config(**parts) -> StudyConfig:
    source = [{"path": "q.jsonl"}]
    domain = {"name": "law", "train": source, "dev": source, "homo": source, "id": source, "ood": source}
    return StudyConfig.model_validate({"name": "t", "model": {"path": "m"}, "domains": [domain], **parts})


def probed(generator: np.random.Generator, count: int) -> list[dict]:
    rows = []
    for index in range(count):
        k = int(generator.integers(2, 6))
        probs = generator.dirichlet(np.full(k, 0.3))
        pred, gold = int(probs.argmax()), int(generator.integers(k))
        rows.append(
            {
                "id": f"q{index}", "subject": "s", "question": f"Q {index} {{?}}",
                "options": [f"o{i}" for i in range(k)],
                "gold": gold, "scores": np.log(probs + 1e-9).tolist(), "probs": probs.tolist(), "pred": pred,
                "pred_prob": float(probs[pred]), "gold_prob": float(probs[gold]), "correct": pred == gold,
            }
        )  # fmt: skip
    return rows


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory.create(str(tmp_path / "run"))
    run.write_rows("probe/law/train.parquet", probed(np.random.default_rng(0), 300))
    return run


def arms(run: RunDirectory, study: StudyConfig, seed: int = 0) -> dict[str, list[dict]]:
    build(study, run, study.domains[0], seed)
    return {arm: run.read_jsonl(f"arms/law/s{seed}/{arm}.jsonl") for arm in study.build.arms}


def test_arms_are_of_equal_size_and_hold_what_their_names_say(run):
    made = arms(run, config())
    rows = {row["id"]: row for row in run.read_rows("probe/law/train.parquet")}
    har, inc = qualifying(list(rows.values()), 0.5)
    assert {len(items) for items in made.values()} == {min(len(har), len(inc))}
    assert all(item["pred_prob"] > 0.5 for items in made.values() for item in items)
    assert all(item["answer"] == item["gold"] == item["pred"] for item in made["HAR"])
    assert all(item["answer"] == item["gold"] != item["pred"] for item in made["INC"])
    assert all(item["answer"] == item["pred"] != item["gold"] for item in made["SELF"])


def test_self_has_the_items_of_inc_in_the_same_order(run):
    made = arms(run, config())
    assert [item["id"] for item in made["SELF"]] == [item["id"] for item in made["INC"]]
    assert [item["prompt"] for item in made["SELF"]] == [item["prompt"] for item in made["INC"]]


@pytest.mark.parametrize(
    ("form", "expected"), [("letter", "B"), ("letter_and_option", "B. beta")], ids=["letter", "letter_and_option"]
)
def test_the_response_has_the_configured_form(tmp_path, form, expected):
    run = RunDirectory.create(str(tmp_path))
    row = {
        "id": "1", "subject": "", "question": "Which?", "options": ["alpha", "beta"], "gold": 1, "pred": 1,
        "pred_prob": 0.9, "correct": True, "probs": [0.1, 0.9],
    }  # fmt: skip
    wrong = {**row, "id": "2", "pred": 0, "correct": False, "probs": [0.9, 0.1]}
    run.write_rows("probe/law/train.parquet", [row, wrong])
    made = arms(run, config(build={"response_format": form}))
    assert made["HAR"][0]["response"] == expected
    assert made["HAR"][0]["prompt"].endswith("A. alpha\nB. beta\nAnswer: ASSISTANT: ")


def test_another_seed_draws_other_items_but_the_same_number(run):
    study = config(build={"cap": 10})
    first, again, other = arms(run, study, 0), arms(run, study, 0), arms(run, study, 1)
    assert first == again
    assert {len(items) for items in [*first.values(), *other.values()]} == {10}
    assert [item["id"] for item in first["INC"]] != [item["id"] for item in other["INC"]]


def test_building_twice_gives_the_same_bytes(run):
    study = config()
    files, facts = build(study, run, study.domains[0], 3)
    before = [(run.root / name).read_bytes() for name in files]
    assert build(study, run, study.domains[0], 3) == (files, facts)
    assert [(run.root / name).read_bytes() for name in files] == before


def test_facts_count_items_and_letters(run):
    study = config()
    files, facts = build(study, run, study.domains[0], 0)
    for name in files:
        arm = facts["arms"][name.rsplit("/", 1)[1].removesuffix(".jsonl")]
        items = [json.loads(line) for line in (run.root / name).read_text().splitlines()]
        assert arm["items"] == len(items) == sum(arm["letters"].values())


def test_too_few_items_are_refused_with_the_numbers_and_nothing_is_written(run):
    with pytest.raises(UserError, match=r"domain law: only \d+ harmonious and \d+ incompatible .* 1000 needed"):
        arms(run, config(build={"minimum": 1000}))
    assert not run.exists("arms")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 60))
def test_a_draw_is_a_sample_without_repetition_that_grows_with_its_size(seed: int, size: int, count: int):
    rows = [{"id": str(index)} for index in range(count)]
    drawn = [row["id"] for row in draw(rows, size, seed, "HAR")]
    assert len(drawn) == len(set(drawn)) == min(size, count)
    assert [row["id"] for row in draw(rows, size + 1, seed, "HAR")][: len(drawn)] == drawn
