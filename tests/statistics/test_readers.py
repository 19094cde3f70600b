"""The gain over patients and seeds: another program's numbers, a published analysis, the formula written out."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from toy_scores import cohort

from nafld_utils import statistics
from nafld_utils.statistics import delong, readers

# Four seeds without, then four seeds with other images; 7 patients of class 0, then 9 of class 1, one image each.
SCORES = """
50 37 67 36 76 81 44 60 87 102 54 80 57 74 58 56
47 28 60 45 67 91 44 66 84 101 30 88 56 60 69 66
40 43 49 32 80 70 41 74 94 110 42 91 61 55 79 68
54 23 63 35 65 78 38 67 92 88 38 88 44 52 89 72
40 13 50 39 77 70 61 76 93 107 52 72 73 76 100 106
30 37 50 22 78 75 67 76 87 114 56 92 71 53 100 76
47 21 62 27 81 61 54 77 86 94 59 77 79 61 109 92
68 52 62 44 95 45 51 76 93 103 50 65 68 38 91 103
"""


def covariance(label, scores, patient):
    aucs, parts = delong.placements(label, scores, patient)
    return aucs, sum(part @ part.T for part in parts)


def test_gain_equals_obuchowski_and_rockette_in_r():
    """R 4.2.2, pROC 1.18.0: `var` and `cov` of the eight curves, put into the published formulas of two tests.

    With r = 4: den = MS(TR) + r max(Cov2 - Cov3, 0), error sqrt(2 den / r), Hillis's ddf = den^2 (r - 1) / MS(TR)^2.
    By class, the variance of the patients' placements, averaged over seeds and the difference taken, over their number
    gives the patients' degrees of freedom 9.474 (Welch). Both together, the patients' part times `qchisq(0.5, 3) / 3`,
    are 11.697; then `pt` and `qt`.
    """
    scores = np.array(SCORES.split(), dtype=float).reshape(8, 16)
    label, patient = np.repeat([0, 1], [7, 9]), np.arange(16)
    found = statistics.gain(label, scores[4:], scores[:4], patient)
    expected = (0.0753968254, 0.0960567038, 11.6973824, 0.4481062224, -0.1344948441, 0.2852884949)
    assert found[:6] == pytest.approx(expected, rel=1e-9)
    hillis = readers.degrees(found.error**2 - found.spread.patients, found.spread.patients, 4)
    assert hillis == pytest.approx(33.63241391, rel=1e-9)
    one = statistics.gain(label, scores[4], scores[0], patient)  # roc.test(paired=TRUE, method="delong")
    assert one.difference / one.error == pytest.approx(1.328260906, rel=1e-9)
    assert (one.error, one.df) == pytest.approx((0.1314524682, 9.348556273), rel=1e-9)
    ms, variance, cov1, cov2, cov3 = 0.005511463845, 0.01517620937, 0.009223172294, 0.01138729669, 0.008151717477
    shared, own = 2 * (cov2 - cov3), 2 * (variance - cov1)
    assert found.spread.patients == pytest.approx(shared, rel=1e-8)
    assert found.spread.both == pytest.approx(own - shared, rel=1e-8)
    assert found.spread.seeds == pytest.approx(2 * ms - (own - shared), rel=1e-8)
    aucs, both = covariance(label, scores, patient)
    assert aucs[:2] == pytest.approx([0.71428571, 0.70634921], rel=1e-7)
    assert both[0, :3] == pytest.approx([0.022696733, 0.018088099, 0.014046359], rel=1e-7)


def test_published_analysis_of_two_tests_and_five_readers():
    """Van Dyke's 114 cases, as analysed in Chakraborty's RJafroc book and by Iowa's OR-DBM MRMC 2.51.

    MS(TR), Cov2 and Cov3 in; printed are ddf 15.26, error 0.0207, t -2.11, p 0.05167, [-0.0879595, 0.0003589].
    """
    seeds, patients = 2 / 5 * 5.5103062e-4, 2 * (3.4407483e-4 - 2.3902837e-4)
    df = readers.degrees(seeds, patients, 5)
    found = readers.tested(-0.043800322, seeds + patients, df, readers.Spread(0, patients, 0, np.inf), 0.95, 0.0)
    assert found.df == pytest.approx(15.26, abs=0.005)
    assert found.error == pytest.approx(0.0207, abs=5e-5)
    assert found.difference / found.error == pytest.approx(-2.11, abs=0.005)
    assert found.p == pytest.approx(0.05167, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((-0.0879595, 0.0003589), abs=5e-8)
    # with the readers' part alone its degrees of freedom are those of the paired t test over readers
    assert readers.degrees(seeds, 0.0, 5) == 4


def test_images_of_a_patient_are_summed_as_obuchowski_wrote_it():
    """Her variance for clustered images, pair by pair, with unequal numbers of images."""
    label, scores, patient = cohort(3, 5, 7, 3, n_seeds=2)
    label, scores, patient = label[2:], np.round(scores[:, 2:], 1), patient[2:]
    aucs, both = covariance(label, scores, patient)
    expected = np.zeros((2, 2))
    for side, other in ((1, 0), (0, 1)):
        who, n_images = np.unique(patient[label == side]), (label == side).sum()
        sums = np.zeros((2, len(who)))
        for k, row in enumerate(scores):
            for i, one in enumerate(who):
                for mine in row[patient == one]:
                    against = row[label == other]
                    won = np.mean((mine > against) + 0.5 * (mine == against))
                    sums[k, i] += (won if side else 1 - won) - aucs[k]
        expected += len(who) / (len(who) - 1) * sums @ sums.T / n_images**2
    np.testing.assert_allclose(both, expected, atol=1e-15)
    whole = covariance(label, scores, np.arange(len(label)))
    np.testing.assert_allclose(whole[1], delong.covariance(label, scores)[1], atol=1e-15)


def test_fewer_than_three_seeds_give_an_interval_given_these_trainings():
    """Then seeds are averaged and held fixed; at one image per patient the error is that of DeLong's test."""
    label, new, patient = cohort(4, 17, 38, 1, n_seeds=2)
    base = new + 0.3 * np.random.default_rng(1).normal(size=new.shape) - 0.1 * label
    for n in (1, 2):
        found, expected = statistics.gain(label, new[:n], base[:n], patient), delong.compare(label, new[:n], base[:n])
        assert found.error == pytest.approx(expected.error)
        assert 16 < found.df < 53
        assert found.p > expected.p
        assert np.isnan(found.spread.seeds)


