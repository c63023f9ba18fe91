"""Tune: one cell, the base model fine-tuned on its arm."""

import dataclasses
from typing import Any

from jaxift.artifacts import RunDirectory
from jaxift.config import Cell, StudyConfig
from jaxift.models.weights import LanguageModel
from jaxift.scoring.engine import Progress
from jaxift.tuning.loop import tune


def tune_cell(
    config: StudyConfig, run: RunDirectory, cell: Cell, model: LanguageModel, progress: Progress | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Writes the cell's checkpoints, cell.json and metrics.jsonl; returns the files and facts for the manifest."""
    items = run.read_jsonl(f"arms/{cell.domain}/s{cell.seed}/{cell.arm}.jsonl")
    steps = -(-len(items) // config.tune.batch_size) * config.tune.epochs
    tuned = tune(
        model,
        [(item["prompt"], item["response"]) for item in items],
        config.tune,
        seed=cell.seed or 0,
        folder=run.path(cell.checkpoints),
        on_step=(lambda metrics: progress(int(metrics["step"]), steps)) if progress else None,
    )
    files = [f"cells/{cell.id}/cell.json", f"cells/{cell.id}/metrics.jsonl"]
    run.write_json(files[0], {"id": cell.id, **dataclasses.asdict(cell)})
    run.write_jsonl(files[1], tuned.metrics)
    facts: dict[str, Any] = {"examples": len(items), "at_the_length_limit": tuned.at_limit}
    return [*files, cell.checkpoints], facts
