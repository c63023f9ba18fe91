"""Which host is said to hold the others up."""

import pytest

from jaxift.parallel import hosts, pace


@pytest.fixture(autouse=True)
def three_hosts(monkeypatch):
    monkeypatch.setattr(hosts, "_names", ["ann", "bob", "cid"])


def test_hosts_that_are_alike_are_not_compared():
    assert pace.compared([10.0, 12.0, 11.0]) == ""


def test_little_time_is_not_worth_telling():
    assert pace.compared([0.01, 0.5, 0.01]) == ""


def test_the_slowest_is_named_with_what_it_took():
    said = pace.compared([10.0, 25.0, 10.0])
    assert said.startswith("host bob (process 1) was the slowest: 25.0 s of work of its own, 2.5 times")


def test_work_is_counted_once_and_one_process_holds_nobody_up():
    with pace.own_work():
        pass
    pace.count(3)
    assert pace._seconds >= 3
    assert pace.slowest() == ""
    assert pace._seconds == 0
