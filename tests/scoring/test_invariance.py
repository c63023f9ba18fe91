"""Scores of requests of every kind: those of a plain forward pass, however ordered, batched, laid out or resumed."""

import functools
import json
import random

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import run_processes

import jaxift
from jaxift.scoring import engine, packing
from jaxift.scoring import plan as planning
from jaxift.scoring import tree as tree_module
from jaxift.scoring.engine import score_tokens
from jaxift.scoring.filling import fill
from jaxift.scoring.packing import Layout
from jaxift.scoring.plan import Shape, Step, make_plan
from jaxift.scoring.programs import Scored, compile_plan
from jaxift.scoring.requests import Score, TokenRequest
from jaxift.scoring.store import ScoreStore
from jaxift.scoring.tree import build_tree

TOLERANCE = 1e-4
LONGEST = 512
SIZES = {"max_position_embeddings": 1024, "vocab_size": 64}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 50},
    "gemma2": {
        "sliding_window": 20, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 5,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_act": ..., "mlp_bias": ...,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def every_kind():
    """Requests behind shared prefixes of 400 and 270 tokens, short ones, whole texts, lone ones, repeated ones."""
    rng = np.random.default_rng(5)

    def text(size):
        return tuple(rng.integers(4, 64, size).tolist())

    def options(*sizes):
        return tuple(text(size) for size in sizes)

    shots, other, preamble = text(400), text(270), text(12)
    letters = ((4,), (5,), (6,), (7,))
    few_shot = [TokenRequest(shots + text(size), letters) for size in range(20, 60, 2)]
    by_text = [TokenRequest(other + text(size), options(9, 1, 12, 5)) for size in range(30, 70, 4)]
    deeper = [TokenRequest(other + text(90) + text(size), letters) for size in (5, 6)]
    chat = [TokenRequest(preamble + text(size), letters) for size in (10, 30, 18)]
    whole = [TokenRequest(text(1), options(size)) for size in (120, 17, 300)]
    lone = [TokenRequest(text(size), options(2, 1)) for size in (70, 5, 1)]
    begins = [
        TokenRequest(shots, options(1, 6)),
        TokenRequest(shots[:100], options(2)),
        TokenRequest(shots[:1], (shots[1:9],)),
    ]
    return [*few_shot, *by_text, *deeper, *chat, *whole, *lone, *begins, few_shot[0], by_text[1], lone[2]]


ASKED = every_kind()


@pytest.fixture(scope="session")
def family_folder(make_folder, tmp_path_factory):
    """Name in FAMILIES -> a tiny model of 1024 positions."""
    return functools.cache(
        lambda name: make_folder(tmp_path_factory.mktemp(name) / "model", model_type=name, **SIZES, **FAMILIES[name])
    )


@pytest.fixture(scope="session")
def model(family_folder):
    return jaxift.load(family_folder("llama"))


@pytest.fixture(scope="session")
def answers(model):
    return score_tokens(model.decoder, ASKED, model.mesh)


def assert_same(found, expected, tolerance=TOLERANCE):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(one.num_tokens, other.num_tokens)
        for mine, its in zip(one.token_logprobs, other.token_logprobs, strict=True):
            np.testing.assert_allclose(mine, its, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(one.is_greedy, other.is_greedy)


def plain_scores(all_logits, model, asked):
    """One forward pass over each distinct text: a context, and all tokens of an option but the last."""
    texts = {(*request.context, *option[:-1]): 0 for request in asked for option in request.options}
    rows = 16
    whole = np.zeros((-(-len(texts) // rows) * rows, LONGEST), np.int32)
    for number, text in enumerate(texts):
        whole[number, : len(text)] = text
        texts[text] = number
    logits = [
        all_logits(model.decoder, model.mesh, whole[start : start + rows]) for start in range(0, len(whole), rows)
    ]
    logits = np.concatenate(logits).astype(np.float64)
    found = []
    for request in asked:
        tokens, greedy = [], []
        for option in request.options:
            first = len(request.context) - 1
            places = logits[texts[*request.context, *option[:-1]], first : first + len(option)]
            chosen = places[np.arange(len(option)), option]
            tokens.append((chosen - np.log(np.exp(places).sum(-1))).astype(np.float32))
            greedy.append(bool((places.argmax(-1) == option).all()))
        logprobs, counts = np.array([each.sum() for each in tokens]), np.array([len(each) for each in tokens])
        found.append(Score(logprobs, counts, np.array(greedy), tuple(tokens)))
    return found


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "mistral"))]
)
def test_scores_are_those_of_a_plain_forward(name, family_folder, all_logits):
    model = jaxift.load(family_folder(name))
    assert_same(score_tokens(model.decoder, ASKED, model.mesh), plain_scores(all_logits, model, ASKED))


def test_prefixes_are_shared_in_these_requests(model):
    told = []
    score_tokens(model.decoder, ASKED, model.mesh, report=told.append)
    assert told[0].useful_tokens < 0.2 * told[0].asked_tokens
    plan = make_plan(build_tree(ASKED), engine.layout(model.config, model.mesh))
    assert {max(step.depths) for step in plan.work if isinstance(step, Step)} > {0}
    assert plan.columns > 400


@settings(max_examples=3)
@given(order=st.permutations(range(len(ASKED))))
def test_order_changes_nothing(model, answers, order):
    found = score_tokens(model.decoder, [ASKED[index] for index in order], model.mesh)
    assert_same(found, [answers[index] for index in order])


@pytest.mark.parametrize("name", ["8x1x1", "4x1x2"])
def test_mesh_changes_nothing(name, meshes, family_folder, answers, monkeypatch):
    monkeypatch.setattr(engine, "Layout", functools.partial(Layout, row_lengths=1))  # fewer programs
    other = jaxift.load(family_folder("llama"), meshes[name])
    assert_same(score_tokens(other.decoder, ASKED, other.mesh), answers)


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [1, 100, 5000])
@pytest.mark.parametrize("lengths", [(40, 130, 1024), tuple(range(1, 400, 3))], ids=["few", "tight"])
def test_buckets_and_batch_change_nothing(batch_tokens, lengths, model, answers, monkeypatch):
    monkeypatch.setattr(packing, "ROW_LENGTHS", lengths)
    monkeypatch.setattr(planning, "SLOTS", (3, 10, 300))
    monkeypatch.setattr(planning, "MOST_TARGETS", 2)
    monkeypatch.setattr(tree_module, "CUT_OVERHEAD", 20)
    assert_same(score_tokens(model.decoder, ASKED, model.mesh, batch_tokens=batch_tokens), answers)


