"""What processes must have alike, and how it is said which has something else."""

import json

import pytest

from jaxift.errors import UserError
from jaxift.parallel import agreement, hosts, meeting


@pytest.fixture
def told(monkeypatch):
    """Lets three processes tell what the list holds."""
    values = []
    monkeypatch.setattr(hosts, "_names", ["ann", "bob", "cid"])
    monkeypatch.setattr(meeting, "process_count", lambda: 3)
    monkeypatch.setattr(meeting, "host_names", lambda: hosts._names)
    monkeypatch.setattr(meeting, "exchange", lambda *_: [json.dumps(each).encode() for each in values])
    return values


def test_the_field_and_both_its_values_are_named(told):
    common = {"tune.learning_rate": "0.1", "seeds": "[0]"}
    told += [common, {**common, "tune.learning_rate": "0.5"}, common]
    with pytest.raises(UserError, match=r"^study: differs .*: host bob \(process 1\) has another") as found:
        meeting.same_everywhere("study", {})
    assert "tune.learning_rate (0.5, not 0.1) than 2 of 3" in str(found.value)


def test_of_two_that_differ_the_first_is_right(told):
    told += [{"jax": "0.12"}, {"jax": "0.10"}]
    with pytest.raises(UserError, match=r"host bob \(process 1\) has another jax \(0.10, not 0.12\)"):
        meeting.same_everywhere("software", {})


def test_what_only_one_has_is_named(told):
    told += [{}, {}, {"libtpu": "1"}]
    with pytest.raises(UserError, match=r"host cid \(process 2\) has another libtpu \(1, not None\)"):
        meeting.same_everywhere("software", {})


def test_nested_settings_are_compared_field_by_field():
    leaves = dict(agreement._leaves({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}, {"e": 3}], "f": {}}))
    assert leaves == {"a.b": "1", "a.c": "[1, 2]", "d.0.e": "2", "d.1.e": "3", "f": "{}"}


def test_the_codes_digest_is_that_of_its_files(monkeypatch, tmp_path):
    digests = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "__init__.py").write_text(text)
        monkeypatch.setattr(agreement.jaxift, "__file__", str(tmp_path / "__init__.py"))
        digests.add(agreement.code_digest.__wrapped__())
    assert len(digests) == 2
