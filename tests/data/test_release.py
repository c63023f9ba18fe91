"""The authors' released arms: as they were, and put back by our own filter and builder."""

import json
import random
from collections import Counter

import pytest

from jaxift.artifacts import RunDirectory
from jaxift.config import StudyConfig
from jaxift.data.questions import LETTERS
from jaxift.data.release import FILES, SELF_FILE, read_imported, read_release, write_imported
from jaxift.errors import UserError
from jaxift.stages.build import build

ITEM = {
    "id": 7, "question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1, "explanation": " Since b. ",
    "probs": [0.1, 0.7, 0.1, 0.1], "pred": 1, "pred_prob": 0.7, "golden_prob": 0.7, "correct": True, "output": 1,
}  # fmt: skip
WRONG = {**ITEM, "id": 8, "answer": 0, "correct": False, "golden_prob": 0.1, "output": 0}


def write(folder, har=(ITEM,), inc=(WRONG,), own=({**WRONG, "model_exp": "I say b."},)):
    (folder / "law").mkdir(parents=True, exist_ok=True)
    for name, rows in ((FILES["HAR"], har), (FILES["INC"], inc), (SELF_FILE, own)):
        (folder / "law" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def study(data_dir, released, **settings):
    source = [{"path": "q.jsonl"}]
    domain = {"train": source, "dev": source, "homo": source, "id": source, "ood": source}
    names = sorted(path.name for path in (data_dir / released).iterdir())
    return StudyConfig.model_validate(
        {
            "name": "t", "model": {"path": "m"}, "data_dir": str(data_dir),
            "domains": [{"name": name, **domain} for name in names], "build": {"released": released, **settings},
        }
    )  # fmt: skip


def arms(tmp_path, config, domain=0, seed=0):
    run = RunDirectory.create(str(tmp_path / "run"))
    _, facts = build(config, run, config.domains[domain], seed)
    name = config.domains[domain].name
    return {arm: run.read_jsonl(f"arms/{name}/s{seed}/{arm}.jsonl") for arm in config.build.arms}, facts


def test_imported_arms_are_tuned_on_as_they_are(tmp_path):
    found = read_release(write(tmp_path / "theirs"))
    write_imported(found, tmp_path / "ours")
    assert read_imported(tmp_path / "ours", "law") == found["law"]
    config = study(tmp_path, "ours", explanations=True)
    made, facts = arms(tmp_path, config)
    assert {arm: [item["response"] for item in items] for arm, items in made.items()} == {
        "HAR": ["B. b\n\nSince b."], "INC": ["A. a\n\nSince b."], "SELF": ["B. b\n\nI say b."],
    }  # fmt: skip
    assert facts["left_out"] == {}


BROKEN = {
    "no choices": ({"har": [{k: v for k, v in ITEM.items() if k != "choices"}]}, "sample.jsonl:1: field 'choices'"),
    "three probabilities": ({"har": [{**ITEM, "probs": [0.2, 0.7, 0.1]}]}, "sample.jsonl:1: field 'probs' must hold"),
    "no distribution": ({"inc": [{**WRONG, "probs": [0.2, 0.7, 0.2, 0.2]}]}, "golden-exp.jsonl:1: field 'probs'"),
    "another prediction": ({"har": [{**ITEM, "pred": 2}]}, "field 'pred' is 2, but the largest of 'probs' is at 1"),
    "an answer too far": ({"har": [{**ITEM, "answer": 4}]}, "answer 4 is not among the 4 options"),
    "a letter for an answer": ({"har": [{**ITEM, "answer": "A"}]}, "field 'answer' is missing or of another type"),
    "no explanation": ({"har": [{k: v for k, v in ITEM.items() if k != "explanation"}]}, "field 'explanation' is miss"),
    "a true answer": ({"har": [{**ITEM, "answer": True}]}, "field 'answer' is missing or of another type"),
    "choices are a text": ({"har": [{**ITEM, "choices": "ab"}]}, "field 'choices' is missing or of another type"),
    "null probabilities": ({"har": [{**ITEM, "probs": None}]}, "field 'probs' is missing or of another type"),
    "explanation is a list": ({"inc": [{**WRONG, "explanation": ["e"]}]}, "field 'explanation' is missing or of"),
    "a lone surrogate": ({"har": [{**ITEM, "explanation": "\ud83d"}]}, "surrogates not allowed"),
    "a wrong item in HAR": ({"har": [WRONG]}, "the model is wrong here; it belongs to the other file"),
    "a right item in INC": ({"inc": [ITEM]}, "the model is right here; it belongs to the other file"),
    "SELF of other items": ({"own": [{**ITEM, "model_exp": "x"}]}, "its items are not those of"),
    "SELF without text": ({"own": [WRONG]}, "field 'model_exp' (a text) is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_releases_are_refused(tmp_path, name):
    changes, expected = BROKEN[name]
    with pytest.raises(UserError) as caught:
        read_release(write(tmp_path, **changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("column", "value"), [("pred_prob", ...), ("options", "ab"), ("correct", 1)])
def test_damaged_imports_are_refused(tmp_path, column, value):
    write_imported(read_release(write(tmp_path / "theirs")), tmp_path / "ours")
    path = tmp_path / "ours" / "law" / "INC.jsonl"
    row = json.loads(path.read_text()) | {column: value}
    path.write_text(json.dumps({name: value for name, value in row.items() if value is not ...}))
    with pytest.raises(UserError, match=f"INC.jsonl:1: field '{column}' is missing or of another type"):
        read_imported(tmp_path / "ours", "law")


def test_a_folder_without_arms_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no folder with the files"):
        read_release(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_release(tmp_path / "gone")
    with pytest.raises(UserError, match="make it with `jaxift import-release`"):
        read_imported(tmp_path, "law")


def test_whole_numbers_are_probabilities_too(tmp_path):
    sure = {**ITEM, "probs": [0, 1, 0, 0], "pred_prob": 1}
    write_imported(read_release(write(tmp_path / "theirs", har=[sure])), tmp_path / "ours")
    assert read_imported(tmp_path / "ours", "law")["HAR"][0]["pred_prob"] == 1.0


def test_imported_arms_smaller_than_the_minimum_are_refused(tmp_path):
    write_imported(read_release(write(tmp_path / "theirs")), tmp_path / "ours")
    with pytest.raises(UserError, match=r"2 needed; lower build.minimum \(the largest size is 1\)"):
        arms(tmp_path, study(tmp_path, "ours", minimum=2))


def test_arms_that_the_release_cannot_serve_are_refused(tmp_path):
    folder = write(tmp_path / "theirs")
    (folder / "law" / SELF_FILE).unlink()
    write_imported(read_release(folder), tmp_path / "ours")
    with pytest.raises(UserError, match=r"of the items for INC, \{.the base model's explanation failed.: 1\}"):
        arms(tmp_path, study(tmp_path, "ours", explanations=True))


# the authors' own files


@pytest.fixture
def released(shared_data):
    folder = shared_data / "released_groups" / "llama-2-7b"
    if not folder.is_dir():
        pytest.skip("the authors' released arms are not at hand")
    return folder


@pytest.mark.parametrize(("domain", "size"), [("engineering", 738), ("history", 996)])
def test_the_filter_and_the_builder_put_every_released_item_back(tmp_path, released, domain, size):
    """HAR and INC shuffled together, of which probabilities and true answers alone are kept."""
    theirs = {
        arm: [json.loads(line) for line in (released / domain / name).read_text().splitlines()]
        for arm, name in FILES.items()
    }
    mixed = [row for rows in theirs.values() for row in rows]
    random.Random(1).shuffle(mixed)
    rows = []
    for row in mixed:
        probs, gold = row["probs"], row["answer"]
        pred = max(range(4), key=lambda place: probs[place])
        rows.append(
            {
                "id": str(row["id"]), "subject": "", "question": row["question"], "options": row["choices"],
                "header": "", "explanation": "", "context": "", "gold": gold, "pred": pred, "pred_prob": probs[pred],
                "correct": pred == gold,
            }
        )  # fmt: skip
    run = RunDirectory.create(str(tmp_path))
    run.write_rows(f"probe/{domain}/train.parquet", rows)
    source = [{"path": "q.jsonl"}]
    splits = {"train": source, "dev": source, "homo": source, "id": source, "ood": source}
    config = StudyConfig.model_validate(
        {"name": "t", "model": {"path": "m"}, "domains": [{"name": domain, **splits}], "build": {"minimum": size}}
    )
    _, facts = build(config, run, config.domains[0], 0)
    made = {arm: run.read_jsonl(f"arms/{domain}/s0/{arm}.jsonl") for arm in ("HAR", "INC", "SELF")}
    for arm in ("HAR", "INC"):
        assert len(made[arm]) == size
        assert {item["id"] for item in made[arm]} == {str(row["id"]) for row in theirs[arm]}
        letters = Counter(LETTERS[row["answer"]] for row in theirs[arm])
        assert facts["arms"][arm]["letters"] == dict(sorted(letters.items()))
    assert [item["id"] for item in made["SELF"]] == [item["id"] for item in made["INC"]]
    answers = {str(row["id"]): row["pred"] for row in theirs["INC"]}
    assert all(item["answer"] == answers[item["id"]] for item in made["SELF"])


def test_imported_arms_keep_the_releases_items_order_labels_and_texts(tmp_path, released):
    write_imported(read_release(released), tmp_path / "ours")
    config = study(tmp_path, "ours", explanations=True)
    [place] = [place for place, domain in enumerate(config.domains) if domain.name == "engineering"]
    made, facts = arms(tmp_path, config, place)
    for arm, name in {**FILES, "SELF": SELF_FILE}.items():
        theirs = [json.loads(line) for line in (released / "engineering" / name).read_text().splitlines()]
        assert [item["id"] for item in made[arm]] == [str(row["id"]) for row in theirs]
        assert [item["answer"] for item in made[arm]] == [row["output"] for row in theirs]
        said = [(row["model_exp"] if arm == "SELF" else row["explanation"]).strip() for row in theirs]
        assert [item["explanation"] for item in made[arm]] == said
        letters = Counter(LETTERS[row["output"]] for row in theirs)
        assert facts["arms"][arm]["letters"] == dict(sorted(letters.items()))
    assert set(facts["arms"]["HAR"]["argue_otherwise"]) | set(facts["arms"]["INC"]["argue_otherwise"])
