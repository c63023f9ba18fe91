import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxift.data.tokenizer import Tokenizer
from jaxift.models.config import Span
from jaxift.models.export import hf_tensors
from jaxift.models.rope import Rope
from jaxift.models.weights import load
from jaxift.world import MODEL_DIR, write_questions
from jaxift.world import pretrain as recipe
from jaxift.world.corpus import instruction_prompt, quiz_prompt, structural_words
from jaxift.world.facts import build_world
from jaxift.world.rows import Stage, vocabulary
from jaxift.world.words import LETTERS, SPECIALS


@pytest.fixture
def tiny(monkeypatch):
    """A small model and a short recipe: the two programs of a run compile in seconds."""
    shape = recipe.decoder_config

    def small(vocab_size):
        return dataclasses.replace(
            shape(vocab_size),
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=16,
            pattern=(Span(Rope(16)),),
        )

    monkeypatch.setattr(recipe, "decoder_config", small)
    monkeypatch.setattr(recipe, "LAYERS", 2)
    monkeypatch.setattr(recipe, "ROWS", 4)
    drills, all_kinds = Stage(32, (0.0, 0.0, 0.0, 0.0, 1.0)), Stage(4, (1, 1, 1, 1, 1), mixed_authors=True)
    monkeypatch.setattr(recipe, "STAGES", (drills, all_kinds))


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_repeats_itself(tiny, tmp_path):
    seen = []
    first = recipe.pretrain(tmp_path / "a", seed=3, progress=lambda step, total, *_: seen.append((step, total)))
    again = recipe.pretrain(tmp_path / "b", seed=3)
    assert np.mean(first[26:32]) < 0.8 * first[0]
    assert seen == [(step, 36) for step in range(1, 37)]
    assert first == again
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    loaded = hf_tensors(load(tmp_path / "a").decoder)
    assert tensors.keys() == loaded.keys()
    assert all((tensors[name] == loaded[name]).all() for name in tensors)


def test_embedded_model_is_small_and_its_tokenizer_knows_every_word(tmp_path):
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 6e6
    assert json.loads((MODEL_DIR / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    tokenizer = Tokenizer.load(MODEL_DIR)
    ids = {word: tokenizer.backend.convert_tokens_to_ids(word) for word in (*SPECIALS, *LETTERS, *structural_words())}
    assert [tokenizer.backend.pad_token, tokenizer.backend.bos_token, tokenizer.backend.eos_token] == list(SPECIALS[:3])
    unknown = ids.pop("<unk>")
    assert unknown not in ids.values()
    facts = {fact.question: fact for fact in build_world().facts}
    for path in write_questions(tmp_path):
        for item in map(json.loads, path.read_text().splitlines()):
            context = f"{facts[item['question']].context} "
            for text in (
                quiz_prompt(item["question"], item["options"]),
                instruction_prompt(item["question"], item["options"], context),
            ):
                tokens = tokenizer.encode(text)
                assert len(tokens) == 1 + len(text.split())
                assert tokens[0] == ids["<bos>"]
                assert unknown not in tokens


def test_embedded_tokenizer_has_the_vocabulary_of_the_world():
    backend = Tokenizer.load(MODEL_DIR).backend
    assert backend.get_vocab() == vocabulary(build_world())
