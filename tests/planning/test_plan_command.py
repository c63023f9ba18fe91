"""`jaxift plan`: what is refused, and (with the TPU compiler) what it says of a small study."""

import importlib.util
import re

import pytest

from jaxift.artifacts import RunDirectory
from jaxift.cli import main
from jaxift.config import load_study
from jaxift.planning import workload
from jaxift.units import Units
from jaxift.world import MODEL_DIR, write_questions

STUDY = """
name: small
model: {{path: {model}, dtype: bfloat16}}
data_dir: {data}
domains:
  - name: medicine
    train: [{{path: medicine/train.jsonl, limit: 40}}]
    dev: [{{path: medicine/dev.jsonl}}]
    homo: [{{path: medicine/homo.jsonl, limit: 20}}]
    id: [{{path: medicine/id.jsonl, limit: 10}}]
    ood: [{{path: history/id.jsonl, limit: 10}}]
seeds: [0, 1]
probe: {{prompt: world, shots: 3, rotations: true}}
build: {{response_format: letter, cap: 30}}
tune: {{epochs: 1, batch_size: 8}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of the embedded model, in a file."""
    folder = tmp_path_factory.mktemp("plan")
    write_questions(folder / "questions")
    path = folder / "study.yaml"
    path.write_text(STUDY.format(model=MODEL_DIR, data=folder / "questions"))
    return path


def units(study, tmp_path):
    return Units(load_study(study), RunDirectory.create(str(tmp_path / "run")))


def test_what_is_planned_is_what_the_study_asks(study, tmp_path):
    found = units(study, tmp_path)
    [probe], [tuning], [evaluation] = (
        make(found) for make in (workload.probes, workload.tunings, workload.evaluations)
    )
    options = len(found.questions("medicine")["train"][0].options)
    assert len(probe.requests) == 40 * options + 20 + 10 + 10  # training questions in all rotations
    assert len(tuning.pairs) == 30
    assert tuning.cells == evaluation.models == 3 * 2
    assert len(evaluation.requests) == 20 + 10 + 10 + 30
    assert all(
        request.context.endswith(prompt)
        for request, (prompt, _) in zip(evaluation.requests[-30:], tuning.pairs, strict=True)
    )
    assert len({request.context for request in probe.requests}) == len(probe.requests)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v5e"], "is no slice"),
        (["--topology", "v5e:4x4", "--compiled", "0"], "--compiled 0: give a number from 1"),
        ([], "topology"),
        (["--topology", "v5e:4x4", "--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, said, study, capsys):
    assert main(["plan", str(study), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxift[plan]")
def test_a_small_study_is_planned_from_config_and_questions_alone(study, tmp_path, capsys):
    model = tmp_path / "model"  # no weights
    model.mkdir()
    for file in MODEL_DIR.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    run = tmp_path / "run"
    arguments = ["--model.path", str(model), "--run-dir", str(run), "--price", "2", "--compiled", "1"]
    assert main(["plan", str(study), "--topology", "v5e:2x2", *arguments]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("probe medicine", "tune medicine, 6 models", "evaluate medicine"))
    told = re.search(r"at worst: (\S+) hours, (\S+) chip-hours, (\S+) at 2", printed)
    hours, chip_hours, price = (float(each.replace(",", "")) for each in told.groups())
    assert chip_hours == pytest.approx(4 * hours, rel=0.01)
    assert price == pytest.approx(2 * chip_hours, rel=0.01)
    assert not run.exists()  # nothing is written
