"""What a process does until it sees in a shared folder what another wrote, and who is told what on one process."""

import pytest

from jaxift.errors import HostLost, UserError
from jaxift.parallel import meeting


def test_what_is_seen_a_moment_later_is_waited_for():
    looks = iter([False, False, True])
    meeting.until_seen(lambda: next(looks), "run", timeout=30)
    assert next(looks, None) is None


def test_what_is_never_seen_is_refused_with_the_host_that_does_not():
    with pytest.raises(UserError, match=r"^RUN: host .+ \(process 0\) does not see there what .*all hosts share$"):
        meeting.until_seen(lambda: False, "RUN", timeout=0)


def test_on_one_process_the_first_finds_and_refuses_for_all():
    assert meeting.told_by_first(lambda: "found") == "found"

    def refuse():
        raise UserError("no room")

    with pytest.raises(UserError, match=r"^no room$"):
        meeting.on_first_process(refuse)


def test_a_lost_host_is_one_printable_line_that_says_how_to_go_on():
    said = str(HostLost("host \x1b[31mevil\n(process 1) is lost"))
    assert said == "host \\x1b[31mevil (process 1) is lost; start the same command again on all hosts"
