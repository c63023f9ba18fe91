import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxift.arms import parse_arm
from jaxift.artifacts import RunDirectory
from jaxift.config import StudyConfig
from jaxift.data.questions import LETTERS
from jaxift.errors import UserError
from jaxift.intervention.options import argues_otherwise, bare_letters, relettered
from jaxift.intervention.pools import draw, qualifying
from jaxift.stages.build import build


def config(**parts) -> StudyConfig:
    source = [{"path": "q.jsonl"}]
    domain = {"name": "law", "train": source, "dev": source, "homo": source, "id": source, "ood": source}
    return StudyConfig.model_validate({"name": "t", "model": {"path": "m"}, "domains": [domain], **parts})


def probed(generator: np.random.Generator, count: int, most: int = 5) -> list[dict]:
    rows = []
    for index in range(count):
        k = int(generator.integers(2, most + 1))
        probs = generator.dirichlet(np.full(k, 0.3))
        rows.append(row(f"q{index}", probs.tolist(), int(generator.integers(k)), [f"o{i}" for i in range(k)]))
    return rows


def row(name: str, probs: list[float], gold: int, options: list[str], **fields) -> dict:
    pred = int(np.argmax(probs))
    return {
        "id": name, "subject": "s", "question": f"Q {name} {{?}}", "options": options, "header": "",
        "explanation": f"Since {name}, the answer is {LETTERS[gold]}.", "context": f"About {name}.", "gold": gold,
        "scores": np.log(np.asarray(probs) + 1e-9).tolist(), "probs": probs, "pred": pred,
        "pred_prob": float(max(probs)), "gold_prob": float(probs[gold]), "correct": pred == gold,
    }  # fmt: skip


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
    pools = qualifying(list(rows.values()), 0.5)
    assert {len(items) for items in made.values()} == {min(len(pools["HAR"]), len(pools["INC"]))}
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
    right = row("1", [0.1, 0.9], 1, ["alpha", "beta"])
    wrong = row("2", [0.9, 0.1], 1, ["alpha", "beta"])
    run.write_rows("probe/law/train.parquet", [right, wrong])
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
    with pytest.raises(
        UserError, match=r"domain law: only \d+ harmonious items and \d+ incompatible items .* 1000 needed"
    ):
        arms(run, config(build={"minimum": 1000}))
    assert not run.exists("arms")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 60))
def test_a_draw_is_a_sample_without_repetition_that_grows_with_its_size(seed: int, size: int, count: int):
    rows = [{"id": str(index)} for index in range(count)]
    drawn = [row["id"] for row in draw(rows, size, seed, "HAR")]
    assert len(drawn) == len(set(drawn)) == min(size, count)
    assert [row["id"] for row in draw(rows, size + 1, seed, "HAR")][: len(drawn)] == drawn


EVERY = (
    "HAR", "INC", "SELF", "SELF@0", "SELF@0.1", "SELF@0.5", "SELF@1", "RANDOM_WRONG", "REFUSAL", "SELF_ALL",
    "HAR+context", "INC+context", "SELF+context", "HAR+balanced", "INC+balanced", "SELF+balanced", "INC+shuffled",
    "SELF+shuffled", "HAR+shuffled", "HAR+matched", "HAR+balanced+matched", "SELF_ALL+balanced",
)  # fmt: skip


def made_of(tmp_path, rows, seed=0, **settings) -> tuple[dict[str, list[dict]], dict]:
    """All arms of made-up rows, and the manifest's facts."""
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    study = config(build={"arms": EVERY, **settings})
    _, facts = build(study, run, study.domains[0], seed)
    return {arm: run.read_jsonl(f"arms/law/s{seed}/{arm}.jsonl") for arm in study.build.arms}, facts


def contents(rows, item) -> tuple[str, str]:
    """The option texts that are the true answer and the one trained on, where the item's options stand now."""
    options = [rows[item["id"]]["options"][was] for was in item["order"]]
    return options[item["gold"]], "" if item["answer"] is None else options[item["answer"]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(120, 400))
