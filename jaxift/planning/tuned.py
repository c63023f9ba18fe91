"""Tuning on a topology: the best meshes, recomputation and batches by formula, then compiled with stand-in examples."""

import dataclasses

from jaxift.config import TuneConfig
from jaxift.models.decoder import Remat
from jaxift.models.flops import tuning_flops
from jaxift.parallel.mesh import CELL, batch_shards
from jaxift.planning import estimate
from jaxift.planning.choices import Choice, Result, Site
from jaxift.planning.estimate import legal_meshes
from jaxift.planning.programs import compile_tuning
from jaxift.planning.roofline import Times
from jaxift.planning.workload import Tuning
from jaxift.tuning.batches import Shape
from jaxift.tuning.group import Job, Prepared, group, prepare, shape_of

MICRO_TOKENS = (1024, 2048, 4096, 8192, 16384)
REMATS: tuple[Remat, ...] = ("none", "dots", "full")


def prepared_for(site: Site, work: Tuning) -> Prepared:
    """A job of the work's examples."""
    return prepare(site.model((1, 1, 1, 1), tuned=True), Job(work.name, work.pairs, site.config.tune))


def search(site: Site, prepared: Prepared, cells: int, count: int) -> list[Result]:
    """The `count` best ways to tune so many models as a job says, compiled."""
    shapes: dict[tuple[int, int], Shape] = {}
    found: dict[tuple, Choice] = {}
    for sizes in legal_meshes(site.shape, len(site.topology.devices), cells):
        place = site.place(sizes)
        shards = batch_shards(place.mesh)
        for tokens in MICRO_TOKENS:
            if (shards, tokens) not in shapes:
                settings = _settings(site, "none", tokens)
                shapes[shards, tokens] = shape_of([prepared.plan], settings, site.shape, shards, "tpu")
            shape = shapes[shards, tokens]
            for remat in REMATS:
                rows = shape.rows // shape.shards
                guess = estimate.tuning(place, remat, shape.micro, rows, shape.length, shape.slots)
                seconds = guess.times.pessimistic * -(-cells // sizes[0]) * prepared.plan.steps
                # where all fits into less at once, more room changes nothing
                found.setdefault((sizes, remat, shape), Choice(sizes, remat, tokens, guess, seconds))
    return [_compiled(site, choice, cells, prepared) for choice in site.best(list(found.values()), count)]


def _settings(site: Site, remat: Remat, tokens: int) -> TuneConfig:
    return site.config.tune.model_copy(update={"remat": remat, "micro_tokens": tokens})


def _compiled(site: Site, choice: Choice, cells: int, prepared: Prepared) -> Result:
    model = site.model(choice.sizes, tuned=True)
    job = dataclasses.replace(prepared.job, config=_settings(site, choice.remat, choice.tokens))
    members = group(model, [dataclasses.replace(prepared, job=job)])
    program = compile_tuning(members, model.mesh.shape[CELL], site.topology)
    waves = -(-cells // model.mesh.shape[CELL])
    plan = prepared.plan
    total = (program.times or Times(0.0, 0.0, 0.0)) * (waves * plan.steps)
    lengths, scored = [each.fed for each in plan.examples], sum(each.scored for each in plan.examples)
    useful = tuning_flops(members.model.config, lengths, scored) * plan.epochs * cells
    return Result(choice, [program], total, useful / model.mesh.size)
