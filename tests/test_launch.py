"""The flags of several processes on a command line, and what is joined without them."""

import subprocess
import sys
import time

import pytest
from command_processes import ROOT

from jaxift import launch
from jaxift.errors import UserError
from jaxift.parallel.watchdog import STALL_TIMEOUT


def test_flags_are_taken_out_and_the_rest_is_left():
    flags, left = launch.split(["x.yaml", "--coordinator", "h:1", "--processes=2", "--process", "0", "--seeds", "1"])
    assert (flags.coordinator, flags.processes, flags.process) == ("h:1", 2, 0)
    assert left == ["x.yaml", "--seeds", "1"]
    assert launch.split([]) == (launch.Flags(), [])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--processes", "two"], "--processes two: give a whole number"),
        (["--host-timeout", "-1"], "--host-timeout -1: give seconds"),
        (["--host-timeout", "0"], "--host-timeout 0: give seconds"),
        (["--stall-timeout", "nan"], "--stall-timeout nan: give seconds"),
        (["--coordinator"], "--coordinator: needs a value"),
    ],
)
def test_flags_without_a_right_value_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        launch.split(arguments)


def test_who_is_alone_is_not_watched_unless_it_is_asked_for(monkeypatch):
    assert launch.split([])[0].stalls == 0
    assert launch.split(["--stall-timeout", "5"])[0].stalls == 5
    monkeypatch.setattr("jaxift.parallel.hosts.process_count", lambda: 2)
    assert launch.split([])[0].stalls == STALL_TIMEOUT
    assert launch.split(["--stall-timeout", "0"])[0].stalls == 0


@pytest.mark.parametrize("coordinator", [[], ["--coordinator", "none"]])
def test_where_nothing_hints_at_a_cluster_jax_is_not_even_loaded(coordinator, monkeypatch):
    monkeypatch.setattr("jaxift.launch.hinted", lambda: False)
    monkeypatch.setattr("jaxift.parallel.hosts.initialize", lambda *_, **__: pytest.fail("joined"))
    started = launch.Launch()
    started.join(launch.split(coordinator)[0])
    assert not started.watches
    started.leave(0, "")


STUCK = """
import sys, threading, time
from jaxift import launch, progress
started = launch.Launch()
started.join(launch.split(["--coordinator", "none", "--stall-timeout", "1"])[0])
progress.at("probe", "medicine")
def stands_still():
    time.sleep(60)
stands_still()
"""


def test_a_process_that_stands_still_ends_itself_and_shows_where_it_is():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert any("in stands_still" in line for line in lines)
    assert "(process 0) is stuck, without progress since" in lines[-1]
    assert "in probe medicine; start the same command again" in lines[-1]
    assert time.monotonic() - started < 60