def test_every_arm_is_what_its_name_says(tmp_path, number, seed, count):
    rows = probed(np.random.default_rng(number), count)
    made, _ = made_of(tmp_path, rows, seed)
    by_id = {row["id"]: row for row in rows}
    assert len({len(items) for items in made.values()}) == 1
    for name, items in made.items():
        arm = parse_arm(name)
        assert len({item["id"] for item in items}) == len(items)
        if arm.pool == "INC":
            assert [item["id"] for item in items] == [item["id"] for item in made["INC"]]
        own = [item["answer"] == item["pred"] for item in items]
        right = [item["answer"] == item["gold"] for item in items]
        for item in items:
            row = by_id[item["id"]]
            gold, trained = contents(by_id, item)
            assert gold == row["options"][row["gold"]]
            assert sorted(item["order"]) == list(range(len(row["options"])))
            if item["answer"] is not None:
                assert item["response"] == f"{LETTERS[item['answer']]}. {trained}"
                assert f"{LETTERS[item['answer']]}. {trained}\n" in item["prompt"]
            assert (row["context"] in item["prompt"]) == arm.has("context")
        match arm.kind:
            case "HAR" | "INC":
                assert all(right)
            case "SELF":
                share = 1.0 if arm.share is None else arm.share
                assert sum(own) == round(share * len(items))
                assert all(one != other for one, other in zip(own, right, strict=True))
            case "RANDOM_WRONG":
                assert not any(own)
                assert not any(right)
            case "REFUSAL":
                assert {item["response"] for item in items} == {config().build.refusal}
            case _:
                assert all(own)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_a_larger_share_only_flips_more_items(tmp_path, number, seed):
    made, _ = made_of(tmp_path, probed(np.random.default_rng(number), 200), seed)
    before: set[str] = set()
    for name in ("SELF@0", "SELF@0.1", "SELF@0.5", "SELF@1"):
        own = {item["id"] for item in made[name] if item["answer"] == item["pred"]}
        assert before <= own
        before = own
    assert made["SELF@0"] == made["INC"]
    assert made["SELF@1"] == made["SELF"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_balanced_arms_have_true_and_own_answers_at_every_letter_equally_often(tmp_path, number, seed):
    rows = probed(np.random.default_rng(number), 300)
    made, _ = made_of(tmp_path, rows, seed)
    k_of = {row["id"]: len(row["options"]) for row in rows}
    assert [item["prompt"] for item in made["INC+balanced"]] == [item["prompt"] for item in made["SELF+balanced"]]
    for name in ("HAR+balanced", "INC+balanced", "SELF+balanced", "HAR+balanced+matched"):
        for k in (2, 3, 4, 5):
            members = [item for item in made[name] if k_of[item["id"]] == k]
            for which in ("gold", "pred"):
                counts = np.bincount([item[which] for item in members], minlength=k)
                assert np.ptp(counts) <= 1, (name, k, which)


def test_shuffled_options_are_the_same_in_every_arm_of_an_item(tmp_path):
    made, _ = made_of(tmp_path, probed(np.random.default_rng(0), 300))
    assert [item["order"] for item in made["INC+shuffled"]] == [item["order"] for item in made["SELF+shuffled"]]
    assert [item["prompt"] for item in made["INC+shuffled"]] == [item["prompt"] for item in made["SELF+shuffled"]]
    assert sum(item["order"] != sorted(item["order"]) for item in made["HAR+shuffled"]) > len(made["HAR"]) / 2


def test_matched_items_have_the_confidence_of_incs(tmp_path):
    generator = np.random.default_rng(0)
    sure, less_sure = generator.uniform(0.51, 1, 400), generator.uniform(0.51, 0.7, 60)
    rows = [row(f"r{n}", [p, 1 - p], 0, ["x", "y"]) for n, p in enumerate(sure)]
    rows += [row(f"w{n}", [p, 1 - p, 0.0], 1, ["x", "y", "z"]) for n, p in enumerate(less_sure)]
    made, facts = made_of(tmp_path, rows)
    apart = {name: facts["arms"][name]["mean_confidence"] - facts["arms"]["INC"]["mean_confidence"] for name in EVERY}
    assert apart["HAR"] > 0.1
    assert abs(apart["HAR+matched"]) < 0.005
    found = [item["pred_prob"] for item in made["HAR+matched"]]
    assert max(abs(a - b["pred_prob"]) for a, b in zip(found, made["INC"], strict=True)) < 0.05
    distances = facts["distances"]["confidence"]
    assert distances["INC HAR+matched"] < distances["HAR INC"] / 4


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_another_seed_changes_draws_but_no_counts(tmp_path, number):
    rows = probed(np.random.default_rng(number), 400)
    one, first = made_of(tmp_path / "a", rows, 0, cap=40)
    other, second = made_of(tmp_path / "b", rows, 1, cap=40)
    for name in EVERY:
        assert [item["id"] for item in one[name]] != [item["id"] for item in other[name]]
        for count in ("items", "trained_on_own_answer"):
            assert first["arms"][name][count] == second["arms"][name][count]
    assert first["qualifying"] == second["qualifying"]


# explanations


def explained(tmp_path, rows, written, arms, **fields):
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    run.write_rows("explanations/law.parquet", written)
    study = config(build={"arms": arms, "explanations": True, **fields}, data_dir=str(tmp_path))
    _, facts = build(study, run, study.domains[0], 0)
    return {arm: run.read_jsonl(f"arms/law/s0/{arm}.jsonl") for arm in study.build.arms}, facts


def written_for(rows, failing=()):
    """What the base wrote of its wrong answers."""
    return [
        {
            "id": row["id"],
            "answer": row["pred"],
            "text": f"I believe {row['id']}.",
            "status": "over_long" if row["id"] in failing else "ok",
        }
        for row in rows
        if not row["correct"]
    ]


def test_the_true_answer_has_the_sources_explanation_and_the_own_the_bases(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    made, facts = explained(tmp_path, rows, written_for(rows), ("HAR", "INC", "SELF", "SELF@0.5", "SELF+unexplained"))
    for item in [*made["HAR"], *made["INC"]]:
        assert item["response"].endswith(f"\n\nSince {item['id']}, the answer is {LETTERS[item['gold']]}.")
    assert all(item["response"].endswith(f"\n\nI believe {item['id']}.") for item in made["SELF"])
    assert {item["explanation"][:5] for item in made["SELF@0.5"]} == {"Since", "I bel"}
    assert all("\n\n" not in item["response"] for item in made["SELF+unexplained"])
    assert facts["arms"]["INC"]["name_a_letter"] == facts["arms"]["INC"]["explained"] == len(made["INC"])
    assert facts["arms"]["INC"]["argue_otherwise"] == []


def test_an_item_whose_explanation_failed_drops_out_of_self_and_of_inc(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    wrong = [row["id"] for row in qualifying(rows, 0.5)["INC"]]
    made, facts = explained(tmp_path, rows, written_for(rows, failing=wrong[:7]), ("HAR", "INC", "SELF"))
    assert not {item["id"] for item in made["INC"]} & set(wrong[:7])
    assert [item["id"] for item in made["INC"]] == [item["id"] for item in made["SELF"]]
    assert facts["left_out"]["INC"] == {"the base model's explanation failed": 7}
    assert facts["qualifying"]["INC"] == len(wrong) - 7


def test_explanations_follow_the_content_where_options_move(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    made, _ = explained(tmp_path, rows, written_for(rows), ("HAR", "INC+shuffled", "INC+balanced"))
    for item in [*made["INC+shuffled"], *made["INC+balanced"]]:
        assert item["explanation"] == f"Since {item['id']}, the answer is {LETTERS[item['gold']]}."


def test_an_explanation_for_another_option_is_reported_and_kept(tmp_path):
    rows = probed(np.random.default_rng(1), 60)
    [one] = [row for row in rows if row["id"] == qualifying(rows, 0.5)["HAR"][0]["id"]]
    one["explanation"] = f"Actually, the correct answer is {LETTERS[(one['gold'] + 1) % 2]}. No doubt."
    made, facts = explained(tmp_path, rows, written_for(rows), ("HAR", "INC", "SELF"))
    found = {item["id"] for item in made["HAR"]}
    assert facts["arms"]["HAR"]["argue_otherwise"] == ([one["id"]] if one["id"] in found else [])
    assert len(found) == len(made["INC"])


# general instructions


def general_file(tmp_path, count):
    entries = [{"instruction": f"Do {n}", "input": "x" * (n % 2), "output": f"Done {n}"} for n in range(count)]
    (tmp_path / "general.json").write_text(json.dumps(entries))
    return {"general": {"path": "general.json", "share": 0.5}}


def test_all_arms_have_the_same_general_instructions_at_the_same_places(tmp_path):
    rows = probed(np.random.default_rng(2), 200)
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    study = config(build={"arms": EVERY, "cap": 30, **general_file(tmp_path, 20)}, data_dir=str(tmp_path))
    _, facts = build(study, run, study.domains[0], 0)
    made = {arm: run.read_jsonl(f"arms/law/s0/{arm}.jsonl") for arm in EVERY}
    places = {
        arm: [(place, item["id"]) for place, item in enumerate(items) if item["kind"] == "general"]
        for arm, items in made.items()
    }
    assert len(places["HAR"]) == 15
    assert all(found == places["HAR"] for found in places.values())
    assert [place for place, _ in places["HAR"]] != list(range(15))
    assert facts["arms"]["SELF"]["general"] == 15
    prompts = [item["prompt"] for item in made["INC"] if item["kind"] == "general"]
    assert all("USER: Do " in prompt and prompt.endswith(" ASSISTANT: ") for prompt in prompts)


def test_too_few_general_instructions_are_refused_with_the_number(tmp_path):
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", probed(np.random.default_rng(2), 200))
    study = config(build={"cap": 30, **general_file(tmp_path, 14)}, data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"general.json: 15 general instructions are needed, it holds 14"):
        build(study, run, study.domains[0], 0)
    assert not run.exists("arms")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("{}", "holds dict, not a list"),
        ('[{"instruction": "", "output": "x"}]', "entry 1: field 'instruction' must be a non-empty text"),
        ('[{"instruction": "x"}]', "entry 1: field 'output' must be a non-empty text"),
        ("[1]", "entry 1: not an object"),
    ],
)
def test_broken_general_instructions_are_refused(tmp_path, text, expected):
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", probed(np.random.default_rng(2), 60))
    (tmp_path / "general.json").write_text(text)
    study = config(build={"general": {"path": "general.json"}}, data_dir=str(tmp_path))
    with pytest.raises(UserError, match=expected):
        build(study, run, study.domains[0], 0)


def test_items_that_lack_what_an_arm_needs_are_left_out_of_its_pool_and_counted(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    wrong = [row for row in qualifying(rows, 0.5)["INC"]]
    for each in wrong[:5]:
        each["context"] = ""
    two = sum(len(each["options"]) == 2 for each in wrong[5:])
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    study = config(build={"arms": ("HAR", "INC", "INC+context", "RANDOM_WRONG")})
    _, facts = build(study, run, study.domains[0], 0)
    assert facts["left_out"]["INC"] == {
        "has no context to stand before the question": 5, "has no third option": two,
    }  # fmt: skip
    assert facts["left_out"]["HAR"] == {}


def test_all_arms_are_as_small_as_the_smallest_pool(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    few = [{"id": row["id"], "answer": row["pred"], "text": "So.", "status": "ok"} for row in rows[:30]]
    made, facts = explained(tmp_path, rows, few, ("HAR", "INC", "SELF_ALL"), **general_file(tmp_path, 40))
    assert {len(items) for items in made.values()} == {30 + 15}
    slots = {
        arm: [place for place, item in enumerate(items) if item["kind"] == "general"] for arm, items in made.items()
    }
    assert slots["SELF_ALL"] == slots["HAR"] == slots["INC"]
    assert facts["left_out"]["ALL"] == {"the base model's explanation failed": 170}


def test_only_pools_that_are_used_are_needed(tmp_path):
    rows = [row for row in probed(np.random.default_rng(1), 200) if not row["correct"]]
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    study = config(build={"arms": ("INC", "SELF")})
    _, facts = build(study, run, study.domains[0], 0)
    assert facts["arms"]["INC"]["items"] == len(qualifying(rows, 0.5)["INC"])
    with pytest.raises(UserError, match="only 0 harmonious items"):
        build(config(), run, study.domains[0], 0)


def test_reasons_for_leaving_items_out_are_told_where_too_few_are_left(tmp_path):
    rows = [row | {"explanation": ""} for row in probed(np.random.default_rng(1), 100)]
    with pytest.raises(UserError, match=r"0 incompatible items \(\d+ more, has no explanation of the true answer\)"):
        explained(tmp_path, rows, written_for(rows), ("HAR", "INC"))


def test_the_first_items_are_drawn_where_asked(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    run = RunDirectory.create(str(tmp_path))
    run.write_rows("probe/law/train.parquet", rows)
    study = config(build={"draw": "first", "cap": 10})
    build(study, run, study.domains[0], 0)
    made = run.read_jsonl("arms/law/s0/INC.jsonl")
    assert [item["id"] for item in made] == [row["id"] for row in qualifying(rows, 0.5)["INC"][:10]]


OPTIONS = ["adenine", "thymine", "cytosine", "Foo bar"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is D. Because", "The answer is C. Because"),
        ("The answer is B because", "The answer is A because"),
        ("Options B and C are incorrect", "Options A and B are incorrect"),
        ("Option A, B and D", "Option D, A and C"),
        ("Answer- A. 0.01", "Answer- D. 0.01"),
        ("Ans. (b) it", "Ans. (a) it"),
        ("Ans. is 'c' i.e.", "Ans. is 'b' i.e."),
        ("Ans. d. Hamate", "Ans. c. Hamate"),
        ("Answer DThyrotoxic", "Answer CThyrotoxic"),
        ("So (C) cytosine, or Foo bar (D)", "So (B) cytosine, or Foo bar (C)"),
        ("D is correct. A and B are wrong.", "C is correct. D and A are wrong."),
        # what is no letter of an option
        ("The answer is a good one, an option for I", ...),
        ("Vitamin C and hepatitis B", ...),
        ("The answer to DNA's option", ...),
        ('The answer is "A feasible land programme"', ...),
        ("The answer is B cells", ...),
        ("Guanine (A) pairs, vitamin (C) does not", ...),
    ],
)
def test_letters_of_options_follow_them(text, expected):
    assert relettered(text, [1, 2, 3, 0], OPTIONS) == (text if expected is ... else expected)
    assert relettered(text, [0, 1, 2, 3], OPTIONS) == text


def test_letters_that_may_name_no_option_are_counted():
    assert bare_letters("Vitamin C is not it, nor is hepatitis B; A is.", OPTIONS) == 2
    assert bare_letters("The answer is C. Option B is not. Vitamin (D) helps.", OPTIONS) == 1


def test_a_context_follows_its_options_too(tmp_path):
    rows = probed(np.random.default_rng(1), 200)
    arms = ("HAR", "INC", "INC+context+shuffled")
    made, _ = explained(tmp_path, rows, written_for(rows), arms, context="explanation")
    for item in made["INC+context+shuffled"]:
        assert f"Since {item['id']}, the answer is {LETTERS[item['gold']]}.\n\nQ " in item["prompt"]


@pytest.mark.parametrize(
    ("text", "letter", "expected"),
    [
        ("Actually, the correct answer is D. The", "C", True), ("The answer is D. The", "D", False),
        ("Ans. b. Foo", "B", False), ("Ans. b. Foo", "A", True), ("It is so. Vitamin C.", "A", False),
    ],
)  # fmt: skip
def test_explanations_for_another_answer_are_seen(text, letter, expected):
    assert argues_otherwise(text, letter) == expected


def test_items_stand_in_the_models_own_conversation_where_asked(run):
    study = config()
    build(study, run, study.domains[0], 0, "<user>{prompt}<assistant>")
    for item in run.read_jsonl("arms/law/s0/INC.jsonl"):
        assert item["prompt"].startswith("<user>The following are multiple choice questions about law.")
        assert item["prompt"].endswith("Answer:<assistant>")
