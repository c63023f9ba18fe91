import subprocess
import sys
from pathlib import Path

import pytest

from jaxift.cli import _how, main
from jaxift.world import MODEL_DIR

QUESTION = '{"id": "%s", "question": "color of %s", "options": ["a", "b", "c", "d"], "answer": 1}\n'
STUDY = """
name: broken
model: {path: %(model)s}
data_dir: %(data)s
run_dir: %(run)s
domains:
  - {name: d, train: [{path: train.jsonl}], dev: [{path: dev.jsonl}], homo: [{path: homo.jsonl}],
     id: [{path: id.jsonl}], ood: [{path: ood.jsonl}]}
probe: {prompt: world, shots: 1}
build: {response_format: letter}
"""


@pytest.fixture
def study(tmp_path):
    """A writer of a one-question-a-set study whose parts can be broken; returns the YAML's path."""

    def write(model: object = MODEL_DIR, run: object = tmp_path / "run", **files: str) -> Path:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for split in ("train", "dev", "homo", "id", "ood"):
            (data / f"{split}.jsonl").write_text(files.get(split, QUESTION % (split, split)))
        path = tmp_path / "study.yaml"
        path.write_text(STUDY % {"model": model, "data": data, "run": run})
        return path

    return write


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must be refused; returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("jaxift: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["conquer"], "conquer"),
        (["run"], "CONFIG"),
        (["run", "absent.yaml"], "absent.yaml"),
        (["probe", "absent/"], "absent"),
        (["world", "destroy"], "destroy"),
        (["world", "check", "--model", "absent"], "absent"),
        (["world", "pretrain", "--out", "x", "--seed", "-1"], "--seed -1"),
        (["world", "questions", "--out", "/proc"], "--out /proc"),
        (["demo", "--analyze.seed", "-1"], "greater than or equal to 0"),
        (["demo", "--tune.lerning-rate", "1"], "--tune.lerning-rate"),
        (["demo", "--tune.learning-rate", "-1"], "greater than 0"),
        (["demo", "--probe.formulation", "guess"], "guess"),
        (["demo", "--run-dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(capsys, arguments, named):
    assert named in refusal(capsys, *arguments)


def test_a_missing_model_folder_is_refused(capsys, study):
    assert "no such model folder" in refusal(capsys, "run", study(model="/absent/model"))


def test_pickle_weights_are_refused_with_the_way_to_convert_them(capsys, study, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((MODEL_DIR / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    line = refusal(capsys, "run", study(model=folder))
    assert "pytorch_model.bin is a pickle" in line
    assert "safe_serialization=True" in line


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"homo": ""}, "domain d: its homo set is empty"),
        ({"train": QUESTION.replace('"answer": 1', '"answer": "z"') % ("t", "t")}, "train.jsonl:1"),
        ({"train": QUESTION.replace('"answer": 1', '"answer": 4') % ("t", "t")}, "train.jsonl:1"),
        ({"homo": QUESTION % ("other", "train")}, "train has questions that are also in homo"),
        ({"dev": QUESTION % ("other", "train")}, "train has questions that are also in dev"),
        ({"homo": QUESTION % ("\\ud83d", "homo")}, "homo.jsonl:1"),
        ({"dev": ""}, "dev questions for probe.shots 1"),
    ],
)
def test_questions_that_make_no_sense_are_refused(capsys, study, files, named):
    assert named in refusal(capsys, "run", study(**files))


def test_an_unwritable_run_directory_is_refused(capsys, study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refusal(capsys, "run", study(run=tmp_path / "file" / "run"))


def test_refused_input_leaves_nothing_half_written(capsys, study, tmp_path):
    refusal(capsys, "run", study(homo=""))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["logs"]


def test_a_stage_asks_for_the_stages_before_it(capsys, study):
    assert "run `jaxift probe`" in refusal(capsys, "tune", study())
    assert "no cell is evaluated with the present settings yet" in refusal(capsys, "analyze", study())


def test_a_run_that_was_never_started_is_named(capsys, tmp_path):
    assert "study.yaml" in refusal(capsys, "report", tmp_path)


def test_a_refused_stage_leaves_the_stored_study_as_it_was(capsys, study, tmp_path):
    path = study()
    refusal(capsys, "tune", path, "--tune.learning-rate", "0.5")
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_the_negative_control_is_a_flag_of_pretrain(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr("jaxift.world.pretrain.pretrain", lambda *arguments: asked.append(arguments))
    assert main(["world", "pretrain", "--out", str(tmp_path / "m"), "--seed", "3", "--all-reliable"]) == 0
    assert asked[0][:4] == (tmp_path / "m", 3, True, 1.0)


def test_help_names_every_verb(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb in ("demo", "run", "world", "probe", "build", "tune", "evaluate", "analyze", "report"):
        assert f"\n  {verb} " in text


def test_help_of_a_verb_lists_the_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    assert "--tune.learning-rate" in capsys.readouterr().out


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "jaxift", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("jaxift ")


@pytest.mark.parametrize(
    ("arguments", "only", "left"),
    [
        (["c.yaml", "--only", "a*", "b", "--tune.epochs", "2"], ("a*", "b"), ["c.yaml", "--tune.epochs", "2"]),
        (["--only=a*", "c.yaml"], ("a*",), ["c.yaml"]),
        (["c.yaml", "--only", "a", "--dry-run"], ("a",), ["c.yaml"]),
        (["--only", "a", "."], ("a",), ["."]),
    ],
)
def test_cells_are_told_from_other_arguments(arguments, only, left):
    how, rest = _how(arguments, "jaxift tune")
    assert (how.only, rest, how.dry_run) == (only, left, "--dry-run" in arguments)


def test_cells_are_chosen_where_there_are_cells(capsys, study):
    assert "--only goes with run, tune, evaluate and demo" in refusal(capsys, "probe", study(), "--only", "x")
    assert "--only needs at least one cell" in refusal(capsys, "tune", study(), "--only")
    assert "--only x: matches no cell; they are d-BASE, d-HAR-s0" in refusal(capsys, "tune", study(), "--only", "x")


def test_a_dry_demo_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--dry-run"]) == 0
    assert "28 cells" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
