"""The interval of one AUC: against R, without any spread, over seeds and folds, and how often it holds the truth."""

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats
from toy_scores import LABEL, PATIENT, SCORE, cohort

from nafld_utils import statistics
from nafld_utils.statistics import delong

# R 4, `f <- function(x) m*n*(a-x)^2*(2-x)*(1+x) - qnorm(.975)^2*x*(1-x)*(2+h+(1+2*h)*x*(1-x))` with h = (m+n)/2 - 1,
# the equation of SingleCaseES::NAP (Newcombe's method 5), and `uniroot(f, c(0, a), tol = 1e-12)$root`.
NEWCOMBE_IN_R = [
    (1.0, 2, 2, 0.3856357045, 1.0),
    (1.0, 38, 17, 0.9143754028, 1.0),
    (0.8, 38, 17, 0.6416005583, 0.8947625788),
    (0.0, 8, 7, 0.0, 0.2593390575),
]
# SingleCaseES 0.7, NAP(A_data = c(20, 20, 26, 25, 22, 23), B_data = c(28, 25, 24, 27, 30, 30, 29)): its uniroot stops
# at 1e-4.
NAP = [20, 20, 26, 25, 22, 23], [28, 25, 24, 27, 30, 30, 29]
NAP_IN_R = (0.9166667, 0.5973406, 0.9860176)


@pytest.mark.parametrize(("auc", "m", "n", "low", "high"), NEWCOMBE_IN_R)
def test_bounds_equal_newcombes_method_5_in_r(auc, m, n, low, high):
    z = scipy_stats.norm.ppf(0.975)
    assert delong.score_bounds(auc, [(m, n)], z) == pytest.approx((low, high), abs=1e-9)
    # two equal blocks are twice the patients; seeds that scatter make it wider
    assert delong.score_bounds(auc, [(m, n)] * 2, z)[0] >= low
    assert delong.score_bounds(auc, [(m, n)], z, more=0.01)[0] <= low


def test_one_image_per_patient_equals_another_program():
    found = statistics.auc_interval([0] * 6 + [1] * 7, NAP[0] + NAP[1], np.arange(13))
    assert found == pytest.approx(NAP_IN_R, abs=3e-5)


def test_four_perfect_patients_have_a_bound_and_constant_scores_have_none():
    label, patient = [0, 0, 1, 1], list("abcd")
    for method in statistics.METHODS:
        found = statistics.auc_interval(label, [1, 2, 3, 4], patient, method=method)
        assert found == pytest.approx((1.0, 0.3856357045, 1.0)), method
        assert "patients within class" in statistics.over(found, method=method)
        found = statistics.auc_interval(label, [1, 1, 1, 1], patient, method=method)
        assert found.auc == 0.5
        assert np.isnan(found[1:]).all(), method
        assert statistics.over(found, method=method) == statistics.NO_SPREAD
    # several seeds, and folds that are constant each by itself
    assert np.isnan(statistics.mean_auc_interval(label, np.ones((3, 4)), patient).low)
    fold, twice = [0] * 4 + [1] * 4, np.array([5.0] * 4 + [6.0] * 4)
    assert np.isnan(statistics.mean_auc_interval(label * 2, twice, range(8), fold=fold).low)


def test_images_count_for_what_they_are_worth():
    """Equal images are one patient each; independent ones count in full; between them by Obuchowski's variance."""
    label, scores, patient = cohort(3, 17, 38, 1)
    once = statistics.auc_interval(label, scores[0], patient)
    ten = [np.repeat(values, 10) for values in (label, scores[0], patient)]
    assert statistics.auc_interval(*ten) == pytest.approx(once)
    rng = np.random.default_rng(0)
    label, patient = np.repeat(label, 10), np.repeat(patient, 10)
    score = label + rng.normal(size=550)
    bounds = statistics.auc_interval(label, score, patient)
    effect = delong.covariance(label, score, patient)[1][0, 0] / delong.covariance(label, score)[1][0, 0]
    assert 0.5 < effect < 2
    rows = [(380 / max(effect, 1), 170 / max(effect, 1))]
    expected = delong.score_bounds(bounds.auc, rows, scipy_stats.norm.ppf(0.975))
    assert bounds[1:] == pytest.approx(expected)


def test_clustered_covariance_equals_the_formula_by_patient():
    """Obuchowski 1997 written out for patients of one class and unequal numbers of images."""
    label, scores, patient = cohort(4, 6, 8, 3, n_seeds=2)
    label, scores, patient = label[1:], np.round(scores[:, 1:], 1), patient[1:]
    aucs, both = delong.covariance(label, scores, patient)
    expected = np.zeros((2, 2))
    for kind in (1, 0):
        rows = np.flatnonzero(label == kind)
        names, sums = np.unique(patient[rows]), []
        for who in names:
            own = []
            for s in range(2):
                other = scores[s, label != kind]
                each = [np.mean((v > other) + 0.5 * (v == other)) for v in scores[s, rows[patient[rows] == who]]]
                placed = each if kind else [1 - v for v in each]
                own.append(sum(placed) - len(each) * aucs[s])
            sums.append(own)
        sums = np.array(sums)
        expected += sums.T @ sums * len(names) / (len(names) - 1) / len(rows) ** 2
    np.testing.assert_allclose(both, expected, atol=1e-15)


def test_logit_interval_by_hand():
    label, scores, patient = cohort(5, 17, 38, 4)
    auc, low, high = statistics.auc_interval(label, scores[0], patient, method="logit")
    error = np.sqrt(delong.covariance(label, scores[0], patient)[1][0, 0]) / (auc * (1 - auc))
    ends = np.log(auc / (1 - auc)) + np.array([-1.959964, 1.959964]) * error
    np.testing.assert_allclose([low, high], 1 / (1 + np.exp(-ends)), atol=1e-6)


