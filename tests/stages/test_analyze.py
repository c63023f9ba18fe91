"""The analyze stage on a made-up run directory: every number against a slow, plain computation."""

import json
import math

import numpy as np
import pytest
from made_up_study import ARMS, all_cells, make_config, write_study
from scipy import stats
from scipy.spatial.distance import jensenshannon

from jaxift.analysis.statistics import partial_spearman
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell
from jaxift.errors import UserError
from jaxift.stages.analyze import analyze


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = make_config()
    run = RunDirectory.create(str(tmp_path_factory.mktemp("run")))
    write_study(run, config, all_cells(config))
    assert analyze(config, run, all_cells(config)) == ["analysis.json"]
    return config, run


def rows_by_id(run, path):
    return {row["id"]: row for row in run.read_rows(path)}


def slow_tau(p, q):
    return np.nan_to_num(stats.kendalltau(p, q).statistic)


def slow_ece(rows):
    """Guo et al. 2017, bin by bin."""
    total = 0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        inside = [row for row in rows if low < row["pred_prob"] <= high]
        if inside:
            gap = np.mean([row["correct"] for row in inside]) - np.mean([row["pred_prob"] for row in inside])
            total += len(inside) / len(rows) * abs(gap)
    return total


def shares(places):
    return np.bincount(places, minlength=5) / len(places)


def slow_knowledge(base, tuned):
    classes = {}
    for name, row in base.items():
        kind = ("right" if row["correct"] else "wrong") + (", sure" if row["pred_prob"] > 0.5 else ", unsure")
        classes.setdefault(kind, []).append((row, tuned[name]))
    return {
        kind: {
            "n": len(pairs),
            "accuracy": np.mean([after["correct"] for _, after in pairs]),
            "kept": np.mean([before["pred"] == after["pred"] for before, after in pairs]),
        }
        for kind, pairs in classes.items()
    }


def slow_metrics(run, cell, test_set):
    """The protocol's definitions, item by item."""
    base = rows_by_id(run, f"probe/{cell.domain}/{test_set}.parquet")
    tuned = rows_by_id(run, f"cells/{cell.id}/scores/{test_set}.parquet")
    ranks, kls, others = [], [], []
    for name, row in base.items():
        p, q = row["probs"], tuned[name]["probs"]
        ranks.append(stats.pearsonr(stats.rankdata(-np.array(p), "dense"), stats.rankdata(-np.array(q), "dense"))[0])
        kls.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        js = jensenshannon(p, q) ** 2
        others.append((stats.spearmanr(p, q).statistic, slow_tau(p, q), reverse, js))
    letters = {which: shares([row[which] for row in tuned.values()]) for which in ("pred", "gold")}
    before = shares([row["pred"] for row in base.values()])
    briers = [sum((p - (k == row["gold"])) ** 2 for k, p in enumerate(row["probs"])) for row in tuned.values()]
    return {
        "n": len(base),
        "accuracy": np.mean([row["correct"] for row in tuned.values()]),
        "base_accuracy": np.mean([row["correct"] for row in base.values()]),
        "rank_consistency": np.mean(ranks),
        **dict(zip(("spearman", "kendall", "reverse_kl", "js"), np.mean(others, axis=0), strict=True)),
        "letters": np.round(letters["pred"] * len(tuned)).tolist(),
        "letters_from_true": np.abs(letters["pred"] - letters["gold"]).sum() / 2,
        "letters_from_base": np.abs(letters["pred"] - before).sum() / 2,
        "calibration_error": slow_ece(tuned.values()),
        "brier": np.mean(briers),
        "kl": np.mean(kls),
        "agreement": np.mean([row["pred"] == tuned[name]["pred"] for name, row in base.items()]),
        "right_to_wrong": sum(row["correct"] and not tuned[name]["correct"] for name, row in base.items()),
        "wrong_to_right": sum(tuned[name]["correct"] and not row["correct"] for name, row in base.items()),
        "commonest_place": max(np.bincount([row["pred"] for row in tuned.values()])) / len(tuned),
        "confidence": np.mean([row["pred_prob"] for row in tuned.values()]),
    }


