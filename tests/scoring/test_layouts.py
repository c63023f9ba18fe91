"""The scorer with programs that tell what they saw: in any layout, with any parts left out, it answers the same."""

import functools

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from symbolic import LAYOUTS, OVERHEADS, Columns, expected_reads, pairs, token_requests

from jaxift.parallel.mesh import make_mesh
from jaxift.scoring import engine
from jaxift.scoring import tree as tree_module
from jaxift.scoring.engine import score_tokens
from jaxift.scoring.packing import Layout
from jaxift.scoring.programs import Programs
from jaxift.scoring.store import ScoreStore


class Symbolic(Programs):
    """Programs that answer with a hash of all that a token sees (see symbolic.py)."""

    def start(self):
        return Columns(*self.empty)

    def prefill(self, prefix, arrays):
        prefix.prefill(arrays)
        return prefix

    def step(self, shape, prefix, arrays):
        *fed, slots, targets = arrays
        states = prefix.step(shape, *fed)
        found = [
            [
                [hash((states[lane][slot], int(target))) % 2**20 for target in asked]
                for slot, asked in zip(*each, strict=True)
            ]
            for lane, each in enumerate(zip(slots, targets, strict=True))
        ]
        scored = np.array(found, np.float32)
        return jax.numpy.asarray(scored), jax.numpy.asarray(scored % 2 == 0)


def symbolic_programs(scored, plan, dtype):
    room = (plan.layout.lanes, plan.columns)
    return Symbolic(scored, room, {}, {}, 0.0)


@settings(max_examples=25)
@given(pairs(), LAYOUTS, OVERHEADS, st.data())
def test_any_layout_and_any_parts_left_out_give_the_same(tiny_model, tmp_path_factory, drawn, layout, overhead, data):
    asked = token_requests(drawn)
    expected = [[hash(read) % 2**20 for read in reads] for reads in expected_reads(asked)]
    mesh = make_mesh(layout["lanes"], devices=jax.devices()[: layout["lanes"]])
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "CUT_OVERHEAD", overhead)
        patch.setattr(engine, "layout", lambda *_: Layout(**layout))
        patch.setattr(engine, "compile_plan", symbolic_programs)
        run = functools.partial(score_tokens, tiny_model.decoder, asked, mesh, store=ScoreStore(epath.Path(folder), {}))
        for _ in range(2):
            found = [tokens.tolist() for score in run() for tokens in score.token_logprobs]
            assert found == expected
            parts = sorted(folder.iterdir())
            for part in data.draw(st.sets(st.sampled_from(parts))):
                part.unlink()
