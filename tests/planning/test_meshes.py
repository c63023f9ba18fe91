"""Meshes of TPU slices that are only described: neighbours lie side by side, slices are joined by outer axes."""

import importlib.util

import numpy as np
import pytest

from jaxift.parallel.mesh import make_mesh
from jaxift.planning import topology

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: jaxift[plan]"
)


@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:2x2x4", "v4:2x2x4"])
@pytest.mark.parametrize("sizes", [(1, 1, 16, 1), (1, 2, 8, 1), (2, 2, 2, 2), (1, 1, 2, 8)])
def test_every_mesh_of_a_slice_can_be_made(name, sizes):
    cell, data, fsdp, tensor = sizes
    place = topology.described(name)
    mesh = make_mesh(data, fsdp, tensor, place.devices, cell=cell)
    assert mesh.devices.shape == sizes
    assert {device.id for device in mesh.devices.flat} == {device.id for device in place.devices}


def test_slices_are_split_over_cells_and_rows():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=4).devices

    def slices(*sizes, cell=1):
        mesh = make_mesh(*sizes, devices, cell=cell)
        return np.vectorize(lambda device: device.slice_index)(mesh.devices)

    within = slices(4, 16, 1)
    assert (within == within[:, :, :1, :1]).all()
    assert sorted(within[0, :, 0, 0]) == [0, 1, 2, 3]
    both = slices(2, 16, 1, cell=2)
    assert (both == both[:, :, :1, :1]).all()
    assert sorted(both[:, :, 0, 0].flat) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="does not divide over the slices"):
        make_mesh(1, 9, 7, devices)
