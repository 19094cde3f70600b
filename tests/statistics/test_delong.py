"""DeLong's variance: published examples, the formula written out, and what it takes for granted."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from toy_scores import cohort

from nafld_utils import statistics
from nafld_utils.statistics import delong

# DeLong, DeLong and Clarke-Pearson 1988, the 43 complete records as printed in the SAS/STAT User's Guide, PROC
# LOGISTIC, "Comparing Receiver Operating Characteristic Curves": albumin, protein, K-G score (low is good), outcome.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def ovarian():
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 3].astype(int), np.stack([table[:, 0], -table[:, 2], table[:, 1]])


def test_published_example_of_three_correlated_scores():
    """The guide prints AUC (standard error) albumin 0.7366 (0.0927), K-G 0.7258 (0.1028), protein 0.6478 (0.1000)."""
    label, scores = ovarian()
    assert len(label) == 43
    aucs, both = delong.covariance(label, scores)
    np.testing.assert_allclose(aucs, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(both)), [0.0927, 0.1028, 0.1000], atol=5e-5)
    # printed contrasts with K-G: 0.0108 (0.0953), p 0.9102; -0.0780 (0.1046), p 0.4561; both at once chi2 2.5340
    for row, expected in ((0, (0.0108, 0.0953, 0.9102)), (2, (-0.0780, 0.1046, 0.4561))):
        found = statistics.compare(label, scores[row], scores[1])
        np.testing.assert_allclose((found.difference, found.error, found.p), expected, atol=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    gain = contrast @ aucs
    assert gain @ np.linalg.inv(contrast @ both @ contrast.T) @ gain == pytest.approx(2.5340, abs=5e-5)


def test_published_example_of_109_rated_images():
    """Hanley and McNeil 1982, five ratings; Stata's roctab prints 0.8932, DeLong error 0.0307, 0.83295 to 0.95339."""
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    label = np.repeat([0, 1], [sum(normal), sum(abnormal)])
    score = np.concatenate([np.repeat(np.arange(5), normal), np.repeat(np.arange(5), abnormal)])
    (auc,), variance = delong.covariance(label, score)
    error = float(np.sqrt(variance[0, 0]))
    assert auc == pytest.approx(0.8932, abs=5e-5)
    assert error == pytest.approx(0.0307, abs=5e-5)
    assert (auc - 1.959964 * error, auc + 1.959964 * error) == pytest.approx((0.83295, 0.95339), abs=5e-6)


def test_thirteen_patients_equal_proc_of_r():
    """R: roc(l, s, levels = c(0, 1), direction = "<"), var(r), cov(r, q), roc.test(r, q, method = "delong")$p.value.

    By pROC 1.18.0.
    """
    label = np.repeat([0, 1], [6, 7])
    first = [0.1, 0.35, 0.2, 0.6, 0.45, 0.3, 0.4, 0.8, 0.55, 0.9, 0.7, 0.25, 0.65]
    second = [0.2, 0.3, 0.25, 0.4, 0.7, 0.1, 0.5, 0.6, 0.45, 0.8, 0.3, 0.35, 0.9]
    aucs, both = delong.covariance(label, [first, second])
    assert aucs[0] == pytest.approx(0.8333333333)
    np.testing.assert_allclose([both[0, 0], both[0, 1]], [0.01390778534, 0.007586923658], rtol=1e-9)
    assert statistics.compare(label, first, second).p == pytest.approx(0.924313695, abs=1e-9)


def test_midranks_equal_the_formula_over_all_pairs():
    label, scores, _ = cohort(3, 9, 14, 1, n_seeds=4)
    scores = np.round(scores, 1)
    above, below = [], []
    for row in scores:
        pos, neg = row[label == 1], row[label == 0]
        wins = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
        above.append(wins.mean(axis=1))
        below.append(wins.mean(axis=0))
    aucs, both = delong.covariance(label, scores)
    np.testing.assert_allclose(aucs, [statistics.auc(label, row) for row in scores], atol=1e-14)
    np.testing.assert_allclose(both, np.cov(above) / 14 + np.cov(below) / 9, atol=1e-15)


