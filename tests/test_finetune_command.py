"""`jaxift finetune`: models of files of pairs, what is refused, and that it goes on."""

import json

import pytest

import jaxift
from jaxift.cli import main
from jaxift.scoring.engine import Request, score

ROWS = [{"prompt": f"w{number} w{number + 1}", "response": f" {'ABCD'[number % 4]}"} for number in range(8)]
SETTINGS = (
    "--tune.learning-rate", "0.02", "--tune.epochs", "6", "--tune.batch-size", "4", "--tune.max-length", "32",
    "--tune.warmup", "0",
)  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments, code=0):
    assert main(["finetune", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


def test_two_files_and_seeds_become_models_that_have_learned_them(capsys, file, tiny_folder, tmp_path):
    other = write(tmp_path / "other.jsonl", [{**row, "response": " C", "weight": 2} for row in ROWS])
    out = tmp_path / "out"
    arguments = (
        file,
        other,
        "-o",
        out,
        "--model",
        tiny_folder,
        "--seeds",
        0,
        1,
        "--tune.tensorboard",
        "True",
        "--tune.export-every",
        5,
        *SETTINGS,
    )
    assert "4 of 4 done" in run(capsys, *arguments)
    names = ["other-s0", "other-s1", "pairs-s0", "pairs-s1"]
    assert sorted(path.name for path in out.iterdir()) == ["logs", *names, "tensorboard"]
    for name in names:
        assert sorted(path.name for path in (out / name).iterdir()) == ["metrics.jsonl", "model", "steps", "tuned.json"]
        assert sorted(path.name for path in (out / name / "steps").iterdir()) == ["000005", "000010"]
        assert len((out / name / "metrics.jsonl").read_text().splitlines()) == 12
        assert any((out / "tensorboard" / name).iterdir())
    letters = (" A", " B", " C", " D")
    for name, expected in (("other-s1", [2] * 8), ("pairs-s0", [number % 4 for number in range(8)])):
        answers = score(jaxift.load(out / name / "model"), [Request(row["prompt"], letters) for row in ROWS])
        assert sum(answer.logprobs.argmax() == gold for answer, gold in zip(answers, expected, strict=True)) >= 7
    assert run(capsys, *arguments).count("done before") == 4
    write(file, ROWS[:4])
    assert "2 of 4 done before" not in run(capsys, *arguments)
    assert [path.name for path in (out / "pairs-s0" / "steps").iterdir()] == ["000005"]  # none of the longer run before
    assert run(capsys, *arguments).count("done before") == 4


@pytest.mark.slow
def test_adapters_are_written_in_pefts_layout(capsys, file, tiny_folder, tmp_path):
    run(capsys, file, "-o", tmp_path / "out", "--model", tiny_folder, "--tune.lora.rank", 2, *SETTINGS)
    model = tmp_path / "out" / "pairs" / "model"
    assert sorted(path.name for path in model.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((model / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 32)
    assert config["base_model_name_or_path"] == str(tiny_folder)


BAD = {
    "no prompt": ([{"response": "x"}], "pairs.jsonl:1: field 'prompt' must be a non-empty text"),
    "empty response": ([*ROWS, {"prompt": "x", "response": ""}], "pairs.jsonl:9: field 'response'"),
    "negative weight": ([{**ROWS[0], "weight": -1}], "field 'weight' must be a number from 0"),
    "nothing": ([], "holds no line"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_before_anything_is_written(case, capsys, tiny_folder, tmp_path):
    rows, message = BAD[case]
    file = write(tmp_path / "pairs.jsonl", rows)
    said = run(capsys, file, "-o", tmp_path / "out", "--model", tiny_folder, code=2)
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_refused(capsys, file, tiny_folder, tmp_path):
    common = (file, "-o", tmp_path / "out", "--model", tiny_folder)
    assert "two files are called so" in run(capsys, file, *common, code=2)
    assert "give different numbers from 0" in run(capsys, *common, "--seeds", 1, 1, code=2)
    assert "no such" in run(capsys, tmp_path / "absent.jsonl", *common[1:], code=2)


def test_a_model_that_diverges_is_named_and_the_others_are_written(capsys, file, tiny_folder, tmp_path):
    wild = write(tmp_path / "wild.jsonl", [{**row, "weight": 1e38} for row in ROWS])
    out = tmp_path / "out"
    said = run(capsys, file, wild, "-o", out, "--model", tiny_folder, *SETTINGS, code=2)
    assert "wild: step 1: the loss or gradient is not finite, on the examples line" in said
    assert "1 of 2 stopped" in said
    assert (out / "pairs" / "model").is_dir()
    assert not (out / "wild" / "model").exists()
