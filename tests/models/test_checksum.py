"""The checksum of weights: any change shows, and the mesh does not."""

import jax
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.models.checksum import checksum


def changed(model, path, place, change):
    """The model's decoder with one element of one weight replaced by `change` of it."""
    graph, state = nnx.split(model.decoder)
    flat = dict(nnx.to_flat_state(state))
    value = flat[path].get_value()
    host = np.array(value)
    at = np.unravel_index(place % host.size, host.shape)
    host[at] = change(host[at])
    flat[path] = flat[path].replace(jax.device_put(host, value.sharding))
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())))


def test_every_weight_and_place_counts(tiny_model):
    expected = checksum(tiny_model.decoder)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(tiny_model.decoder))]
    found = {
        checksum(changed(tiny_model, path, place, lambda x: x + 1e-3)) for path in paths for place in (0, 17, 1000)
    }
    assert len(found) > 2 * len(paths)  # places coincide where a weight has few elements
    assert expected not in found
    assert checksum(changed(tiny_model, paths[0], 3, lambda x: x)) == expected


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2", "4x1x2"])
def test_the_mesh_changes_nothing(mesh, meshes, tiny_model, tiny_folder, make_folder, tmp_path):
    assert checksum(jaxift.load(tiny_folder, meshes[mesh]).decoder) == checksum(tiny_model.decoder)
    assert checksum(jaxift.load(tiny_folder, dtype="bfloat16").decoder) != checksum(tiny_model.decoder)
    odd = make_folder(tmp_path / "odd", vocab_size=63)  # padded where the vocabulary is split
    assert checksum(jaxift.load(odd, meshes[mesh]).decoder) == checksum(jaxift.load(odd).decoder)
