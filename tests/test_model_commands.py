"""The verbs `inspect`, `convert` and `generate`: what they print and write, and what they refuse."""

import json
import shutil

import pytest

from jaxift.cli import main


def run(capsys, *arguments, code=0):
    """Runs a command; returns the lines of its output, or its one line of error."""
    assert main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    return printed.out.splitlines()


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("jaxift: error: ")
    return lines[0]


def test_inspect_prints_a_fact_a_line(capsys, tiny_folder):
    lines = run(capsys, "inspect", tiny_folder)
    assert f"model: {tiny_folder}" in lines
    assert "family: llama" in lines
    assert "tokenizer: present" in lines
    assert not any("refused" in line for line in lines)


def test_inspect_ends_with_2_where_loading_would_be_refused(capsys, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    (tmp_path / "m" / "model.safetensors").unlink()
    lines = run(capsys, "inspect", tmp_path / "m", code=2)
    assert "family: llama" in lines
    assert len([line for line in lines if line.startswith("would be refused: ")]) == 2


def test_convert_and_inspect_and_generate_from_what_it_wrote(capsys, tiny_folder, tmp_path):
    run(capsys, "convert", tiny_folder, tmp_path / "orbax", "--dtype", "bfloat16")
    assert "files: orbax, " in "\n".join(run(capsys, "inspect", tmp_path / "orbax"))
    run(capsys, "convert", tmp_path / "orbax", tmp_path / "hf")
    asked = ("--prompt", "A B", "--max-new-tokens", 4)
    one, other = (run(capsys, "generate", tmp_path / name, *asked) for name in ("orbax", "hf"))
    assert one == other
    assert one[0].startswith("A B")


def test_generate_prints_markup_as_it_is(capsys, tiny_folder):
    [line] = run(capsys, "generate", tiny_folder, "--prompt", "A [bold]B[/bold] :smile:", "--max-new-tokens", 1)
    assert line.startswith("A [bold]B[/bold] :smile:")


def test_generate_writes_what_the_function_returns(capsys, tiny_folder, tiny_model, tmp_path):
    import jaxift

    (tmp_path / "p.txt").write_text("A w1\n\nB w2 w3\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "A w1", "more": 1}\n{"prompt": "B w2 w3"}\n')
    asked = ("--max-new-tokens", 6, "--temperature", 0.8, "--top-p", 0.9, "--seed", 3, "--stop", "w7", "--stop", "w8")
    found = {}
    for name in ("p.txt", "p.jsonl"):
        out = tmp_path / "made" / f"{name}.out"
        run(capsys, "generate", tiny_folder, "--prompt", "C", "--prompts", tmp_path / name, "--out", out, *asked)
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["p.txt"] == found["p.jsonl"]
    assert [row["prompt"] for row in found["p.txt"]] == ["C", "A w1", "B w2 w3"]
    assert all(set(row) == {"prompt", "text", "tokens", "stopped"} for row in found["p.txt"])
    [greedy] = jaxift.generate(tiny_model, ["C"], max_new_tokens=6)
    run(capsys, "generate", tiny_folder, "--prompt", "C", "--max-new-tokens", 6, "--out", tmp_path / "greedy")
    [row] = [json.loads(line) for line in (tmp_path / "greedy").read_text().splitlines()]
    assert (row["text"], tuple(row["tokens"]), row["stopped"]) == (greedy.text, greedy.tokens, greedy.stopped)


def test_generate_is_the_same_on_a_mesh(capsys, tiny_folder):
    asked = ("generate", tiny_folder, "--prompt", "A B", "--prompt", "w1", "--max-new-tokens", 5)
    assert run(capsys, *asked) == run(capsys, *asked, "--mesh.data", 2, "--mesh.tensor", 2)


def test_another_seed_draws_other_words(capsys, tiny_folder):
    asked = ("generate", tiny_folder, "--prompt", "A B", "--max-new-tokens", 8, "--temperature", 2)
    first, same, other = (run(capsys, *asked, "--seed", seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["inspect"], "MODEL"),
        (["inspect", "absent/model/folder"], "no such model folder"),
        (["inspect", "MODEL", "more"], "more"),
        (["convert", "MODEL"], "DST"),
        (["convert", "MODEL", "DIR"], "is not empty"),
        (["convert", "absent/model/folder", "DIR/new"], "no such model folder"),
        (["convert", "MODEL", "DIR/new", "--dtype", "int8"], "--dtype"),
        (["generate"], "MODEL"),
        (["generate", "MODEL"], "--prompt TEXT or --prompts FILE"),
        (["generate", "MODEL", "--prompts", "DIR/absent.txt"], "--prompts"),
        (["generate", "MODEL", "--prompts", "DIR/empty.txt"], "nothing to continue"),
        (["generate", "MODEL", "--prompts", "DIR/broken.jsonl"], "broken.jsonl:2"),
        (["generate", "MODEL", "--prompt", "A", "--out", "DIR"], "--out"),
        (["generate", "MODEL", "--prompt", "A", "--out", "/proc/nowhere/x"], "cannot be written"),
        (["generate", "MODEL", "--prompt", "A", "--mesh.data", "99"], "99"),
        (["generate", "MODEL", "--prompt", "A", "--mesh.data", "0"], "error: Error parsing mesh: 1 validation error"),
        (["generate", "MODEL", "--prompt", "A", "--mesh.tensor", "3"], "mesh.tensor 3"),
        (["generate", "MODEL", "--prompt", "A", "--seed", "-1"], "--seed -1"),
        (["generate", "MODEL", "--prompt", "A", "--temperature", "-1"], "temperature"),
        (["generate", "MODEL", "--prompt", "A", "--top-p", "0"], "top_p"),
        (["generate", "MODEL", "--prompt", "A", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "MODEL", "--prompt", "A", "--max-new-tokens", "64"], "64"),
        (["generate", "MODEL", "--prompt", "A", "--max-positions", "99"], "max_positions 99"),
        (["generate", "MODEL", "--prompt", "A", "--dtype", "int8"], "--dtype"),
        (["generate", "MODEL", "--prompt", "A", "--stop", ""], "stop"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(capsys, tiny_folder, tmp_path, arguments, named):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "A"}\n{"text": "B"}\n')
    places = {"MODEL": str(tiny_folder), "DIR": str(tmp_path)}
    given = [argument.replace("MODEL", places["MODEL"]).replace("DIR", places["DIR"]) for argument in arguments]
    assert named in refusal(capsys, *given)


def test_the_help_names_the_verbs(capsys):
    told = run(capsys, "--help")
    assert all(any(line.startswith(f"  {verb} ") for line in told) for verb in ("inspect", "convert", "generate"))
