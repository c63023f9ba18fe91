import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
from rich.console import Console

from jaxift.artifacts import RunDirectory, digest
from jaxift.config import BASE, StudyConfig, dump_study, parse_study
from jaxift.console import Reporter
from jaxift.errors import UserError
from jaxift.forecast import forecast, show
from jaxift.joint_units import agreed
from jaxift.study import Study
from jaxift.units import STAGES, cells
from jaxift.world import MODEL_DIR, write_questions

SCORES = ("homo", "id", "ood")
WITHOUT_JAX = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax"):
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
from jaxift.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    write_questions(folder)
    return folder


def small(questions: Path, run: Path, **changes) -> StudyConfig:
    """The demo cut down to one domain and few questions."""
    raw = parse_study(resources.files("jaxift.world").joinpath("demo.yaml").read_text(), "demo").model_dump()
    domain = raw["domains"][0]
    for split, limit in (("train", 60), ("homo", 24), ("id", 24), ("ood", 8)):
        domain[split] = [{**source, "limit": limit} for source in domain[split]]
    raw |= {"domains": [domain], "seeds": [0], "data_dir": str(questions), "run_dir": str(run)}
    raw["model"]["path"] = str(MODEL_DIR)
    raw["probe"] |= {"shots": 2}
    raw["build"] |= {"minimum": 1, "cap": 12}
    raw["tune"] |= {"epochs": 4, "batch_size": 4, "checkpoint_every": 2}
    for part, values in changes.items():
        raw[part] = {**raw[part], **values} if isinstance(raw[part], dict) else values
    return StudyConfig.model_validate(raw)


def execute(config: StudyConfig, stages=STAGES, only=()) -> str:
    """Runs stages and returns what was printed."""
    out = io.StringIO()
    Study(config, only).execute(stages, Reporter(Console(file=out, width=200)))
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(questions, tmp_path_factory) -> tuple[StudyConfig, str]:
    """A finished small study and what it printed."""
    config = small(questions, tmp_path_factory.mktemp("study") / "run")
    return config, execute(config)


def contents(config: StudyConfig) -> dict[str, bytes]:
    """Bytes of everything that a reader of the run looks at: probe, arms, scores, analysis, report."""
    root = Path(config.run_path)
    patterns = (
        "probe/**/*.parquet",
        "arms/**/*.jsonl",
        "cells/*/scores/*.parquet",
        "cells/*/metrics.jsonl",
        "analysis.json",
    )
    return {
        str(path.relative_to(root)): path.read_bytes() for pattern in patterns for path in sorted(root.glob(pattern))
    }


def test_a_study_leaves_every_file_that_its_layout_promises(finished):
    root = Path(finished[0].run_path)
    assert {"study.yaml", "manifest.json", "analysis.json", "report.md", "report.html"} <= {
        p.name for p in root.iterdir()
    }
    for cell in cells(finished[0]):
        trained = set() if cell.arm == BASE else {"trained"}
        assert {p.stem for p in (root / "cells" / cell.id / "scores").iterdir()} == {*SCORES, *trained}


def test_tuned_models_are_asked_what_they_were_trained_on(finished):
    run = RunDirectory.open(finished[0].run_path)
    for arm in ("HAR", "INC", "SELF"):
        items = run.read_jsonl(f"arms/medicine/s0/{arm}.jsonl")
        rows = run.read_rows(f"cells/medicine-{arm}-s0/scores/trained.parquet")
        assert [(row["id"], row["gold"], row["base_pred"], row["answer"]) for row in rows] == [
            (item["id"], item["gold"], item["pred"], item["answer"]) for item in items
        ]
    found = run.read_json("analysis.json")["training"]["HAR"]
    rows = run.read_rows("cells/medicine-HAR-s0/scores/trained.parquet")
    assert found["recall"] == found["accuracy"] == sum(row["pred"] == row["answer"] for row in rows) / len(rows)


def test_what_was_spent_is_told(finished):
    page = Path(finished[0].run_path, "report.md").read_text()
    assert all(f"| {stage} (" in page for stage in ("probe", "tune", "evaluate"))


