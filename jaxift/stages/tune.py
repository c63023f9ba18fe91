"""Tune: cells, copies of the base model fine-tuned on their arms, as many at once as fit."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxift.artifacts import RunDirectory
from jaxift.config import Cell, StudyConfig
from jaxift.models.adapters import write_model
from jaxift.models.weights import LanguageModel
from jaxift.parallel.mesh import cell_mesh
from jaxift.parallel.peaks import devices_used
from jaxift.tuning.group import Job
from jaxift.tuning.loop import PlannedWave, TunedCell, Wave, plan_waves
from jaxift.tuning.sinks import STEPS


def plan(config: StudyConfig, run: RunDirectory, cells: Sequence[Cell], model: LanguageModel) -> list[PlannedWave]:
    """Which of the cells are tuned together; their jobs are called by the cells' ids."""
    jobs = []
    for cell in cells:
        items = run.read_jsonl(f"arms/{cell.domain}/s{cell.seed}/{cell.arm}.jsonl")
        jobs.append(
            Job(
                cell.id,
                [(item["prompt"], item["response"]) for item in items],
                config.tune,
                cell.seed or 0,
                run.path(cell.checkpoints),
                [item.get("weight", 1.0) for item in items] if any("weight" in item for item in items) else (),
                [item["id"] for item in items],
            )
        )
    return plan_waves(model, jobs, mesh=cell_mesh(config.mesh), memory_per_device=config.memory_per_device)


def write_cell(
    config: StudyConfig, run: RunDirectory, cell: Cell, wave: Wave, index: int
) -> tuple[list[str], dict[str, Any]]:
    """Writes a tuned cell's cell.json and metrics.jsonl, and its model where the study exports it.

    Returns the files, its checkpoints among them, and facts for the manifest.
    """
    tuned: TunedCell = wave.cells[index]
    files = [f"cells/{cell.id}/cell.json", f"cells/{cell.id}/metrics.jsonl"]
    run.write_json(files[0], {"id": cell.id, **dataclasses.asdict(cell)})
    run.write_jsonl(files[1], tuned.metrics)
    files.append(cell.checkpoints)
    if config.tune.export:
        files.append(f"cells/{cell.id}/model")
        write_model(wave.stack.model(index), Path(run.path(files[-1])), base=config.model.path)
    if config.tune.export_every and run.path(f"cells/{cell.id}/{STEPS}").exists():
        files.append(f"cells/{cell.id}/{STEPS}")
    timing, share = wave.timing, len(wave.cells)
    cost = {
        "seconds": {name: getattr(timing, name) / share for name in ("compile", "input", "step", "checkpoint")},
        **{name: getattr(timing, name) / share for name in ("tokens", "places", "flops")},
        **devices_used(wave.stack.like.mesh, str(wave.stack.like.dtype)),
    }
    return files, {"examples": len(tuned.job.pairs), "at_the_length_limit": tuned.at_limit, "cost": cost}
