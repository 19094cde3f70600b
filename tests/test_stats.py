"""AUC intervals, tests over seeds and the tables of a sweep: by eye, at the edges, against slow or other code."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from nafld_utils import stats, sweep_tables

# Two healthy (a, b) and two fatty patients (c, d), two images each.
LABEL = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PATIENT = np.array(list("aabbccdd"))
SCORE = np.array([1, 2, 3, 4, 2.5, 5, 6, 7])


def cohort(seed, n_neg=17, n_pos=38, frames=10, effect=1.0, n_seeds=1):
    """Scores (n_seeds, n) with a patient effect, an image effect and one of the seed."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_neg + n_pos), frames)
    label = (patient >= n_neg).astype(int)
    common = effect * label + 0.8 * rng.normal(size=n_neg + n_pos)[patient] + 0.3 * rng.normal(size=len(patient))
    return label, common + 0.2 * rng.normal(size=(n_seeds, len(patient))), patient


def sweep_table(arms, n_seeds=3, frames=4):
    """A store's table; `arms` maps (arm, rate) to a shift of the fatty images' scores."""
    rows = []
    for i, ((arm, rate), shift) in enumerate(arms.items()):
        label, scores, patient = cohort(5, 8, 12, frames, n_seeds=n_seeds)
        noise = 0.05 * np.random.default_rng(100 + i).normal(size=scores.shape)
        for seed, row in enumerate(scores + noise + shift * label):
            facts = {"arm": arm, "rate": rate, "seed": seed, "fold": patient % 2, "patient_id": patient}
            names = [f"p{p:03d}_f{k % frames:02d}" for k, p in enumerate(patient)]
            rows.append(pd.DataFrame({**facts, "image_id": names, "label": label, "score": row}))
    return pd.concat(rows, ignore_index=True)


# ---------------------------------------------------------------- AUC


def test_auc_counts_pairs_in_the_right_order():
    # 16 pairs; 2.5 stands above 1 and 2, below 3 and 4; the rest stand above all.
    assert stats.auc(LABEL, SCORE) == (2 + 3 * 4) / 16
    assert stats.auc([0, 1], [1, 2]) == 1.0
    assert stats.auc([0, 1], [2, 1]) == 0.0
    assert stats.auc([0, 1, 0, 1], [3, 3, 3, 3]) == 0.5


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auc_equals_scikit_learn_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    label = rng.integers(0, 2, 300)
    score = np.round(rng.normal(size=300) + label, decimals)
    assert stats.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-14)


def test_auc_of_pair_wins_equals_auc_of_images_with_unequal_numbers_of_frames():
    rng = np.random.default_rng(3)
    patient = np.sort(rng.integers(0, 12, 200))
    label = (patient > 4).astype(int)
    score = np.round(rng.normal(size=200) + label, 1)
    order = rng.permutation(200)
    interval = stats.auc_interval(label[order], score[order], patient[order], n_resamples=10)
    assert interval.auc == pytest.approx(roc_auc_score(label, score), abs=1e-14)


# ---------------------------------------------------------------- intervals over patients


def test_interval_by_eye():
    # Each class has two patients, so a resample is one of 9: the AUC is 1 without c or without b, lowest (c, c against
    # b, b) at 0.5. P(c twice and b twice) = 1/16 > 2.5 %, hence the lower bound is that worst case.
    low_case = roc_auc_score([0, 0, 1, 1], [3, 4, 2.5, 5])
    auc, low, high = stats.auc_interval(LABEL, SCORE, PATIENT)
    assert (auc, low, high) == (0.875, low_case, 1.0)


