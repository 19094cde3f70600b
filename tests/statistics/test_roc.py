"""AUC intervals and tests over seeds: by eye, at the edges, against slow or other code."""

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from toy_scores import LABEL, SCORE, cohort

from nafld_utils import statistics

# ---------------------------------------------------------------- AUC


def test_auc_counts_pairs_in_the_right_order():
    # 16 pairs; 2.5 stands above 1 and 2, below 3 and 4; the rest stand above all.
    assert statistics.auc(LABEL, SCORE) == (2 + 3 * 4) / 16
    assert statistics.auc([0, 1], [1, 2]) == 1.0
    assert statistics.auc([0, 1], [2, 1]) == 0.0
    assert statistics.auc([0, 1, 0, 1], [3, 3, 3, 3]) == 0.5


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auc_equals_scikit_learn_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    label = rng.integers(0, 2, 300)
    score = np.round(rng.normal(size=300) + label, decimals)
    assert statistics.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-14)


# ---------------------------------------------------------------- a bootstrap over patients and seeds


def test_crossed_bootstrap_equals_three_samples_of_scipy_and_repeats_itself():
    label, scores, patient = cohort(2, 4, 6, 2, n_seeds=3)

    def statistic(pos, neg, seeds):
        rows = np.concatenate([np.flatnonzero(patient == who) for who in (*pos + 4, *neg)])
        return np.mean([roc_auc_score(label[rows], scores[s][rows]) for s in seeds])

    def many(*drawn):
        shape = drawn[0].shape[:-1]
        flat = [part.reshape(-1, part.shape[-1]) for part in drawn]
        return np.array([statistic(*one) for one in zip(*flat, strict=True)]).reshape(shape)

    samples = np.arange(6), np.arange(4), np.arange(3)
    rng = np.random.default_rng(4)
    slow = scipy_stats.bootstrap(samples, statistic, n_resamples=100, vectorized=False, method="percentile", rng=rng)
    found = statistics.crossed_bootstrap(many, [6, 4], n_seeds=3, n_resamples=100, seed=4)
    np.testing.assert_allclose((found.low, found.high), slow.confidence_interval, atol=1e-11)
    assert found.error == pytest.approx(slow.standard_error, abs=1e-11)
    assert statistics.crossed_bootstrap(many, [6, 4], n_seeds=3, n_resamples=100, seed=4)[:4] == found[:4]
    for sizes, n, says in (([6, 1], 100, r"two or more .* \[6, 1\]"), ([6, 4], 0, "n_resamples")):
        with pytest.raises(ValueError, match=says):
            statistics.crossed_bootstrap(many, sizes, n_resamples=n)


def test_a_bootstrap_without_spread_says_nothing():
    found = statistics.crossed_bootstrap(lambda *drawn: np.ones(drawn[0].shape[:-1]), [5, 5])
    assert found.estimate == 1
    assert np.isnan([found.low, found.high, found.error]).all(), "no spread is not certainty"


def test_fast_enough_for_the_papers_25_seeds():
    label, new, patient = cohort(9, n_seeds=25)
    start = time.process_time()
    statistics.gain(label, new, new[::-1], patient)
    assert time.process_time() - start < 5


# ---------------------------------------------------------------- means of seeds and folds


def test_student_t_interval_equals_scipy():
    values = np.random.default_rng(0).normal(size=25)
    expected = scipy_stats.t.interval(0.95, 24, values.mean(), scipy_stats.sem(values))
    np.testing.assert_allclose(statistics.student_t_interval(values)[1:], expected, rtol=0, atol=1e-12)
    for alike in ([0.5, 0.5], [0.1 + 0.2, 0.3]):  # these two differ by rounding alone
        mean, low, high = statistics.student_t_interval(alike)
        assert mean == pytest.approx(alike[0])
        assert np.isnan([low, high]).all()


