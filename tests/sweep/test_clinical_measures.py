"""Calibration, sensitivity at a fixed specificity, correlation with fat: by eye and against other code."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import brier_score_loss, roc_curve

from nafld_utils import statistics
from nafld_utils.sweep import clinical_measures

LABEL = np.repeat([0, 1], [17, 38])


def scores(n_seeds=1, seed=0):
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-(1.5 * LABEL - 0.5 + rng.normal(size=55) + 0.2 * rng.normal(size=(n_seeds, 55)))))


def test_brier_equals_scikit_learn_and_is_averaged_over_seeds():
    found = clinical_measures.brier(LABEL, scores(3), n_resamples=200)
    assert found.estimate == pytest.approx(np.mean([brier_score_loss(LABEL, row) for row in scores(3)]))
    assert found.low < found.estimate < found.high


def test_a_measure_that_no_resample_moves_has_no_interval_and_says_so():
    perfect = clinical_measures.brier(LABEL, LABEL.astype(float), 50)
    assert perfect.estimate == 0
    assert np.isnan([perfect.low, perfect.high, perfect.error]).all()
    # all patients of class 1 found: the exact bound of their number, 0.025 ** (1 / n)
    n = int(LABEL.sum())
    found = clinical_measures.sensitivity_at(LABEL, LABEL.astype(float), n_resamples=50)
    assert (found.estimate, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / n))
    assert found.over == f"patients of class 1 (exact binomial); {statistics.GIVEN}"
    none = clinical_measures.sensitivity_at(LABEL, np.full(len(LABEL), 0.5), n_resamples=50)
    assert none.estimate == 0
    assert np.isnan(none.low)
    facts = {"arm": "real", "rate": 0.0, "seed": 0, "label": LABEL, "patient_id": np.arange(len(LABEL))}
    table = pd.DataFrame({**facts, "score": 0.5}).assign(image_id=lambda part: part["patient_id"].astype(str))
    rows = clinical_measures.patient_measures(table, {}, 0.9, n_resamples=50)
    assert rows["over"].eq(statistics.NO_SPREAD).all()
    bands = clinical_measures.roc_bands(table, n_resamples=20)
    assert bands["low"].isna().all()
    assert bands["over"].eq(statistics.NO_SPREAD).all()
    share = LABEL.mean()
    assert clinical_measures.brier(LABEL, np.full(55, share), 50).estimate == pytest.approx(share * (1 - share))


@pytest.mark.parametrize("specificity", [0.5, 0.8, 0.9, 0.99])
def test_sensitivity_is_read_off_the_roc_curve(specificity):
    score = np.round(scores()[0], 1)  # with ties
    fpr, tpr, _ = roc_curve(LABEL, score, drop_intermediate=False)
    expected = tpr[1 - fpr >= specificity - 1e-9].max()
    assert clinical_measures.sensitivity_at(LABEL, score, specificity, 50).estimate == pytest.approx(expected)


def test_every_resample_sets_its_own_threshold():
    """By eye: two healthy at 0 and 4, fatty at 1 and 5, specificity 1; healthy drawn twice as 0 find both fatty."""
    found = clinical_measures.sensitivity_at([0, 0, 1, 1], [0.0, 4.0, 1.0, 5.0], 1.0, n_resamples=2000, seed=1)
    assert found.estimate == 0.5
    # healthy (0, 0): 1; otherwise the share of draws that are the one at 5
    shares = {value: (found.draws == value).mean() for value in (0.0, 0.5, 1.0)}
    assert shares[1.0] == pytest.approx(0.25 + 0.75 * 0.25, abs=0.04)
    assert shares[0.0] == pytest.approx(0.75 * 0.25, abs=0.04)


def test_correlation_with_fat_equals_scipy():
    fat = np.where(LABEL, np.random.default_rng(1).integers(5, 86, 55), 2.0)
    found = clinical_measures.fat_correlation(LABEL, fat, scores(2), n_resamples=200)
    assert found.estimate == pytest.approx(np.mean([scipy_stats.spearmanr(fat, row)[0] for row in scores(2)]))
    assert found.low < found.estimate < found.high
    assert clinical_measures.fat_correlation(LABEL, np.append(fat[:-1], np.nan), scores()) is None
    assert clinical_measures.fat_correlation(LABEL, np.ones(55), scores()) is None


def test_reliability_by_eye():
    label = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    table = clinical_measures.calibration_bins(label, [0.1, 0.1, 0.2, 0.2, 0.8, 0.8, 0.9, 0.9], n_bins=2)
    assert table["predicted"].tolist() == pytest.approx([0.15, 0.85])
    assert table["observed"].tolist() == [0.25, 0.75]
    assert table["n"].tolist() == [4, 4]
    # Wilson for 1 of 4, by hand: centre (1 + z2 / 2) / (4 + z2), z2 = 3.8415
    center = (1 + 3.8415 / 2) / (4 + 3.8415)
    assert (table["low"][0] + table["high"][0]) / 2 == pytest.approx(center, abs=1e-4)
    assert len(clinical_measures.calibration_bins(label, np.full(8, 0.5))) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clinical_measures.brier(LABEL, scores() * 3), "expected probabilities"),
        (lambda: clinical_measures.calibration_bins(LABEL, scores() - 1), "expected probabilities"),
        (lambda: clinical_measures.sensitivity_at([0, 1, 1], [0.1, 0.2, 0.3]), "two or more patients"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_an_exact_interval_of_sensitivity_is_called_exact_in_the_table():
    facts = {"arm": "real", "rate": 0.0, "seed": 0, "label": LABEL, "patient_id": np.arange(len(LABEL))}
    table = pd.DataFrame({**facts, "score": 0.1 + 0.8 * LABEL})
    table = table.assign(image_id=table["patient_id"].astype(str))
    rows = clinical_measures.patient_measures(table, {}, 0.9, n_resamples=50).set_index("measure")
    assert "exact binomial" in rows.loc["sensitivity at specificity 0.9", "over"]
