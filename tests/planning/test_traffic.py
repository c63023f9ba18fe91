"""What a program moves: read from texts in the compiler's own form, small enough to count by hand."""

from pathlib import Path

import pytest

from jaxift.planning.hlo import parse
from jaxift.planning.traffic import by_kind, groups, traffic

MIB = 1 << 20
# a loop of 4 runs, 2 steps of its counter each, in which a weight's share is cut out of a stack, by a fusion in a
# fusion, gathered over 4
# devices into the chip's memory, and multiplied; then a sum over all that nobody knows the number of
PROGRAM = (Path(__file__).parent / "step.hlo").read_text(encoding="utf-8")


def test_loops_count_as_often_as_they_run():
    found = traffic(parse(PROGRAM), lambda loop: 3.0 if "jit(step)/while" in loop.attributes else None)
    # once a run: what begins a collective and what ends it bear one channel; of 4 MiB a device lacks three quarters
    assert by_kind(found.collectives) == {"all-gather": 4 * 3 * MIB, "all-reduce": 3 * 2 * 0.5 * 4 * MIB}
    assert [each.group for each in found.collectives] == [(0, 1, 2, 3), (0, 2)]
    assert found.kernels == {"kernel": 4.0}
    assert not found.unknown_loops


def test_memory_is_what_goes_over_hbm():
    found = traffic(parse(PROGRAM), lambda loop: 3.0)
    cut = 1 + 1  # of a stack that is only cut, the part; and its copy
    gathered = 1  # is read; it comes to lie on the chip
    kernel = 4 + 4  # reads and writes the state, the weight is on the chip
    summed = 4 + 4
    assert found.hbm_bytes // MIB == 4 * (cut + gathered + kernel) + 3 * summed  # and some counters


def test_loops_that_nobody_knows_are_told():
    assert traffic(parse(PROGRAM)).unknown_loops == ["while.2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, x=1", [(0, 1), (2, 3)]),
        ("replica_groups=[2,4]<=[8]", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, y=2", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [(0, 1, 4, 5), (2, 3, 6, 7)]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'b'}", [(0, 1), (2, 3), (4, 5)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [(3, 2), (1, 0)]),
        ("source_target_pairs={{3,1},{1,3}}", [(3, 1)]),
    ],
)
def test_groups_in_every_spelling(text, expected):
    assert groups(f", channel_id=1, {text}") == expected


def test_groups_in_an_unknown_spelling_are_refused():
    with pytest.raises(ValueError, match="not told in a way that is known"):
        groups(", channel_id=1, replica_groups=something_new")


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        parse("HloModule nothing")