def test_every_cell_agrees_with_the_slow_metrics(study):
    config, run = study
    entries = run.read_json("analysis.json")["cells"]
    assert [entry["id"] for entry in entries] == [cell.id for cell in all_cells(config)]
    for cell, entry in zip(all_cells(config), entries, strict=True):
        for test_set in TEST_SETS:
            found = dict(entry["sets"][test_set])
            low, high = found.pop("interval")
            assert low <= found["accuracy"] <= high
            known, letters = found.pop("knowledge"), found.pop("letters")
            slow = slow_metrics(run, cell, test_set)
            assert letters == slow.pop("letters")[: len(letters)]
            assert found == pytest.approx(slow, abs=1e-9)
            rows = (f"probe/{cell.domain}/{test_set}.parquet", f"cells/{cell.id}/scores/{test_set}.parquet")
            expected = slow_knowledge(*(rows_by_id(run, path) for path in rows))
            assert set(known) == set(expected)
            assert all(known[name] == pytest.approx(expected[name]) for name in known)


def test_exp1_is_the_macro_average_over_seeds_and_domains(study):
    config, run = study
    analysis = run.read_json("analysis.json")
    cells = {entry["id"]: entry["sets"] for entry in analysis["cells"]}
    for test_set in TEST_SETS:
        means = {}
        for arm in ARMS:
            by_domain = [
                np.mean([cells[Cell(d.name, arm, s).id][test_set]["accuracy"] for s in config.seeds])
                for d in config.domains
            ]
            found = analysis["exp1"]["accuracy"][arm][test_set]
            means[arm] = np.mean(by_domain)
            assert found["accuracy"] == pytest.approx(means[arm])
            assert [found["by_domain"][d.name]["accuracy"] for d in config.domains] == pytest.approx(by_domain)
        difference = analysis["exp1"]["differences"]["HAR-INC"][test_set]
        assert difference["difference"] == pytest.approx(means["HAR"] - means["INC"])
        assert difference["interval"][0] < difference["difference"] < difference["interval"][1]
    assert analysis["exp1"]["differences"]["HAR-INC"]["ood"]["paper"] == 0.1457
    assert analysis["exp1"]["differences"]["HAR-SELF"]["ood"]["paper"] is None
    assert set(analysis["exp1"]["accuracy"]) == {"BASE_FEW_SHOT", BASE, *ARMS}


def test_questions_that_domains_share_do_not_narrow_the_interval(study):
    config, run = study
    few_shot = run.read_json("analysis.json")["exp1"]["accuracy"]["BASE_FEW_SHOT"]

    def width(entry):
        return entry["interval"][1] - entry["interval"][0]

    one = make_config(domains=("medicine",))
    cells = [cell for cell in all_cells(config) if cell.domain == "medicine" and cell.arm == BASE]
    copy = RunDirectory.create(str(run.root / "twice"))
    for name in ("medicine", "history"):
        for test_set in TEST_SETS:
            copy.write_rows(f"probe/{name}/{test_set}.parquet", run.read_rows(f"probe/medicine/{test_set}.parquet"))
    analyze(make_config(), copy, [])
    twice = copy.read_json("analysis.json")["exp1"]["accuracy"]["BASE_FEW_SHOT"]
    analyze(one, run, cells)
    single = run.read_json("analysis.json")["exp1"]["accuracy"]["BASE_FEW_SHOT"]
    analyze(config, run, all_cells(config))
    for test_set in TEST_SETS:
        assert twice[test_set]["interval"] == single[test_set]["interval"]
    assert width(few_shot["homo"]) < width(single["homo"])


def test_consistency_averages_the_cells(study):
    _, run = study
    analysis = run.read_json("analysis.json")
    chosen = [entry["sets"]["id"] for entry in analysis["cells"] if entry["arm"] == "SELF"]
    found = analysis["consistency"]["SELF"]["id"]
    assert found["rank_consistency"] == pytest.approx(np.mean([entry["rank_consistency"] for entry in chosen]))
    assert found["wrong_to_right"] == pytest.approx(np.mean([entry["wrong_to_right"] / entry["n"] for entry in chosen]))


