"""What is said, and whether a process is ended, of hosts that are silent, failed or stuck; with made-up signs."""

import time

import pytest

from jaxift import progress
from jaxift.parallel import hosts
from jaxift.parallel.heartbeats import Heartbeats, Sign
from jaxift.parallel.watchdog import COMPILING, GRACE, Watchdog


class Store:
    """A coordinator's store in memory."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


@pytest.fixture(autouse=True)
def three_hosts(monkeypatch):
    monkeypatch.setattr(hosts, "_names", ["ann", "bob", "cid"])
    monkeypatch.setattr(progress, "here", progress.Position())


@pytest.fixture
def dog():
    """The watchdog of process 0 of three, whose threads do not run."""
    return Watchdog(pytest.fail, Heartbeats(Store(), 0, 3), host_timeout=20, stall_timeout=100)


def test_signs_reach_the_others():
    store = Store()
    first, second = Heartbeats(store, 0, 2), Heartbeats(store, 1, 2)
    progress.at("tune", "a cell")
    first.mark(3, "ends")
    second.mark(0, "")
    assert second.signs[0].position == "tune a cell"
    assert (second.signs[0].ended, second.signs[0].line, second.all_ended()) == (3, "ends", True)
    assert not first.all_ended()  # it has not looked since


def test_a_new_sign_makes_a_host_young_and_an_old_one_does_not():
    store = Store()
    first, second = Heartbeats(store, 0, 2), Heartbeats(store, 1, 2)
    second._exchange()
    first._exchange()
    since = first.signs[1].since
    first._exchange()
    assert first.signs[1].since == since
    second._exchange()
    first._exchange()
    assert first.signs[1].since > since


def test_while_all_is_well_nothing_is_said(dog):
    assert dog.look(time.monotonic()) is None


def test_a_silent_host_is_named(dog):
    dog.heartbeats.signs[2].since -= 21
    verdict = dog.look(time.monotonic())
    assert verdict.code == 3
    assert verdict.line == (
        "host cid (process 2) gave no sign of life for 21 s, is lost; start the same command again on all hosts"
    )


def test_a_process_that_was_itself_asleep_blames_nobody(dog):
    now = time.monotonic() + 50  # nobody looked meanwhile
    assert dog.look(now) is None
    assert dog.look(now + 0.5) is None


def test_a_host_that_failed_ends_the_others_after_a_moment(dog):
    now = time.monotonic()
    dog.heartbeats.signs[1] = Sign(5, "tune", 0.0, ended=1, line="stopped by KeyError: 'x'", since=now)
    assert dog.look(now + GRACE / 2) is None
    verdict = dog.look(now + GRACE + 1)
    assert (verdict.code, verdict.stuck) == (3, False)
    assert verdict.line.startswith("host bob (process 1) has stopped (stopped by KeyError: 'x'); start the same")


def test_what_one_host_refuses_is_refused_input_everywhere(dog):
    now = time.monotonic()
    dog.heartbeats.signs[1] = Sign(5, "probe", 0.0, ended=2, line="q.jsonl: no such file", since=now - GRACE - 1)
    verdict = dog.look(now)
    assert (verdict.code, verdict.line) == (2, "host bob (process 1): q.jsonl: no such file")


def test_a_host_that_ended_well_is_missed_by_nobody(dog):
    now = time.monotonic()
    dog.heartbeats.signs[1] = Sign(5, "report", 0.0, ended=0, since=now - 1000)
    assert dog.look(now) is None


def test_a_stuck_process_says_where_and_what_the_others_do(dog):
    now = time.monotonic()
    progress.at("tune", "wave 1")
    progress.here.moved_at = now - 101
    dog.heartbeats.signs[1] = Sign(5, "tune wave 1", 0.0, since=now)
    dog.heartbeats.signs[2] = Sign(5, "tune wave 1", 0.0, since=now - 12)
    verdict = dog.look(now)
    assert (verdict.code, verdict.stuck) == (3, True)
    assert "host ann (process 0) is stuck, without progress since 101 s, in tune wave 1" in verdict.line
    assert "no sign of life from host cid (process 2) since 12 s" in verdict.line
    dog.heartbeats.signs[2].since = now
    assert "host bob (process 1) is in tune wave 1 since 0 s" in dog.look(now).line


def test_compilation_has_a_limit_of_its_own_and_waiting_none(dog):
    now = time.monotonic()
    with progress.phase(progress.COMPILING):
        progress.here.moved_at = now - 101
        assert dog.look(now) is None
        progress.here.moved_at = now - 100 * COMPILING - 1
        assert "compiling for 401 s" in dog.look(now).line
    with progress.phase(progress.WAITING, "the first process"):
        progress.here.moved_at = now - 1e6
        assert dog.look(now) is None
    assert dog.look(now) is None  # what comes after begins anew


def test_0_never_finds_a_process_stuck():
    progress.here.moved_at -= 1e6
    assert Watchdog(pytest.fail, stall_timeout=0).look(time.monotonic()) is None
    assert Watchdog(pytest.fail, stall_timeout=5).look(time.monotonic()) is not None


def test_its_thread_ends_a_process_that_stands_still():
    ended = []
    dog = Watchdog(ended.append, stall_timeout=0.1)
    progress.here.moved_at = time.monotonic() - 1
    dog.start()
    dog._thread.join(10)
    assert [verdict.stuck for verdict in ended] == [True]
