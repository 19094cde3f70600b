"""AUC intervals and tests over seeds: by eye, at the edges, against slow or other code."""

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from toy_scores import LABEL, PATIENT, SCORE, cohort

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


# ---------------------------------------------------------------- differences over patients


def slow_auc(label, score, patient, positives, negatives):
    """AUC of a resample, built row by row as a table of repeated patients."""
    rows = np.concatenate([np.flatnonzero(patient == who) for who in np.concatenate([positives, negatives])])
    return roc_auc_score(label[rows], score[rows])


def by_scipy(statistic, samples, method="percentile", n=200, seed=11):
    """The same bootstrap by scipy's plain loop, a resample at a time, with the same draws."""
    return scipy_stats.bootstrap(
        samples, statistic, n_resamples=n, vectorized=False, method=method, rng=np.random.default_rng(seed)
    )


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_difference_equals_a_slow_bootstrap_that_rebuilds_every_resample(method):
    label, scores, patient = cohort(1, 5, 7, 3)
    label, patient = label[1:], patient[1:]  # the first patient has two images, not three
    score = np.round(scores[0, 1:], 1)

    def statistic(pos, neg):
        return round(slow_auc(label, score, patient, pos.astype(int) + 5, neg.astype(int)) - 0.5, 12)

    slow = by_scipy(statistic, (np.arange(7), np.arange(5)), {"bca": "BCa"}.get(method, method))
    flat = np.zeros(len(label))  # constant scores have an AUC of 0.5 in every resample
    found = statistics.difference_bootstrap(label, score, flat, patient, n_resamples=200, seed=11, method=method)
    np.testing.assert_allclose((found.low, found.high), slow.confidence_interval, atol=1e-11)


def test_difference_is_repeatable_and_ignores_the_order_of_rows_and_the_names_of_patients():
    label, scores, patient = cohort(6, n_seeds=2)
    first = statistics.difference_bootstrap(label, *scores, patient, n_resamples=200, seed=3)
    order, names = np.random.default_rng(0).permutation(len(label)), np.array([f"p{who:03d}" for who in patient])
    again = statistics.difference_bootstrap(label[order], *scores[:, order], names[order], n_resamples=200, seed=3)
    assert again[:4] == pytest.approx(first[:4], abs=1e-12)
    other = statistics.difference_bootstrap(label, *scores, patient, n_resamples=200, seed=4)
    assert other.low != first.low


def test_crossed_difference_equals_three_samples_of_scipy():
    label, new, patient = cohort(2, 4, 6, 2, n_seeds=3)
    base = new - 0.3 * label + 0.1 * np.random.default_rng(0).normal(size=new.shape)

    def statistic(pos, neg, seeds):
        who = pos.astype(int) + 4, neg.astype(int)
        gains = [slow_auc(label, new[s], patient, *who) - slow_auc(label, base[s], patient, *who) for s in seeds]
        return np.mean(gains)

    slow = by_scipy(statistic, (np.arange(6), np.arange(4), np.arange(3)), n=100, seed=4)
    found = statistics.difference_bootstrap(label, new, base, patient, n_resamples=100, seed=4)
    np.testing.assert_allclose((found.low, found.high), slow.confidence_interval, atol=1e-11)
    assert found.error == pytest.approx(slow.standard_error, abs=1e-11)


def test_p_of_a_bootstrap_by_eye():
    assert statistics.two_sided_p(np.array([0.1, 0.2, 0.3, -0.1])) == 2 * (1 + 1) / 5
    assert np.isnan(statistics.two_sided_p(np.zeros(9))), "without spread nothing can be said"
    assert statistics.two_sided_p(np.linspace(1, 2, 1999)) == 2 / 2000


def test_the_same_arm_twice_differs_by_nothing():
    label, scores, patient = cohort(8, n_seeds=3)
    found = statistics.difference_bootstrap(label, scores, scores, patient)
    assert found.estimate == 0
    assert np.isnan([found.low, found.high, found.error]).all(), "no spread is not certainty"


def test_fast_enough_for_the_papers_25_seeds():
    label, new, patient = cohort(9, n_seeds=25)
    start = time.perf_counter()
    statistics.difference_bootstrap(label, new, new[::-1], patient)
    assert time.perf_counter() - start < 5


# ---------------------------------------------------------------- over seeds


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
        (lambda: statistics.difference_bootstrap(LABEL, [SCORE], [SCORE, SCORE], PATIENT), "equal shapes"),
        (lambda: statistics.difference_bootstrap(LABEL, SCORE, SCORE, PATIENT, n_resamples=0), "n_resamples"),
        (lambda: statistics.difference_bootstrap(LABEL, SCORE, SCORE, PATIENT, method="normal"), "percentile, bca"),
        (lambda: statistics.difference_bootstrap(LABEL, SCORE, SCORE, list("aaaaccdd")), r"two or more .* \[2, 1\]"),
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
