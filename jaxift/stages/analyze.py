"""Turns the scores of all cells into `analysis.json`: accuracies, consistency, Exp-I and Exp-IV. No JAX.

All accuracies, differences and shares are fractions of 1; an `interval` is [low, high]; SET is homo, id or ood; an ARM
is BASE_FEW_SHOT (the probe), BASE (untuned, zero-shot), or an arm of the study.

    study        name, model, prompt, formulation, shots, seeds, domains, arms
    settings     resamples, confidence, seed
    missing      ids of cells that the study asks for and that have no scores yet
    probe        {DOMAIN: {SET: what `scored.alone` gives of the base model as the probe saw it, few-shot}}
    cells        a list: id, domain, arm, seed, training (below, or null), sets: {SET: interval (over questions), and
                 what `scored.beside_base` gives: n, accuracy, base_accuracy, rank_consistency, spearman, kendall, kl,
                 reverse_kl, js (nats), agreement, right_to_wrong, wrong_to_right (counts), letters (answers by place),
                 commonest_place (the largest share of them), letters_from_true, letters_from_base (total variation
                 from the true answers' and the base's letters), confidence (mean probability of the predicted option),
                 calibration_error, brier, knowledge: {CLASS of the base's: n, accuracy, kept}}; what compares does so
                 with the base model as the probe saw it
                 training: n, recall (share of its training questions that it answers as it was taught), accuracy,
                 kept (share with the base's answer), probability (of the taught answer, mean)
    exp1         chance: {SET: accuracy of guessing}
                 questions: {SET: distinct (over all domains), by_domain: {DOMAIN: n}}
                 accuracy: {ARM: {SET: accuracy, interval, by_domain: {DOMAIN: accuracy, interval, seeds}}}
                 best: {SET: arm (of those tuned), clear: whether it is ahead of every other one, Holm}
                 differences: {"HAR-INC": {SET: difference, interval, p, p_holm (over all of them and all test sets),
                 error, freedom (degrees of it), detectable (smallest true difference that is clear four times in
                 five), beyond_domains (interval for domains like these), paper (its mean, other models), by_domain:
                 {DOMAIN: difference, interval, error, freedom, p, seeds, mcnemar (exact p a seed)}}}
                 gains: {ARM: {SET: the same, of the arm and the untuned base, zero-shot; p_holm over all gains}}
    consistency  {ARM: {SET: the numbers of `scored.MEASURES`}}: cells averaged over seeds, then over domains; the flips
                 as shares of the questions
    knowledge    {ARM: {SET: {CLASS: accuracy, kept}}}: averaged in the same way
    training     {ARM: n, recall, accuracy, kept, probability}: averaged in the same way
    exp3         {ARM: share of the base's own answers} of the arms that mix them with the true ones; may be empty
    exp4         {SET: what `exp4.association` gives}: over the cells of exp3, where there are any

An arm without scores is left out, in a domain too. How the intervals are drawn: `jaxift.analysis.exp1`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jaxift.analysis import consistency, exp1, exp4
from jaxift.analysis.scored import MEASURES, Scored, alone, beside_base, in_order_of
from jaxift.arms import contrasts, mixtures
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, StudyConfig
from jaxift.errors import UserError

FILE = "analysis.json"
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class DomainScores:
    """Everyone's answers to one domain's test set; `contents` identify the questions across domains."""

    contents: list[tuple[Any, ...]]
    base: Scored
    cells: dict[Cell, Scored]


def analyze(
    config: StudyConfig, run: RunDirectory, cells: Sequence[Cell], probes: Sequence[str] | None = None
) -> list[str]:
    """Writes `analysis.json` for the cells given, all of which have scores; returns the files written.

    `probes` are the domains whose probe was made with the present settings (default: all that are there).
    Raises UserError where a file is missing or damaged, or where a cell's questions are not those of the probe.
    """
    probed = [name for name in _probed(config, run, cells) if probes is None or name in probes]
    if not probed:
        raise UserError(f"{run.root}: no domain has been probed; run the probe stage first")
    entries = {
        cell: {"id": cell.id, **dataclasses.asdict(cell), "sets": {}, "training": _training(run, cell)}
        for cell in cells
    }
    result = {"study": _study(config), "settings": config.analyze.model_dump(), "missing": _missing(config, cells)}
    result["probe"] = {name: {} for name in probed}
    result["exp1"] = {"chance": {}, "questions": {}, "accuracy": {}, "best": {}, "differences": {}, "gains": {}}
    for test_set in TEST_SETS:
        scores = {name: _load(run, name, test_set, [c for c in cells if c.domain == name]) for name in probed}
        _analyze_set(config, test_set, scores, result, entries)
    for kind in ("differences", "gains"):
        entries_of_all = [entry for sets in result["exp1"][kind].values() for entry in sets.values()]
        exp1.correct(entries_of_all, config.analyze.confidence)
    rows = result["cells"] = list(entries.values())
    result["consistency"] = _by_arm(rows, lambda entry: _each_set(entry, _measures))
    result["knowledge"] = _by_arm(rows, lambda entry: _each_set(entry, _known))
    result["training"] = _by_arm(rows, lambda entry: entry["training"])
    result["exp3"] = mixtures(config.build.arms)
    counted = [entry for entry in rows if entry["arm"] in (result["exp3"] or config.build.arms)]
    result["exp4"] = {test_set: _exp4(config, counted, test_set) for test_set in TEST_SETS}
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
        "threshold": config.probe.threshold,
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
    probe = run.read_table(path)
    if not len(probe):
        raise UserError(f"{run.root / path}: holds no question; give the {test_set} set of {domain} at least one")
    if len(set(probe["id"].to_pylist())) < len(probe):
        raise UserError(f"{run.root / path}: two questions share an id; make the ids of its sources unique")
    texts = (probe[name].to_pylist() for name in ("question", "options", "gold"))
    contents = [(question, tuple(options), gold) for question, options, gold in zip(*texts, strict=True)]
    base = _scored(probe, str(run.root / path))
    scored = {}
    for cell in cells:
        cell_path = f"cells/{cell.id}/scores/{test_set}.parquet"
        table = in_order_of(run.read_table(cell_path), probe)
        if not table["id"].equals(probe["id"]) or _identity(table) != _identity(probe):
            raise UserError(f"{run.root / cell_path}: its questions are not those of {path}; run evaluate again")
        scored[cell] = _scored(table, str(run.root / cell_path))
    return DomainScores(contents, base, scored)


def _identity(table: pa.Table) -> tuple[list[int], list[int]]:
    """What the probe's and a cell's answers to the same questions have in common: true options, numbers of options."""
    return table["gold"].to_pylist(), _options(table)[1].tolist()


def _options(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All questions' scores one after another, and how many each has."""
    scores = table["scores"].combine_chunks()
    return np.asarray(scores.flatten(), np.float64), np.asarray(scores.value_lengths(), np.int64)


