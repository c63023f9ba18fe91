"""The bootstrap's properties and the partial correlation against a slow reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.tools import add_constant

from jaxift.analysis import exp1, exp4, statistics


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
        assert np.allclose(counts[:, group].sum(axis=1), len(group))
    assert counts[:, :2].max() == pytest.approx(1 + np.sqrt(2))  # a stratum of two, drawn twice


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


def test_percentile_interval_of_an_even_spread():
    assert statistics.percentile_interval(np.arange(101) / 100, 0.9) == pytest.approx((0.05, 0.95))


def test_mcnemar_is_the_binomial_of_the_disagreements():
    before = np.array([1] * 8 + [0] * 2 + [1] * 30 + [0] * 20, bool)
    after = np.array([0] * 8 + [1] * 2 + [1] * 30 + [0] * 20, bool)
    expected = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    assert statistics.mcnemar(before, after) == pytest.approx(expected)
    assert statistics.mcnemar(before, after) == pytest.approx(mcnemar([[30, 8], [2, 20]], exact=True).pvalue)
    assert statistics.mcnemar(before, before) == 1.0


def test_holm_equals_its_definition():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    p_values = np.random.default_rng(0).random(40) ** 3
    assert statistics.holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_estimate_of_one_seed_is_the_bootstrap_alone():
    values = (np.random.default_rng(0).random((200, 1)) < 0.4).astype(float)
    draws = np.random.default_rng(1).normal(0.4, 0.03, 2000)
    found = statistics.estimate(0.4, draws, [values], 200)
    assert found.error == pytest.approx(np.std(draws, ddof=1))
    assert found.freedom == pytest.approx(199)
    assert found.p_value < 1e-9
    low, high = found.interval(0.95)
    assert high - low == pytest.approx(2 * 1.972 * found.error, rel=1e-3)


def test_seed_variance_equals_the_analysis_of_variance():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(40, 1)) + rng.normal(0, 0.5, size=3) + rng.normal(size=(40, 3))
    rows = [(i, j) for i in range(40) for j in range(3)]
    design = np.array([[float(i == a) for a in range(1, 40)] + [float(j == b) for b in (1, 2)] for i, j in rows])
    fitted = OLS(values.reshape(-1), add_constant(design)).fit()
    without = OLS(values.reshape(-1), add_constant(design[:, :39])).fit()
    between, within = (without.ssr - fitted.ssr) / 2, fitted.ssr / fitted.df_resid
    variance, uncertainty = statistics.seed_variance(values)
    assert variance == pytest.approx((between - within) / 120)
    assert uncertainty == pytest.approx((between**2 / 2 + within**2 / fitted.df_resid) / 120**2)


def test_smallest_detectable_difference_is_found_four_times_in_five():
    found = statistics.Estimate(0.0, 0.02, 300.0)
    truth = found.detectable(0.95, 0.8)
    drawn = np.random.default_rng(3).normal(truth, 0.02, 20_000)
    share = np.mean([statistics.Estimate(each, 0.02, 300.0).p_value < 0.05 for each in drawn[:4000]])
    assert share == pytest.approx(0.8, abs=0.02)


def test_best_arm_is_clear_only_where_it_is_ahead_of_all():
    rng = np.random.default_rng(4)
    easy = rng.random(800) < 0.7
    keys = (("HAR", 0), ("INC", 0), ("SELF", 0))
    for rivals, clear in (
        ((easy & (rng.random(800) < 0.6), easy & (rng.random(800) < 0.7)), True),
        ((easy, easy), False),
    ):
        answers = exp1.Answers(np.arange(800), keys, np.stack([easy, *rivals], axis=1))
        found = exp1.best_arm(exp1.resample({"d": answers}, 500, (0, 0)), ("HAR", "INC", "SELF"), 0.95)
        assert found == {"arm": "HAR", "clear": clear}


def made_up_points(slope, noise, seed=0, arms=8, arm_spread=0.0, seeds=1):
    """Cells of four domains: arms differ in consistency, and by `slope` or by chance (`arm_spread`) in accuracy."""
    rng = np.random.default_rng(seed)
    kept, chance = rng.permutation(np.linspace(0.2, 0.8, arms)), arm_spread * rng.normal(size=arms)
    return [
        exp4.Point(
            str(domain), str(arm), kept[arm] + 0.02 * rng.normal(),
            base + slope * kept[arm] + chance[arm] + noise * rng.normal(), base,
        )
        for domain, base in enumerate((0.4, 0.45, 0.5, 0.55))
        for arm in range(arms)
        for _ in range(seeds)
    ]  # fmt: skip


def test_exp4_finds_a_slope_and_says_how_sure_it_is():
    found = exp4.association(made_up_points(0.3, 0.01, seed=1), 300, 0.95, (0,))
    assert found["partial_spearman"] > 0.9
    assert found["interval"][0] > 0.8
    arms = found["arms"]
    assert arms["count"] == 8
    assert arms["spearman"] > 0.9
    assert arms["p"] < 0.005
    low, high = arms["interval"]
    assert low < 0.3 < high
    assert high - low < 0.15
    assert found == exp4.association(made_up_points(0.3, 0.01, seed=1), 300, 0.95, (0,))


def test_exp4_between_arms_is_not_misled_by_differences_between_domains():
    points = [
        exp4.Point(p.domain, p.arm, p.rank_consistency + float(p.domain), p.accuracy, 0.5)
        for p in made_up_points(0, 0.02, arm_spread=0.02)
    ]
    found = exp4.association(points, 100, 0.95, (0,))
    assert found["partial_spearman"] > 0.7  # consistency and accuracy both rise from domain to domain
    assert abs(found["arms"]["spearman"]) < 0.6
    assert found["arms"]["p"] > 0.05


@pytest.mark.parametrize("arms", [5, 8])
def test_exp4_does_not_take_an_arms_cells_for_independent(arms):
    drawn = [made_up_points(0, 0.01, seed, arms, arm_spread=0.05, seeds=3) for seed in range(200)]
    found = [exp4.association(points, 2, 0.95, (seed,))["arms"] for seed, points in enumerate(drawn)]
    assert np.mean([each["p"] < 0.05 for each in found]) <= 0.09  # binomial of 200
    assert np.mean([each["interval"][0] > 0 or each["interval"][1] < 0 for each in found]) <= 0.09


def test_exp4_of_few_arms_says_so():
    found = exp4.association(made_up_points(0.3, 0.01, arms=3, seeds=2), 100, 0.95, (0,))
    assert found["arms"]["count"] == 3
    assert found["arms"]["p"] is found["arms"]["slope"] is None


def test_few_answers_that_all_agree_are_no_certainty():
    for items, clear in ((1, False), (3, False), (40, True)):
        correct = np.stack([np.ones(items, bool), np.zeros(items, bool)], axis=1)
        answers = exp1.Answers(np.arange(items), (("HAR", 0), ("INC", 0)), correct)
        found = exp1.arm_difference(exp1.resample({"d": answers}, 200, (0, 0)), ("HAR", "INC"), 0.95)
        exp1.correct([found, dict(found), dict(found)], 0.95)
        assert found["p"] > 0
        assert found["detectable"] > 0
        assert (found["p_holm"] < 0.05) == clear


def test_gains_stand_beside_the_base_seed_by_seed():
    rng = np.random.default_rng(5)
    correct = rng.random((80, 3)) < np.array([0.5, 0.7, 0.6])
    answers = exp1.Answers(np.arange(80), (("BASE", None), ("HAR", 0), ("HAR", 1)), correct)
    found = exp1.arm_difference(exp1.resample({"d": answers}, 200, (0, 0)), ("HAR", "BASE"), 0.95)
    assert found["difference"] == pytest.approx(correct[:, 1:].mean() - correct[:, 0].mean())
    assert found["by_domain"]["d"]["seeds"] == [0, 1]


def test_domains_as_a_sample_are_never_surer_than_these_domains():
    shared = np.arange(100)
    rng = np.random.default_rng(6)
    correct = rng.random((100, 2)) < 0.5
    answers = {str(d): exp1.Answers(shared, (("HAR", 0), ("INC", 0)), correct) for d in range(4)}
    found = exp1.arm_difference(exp1.resample(answers, 300, (0, 0)), ("HAR", "INC"), 0.95)
    low, high = found["interval"]
    assert found["beyond_domains"][0] < low < high < found["beyond_domains"][1]


def simulated(rng, domains, seeds, items, seed_spread, difference):
    """Two arms' answers by a logistic model: items are hard or easy, arms differ, and so do seeds."""
    answers, keys = {}, tuple((arm, seed) for arm in ("HAR", "INC") for seed in range(seeds))
    for domain in range(domains):
        skill = (
            rng.normal(size=(items, 1)) + np.repeat([difference, 0.0], seeds) + rng.normal(0, seed_spread, 2 * seeds)
        )
        correct = rng.random((items, 2 * seeds)) < 1 / (1 + np.exp(-skill))
        answers[str(domain)] = exp1.Answers(np.arange(items) + domain * items, keys, correct)
    return exp1.resample(answers, 100, (0, 0))


