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


def test_auc_of_pair_wins_equals_auc_of_images_with_unequal_numbers_of_frames():
    rng = np.random.default_rng(3)
    patient = np.sort(rng.integers(0, 12, 200))
    label = (patient > 4).astype(int)
    score = np.round(rng.normal(size=200) + label, 1)
    order = rng.permutation(200)
    interval = statistics.auc_interval(label[order], score[order], patient[order], n_resamples=10)
    assert interval.auc == pytest.approx(roc_auc_score(label, score), abs=1e-14)


# ---------------------------------------------------------------- intervals over patients


def test_interval_by_eye():
    # Each class has two patients, so a resample is one of 9: the AUC is 1 without c or without b, lowest (c, c against
    # b, b) at 0.5. P(c twice and b twice) = 1/16 > 2.5 %, hence the lower bound is that worst case.
    low_case = roc_auc_score([0, 0, 1, 1], [3, 4, 2.5, 5])
    auc, low, high = statistics.auc_interval(LABEL, SCORE, PATIENT)
    assert (auc, low, high) == (0.875, low_case, 1.0)


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
def test_interval_equals_a_slow_bootstrap_that_rebuilds_every_resample(method):
    label, scores, patient = cohort(1, 5, 7, 3)
    label, patient = label[1:], patient[1:]  # the first patient has two images, not three
    score = np.round(scores[0, 1:], 1)

    def statistic(pos, neg):
        return round(slow_auc(label, score, patient, pos.astype(int) + 5, neg.astype(int)), 12)

    slow = by_scipy(statistic, (np.arange(7), np.arange(5)), {"bca": "BCa"}.get(method, method))
    interval = statistics.auc_interval(label, score, patient, n_resamples=200, seed=11, method=method)
    np.testing.assert_allclose(interval[1:], slow.confidence_interval, atol=1e-11)


def test_crossed_mean_equals_three_samples_of_scipy():
    label, scores, patient = cohort(2, 4, 6, 2, n_seeds=3)

    def statistic(pos, neg, seeds):
        who = pos.astype(int) + 4, neg.astype(int)
        return np.mean([slow_auc(label, scores[s], patient, *who) for s in seeds])

    slow = by_scipy(statistic, (np.arange(6), np.arange(4), np.arange(3)), n=100, seed=4)
    found = statistics.mean_auc_interval(label, scores, patient, n_resamples=100, seed=4)
    np.testing.assert_allclose((found.low, found.high), slow.confidence_interval, atol=1e-11)


def test_mean_of_the_folds_aucs_is_resampled_within_folds():
    label, scores, patient = cohort(3, 6, 8, 2)
    fold = patient % 2
    interval = statistics.mean_auc_interval(label, scores, patient, 300, fold=fold)
    each = [roc_auc_score(label[fold == k], scores[0][fold == k]) for k in (0, 1)]
    assert interval.auc == pytest.approx(np.mean(each), abs=1e-14)
    assert interval.low < interval.auc < interval.high
    # a shift between folds spoils the pooled ranking and leaves the folds' own
    shifted = statistics.mean_auc_interval(label, scores + 9 * fold, patient, 300, fold=fold)
    assert shifted == pytest.approx(interval)
    with pytest.raises(ValueError, match="and fold, where folds"):
        statistics.mean_auc_interval(label, scores, patient, 300, fold=patient // 3)


def test_bca_falls_back_where_it_is_not_defined():
    label, patient = np.repeat([0, 1], 6), np.repeat(np.arange(6), 2)
    perfect = np.arange(12.0)
    assert statistics.auc_interval(label, perfect, patient, method="bca") == (1.0, 1.0, 1.0)


def test_interval_is_repeatable_and_ignores_the_order_of_rows_and_the_names_of_patients():
    label, scores, patient = cohort(6)
    first = statistics.auc_interval(label, scores[0], patient, seed=3)
    order = np.random.default_rng(0).permutation(len(label))
    names = np.array([f"p{who:03d}" for who in patient])
    assert statistics.auc_interval(label[order], scores[0][order], names[order], seed=3) == first
    assert statistics.auc_interval(label, scores[0], patient, seed=4) != first


def test_interval_over_patients_is_wider_than_one_over_images():
    label, scores, patient = cohort(7)
    _, low, high = statistics.auc_interval(label, scores[0], patient)
    _, low_images, high_images = statistics.auc_interval(label, scores[0], np.arange(len(label)))
    assert high - low > 2 * (high_images - low_images)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 20 + 20 patients; patient effect SD 1, class distance 1: the AUC between new patients is known.
    truth = scipy_stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.1**2)))
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(40), 3)
        label = (patient >= 20).astype(int)
        score = label + rng.normal(size=40)[patient] + 0.1 * rng.normal(size=120)
        _, low, high = statistics.auc_interval(label, score, patient, n_resamples=400, seed=seed)
        held += low <= truth <= high
    assert 0.89 <= held / 200 <= 0.985


def test_fast_enough_for_the_papers_25_seeds():
    label, new, patient = cohort(9, n_seeds=25)
    start = time.perf_counter()
    statistics.auc_interval(label, new[0], patient)
    one = time.perf_counter() - start
    statistics.mean_auc_interval(label, new, patient)
    statistics.gain(label, new, new[::-1], patient)
    assert one < 1
    assert time.perf_counter() - start < 5


# ---------------------------------------------------------------- over seeds


def test_student_t_interval_equals_scipy():
    values = np.random.default_rng(0).normal(size=25)
    expected = scipy_stats.t.interval(0.95, 24, values.mean(), scipy_stats.sem(values))
    np.testing.assert_allclose(statistics.student_t_interval(values)[1:], expected, rtol=0, atol=1e-12)
    assert statistics.student_t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


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
        (lambda: statistics.auc_interval(LABEL, SCORE, PATIENT[:-1]), "one entry per image"),
        (lambda: statistics.auc_interval(LABEL, np.where(SCORE > 6, np.nan, SCORE), PATIENT), "found 1 that are not"),
        (lambda: statistics.auc_interval(LABEL, SCORE, list("aabbccda")), "patient a: expected one label"),
        (
            lambda: statistics.auc_interval(LABEL, SCORE, list("aaaaccdd")),
            r"two or more patients in each class .* \[2, 1\]",
        ),
        (lambda: statistics.auc_interval(LABEL, SCORE, PATIENT, method="normal"), "percentile, bca"),
        (lambda: statistics.auc_interval(LABEL, SCORE, PATIENT, n_resamples=0), "n_resamples"),
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
