"""The few lengths that rows of tokens are padded to, and what tokens a row may hold."""

from collections.abc import Sequence

from jaxift.errors import UserError

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def bucket(length: int) -> int:
    """The padded length that a row of this length gets."""
    return next((size for size in BUCKETS if size >= length), -(-length // 1024) * 1024)


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raises UserError where a token has no row in the embedding: reading one gives NaN, scoring one a wrong number."""
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise UserError(
            f"token {wrong} is outside the model's vocabulary of {vocab_size}; use the tokenizer that belongs to it"
        )