def expected_accuracy(seed_spread, skill):
    drawn = np.random.default_rng(0).normal(0, np.hypot(1, seed_spread), 500_000)
    return float(np.mean(1 / (1 + np.exp(-(skill + drawn)))))


TRIALS = 1000
SETTINGS = {  # domains, seeds, questions, spread of seeds: what must come out, in percent of simulations
    "one seed": ((1, 1, 150, 0.0), (93, 97)),
    "four domains": ((4, 1, 100, 0.0), (93, 97)),
    "four domains, three seeds that differ": ((4, 3, 100, 0.3), (93, 97)),
    "three seeds that differ": ((1, 3, 150, 0.3), (92, 97)),
    "five seeds that differ": ((1, 5, 150, 0.3), (93, 97)),
    "two seeds that do not differ": ((4, 2, 100, 0.0), (95, 100)),  # two seeds tell little: wider than need be
    "two seeds that differ": ((1, 2, 150, 0.3), (89, 97)),  # and without other domains, often too narrow
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_intervals_cover_the_truth_as_often_as_they_say(case):
    (domains, seeds, items, spread), (fewest, most) = SETTINGS[case]
    one, other = expected_accuracy(spread, 0.3), expected_accuracy(spread, 0.0)
    hits = np.zeros(2)
    for trial in range(TRIALS):
        resampled = simulated(np.random.default_rng([9, trial]), domains, seeds, items, spread, 0.3)
        found = exp1.arm_accuracy(resampled, "HAR", 0.95), exp1.arm_difference(resampled, ("HAR", "INC"), 0.95)
        bounds = [each["interval"] for each in found]
        hits += [low <= truth <= high for (low, high), truth in zip(bounds, (one, one - other), strict=True)]
    print(f"{case}: accuracy {hits[0] / TRIALS:.1%}, difference {hits[1] / TRIALS:.1%}")
    assert (100 * hits / TRIALS >= fewest).all(), hits / TRIALS
    assert (100 * hits / TRIALS <= most).all(), hits / TRIALS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domains", "seeds", "spread", "most"),
    [(1, 1, 0.0, 0.06), (4, 1, 0.0, 0.06), (4, 2, 0.3, 0.06), (4, 3, 0.3, 0.06), (1, 5, 0.3, 0.06), (1, 2, 0.3, 0.13)],
)  # two seeds of one domain that differ: known to err more often, and said so
def test_paired_tests_rarely_cry_wolf(domains, seeds, spread, most):
    wrong = np.zeros(2)
    for trial in range(1000):
        resampled = simulated(np.random.default_rng([10, trial]), domains, seeds, 150, spread, 0.0)
        found = exp1.arm_difference(resampled, ("HAR", "INC"), 0.95)
        wrong += [found["p"] < 0.05, found["by_domain"]["0"]["mcnemar"][0] < 0.05]
    print(f"{domains} domains, {seeds} seeds, spread {spread}: t {wrong[0] / 1000:.1%}, McNemar {wrong[1] / 1000:.1%}")
    assert wrong[0] / 1000 <= most, wrong
    if spread == 0:  # McNemar's test speaks of these two models alone
        assert wrong[1] / 1000 <= 0.06, wrong