TWO = """
import json
import jaxift
from jaxift.parallel.mesh import make_mesh
from jaxift.scoring.engine import score_tokens
from jaxift.scoring.requests import TokenRequest
folder, requests, data, tensor = sys.argv[1:]
drawn = json.loads(open(requests).read())
asked = [TokenRequest(tuple(context), tuple(map(tuple, options))) for context, options in drawn]
model = jaxift.load(folder, make_mesh(int(data), 1, int(tensor)))
scores = score_tokens(model.decoder, asked, model.mesh)
print(json.dumps([[score.logprobs.tolist(), score.is_greedy.tolist()] for score in scores]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_two_processes_find_what_one_does(shape, family_folder, answers, tmp_path):
    (tmp_path / "requests.json").write_text(json.dumps([[each.context, each.options] for each in ASKED]))
    told = run_processes(TWO, family_folder("llama"), tmp_path / "requests.json", *shape)
    for output, _ in told:
        for (logprobs, greedy), answer in zip(json.loads(output[-1]), answers, strict=True):
            np.testing.assert_allclose(logprobs, answer.logprobs, rtol=0, atol=TOLERANCE)
            assert greedy == answer.is_greedy.tolist()


def test_resumed_run_ends_with_the_same_bits(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Layout", functools.partial(Layout, part_steps=1))
    store = ScoreStore(epath.Path(tmp_path / "parts"), {"model": "tiny"})
    run = functools.partial(score_tokens, model.decoder, ASKED, model.mesh, batch_tokens=64, store=store)
    whole = run()
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 10
    for seed in range(3):
        for part in random.Random(seed).sample(parts, len(parts) // 2):
            part.unlink()
        assert_same(run(), whole, tolerance=0)
    np.testing.assert_array_equal(run()[0].logprobs, whole[0].logprobs)


def test_other_shapes_are_an_error_and_are_not_compiled(model):
    plan = make_plan(build_tree(ASKED[:3]), Layout())
    programs = compile_plan(Scored.of(model.decoder, model.mesh), plan, np.dtype(np.float32))
    [step, *_] = (piece for piece in plan.work if isinstance(piece, Step))
    filled = fill(plan, step)
    arrays = (
        np.array(step.depths, np.int32),
        filled.tokens,
        filled.positions,
        filled.reach,
        filled.slots,
        filled.targets,
    )
    with jax.set_mesh(model.mesh), jax.log_compiles():
        room = programs.start()
        programs.step(step.shape, room, arrays)
        with pytest.raises(KeyError):
            programs.step(Shape(1, 7, 3, 1), room, arrays)
        with pytest.raises(TypeError):
            programs.step(step.shape, room, [*arrays[:-1], filled.targets[:, :-1]])
        with pytest.raises(KeyError):
            programs.prefill(room, [np.zeros((1, 9), np.int32)] * 3)


def test_more_questions_hold_no_more_memory(model):
    rng = np.random.default_rng(0)
    shots = tuple(rng.integers(4, 64, 200).tolist())

    def peak(count):
        asked = [TokenRequest((*shots, *rng.integers(4, 64, 40).tolist()), ((4,), (5,))) for _ in range(count)]
        live = []

        def watch(done, total):
            live.append(sum(array.nbytes for array in jax.live_arrays()))

        score_tokens(model.decoder, asked, model.mesh, batch_tokens=128, progress=watch)
        return max(live)

    few, many = peak(60), peak(600)
    assert many <= few * 1.01
