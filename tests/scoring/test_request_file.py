"""Files of requests: what is read from them, and that every wrong line is named."""

import json

import pytest

from jaxift.errors import UserError
from jaxift.scoring.request_file import read_requests
from jaxift.scoring.requests import Request

GOOD = {"id": "a", "context": "A B", "options": [" w1", " w2"]}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_requests_are_read_in_order_and_as_they_stand(tmp_path):
    rows = [
        {**GOOD, "id": "z", "gold": 1},
        "",
        {"id": "ä", "context": "", "options": [" \u2028é", "\n"]},
    ]
    found = read_requests(write(tmp_path / "r.jsonl", *rows))
    assert found.ids == ("z", "ä")
    assert found.requests == (Request("A B", (" w1", " w2")), Request("", (" \u2028é", "\n")))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds list, not an object"),
        ("[" * 100_000, "r.jsonl:2"),
        ({"id": "b", "context": "A"}, "'options' is missing"),
        ({"context": "A", "options": ["x"]}, "'id' is missing"),
        ({**GOOD, "id": 7}, "'id' is 7, not a text"),
        ({**GOOD, "id": "b", "context": None}, "'context' is null, not a text"),
        ({**GOOD, "id": "b", "options": "x"}, "'options' must be a list"),
        ({**GOOD, "id": "b", "options": []}, "at least one text"),
        ({**GOOD, "id": "b", "options": ["x", ""]}, r"'options\[1\]' is empty"),
        ({**GOOD, "id": "b", "options": ["x", 3]}, r"'options\[1\]' is 3"),
        ({**GOOD, "id": "b", "context": "\ud83d"}, "'context' holds a lone surrogate"),
        ({**GOOD, "id": "b", "options": ["\udc00"]}, r"'options\[0\]' holds a lone surrogate"),
        (GOOD, "id 'a' is that of line 1 too"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, named):
    with pytest.raises(UserError, match=rf"r\.jsonl:2: .*{named}" if "r.jsonl" not in named else named):
        read_requests(write(tmp_path / "r.jsonl", GOOD, line))


def test_all_lines_are_looked_at(tmp_path):
    path = write(tmp_path / "r.jsonl", GOOD, "{", {**GOOD, "id": "b"}, GOOD, {**GOOD, "options": [""]})
    with pytest.raises(UserError, match=r":2: .* \(2 more lines are wrong\)"):
        read_requests(path)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_requests_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"r\.jsonl: (cannot be read|holds no request)"):
        read_requests(str(tmp_path / "r.jsonl"))


@pytest.mark.parametrize("shards", [1, 2, 3, 10, 13])
def test_shards_are_the_whole_in_order(tmp_path, shards):
    whole = read_requests(write(tmp_path / "r.jsonl", *({**GOOD, "id": str(number)} for number in range(10))))
    parts = [whole.shard(number, shards) for number in range(1, shards + 1)]
    assert sum((part.ids for part in parts), ()) == whole.ids
    assert sum((part.requests for part in parts), ()) == whole.requests
    sizes = [len(part.ids) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_hash_sees_every_text(tmp_path):
    rows = [
        GOOD, {**GOOD, "id": "b"}, {**GOOD, "context": "A B "}, {**GOOD, "options": [" w1", " w3"]},
        {**GOOD, "options": [" w1"]}, {**GOOD, "context": "", "options": ["A B", " w1", " w2"]},
    ]  # fmt: skip
    found = [read_requests(write(tmp_path / "r.jsonl", row)).digest() for row in rows]
    assert len(set(found)) == len(rows)
    assert read_requests(write(tmp_path / "r.jsonl", {**GOOD, "more": 1})).digest() == found[0]
