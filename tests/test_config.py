from pathlib import Path

import pytest

from jaxift.arms import mixtures
from jaxift.config import StudyConfig, dump_study, load_study, parse_study
from jaxift.errors import UserError

MINIMAL = """
name: tiny
model: {path: m}
domains:
  - {name: d, train: [{path: a.jsonl}], dev: [{path: b.jsonl}], homo: [{path: c.jsonl}], id: [{path: e.jsonl}],
     ood: [{path: f.jsonl}]}
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
        ("model: {path: m}", "model: {path: m}\nbuild: {arms: [HAR, INC+matched]}", "build.arms"),
        ("model: {path: m}", "model: {path: m}\nbuild: {arms: [SELF, SELF@1, SELF@1.0]}", "build.arms"),
        ("model: {path: m}", "model: {path: m}\nbuild: {arms: [HAR, HAR+unexplained]}", "build.explanations"),
        ("model: {path: m}", "model: {path: m}\nbuild: {general: {path: g, share: -1}}", "build.general.share"),
        ("model: {path: m}", "model: {path: m}\nprobe: {prior_questions: 9, rotations: true}", "probe.prior_questions"),
        ("model: {path: m}", "model: {path: m}\nprobe: {prompt: world, chat: model}", "probe.chat"),
        ("model: {path: m}", "model: {path: m}\nprobe: {demonstration_seed: -1}", "probe.demonstration_seed"),
        (
            "model: {path: m}",
            "model: {path: m, seam: isolated}\nprobe: {prompt: cloze, formulation: cf}\n"
            "build: {response_format: option}",
            "model.seam isolated",
        ),
        (
            "model: {path: m}",
            "model: {path: m}\nprobe: {prompt: cloze, formulation: cf}\n"
            "build: {response_format: option, arms: [INC+shuffled]}",
            "INC+shuffled moves options",
        ),
        ("train: [{path: a.jsonl}]", "train: []", "train"),
        ("dev: [{path: b.jsonl}]", "dev: []", "dev"),
        ("name: d,", "name: 'd/../../x',", "domains.0.name"),
        ("homo: [{path: c.jsonl}]", "homo: [{path: c.jsonl, limit: 0}]", "domains.0.homo.0.limit"),
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


def test_a_study_may_extend_another(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "tune: {epochs: 7, batch_size: 9}\nseeds: [1, 2]\n")
    (tmp_path / "next.yaml").write_text("extends: base.yaml\nname: next\ntune: {epochs: 8}\nseeds: [3]\n")
    base, found = load_study(tmp_path / "base.yaml"), load_study(tmp_path / "next.yaml")
    tune = base.tune.model_copy(update={"epochs": 8})
    assert found == base.model_copy(update={"name": "next", "tune": tune, "seeds": (3,)})


@pytest.mark.parametrize(("name", "expected"), [("itself.yaml", "extends itself"), ("gone.yaml", "gone.yaml: no such")])
def test_what_cannot_be_extended_is_refused(tmp_path, name, expected):
    (tmp_path / "itself.yaml").write_text(f"extends: {name}\nname: x\n")
    with pytest.raises(UserError, match=expected):
        load_study(tmp_path / "itself.yaml")


def test_the_papers_configurations_differ_by_model_alone():
    folder = Path(__file__).resolve().parents[1] / "configs" / "paper"
    studies = {path.stem: load_study(path) for path in folder.glob("*.yaml")}
    assert set(studies) == {"llama2_7b", "llama2_13b", "llama2_70b", "mistral_7b"}
    rates = {name: study.tune.learning_rate for name, study in studies.items()}
    assert rates == {"llama2_7b": 2e-5, "llama2_13b": 2e-5, "llama2_70b": 2e-5, "mistral_7b": 1e-5}
    for study in studies.values():
        assert [domain.name for domain in study.domains] == ["medicine", "history", "engineering", "jurisprudence"]
        assert study.domains == studies["llama2_7b"].domains
        assert list(mixtures(study.build.arms).values()) == [0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
