"""Generation: what a prompt gets is its own, follows the softmax, and ends where it should."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import jaxift
from jaxift.errors import UserError
from jaxift.models.continuation import choose_tokens, continue_rows
from jaxift.models.sampling import end_tokens, generate, generate_tokens
from jaxift.parallel.mesh import sharding

NEW = 10
LENGTHS = (3, 14, 1, 9, 6)
PROMPTS = [np.random.default_rng(length).integers(4, 64, length).tolist() for length in LENGTHS]
SEEDS = (5, 0, 7, 7, 2**32 - 1)
WAYS = {
    "greedy": {},
    "nucleus": {"temperature": 1.3, "top_p": 0.8, "seeds": SEEDS},
}


def run(model, prompts=PROMPTS, **options):
    options = {"max_new_tokens": NEW, "dtype": model.dtype, **options}
    return generate_tokens(model.decoder, prompts, model.mesh, **options)


@pytest.fixture(scope="module")
def folder(make_folder, tmp_path_factory):
    """A tiny model whose 65 tokens do not divide over two devices."""
    return make_folder(tmp_path_factory.mktemp("odd") / "model", vocab_size=65)


@pytest.fixture(scope="module")
def model(folder):
    return jaxift.load(folder)


@pytest.fixture(scope="module", params=list(WAYS))
def way(request):
    return WAYS[request.param]


def each(way, order):
    """The options of prompts in another order: seeds belong to their prompts."""
    return {**way, "seeds": [way["seeds"][index] for index in order]} if "seeds" in way else way


def test_a_prompt_gets_the_same_alone_and_in_any_batch(model, way):
    together = run(model, **way)
    assert len({token for tokens in together for token in tokens}) > 10
    for index in (0, 1, 2):
        assert run(model, [PROMPTS[index]], **each(way, [index])) == [together[index]]
    order = [3, 0, 4, 2, 1]
    shuffled = run(model, [PROMPTS[index] for index in order], batch_tokens=50, **each(way, order))
    assert shuffled == [together[index] for index in order]


@pytest.mark.parametrize("mesh", ["2x2x2", "8x1x1", "1x1x2"])
def test_every_mesh_writes_the_same(mesh, model, meshes, folder):
    other = jaxift.load(folder, meshes[mesh])
    assert other.config.vocab_padding == (0 if mesh == "8x1x1" else 1)
    for way in WAYS.values():
        assert run(other, **way) == run(model, **way)


def test_weights_that_are_not_gathered_give_the_same(model, meshes, folder, monkeypatch):
    monkeypatch.setattr("jaxift.models.continuation.GATHERED_BYTES", 0)
    other = jaxift.load(folder, meshes["2x2x2"])
    # a limit of its own, so that no program from before is found
    assert run(other, max_new_tokens=NEW + 1) == run(model, max_new_tokens=NEW + 1)


def test_seeds_decide_and_nothing_else(model):
    prompts = [PROMPTS[0]] * 6
    found = run(model, prompts, temperature=1.3, seeds=[1, 2, 1, 3, 2, 4])
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert len(set(found)) == 4
    by_default = run(model, prompts, temperature=1.3)
    assert by_default == run(model, prompts, temperature=1.3, seeds=range(6))
    assert len(set(by_default)) == 6
    assert len(set(run(model, prompts))) == 1


def test_other_temperatures_nuclei_and_seeds_need_no_new_program(model):
    run(model, temperature=0.5, top_p=0.5)
    before = continue_rows._cache_size()
    run(model, temperature=0.9, top_p=0.7, seeds=SEEDS)
    assert continue_rows._cache_size() == before
    run(model, temperature=0.9, top_p=0.7, max_new_tokens=NEW + 2)
    assert continue_rows._cache_size() == before + 1


def test_a_low_temperature_and_a_small_nucleus_are_greedy(model):
    greedy = run(model)
    assert run(model, temperature=1e-4, seeds=SEEDS) == greedy
    assert run(model, temperature=1.5, top_p=1e-6, seeds=SEEDS) == greedy


def draws(mesh, logits, temperature, top_p, count, step=0):
    """Tokens that `count` seeds draw from one row of logits."""
    with jax.set_mesh(mesh):
        rows = jax.device_put(np.tile(np.float32(logits), (count, 1)), sharding(mesh, "batch", "vocab"))
        seeds = jax.device_put(np.arange(count, dtype=np.uint32), sharding(mesh, "batch"))
        draw = jnp.float32(temperature), jnp.float32(top_p)
        mode = "nucleus" if top_p < 1 else "sample"
        choose = jax.jit(lambda *given: choose_tokens(*given, len(logits) - 1, mode))  # the last is padding
        return np.asarray(choose(rows, seeds, jnp.int32(step), draw))


LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.0, 1.9, -3.0, 50.0])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("mesh", ["1x1x1", "4x1x2"])
def test_draws_follow_the_softmax(mesh, temperature, meshes):
    count = 8000
    counted = np.bincount(draws(meshes[mesh], LOGITS, temperature, 1.0, count), minlength=7)
    assert stats.chisquare(counted, count * softmax(LOGITS[:7] / temperature)).pvalue > 0.01
    assert stats.chisquare(counted, count * softmax(LOGITS[:7] / (temperature * 1.2))).pvalue < 1e-4


@pytest.mark.parametrize("top_p", [0.05, 0.35, 0.6, 0.8, 0.95])
def test_draws_of_a_nucleus_are_from_exactly_it(top_p, meshes):
    temperature, count = 1.2, 8000
    probabilities = softmax(LOGITS[:7] / temperature)
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    nucleus = np.sort(order[:size])
    found = draws(meshes["1x1x1"], LOGITS, temperature, top_p, count)
    assert set(found.tolist()) == set(nucleus.tolist())
    if size > 1:
        expected = count * probabilities[nucleus] / probabilities[nucleus].sum()
        assert stats.chisquare(np.bincount(found, minlength=7)[nucleus], expected).pvalue > 0.01


def test_steps_of_one_seed_are_independent(meshes):
    first, second = (draws(meshes["1x1x1"], LOGITS, 1.0, 1.0, 4000, step) for step in (0, 1))
    pairs = np.histogram2d(first, second, bins=[[0, 1, 2, 5, 7]] * 2)[0]
    assert stats.chi2_contingency(pairs).pvalue > 0.01


def test_end_tokens_end_a_row_and_are_left_out(model):
    free = run(model)
    ends = {free[0][4], free[3][2]}
    for before, after in zip(free, run(model, end_tokens=sorted(ends)), strict=True):
        first = next((place for place, token in enumerate(before) if token in ends), NEW)
        assert after == before[:first]
    assert () in run(model, end_tokens=[tokens[0] for tokens in free])


def test_stop_tokens_end_a_row_and_stay(model):
    free = run(model)
    stop = free[1][3]
    for before, after in zip(free, run(model, stop_tokens=[stop]), strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)


def test_texts_are_what_follows_the_prompt(model):
    prompts = ["w1 w2 w3", "A", "w7 w8 w9 w10 w11"]
    found = generate(model, prompts, max_new_tokens=NEW)
    for prompt, each in zip(prompts, found, strict=True):
        ids = model.tokenizer.encode(prompt)
        assert each.tokens == run(model, [ids], end_tokens=end_tokens(model))[0]
        assert each.stopped == (len(each.tokens) < NEW)
        whole = model.tokenizer.backend.decode([*ids, *each.tokens], skip_special_tokens=True)
        assert prompt + each.text == whole


def test_stop_texts_cut_before_them(model):
    prompts = ["w1 w2 w3", "A", "w7 w8 w9 w10 w11"]
    free = generate(model, prompts, max_new_tokens=NEW)
    words = free[0].text.split()
    # one is a token of its own, at which rows stop early; the other begins in one token and ends in the next
    for stop in (words[3], f"{words[3]} {words[4]}"):
        found = generate(model, prompts, max_new_tokens=NEW, stop=["not in it", stop])
        for before, after in zip(free, found, strict=True):
            assert after.text == before.text.split(stop)[0]
            assert after.stopped == (stop in before.text or before.stopped)
            assert after.tokens == before.tokens[: len(after.tokens)]
        needed = next(count for count in range(1, NEW + 1) if stop in " ".join(words[:count]))
        assert len(found[0].tokens) == needed < NEW


def with_files(model, tmp_path, config=None, generation=None):
    for name, fields in (("config.json", config), ("generation_config.json", generation)):
        if fields is not None:
            (tmp_path / name).write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return dataclasses.replace(model, folder=tmp_path)


def test_end_tokens_are_those_of_the_most_special_file(model, tmp_path):
    assert end_tokens(with_files(model, tmp_path)) == (2,)
    assert end_tokens(with_files(model, tmp_path, config={"eos_token_id": 5})) == (5,)
    assert end_tokens(with_files(model, tmp_path, generation={"eos_token_id": None})) == (5,)
    assert end_tokens(with_files(model, tmp_path, generation={"eos_token_id": [9, 7, 9]})) == (7, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{", r"generation_config.json: not valid JSON"),
        ("[]", r"generation_config.json: not a JSON object"),
        ({"eos_token_id": "2"}, r"generation_config.json: eos_token_id '2' is no token"),
        ({"eos_token_id": [2, True]}, r"eos_token_id \[2, True\] is no token"),
        ({"eos_token_id": 65}, r"eos_token_id 65 is no token \(or list of tokens\) of a vocabulary of 65"),
    ],
)
def test_malformed_end_tokens_are_refused(fields, message, model, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        end_tokens(with_files(model, tmp_path, generation=fields))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0 is less than 1"),
        ({"temperature": -0.1}, "temperature -0.1 is not a number from 0 up"),
        ({"temperature": float("nan")}, "temperature nan is not a number from 0 up"),
        ({"temperature": float("inf")}, "temperature inf is not a number from 0 up"),
        ({"top_p": 0.0}, "top_p 0.0 is not above 0 and up to 1"),
        ({"top_p": 1.1}, "top_p 1.1 is not above 0 and up to 1"),
        ({"top_p": float("nan")}, "top_p nan is not above 0 and up to 1"),
        ({"batch_tokens": 0}, "batch_tokens 0 is less than 1"),
        ({"seeds": [1]}, "seeds has 1 entries for 5 prompts"),
        ({"seeds": [0, 1, 2, 3, -1]}, "seed -1 is not between 0 and"),
        ({"seeds": [0, 1, 2, 3, 2**32]}, "seed 4294967296 is not between 0 and"),
        ({"max_new_tokens": 51}, "prompt 1 has 14 tokens and max_new_tokens is 51, together more than .* limit of 64"),
        ({"prompts": [[4], []]}, "prompt 1 is empty and the model adds no BOS token"),
        ({"prompts": [[4], [5, 65]]}, "token 65 is outside the model's vocabulary of 65"),
        ({"prompts": [[4], [5, -1]]}, "token -1 is outside the model's vocabulary of 65"),
    ],
)
def test_bad_arguments_are_refused(options, message, model):
    with pytest.raises(UserError, match=message) as raised:
        run(model, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stop", ["w1", [""]])
def test_stop_is_a_list_of_texts(stop, model):
    with pytest.raises(UserError, match="is not a list of non-empty texts"):
        generate(model, ["w1"], stop=stop)


def test_the_longest_prompt_that_fits_is_continued(model):
    assert len(run(model, [[5] * 54])[0]) == NEW
    assert run(model, []) == []


def test_an_empty_prompt_begins_with_bos_where_there_is_one(model, folder):
    assert generate(model, [""], max_new_tokens=NEW)[0].tokens == run(model, [[1]], end_tokens=[2])[0]
    with pytest.raises(UserError, match="prompt 0 is empty"):
        generate(jaxift.load(folder, bos="never"), [""])


def test_weights_are_cast_to_what_is_computed_in(folder, meshes):
    held = jaxift.load(folder, meshes["2x2x2"], "bfloat16")
    wide = held.with_state(jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(held.decoder)))
    found = run(held)
    assert run(wide) == found
    assert all(len(tokens) == NEW for tokens in found)


def test_progress_counts_prompts(model):
    seen = []
    run(model, batch_tokens=50, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [total for _, total in seen] == [5] * len(seen)
    assert seen == sorted(set(seen))


def same_as_torch(folder, prompt):
    """Checks that 64 greedy tokens are those of transformers."""
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ours = jaxift.load(folder)
    [found] = generate(ours, [prompt])
    ids = torch.tensor([ours.tokenizer.encode(prompt)])
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": list(end_tokens(ours)), "pad_token_id": 0}
    with torch.no_grad():
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    kept = [token for token in expected if token not in end_tokens(ours)]
    assert list(found.tokens) == kept
    assert found.stopped == (len(kept) < len(expected))
    return found


def test_stories260k_writes_what_it_writes_in_torch(shared_data):
    folder = shared_data / "models" / "stories260K"
    found = same_as_torch(folder, "Once upon a time, there was a little girl named Lily. She liked to play with her")
    assert found.text.startswith(" toys and her friends. One day, Lily's mommy told her")


@pytest.mark.slow
def test_smollm2_writes_what_it_writes_in_torch(smollm2_folder):
    found = same_as_torch(smollm2_folder, "The mitochondria are the part of the cell that")
    assert len(found.tokens) == 64
