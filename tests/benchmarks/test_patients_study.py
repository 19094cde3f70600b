"""The study of plans: what it counts, and that the stored table says what notebook 06 says of it."""

import gain_study
import numpy as np
import patients_study
import pytest

from nafld_utils import artifacts, statistics


def test_a_plan_is_of_a_study_without_a_gain():
    cell = {"seeds": 25, "gain": 0.05, "spread": "as seen"}
    label, new, base, patient = gain_study.scores(np.random.default_rng(2), (17, 38), 25, 0.0, "as seen")
    plan = statistics.cautious(statistics.gain(label, new, base, patient).spread, 25)
    found = patients_study.once(cell, np.random.default_rng(2))
    assert found["affordable"]
    assert 10 ** found["log10_needed"] == pytest.approx(statistics.patients_needed(plan, 25, 55, 0.05))
    assert found["power_here"] == pytest.approx(statistics.power(0.05, *statistics.planned(plan, 25, 1.0)))
    assert {found["shows"], found["shows_here"], found["finds_smallest"]} <= {True, False}
    first = statistics.gain(label, new, base, patient)
    assert found["half_widths"] == pytest.approx(2 * statistics.smallest_effect(first, 25) / (first.high - first.low))
    assert found["narrow"] is False


def test_a_plan_that_nobody_can_afford_is_counted_and_not_simulated():
    found = patients_study.once({"seeds": 5, "gain": 0.001, "spread": "as seen"}, np.random.default_rng(0))
    assert found["affordable"] is False
    assert found["log10_needed"] is found["shows"] is None


def test_stored_study_shows_planned_gains_and_gives_no_power_too_high():
    table = artifacts.load_table(patients_study.STUDY.stored)
    assert len(table) == 8 * len(patients_study.CELLS)
    rows = table.set_index(["spread", "seeds", "gain", "outcome"])["value"].unstack()
    most = rows[rows["affordable"] > 0.5]
    assert len(most) >= 6
    assert (most["shows"] >= 0.8).all(), most
    assert (rows["power_here"] <= rows["shows_here"] + 0.03).all(), rows