def test_interval_equals_a_slow_bootstrap_that_rebuilds_every_resample():
    label, scores, patient = cohort(1, 5, 7, 3)
    label, patient = label[1:], patient[1:]  # the first patient has two images, not three
    score = np.round(scores[0, 1:], 1)
    rng = np.random.default_rng(11)
    positives, negatives = np.arange(5, 12), np.arange(5)
    pos = rng.multinomial(7, np.full(7, 1 / 7), size=200)
    neg = rng.multinomial(5, np.full(5, 1 / 5), size=200)
    slow = []
    for p, n in zip(pos, neg, strict=True):
        drawn = np.concatenate([np.repeat(positives, p), np.repeat(negatives, n)])
        rows = np.concatenate([np.flatnonzero(patient == who) for who in drawn])
        slow.append(roc_auc_score(label[rows], score[rows]))
    interval = stats.auc_interval(label, score, patient, n_resamples=200, seed=11)
    np.testing.assert_allclose(interval[1:], np.quantile(slow, [0.025, 0.975]), atol=1e-13)


def test_crossed_difference_equals_a_slow_bootstrap():
    label, new, patient = cohort(2, 4, 6, 2, n_seeds=3)
    base = new - 0.3 * label + 0.1 * np.random.default_rng(0).normal(size=new.shape)
    rng = np.random.default_rng(4)
    pos, neg, seeds = (rng.multinomial(n, np.full(n, 1 / n), size=100) for n in (6, 4, 3))
    slow = []
    for p, n, s in zip(pos, neg, seeds, strict=True):
        drawn = np.concatenate([np.repeat(np.arange(4, 10), p), np.repeat(np.arange(4), n)])
        rows = np.concatenate([np.flatnonzero(patient == who) for who in drawn])
        gain = [
            roc_auc_score(label[rows], a[rows]) - roc_auc_score(label[rows], b[rows])
            for a, b in zip(new, base, strict=True)
        ]
        slow.append(np.average(gain, weights=s))
    interval, error = stats.difference_interval(label, new, base, patient, n_resamples=100, seed=4)
    np.testing.assert_allclose(interval[1:], np.quantile(slow, [0.025, 0.975]), atol=1e-13)
    assert error == pytest.approx(np.std(slow, ddof=1), abs=1e-13)


def test_interval_is_repeatable_and_ignores_the_order_of_rows_and_the_names_of_patients():
    label, scores, patient = cohort(6)
    first = stats.auc_interval(label, scores[0], patient, seed=3)
    order = np.random.default_rng(0).permutation(len(label))
    names = np.array([f"p{who:03d}" for who in patient])
    assert stats.auc_interval(label[order], scores[0][order], names[order], seed=3) == first
    assert stats.auc_interval(label, scores[0], patient, seed=4) != first


def test_interval_over_patients_is_wider_than_one_over_images():
    label, scores, patient = cohort(7)
    _, low, high = stats.auc_interval(label, scores[0], patient)
    _, low_images, high_images = stats.auc_interval(label, scores[0], np.arange(len(label)))
    assert high - low > 2 * (high_images - low_images)


def test_the_same_arm_twice_differs_by_nothing():
    label, scores, patient = cohort(8, n_seeds=3)
    interval, error = stats.difference_interval(label, scores, scores, patient)
    assert (*interval, error) == (0, 0, 0, 0)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 20 + 20 patients; patient effect SD 1, class distance 1: the AUC between new patients is known.
    truth = scipy_stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.1**2)))
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(40), 3)
        label = (patient >= 20).astype(int)
        score = label + rng.normal(size=40)[patient] + 0.1 * rng.normal(size=120)
        _, low, high = stats.auc_interval(label, score, patient, n_resamples=400, seed=seed)
        held += low <= truth <= high
    assert 0.89 <= held / 200 <= 0.985


def test_fast_enough_for_the_papers_25_seeds():
    label, new, patient = cohort(9, n_seeds=25)
    start = time.perf_counter()
    stats.auc_interval(label, new[0], patient)
    one = time.perf_counter() - start
    stats.difference_interval(label, new, new[::-1], patient)
    assert one < 1
    assert time.perf_counter() - start < 5


