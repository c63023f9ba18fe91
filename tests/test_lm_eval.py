"""Our model in lm-evaluation-harness: the same results as its own `hf` model, from the same command."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxift import cli
from jaxift.errors import UserError

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

ROOT = Path(__file__).resolve().parents[1]
WORDS = [f"w{number}" for number in range(45)]
TASKS = {
    "choice": """
output_type: multiple_choice
fewshot_split: dev
fewshot_config: {sampler: first_n}
num_fewshot: 2
doc_to_text: "{{question}}\\n\
{% for letter in 'ABCD' %}{{letter}}. {{choices[loop.index0]}}\\n{% endfor %}Answer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc}]
""",
    "cloze": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "w1"
generation_kwargs: {until: ["w7", "w2 w3"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def documents(count, seed):
    rng = random.Random(seed)
    return [
        {
            "question": " ".join(rng.choices(WORDS, k=rng.randint(1, 5))),
            "choices": [" ".join(rng.choices(WORDS, k=rng.randint(1, 3))) for _ in "ABCD"],
            "answer": rng.randrange(4),
            # up to three windows of the model's 64 tokens
            "text": " ".join(rng.choices(WORDS, k=rng.choice((1, 20, 63, 64, 65, 150)))),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Tasks of the harness' four kinds of request, on local data."""
    folder = tmp_path_factory.mktemp("tasks")
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "dev")}
    for seed, (split, count) in enumerate({"test": 12, "dev": 2}.items()):
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in documents(count, seed)))
    for name, task in TASKS.items():
        head = f"task: local_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\n"
        (folder / f"{name}.yaml").write_text(head + "test_split: test" + task)
    return folder


