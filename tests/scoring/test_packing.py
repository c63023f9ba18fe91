"""The plan: in any layout every option is read once behind its own text; rows, steps and parts keep to bounds."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbolic import LAYOUTS, OVERHEADS, Columns, expected_reads, pairs, token_requests

from jaxift.models.prefix import SMALL_BLOCK
from jaxift.scoring import tree as tree_module
from jaxift.scoring.filling import fill, prefill_arrays
from jaxift.scoring.packing import Layout, pack_sizes
from jaxift.scoring.plan import Prefill, Step, make_plan, needed_prefills
from jaxift.scoring.requests import TokenRequest
from jaxift.scoring.tree import build_tree


def planned(asked, layout=None, overhead=256):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "CUT_OVERHEAD", overhead)
        return make_plan(build_tree(asked), Layout(**(layout or {})))


def steps(plan):
    return [piece for piece in plan.work if isinstance(piece, Step)]


def run(plan, skipped=()):
    """What each option is read from, (state, token) by token; of skipped parts nothing is run that no other needs."""
    columns, waiting, found = Columns(plan.layout.lanes, plan.columns), [], collections.defaultdict(list)
    for part, pieces in enumerate(plan.parts):
        for piece in [plan.work[index] for index in pieces]:
            if isinstance(piece, Prefill):
                waiting.append(piece)
            elif part not in skipped:
                for prefill in needed_prefills(waiting):
                    columns.prefill(prefill_arrays(plan, prefill))
                waiting.clear()
                for numbers, read in reads(plan, piece, columns):
                    for number in numbers:
                        found[number].append(read)
    return found


def reads(plan, step, columns):
    """The answers of one step: (options, what they are read from)."""
    filled, shape = fill(plan, step), step.shape
    states = columns.step(shape, step.depths, filled.tokens, filled.positions, filled.reach)
    flat = [
        (states[lane][filled.slots[lane, slot]], int(filled.targets[lane, slot, target]))
        for lane, slot, target in np.ndindex(plan.layout.lanes, shape.slots, shape.targets)
    ]
    starts = [0, *filled.ends[:-1]]
    for numbers, start, end in zip(filled.options, starts, filled.ends, strict=True):
        yield numbers, [flat[place] for place in filled.reads[start:end]]


@given(pairs(), LAYOUTS, OVERHEADS)
def test_every_option_is_read_once_behind_its_own_text(drawn, layout, overhead):
    asked = token_requests(drawn)
    found = run(planned(asked, layout, overhead))
    assert found == {number: [read] for number, read in enumerate(expected_reads(asked))}


@given(pairs(20), LAYOUTS, OVERHEADS, st.data())
def test_parts_can_be_left_out(drawn, layout, overhead, data):
    asked = token_requests(drawn)
    plan = planned(asked, layout, overhead)
    skipped = data.draw(st.sets(st.sampled_from(range(len(plan.parts)))))
    expected = expected_reads(asked)
    found = run(plan, skipped)
    assert all(read == [expected[number]] for number, read in found.items())
    rest = run(plan, set(range(len(plan.parts))) - skipped)
    assert sorted([*found, *rest]) == list(range(len(expected)))


def test_of_parts_left_out_only_needed_prefixes_are_computed():
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(3):
        shots = rng.integers(0, 90, 600).tolist()
        asked += [TokenRequest((*shots, *rng.integers(0, 90, 9).tolist()), ((1,),)) for _ in range(200)]
    plan = planned(asked)
    prefills = [piece for piece in plan.work if isinstance(piece, Prefill)]
    kept = needed_prefills(prefills)
    assert {piece.leaves for piece in kept} == {prefills[-1].leaves}
    assert sum(piece.counts[0] for piece in kept) == 600
    assert sum(piece.counts[0] for piece in prefills) == 3 * 600


@given(pairs(), LAYOUTS, OVERHEADS)
def test_one_lane_computes_a_column_of_a_prefix_once(drawn, layout, overhead):
    plan = planned(token_requests(drawn), layout | {"lanes": 1}, overhead)
    columns = collections.Counter(
        tuple(plan.tree.tokens[piece.leaves[0]][: end + 1].tolist())
        for piece in plan.work
        if isinstance(piece, Prefill)
        for end in range(piece.starts[0], piece.starts[0] + piece.counts[0])
    )
    assert set(columns.values()) <= {1}


@given(pairs(), LAYOUTS, OVERHEADS)
def test_shapes_hold_what_is_fed(drawn, layout, overhead):
    plan = planned(token_requests(drawn), layout, overhead)
    assert len({step.shape.length for step in steps(plan)}) <= layout["row_lengths"]
    longest = max(item.size for step in steps(plan) for lane in step.rows for row in lane for item in row)
    for step in steps(plan):
        assert len(step.rows) == len(step.depths) == layout["lanes"]
        assert all(len(lane) <= step.shape.rows for lane in step.rows)
        assert all(sum(item.size for item in row) <= step.shape.length for lane in step.rows for row in lane)
        assert all(item.depth == d for d, lane in zip(step.depths, step.rows, strict=True) for r in lane for item in r)
        # a step of one row may be longer, where an item is
        assert step.shape.tokens <= layout["step_tokens"] or step.shape.rows == 1
        assert step.shape.length <= 8 * max(longest, 8) + 16  # room for several, not for hundreds
        assert max(step.depths) <= plan.columns
    shapes = {(step.shape.rows, step.shape.length) for step in steps(plan)}
    assert len(shapes) == len({step.shape for step in steps(plan)}), "rows of one kind need more than one program"
    assert plan.columns % SMALL_BLOCK == 0


@given(pairs(), LAYOUTS, OVERHEADS)
def test_parts_are_all_work_in_order(drawn, layout, overhead):
    plan = planned(token_requests(drawn), layout, overhead)
    assert [index for part in plan.parts for index in part] == list(range(len(plan.work)))
    for part in plan.parts:
        assert isinstance(plan.work[part[-1]], Step)
        assert sum(isinstance(plan.work[index], Step) for index in part) <= layout["part_steps"]


@given(pairs(), LAYOUTS, st.data())
def test_order_of_requests_changes_no_useful_token(drawn, layout, data):
    turned = data.draw(st.permutations(drawn))
    one, other = (planned(token_requests(each), layout) for each in (drawn, turned))
    assert one.useful_tokens == other.useful_tokens
    assert [dataclasses.astuple(step.shape) for step in steps(one)] == [
        dataclasses.astuple(step.shape) for step in steps(other)
    ]
    assert one.useful_tokens <= one.fed_tokens


@given(pairs(), LAYOUTS, OVERHEADS)
def test_a_plan_is_the_same_twice_and_its_digest_tells_others_apart(drawn, layout, overhead):
    asked = token_requests(drawn)
    plan = planned(asked, layout, overhead)
    again = planned(token_requests(drawn), layout, overhead)
    assert plan.work == again.work
    assert plan.digest == again.digest
    assert plan.digest != planned(asked, layout | {"lanes": layout["lanes"] + 1}, overhead).digest
    assert plan.digest != planned([*asked, TokenRequest((3,), ((3,),))], layout, overhead).digest
    (context, options), *others = drawn
    assert plan.digest != planned(token_requests([((*context[:-1], 3), options), *others]), layout, overhead).digest


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([(40,), (8, 40), (16, 24, 64)]))
def test_rows_are_never_overfull(sizes, lengths):
    rows = pack_sizes(sizes, lengths)
    assert sorted(index for _, row in rows for index in row) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in row) <= length and length in lengths for length, row in rows)
    # best fit leaves no two rows of the longest kind that one could hold
    full = [sum(sizes[index] for index in row) for length, row in rows if length == lengths[-1]]
    assert sum(one <= lengths[-1] // 2 for one in full) <= 1


def test_rows_are_filled_densely():
    rng = np.random.default_rng(0)
    shots, asked = rng.integers(0, 90, 400).tolist(), []
    for size in rng.integers(20, 120, 600).tolist():
        asked.append(TokenRequest((*shots, *rng.integers(0, 90, size).tolist()), ((1,), (2,), (3,), (4,))))
    plan = planned(asked)
    assert plan.useful_tokens / plan.fed_tokens >= 0.95
    # asked for one by one, the few-shot examples are most of the work
    assert plan.fed_tokens < 0.2 * sum(len(request.context) for request in asked)


def test_lanes_share_the_work():
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 90, 300).tolist()
    asked = [TokenRequest((*shots, *rng.integers(0, 90, 60).tolist()), ((1,),)) for _ in range(400)]
    plan = planned(asked, {"lanes": 4})
    fed = [sum(item.size for step in steps(plan) for row in step.rows[lane] for item in row) for lane in range(4)]
    assert max(fed) <= 1.1 * min(fed)


def test_nothing_asked_is_no_work():
    plan = planned([])
    assert plan.work == plan.parts == []
    assert plan.useful_tokens == plan.fed_tokens == 0
