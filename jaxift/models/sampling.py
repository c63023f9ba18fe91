"""Text that a model writes after its prompts: batched, KV-cached, bucketed, sharded over the mesh."""

import bisect
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxift.data.tokenizer import Tokenizer
from jaxift.errors import UserError
from jaxift.models.buckets import bucket, check_tokens
from jaxift.models.continuation import NOTHING, continue_rows
from jaxift.models.decoder import Decoder
from jaxift.models.weights import LanguageModel
from jaxift.parallel.arrays import global_array
from jaxift.parallel.arrays import whole as on_host
from jaxift.parallel.mesh import batch_shards, sharding
from jaxift.progress import moved

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt, and whether it came to an end of its own before the limit.

    `text` follows the prompt verbatim, special tokens left out, up to the first stop text; `tokens` have no end token,
    and reach as far as the stop text's last one.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Generation]:
    """Continues each prompt until the model ends it, a text of `stop` is complete, or the limit.

    Arguments and errors: see `generate_tokens`; which tokens end a text: see `end_tokens`.
    """
    if isinstance(stop, str) or not all(stop):
        raise UserError(f"stop {stop!r} is not a list of non-empty texts; give each of them at least one character")
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    found = generate_tokens(
        model.decoder, ids, model.mesh, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        seeds=seeds, end_tokens=end_tokens(model), stop_tokens=stop_tokens(model, stop), dtype=model.dtype,
        batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip
    return [
        _generation(model.tokenizer, prompt, tokens, stop, max_new_tokens)
        for prompt, tokens in zip(ids, found, strict=True)
    ]


def generate_tokens(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    mesh: Mesh,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    end_tokens: Sequence[int] = (),
    stop_tokens: Sequence[int] = (),
    dtype: np.dtype | type = np.float32,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[tuple[int, ...]]:
    """New tokens of each prompt, in their order; fewer than `max_new_tokens` where it ended.

    A prompt ends before one of `end_tokens` and after one of `stop_tokens`. Temperature 0 takes the most likely token,
    others draw from the nucleus of `top_p`; what prompt i draws depends on it and `seeds[i]` (default: i) alone. About
    `batch_tokens` tokens, new ones and padding included, are held at a time. `progress(done, total)` counts prompts.
    Raises UserError where an argument is out of range, a prompt is empty, too long or outside the vocabulary.
    """
    _check_options(max_new_tokens, temperature, top_p, batch_tokens)
    seeds = _checked_seeds(range(len(prompts)) if seeds is None else seeds, len(prompts))
    _check_prompts(prompts, max_new_tokens, decoder)
    mode = "greedy" if temperature == 0 else "sample" if top_p == 1 else "nucleus"
    graph, state = nnx.split(decoder)
    constants = (np.float32(temperature), np.float32(top_p)), _ids(end_tokens), _ids(stop_tokens)
    static = {"max_new_tokens": max_new_tokens, "mode": mode, "dtype": np.dtype(dtype)}
    answers: list[tuple[int, ...] | None] = [None] * len(prompts)
    with jax.set_mesh(mesh):
        for batch, shape, done in _batches(prompts, max_new_tokens, batch_tokens, batch_shards(mesh)):
            tokens, lengths, row_seeds = _rows(batch, shape, prompts, seeds)
            placed = global_array(tokens, sharding(mesh, "batch", None))
            per_row = [global_array(each, sharding(mesh, "batch")) for each in (lengths, row_seeds)]
            new = continue_rows(graph, state, placed, *per_row, *constants, **static)
            for index, row in zip(batch, on_host(new), strict=False):
                answers[index] = tuple(row[row != NOTHING].tolist())
            moved()
            if progress:
                progress(done, len(prompts))
    return [answer for answer in answers if answer is not None]


def end_tokens(model: LanguageModel) -> tuple[int, ...]:
    """Tokens with which a model ends a text: `eos_token_id` of generation_config.json, else of config.json, else EOS.

    Raises UserError where the field is neither a token of the vocabulary nor a list of such, nor null.
    """
    for name in ("generation_config.json", "config.json"):
        path = Path(model.folder) / name
        value = _read_fields(path).get("eos_token_id")
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        size = model.config.vocab_size
        if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size for token in listed):
            raise UserError(f"{path}: eos_token_id {value!r} is no token (or list of tokens) of a vocabulary of {size}")
        return tuple(sorted(set(listed)))
    return () if model.tokenizer.eos is None else (model.tokenizer.eos,)


def _read_fields(path: Path) -> dict[str, Any]:
    """A JSON file's fields; none where there is no such file."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the file again, or remove it") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object; copy the file again, or remove it")
    return fields


def stop_tokens(model: LanguageModel, stop: Sequence[str]) -> list[int]:
    """Tokens that hold a whole stop text: a row that says one need not go on, what it has said decides."""
    if not stop:
        return []
    texts = model.tokenizer.backend.batch_decode([[token] for token in range(model.config.vocab_size)])
    return [token for token, text in enumerate(texts) if any(each in text for each in stop)]


def _generation(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: tuple[int, ...], stop: Sequence[str], limit: int
) -> Generation:
    """Cuts a continuation at its first stop text and decodes it."""

    def text(count: int) -> str:
        return _text_after(tokenizer, prompt, tokens[:count])

    def has_stop(count: int) -> bool:
        return any(each in text(count) for each in stop)

    if not has_stop(len(tokens)):
        return Generation(text(len(tokens)), tokens, len(tokens) < limit)
    count = bisect.bisect_left(range(len(tokens)), True, key=has_stop)
    whole = text(count)
    return Generation(whole[: min(whole.index(each) for each in stop if each in whole)], tokens[:count], True)


def _text_after(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of tokens where they stand: alone, many tokenizers would drop the space before the first word."""

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.backend.decode(list(ids), skip_special_tokens=True))

    before, whole = text(prompt), text([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else text(tokens)


def _check_options(max_new_tokens: int, temperature: float, top_p: float, batch_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens} is less than 1; ask for at least one token")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature {temperature} is not a number from 0 up; 0 takes the most likely token")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} is not above 0 and up to 1; 1 draws from all tokens")
    if batch_tokens < 1:
        raise UserError(f"batch_tokens {batch_tokens} is less than 1; give at least 1")


