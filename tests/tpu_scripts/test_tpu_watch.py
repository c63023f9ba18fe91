"""watch.sh keeps a command running through preemptions and lost hosts, and ends with it."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from fake_cloud import Cloud, records
from test_tpu_cycle import KINDS, STUDY, WHERE

SETTINGS = WHERE | KINDS["v5e-16"][2]


class Watching:
    """watch.sh beside the test."""

    def __init__(self, cloud: Cloud):
        self.cloud = cloud
        self.said = None
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        self.said = self.cloud.run("watch.sh", *STUDY, **SETTINGS)

    def starts(self) -> list[int]:
        return [len(records(path)) for path in self.cloud.fake.glob("hosts/*/jaxift_calls")]

    def until(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not so():
            assert time.monotonic() < deadline
            assert self.thread.is_alive(), self.said
            time.sleep(0.05)

    def until_started(self, times: int) -> None:
        self.until(lambda: self.starts() == [times] * 4)

    def end(self) -> int:
        self.thread.join(timeout=40)
        assert self.said is not None
        return self.said.code


def test_a_preempted_and_a_lost_host_do_not_end_the_study(cloud: Cloud):
    cloud.put("hold")
    watching = Watching(cloud)
    watching.until_started(1)
    cloud.put("state", "SUSPENDED\n")
    watching.until(lambda: sum(call[4] == "create" for call in cloud.calls()) == 2)
    watching.until_started(1)
    pid = (cloud.hosts()[1] / "jaxift/run/pid").read_text().strip()
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
    watching.until_started(2)
    cloud.let_go()
    assert watching.end() == 0
    verbs = [call[4] for call in cloud.calls()]
    assert verbs.count("create") == 2
    assert verbs.count("delete") == 1
    assert "is started again" in watching.said.err
    assert "ended with exit code 0" in watching.said.err


def test_a_host_that_lost_its_disk_is_set_up_again(cloud: Cloud):
    cloud.put("hold")
    watching = Watching(cloud)
    watching.until_started(1)
    host = cloud.hosts()[2]
    pid = (host / "jaxift/run/pid").read_text().strip()
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
    shutil.rmtree(host)
    host.mkdir()
    watching.until(lambda: sorted(watching.starts()) == [1, 2, 2, 2])
    cloud.let_go()
    assert watching.end() == 0


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_that_no_restart_mends_ends_it_too(code: int, cloud: Cloud):
    cloud.put("exit_code", str(code))
    watching = Watching(cloud)
    assert watching.end() == code
    assert [len(records(host / "jaxift_calls")) for host in cloud.hosts()] == [1] * 4


def test_a_command_that_stalled_is_started_again(cloud: Cloud):
    cloud.put("exit_code", "3")
    watching = Watching(cloud)
    watching.until(lambda: max(watching.starts(), default=0) > 1)
    cloud.put("exit_code", "0")
    assert watching.end() == 0


def test_it_gives_up_where_nothing_helps(cloud: Cloud):
    cloud.put("no_quota")
    watching = Watching(cloud)
    assert watching.end() == 1
    assert "20 failures in a row" in watching.said.err
    assert watching.said.err.count("RESOURCE_EXHAUSTED") == 20


def test_refused_input_is_refused_once(cloud: Cloud):
    said = cloud.run("watch.sh", "--", "run", "c.yaml", "--run-dir", "here", **SETTINGS)
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert cloud.calls() == []