def test_seeds_that_repeat_each_other_leave_the_patients_alone():
    label, new, patient = cohort(4, 17, 38, 2)
    base = new + 0.3 * np.random.default_rng(1).normal(size=new.shape) - 0.1 * label
    one = statistics.gain(label, new, base, patient)
    found = statistics.gain(label, np.repeat(new, 3, 0), np.repeat(base, 3, 0), patient)
    assert found.error == pytest.approx(one.error)
    assert found.df == pytest.approx(one.df)
    assert found.spread.seeds == pytest.approx(0, abs=1e-15)


def test_no_spread_is_not_certainty():
    label, scores, patient = cohort(8, n_seeds=3)
    for new, base in ((scores, scores), (scores + 9 * label, scores + 8 * label)):  # alike; both without an error
        found = statistics.gain(label, new, base, patient)
        assert found.difference == 0
        assert np.isnan([found.error, found.df, found.p, found.low, found.high]).all()
        assert np.isnan(readers.smallest_gain(found.error, found.df))


def test_smallest_gain_is_found_with_80_percent_power():
    # R: uniroot(function(d) 1 - pt(qt(0.975, df), df, ncp = d) - 0.8, c(1, 9))
    for df, expected in ((2, 5.65349), (4, 3.76106), (np.inf, 1.959964 + 0.841621)):
        assert readers.smallest_gain(0.1, df) == pytest.approx(0.1 * expected, rel=1e-5)
    rng = np.random.default_rng(0)
    gains = rng.normal(0.1 * 3.76106, 0.1 * np.sqrt(5), (20000, 5))
    t = np.sqrt(5) * gains.mean(axis=1) / gains.std(axis=1, ddof=1)
    assert (t > 2.776445).mean() == pytest.approx(0.8, abs=0.012)