def test_the_resolved_study_is_stored_and_runs_again(finished):
    config, _ = finished
    stored = parse_study((Path(config.run_path) / "study.yaml").read_text(), "stored")
    assert dump_study(stored) == dump_study(config)


def test_a_second_run_does_nothing_and_says_so(finished):
    config, _ = finished
    before = contents(config)
    printed = execute(config)
    assert printed.count("done before") == len(STAGES) - 1  # no arm needs explanations
    assert contents(config) == before


def test_the_same_study_elsewhere_gives_the_same_bytes(finished, questions, tmp_path):
    config = small(questions, tmp_path / "again")
    execute(config)
    ours, theirs = contents(config), contents(finished[0])
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_changed_setting_redoes_its_stage_and_what_follows_alone(questions, tmp_path):
    execute(small(questions, tmp_path / "run"))
    printed = execute(small(questions, tmp_path / "run", tune={"learning_rate": 1e-4}))
    assert "probe     1 of 1 done before" in printed
    assert "build     1 of 1 done before" in printed
    for unit in ("medicine-HAR-s0/tune", "medicine-HAR-s0/evaluate"):
        changed = "tune" if unit.endswith("tune") else "the model"
        assert f"cells/{unit}: done again, stale: {changed} changed" in printed
    assert "medicine-BASE/evaluate: done again" not in printed
    assert "analysis: done again, stale: the scores changed" in printed


