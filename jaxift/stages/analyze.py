"""Turns the scores of all cells into `analysis.json`: accuracies, consistency, Exp-I and Exp-IV. NumPy and SciPy only.

All accuracies, differences and shares are fractions of 1; an `interval` is [low, high]; SET is homo, id or ood; an ARM
is BASE_FEW_SHOT (the probe), BASE (untuned, zero-shot), or an arm of the study.

    study        name, model, prompt, formulation, shots, seeds, domains, arms
    settings     resamples, confidence, seed
    missing      ids of cells that the study asks for and that have no scores yet
    cells        a list: id, domain, arm, seed, sets: {SET: n, accuracy, interval (over questions), base_accuracy,
                 rank_consistency, kl (nats), agreement, right_to_wrong, wrong_to_right (counts), commonest_place,
                 confidence}; the five before the last two compare with the base model as the probe saw it, few-shot;
                 commonest_place is the largest share of answers that stand at one and the same place (letter),
                 confidence the mean probability of the predicted option
    exp1         chance: {SET: accuracy of guessing}
                 questions: {SET: distinct (over all domains), by_domain: {DOMAIN: n}}
                 accuracy: {ARM: {SET: accuracy, interval, by_domain: {DOMAIN: accuracy, interval, seeds}}}
                 differences: {"HAR-INC": {SET: difference, interval, by_domain, paper (its mean, other models)}}
    consistency  {ARM: {SET: rank_consistency, kl, agreement, right_to_wrong, wrong_to_right (shares),
                 commonest_place, confidence}}: cells averaged over seeds, then over domains
    exp3         {ARM: share of the base's own answers} of the arms that mix them with the true ones; may be empty
    exp4         {SET: cells, partial_spearman or null, reason or null}: over the cells of exp3, where there are any

An arm without scores is left out, in a domain too. How the intervals are drawn: `jaxift.analysis.exp1`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxift.analysis import consistency, exp1
from jaxift.analysis.statistics import partial_spearman, percentile_interval
from jaxift.arms import contrasts, mixtures
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, StudyConfig
from jaxift.errors import UserError

FILE = "analysis.json"
FEWEST_CELLS = 5  # a partial correlation of fewer points says nothing
BESIDE_THE_BASE = (
    "rank_consistency", "kl", "agreement", "right_to_wrong", "wrong_to_right", "commonest_place", "confidence",
)  # fmt: skip
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model's answers to N questions with at most K options: log-probabilities [N, K], prediction and verdict [N]."""

    log_probs: NDArray[np.float64]
    pred: NDArray[np.int64]
    correct: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class DomainScores:
    """Everyone's answers to one domain's test set; `contents` identify the questions across domains."""

    contents: list[tuple[Any, ...]]
    base: Scored
    cells: dict[Cell, Scored]


def analyze(config: StudyConfig, run: RunDirectory, cells: Sequence[Cell]) -> list[str]:
    """Writes `analysis.json` for the cells given, all of which have scores; returns the files written.

    Raises UserError where a file is missing or damaged, or where a cell's questions are not those of the probe.
    """
    probed = _probed(config, run, cells)
    if not probed:
        raise UserError(f"{run.root}: no domain has been probed; run the probe stage first")
    entries = {cell: {"id": cell.id, **dataclasses.asdict(cell), "sets": {}} for cell in cells}
    result = {"study": _study(config), "settings": config.analyze.model_dump(), "missing": _missing(config, cells)}
    result["exp1"] = {"chance": {}, "questions": {}, "accuracy": {}, "differences": {}}
    for test_set in TEST_SETS:
        scores = {name: _load(run, name, test_set, [c for c in cells if c.domain == name]) for name in probed}
        _analyze_set(config, test_set, scores, result["exp1"], entries)
    result["cells"] = list(entries.values())
    result["consistency"] = _mean_consistency(result["cells"])
    result["exp3"] = mixtures(config.build.arms)
    counted = [entry for entry in result["cells"] if entry["arm"] in (result["exp3"] or config.build.arms)]
    result["exp4"] = {test_set: _exp4(counted, test_set) for test_set in TEST_SETS}
    run.write_json(FILE, result)
    return [FILE]


