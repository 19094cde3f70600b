"""The study of the test of a gain: its patients have the gain that is claimed for them, and the stored table holds."""

import gain_study
import numpy as np
import pytest
from scipy import stats

from nafld_utils import artifacts, statistics


@pytest.mark.parametrize("spread", list(gain_study.SPREADS))
def test_the_gain_that_is_simulated_is_the_gain_that_is_counted(spread):
    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(60):
        label, new, base, patient = gain_study.scores(rng, (60, 60), 8, 0.05, spread)
        assert len(label) == len(patient) == new.shape[1] == 120 * gain_study.IMAGES
        aucs.append([np.mean([statistics.auc(label, row) for row in arm]) for arm in (new, base)])
    new, base = np.transpose(aucs)
    for values, truth in ((base, gain_study.AUC), (new - base, 0.05)):
        assert abs(values.mean() - truth) < 4 * stats.sem(values)


def test_a_study_says_what_it_found_of_the_gain():
    cell = {"patients": "17+38", "seeds": 5, "gain": 0.05, "spread": "as seen"}
    label, new, base, patient = gain_study.scores(np.random.default_rng(3), (17, 38), 5, 0.05, "as seen")
    expected = statistics.gain(label, new, base, patient)
    found = gain_study.once(cell, np.random.default_rng(3))
    assert found["holds"] == (expected.low <= 0.05 <= expected.high)
    assert found["rejects"] == (expected.p < 0.05)
    assert found["variance"] == expected.error**2
    assert found["squared_miss"] == pytest.approx((expected.difference - 0.05) ** 2)


def test_stored_study_keeps_what_is_promised_for_17_and_38_patients():
    table = artifacts.load_table(gain_study.STUDY.stored)
    assert len(table) == 4 * len(gain_study.CELLS)
    assert table["n"].min() >= 2000
    table = table[table["patients"] == "17+38"]
    rejects = table[(table["outcome"] == "rejects") & (table["gain"] == 0)]
    assert rejects["value"].between(0.03, 0.06).all(), rejects
    holds = table[table["outcome"] == "holds"]
    assert holds["value"].between(0.93, 0.97).all(), holds
    wide = table.set_index(["spread", "seeds", "gain", "outcome"])["value"].unstack()
    assert (wide["variance"] / wide["squared_miss"]).between(0.9, 1.15).all(), "no wider than the truth"