def test_exp4_uses_the_tuned_cells(study):
    _, run = study
    entry = run.read_json("analysis.json")["exp4"]["homo"]
    assert entry["cells"] == 12
    assert -1 <= entry["partial_spearman"] <= 1
    assert entry["reason"] is None


def test_same_input_gives_same_bytes(study):
    config, run = study
    before = run.read_text("analysis.json")
    analyze(config, run, all_cells(config))
    assert run.read_text("analysis.json") == before
    json.loads(before, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_partial_study_says_what_is_missing(study):
    config, run = study
    cells = [Cell("medicine", BASE), Cell("medicine", "HAR", 0), Cell("medicine", "INC", 1), Cell("history", "INC", 0)]
    analyze(config, run, cells)
    analysis = run.read_json("analysis.json")
    analyze(config, run, all_cells(config))
    assert set(analysis["missing"]) == {cell.id for cell in all_cells(config)} - {cell.id for cell in cells}
    assert "HAR-INC" not in analysis["exp1"]["differences"]  # no domain has both arms with the same seed
    assert set(analysis["exp1"]["accuracy"]["INC"]["id"]["by_domain"]) == {"medicine", "history"}
    assert analysis["exp4"]["id"]["partial_spearman"] is None
    assert "3 tuned cells" in analysis["exp4"]["id"]["reason"]


def broken_run(tmp_path, change):
    config = make_config(domains=("medicine",), seeds=(0,))
    cells = all_cells(config)
    run = RunDirectory.create(str(tmp_path))
    write_study(run, config, cells)
    path = f"cells/{cells[1].id}/scores/id.parquet"
    rows = run.read_rows(path)
    change(rows)
    run.write_rows(path, rows)
    return config, run, cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "not those of"),
        (lambda rows: rows[3].update(id="another"), "not those of"),
        (lambda rows: rows[3].update(gold=1 - rows[3]["gold"]), "not those of"),
        (lambda rows: rows[3].update(scores=[math.nan] * len(rows[3]["scores"])), "1 questions have scores"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        analyze(*broken_run(tmp_path, change))


def test_unprobed_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the probe stage"):
        analyze(make_config(), RunDirectory.create(str(tmp_path)), [])


def test_cells_without_their_probe_are_refused(tmp_path):
    run = RunDirectory.create(str(tmp_path))
    with pytest.raises(UserError, match=r"homo\.parquet: missing"):
        analyze(make_config(), run, [Cell("history", BASE)])


def test_two_questions_with_one_id_are_refused(tmp_path):
    config = make_config(domains=("medicine",), seeds=(0,))
    run = RunDirectory.create(str(tmp_path))
    write_study(run, config, [])
    rows = run.read_rows("probe/medicine/homo.parquet")
    run.write_rows("probe/medicine/homo.parquet", [*rows, rows[0]])
    with pytest.raises(UserError, match="share an id"):
        analyze(config, run, [])


def test_exp3_and_exp4_are_over_the_mixtures_where_there_are_any(tmp_path):
    arms = ("HAR", "INC", "SELF", "INC+context", "SELF@0.25", "SELF@0.75")
    config = make_config(build={"arms": arms})
    run = RunDirectory.create(str(tmp_path))
    write_study(run, config, all_cells(config))
    analyze(config, run, all_cells(config))
    found = run.read_json("analysis.json")
    assert found["exp3"] == {"INC": 0.0, "SELF@0.25": 0.25, "SELF@0.75": 0.75, "SELF": 1.0}
    for test_set in TEST_SETS:
        mixed = [entry["sets"][test_set] for entry in found["cells"] if entry["arm"] in found["exp3"]]
        assert found["exp4"][test_set]["cells"] == len(mixed) == 4 * 2 * 2
        columns = ([entry[name] for entry in mixed] for name in ("rank_consistency", "accuracy", "base_accuracy"))
        assert found["exp4"][test_set]["partial_spearman"] == partial_spearman(*columns)
    assert set(found["exp1"]["differences"]) == {"HAR-INC", "SELF-INC", "HAR-SELF", "INC+context-INC"}
