"""The mean AUC of trainings nested in simulated cohorts, held against DeLong's own and against simulated truths."""

import numpy as np
import pytest

from nafld_utils import statistics
from nafld_utils.statistics import delong


def toy(n_cohorts, n_seeds, sds=(0.0, 0.0), seed=0, n=(40, 60)):
    """Labels, and scores whose separation varies by cohort and by training."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n)
    shared = rng.normal(size=sum(n))
    shift = 1 + rng.normal(0, sds[0], (n_cohorts, 1, 1)) + rng.normal(0, sds[1], (n_cohorts, n_seeds, 1))
    return label, shared + shift * label + 0.3 * rng.normal(size=(n_cohorts, n_seeds, sum(n)))


def test_one_training_has_delongs_variance():
    label, scores = toy(1, 1)
    found = statistics.nested_auc(label, scores, np.arange(100))
    (auc,), ((variance,),) = delong.covariance(label, scores[0])
    assert (found.value, found.patients) == pytest.approx((auc, np.sqrt(variance)))
    assert np.isnan([found.cohorts, found.seeds]).all()
    assert found.low < auc < found.high


def test_a_mean_of_folds_is_the_mean_of_their_aucs_and_its_variance_that_of_independent_folds():
    label, scores = toy(1, 1)
    fold = np.arange(100) % 2
    found = statistics.nested_auc(label, scores, np.arange(100), fold)
    each = [delong.covariance(label[fold == k], scores[0][:, fold == k]) for k in (0, 1)]
    assert found.value == pytest.approx(np.mean([auc[0] for auc, _ in each]))
    assert found.patients == pytest.approx(np.sqrt(sum(variance[0, 0] for _, variance in each)) / 2)


def test_equal_trainings_vary_over_patients_alone():
    label, scores = toy(1, 1)
    alike = np.repeat(np.repeat(scores, 4, axis=0), 3, axis=1)
    found = statistics.nested_auc(label, alike, np.arange(100))
    one = statistics.nested_auc(label, scores, np.arange(100))
    assert found.cohorts == found.seeds == 0
    assert found[:4] == pytest.approx(one[:4], abs=1e-9)


def test_a_base_is_taken_off_training_by_training():
    label, scores = toy(3, 2, (0.2, 0.2))
    found = statistics.nested_auc(label, scores, np.arange(100), base=scores[0, 0])
    aucs = [statistics.auc(label, row) for row in scores.reshape(-1, 100)]
    assert found.value == pytest.approx(np.mean(aucs) - aucs[0])
    assert found.low < found.value < found.high
    same = statistics.nested_auc(label, scores, np.arange(100), base=scores)
    assert same.value == 0
    assert np.isnan(same.low)


def test_the_parts_of_the_variance_are_those_that_were_put_in():
    """2,000 patients and 40 cohorts: the true AUCs are known to a thousandth, so that their own spread is the truth."""
    label, scores = toy(40, 8, (0.3, 0.15), seed=3, n=(900, 1100))
    found = statistics.nested_auc(label, scores, np.arange(2000))
    each = np.array([[statistics.auc(label, row) for row in part] for part in scores])
    seeds = each.var(axis=1, ddof=1).mean()
    cohorts = each.mean(axis=1).var(ddof=1) - seeds / 8
    assert found.seeds == pytest.approx(np.sqrt(seeds), rel=0.1)
    assert found.cohorts == pytest.approx(np.sqrt(cohorts), rel=0.05)
    assert 0.005 < found.patients < 0.02


def test_the_interval_over_patients_and_cohorts_holds_the_truth_as_often_as_it_says():
    """Everything drawn anew 600 times, normal scores: the true AUC is known."""
    from scipy import stats

    rng, held = np.random.default_rng(1), []
    label, fold = np.repeat([0, 1], [17, 38]), np.arange(55) % 5
    for _ in range(600):
        shift = 1 + rng.normal(0, 0.25, (3, 1, 1)) + rng.normal(0, 0.2, (3, 2, 1))
        own = rng.normal(size=55)
        scores = own + shift * label + 0.5 * rng.normal(size=(3, 2, 55))
        found = statistics.nested_auc(label, scores, np.arange(55), fold)
        held.append((found.low, found.high))
    spread = np.sqrt(2 * 1.25)  # of the difference of two scores
    truth = np.mean(stats.norm.cdf(rng.normal(1, np.hypot(0.25, 0.2), 100_000) / spread))
    low, high = np.array(held).T
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.98


def test_within_one_stratum_it_is_the_auc_and_delongs_variance():
    label, scores = toy(1, 1)
    found = statistics.auc_within(label, scores[0], np.zeros(100))
    (auc,), ((variance,),) = delong.covariance(label, scores[0])
    half = (np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))) / 2 * auc * (1 - auc)
    assert found.auc == pytest.approx(auc)
    assert half == pytest.approx(1.9845 * np.sqrt(variance), rel=1e-3)  # Student t of 98
    assert found.pairs == 40 * 60


def test_strata_compare_no_patients_of_two():
    """By hand: within a 0 < 1 is right, within b 0.5 > 0.4 wrong; the two pairs across are right."""
    label, score = [0, 1, 0, 1], [[0.0, 1.0, 0.5, 0.4]]
    found = statistics.auc_within(label, score, ["a", "a", "b", "b"])
    assert (found.auc, found.pairs) == (0.5, 2)
    assert statistics.auc(label, score[0]) == 0.75
    nothing = statistics.auc_within(label, score, ["a", "b", "a", "b"])
    assert nothing.pairs == 0
    assert np.isnan(nothing[:3]).all()
