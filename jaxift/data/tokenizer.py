"""Text to token ids: one explicit policy for where a sequence begins and for the seam of its two parts."""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxift.config import Seam
from jaxift.errors import UserError

ANCHORS = ("\n", ".", "a")
"""Texts after which another is tokenised as following; the first that does not merge with it counts."""

Pair = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer with its policies fixed.

    `bos`: the id that sequences begin with, or None; `prefix`: the id that stands for an empty context (BOS or else
    end-of-sequence, as in lm-evaluation-harness). A text that brings its own BOS is refused, or with `own_bos="keep"`
    (chat templates write one) taken as it is.
    """

    backend: PreTrainedTokenizerBase
    bos: int | None
    eos: int | None
    prefix: int | None = None
    seam: Seam = "lm-eval"
    own_bos: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.seam not in get_args(Seam):
            raise UserError(f"seam {self.seam!r} is unknown; use {', '.join(get_args(Seam))}")

    @classmethod
    def load(cls, folder: str | Path, bos: str = "auto", seam: Seam = "lm-eval") -> "Tokenizer":
        """Loads tokenizer files from a local folder; raises UserError where they are missing or damaged.

        `bos`: `auto` begins with BOS where the tokenizer itself would, `always`, or `never`. No remote code is run.
        """
        folder = Path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise UserError(f"{folder}: holds no tokenizer.json; copy the model's tokenizer files into it")
        try:
            backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise many kinds here, some of them bare Exception
            raise UserError(f"{folder}: its tokenizer cannot be loaded: {error}") from None
        backend.model_max_length = sys.maxsize  # the length limit is the model's, checked where rows are made
        own, eos = _single_id(backend.bos_token_id), _single_id(backend.eos_token_id)
        return cls(backend, _bos_id(backend, bos, folder), eos, eos if own is None else own, seam)

    def describe(self) -> dict[str, Any]:
        """The policies by which texts became tokens, to stand beside what came of them."""
        return {
            "tokenizer": type(self.backend).__name__,
            "vocabulary": len(self.backend),
            "bos": self.bos,
            "own_bos": self.own_bos,
            "prefix": self.prefix,
            "seam": self.seam,
        }

    @property
    def conversation(self) -> str:
        """The tokenizer's chat template around a user's turn, {prompt}, up to where the assistant's begins.

        The BOS token that it writes is left out where sequences begin with it anyway. Raises UserError where there is
        no template, or where it does not take a user's turn as it is.
        """
        turn = [{"role": "user", "content": "{prompt}"}]
        try:
            text = str(self.backend.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # no template, or one that fails: of many kinds
            told = str(error)[:200]
            raise UserError(f"the tokenizer's chat template cannot be used: {told}; set probe.chat to study") from None
        if text.count("{prompt}") != 1:
            raise UserError("the tokenizer's chat template changes the user's turn; set probe.chat to study")
        return text.removeprefix(str(self.backend.bos_token)) if self.bos is not None else text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence, BOS included once where the policy has one."""
        return self._begun(text, self._ids([text])[0])

    def encode_pair(self, context: str, continuation: str) -> Pair:
        """Token ids of a context and of what continues it, split as `seam` says.

        An empty context becomes the prefix token. Raises UserError where nothing is left to score.
        """
        return self.encode_pairs([(context, continuation)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """`encode_pair` of many: equal texts are tokenised once, all of them in one call."""
        moved = [_moved(*pair) if self.seam == "lm-eval" else pair for pair in pairs]
        texts = list(dict.fromkeys(text for pair in moved for text in self._texts(*pair)))
        known = dict(zip(texts, self._ids(texts), strict=True))
        return [self._split(context, continuation, known) for context, continuation in moved]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, no special token added."""
        if not texts:
            return []
        found = self.backend(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        return found.input_ids

    def _begun(self, text: str, ids: list[int]) -> list[int]:
        """The sequence that a text's ids begin."""
        if self.bos is None:
            return ids
        brought = 0 if ids[:1] != [self.bos] else 1 if ids[1:2] != [self.bos] else 2
        if brought > (self.own_bos == "keep"):
            raise UserError(f"the text {text[:40]!r} brings its own BOS token, which would be doubled; remove it")
        return ids if brought else [self.bos, *ids]

    def _texts(self, context: str, continuation: str) -> Iterable[str]:
        """The texts whose ids `_split` asks for."""
        if not context:
            return (continuation,)
        if self.seam in ("lm-eval", "joint"):
            return context, context + continuation
        if self.seam == "isolated":
            return context, continuation.strip()
        following = (text for anchor in ANCHORS for text in (anchor, anchor + continuation))
        return (context, *following) if self._adds_space else (context, continuation)

    def _split(self, context: str, continuation: str, known: Mapping[str, list[int]]) -> Pair:
        if not context:
            before, after = self._after_nothing(continuation, known[continuation])
        elif self.seam in ("lm-eval", "joint"):
            before, whole = (self._begun(text, known[text]) for text in (context, context + continuation))
            before, after = whole[: len(before)] if self.seam == "joint" else before, whole[len(before) :]
        elif self.seam == "separate":
            before, after = self._begun(context, known[context]), self._following(continuation, known)
        else:
            before, after = self._begun(context, known[context]), _letter(continuation, known)
        if not after:
            raise UserError(f"the continuation {continuation!r} adds no token of its own; give a non-empty option")
        return before, after

    def _after_nothing(self, text: str, ids: list[int]) -> Pair:
        """A text after an empty context; where it brings the prefix token itself, that is the context."""
        if self.prefix is None:
            raise UserError("a context is empty and the tokenizer has no BOS or end-of-sequence token to stand for it")
        begun = self._begun(text, ids)
        begun = begun if begun[:1] == [self.prefix] else [self.prefix, *begun]
        return begun[:1], begun[1:]

    def _following(self, text: str, known: Mapping[str, list[int]]) -> list[int]:
        """Token ids of a text that follows another, without the space that SentencePiece puts before a text."""
        if not self._adds_space:
            return known[text]
        for anchor in ANCHORS:
            start = known[anchor]
            if known[anchor + text][: len(start)] == start:
                return known[anchor + text][len(start) :]
        raise UserError(f"the continuation {text!r} merges with what stands before it; use the seam `joint`")

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text: a SentencePiece habit."""
        first = self.backend.convert_ids_to_tokens(self._ids(["a"])[0])[:1]
        return bool(first) and str(first[0]).startswith(("▁", "Ġ"))


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Moves the context's trailing whitespace to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _letter(continuation: str, known: Mapping[str, list[int]]) -> list[int]:
    """The last token of an answer letter that stands alone."""
    letter = continuation.strip()
    if len(letter) > 1:
        raise UserError(f"the seam `isolated` reads answer letters, not {continuation!r}; use `lm-eval` or `joint`")
    return known[letter][-1:]


def _bos_id(backend: PreTrainedTokenizerBase, policy: str, folder: Path) -> int | None:
    bos = _single_id(backend.bos_token_id)
    if policy == "always" and bos is None:
        raise UserError(f"{folder}: bos is `always`, but the tokenizer has no BOS token; use `auto` or `never`")
    adds_itself = bos is not None and backend("a").input_ids[:1] == [bos]
    return bos if policy == "always" or (policy == "auto" and adds_itself) else None


def _single_id(value: object) -> int | None:
    """A special token's id where the tokenizer has exactly one."""
    return value if isinstance(value, int) else None