def _scored(table: pa.Table, source: str) -> Scored:
    """A table as arrays; raises UserError where a score is not a finite number.

    Beliefs are the softmax of the scores, taken here in float64 and in logs, where no option underflows to zero.
    """
    values, lengths = _options(table)
    padded = np.full((len(lengths), int(lengths.max(initial=0))), np.nan)
    present = np.arange(padded.shape[1]) < lengths[:, None]
    padded[present] = values
    broken = int(np.sum(~np.isfinite(padded).all(axis=1, where=present)))
    if broken:
        raise UserError(
            f"{source}: {broken} questions have scores that are not finite; where tuning diverged, tune again"
        )
    pred, gold, correct = (np.asarray(table[name]) for name in ("pred", "gold", "correct"))
    return Scored(
        consistency.log_softmax(padded), pred.astype(np.int64), gold.astype(np.int64), correct.astype(np.bool_)
    )


def _training(run: RunDirectory, cell: Cell) -> dict[str, Any] | None:
    """What a cell answers to the questions that it was trained on; None where it was not asked."""
    path = f"cells/{cell.id}/scores/trained.parquet"
    if not run.exists(path):
        return None
    table = run.read_table(path)
    scored = _scored(table, str(run.root / path))
    taught, base = (np.asarray(table[name]) for name in ("answer", "base_pred"))
    return {
        "n": len(taught),
        "recall": float(np.mean(scored.pred == taught)),
        "accuracy": float(scored.correct.mean()),
        "kept": float(np.mean(scored.pred == base)),
        "probability": float(np.exp(scored.log_probs[np.arange(len(taught)), taught]).mean()),
    }


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
    result: dict[str, Any],
    entries: Mapping[Cell, dict[str, Any]],
) -> None:
    """Adds one test set to the probe's part, to the Exp-I tables and to the entries of the cells."""
    options, threshold, exp1_result = config.analyze, config.probe.threshold, result["exp1"]
    resampled = exp1.resample(_answers(scores), options.resamples, (options.seed, TEST_SETS.index(test_set)))
    for name, domain in scores.items():
        result["probe"][name][test_set] = alone(domain.base)
        for number, (cell, scored) in enumerate(domain.cells.items(), start=1):
            interval = exp1.model_interval(resampled[name], number, options.confidence)
            entries[cell]["sets"][test_set] = {"interval": interval, **beside_base(domain.base, scored, threshold)}
    for arm in (exp1.FEW_SHOT, BASE, *config.build.arms):
        summary = exp1.arm_accuracy(resampled, arm, options.confidence)
        if summary is not None:
            exp1_result["accuracy"].setdefault(arm, {})[test_set] = summary
    best = exp1.best_arm(resampled, config.build.arms, options.confidence)
    if best is not None:
        exp1_result["best"][test_set] = best
    for pair in contrasts(config.build.arms):
        name, summary = "-".join(pair), exp1.arm_difference(resampled, pair, options.confidence)
        if summary is not None:
            reported = exp1.PAPER_DIFFERENCES.get(name)
            paper = None if reported is None else reported[TEST_SETS.index(test_set)]
            exp1_result["differences"].setdefault(name, {})[test_set] = {**summary, "paper": paper}
    for arm in config.build.arms:
        summary = exp1.arm_difference(resampled, (arm, BASE), options.confidence)
        if summary is not None:
            exp1_result["gains"].setdefault(arm, {})[test_set] = summary
    exp1_result["chance"][test_set] = float(np.mean([_chance(domain.base) for domain in scores.values()]))
    exp1_result["questions"][test_set] = {
        "distinct": len({content for domain in scores.values() for content in domain.contents}),
        "by_domain": {name: len(domain.contents) for name, domain in scores.items()},
    }


