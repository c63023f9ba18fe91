"""The paper's metrics against slow, plain computations and known cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import rel_entr

from jaxift.analysis import consistency

RELEASED = Path(__file__).parents[3] / "shared/data/released_groups/llama-2-7b"


def ragged(rng, items, tied):
    """Rows of 2 to 6 scores; tied ones come from three values."""
    sizes = rng.integers(2, 7, items)
    if tied:
        return [rng.integers(0, 3, size).astype(float).tolist() for size in sizes]
    return [rng.normal(size=size).tolist() for size in sizes]


def slow_rank_consistency(base, tuned):
    """Item by item: dense ranks, Pearson from its definition, 0 where undefined."""
    total = 0.0
    for p, q in zip(base, tuned, strict=True):
        a, b = ([1 + len({x for x in values if x > value}) for value in values] for values in (p, q))
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        norm = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
        total += covariance / norm if norm else 0.0
    return total / len(base)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rank_consistency_equals_the_loop(seed, tied):
    base = ragged(np.random.default_rng([seed, 0]), 200, tied)
    rng = np.random.default_rng([seed, 1])
    tuned = [rng.permutation(row).tolist() for row in base]
    found = consistency.rank_consistency(consistency.pad_options(base), consistency.pad_options(tuned))
    assert found.mean() == pytest.approx(slow_rank_consistency(base, tuned), abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_kl_equals_scipy(tied):
    rng = np.random.default_rng(3)
    base = ragged(rng, 200, tied)
    tuned = [rng.normal(size=len(row)).tolist() for row in base]
    logs = [consistency.log_softmax(consistency.pad_options(rows)) for rows in (base, tuned)]
    expected = [
        rel_entr(np.exp(scipy_log_softmax(p)), np.exp(scipy_log_softmax(q))).sum()
        for p, q in zip(base, tuned, strict=True)
    ]
    assert consistency.kl_divergence(*logs) == pytest.approx(expected, abs=1e-12)


def defined(value):
    """A correlation, 0 where a row is constant."""
    return 0.0 if math.isnan(value) else value


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_spearman_and_kendall_equal_scipy(tied):
    base = ragged(np.random.default_rng([6, tied]), 200, tied)
    tuned = [np.random.default_rng([7, len(row)]).permutation(row).tolist() for row in base]
    padded = [consistency.pad_options(rows) for rows in (base, tuned)]
    rows = list(zip(base, tuned, strict=True))
    expected = [defined(stats.spearmanr(p, q).statistic) for p, q in rows]
    assert consistency.spearman(*padded) == pytest.approx(expected, abs=1e-12)
    expected = [defined(stats.kendalltau(p, q).statistic) for p, q in rows]
    assert consistency.kendall(*padded) == pytest.approx(expected, abs=1e-12)
    expected = [stats.rankdata(-np.array(row)).tolist() for row in base]
    assert [row[~np.isnan(row)].tolist() for row in consistency.average_ranks(padded[0])] == expected


@pytest.mark.parametrize("tied", [False, True])
def test_js_equals_scipy_and_is_symmetric(tied):
    base = ragged(np.random.default_rng(8), 200, tied)
    tuned = [np.random.default_rng([9, len(row)]).normal(size=len(row)).tolist() for row in base]
    logs = [consistency.log_softmax(consistency.pad_options(rows)) for rows in (base, tuned)]
    expected = [
        jensenshannon(np.exp(scipy_log_softmax(p)), np.exp(scipy_log_softmax(q))) ** 2
        for p, q in zip(base, tuned, strict=True)
    ]
    assert consistency.js_divergence(*logs) == pytest.approx(expected, abs=1e-12)
    assert consistency.js_divergence(*logs[::-1]) == pytest.approx(expected, abs=1e-12)


def test_known_cases_of_the_other_measures():
    scores = consistency.log_softmax([[0.3, 2.0, -1.0, 0.5], [1.0, 0.0, -5.0, 2.0]])
    for measure in (consistency.spearman, consistency.kendall):
        assert measure(scores, scores) == pytest.approx([1, 1])
        assert measure(scores, -scores) == pytest.approx([-1, -1])
        assert measure(scores, np.zeros_like(scores)).tolist() == [0, 0]
    assert consistency.js_divergence(scores, scores) == pytest.approx([0, 0], abs=1e-15)
    with np.errstate(divide="ignore"):
        apart = np.log([[1.0, 0.0]]), np.log([[0.0, 1.0]])
    assert consistency.js_divergence(*apart) == pytest.approx([math.log(2)])
    assert consistency.total_variation([3, 1], [6, 2]) == 0
    assert consistency.total_variation([1, 0], [0, 5]) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_dense_ranks_equal_scipy(tied):
    rows = ragged(np.random.default_rng(4), 100, tied)
    found = consistency.dense_ranks(consistency.pad_options(rows))
    for row, ranks in zip(rows, found, strict=True):
        assert ranks[: len(row)].tolist() == stats.rankdata(-np.array(row), "dense").tolist()
        assert np.isnan(ranks[len(row) :]).all()


def test_identical_beliefs():
    scores = consistency.log_softmax([[0.3, 2.0, -1.0, 0.5], [1.0, 0.0, -5.0, 2.0]])
    assert consistency.rank_consistency(scores, scores) == pytest.approx([1, 1])
    assert consistency.kl_divergence(scores, scores).tolist() == [0, 0]


def test_reversed_beliefs():
    scores = np.array([[0.3, 2.0, -1.0, 0.5]])
    assert consistency.rank_consistency(scores, -scores) == pytest.approx([-1])


def test_uniform_beliefs():
    scores, uniform = consistency.log_softmax([[0.3, 2.0, -1.0, 0.5]]), np.full((1, 4), math.log(0.25))
    assert consistency.rank_consistency(scores, uniform).tolist() == [0]
    assert consistency.rank_consistency(uniform, uniform).tolist() == [0]
    entropy = -np.sum(np.exp(scores) * scores)
    assert consistency.kl_divergence(scores, uniform) == pytest.approx([math.log(4) - entropy])


def test_kl_of_impossible_options():
    certain, half = np.log([[1.0, 1e-320]]), np.log([[0.5, 0.5]])
    certain[0, 1] = -np.inf
    assert consistency.kl_divergence(certain, half) == pytest.approx([math.log(2)])
    assert consistency.kl_divergence(half, certain).tolist() == [np.inf]


def test_kl_survives_options_far_apart():
    far = consistency.log_softmax([[0.0, -2000.0]])
    even = consistency.log_softmax([[0.0, 0.0]])
    assert consistency.kl_divergence(even, far) == pytest.approx([1000 - math.log(2)])


def test_padding_changes_nothing():
    rng = np.random.default_rng(5)
    base, tuned = rng.normal(size=(2, 50, 3))
    padded = [consistency.pad_options([*rows.tolist(), [0.0] * 9])[:-1] for rows in (base, tuned)]
    logs = [consistency.log_softmax(rows) for rows in (base, tuned)]
    padded_logs = [consistency.log_softmax(rows) for rows in padded]
    assert padded[0].shape == (50, 9)
    for measure in (consistency.rank_consistency, consistency.spearman, consistency.kendall):
        assert measure(*padded) == pytest.approx(measure(base, tuned))
    assert consistency.js_divergence(*padded_logs) == pytest.approx(consistency.js_divergence(*logs))
    assert consistency.kl_divergence(*padded_logs) == pytest.approx(consistency.kl_divergence(*logs))


def test_pad_options_of_nothing():
    assert consistency.pad_options([]).shape == (0, 0)


def test_flips_count_both_ways():
    assert consistency.flips([True, True, False, False, True], [False, True, True, True, False]) == (2, 2)


@pytest.mark.skipif(not RELEASED.exists(), reason="the authors' released groups are not beside the repository")
@pytest.mark.parametrize("domain", ["history", "engineering"])
def test_real_beliefs_of_the_release(domain):
    files = sorted((RELEASED / domain).glob("*.jsonl"))
    groups = [[json.loads(line)["probs"] for line in path.read_text().splitlines()] for path in files]
    base, other = groups[0], groups[1][: len(groups[0])]
    found = consistency.rank_consistency(base, other)
    assert found.mean() == pytest.approx(slow_rank_consistency(base, other), abs=1e-12)
    expected = np.mean([rel_entr(p, q).sum() for p, q in zip(base, other, strict=True)])
    assert consistency.kl_divergence(np.log(base), np.log(other)).mean() == pytest.approx(expected, abs=1e-9)
    assert consistency.rank_consistency(base, base) == pytest.approx(np.ones(len(base)))
    rows = list(zip(base, other, strict=True))
    assert consistency.spearman(base, other) == pytest.approx(
        [defined(stats.spearmanr(p, q).statistic) for p, q in rows]
    )
    assert consistency.kendall(base, other) == pytest.approx(
        [defined(stats.kendalltau(p, q).statistic) for p, q in rows]
    )
    expected = [jensenshannon(p, q) ** 2 for p, q in rows]
    assert consistency.js_divergence(np.log(base), np.log(other)) == pytest.approx(expected, abs=1e-6)  # scipy rescales