def test_an_interval_ends_where_its_values_can_lie():
    values = [0.91, 0.97, 0.99, 0.78, 0.88]
    # R, car::deltaMethod(c(m = mean(x)), g, vcov. = var(x) / 5) with qt(0.975, 4), g log(m / (1 - m)), log(m), atanh(m)
    known = {
        statistics.SHARE: (0.741165539679, 0.970097478588),
        statistics.POSITIVE: (0.808314033489, 1.015491462466),
        statistics.SIGNED: (0.729570209785, 0.969364867311),
    }
    for within, ends in known.items():
        found = statistics.student_t_interval(values, within=within)
        np.testing.assert_allclose(found, (np.mean(values), *ends), rtol=0, atol=1e-11)
    # two folds: plain Student t gives [-0.67, 2.51] for this ratio and [0.27, 1.13] for this AUC
    for pair, within in (((0.795, 1.045), statistics.POSITIVE), ((0.666, 0.734), statistics.SHARE)):
        plain, found = statistics.student_t_interval(pair), statistics.student_t_interval(pair, within=within)
        assert within[0] < found.low < found.mean == plain.mean < found.high < within[1]
        assert not within[0] < plain.low < plain.high < within[1]
    mean, low, high = statistics.student_t_interval([1.0, 1.0 + 1e-12], within=statistics.SHARE)
    assert mean == 1.0
    assert np.isnan([low, high]).all(), "rounding is no spread"
    far = statistics.student_t_interval([1.0, 5.0], 0.95, statistics.POSITIVE)
    near = statistics.student_t_interval([1e3 + 1.0, 1e3 + 5.0], 0.95, (1e3, np.inf))
    np.testing.assert_allclose(near, np.array(far) + 1e3, rtol=1e-12)
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\]"):
        statistics.over_folds([0.5, 1.2], statistics.SHARE)


def test_paired_t_equals_scipy_and_the_papers_p():
    rng = np.random.default_rng(1)
    base = rng.normal(0.861, 0.01, 25)
    new = base + rng.normal(0.02, 0.01, 25)
    mine, other = statistics.paired_t(new, base), scipy_stats.ttest_rel(new, base)
    assert mine[:3] == pytest.approx((other.statistic, other.pvalue, other.df), rel=1e-12)
    np.testing.assert_allclose([mine.low, mine.high], other.confidence_interval(), rtol=0, atol=1e-12)
    # one scale: significant where the interval leaves 0 out, and cut where it leaves its range
    bounds = statistics.paired_t([0.03, 0.61, 0.19, 0.34], [0, 0, 0, 0], within=statistics.SIGNED)
    assert bounds.p > 0.05
    assert bounds.low < 0
    assert statistics.paired_t([0.9, 0.1], [0.1, 0.2], within=statistics.SIGNED)[-2:] == (-1, 1)
    # The paper: t -12.39 over 25 seeds, p 6.43e-12. A sample with exactly that t:
    gain = np.arange(25.0) - 12
    gain += 12.39 * gain.std(ddof=1) / 5
    result = statistics.paired_t(gain, np.zeros(25))
    assert result.t == pytest.approx(12.39)
    assert result.p == pytest.approx(6.43e-12, rel=0.01)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: statistics.student_t_interval([0.5]), "two or more"),
        (lambda: statistics.student_t_interval([0.5, np.nan]), "finite"),
        (lambda: statistics.paired_t([1, 2], [1, 2, 3]), "same seeds"),
        (lambda: statistics.paired_t([0.8, 0.9], [0.7, 0.8]), "t is not defined"),
        (lambda: statistics.auc([1, 1], [1, 2]), "both classes"),
        (lambda: statistics.auc([0, 2], [1, 2]), "0 and 1"),
        (lambda: statistics.auc([0, 1], [1, 2, 3]), "one row per image"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_scores_that_know_nothing_have_an_auc_of_half_on_average():
    aucs = []
    for seed in range(200):
        label, scores, _ = cohort(seed, effect=0.0, frames=2)
        aucs.append(statistics.auc(label, scores[0]))
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("n_right", "n"), [(0, 1), (1, 1), (0, 8), (1, 8), (8, 8), (5, 64), (371, 400)])
def test_the_exact_interval_equals_scipys(n_right, n):
    wanted = scipy_stats.binomtest(n_right, n).proportion_ci(0.95, "exact")
    assert statistics.exact_interval(n_right, n) == pytest.approx(tuple(wanted), rel=1e-9)


def test_shares_of_clusters_have_exact_bounds_that_never_miss_zero():
    """Exact where clusters are rows, statsmodels' beta limits for the worth of larger ones, hand-counted."""
    from statsmodels.stats.proportion import proportion_confint

    found = [1] + [0] * 63
    share, low, high = statistics.clustered_share(found, range(64))
    assert (low, high) == pytest.approx(statistics.exact_interval(1, 64))
    assert share == 1 / 64
    # both images of a patient alike: 20 patients are 20 tries
    share, low, high = statistics.clustered_share(np.repeat([1] * 5 + [0] * 15, 2), np.repeat(range(20), 2))
    assert (low, high) == pytest.approx(proportion_confint(5, 20, method="beta"))
    for value in (0, 1):
        ends = statistics.clustered_share([value] * 40, np.repeat(range(10), 4))[1:]
        assert ends == pytest.approx(statistics.exact_interval(10 * value, 10))