def _study(config: StudyConfig) -> dict[str, Any]:
    """What a reader of the analysis alone needs to know of the study."""
    return {
        "name": config.name,
        "model": config.model.path,
        "prompt": config.probe.prompt,
        "formulation": config.probe.formulation,
        "shots": config.probe.shots,
        "seeds": list(config.seeds),
        "domains": [domain.name for domain in config.domains],
        "arms": list(config.build.arms),
    }


def _probed(config: StudyConfig, run: RunDirectory, cells: Sequence[Cell]) -> list[str]:
    """The domains to analyze: those whose probe is there, and those that have cells and so must have one."""
    tuned = {cell.domain for cell in cells}
    names = [domain.name for domain in config.domains]
    whole = {name: all(run.exists(f"probe/{name}/{test_set}.parquet") for test_set in TEST_SETS) for name in names}
    return [name for name in names if whole[name] or name in tuned]


def _missing(config: StudyConfig, cells: Sequence[Cell]) -> list[str]:
    """Ids of the cells that the study asks for beyond those given."""
    wanted = []
    for domain in config.domains:
        wanted.append(Cell(domain.name, BASE))
        wanted.extend(Cell(domain.name, arm, seed) for arm in config.build.arms for seed in config.seeds)
    given = set(cells)
    return [cell.id for cell in wanted if cell not in given]


def _load(run: RunDirectory, domain: str, test_set: str, cells: Iterable[Cell]) -> DomainScores:
    """Reads a domain's probe and its cells' scores, in the probe's order of questions."""
    path = f"probe/{domain}/{test_set}.parquet"
    probe = run.read_rows(path)
    if not probe:
        raise UserError(f"{run.root / path}: holds no question; give the {test_set} set of {domain} at least one")
    order = {row["id"]: number for number, row in enumerate(probe)}
    if len(order) < len(probe):
        raise UserError(f"{run.root / path}: two questions share an id; make the ids of its sources unique")
    contents = [(row["question"], tuple(row["options"]), row["gold"]) for row in probe]
    scored = {}
    for cell in cells:
        cell_path = f"cells/{cell.id}/scores/{test_set}.parquet"
        rows = sorted(run.read_rows(cell_path), key=lambda row: order.get(row["id"], -1))
        if [_identity(row) for row in rows] != [_identity(row) for row in probe]:
            raise UserError(f"{run.root / cell_path}: its questions are not those of {path}; run evaluate again")
        scored[cell] = _scored(rows, str(run.root / cell_path))
    return DomainScores(contents, _scored(probe, str(run.root / path)), scored)