def test_mean_over_seeds_agrees_with_the_bootstrap_over_patients():
    """One seed several times is that seed, neither mean nor error changes, and both agree with the bootstrap."""
    label, new, _ = cohort(4, 17, 38, 1)
    base = new + 0.3 * np.random.default_rng(1).normal(size=new.shape) - 0.1 * label
    found = statistics.compare(label, new, base)
    boot = scipy_stats.bootstrap(
        (np.flatnonzero(label == 1), np.flatnonzero(label == 0)),
        lambda pos, neg: np.subtract(
            *[statistics.auc(label[rows], one[0][rows]) for rows in [np.r_[pos, neg]] for one in (new, base)]
        ),
        n_resamples=1000,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    assert found.error == pytest.approx(boot.standard_error, rel=0.15)
    assert statistics.compare(label, np.repeat(new, 3, 0), np.repeat(base, 3, 0)) == pytest.approx(found)
    # two seeds that err independently have a mean that errs less
    other = new[:, np.random.default_rng(2).permutation(55)]
    single, both = (delong.covariance(label, rows)[1].mean() for rows in (new, np.concatenate([new, other])))
    assert both < single


def test_no_spread_is_not_certainty():
    """Arms that both separate four patients, or order them in reverse: p by permuting classes, 2 of 6 at the least."""
    label, up, down, flat = [0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 1]
    found = statistics.compare(label, up, down)
    assert (found.difference, found.error) == (1, 0)
    assert found.p == pytest.approx(1 / 3)
    # each arm's bound of 0.3856 lies 0.6144 away: together sqrt(2) times that, above 0, where p is not below 0.05
    assert (found.low, found.high) == (0.0, 1.0)
    # at 50 % the bounds that R's equation gives lie 0.2123 away, and 1 of 3 is a finding
    near = delong.score_bounds(1.0, [(2, 2)], scipy_stats.norm.ppf(0.75))[0]
    half = statistics.compare(label, up, down, level=0.5)
    assert (half.low, half.high) == pytest.approx((1 - np.sqrt(2) * (1 - near), 1.0), abs=1e-9)
    same = statistics.compare(label, up, [5, 6, 8, 9])
    assert (same.difference, same.p) == (0, 1)
    assert (same.low, same.high) == pytest.approx((-0.6143642955, 0.6143642955))
    for arms in ((up, flat), (flat, up), (flat, flat)):
        assert np.isnan(statistics.compare(label, *arms)[1:]).all(), "constant scores cannot be said"
    # a z beyond what so few patients can show: no permutation of them gives less than 1/3
    assert statistics.compare(label, [[1, 2, 3, 4]] * 9 + [[1, 3, 2, 4]], [[4, 3, 2, 1]]).p >= 1 / 3


def test_the_interval_of_few_patients_says_what_their_p_says():
    """No permutation of 2 + 2 gives less than 1/3, so no interval may exclude 0; and no bound leaves [-1, 1]."""
    rng, label = np.random.default_rng(0), np.array([0, 0, 1, 1])
    floored = 0
    for _ in range(200):
        found = statistics.compare(label, label + 0.5 * rng.normal(size=4), rng.normal(size=4))
        if np.isfinite(found.p):
            assert found.p >= 1 / 3
            assert -1 <= found.low <= 0 <= found.high <= 1
            floored += found.p == pytest.approx(1 / 3) and found.error > 0
    assert floored > 0
    assert delong.least_p(np.repeat([0, 1], 6), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]) == pytest.approx(2 / 20)


def test_permutation_p_counts_all_orders_of_few_patients():
    label = np.array([False, False, True, True, True])
    # sums of three of 1..5 as far from 9 as 12 or farther: {3,4,5} and {1,2,3}, of ten
    assert delong.permutation_p(label, np.arange(1.0, 6)) == pytest.approx(2 / 10)
    assert delong.permutation_p(label, np.ones(5)) == 1
    many = np.arange(60) % 2 == 0
    assert delong.permutation_p(many, many + 0.01 * np.arange(60)) == pytest.approx(2 / 10_000)


def test_equal_scores_differ_by_nothing():
    label, scores, _ = cohort(5, 6, 8, 1, n_seeds=3)
    found = statistics.compare(label, scores, scores)
    assert (found.difference, found.error, found.p) == pytest.approx((0, 0, 1), abs=1e-12)
    assert found.low < 0 < found.high


def test_frames_as_rows_would_be_too_narrow():
    """Why the unit is the patient: ten frames of a patient as ten rows."""
    label, scores, patient = cohort(6, 17, 38, 10)
    by_row, by_patient = delong.covariance(label, scores[0])[1], delong.covariance(label, scores[0], patient)[1]
    assert by_patient[0, 0] > 4 * by_row[0, 0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: delong.covariance([0, 1, 1], [1, 2, 3]), "found 1 of class 0 and 2 of class 1"),
        (lambda: delong.covariance([1, 1], [1, 2]), "both classes"),
        (lambda: delong.covariance([0, 0, 1, 1], [1, 2, np.nan, 3]), "found 1 that are not"),
        (lambda: statistics.compare([0, 0, 1, 1], [1, 2, 3], [1, 2, 3]), "one row per image"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
