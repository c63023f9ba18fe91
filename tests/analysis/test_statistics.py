"""The bootstrap's properties and the partial correlation against a slow reference."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jaxift.analysis import exp1, statistics


def slow_partial_spearman(x, y, control):
    """The released procedure in exact fractions, so that residuals tie where they truly do."""
    rx, ry, rc = ([Fraction(rank) for rank in stats.rankdata(values)] for values in (x, y, control))
    mean = sum(rc) / len(rc)
    residuals = []
    for ranks in (rx, ry):
        slope = sum(r * (c - mean) for r, c in zip(ranks, rc, strict=True)) / sum((c - mean) ** 2 for c in rc)
        left = [r - slope * c for r, c in zip(ranks, rc, strict=True)]
        residuals.append([sorted(left).index(value) + (left.count(value) - 1) / 2 for value in left])
    return stats.pearsonr(*residuals).statistic


@pytest.mark.parametrize("seed", range(10))
def test_partial_spearman_equals_the_reference(seed):
    x, y, control = np.random.default_rng(seed).normal(size=(3, 24))
    y += 0.8 * x
    control = np.repeat(control[:4], 6) if seed % 2 else control  # the cells of a domain share their base
    expected = slow_partial_spearman(x, y, control)
    assert statistics.partial_spearman(x, y, control) == pytest.approx(expected, abs=1e-12)


def test_partial_spearman_takes_the_control_out():
    rng = np.random.default_rng(0)
    control = rng.normal(size=4000)
    x, y = control + 0.3 * rng.normal(size=(2, 4000))
    assert stats.spearmanr(x, y).statistic > 0.8
    assert abs(statistics.partial_spearman(x, y, control)) < 0.1


def test_partial_spearman_with_a_constant_control_is_spearman():
    x, y = np.random.default_rng(1).normal(size=(2, 12))
    found = statistics.partial_spearman(x, y, np.full(12, 0.3))
    assert found == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1, 1, 1], [1, 3, 2, 5, 4]), ([1, 3, 2, 5, 4], [2, 2, 2, 2, 2])])
def test_partial_spearman_of_a_constant_says_so(x, y):
    with pytest.raises(ValueError, match="does not vary"):
        statistics.partial_spearman(x, y, [1, 2, 3, 4, 5])


def test_partial_spearman_of_what_the_control_explains_says_so():
    with pytest.raises(ValueError, match="does not vary"):
        statistics.partial_spearman([1, 2, 3, 4, 5], [5, 1, 2, 4, 3], [10, 20, 30, 40, 50])


def make_answers(rng, items, correlation, keys=(("HAR", 0), ("INC", 0))):
    """Two arms whose answers agree on a share `correlation` of the questions."""
    first = rng.random(items) < 0.6
    second = np.where(rng.random(items) < correlation, first, rng.random(items) < 0.6)
    return exp1.Answers(np.arange(items), keys, np.stack([first, second], axis=1))


def width(summary):
    low, high = summary["interval"]
    return high - low


def test_bootstrap_is_deterministic():
    answers = {"d": make_answers(np.random.default_rng(0), 100, 0.5)}
    one, two, other = (exp1.resample(answers, 200, seed)["d"].draws for seed in ((1, 2), (1, 2), (1, 3)))
    assert (one == two).all()
    assert (one != other).any()


def test_interval_agrees_with_the_normal_approximation_and_shrinks():
    widths = []
    for items in (100, 400, 1600):
        answers = {"d": make_answers(np.random.default_rng(items), items, 0.5)}
        summary = exp1.arm_accuracy(exp1.resample(answers, 2000, (0, 0)), "HAR", 0.95)
        p = summary["accuracy"]
        assert width(summary) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / items), rel=0.12)
        widths.append(width(summary))
    assert widths[0] > 1.6 * widths[1] > 1.6**2 * widths[2]


def test_pairing_narrows_the_difference_of_like_answers():
    summaries = {}
    for correlation in (0.0, 0.9):
        answers = {"d": make_answers(np.random.default_rng(7), 500, correlation)}
        resampled = exp1.resample(answers, 1000, (0, 0))
        unpaired = np.hypot(*(width(exp1.arm_accuracy(resampled, arm, 0.95)) for arm in ("HAR", "INC")))
        summaries[correlation] = width(exp1.arm_difference(resampled, ("HAR", "INC"), 0.95)) / unpaired
    assert summaries[0.9] < 0.5
    assert summaries[0.0] == pytest.approx(1, abs=0.1)


def test_interval_covers_the_truth():
    truth, hits = 0.6, 0
    for trial in range(200):
        answers = {"d": make_answers(np.random.default_rng([9, trial]), 150, 0.5)}
        low, high = exp1.arm_accuracy(exp1.resample(answers, 300, (0, 0)), "HAR", 0.9)["interval"]
        hits += low <= truth <= high
    assert 0.84 <= hits / 200 <= 0.96


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    easy, hard = rng.random(400) < 0.8, rng.random(400) < 0.4
    keys = (("HAR", 0), ("HAR", 1))
    summaries = []
    for columns in ([easy, easy], [easy, hard]):
        answers = {"d": exp1.Answers(np.arange(400), keys, np.stack(columns, axis=1))}
        summaries.append(exp1.arm_accuracy(exp1.resample(answers, 500, (0, 0)), "HAR", 0.95))
    assert width(summaries[1]) > 3 * width(summaries[0])
    assert summaries[1]["by_domain"]["d"]["seeds"] == [0, 1]


def test_difference_uses_common_seeds_only():
    rng = np.random.default_rng(4)
    keys = (("HAR", 0), ("HAR", 1), ("INC", 1), ("INC", 2))
    correct = rng.random((60, 4)) < 0.5
    resampled = exp1.resample({"d": exp1.Answers(np.arange(60), keys, correct)}, 50, (0, 0))
    found = exp1.arm_difference(resampled, ("HAR", "INC"), 0.95)
    assert found["by_domain"]["d"]["seeds"] == [1]
    assert found["difference"] == pytest.approx(correct[:, 1].mean() - correct[:, 2].mean())
    assert exp1.arm_difference(resampled, ("HAR", "SELF"), 0.95) is None


def test_strata_keep_every_group_whole():
    groups = [np.array([0, 1, 2, 3]), np.array([2, 3, 4]), np.array([4, 4, 5])]
    strata, total = statistics.item_strata(groups)
    assert sorted(np.concatenate(strata).tolist()) == list(range(6)) == list(range(total))
    counts = statistics.draw_counts(np.random.default_rng(0), 300, strata, total)
    for group in groups:
        assert (counts[:, group].sum(axis=1) == len(group)).all()
    assert counts[:, :2].max() == 2


def test_resampled_means_equal_a_loop():
    rng = np.random.default_rng(1)
    groups = [np.array([0, 1, 2]), np.array([1, 2, 3, 4])]
    values = [rng.random((3, 2)) < 0.5, rng.random((4, 1)) < 0.5]
    resamples = statistics.CHUNK + 5
    found = statistics.resample_means(np.random.default_rng(8), groups, values, resamples)
    strata, total = statistics.item_strata(groups)
    generator = np.random.default_rng(8)
    counts = np.concatenate([statistics.draw_counts(generator, n, strata, total) for n in (statistics.CHUNK, 5)])
    for group, value, means in zip(groups, values, found, strict=True):
        assert means.shape == (resamples, value.shape[1])
        for row in range(resamples):
            for cell in range(value.shape[1]):
                slow = sum(counts[row, item] * value[place, cell] for place, item in enumerate(group)) / len(group)
                assert means[row, cell] == pytest.approx(slow)


def test_one_seed_is_not_resampled():
    columns = np.random.default_rng(0).random((20, 1))
    assert (statistics.resample_seed_mean(columns, np.random.default_rng(1).random((20, 3))) == columns[:, 0]).all()


def test_percentile_interval_of_an_even_spread():
    assert statistics.percentile_interval(np.arange(101) / 100, 0.9) == pytest.approx((0.05, 0.95))