# ---------------------------------------------------------------- over seeds


def test_student_t_interval_equals_scipy():
    values = np.random.default_rng(0).normal(size=25)
    expected = scipy_stats.t.interval(0.95, 24, values.mean(), scipy_stats.sem(values))
    np.testing.assert_allclose(stats.student_t_interval(values)[1:], expected, rtol=0, atol=1e-12)
    assert stats.student_t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_paired_t_equals_scipy_and_the_papers_p():
    rng = np.random.default_rng(1)
    base = rng.normal(0.861, 0.01, 25)
    new = base + rng.normal(0.02, 0.01, 25)
    mine, other = stats.paired_t(new, base), scipy_stats.ttest_rel(new, base)
    assert mine[:3] == pytest.approx((other.statistic, other.pvalue, other.df), rel=1e-12)
    np.testing.assert_allclose([mine.low, mine.high], other.confidence_interval(), rtol=0, atol=1e-12)
    # The paper: t -12.39 over 25 seeds, p 6.43e-12. A sample with exactly that t:
    gain = np.arange(25.0) - 12
    gain += 12.39 * gain.std(ddof=1) / 5
    result = stats.paired_t(gain, np.zeros(25))
    assert result.t == pytest.approx(12.39)
    assert result.p == pytest.approx(6.43e-12, rel=0.01)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.student_t_interval([0.5]), "two or more"),
        (lambda: stats.student_t_interval([0.5, np.nan]), "finite"),
        (lambda: stats.paired_t([1, 2], [1, 2, 3]), "same seeds"),
        (lambda: stats.paired_t([0.8, 0.9], [0.7, 0.8]), "t is not defined"),
        (lambda: stats.auc([1, 1], [1, 2]), "both classes"),
        (lambda: stats.auc([0, 2], [1, 2]), "0 and 1"),
        (lambda: stats.auc([0, 1], [1, 2, 3]), "one row an image"),
        (lambda: stats.auc_interval(LABEL, SCORE, PATIENT[:-1]), "one entry an image"),
        (lambda: stats.auc_interval(LABEL, np.where(SCORE > 6, np.nan, SCORE), PATIENT), "found 1 that are not"),
        (lambda: stats.auc_interval(LABEL, SCORE, list("aabbccda")), "patient a: expected one label"),
        (lambda: stats.auc_interval(LABEL, SCORE, list("aaaaccdd")), "found 1 of class 0 and 2 of class 1"),
        (lambda: stats.auc_interval(LABEL, SCORE, PATIENT, n_resamples=0), "n_resamples"),
        (lambda: stats.difference_interval(LABEL, [SCORE], [SCORE, SCORE], PATIENT), "equal shapes"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- tables


def test_patient_level_is_the_mean_of_a_patients_images():
    table = pd.DataFrame({"image_id": list("12345678"), "patient_id": PATIENT, "label": LABEL, "score": SCORE})
    assert sweep_tables.patient_level(table)["score"].tolist() == [1.5, 3.5, 3.75, 6.5]
    assert sweep_tables.patient_level(table)["n_images"].tolist() == [2, 2, 2, 2]


def test_auc_by_seed_pools_folds_and_averages_over_them():
    table = sweep_table({("real", 0.0): 0.0}, n_seeds=2)
    out = sweep_tables.auc_by_seed(table)
    part = table[table["seed"] == 1]
    assert out.loc[1, "auc"] == pytest.approx(roc_auc_score(part["label"], part["score"]))
    folds = [roc_auc_score(f["label"], f["score"]) for _, f in part.groupby("fold")]
    assert out.loc[1, "fold_auc"] == pytest.approx(np.mean(folds))
    assert out.loc[1, "n_folds"] == 2


def test_compare_arms_puts_seeds_and_patients_side_by_side():
    table = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.4, ("class", 0.5): 0.0, ("class", 1.0): 0.2})
    out = sweep_tables.compare_arms(table, primary=("semantic", 1.5), n_resamples=300)
    row = out.iloc[0]
    assert (row.arm, row.rate, row.n_seeds, row.n_patients) == ("semantic", 1.5, 3, 20)
    assert 0 < row.low_patients < row.difference < row.high_patients
    assert row.high_patients - row.low_patients > row.high_seeds - row.low_seeds
    assert row.difference == pytest.approx(row.mean_auc - row.mean_auc_base)
    each = sweep_tables.auc_by_seed(table).set_index(["arm", "seed"])["auc"]
    expected = scipy_stats.ttest_rel(each["semantic"], each["real"])
    assert (row.t, row.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert "seeds" in row.over
    assert "patients" in row.over
    # the declared comparison keeps its p, the two exploratory ones are adjusted among themselves
    assert out["primary"].tolist() == [True, False, False]
    assert row.p_holm == row.p
    assert out["p_holm"].iloc[1:].min() == pytest.approx(2 * out["p"].iloc[1:].min())


def test_compare_arms_works_on_patients_and_keeps_backbones_apart():
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3})
    both = pd.concat([table.assign(backbone="a"), table.assign(backbone="b")])
    out = sweep_tables.compare_arms(both, "patient", n_resamples=100)
    assert out["backbone"].tolist() == ["a", "b"]
    one = sweep_tables.compare_arms(table, "patient", n_resamples=100).drop(columns="p_holm")
    pd.testing.assert_frame_equal(out.iloc[[1]][one.columns].reset_index(drop=True), one)
    assert out["p_holm"].to_numpy() == pytest.approx(2 * out["p"].to_numpy())
    declared = sweep_tables.compare_arms(both, "patient", primary=("b", "class", 1.0), n_resamples=100)
    assert declared["primary"].tolist() == [False, True]
    with pytest.raises(ValueError, match="found 2 among 2"):
        sweep_tables.compare_arms(both, "patient", primary=("class", 1.0), n_resamples=100)


