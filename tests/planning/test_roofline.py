"""Times and links: known slices, by hand."""

import types

import numpy as np
import pytest

from jaxift.errors import UserError
from jaxift.parallel.peaks import chip
from jaxift.planning import topology
from jaxift.planning.hlo import Shape
from jaxift.planning.roofline import Times, times
from jaxift.planning.topology import Topology
from jaxift.planning.traffic import Collective


def slice_of(kind, *sizes):
    """Devices with their places, in the order of the last axis first."""
    places = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    devices = [types.SimpleNamespace(coords=tuple(map(int, place)), process_index=0) for place in places]
    return Topology(kind, devices, chip(kind), sizes)


@pytest.mark.parametrize(
    ("kind", "sizes", "axes", "links"),
    [
        ("TPU v5 lite", (4, 4), (0,), 1),  # a line: its ends have one neighbour
        ("TPU v5 lite", (4, 4), (0, 1), 2),
        ("TPU v5 lite", (16, 16), (1,), 2),  # a ring
        ("TPU v5 lite", (16, 16), (0, 1), 4),
        ("TPU v5", (4, 4, 4), (0, 1, 2), 6),
        ("TPU v5", (2, 2, 4), (0, 2), 3),
    ],
)
def test_links_into_a_device(kind, sizes, axes, links):
    place = slice_of(kind, *sizes)
    group = [
        each for each in place.devices if all(each.coords[axis] == 0 for axis in set(range(len(sizes))) - set(axes))
    ]
    assert place.received_a_second(group) == links * place.chip.link_bandwidth


def test_times_are_those_of_the_formula():
    place = slice_of("TPU v5 lite", 4, 4)
    devices = np.array(place.devices).reshape(1, 4, 4, 1)
    gathered = Collective("all-gather", Shape("bf16", (1000, 1000), True), (0, 1, 2, 3), 10.0)
    summed = Collective("all-reduce", Shape("f32", (1000, 1000), True), (0, 4, 8, 12), 1.0)
    alone = Collective("all-reduce", Shape("f32", (1000, 1000), True), (3,), 1.0)
    found = times(197e12, 819e9, [gathered, summed, alone], place.chip, devices, place.received_a_second)
    assert found.compute == 1
    assert found.memory == 1
    assert found.network == pytest.approx((10 * 2e6 * 3 / 4 + 2 * 4e6 * 3 / 4) / 50e9)
    assert found.bound == "compute"
    assert found.optimistic == 1
    assert found.pessimistic == 2 + found.network
    assert found * 2 + Times(1, 0, 0) == Times(3, 2, 2 * found.network)


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v5p:4x4", "v9:4x4", "v5e:4x4 ", "../v5e:4x4"])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(UserError, match="is no slice"):
        topology.described(name)
