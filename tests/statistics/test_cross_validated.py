"""Mean of the folds' AUCs: pROC's variance, sums written out, an AUC of 1, and what cannot be said."""

import numpy as np
import pytest
from scipy import special, stats

from nafld_utils.statistics import fold_mean_auc

FOLDS = np.repeat([0, 1, 2], [8, 7, 9])
LABEL = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
SCORE = np.array(
    [
        0.9,
        0.4,
        0.7,
        0.3,
        0.2,
        0.5,
        0.6,
        0.1,
        0.8,
        0.35,
        0.3,
        0.4,
        0.2,
        0.1,
        0.5,
        *(0.6, 0.9, 0.45, 0.3, 0.2, 0.5, 0.4, 0.1, 0.35),
    ]
)


def test_one_image_per_patient_is_the_mean_of_what_r_says_of_each_fold():
    """R 4.2.2, pROC 1.18.0: `roc(label, score, direction="<")` and `var(roc, method="delong")` of each fold."""
    aucs, variances = (13 / 15, 0.8, 0.8), (0.024444444444, 0.055, 0.02875)
    found = fold_mean_auc(LABEL, SCORE, np.arange(24), FOLDS)
    auc, error = np.mean(aucs), np.sqrt(np.sum(variances)) / 3
    assert found.auc == pytest.approx(auc)
    half = stats.t.ppf(0.975, 24 - 6) * error / (auc * (1 - auc))
    assert found.low == pytest.approx(special.expit(special.logit(auc) - half))
    assert found.high == pytest.approx(special.expit(special.logit(auc) + half))
    assert (found.n_patients, found.n_folds, found.unsaid) == (24, 3, "")


def test_patients_with_several_images_by_obuchowskis_sums_written_out():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(9), [1, 4, 2, 3, 2, 5, 1, 2, 3])
    label, score = (patient < 4).astype(int), rng.normal(size=23) + 1.5 * (patient < 4) + rng.normal(size=9)[patient]
    found = fold_mean_auc(label, score, patient, np.zeros(23))
    wins = np.array([[float(a > b) for b in score[label == 0]] for a in score[label == 1]])
    auc, variance = wins.mean(), 0.0
    for part, value in ((wins.mean(axis=1), 1), (wins.mean(axis=0), 0)):
        own = patient[label == value]
        sums = [sum(part[own == who] - auc) for who in np.unique(own)]
        variance += len(sums) / (len(sums) - 1) * sum(s**2 for s in sums) / len(own) ** 2
    half = stats.t.ppf(0.975, 7) * np.sqrt(variance) / (auc * (1 - auc))
    assert found.auc == pytest.approx(auc)
    assert found.low == pytest.approx(special.expit(special.logit(auc) - half))


def test_images_repeated_are_no_new_patients():
    once = fold_mean_auc(LABEL, SCORE, np.arange(24), FOLDS)
    ten = fold_mean_auc(*(np.repeat(values, 10) for values in (LABEL, SCORE, np.arange(24), FOLDS)))
    assert ten[:3] == pytest.approx(once[:3])


def test_scores_of_two_folds_are_never_compared():
    moved = fold_mean_auc(LABEL, np.exp(SCORE) + 50 * FOLDS, np.arange(24), FOLDS)
    assert moved == fold_mean_auc(LABEL, SCORE, np.arange(24), FOLDS)


@pytest.mark.parametrize(("auc", "sign"), [(1.0, 1), (0.0, -1)])
def test_an_auc_of_one_has_the_bound_from_which_it_is_t_standard_errors_away(auc, sign):
    """Newcombe's method 5 for two folds of 3 and 4 patients: Hanley and McNeil's variance with N* = 2.5."""
    label = np.array([1, 1, 1, 0, 0, 0, 0])
    found = fold_mean_auc(np.tile(label, 2), sign * np.tile(label, 2) * 1.0, np.arange(14), np.repeat([0, 1], 7))
    assert found.auc == auc
    low = found.low if auc else 1 - found.high
    one = low * (1 - low) * (1 + 2.5 * (1 - low) / (2 - low) + 2.5 * low / (1 + low)) / 12
    assert (1 - low) / np.sqrt(one / 2) == pytest.approx(stats.t.ppf(0.975, 10))
    assert 0.5 < low < 0.75
    assert (found.high if auc else found.low) == auc


def test_a_fold_with_an_auc_of_one_is_not_certain():
    """Newcombe's variance at the mean AUC, 17 / 18, written out for 3 and 3 patients; the other fold has its own."""
    label, score = [0, 0, 0, 1, 1, 1] * 2, [1, 2, 4, 3, 5, 6, 1, 2, 3, 4, 5, 6]
    auc, own = 17 / 18, fold_mean_auc(label[:6], score[:6], range(6), [0] * 6)
    t = stats.t.ppf(0.975, 4)
    error = (special.logit(8 / 9) - special.logit(own.low)) * (8 / 81) / t
    perfect = auc * (1 - auc) * (1 + 2 * (1 - auc) / (2 - auc) + 2 * auc / (1 + auc)) / 9
    found = fold_mean_auc(label, score, range(12), [0] * 6 + [1] * 6)
    half = stats.t.ppf(0.975, 8) * np.sqrt(error**2 + perfect) / 2 / (auc * (1 - auc))
    assert found.low == pytest.approx(special.expit(special.logit(auc) - half))


@pytest.mark.parametrize(
    ("label", "score", "auc", "reason"),
    [
        ([1, 1, 0], [3, 2, 1], 1.0, "fold a holds out fewer than two patients of a class"),
        ([1, 1, 1], [3, 2, 1], np.nan, "fold a holds out fewer than two patients of a class"),
        ([1, 1, 0, 0], [2, 2, 2, 2], 0.5, "fold a gives every image the same score"),
    ],
)
def test_what_cannot_be_said_has_no_bounds_and_says_why(label, score, auc, reason):
    n = len(label)
    found = fold_mean_auc([*label, 0, 0, 1, 1], [*score, 1, 3, 2, 4], range(n + 4), ["a"] * n + ["b"] * 4)
    assert found.auc == pytest.approx((auc + 0.75) / 2, nan_ok=True)
    assert np.isnan([found.low, found.high]).all()
    assert found.unsaid == reason


def test_folds_that_say_nothing_for_one_reason_are_named_together():
    label, score = [1, 1, 0, 1, 1, 0, 1, 1, 0, 0], [3, 2, 1, 3, 2, 1, 2, 2, 2, 2]
    found = fold_mean_auc(label, score, range(10), [0] * 3 + [1] * 3 + [2] * 4)
    assert (
        found.unsaid
        == "folds 0 and 1 hold out fewer than two patients of a class; fold 2 gives every image the same score"
    )


def test_a_patient_of_two_labels_and_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="patient 1: expected one label, found both"):
        fold_mean_auc([0, 1, 1, 0], [1, 2, 3, 4], [1, 1, 2, 3], [0] * 4)
    with pytest.raises(ValueError, match="score: expected finite numbers"):
        fold_mean_auc([0, 1, 1, 0], [1, 2, np.nan, 4], range(4), [0] * 4)
