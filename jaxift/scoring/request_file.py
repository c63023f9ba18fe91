"""Reads a file of scoring requests and refuses what does not make sense, naming file and line."""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from jaxift.errors import UserError
from jaxift.scoring.requests import Request

_FORM = '{"id": "...", "context": "...", "options": ["...", ...]}'


@dataclasses.dataclass(frozen=True)
class RequestFile:
    """Requests and the id of each, in the order of their lines."""

    ids: tuple[str, ...]
    requests: tuple[Request, ...]

    def shard(self, number: int, shards: int) -> "RequestFile":
        """Shard `number` (from 1) of `shards`: neighbours stay together, since they often share their beginning."""
        start, stop = ((number + step) * len(self.ids) // shards for step in (-1, 0))
        return RequestFile(self.ids[start:stop], self.requests[start:stop])

    def digest(self) -> str:
        """Hash of all ids and texts."""
        total = hashlib.sha256()
        for name, request in zip(self.ids, self.requests, strict=True):
            total.update(json.dumps([name, request.context, *request.options]).encode())
        return total.hexdigest()[:24]


def read_requests(path: str) -> RequestFile:
    """Reads one request a line: an object with `id`, `context` and `options`; what else it holds is ignored.

    All lines are looked at before UserError is raised: of the first wrong one, with the number of the others.
    """
    try:
        text = epath.Path(path).read_bytes().decode()
    except ImportError as error:
        raise UserError(f"{path}: {error}; for gs:// install jaxift[gcs]") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); give a file of requests, {_FORM}") from None
    ids: dict[str, int] = {}
    requests, problems = [], []
    # not splitlines(): a JSON string may hold U+2028 and the like, which are no line ends of JSONL
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            name, request = _request(line)
            if name in ids:
                raise ValueError(f"id {name!r} is that of line {ids[name]} too; make ids unique")
            ids[name] = number
            requests.append(request)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = f" ({len(problems) - 1} more lines are wrong)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not requests:
        raise UserError(f"{path}: holds no request; write one a line, {_FORM}")
    return RequestFile(tuple(ids), tuple(requests))


def _request(line: str) -> tuple[str, Request]:
    """Id and request of a line; raises ValueError that says what is wrong."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error}); write {_FORM}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, not an object; write {_FORM}")
    missing = [name for name in ("id", "context", "options") if name not in row]
    if missing:
        raise ValueError(f"field {missing[0]!r} is missing; write {_FORM}")
    name, context = _text(row["id"], "id"), _text(row["context"], "context")
    options = row["options"]
    if not isinstance(options, list) or not options:
        raise ValueError("field 'options' must be a list of at least one text")
    texts = tuple(_text(option, f"options[{place}]") for place, option in enumerate(options))
    if "" in texts:
        raise ValueError(f"field 'options[{texts.index('')}]' is empty; an option needs a text to score")
    return name, Request(context, texts)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {json.dumps(value)[:40]}, not a text; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"field {field!r} holds a lone surrogate, which is no text; remove it") from None
    return value
