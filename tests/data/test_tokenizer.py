"""The beginning of a sequence, and the seam between context and continuation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError


@pytest.fixture(scope="module")
def stories(shared_data):
    """A real SentencePiece-like tokenizer: 512 tokens, a word's space joined to it."""
    return Tokenizer.load(shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def plain_folder(make_folder, tmp_path_factory):
    """A tiny model whose tokenizer does not add BOS by itself."""
    return make_folder(tmp_path_factory.mktemp("plain") / "model", adds_bos=False)


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


def test_text_that_brings_its_own_bos_is_refused(tiny_folder):
    with pytest.raises(UserError, match="brings its own BOS token, which would be doubled"):
        Tokenizer.load(tiny_folder).encode("<bos> A")
    assert Tokenizer.load(tiny_folder, "never").encode("<bos> A")[:2] == [1, 4]


def test_always_needs_a_bos_token(make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"bos_token": "<bos>", ', ""))
    with pytest.raises(UserError, match="the tokenizer has no BOS token; use `auto` or `never`"):
        Tokenizer.load(folder, "always")
    assert Tokenizer.load(folder, "auto").bos is None


def test_trailing_spaces_of_the_context_move_to_the_continuation(tiny_folder, shared_data):
    for tokenizer in (Tokenizer.load(tiny_folder), Tokenizer.load(shared_data / "models" / "stories260K")):
        assert tokenizer.encode_pair("A B ", "C") == tokenizer.encode_pair("A B", " C")
        assert tokenizer.encode_pair("A B  ", "C") == tokenizer.encode_pair("A B", "  C")


@pytest.mark.parametrize("continuation", ["", " ", "   "])
def test_continuation_without_a_token_is_refused(continuation, tiny_folder):
    with pytest.raises(UserError, match="adds no token of its own"):
        Tokenizer.load(tiny_folder).encode_pair("A B", continuation)


TEXTS = st.text(alphabet="ab cdotheThe.,:?\n'é漢", max_size=30)


@given(context=TEXTS, continuation=TEXTS)
def test_pair_joined_is_the_joint_tokenisation(stories, context, continuation):
    try:
        before, after = stories.encode_pair(context, continuation)
    except UserError:
        return
    assert before + after == stories.encode(context + continuation)
    assert len(before) == len(stories.encode(context.rstrip(" ")))
    assert after


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_refused_in_one_line(name, make_folder, tmp_path):
    folder = make_folder(tmp_path / "model")
    (folder / name).write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded") as caught:
        Tokenizer.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
