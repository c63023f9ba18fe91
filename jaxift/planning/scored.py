"""Scoring on a topology: the best meshes and batches by formula, then compiled with the study's own requests."""

import dataclasses
from collections import Counter

from jaxift.models.stack import ModelStack
from jaxift.parallel.mesh import CELL, batch_shards
from jaxift.planning import estimate
from jaxift.planning.choices import Choice, Result, Site, Sizes
from jaxift.planning.estimate import Estimate, Place, legal_meshes
from jaxift.planning.programs import Compiled, compile_prefill, compile_step
from jaxift.planning.roofline import Times
from jaxift.planning.workload import Scoring
from jaxift.scoring.engine import layout, useful_flops
from jaxift.scoring.plan import Plan, Prefill, Step, make_plan
from jaxift.scoring.programs import Compiler, Scored
from jaxift.scoring.requests import encode_requests
from jaxift.scoring.tree import Tree, build_tree
from jaxift.tuning.group import described_stack, frozen_part, with_adapters

LANE_TOKENS = (4096, 8192, 16384, 32768)
SEEN = 1024
"""Tokens that a token sees, by which meshes are ranked."""


def search(site: Site, tree: Tree, count: int) -> list[Result]:
    """The `count` best ways to score requests with the base model, compiled."""
    found = []
    work: dict[tuple[int, int], Counter[int]] = {}
    for sizes in legal_meshes(site.shape, len(site.topology.devices), cells=1):
        place = site.place(sizes)
        lanes = batch_shards(place.mesh)
        for tokens in LANE_TOKENS:
            if (lanes, tokens) not in work:
                plan = make_plan(tree, layout(site.shape, place.mesh, tokens * lanes))
                work[lanes, tokens] = Counter(_fed(piece) for piece in plan.work)
            guesses = {size: _guess(place, size) for size in work[lanes, tokens]}
            seconds = sum(count * guesses[size].times.pessimistic for size, count in work[lanes, tokens].items())
            largest = max(guesses)
            if not any(each.sizes == sizes and each.guess == guesses[largest] for each in found):
                found.append(Choice(sizes, "none", tokens, guesses[largest], seconds))
    return [_compiled(site, choice, tree) for choice in site.best(found, count)]


def of_tuned(site: Site, tree: Tree, models: int, sizes: Sizes) -> Result:
    """Scoring with each of several models, on the mesh that they were tuned on, a stack of one a group at a time."""
    place, lane = site.place(sizes), LANE_TOKENS[1]
    found = _compiled(site, Choice(sizes, "none", lane, _guess(place, lane), 0.0), tree, tuned=True)
    waves = -(-models // place.mesh.shape[CELL])
    return dataclasses.replace(found, times=found.times * waves, useful=found.useful * waves)


def _fed(piece: Prefill | Step) -> int:
    """Tokens of a lane, padding included."""
    return piece.length if isinstance(piece, Prefill) else piece.shape.tokens


def _guess(place: Place, tokens: int) -> Estimate:
    return estimate.scoring(place, tokens, tokens // 64, SEEN, tokens * SEEN)


def tree_of(site: Site, work: Scoring) -> Tree:
    """The prefix tree of what a study asks."""
    tokenizer = site.model((1, 1, 1, 1), tuned=False).tokenizer
    return build_tree(encode_requests(tokenizer, work.requests).requests)


def _compiled(site: Site, choice: Choice, tree: Tree, *, tuned: bool = False) -> Result:
    model = site.model(choice.sizes, tuned=tuned)
    plan = make_plan(tree, layout(site.shape, model.mesh, choice.tokens * batch_shards(model.mesh)))
    programs = _programs(site, plan, _stack(site, choice.sizes) if tuned else Scored.of(model.decoder, model.mesh))
    total = Times(0.0, 0.0, 0.0)
    if all(each.times for each in programs):
        largest = {kind: max(_fed(piece) for piece in plan.work if isinstance(piece, kind)) for kind in _kinds(plan)}
        for piece, count in Counter((type(piece), _fed(piece)) for piece in plan.work).items():
            total += _scaled(programs[piece[0] is Prefill], piece[1] / largest[piece[0]]) * count
    devices = model.mesh.size / (model.mesh.shape[CELL] if tuned else 1)
    return Result(choice, programs, total, useful_flops(site.shape, plan) / devices)


def _stack(site: Site, sizes: Sizes) -> Scored:
    """A model a group of devices, as tuning leaves them."""
    model = with_adapters(site.model(sizes, tuned=True), site.config.tune)
    cells = model.mesh.shape[CELL]
    return Scored.stacked(ModelStack(model, described_stack(model, cells), frozen_part(model), cells))


def _programs(site: Site, plan: Plan, scored: Scored) -> list[Compiled]:
    """The program of the largest step, and that of the longest prefill where there is one."""
    compiler = Compiler(scored, plan.layout.lanes, plan.columns, site.model((1, 1, 1, 1), tuned=False).dtype)
    steps = [piece for piece in plan.work if isinstance(piece, Step)]
    depth = max(max(step.depths) for step in steps)
    largest = max({step.shape for step in steps}, key=lambda shape: shape.tokens)
    programs = [compile_step(compiler, largest, site.topology, depth)]
    lengths = [piece.length for piece in plan.work if isinstance(piece, Prefill)]
    if lengths:
        programs.append(compile_prefill(compiler, max(lengths), site.topology, depth))
    return programs


def _kinds(plan: Plan) -> set[type]:
    return {type(piece) for piece in plan.work}


def _scaled(program: Compiled, share: float) -> Times:
    """A smaller program than the one that was compiled computes less, but moves all weights."""
    assert program.times
    return dataclasses.replace(program.times, compute=program.times.compute * share)
