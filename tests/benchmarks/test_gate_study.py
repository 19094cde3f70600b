"""The study of stage 07's gate: its simulation has the truth that it claims, and its stored table keeps the promise."""

import gate_study
import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from nafld_utils.statistics import fold_mean_auc


def test_simulated_scores_have_the_true_auc_and_the_patients_of_the_cell():
    cell = gate_study.cell("3+2", 4, 0.85, 0.5, 0.1)
    found = [gate_study.simulate(cell, np.random.default_rng(i)) for i in range(400)]
    one = pd.DataFrame(found[0])
    assert one.groupby(["fold", "label"])["patient"].nunique().tolist() == [2, 3] * 4
    assert len(one) == 4 * 5 * gate_study.IMAGES
    parts = [[{n: v[s["fold"] == k] for n, v in s.items()} for k in (0, 3)] for s in found]
    aucs = np.array([[fold_mean_auc(**part).auc for part in pair] for pair in parts])
    assert aucs.mean(axis=0) == pytest.approx([0.75, 0.95], abs=0.02)


def test_the_published_bound_differs_by_the_known_factor_where_classes_are_equal():
    """LeDell's variance divides by n where ours divides by n - 1."""
    rng = np.random.default_rng(0)
    label, fold, patient = np.tile([0, 0, 0, 1, 1, 1], 3), np.repeat([0, 1, 2], 6), np.arange(18)
    score = 2 * rng.normal(size=18) + label  # no fold is ordered wholly
    found, low = fold_mean_auc(label, score, patient, fold), gate_study.published_low(label, score, patient, fold)
    reach = special.logit(found.auc) - special.logit(found.low)
    error = reach * found.auc * (1 - found.auc) / stats.t.ppf(0.975, 12)
    assert (found.auc - low) / stats.norm.ppf(0.975) == pytest.approx(error * np.sqrt(2 / 3))


def test_the_stored_table_keeps_the_promise_of_notebook_07():
    table = pd.read_csv(gate_study.STUDY.stored)
    passes = table[table["outcome"] == "passes"]
    wrong = passes[passes["auc"] <= 0.7]
    assert (wrong["n"] >= 2000).all()
    assert wrong["value"].max() <= 0.05
    assert table.loc[(table["outcome"] == "above_truth") & (table["folds"] == 5), "value"].max() <= 0.05
    assert table.loc[(table["outcome"] == "as_published") & (table["auc"] == 0.7), "value"].min() > 0.05
    power = passes[(passes["folds"] == 5) & (passes["auc"] == 0.9)].set_index(["patients", "within"])["value"]
    shown = [power[patients, within] for patients in ("8+3", "2+2") for within in (0.5, 0.9)]
    assert np.round(shown, 2).tolist() == [0.97, 0.78, 0.24, 0.04], "as notebook 07 says"
    assert len(passes) == len(gate_study.CELLS)