def run(command, task_folder, out, *arguments):
    """Runs a command of the harness' form; its results, and its answers to every request of every task."""
    tasks = ",".join(f"local_{name}" for name in TASKS)
    common = ["--tasks", tasks, "--include_path", str(task_folder), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(task_folder / "cache"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command, *arguments, *common], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = out.rglob("results_*.json")
    samples = {
        name: [json.loads(line) for line in next(out.rglob(f"samples_local_{name}_*.jsonl")).read_text().splitlines()]
        for name in TASKS
    }
    answers = {name: {row["doc_id"]: row["resps"] for row in rows} for name, rows in samples.items()}
    return json.loads(results.read_text()), answers


# as where torch is not installed
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from jaxift.cli import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def ours(tiny_folder, task_folder, tmp_path_factory):
    arguments = ("lm-eval", "--model", "jaxift", "--model_args", f"pretrained={tiny_folder},dtype=float32")
    return run(["-c", WITHOUT_TORCH], task_folder, tmp_path_factory.mktemp("ours"), *arguments)


@pytest.fixture(scope="module")
def theirs(tiny_folder, task_folder, tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed; lm-eval's hf model needs it")
    arguments = ("--model", "hf", "--model_args", f"pretrained={tiny_folder},dtype=float32", "--device", "cpu")
    return run(["-m", "lm_eval"], task_folder, tmp_path_factory.mktemp("theirs"), *arguments, "--batch_size", "4")


def test_runs_without_torch_and_tells_how_texts_became_tokens(ours, tiny_model):
    config = ours[0]["config"]
    assert config["model"] == "jaxift"
    assert config["model_sha"] == tiny_model.fingerprint
    assert config["tokenizer_policy"]["seam"] == "lm-eval"
    assert config["tokenizer_policy"]["bos"] == 1
    assert set(ours[0]["results"]) == {f"local_{name}" for name in TASKS}


def test_accuracies_are_those_of_hf(ours, theirs):
    for name in ("choice", "cloze"):
        found, expected = (results["results"][f"local_{name}"] for results, _ in (ours, theirs))
        accuracies = {key: value for key, value in expected.items() if key.startswith("acc") and "stderr" not in key}
        assert accuracies
        assert {key: found[key] for key in accuracies} == accuracies
        # a model that answers everything alike would show nothing
        assert 0 < expected["acc,none"] < 1


@pytest.mark.parametrize("name", ["choice", "cloze"])
def test_loglikelihoods_are_those_of_hf(name, ours, theirs):
    assert ours[1][name].keys() == theirs[1][name].keys()
    for document, expected in theirs[1][name].items():
        found = np.array([[float(value) for value, _ in resps] for resps in ours[1][name][document]])
        np.testing.assert_allclose(found, [[float(value) for value, _ in resps] for resps in expected], atol=1e-4)
        assert [[greedy for _, greedy in resps] for resps in ours[1][name][document]] == [
            [greedy for _, greedy in resps] for resps in expected
        ]


def test_rolling_loglikelihoods_are_those_of_hf(ours, theirs):
    for document, expected in theirs[1]["rolling"].items():
        assert float(ours[1]["rolling"][document][0][0]) == pytest.approx(float(expected[0][0]), abs=1e-3)


def test_written_text_is_that_of_hf(ours, theirs):
    assert ours[1]["writing"] == theirs[1]["writing"]
    texts = [resps[0][0] for resps in theirs[1]["writing"].values()]
    assert len(set(texts)) > 1
    assert not any("w7" in text for text in texts)


class Asked:
    """A request as the harness makes it."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def model(tiny_folder):
    from jaxift.lm_eval import JaxiftLM

    return JaxiftLM(str(tiny_folder))


@pytest.fixture(scope="module")
def hf_model(tiny_folder):
    pytest.importorskip("torch", reason="torch is not installed; lm-eval's hf model needs it")
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(tiny_folder), device="cpu", dtype="float32", batch_size=3)


PAIRS = [
    ("w1 w2", " w3 w4"), ("w1 w2", " w5"), ("", "w1 w2"), ("<bos> w1 w2", " w3"), ("w8 \n", " w2"),
    # longer than the model: cut from the left, differently for options of different length
    (" ".join(WORDS * 2), " w1"), (" ".join(WORDS * 2), " w1 w2 w3"), ("w1", " " + " ".join(WORDS)), ("w1 w2", " w5"),
]  # fmt: skip


def test_cut_and_repeated_requests_are_those_of_hf(model, hf_model):
    requests = [Asked(*pair) for pair in PAIRS]
    expected = hf_model.loglikelihood(requests, disable_tqdm=True)
    found = model.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([one for one, _ in found], [one for one, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_prompts_longer_than_the_model_are_cut_as_hf_does(model, hf_model):
    prompts = [" ".join(WORDS * 2), "w1 w2", "<bos> w1 w2", " ".join(WORDS)]
    # one at a time: hf decides for a batch whether its prompts bring a BOS
    for prompt in prompts:
        requests = [Asked(prompt, {"until": ["w9"], "max_gen_toks": 10})]
        assert model.generate_until(requests, disable_tqdm=True) == hf_model.generate_until(requests, disable_tqdm=True)


def test_each_prompt_has_its_own_arguments(model):
    asked = [Asked("w1 w2", {"until": [], "max_gen_toks": count}) for count in (2, 8, 2)]
    short, long, again = model.generate_until(asked, disable_tqdm=True)
    assert short == again
    assert long.startswith(short)
    assert len(long.split()) > len(short.split())


def test_sampled_texts_differ_between_repeats_and_not_between_runs(model):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    first, second = (model.generate_until([Asked("w1 w2", settings)] * 2, disable_tqdm=True) for _ in range(2))
    assert first == second
    assert first[0] != first[1]
    # temperature alone does not ask for sampling where do_sample is False
    greedy = {**settings, "do_sample": False}
    assert len(set(model.generate_until([Asked("w1 w2", greedy)] * 2, disable_tqdm=True))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs {'num_beams': 4} are not supported"),
        ({"max_gen_toks": 64}, "max_gen_toks 64 leaves no room for a prompt; the model's limit is 64"),
    ],
)
def test_generation_that_would_be_another_is_refused(arguments, message, model):
    with pytest.raises(UserError) as caught:
        model.generate_until([Asked("w1", arguments)], disable_tqdm=True)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": ""}, "pretrained is missing"),
        ({"load_in_4bit": True}, "load_in_4bit unknown; known are pretrained, dtype"),
        ({"add_bos_token": "perhaps"}, "add_bos_token=perhaps is neither True nor False"),
        ({"data": 0}, "data=0, fsdp=1, tensor=1 is no mesh"),
        ({"max_length": "2k"}, "max_length=2k is no number of tokens"),
        ({"max_length": 1000.0}, "max_length=1000.0 is no number of tokens"),
        ({"batch_tokens": 0}, "batch_tokens=0 is no number of tokens"),
        ({"data": 64}, "needs 64 devices"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported"),
    ],
)
def test_model_arguments_are_refused_in_one_line(arguments, message, tiny_folder):
    from jaxift.lm_eval import JaxiftLM

    with pytest.raises(UserError) as caught:
        JaxiftLM(**{"pretrained": str(tiny_folder), **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mesh_and_limit_come_from_model_args(tiny_folder, model):
    from jaxift.lm_eval import JaxiftLM

    other = JaxiftLM(str(tiny_folder), max_length=32, data=4, tensor=2, add_bos_token=False)
    assert other.max_length == 32
    assert dict(other.model.mesh.shape) == {"cell": 1, "data": 4, "fsdp": 1, "tensor": 2}
    assert other.tok_encode("w1") == model.tok_encode("w1")[1:] == model.tok_encode("w1", add_special_tokens=False)
    requests = [Asked("<bos> w1 w2", " w3 w4")]
    found, expected = (each.loglikelihood(requests, disable_tqdm=True) for each in (other, model))
    np.testing.assert_allclose(found[0][0], expected[0][0], atol=1e-5)


def test_chat_template_is_the_tokenizers(tiny_folder, tmp_path):
    import shutil

    from jaxift.lm_eval import JaxiftLM

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = (
        "<bos>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }} {% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    chat = JaxiftLM(str(folder))
    history = [{"role": "system", "content": "w0"}, {"role": "user", "content": "w1"}]
    text = chat.apply_chat_template(history)
    assert text == "<bos>[user] w1 [assistant]"
    assert chat.chat_template(True) == template
    assert chat.tok_encode(text).count(1) == 1


def test_missing_harness_is_told_in_one_line(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval" or name == "jaxift.lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("jaxift.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["lm-eval", "--model", "jaxift"]) == 2
    assert "pip install 'jaxift[lm-eval]'" in capsys.readouterr().err
