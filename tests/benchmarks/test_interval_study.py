"""The study of the intervals: its truth, its counts, and what the package says of its stored table."""

import interval_study
import numpy as np
import pandas as pd
import pytest
import studies
from scipy import stats as scipy_stats

from nafld_utils import artifacts, statistics, sweep

CELL = {"patients": "38+17", "correlation": 0.5, "auc": 0.8}


def test_scores_have_the_auc_and_the_correlation_of_their_cell():
    large = {**CELL, "patients": "6000+6000"}
    label, score, patient = interval_study.scores(large, np.random.default_rng(0))
    assert statistics.auc(label, score) == pytest.approx(0.8, abs=0.01)
    images = score[label == 0].reshape(-1, interval_study.FRAMES)
    assert np.corrcoef(images[:, 0], images[:, 1])[0, 1] == pytest.approx(0.5, abs=0.03)
    assert np.bincount(patient).tolist() == [interval_study.FRAMES] * 12_000
    label, _, patient = interval_study.scores(CELL, np.random.default_rng(0))
    assert len(np.unique(patient[label == 1])) == 38
    assert len(np.unique(patient[label == 0])) == 17


def test_bootstraps_are_those_of_patients_with_all_their_images():
    """Against scipy's plain loop over resamples of patients, and the AUC of their images by `statistics.auc`."""
    label, score, patient = interval_study.scores({**CELL, "patients": "8+7"}, np.random.default_rng(1))
    found = interval_study.intervals(label, score, patient, seed=3)
    for method in statistics.METHODS:
        assert found[method] == statistics.auc_interval(label, score, patient, method=method)[1:]

    def plain(pos, neg):
        who = [*pos.astype(int), *(neg.astype(int) + 8)]
        rows = np.concatenate([np.flatnonzero(patient == one) for one in who])
        return round(statistics.auc(label[rows], score[rows]), 12)

    for method, name in (("percentile", "percentile"), ("bca", "BCa")):
        slow = scipy_stats.bootstrap(
            (np.arange(8), np.arange(7)), plain, n_resamples=interval_study.N_RESAMPLES, vectorized=False, method=name,
            paired=False, rng=3,
        )  # fmt: skip
        assert found[method] == pytest.approx(tuple(slow.confidence_interval), abs=1e-9), method
    # without spread Newcombe's bounds stand
    bounds = interval_study.intervals(label, label.astype(float), patient, seed=3)
    assert len(set(bounds.values())) == 1
    assert bounds["bca"][0] < 1


def test_an_interval_holds_the_truth_or_lies_beside_it(monkeypatch):
    bounds = {"newcombe": (0.7, 0.9), "logit": (0.81, 0.9), "percentile": (0.5, 0.79), "bca": (0.8, 0.9)}
    monkeypatch.setattr(interval_study, "intervals", lambda *_: bounds)
    found = interval_study.once(CELL, np.random.default_rng(0))
    assert [found[f"{m} holds"] for m in bounds] == [True, False, False, True]
    assert [found[f"{m} above"] for m in bounds] == [False, True, False, False]
    assert [found[f"{m} below"] for m in bounds] == [False, False, True, False]
    assert found["newcombe width"] == pytest.approx(0.2)


def test_the_stored_table_is_whole_and_the_default_is_what_holds_most_evenly():
    table = pd.read_csv(interval_study.STUDY.stored)
    assert len(table) == len(interval_study.CELLS) * 4 * 4
    assert table["n"].eq(2000).all()
    shown = sweep.stored().set_index(["patients", "method"])
    least = shown["least"].groupby("method").min()
    assert least["newcombe"] == pytest.approx(0.9195)
    assert least.drop("newcombe").max() < 0.89, "no other method is near"
    (short,) = [cells for cells in shown.loc[pd.IndexSlice[:, "newcombe"], "below_92"] if cells]
    assert short == "AUC 0.9, correlation 0.9: 91.95 %"
    np.testing.assert_allclose(shown["holds"] + shown["below"] + shown["above"], 1)
    small = shown.loc[("8+7", "percentile")]
    assert "AUC 0.95, correlation 0.9: " in small["below_92"]


def test_a_repeated_cell_agrees_with_the_stored_table():
    """One cell again, fewer times, with other random numbers: the share that holds the AUC is the stored one."""
    cell, n = {"patients": "8+7", "correlation": 0.9, "auc": 0.95}, 60
    table = pd.read_csv(interval_study.STUDY.stored)
    rows = table[(table["patients"] == "8+7") & (table["correlation"] == 0.9) & (table["auc"] == 0.95)]
    found = [interval_study.once(cell, np.random.default_rng([7, i])) for i in range(n)]
    for method in ("newcombe", "logit", "percentile", "bca"):
        held = sum(one[f"{method} holds"] for one in found)
        stored = rows.loc[rows["outcome"] == f"{method} holds", "value"].iloc[0]
        assert scipy_stats.binomtest(held, n, stored).pvalue > 1e-4, method


def test_the_study_knows_its_cells():
    assert len(interval_study.CELLS) == 36
    assert interval_study.STUDY.stored.name == "interval_study.csv"
    assert interval_study.STUDY.stored != studies.STORED / "interval_study.csv", "a notebook shows it"


@pytest.mark.parametrize(("label_1", "label_0", "size"), [(6, 6, "8+7"), (20, 40, "38+17"), (90, 80, "50+50")])
def test_a_run_is_told_what_the_nearest_size_says(tmp_path, monkeypatch, label_1, label_0, size):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    labels = [1] * label_1 + [0] * label_0
    scores = pd.DataFrame({"patient_id": np.repeat(np.arange(len(labels)), 2), "label": np.repeat(labels, 2)})
    said = {}
    for method in statistics.METHODS:
        run = artifacts.open_run("smoke", {"sweep.interval_method": method})
        said[method] = sweep.report(run, scores)
        assert f"{label_1}+{label_0} patients; nearest in the study are {size}" in said[method]
    for text in said.values():  # the default and logit fall short with few patients alone
        assert ("less than 92 % at AUC" in text or "worst (AUC" in text) == (size == "8+7")
        assert ("fewer patients of a class than any size studied" in text) == (label_0 < 7)
