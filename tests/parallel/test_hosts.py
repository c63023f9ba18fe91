"""Several processes: what they tell each other, what they are told where they disagree, and who is missing."""

import json
import platform

import jax
import numpy as np
import pytest
from launcher import run_processes

from jaxift.errors import UserError
from jaxift.parallel import arrays, hosts, meeting
from jaxift.parallel.mesh import make_mesh, sharding

# prints one JSON object: what each primitive returned, or how it refused
TWO = """
import json
import time
import numpy as np
from jaxift.errors import HostLost, UserError
from jaxift.parallel import arrays, meeting
from jaxift.parallel.mesh import make_mesh, sharding

def told(work):
    try:
        return work()
    except (UserError, HostLost) as error:
        return str(error)

def refuse():
    raise UserError("the disk is full")

first, found = {index} == 0, {}
found["same"] = told(lambda: meeting.same_everywhere("the plan", "abc"))
found["other"] = told(lambda: meeting.same_everywhere("the plan", "abc" if first else "abd"))
found["flags"] = meeting.everywhere(np.array([[first, True], [not first, False]])).tolist()
found["long flags"] = meeting.everywhere(np.arange(1000) % (2 if first else 3) == 0).nonzero()[0].tolist()
mine = np.arange(3 + 4 * {index}) + 2**40
found["gathered"] = [each.tolist() for each in arrays.gather(mine)]
mesh = make_mesh(2, 2, 1)
with jax.set_mesh(mesh):
    found["empty"] = [each.shape for each in arrays.gather(np.zeros((2, 3) if first else (0, 3), np.float32))]
    whole = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    laid = arrays.global_array(whole, sharding(mesh, "batch", None))
    found["parts right"] = all((np.asarray(part.data) == whole[part.index]).all() for part in laid.addressable_shards)
    found["devices"] = len(laid.addressable_shards)
    found["sum"] = float(jax.jit(lambda x: x.sum())(laid))
found["refused"] = told(lambda: meeting.on_first_process(refuse))
ran = []
found["each"] = told(lambda: meeting.on_every_process(lambda: {index}))
found["one refused"] = told(lambda: meeting.on_every_process(lambda: None if first else refuse()))
found["done"] = told(lambda: meeting.on_first_process(lambda: ran.append(time.sleep(0.5))))
found["ran"] = len(ran)
meeting.barrier("both")
if first:
    found["alone"] = told(lambda: meeting.barrier("the end", timeout=0.5))
else:
    time.sleep(2)
print(json.dumps(found))
"""


def test_two_processes_tell_each_other_what_they_hold():
    found = [json.loads(output[-1]) for output, _ in run_processes(TWO)]
    for index, each in enumerate(found):
        assert each["same"] is None
        assert "the plan: differs between processes: host " in each["other"]
        assert "(process 1) has another than 1 of 2" in each["other"]
        assert each["flags"] == [[False, True], [False, False]]
        assert each["long flags"] == list(range(0, 1000, 6))
        assert each["gathered"] == [[2**40 + place for place in range(count)] for count in (3, 7)]
        assert each["empty"] == [[2, 3], [0, 3]]
        assert (each["parts right"], each["devices"], each["sum"]) == (True, 2, 276.0)
        assert each["refused"] == "the disk is full"
        assert each["each"] == index
        assert each["one refused"] == (
            "the disk is full" if index else f"host {platform.node()} (process 1): the disk is full"
        )
        assert (each["done"], each["ran"]) == (None, 1 - index)
    assert (
        "(process 1) did not come to the barrier the end within 0.5 s; start the same command again on all"
        in found[0]["alone"]
    )


UNJOINED = """
from jaxift.errors import UserError
from jaxift.parallel import arrays, hosts, meeting
for arguments in (("127.0.0.1:{port}", 2, 1), ("auto",)):
    try:
        hosts.initialize(*arguments, timeout=1)
    except UserError as error:
        print(error)
hosts.initialize("127.0.0.1:{port}", 1, 0)
hosts.initialize("127.0.0.1:{port}", 1, 0)
print(hosts.process_count())
try:
    hosts.initialize("127.0.0.1:{port}", 2, 1)
except UserError as error:
    print(error)
"""


def test_a_process_that_cannot_join_says_so_in_a_line():
    [(output, _)] = run_processes(UNJOINED, processes=1, join=False)
    assert len(output) == 4
    assert "cannot be reached within 1 s" in output[0]
    assert "no cluster is detected" in output[1]
    assert output[2] == "1"
    assert "joined already" in output[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("host:1",), "give all three"),
        ((None, 2, 0), "give all three"),
        (("host:1", 2, None), "give all three"),
        (("auto", 2, None), "leave them out"),
        (("none", None, 0), "leave them out"),
        (("host", 2, 0), "host:port"),
        (("host:1", 0, 0), "--processes 0"),
        (("host:1", 2, 2), "from 0 to 1"),
        (("host:1", 2, -1), "from 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        hosts.initialize(*arguments)
    assert not jax.distributed.is_initialized()


def test_on_one_process_everything_is_there_at_once():
    hosts.initialize()
    meeting.barrier("nobody else", timeout=0)
    meeting.same_everywhere("hash", "abc")
    flags, values = np.array([[True, False]]), np.arange(6, dtype=np.int64).reshape(2, 3)
    np.testing.assert_array_equal(meeting.everywhere(flags), flags)
    [gathered] = arrays.gather(values)
    np.testing.assert_array_equal(gathered, values)
    mesh = make_mesh(2, 1, 1)
    laid = arrays.global_array(values, sharding(mesh, "batch", None))
    np.testing.assert_array_equal(np.asarray(laid), values)
    assert len(laid.addressable_shards) == 2
    assert meeting.on_every_process(lambda: 3) == 3
    ran = []
    meeting.on_first_process(lambda: ran.append(1))
    assert ran == [1]
