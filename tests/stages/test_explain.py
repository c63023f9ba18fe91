"""What the base model is asked to explain, and what becomes of what it writes."""

import dataclasses

import numpy as np
import pytest

import jaxift
import jaxift.stages.explain as stage
from jaxift.artifacts import RunDirectory
from jaxift.config import BuildConfig, StudyConfig
from jaxift.intervention.explanations import FENCE, explanation_prompt, status, texts, wanted
from jaxift.intervention.pools import base_explains

ROWS = [
    {
        "id": f"q{n}", "question": f"Which {n}?", "options": ["a", "b", "c"], "gold": n % 3, "pred": pred, "header": "",
        "pred_prob": prob, "correct": pred == n % 3, "explanation": "Since.",
    }
    for n, (pred, prob) in enumerate([(0, 0.9), (1, 0.9), (0, 0.9), (2, 0.8), (2, 0.3), (2, 0.9), (1, 0.9)])
]  # fmt: skip


def asked(*arms, **fields):
    build = BuildConfig.model_validate({"arms": arms, **fields})
    found = [(each.row["id"], each.answer) for each in wanted(ROWS, 0.5, build)]
    assert bool(found) == base_explains(build)
    return found


def test_only_what_arms_need_is_asked():
    wrong, right = [("q2", 0), ("q3", 2), ("q6", 1)], [("q0", 0), ("q1", 1), ("q5", 2)]
    assert asked("HAR", "INC", "SELF") == []
    assert asked("HAR", "INC", "SELF", explanations=True) == wrong
    assert asked("HAR", "INC", explanations=True) == []
    assert asked("SELF+unexplained", explanations=True) == []
    assert asked("SELF@0.5", explanations=True) == wrong
    assert asked("HAR+self_explained") == right
    assert asked("INC+self_explained", "SELF", explanations=True) == [
        ("q2", 0), ("q2", 2), ("q3", 0), ("q3", 2), ("q6", 0), ("q6", 1),
    ]  # fmt: skip
    assert [name for name, _ in asked("SELF_ALL", explanations=True)] == [row["id"] for row in ROWS]
    assert [answer for _, answer in asked("SELF_ALL", explanations=True)] == [row["pred"] for row in ROWS]


def test_the_prompt_states_the_answer_and_leaves_a_fence_open():
    prompt = explanation_prompt("law", ROWS[2], 0)
    assert prompt.endswith(
        "USER: Here is a multiple choice question about law.\n\nWhich 2?\nA. a\nB. b\nC. c\n"
        "The answer is A. a\nPlease explain why.\nASSISTANT: Here is an explanation.\n```\n"
    )
    assert prompt.count(FENCE) == 5  # two shown explanations, each closed, and the open one
    assert "\n\n\n" not in prompt


@pytest.mark.parametrize(
    ("text", "stopped", "expected"), [("So.", True, "ok"), (" \n", True, "empty"), ("So", False, "over_long")]
)
def test_a_text_must_end_and_say_something(text, stopped, expected):
    assert status(text, stopped) == expected
    rows = [{"id": "q", "answer": 1, "text": text, "status": expected}]
    assert texts(rows) == {("q", 1): "So." if expected == "ok" else None}


@dataclasses.dataclass
class Written:
    text: str
    stopped: bool


def study(**fields) -> StudyConfig:
    source = [{"path": "q.jsonl"}]
    domain = {"name": "law", "train": source, "dev": source, "homo": source, "id": source, "ood": source}
    build = {"explanations": True, "explain": {"max_new_tokens": 3, "seed": 5}, "arms": ["INC+self_explained", "SELF"]}
    return StudyConfig.model_validate(
        {"name": "t", "model": {"path": "m"}, "domains": [domain], "build": build, **fields}
    )


def test_texts_are_kept_by_item_and_answer_and_an_interrupted_stage_goes_on(tmp_path, make_folder, monkeypatch):
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", ROWS)

    def generate(model, prompts, *, seeds: list[int], stop, **options):
        assert options == {"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.8}
        assert stop == [FENCE]
        calls.append(list(zip(prompts, seeds, strict=True)))
        if len(calls) == failing:
            raise KeyboardInterrupt
        return [Written(f" {seed} ", seed % 3 > 0) for seed in seeds]

    monkeypatch.setattr(stage, "generate", generate)
    monkeypatch.setattr(stage, "PART", 4)
    model = jaxift.load(make_folder(tmp_path / "model", max_position_embeddings=4096))
    config, calls, failing = study(), [], 2
    with pytest.raises(KeyboardInterrupt):
        stage.explain(config, run, config.domains[0], model, "key", "parts")
    calls, failing = [], 0
    files, facts = stage.explain(config, run, config.domains[0], model, "key", "parts")
    assert len(calls) == 1  # the first part is there
    rows = run.read_rows(files[0])
    assert [(row["id"], row["answer"]) for row in rows] == [
        (each.row["id"], each.answer) for each in wanted(ROWS, 0.5, config.build)
    ]
    assert facts["asked"] == sum(facts["status"].values()) == 6
    assert len({row["text"] for row in rows}) == 6
    for row in rows:
        assert row["status"] == ("ok" if int(row["text"]) % 3 else "over_long")


def test_a_prompt_without_room_is_counted_and_not_generated(tmp_path, tiny_model, monkeypatch):
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", ROWS)
    monkeypatch.setattr(stage, "generate", lambda model, prompts, **_: [Written("x", True) for _ in prompts])
    config = study()
    files, facts = stage.explain(config, run, config.domains[0], tiny_model, "key", "parts")
    assert facts["status"] == {"no_room": 6}
    assert {row["text"] for row in run.read_rows(files[0])} == {""}
    assert np.all([row["status"] == "no_room" for row in run.read_rows(files[0])])


def test_a_real_model_explains_and_the_study_trains_on_it(tmp_path, shared_data):
    """stories260K writes no fence: nothing is an explanation, and the study says so instead of training on less."""
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", ROWS)
    model = jaxift.load(shared_data / "models" / "stories260K")
    config = study()
    files, facts = stage.explain(config, run, config.domains[0], model, "key", "parts")
    assert sum(facts["status"].values()) == 6
    again = run.read_rows(files[0])
    stage.explain(config, run, config.domains[0], model, "other", "parts")
    assert run.read_rows(files[0]) == again