def test_a_unit_interrupted_under_other_settings_is_done_again_under_the_old_ones(questions, tmp_path, monkeypatch):
    config = small(questions, tmp_path / "run")
    execute(config, ("probe", "build"))
    changed = small(questions, tmp_path / "run", build={"cap": 3})
    monkeypatch.setattr("jaxift.units.build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute(changed, ("build",))
    monkeypatch.undo()
    assert "done before" not in execute(config, ("build",))


def test_what_a_probe_has_scored_is_kept_until_it_is_marked_done(questions, tmp_path, monkeypatch):
    config = small(questions, tmp_path / "run")
    parts = tmp_path / "run/probe/medicine/parts"
    monkeypatch.setattr(
        "jaxift.artifacts.RunDirectory.finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        execute(config, ("probe",))
    assert list(parts.iterdir())
    monkeypatch.undo()
    execute(config, ("probe",))
    assert not parts.exists()


def test_changed_questions_make_everything_stale(questions, tmp_path):
    execute(small(questions, tmp_path / "run"), ("probe",))
    changed = small(questions, tmp_path / "run", probe={"shots": 1})
    with pytest.raises(UserError, match=r"probe/medicine is stale: probe changed; run `jaxift probe`"):
        execute(changed, ("build",))
    assert "probe/medicine: done again, stale: probe changed" in execute(changed, ("probe",))


def test_stages_run_one_by_one_give_the_study(finished, questions, tmp_path):
    config = small(questions, tmp_path / "staged")
    for stage in STAGES:
        execute(config, (stage,))
    assert contents(config) == contents(finished[0])


def test_analysis_and_report_need_neither_jax_nor_model_nor_questions(finished, tmp_path):
    config, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(config.run_path, copy)
    moved = config.model_copy(
        update={
            "data_dir": "/absent", "model": config.model.model_copy(update={"path": "/absent"}), "run_dir": str(copy),
        }
    )  # fmt: skip
    before = contents(moved)
    (copy / "study.yaml").write_text(dump_study(moved))
    for made in ("analysis.json", "analysis.manifest.json", "report.manifest.json", "report.html"):
        (copy / made).unlink()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, "report", str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (copy / "report.html").exists()
    after = contents(moved)
    assert {name: text for name, text in after.items() if name != "analysis.json"} == {
        name: text for name, text in before.items() if name != "analysis.json"
    }
    told = [json.loads(each["analysis.json"]) for each in (before, after)]
    for each in told:
        each["study"].pop("model")
    assert told[0] == told[1]


def test_a_file_that_is_gone_is_named_as_the_reason(questions, tmp_path):
    config = small(questions, tmp_path / "run")
    execute(config, ("probe",))
    (tmp_path / "run/probe/medicine/id.parquet").unlink()
    assert "probe/medicine: done again, stale: a file that it made changed" in execute(config, ("probe",))


def test_fewer_items_than_the_cap_are_told(questions, tmp_path):
    printed = execute(small(questions, tmp_path / "run", build={"cap": 50}), ("probe", "build"))
    [line] = [line for line in printed.splitlines() if "fewer than build.cap 50" in line]
    size = int(line.split(":")[1].split()[0])
    arms = [path.read_text().splitlines() for path in (tmp_path / "run/arms/medicine/s0").glob("*.jsonl")]
    assert {len(items) for items in arms} == {size}


def test_some_cells_alone_are_tuned_and_evaluated(questions, tmp_path):
    config = small(questions, tmp_path / "run")
    execute(config, only=("*-INC-s0", "medicine-BASE"))
    assert {path.name for path in (tmp_path / "run/cells").iterdir()} == {"medicine-INC-s0", "medicine-BASE"}
    assert not (tmp_path / "run/manifest.json").exists()
    assert "HAR" in (tmp_path / "run/report.md").read_text().split("Not complete")[1].splitlines()[1]
    assert "1 done before" in execute(config, ("tune",))
    with pytest.raises(UserError, match=r"--only nothing\*: matches no cell; they are medicine-BASE, medicine-HAR-s0"):
        Study(config, ("nothing*",))


def test_cells_of_other_settings_are_not_analysed_with_those_of_these(questions, tmp_path):
    execute(small(questions, tmp_path / "run"))
    changed = small(questions, tmp_path / "run", tune={"learning_rate": 1e-4})
    execute(changed, only=("*-INC-s0", "medicine-BASE"))
    analysis = RunDirectory.open(changed.run_path).read_json("analysis.json")
    assert analysis["missing"] == ["medicine-HAR-s0", "medicine-SELF-s0"]
    assert analysis["exp1"]["differences"] == {}


def test_cells_made_of_another_probe_or_arm_are_left_out_of_an_analysis(questions, tmp_path):
    config = small(questions, tmp_path / "run")
    execute(config)
    for changes, left in (
        ({"probe": {"shots": 1}}, None),  # the probe beside them is another: nothing is current
        ({"build": {"cap": 3}}, {"medicine-BASE"}),
        ({"model": {"path": "/absent"}}, {cell.id for cell in cells(config)}),
    ):
        changed = small(questions, tmp_path / "run", **changes)
        if left is None:
            with pytest.raises(UserError, match="no cell is evaluated with the present settings"):
                execute(changed, ("analyze",))
        else:
            printed = execute(changed, ("analyze",))
            missing = set(RunDirectory.open(changed.run_path).read_json("analysis.json")["missing"])
            assert missing == {cell.id for cell in cells(config)} - left
            assert ("they are left out" in printed) == bool(missing)


def test_settings_that_a_run_could_not_know_make_nothing_stale_in_an_analysis(questions, tmp_path):
    config = small(questions, tmp_path / "run")
    execute(config)
    for path in (tmp_path / "run/cells").glob("*/*.manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["settings"].get("tune", {}).pop("too_long", None)
        path.write_text(json.dumps(manifest))
    execute(config, ("analyze",))
    assert RunDirectory.open(config.run_path).read_json("analysis.json")["missing"] == []


def test_a_forecast_counts_explanations(questions, tmp_path):
    config = small(questions, tmp_path / "run", build={"explanations": True})
    found = forecast(Study(config))
    [line] = [line for line in found.lines if line.stage == "explain"]
    assert line.work == "60 texts"
    show(found, Console(file=io.StringIO()))


def test_imported_arms_need_no_training_questions(questions, tmp_path):
    base = small(questions, tmp_path / "base")
    execute(base, ("probe",))
    rows = RunDirectory.open(base.run_path).read_rows("probe/medicine/train.parquet")
    (tmp_path / "imported/medicine").mkdir(parents=True)
    for arm in ("HAR", "INC"):
        chosen = [row | {"own_explanation": None} for row in rows if row["correct"] == (arm == "HAR")][:9]
        lines = (json.dumps(row) + "\n" for row in chosen)
        (tmp_path / f"imported/medicine/{arm}.jsonl").write_text("".join(lines))
    raw = small(questions, tmp_path / "run", build={"released": str(tmp_path / "imported")}).model_dump()
    raw["domains"][0]["train"] = []
    config = StudyConfig.model_validate(raw)
    assert {line.work for line in forecast(Study(config)).lines if line.stage == "tune"} == {"9 examples, 12 steps"}
    execute(config)
    assert not (tmp_path / "run/probe/medicine/train.parquet").exists()
    for arm in ("HAR", "INC"):
        made = [json.loads(line) for line in (tmp_path / f"run/arms/medicine/s0/{arm}.jsonl").read_text().splitlines()]
        theirs = [json.loads(line) for line in (tmp_path / f"imported/medicine/{arm}.jsonl").read_text().splitlines()]
        assert [item["id"] for item in made] == [row["id"] for row in theirs]


@pytest.mark.slow
def test_what_is_tuned_on_a_papers_prompt_is_evaluated_by_the_isolated_letter(questions, tmp_path, make_folder):
    """The paper's settings on a tiny model: isolated letters, letters and options, general instructions, truncation."""
    general = [{"instruction": f"w{n}", "input": "", "output": f"w{n + 1}"} for n in range(40)]
    (tmp_path / "general.json").write_text(json.dumps(general))
    config = small(
        questions, tmp_path / "run",
        model={"path": str(make_folder(tmp_path / "model", max_position_embeddings=512)), "seam": "isolated"},
        probe={"prompt": "paper", "threshold": 0.0, "rotations": False},
        build={"response_format": "letter_and_option", "general": {"path": str(tmp_path / "general.json")}},
        tune={"too_long": "truncate", "max_length": 400},
    )  # fmt: skip
    execute(config)
    found = RunDirectory.open(config.run_path)
    assert found.manifest("cells/medicine-INC-s0/tune") is not None
    facts = found.manifest("probe/medicine")
    assert facts is not None
    assert facts["tokenizer"]["seam"] == "isolated"
    assert set(facts["answer_tokens"]) == set("ABCD")


def test_a_forecast_counts_what_a_run_then_does(questions, tmp_path):
    config = small(questions, tmp_path / "run")
    before = forecast(Study(config))
    assert not (tmp_path / "run").exists()
    assert before.states["probe"] == ["missing"]
    assert before.states["tune"] == ["a stage before is not done"]
    assert [line.note for line in before.lines if line.stage == "tune"] == ["at most"]
    execute(config)
    after = forecast(Study(config))
    assert {state for states in after.states.values() for state in states} == {"done"}
    root = tmp_path / "run"
    metrics = [path.read_text().splitlines() for path in root.glob("cells/*/metrics.jsonl")]
    assert after.steps == sum(map(len, metrics)) <= before.steps
    saved = [path for path in root.glob("cells/*/checkpoints/**/*") if path.is_file()]
    assert 0.5 < sum(path.stat().st_size for path in saved) / after.disk < 1.5
    [probed] = [line for line in after.lines if line.stage == "probe"]
    pool = 60 * 4  # every rotation of four options
    assert probed.work == f"{pool + 24 + 24 + 3 * 8} prompts"


EXPERIMENTS = ["HAR", "INC", "SELF", "INC+context", "SELF@0.5", "HAR+matched", "INC+balanced", "SELF_ALL", "REFUSAL"]


@pytest.mark.slow
def test_every_experiment_runs_to_its_report(questions, tmp_path):
    config = small(questions, tmp_path / "run", build={"arms": EXPERIMENTS}, tune={"epochs": 1})
    execute(config)
    report = (tmp_path / "run/report.md").read_text()
    for shown in ("INC+context − INC", "Exp-III", "50.0", "over the mixtures of Exp-III", "HAR+matched − INC"):
        assert shown in report
    plain, contextual = (
        [json.loads(line) for line in (tmp_path / f"run/arms/medicine/s0/{arm}.jsonl").read_text().splitlines()]
        for arm in ("INC", "INC+context")
    )
    for one, other in zip(plain, contextual, strict=True):
        assert other["prompt"].startswith("Instruction Context ")
        assert other["prompt"].endswith(one["prompt"].removeprefix("Instruction "))
    assert [item["response"] for item in plain] == [item["response"] for item in contextual]


def test_several_draws_a_prior_and_samples_go_into_the_probe(questions, tmp_path):
    probe = {"rotations": False, "prior_questions": 10, "draws": 2, "samples": 8}
    config = small(questions, tmp_path / "run", probe=probe)
    execute(config, ("probe",))
    run = RunDirectory.open(config.run_path)
    rows = run.read_rows("probe/medicine/train.parquet")
    assert {row["known"] for row in rows} <= {"HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"}
    assert len({row["known"] for row in rows}) >= 3
    shares = {row["greedy_share"] for row in rows}
    assert {0.0, 0.5, 1.0} <= shares
    assert all((row["known"] == "HighlyKnown") == (row["greedy_share"] == 1) for row in rows)
    facts = run.manifest("probe/medicine")
    assert facts is not None
    prior = facts["place_prior"]["4"]
    assert len(prior) == 4
    assert abs(sum(prior) - 1) < 1e-9


def command(config: StudyConfig, folder: Path) -> list[str]:
    """The command line that runs a study in a process of its own."""
    study = folder / f"{Path(config.run_path).name}.yaml"
    study.write_text(dump_study(config))
    return [sys.executable, "-m", "jaxift", "run", str(study)]


def killed_and_run_again(config: StudyConfig, trigger: str, folder: Path) -> None:
    """Starts the study, kills it with SIGKILL as soon as a file like `trigger` stands there, and starts it again."""
    run = command(config, folder)
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(Path(config.run_path).glob(trigger)) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "the study ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def uninterrupted(questions, tmp_path_factory) -> dict[str, bytes]:
    """Contents of a study that a process ran from beginning to end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = small(questions, folder / "whole")
    subprocess.run(command(config, folder), check=True, stdout=subprocess.DEVNULL)
    return contents(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trigger",
    ["cells/*INC-s0/checkpoints/4*", "probe/medicine/homo.parquet", "cells/*HAR-s0/scores/id.parquet"],
)
def test_a_study_killed_and_run_again_ends_with_the_same_bytes(questions, uninterrupted, tmp_path, trigger):
    config = small(questions, tmp_path / "killed")
    killed_and_run_again(config, trigger, tmp_path)
    assert contents(config) == uninterrupted


def test_a_process_that_follows_waits_until_it_sees_what_the_first_does(questions, tmp_path, monkeypatch):
    config = small(questions, tmp_path / "run")
    execute(config, ("probe",))
    study = Study(config)
    told = [(unit.name, state) for unit, state in agreed(study.units, lambda: study.units.of("probe", study.cells))]
    assert told == [("probe/medicine", "done")]
    manifest = tmp_path / "run/probe/medicine.manifest.json"
    first = digest([[unit.name, unit.key, "done"] for unit in study.units.of("probe", study.cells)])
    hidden = manifest.rename(tmp_path / "hidden")
    looks = []

    def find():
        looks.append(1)
        if len(looks) == 3:
            hidden.rename(manifest)
        return study.units.of("probe", study.cells)

    monkeypatch.setattr("jaxift.joint_units.is_first", lambda: False)
    monkeypatch.setattr("jaxift.joint_units.told_by_first", lambda look: first)
    assert [state for _, state in agreed(study.units, find)] == ["done"]
    assert len(looks) == 3
    manifest.unlink()
    monkeypatch.setattr("jaxift.parallel.meeting.SEEN_TIMEOUT", 0)
    with pytest.raises(UserError, match=r"does not see there what .* does; give a path that all hosts share"):
        agreed(study.units, lambda: study.units.of("probe", study.cells))
