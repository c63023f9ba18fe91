"""Text to token ids: one explicit policy for where a sequence begins and for the seam of its two parts."""

import dataclasses
import sys
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxift.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer with its beginning-of-sequence policy fixed (`bos`: the id to begin with, or None)."""

    backend: PreTrainedTokenizerBase
    bos: int | None
    eos: int | None

    @classmethod
    def load(cls, folder: str | Path, bos: str = "auto") -> "Tokenizer":
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
        return cls(backend, _bos_id(backend, bos, folder), _single_id(backend.eos_token_id))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence, BOS included once where the policy has one."""
        ids = self.backend.encode(text, add_special_tokens=False)
        if self.bos is None:
            return ids
        if ids[:1] == [self.bos]:
            raise UserError(f"the text {text[:40]!r} brings its own BOS token, which would be doubled; remove it")
        return [self.bos, *ids]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of what continues it, tokenised jointly and then split.

        Trailing spaces of the context move to the continuation, since tokenizers join a space to the next word. The
        split stands after as many tokens as the context has alone. Raises UserError where nothing is left to score.
        """
        kept = context.rstrip(" ")
        continuation = context[len(kept) :] + continuation
        before, joint = self.encode(kept), self.encode(kept + continuation)
        if len(joint) <= len(before):
            raise UserError(f"the continuation {continuation!r} adds no token of its own; give a non-empty option")
        return joint[: len(before)], joint[len(before) :]


def _bos_id(backend: PreTrainedTokenizerBase, policy: str, folder: Path) -> int | None:
    bos = _single_id(backend.bos_token_id)
    if policy == "always" and bos is None:
        raise UserError(f"{folder}: bos is `always`, but the tokenizer has no BOS token; use `auto` or `never`")
    adds_itself = bos is not None and backend("a").input_ids[:1] == [bos]
    return bos if policy == "always" or (policy == "auto" and adds_itself) else None


def _single_id(value: object) -> int | None:
    """A special token's id where the tokenizer has exactly one."""
    return value if isinstance(value, int) else None