def _checked_seeds(seeds: Sequence[int], prompts: int) -> list[int]:
    if len(seeds) != prompts:
        raise UserError(f"seeds has {len(seeds)} entries for {prompts} prompts; give one each")
    wrong = [seed for seed in seeds if not 0 <= seed < 1 << 32]
    if wrong:
        raise UserError(f"seed {wrong[0]} is not between 0 and 2**32 - 1; choose another")
    return list(seeds)


def _check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, decoder: Decoder) -> None:
    limit = decoder.config.max_positions
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index} is empty and the model adds no BOS token; give it at least one token")
        if len(prompt) + max_new_tokens > limit:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, together more than "
                f"the model's limit of {limit}; shorten one of them"
            )
        check_tokens(prompt, decoder.config.vocab_size)


def _batches(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int, shards: int
) -> Iterator[tuple[list[int], tuple[int, int], int]]:
    """Cuts prompts, longest first, into batches: their indices, the shape (rows, tokens), how many are then done."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    most = 1 << (len(order) - 1).bit_length()  # for few prompts few rows, but not one program a count
    start = 0
    while start < len(order):
        T = bucket(len(prompts[order[start]]))
        rows = min(most, max(1, batch_tokens // (T + max_new_tokens)))
        rows = -(-rows // shards) * shards
        batch = order[start : start + rows]
        start += len(batch)
        # a short last batch keeps the full shape: one program a bucket is worth a few padded rows
        yield batch, (rows, T), start


def _rows(
    batch: Sequence[int], shape: tuple[int, int], prompts: Sequence[Sequence[int]], seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Host arrays of a batch: tokens [B, T], lengths and seeds [B]; rows of length 0 are padding."""
    tokens, (lengths, row_seeds) = np.zeros(shape, np.int32), np.zeros((2, shape[0]), np.uint32)
    for row, index in enumerate(batch):
        tokens[row, : len(prompts[index])] = prompts[index]
        lengths[row], row_seeds[row] = len(prompts[index]), seeds[index]
    return tokens, lengths.astype(np.int32), row_seeds


def _ids(tokens: Sequence[int]) -> np.ndarray:
    return np.array(sorted(tokens), np.int32)
