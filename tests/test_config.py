from pathlib import Path

import pytest

from jaxift.config import StudyConfig, dump_study, load_study, parse_study
from jaxift.errors import UserError

MINIMAL = """
name: tiny
model: {path: m}
domains:
  - {name: d, train: [{path: a}], dev: [{path: b}], homo: [{path: c}], id: [{path: e}], ood: [{path: f}]}
"""


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_study(text, "s.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_dumped_is_read_back_the_same():
    config = parse_study(MINIMAL, "s.yaml")
    assert parse_study(dump_study(config), "dump") == config


def test_the_defaults_are_the_papers():
    config = parse_study(MINIMAL, "s.yaml")
    tune, probe = config.tune, config.probe
    assert (tune.learning_rate, tune.epochs, tune.batch_size, tune.warmup) == (2e-5, 3, 256, 0.03)
    assert (tune.weight_decay, tune.clip_norm, tune.max_length) == (0.0, 1.0, 2048)
    assert (probe.shots, probe.demonstration_seed, probe.threshold) == (5, 42, 0.5)
    assert config.run_path == "runs/tiny"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: tiny", "name: tiny\ncolour: red", "colour"),
        ("name: tiny", "name: ../escape", "name"),
        ("name: tiny", "", "name"),
        ("model: {path: m}", "model: {path: m, dtype: int8}", "model.dtype"),
        ("model: {path: m}", "model: {path: m}\ntune: {learning_rate: 0}", "tune.learning_rate"),
        ("model: {path: m}", "model: {path: m}\ntune: {learning_rat: 1}", "tune.learning_rat"),
        ("model: {path: m}", "model: {path: m}\ntune: {epochs: 0}", "tune.epochs"),
        ("model: {path: m}", "model: {path: m}\nseeds: []", "seeds"),
        ("model: {path: m}", "model: {path: m}\nseeds: [1, 1]", "seeds"),
        ("model: {path: m}", "model: {path: m}\nprobe: {formulation: cf}", "probe.prompt"),
        ("model: {path: m}", "model: {path: m}\nprobe: {prompt: cloze}", "probe.prompt"),
        ("model: {path: m}", "model: {path: m}\nprobe: {prompt: cloze, formulation: cf}", "build.response_format"),
        ("model: {path: m}", "model: {path: m}\nanalyze: {seed: -1}", "analyze.seed"),
        ("model: {path: m}", "model: {path: m}\nbuild: {response_format: option}", "build.response_format"),
        ("model: {path: m}", "model: {path: m}\nbuild: {arms: [HAR, WHAT]}", "build.arms"),
        ("train: [{path: a}]", "train: []", "train"),
        ("dev: [{path: b}]", "dev: []", "dev"),
        ("name: d,", "name: 'd/../../x',", "domains.0.name"),
        ("homo: [{path: c}]", "homo: [{path: c, limit: 0}]", "domains.0.homo.0.limit"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_its_field(old: str, new: str, named: str):
    assert old in MINIMAL
    message = refused(MINIMAL.replace(old, new))
    assert message.startswith("s.yaml: ")
    assert named in message


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "just text", "a: !!python/object/apply:os.system [true]"])
def test_what_is_no_study_is_refused(text: str):
    assert "s.yaml" in refused(text)


def test_values_cannot_be_changed():
    config = parse_study(MINIMAL, "s.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_committed_study_is_valid_and_its_header_says_how_to_run_it(path: Path):
    assert isinstance(load_study(path), StudyConfig)
    header = path.read_text(encoding="utf-8").split("name:")[0]
    assert "jaxift run" in header