def _chance(scored: Scored) -> float:
    """Accuracy of guessing: the mean of one over the number of options."""
    return float(np.mean(1 / np.sum(~np.isnan(scored.log_probs), axis=1)))


def _each_set(entry: Mapping[str, Any], part: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {test_set: part(entry["sets"][test_set]) for test_set in TEST_SETS}


def _measures(found: Mapping[str, Any]) -> dict[str, float]:
    """A cell's comparison with the base on one test set, its counts divided by the questions."""
    return {
        name: found[name] / (found["n"] if name in ("right_to_wrong", "wrong_to_right") else 1) for name in MEASURES
    }


def _known(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A cell's answers on one test set by what the base knew, without the counts, which all cells share."""
    return {name: {key: each[key] for key in ("accuracy", "kept")} for name, each in found["knowledge"].items()}


def _by_arm(entries: Rows, part: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    """A part of all cells' entries by arm: averaged over seeds, then over domains; left out where no cell has it."""
    result = {}
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        by_domain: dict[str, list[Any]] = {}
        for entry in entries:
            found = part(entry) if entry["arm"] == arm else None
            if found is not None:
                by_domain.setdefault(entry["domain"], []).append(found)
        if by_domain:
            result[arm] = _mean([_mean(seeds) for seeds in by_domain.values()])
    return result


def _mean(found: Sequence[Any]) -> Any:
    """The mean of numbers, or of mappings of numbers by key, over those that have it."""
    if not isinstance(found[0], Mapping):
        return float(np.mean(found))
    names = dict.fromkeys(name for each in found for name in each)
    return {name: _mean([each[name] for each in found if name in each]) for name in names}


def _exp4(config: StudyConfig, entries: Rows, test_set: str) -> dict[str, Any]:
    """Does a tuned model that kept the base's ranking answer better?"""
    columns = ("rank_consistency", "accuracy", "base_accuracy")
    points = [
        exp4.Point(entry["domain"], entry["arm"], *(entry["sets"][test_set][name] for name in columns))
        for entry in entries
    ]
    options, number = config.analyze, TEST_SETS.index(test_set)
    return exp4.association(points, options.resamples, options.confidence, (options.seed, number, 4))
