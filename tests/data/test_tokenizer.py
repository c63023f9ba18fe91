"""The beginning of a sequence, and the seam between context and continuation."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError

CORPUS = (
    "The cat sat on the mat, and the dog sat on the cat.\n",
    "Answer: A\nAnswer: B\n\nQuestion: what is the cat?\n",
) * 3


@pytest.fixture(scope="module")
def stories(shared_data):
    """A real SentencePiece-like tokenizer: 512 tokens, a word's space joined to it."""
    return Tokenizer.load(shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def plain_folder(make_folder, tmp_path_factory):
    """A tiny model whose tokenizer does not add BOS by itself."""
    return make_folder(tmp_path_factory.mktemp("plain") / "model", adds_bos=False)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory):
    """A byte-level BPE as GPT-NeoX has it: one special token for both ends, not added by itself."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder, end = tmp_path_factory.mktemp("bytes"), "<|endoftext|>"
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("adds_itself", "policy", "expected"),
    [
        (True, "auto", [1]), (True, "always", [1]), (True, "never", []),
        (False, "auto", []), (False, "always", [1]), (False, "never", []),
    ],
)  # fmt: skip
def test_bos_policy(adds_itself, policy, expected, tiny_folder, plain_folder):
    tokenizer = Tokenizer.load(tiny_folder if adds_itself else plain_folder, policy)
    words = [tokenizer.backend.convert_tokens_to_ids(word) for word in ("A", "w3")]
    assert tokenizer.encode("A w3") == expected + words
    assert tokenizer.encode_pair("A", " w3") == (expected + words[:1], words[1:])


def test_text_that_brings_its_own_bos_is_refused_or_kept_but_never_doubled(tiny_folder):
    tokenizer = Tokenizer.load(tiny_folder)
    doubled = pytest.raises(UserError, match="brings its own BOS token, which would be doubled")
    with doubled:
        tokenizer.encode("<bos> A")
    with doubled:
        tokenizer.encode_pair("", "<bos> A")
    keeping = dataclasses.replace(tokenizer, own_bos="keep")
    assert keeping.encode("<bos> A") == keeping.encode("A") == [1, 4]
    assert keeping.encode_pair("<bos> A", " B") == keeping.encode_pair("A", " B")
    with doubled:
        keeping.encode("<bos> <bos> A")
    assert Tokenizer.load(tiny_folder, "never").encode("<bos> A")[:2] == [1, 4]


def test_always_needs_a_bos_token(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"bos_token": "<bos>", ', ""))
    with pytest.raises(UserError, match="the tokenizer has no BOS token; use `auto` or `never`"):
        Tokenizer.load(folder, "always")
    assert Tokenizer.load(folder, "auto").bos is None


def test_empty_context_is_the_prefix_token(make_folder, tmp_path, tiny_folder):
    for seam in ("lm-eval", "joint", "separate", "isolated"):
        for bos in ("auto", "never"):
            assert Tokenizer.load(tiny_folder, bos, seam).encode_pair("", "A") == ([1], [4])
    # end-of-sequence where there is no BOS token, and a refusal where there is neither
    folder = make_folder(tmp_path / "model", adds_bos=False, eos=None)
    settings = folder / "tokenizer_config.json"
    without = settings.read_text().replace('"bos_token": "<bos>", ', "")
    settings.write_text(without)
    with pytest.raises(UserError, match="the tokenizer has no BOS or end-of-sequence token to stand for it"):
        Tokenizer.load(folder).encode_pair("", "A")
    settings.write_text(without.replace('"pad_token"', '"eos_token": "<eos>", "pad_token"'))
    assert Tokenizer.load(folder).encode_pair("", "A") == ([2], [4])


@pytest.mark.parametrize("seam", ["lm-eval", "joint", "separate", "isolated"])
@pytest.mark.parametrize(("context", "continuation"), [("A B", ""), ("A B", "  "), ("", ""), ("A B", "   ")])
def test_continuation_without_a_token_is_refused(context, continuation, seam, tiny_folder):
    with pytest.raises(UserError, match="adds no token of its own"):
        Tokenizer.load(tiny_folder, seam=seam).encode_pair(context, continuation)


def test_unknown_seam_is_refused(tiny_folder):
    with pytest.raises(UserError, match="seam 'sideways' is unknown; use lm-eval, joint, separate, isolated"):
        Tokenizer.load(tiny_folder, seam="sideways")


def test_trailing_whitespace_of_the_context_moves_to_the_continuation(tiny_folder, stories, byte_folder):
    for tokenizer in (Tokenizer.load(tiny_folder), stories, Tokenizer.load(byte_folder)):
        assert tokenizer.encode_pair("A B ", "C") == tokenizer.encode_pair("A B", " C")
        assert tokenizer.encode_pair("A B \n ", "C") == tokenizer.encode_pair("A B", " \n C")
    stays = dataclasses.replace(stories, seam="joint")
    assert stays.encode_pair("A B ", "C") != stays.encode_pair("A B", " C")


TEXTS = st.text(alphabet="ab cdotheThe.,:?\n'é漢", max_size=30)


@given(context=TEXTS, continuation=TEXTS)
def test_joint_pair_is_the_joint_tokenisation(stories, context, continuation):
    try:
        before, after = dataclasses.replace(stories, seam="joint").encode_pair(context, continuation)
    except UserError:
        return
    assert before + after == stories.encode(context + continuation)
    assert len(before) == len(stories.encode(context))
    assert after


@given(context=TEXTS.filter(bool), continuation=TEXTS.filter(bool))
def test_separate_continuation_neither_gains_nor_loses_a_space(stories, context, continuation):
    separate = dataclasses.replace(stories, seam="separate")
    before, after = separate.encode_pair(context, continuation)
    assert before == stories.encode(context)
    assert stories.bos not in after
    assert stories.backend.decode(before + after, skip_special_tokens=True) == context + continuation
    # what follows does not depend on what it follows
    assert separate.encode_pair("Once", continuation)[1] == after


def test_isolated_letter_is_another_token_than_the_one_in_context(stories, byte_folder):
    isolated = dataclasses.replace(stories, seam="isolated")
    prompt = "Answer:"
    before, after = isolated.encode_pair(prompt, "a")
    assert before == stories.encode(prompt)
    assert stories.backend.convert_ids_to_tokens(after) == ["▁a"]
    assert stories.backend.convert_ids_to_tokens(stories.encode_pair(prompt, "a")[1]) == ["a"]
    assert isolated.encode_pair(prompt, " a")[1] == after
    # of a letter that is several tokens the last one is read
    assert len(stories.encode("A")) > 2
    assert isolated.encode_pair(prompt, "A")[1] == stories.encode("A")[-1:]
    # a byte-level tokenizer has one letter token without a space, wherever it stands
    in_context = Tokenizer.load(byte_folder)
    assert dataclasses.replace(in_context, seam="isolated").encode_pair(prompt, "A") == in_context.encode_pair(
        prompt, "A"
    )
    with pytest.raises(UserError, match="reads answer letters, not ' cat'"):
        isolated.encode_pair(prompt, " cat")


def test_description_tells_every_policy(tiny_folder, plain_folder):
    described = Tokenizer.load(tiny_folder).describe()
    assert json.loads(json.dumps(described)) == described
    others = (
        Tokenizer.load(tiny_folder, "never"),
        Tokenizer.load(tiny_folder, seam="isolated"),
        dataclasses.replace(Tokenizer.load(tiny_folder), own_bos="keep"),
    )
    assert described not in [other.describe() for other in others]


@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), max_size=6), seam=st.sampled_from(["lm-eval", "joint", "separate"]))
def test_many_pairs_are_each_alone(stories, pairs, seam):
    tokenizer = dataclasses.replace(stories, seam=seam)
    kept, expected = [], []
    for pair in pairs:
        try:
            expected.append(tokenizer.encode_pair(*pair))
            kept.append(pair)
        except UserError:
            continue
    assert tokenizer.encode_pairs(kept) == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_refused_in_one_line(name, make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    (folder / name).write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded") as caught:
        Tokenizer.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def harness_tokens():
    """lm-evaluation-harness' own tokens of a pair: (folder, add_bos_token) -> (context, continuation) -> pair."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("torch", reason="lm-eval's hf model needs torch")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    class Shown(HFLM):
        def __init__(self, folder, add_bos_token):
            self.backend, self.add_bos_token, self.custom_prefix_token_id = "causal", add_bos_token, None
            self.enable_thinking = False
            self._create_tokenizer(str(folder), None, add_bos_token=add_bos_token)

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            return [(list(context), list(continuation)) for _, context, continuation in requests]

    def of(folder, add_bos_token):
        model = Shown(folder, add_bos_token)

        def tokens(context, continuation):
            request = Instance("loglikelihood", {}, (context, continuation), 0)
            return model.loglikelihood([request], disable_tqdm=True)[0]

        return tokens

    return of


