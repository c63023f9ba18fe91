"""A file of requests made ready for scoring: texts in tokens, checked, and what their scores depend on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxift.artifacts import digest
from jaxift.config import Seam
from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.files.fingerprint import fingerprint
from jaxift.models.files.folder import open_model
from jaxift.models.weights import check_folder
from jaxift.scoring.request_file import RequestFile, read_requests
from jaxift.scoring.requests import Encoded, encode_requests
from jaxift.scoring.store import SCORES_VERSION, Facts, digest_tokens


@dataclasses.dataclass(frozen=True)
class Job:
    """Requests in texts and tokens; `facts` are what their scores depend on, `tokenizer` how texts became tokens."""

    asked: RequestFile
    encoded: Encoded
    facts: Facts
    tokenizer: Mapping[str, Any]


def prepare(
    requests: str,
    model: str,
    *,
    dtype: str,
    bos: str = "auto",
    seam: Seam = "lm-eval",
    max_positions: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Job:
    """Reads a file of requests, or a shard (I, N) of it, and all of the model but its weights.

    Raises UserError for everything that can be refused without the weights.
    """
    asked = read_requests(requests).shard(*shard)
    if not asked.ids:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: there are fewer requests than shards; give fewer shards")
    limit = check_folder(model, max_positions).max_positions
    tokenizer = Tokenizer.load(open_model(model, weights=False).local, bos, seam)
    try:
        encoded = encode_requests(tokenizer, asked.requests, asked.ids)
    except UserError as error:
        raise UserError(f"{requests}: {error}") from None
    _check_lengths(requests, asked, encoded, limit)
    facts: Facts = {
        "model": fingerprint(model),
        "tokenizer, --bos or --seam": digest(tokenizer.describe()),
        "requests": asked.digest(),
        "token ids": digest_tokens(encoded.requests),
        "--dtype": dtype,
        "--max-positions": max_positions,
        "scores version": SCORES_VERSION,
    }
    return Job(asked, encoded, facts, tokenizer.describe())


def _check_lengths(file: str, asked: RequestFile, encoded: Encoded, limit: int) -> None:
    """Names the first request that is too long, and says how many are."""
    longest = [len(each.context) + max(map(len, each.options)) - 1 for each in encoded.requests]
    lengths = [max(longest[request] for request, _ in places) for places in encoded.places]
    longer = [place for place, length in enumerate(lengths) if length > limit]
    if longer:
        raise UserError(
            f"{file}: request {asked.ids[longer[0]]!r} has {lengths[longer[0]]} tokens, but the model's limit is "
            f"{limit} ({len(longer)} of {len(lengths)} requests are too long); shorten them"
        )