def test_one_seed_says_why_there_is_no_test_over_seeds():
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3}, n_seeds=1)
    row = sweep_tables.compare_arms(table, n_resamples=100).iloc[0]
    assert np.isnan([row.t, row.p, row.low_seeds]).all()
    assert row.note == "one seed: no test over seeds"
    assert sweep_tables.arm_intervals(table, n_resamples=100)["over"].eq(sweep_tables.OVER_PATIENTS).all()


def test_arm_intervals_agree_with_auc_interval_for_one_seed():
    table = sweep_table({("real", 0.0): 0.0}, n_seeds=1)
    row = sweep_tables.arm_intervals(table, n_resamples=200, seed=2).iloc[0]
    expected = stats.auc_interval(table["label"], table["score"], table["patient_id"], 200, 2)
    assert (row.mean_auc, row.low, row.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t[~((t["arm"] == "class") & (t["seed"] == 2))], r"seeds \[.*\] against"),
        (lambda t: t.drop(index=t.index[-1]), "1 missing"),
        (lambda t: pd.concat([t, t.iloc[[0]]]), "once with seed 0"),
        (lambda t: t[t["arm"] == "class"], "expected arm 'real' at one rate"),
        (lambda t: t[t["arm"] == "real"], "expected an arm beside 'real'"),
        (lambda t: t.drop(columns="seed"), "found no seed"),
        (lambda t: t.assign(score=np.nan), "missing or not a number"),
    ],
)
def test_no_table_averages_over_what_is_missing(spoil, says):
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3})
    with pytest.raises(ValueError, match=says):
        sweep_tables.compare_arms(spoil(table), n_resamples=100)


def test_shuffled_labels_have_no_auc():
    aucs = []
    for seed in range(200):
        label, scores, _ = cohort(seed, effect=0.0, frames=2)
        aucs.append(stats.auc(label, scores[0]))
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.03)
