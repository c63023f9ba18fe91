"""The log of a host: what stands in it, and where it goes."""

import logging

import pytest
from etils import epath

from jaxift import host_log
from jaxift.errors import UserError

LOG = logging.getLogger("jaxift")


def test_a_line_tells_time_level_host_and_message_and_a_second_run_adds_to_it(tmp_path):
    for message in ("first", "second"):
        with host_log.opened(epath.Path(tmp_path / "logs"), 3):
            LOG.info(message)
    lines = (tmp_path / "logs/host-0003.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "done", "second", "done"]
    assert all(line.split()[2] == "INFO" for line in lines)


@pytest.mark.parametrize("error", [UserError("no room"), KeyError("lost"), KeyboardInterrupt()])
def test_what_ends_it_is_there_with_its_traceback(tmp_path, error):
    with pytest.raises(type(error)), host_log.opened(epath.Path(tmp_path), 0):
        raise error
    text = (tmp_path / "host-0000.log").read_text()
    assert "ERROR" in text
    assert "Traceback" in text
    assert type(error).__name__ in text


def test_nothing_is_left_behind(tmp_path):
    before = list(LOG.handlers), LOG.level, LOG.propagate
    with host_log.opened(epath.Path(tmp_path), 0):
        pass
    assert (list(LOG.handlers), LOG.level, LOG.propagate) == before


def test_of_several_processes_one_that_is_stopped_still_logs_who_ends_it(tmp_path):
    try:
        with pytest.raises(RuntimeError), host_log.opened(epath.Path(tmp_path), 1, processes=2):
            raise RuntimeError("the connection broke")
        LOG.error("host other (process 0) is lost")
        assert (tmp_path / "host-0001.log").read_text().endswith("host other (process 0) is lost\n")
    finally:
        for handler in list(LOG.handlers):
            LOG.removeHandler(handler)
            handler.close()
        LOG.propagate = True


def test_an_object_store_gets_the_whole_log_at_the_end(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "host-0000.log")
    path.write_text("before\n")
    monkeypatch.setattr(host_log, "_handler", lambda _: host_log._Uploaded(path))
    with host_log.opened(epath.Path(tmp_path), 0):
        LOG.info("now")
        assert path.read_text() == "before\n"
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert [line.split()[-1] for line in lines[1:]] == ["now", "done"]
