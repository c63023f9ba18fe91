"""Models of a stack, scored in one program, say what each says alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxift
from jaxift.models.stack import ModelStack, put, spread
from jaxift.parallel.mesh import filled, make_mesh
from jaxift.scoring.engine import Request, score, score_stack

SHARED = "w1 w2 w3 w4 w5 w6"
REQUESTS = [Request(f"{SHARED} w{number}", (" A", " B w1", " C w2 w3")) for number in range(7)]
REQUESTS += [Request(f"w{number} w9", (" A", " B")) for number in range(5)]


@pytest.mark.parametrize("sizes", [{}, {"cell": 2, "data": 2}, {"cell": 2, "tensor": 2}], ids=str)
def test_a_stack_scores_like_its_models(sizes, make_folder, tmp_path):
    mesh = make_mesh(**{"data": 1, **sizes})
    folders = [make_folder(tmp_path / str(seed), seed=seed) for seed in range(3)]
    models = [jaxift.load(folder, mesh) for folder in folders]
    with jax.set_mesh(mesh):
        params = spread(nnx.state(models[0].decoder), filled(3, mesh))
        for index, model in enumerate(models[1:], 1):
            params = put(params, jnp.int32(index), nnx.state(model.decoder))
    stack = ModelStack(models[0], params, None, 3)
    found = score_stack(stack, REQUESTS)
    alone = [score(jaxift.load(folder), REQUESTS) for folder in folders]
    assert len(found) == 3
    [last] = score_stack(stack.some([2]), REQUESTS)
    for mine, expected in zip([*found, last], [*alone, alone[2]], strict=True):
        for one, other in zip(mine, expected, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert (one.is_greedy == other.is_greedy).all()
    assert abs(found[0][0].logprobs[0] - found[1][0].logprobs[0]) > 1e-2