SPREAD = readers.Spread(seeds=0.0012, patients=0.0003, both=0.0009, df=30)


def test_power_equals_r_and_simulated_t_tests():
    # a gain is shown in the upper tail alone: R, 1 - pt(qt(.975, df), df, ncp = 2.5), is scipy's nct.sf
    df = np.array([4, 30])
    expected = scipy_stats.nct.sf(scipy_stats.t.ppf(0.975, df), df, 2.5)
    assert statistics.power(2.5, 1.0, df) == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx([0.4772611, 0.6770315], abs=1e-4)
    assert statistics.power(0.0, 1.0, 12.0) == pytest.approx(0.025)
    assert statistics.power(0.9, 0.01, 75.0) == pytest.approx(1)
    for df in (2, 7.5, np.inf):
        assert statistics.power(readers.smallest_gain(0.02, df), 0.02, df) == pytest.approx(0.8, abs=1e-4)


def test_more_patients_shrink_their_part_and_leave_that_of_the_seeds():
    error, df = statistics.planned(SPREAD, 5, np.array([1.0, 4.0, 1e9]))
    # by hand: (0.0012 + 0.0009 / times) / 5 + 0.0003 / times
    assert error**2 == pytest.approx([0.00072, 0.00036, 0.00024])
    assert df == pytest.approx(
        [0.00072**2 / (0.00042**2 / 4 + 0.0003**2 / 30), 0.00036**2 / (0.000285**2 / 4 + 0.000075**2 / 120), 4]
    )
    few, its = statistics.planned(SPREAD._replace(seeds=np.nan), 2, 2.0)
    assert (few**2, its) == pytest.approx((0.00015 + 0.00045 / 2, 60)), "over patients alone"


def test_patients_needed_are_the_fewest_with_the_power_asked_for():
    needed = statistics.patients_needed(SPREAD, 25, 55, 0.04)
    assert needed > 55
    for patients, enough in ((needed, True), (needed - 1, False)):
        found = statistics.power(0.04, *statistics.planned(SPREAD, 25, patients / 55))
        assert (found >= 0.8 - 1e-6) == enough
    assert statistics.patients_needed(SPREAD, 5, 55, 0.03) == np.inf, "0.049 between so few seeds hides it"
    assert statistics.patients_needed(SPREAD, 25, 55, 0.3) == 55, "never fewer than those it is known from"


def test_plans_are_made_with_upper_limits():
    # R: df / qchisq(0.2, df) for 4 and 30
    found = statistics.cautious(SPREAD, 5)
    assert found.patients == pytest.approx(0.0003 * 1.28402, rel=1e-5)
    assert found.seeds + found.both == pytest.approx(0.0021 * 2.426041, rel=1e-5)
    assert found.both == pytest.approx(0.0009 * 1.28402, rel=1e-5)
    two = statistics.cautious(SPREAD._replace(seeds=np.nan), 2)
    assert two.both == pytest.approx(0.0009 * 1.28402, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: statistics.gain([0, 1, 0, 1], [[1, 2, 3, 4]], [[1, 2, 3, 4]] * 2, list("abcd")), "equal shapes"),
        (lambda: statistics.gain([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3, 4], list("abcb")), "two or more patients"),
        (lambda: statistics.gain([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3, 4], list("aabb")), "patient a: expected one"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_constant_scores_cannot_be_compared_and_few_patients_show_nothing():
    """As `compare`: none over an arm without order, p at least 2 of 6 orders of four patients, bounds agree."""
    label, new, patient = cohort(4, 17, 38, 1, n_seeds=25)
    for arms in ((new, np.full_like(new, 0.5)), (np.zeros_like(new), new)):
        found = statistics.gain(label, *arms, patient)
        assert np.isnan([found.error, found.p, found.low, found.high]).all()
        assert np.isnan(statistics.smallest_effect(found, 25))
    rng, four, floored = np.random.default_rng(0), np.array([0, 0, 1, 1]), 0
    for _ in range(200):
        found = statistics.gain(four, four + 0.3 * rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), np.arange(4))
        if np.isfinite(found.p):
            assert found.p >= 1 / 3
            assert -1 <= found.low <= 0 <= found.high <= 1
            floored += found.p == pytest.approx(1 / 3)
    assert floored > 0