def _identity(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What the probe's and a cell's row of one question have in common."""
    return row["id"], row["gold"], len(row["scores"])


def _scored(rows: Rows, source: str) -> Scored:
    """Rows as arrays; raises UserError where a score is not a finite number.

    Beliefs are the softmax of the scores, taken here in float64 and in logs, where no option underflows to zero.
    """
    scores = [row["scores"] for row in rows]
    broken = sum(not np.isfinite(np.asarray(row, dtype=np.float64)).all() for row in scores)
    if broken:
        raise UserError(
            f"{source}: {broken} questions have scores that are not finite; where tuning diverged, tune again"
        )
    return Scored(
        consistency.log_softmax(consistency.pad_options(scores)),
        np.array([row["pred"] for row in rows], dtype=np.int64),
        np.array([row["correct"] for row in rows], dtype=bool),
    )


def _answers(scores: Mapping[str, DomainScores]) -> dict[str, exp1.Answers]:
    """All models' verdicts by domain, the few-shot base first; equal questions have equal numbers in all domains."""
    numbers: dict[tuple[Any, ...], int] = {}
    answers = {}
    for name, domain in scores.items():
        questions = np.array([numbers.setdefault(content, len(numbers)) for content in domain.contents])
        keys = ((exp1.FEW_SHOT, None), *((cell.arm, cell.seed) for cell in domain.cells))
        correct = [domain.base.correct, *(scored.correct for scored in domain.cells.values())]
        answers[name] = exp1.Answers(questions, keys, np.stack(correct, axis=1))
    return answers


def _analyze_set(
    config: StudyConfig,
    test_set: str,
    scores: Mapping[str, DomainScores],
    exp1_result: dict[str, Any],
    entries: Mapping[Cell, dict[str, Any]],
) -> None:
    """Adds one test set to the Exp-I tables and to the entries of the cells."""
    options = config.analyze
    resampled = exp1.resample(_answers(scores), options.resamples, (options.seed, TEST_SETS.index(test_set)))
    for name, domain in scores.items():
        for number, (cell, scored) in enumerate(domain.cells.items(), start=1):
            interval = percentile_interval(resampled[name].draws[:, number], options.confidence)
            entries[cell]["sets"][test_set] = {"interval": list(interval), **_beside_base(domain.base, scored)}
    for arm in (exp1.FEW_SHOT, BASE, *config.build.arms):
        summary = exp1.arm_accuracy(resampled, arm, options.confidence)
        if summary is not None:
            exp1_result["accuracy"].setdefault(arm, {})[test_set] = summary
    for pair in contrasts(config.build.arms):
        name, summary = "-".join(pair), exp1.arm_difference(resampled, pair, options.confidence)
        if summary is not None:
            reported = exp1.PAPER_DIFFERENCES.get(name)
            paper = None if reported is None else reported[TEST_SETS.index(test_set)]
            exp1_result["differences"].setdefault(name, {})[test_set] = {**summary, "paper": paper}
    exp1_result["chance"][test_set] = float(np.mean([_chance(domain.base) for domain in scores.values()]))
    exp1_result["questions"][test_set] = {
        "distinct": len({content for domain in scores.values() for content in domain.contents}),
        "by_domain": {name: len(domain.contents) for name, domain in scores.items()},
    }


def _chance(scored: Scored) -> float:
    """Accuracy of guessing: the mean of one over the number of options."""
    return float(np.mean(1 / np.sum(~np.isnan(scored.log_probs), axis=1)))


def _beside_base(base: Scored, tuned: Scored) -> dict[str, Any]:
    """One cell's accuracy on one test set, how its beliefs compare with the base's, and where they lean."""
    right_to_wrong, wrong_to_right = consistency.flips(base.correct, tuned.correct)
    return {
        "n": len(tuned.correct),
        "accuracy": float(tuned.correct.mean()),
        "base_accuracy": float(base.correct.mean()),
        "rank_consistency": float(consistency.rank_consistency(base.log_probs, tuned.log_probs).mean()),
        "kl": float(consistency.kl_divergence(base.log_probs, tuned.log_probs).mean()),
        "agreement": float(np.mean(base.pred == tuned.pred)),
        "right_to_wrong": right_to_wrong,
        "wrong_to_right": wrong_to_right,
        "commonest_place": float(np.bincount(tuned.pred).max() / len(tuned.pred)),
        "confidence": float(np.exp(np.nanmax(tuned.log_probs, axis=1)).mean()),
    }


def _mean_consistency(entries: Rows) -> dict[str, Any]:
    """The comparison with the base per arm and test set: averaged over seeds, then over domains; flips as shares."""
    result: dict[str, Any] = {}
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        result[arm] = {}
        for test_set in TEST_SETS:
            by_domain: dict[str, list[list[float]]] = {}
            for entry in entries:
                if entry["arm"] == arm:
                    by_domain.setdefault(entry["domain"], []).append(_shares(entry["sets"][test_set]))
            means = np.mean([np.mean(seeds, axis=0) for seeds in by_domain.values()], axis=0)
            result[arm][test_set] = dict(zip(BESIDE_THE_BASE, means.tolist(), strict=True))
    return result


def _shares(entry: Mapping[str, Any]) -> list[float]:
    """A cell's comparison with the base, in the order of BESIDE_THE_BASE, its counts divided by the questions."""
    return [entry[name] / (entry["n"] if name.endswith(("_wrong", "_right")) else 1) for name in BESIDE_THE_BASE]


def _exp4(entries: Rows, test_set: str) -> dict[str, Any]:
    """Does a tuned model that kept the base's ranking answer better? The partial correlation over tuned cells."""
    tuned = [entry["sets"][test_set] for entry in entries]
    columns = ([entry[name] for entry in tuned] for name in ("rank_consistency", "accuracy", "base_accuracy"))
    value, reason = None, None
    if len(tuned) < FEWEST_CELLS:
        reason = f"{len(tuned)} tuned cells; at least {FEWEST_CELLS} are needed"
    else:
        try:
            value = partial_spearman(*columns)
        except ValueError:
            reason = "rank consistency or accuracy does not vary beyond the base's accuracy"
    return {"cells": len(tuned), "partial_spearman": value, "reason": reason}
