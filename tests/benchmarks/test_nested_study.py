"""The study of the interval over patients and simulated cohorts: its truth, and what the stored table says of it."""

import nested_study
import numpy as np
import pytest
from scipy import stats

from nafld_utils import artifacts, statistics


def test_the_truth_is_that_of_very_many_trainings_on_very_many_patients():
    rng, cell = np.random.default_rng(0), nested_study.CELLS[-2]
    label = np.repeat([0, 1], 400)
    spread = stats.norm.ppf((np.arange(400) + 0.5) / 400) * np.hypot(cell["cohorts"], cell["seeds"])
    apart = cell["apart"] + spread
    scores = rng.normal(size=(400, 800)) * np.hypot(1, nested_study.OWN) + apart[:, None] * label
    assert nested_study.truth(cell) == pytest.approx(np.mean([statistics.auc(label, row) for row in scores]), abs=0.004)


def test_what_is_counted_is_the_interval_of_the_same_draws():
    found = nested_study.once(nested_study.CELLS[4], np.random.default_rng(3))
    assert found["holds"] + found["below"] + found["above"] == 1
    assert 0 < found["width"] < 1


def test_the_stored_study_holds_the_truth_as_often_as_the_function_says():
    table = artifacts.load_table(nested_study.STUDY.stored)
    assert len(table) == 5 * len(nested_study.CELLS)
    held = table[table["outcome"] == "holds"]
    assert held["value"].between(0.93, 0.97).all()
    assert (table.loc[table["outcome"].isin(["above", "below"]), "value"] < 0.05).all()
