"""The file of finished scores: an option a row, and in its metadata what they depend on."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxift.scoring.requests import Request, Score
from jaxift.scoring.store import Facts, write_table

_METADATA = b"jaxift"


def write_scores(
    path: epath.Path,
    ids: Sequence[str],
    requests: Sequence[Request],
    scores: Sequence[Score],
    *,
    facts: Facts,
    record: Mapping[str, Any],
    with_tokens: bool = False,
) -> None:
    """Writes a row an option: id, option, logprob, num_tokens, num_bytes, num_chars, is_greedy, token_logprobs.

    `option` is the place in its request, `logprob` the natural logarithm (float64). `token_logprobs` (a list of
    float32) is there `with_tokens` alone. `facts` say what the scores depend on, `record` how they came about. The same
    values give the same bytes.
    """
    counts = [len(request.options) for request in requests]
    options = [option for request in requests for option in request.options]
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.string()).take(np.repeat(np.arange(len(ids)), counts)),
        "option": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        "logprob": np.concatenate([score.logprobs for score in scores]).astype(np.float64),
        "num_tokens": np.concatenate([score.num_tokens for score in scores]).astype(np.int32),
        "num_bytes": np.array([len(option.encode()) for option in options], np.int32),
        "num_chars": np.array([len(option) for option in options], np.int32),
        "is_greedy": np.concatenate([score.is_greedy for score in scores]).astype(bool),
    }
    if with_tokens:
        lists = [tokens for score in scores for tokens in score.token_logprobs]
        ends = np.concatenate([[0], np.cumsum([len(tokens) for tokens in lists])]).astype(np.int32)
        columns["token_logprobs"] = pa.ListArray.from_arrays(ends, np.concatenate(lists).astype(np.float32))
    said = json.dumps({"facts": facts, **record}, sort_keys=True, ensure_ascii=False)
    write_table(path, pa.table(columns, metadata={_METADATA: said}))


def read_facts(path: epath.Path) -> Facts | None:
    """The facts of a file of scores; None where it is none, or damaged."""
    try:
        with path.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        return json.loads(metadata[_METADATA])["facts"]
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