MEANT = {None: "auto", True: "always", False: "never"}


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("kind", ["words", "words without bos", "sentencepiece", "bytes"])
def test_tokens_are_those_of_lm_eval(
    kind, add_bos_token, harness_tokens, tiny_folder, plain_folder, byte_folder, shared_data
):
    folders = {
        "words": tiny_folder, "words without bos": plain_folder, "bytes": byte_folder,
        "sentencepiece": shared_data / "models" / "stories260K",
    }  # fmt: skip
    begins = {"words": "<bos>", "words without bos": "<bos>", "bytes": "<|endoftext|>", "sentencepiece": "<s>"}
    theirs = harness_tokens(folders[kind], add_bos_token)
    ours = dataclasses.replace(Tokenizer.load(folders[kind], MEANT[add_bos_token]), own_bos="keep")
    texts = st.text(alphabet="ab cdotheThe.,:?\n'é漢A123", max_size=30)
    contexts = st.one_of(texts, texts.map(lambda text: begins[kind] + text), st.just(""))

    @given(context=contexts, continuation=texts.filter(bool))
    def same(context, continuation):
        context_tokens, continuation_tokens = theirs(context, continuation) if continuation.strip() else ([], [])
        if context_tokens and continuation_tokens:
            assert ours.encode_pair(context, continuation) == (context_tokens, continuation_tokens)

    same()


# chat templates


def with_template(folder, source, template, **fields):
    """A copy of a tokenizer that has a chat template."""
    folder.mkdir()
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | fields
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


TURNS = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"


@pytest.mark.parametrize(("policy", "begins"), [("auto", "<user>"), ("never", "<bos><user>")])
def test_a_conversation_is_the_templates_without_a_second_bos(tmp_path, tiny_folder, policy, begins):
    template = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = Tokenizer.load(with_template(tmp_path / "chat", tiny_folder, template), policy)
    assert tokenizer.conversation == begins + "{prompt}</user><assistant>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "chat template cannot be used"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ messages[0].content | upper }}", "changes the user's turn"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "changes the user's turn"),
        ("{% for x in %}", "chat template cannot be used"),
    ],
)
def test_a_template_that_cannot_serve_is_refused_in_one_line(tmp_path, tiny_folder, template, expected):
    tokenizer = Tokenizer.load(with_template(tmp_path / "chat", tiny_folder, template))
    with pytest.raises(UserError) as caught:
        _ = tokenizer.conversation
    assert expected in str(caught.value)
    assert "set probe.chat to study" in str(caught.value)
    assert "\n" not in str(caught.value)