def test_the_effect_that_studies_find_is_planned_cautiously():
    """By hand: 3 seeds have the upper limit 2 / chi2(0.2, 2) = 4.4814 of what varies between them."""
    found = readers.Gain(0.0, 0.02, 4.0, 1.0, -0.1, 0.1, readers.Spread(0.0012, 0.0003, 0.0, np.inf))
    error = np.sqrt(0.0012 * 4.481420 / 3 + 0.0003)
    df = error**4 / ((0.0012 * 4.481420 / 3) ** 2 / 2)
    assert statistics.smallest_effect(found, 3) == pytest.approx(readers.smallest_gain(error, df), rel=1e-5)
    assert statistics.smallest_effect(found, 3) > readers.smallest_gain(found.error, found.df)


def test_seeds_that_agree_by_chance_plan_with_what_patients_tell():
    """As in the demo: three gains vary by 0.0001, where patients make 0.0021; R: 19 / qchisq(0.2, 19) is 1.385251."""
    spread = readers.Spread(seeds=-0.002, patients=0.0, both=0.0021, df=19)
    plan = statistics.cautious(spread, 3)
    assert plan == pytest.approx((0.0, 0.0, 0.0021 * 1.385251, 19), rel=1e-5)
    error = np.sqrt(0.0001 / 3)
    half = scipy_stats.t.ppf(0.975, 2) * error
    found = readers.Gain(0.0, error, 2.0, 1.0, -half, half, spread)
    smallest = statistics.smallest_effect(found, 3)
    assert smallest == pytest.approx(5.65349 * np.sqrt(0.0021 * 1.385251 / 3), rel=1e-5)
    assert statistics.is_narrow(smallest, -half, half)
    # of a study whose seeds vary as its patients let expect
    error = np.sqrt(0.0021 / 3)
    half = scipy_stats.t.ppf(0.975, 2) * error
    found = readers.Gain(0.0, error, 2.0, 1.0, -half, half, spread._replace(seeds=0.0))
    smallest = statistics.smallest_effect(found, 3)
    assert smallest / half == pytest.approx(np.sqrt(4.481420) * 5.65349 / 4.302653, rel=1e-5)
    assert not statistics.is_narrow(smallest, -half, half)
    # many more patients cannot undo what few seeds leave open, and do where the seeds' limit is below theirs
    assert statistics.patients_needed(plan, 3, 40, 0.1) < np.inf


def test_patients_too_few_for_any_p_of_five_per_cent_show_no_gain():
    """Of 3 and 3 patients classes can be given in 20 ways, of 3 and 4 in 35, of 4 and 4 in 70."""
    assert [statistics.fewest_patients(*sizes) for sizes in ((3, 6), (4, 7), (4, 8), (6, 8))] == [8, 8, 8, 10]
    rng, label = np.random.default_rng(3), np.repeat([0, 1], 3)
    found = statistics.gain(label, label + rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), np.arange(6))
    assert found.least == pytest.approx(2 / 20)
    assert np.isfinite(found.error)
    assert statistics.smallest_effect(found, 3) == np.inf
    assert not statistics.is_narrow(np.inf, found.low, found.high)