def test_seeds_are_readers():
    """The same seed again adds nothing; seeds that scatter widen the interval, by Obuchowski and Rockette's sum."""
    label, scores, patient = cohort(6, 17, 38, 2)
    one = statistics.auc_interval(label, scores[0], patient)
    assert statistics.mean_auc_interval(label, np.repeat(scores, 3, 0), patient) == pytest.approx(one)
    rng = np.random.default_rng(1)
    seeds = scores + np.array([[0.0], [0.4], [-0.4]]) * label + 0.2 * rng.normal(size=(3, len(label)))
    auc, low, high = statistics.mean_auc_interval(label, seeds, patient, method="logit")
    aucs, both = delong.covariance(label, seeds, patient)
    assert auc == pytest.approx(aucs.mean())
    between, shared = aucs.var(ddof=1) / 3, both[np.triu_indices(3, 1)].mean()
    df = (between + shared) ** 2 / (between**2 / 2)
    half = scipy_stats.t.ppf(0.975, df) * np.sqrt(between + shared) / (auc * (1 - auc))
    odds = auc / (1 - auc) * np.exp([-half, half])
    np.testing.assert_allclose([low, high], odds / (1 + odds), rtol=1e-9)
    whole = statistics.mean_auc_interval(label, seeds, patient)
    assert whole.high - whole.low > one.high - one.low


def test_fewer_than_three_seeds_are_held_fixed():
    """Their interval is over patients, by the variance of their mean AUC, and says so; three say what is fixed then."""
    label, scores, patient = cohort(6, 17, 38, 2)
    seeds = scores + np.array([[0.0], [2.0]]) * label
    auc, low, high = found = statistics.mean_auc_interval(label, seeds, patient, method="logit")
    half = 1.959964 * np.sqrt(delong.covariance(label, seeds, patient)[1].mean()) / (auc * (1 - auc))
    odds = auc / (1 - auc) * np.exp([-half, half])
    np.testing.assert_allclose([low, high], odds / (1 + odds), rtol=1e-6)
    assert statistics.over(found, 2) == "patients within class (Newcombe); these trained models, this split"
    assert "these trained models" not in statistics.over(found, 3)


def test_seeds_that_contradict_each_other_are_no_certainty():
    """AUC 0.5 with both seeds, placements opposite: neither seeds nor shared patients vary, patients still do."""
    label, patient, seeds = [0, 0, 1, 1], list("abcd"), [[2, 3, 1, 4], [2, 3, 4, 1]]
    aucs, both = delong.covariance(label, seeds)
    assert aucs.tolist() == [0.5, 0.5]
    assert both[0, 1] < 0
    for method in statistics.METHODS:
        found = statistics.mean_auc_interval(label, seeds, patient, method=method)
        assert found.low < 0.3
        assert found.high > 0.7


def test_folds_are_averaged_and_a_shift_between_them_changes_nothing():
    label, scores, patient = cohort(3, 6, 8, 2)
    fold = patient % 2
    found = statistics.mean_auc_interval(label, scores, patient, fold=fold)
    each = [statistics.auc(label[fold == k], scores[0][fold == k]) for k in (0, 1)]
    assert found.auc == pytest.approx(np.mean(each), abs=1e-14)
    assert found.low < found.auc < found.high
    assert statistics.mean_auc_interval(label, scores + 9 * fold, patient, fold=fold) == pytest.approx(found)
    for method in statistics.METHODS:
        with pytest.raises(ValueError, match="and fold, where folds"):
            statistics.mean_auc_interval(label, scores, patient, fold=patient % 13 == 0, method=method)


@pytest.mark.parametrize("method", ["newcombe", "logit"])
def test_interval_needs_no_draw_and_ignores_order_and_names(method):
    label, scores, patient = cohort(6)
    first = statistics.auc_interval(label, scores[0], patient, method=method)
    order, names = np.random.default_rng(0).permutation(len(label)), np.array([f"p{who:03d}" for who in patient])
    again = statistics.auc_interval(label[order], scores[0][order], names[order], method=method)
    assert again == pytest.approx(first, abs=1e-12)


def test_interval_over_patients_is_wider_than_one_over_images():
    label, scores, patient = cohort(7)
    _, low, high = statistics.auc_interval(label, scores[0], patient)
    _, low_images, high_images = statistics.auc_interval(label, scores[0], np.arange(len(label)))
    assert high - low > 2 * (high_images - low_images)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    # 20 + 20 patients; patient effect SD 1, class distance 1: the AUC between new patients is known.
    truth, held = scipy_stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.1**2))), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(40), 3)
        label = (patient >= 20).astype(int)
        score = label + rng.normal(size=40)[patient] + 0.1 * rng.normal(size=120)
        _, low, high = statistics.auc_interval(label, score, patient)
        held += low <= truth <= high
    assert 0.91 <= held / 300 <= 0.985


def test_fast_enough_for_the_papers_25_seeds():
    label, new, patient = cohort(9, n_seeds=25)
    start = time.process_time()
    statistics.mean_auc_interval(label, new, patient)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: statistics.auc_interval(LABEL, SCORE, PATIENT[:-1]), "one entry per image"),
        (lambda: statistics.auc_interval(LABEL, np.where(SCORE > 6, np.nan, SCORE), PATIENT), "found 1 that are not"),
        (lambda: statistics.auc_interval(LABEL, SCORE, list("aabbccda")), "patient a: expected one label"),
        (lambda: statistics.auc_interval(LABEL, SCORE, list("aaaaccdd")), "found 1 of class 0 and 2 of class 1"),
        (lambda: statistics.auc_interval(LABEL, SCORE, PATIENT, method="normal"), "newcombe, logit, found"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
