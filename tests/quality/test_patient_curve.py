"""Frechet distance against the number of patients: the fast form, the extrapolation, the interval."""

import numpy as np
import pytest

from nafld_utils.networks import frechet_distance
from nafld_utils.quality import patient_curve


def rng(seed=0):
    return np.random.default_rng(seed)


def patients_of(n, frames=4, d=6, shift=0.0, seed=0):
    centres = rng(seed).normal(shift, 1.0, size=(n, d))
    rows = centres.repeat(frames, axis=0)
    return rows + rng(seed + 1).normal(0, 0.1, rows.shape), np.arange(n).repeat(frames)


def test_distance_to_a_subset_equals_the_plain_formula():
    fixed, other = rng(0).normal(1.0, 2.0, size=(50, 20)), rng(1).normal(size=(40, 20))
    distance = patient_curve.DistanceToSubsets(fixed, other)
    for rows in (np.arange(40), np.arange(0, 40, 3), np.array([3, 7])):
        assert distance(rows) == pytest.approx(
            frechet_distance(fixed, other[rows]), rel=1e-7
        )  # roots of eigenvalues near zero


def test_patients_are_drawn_whole_without_repeats_in_the_shares_of_the_classes():
    patients, strata = np.arange(12).repeat(3), (np.arange(12) >= 4).astype(int).repeat(3)
    rows = patient_curve.draw_patients(patients, strata, 6, rng())
    chosen = np.unique(patients[rows])
    assert len(chosen) == 6
    assert len(rows) == 18
    assert (chosen < 4).sum() == 2


def test_extrapolation_of_a_line_is_exact():
    sizes = np.array([5, 8, 13, 20])
    assert patient_curve.extrapolate(sizes, 3.0 + 40.0 / sizes) == pytest.approx((3.0, 40.0))
    assert np.isnan(patient_curve.extrapolate([5], [1.0])).all()


def test_small_sets_are_biased_and_the_extrapolation_takes_it_off():
    real, patients = patients_of(60, seed=0)
    made, _ = patients_of(400, frames=1, seed=5)  # the same distribution of patients: the true distance is about zero
    row, curve = patient_curve.measure(made, real, patients, np.zeros(len(patients)), 20, rng(), repeats=8)
    assert curve["value"].is_monotonic_decreasing
    assert row["equal"] > row["value"] > abs(row["infinite"])
    assert abs(row["infinite"]) < 0.2 * row["value"] + 0.05
    assert row["infinite_low"] < 0.05 < row["equal_low"]


def test_a_true_distance_survives_the_extrapolation():
    real, patients = patients_of(60, seed=0)
    made, _ = patients_of(400, frames=1, shift=2.0, seed=5)
    row, _ = patient_curve.measure(made, real, patients, np.zeros(len(patients)), 20, rng(), repeats=4)
    assert row["infinite_low"] < 24.0 < row["infinite_high"] + 3.0  # six features, two apart each
    assert row["infinite"] > 15.0


def test_two_halves_of_the_real_patients_come_out_near_zero():
    real, patients = patients_of(80, seed=3)
    found = patient_curve.halves_of_real(real, patients, np.zeros(len(patients)), 10, rng())
    assert (found["n_patients"], found["n_equal"]) == (40, 10)
    assert abs(found["infinite"]) < 0.5 * found["value"]
    assert found["equal"] > found["value"]  # fewer patients are farther


def test_the_floor_at_equal_numbers_lies_below_images_of_other_patients_shifted_away():
    """Real patients against as many others stand below a set that lies elsewhere, compared at the same number."""
    real, patients = patients_of(24, 3)
    strata = np.zeros(len(patients))
    floor = patient_curve.halves_of_real(real, patients, strata, 8, rng())["equal"]
    made, _ = patients_of(24, 3, shift=3.0)
    far = patient_curve.measure(made, real, patients, strata, 8, rng(), n_halves=0)[0]["equal"]
    assert floor < far


def test_three_patients_give_no_floor():
    real, patients = patients_of(3, 2)
    found = patient_curve.halves_of_real(real, patients, np.zeros(len(patients)), 2, rng())
    assert all(np.isnan(found[name]) for name in ("equal", "value", "infinite"))


def test_too_few_patients_give_no_interval_rather_than_a_wrong_one():
    real, patients = patients_of(4)
    row, curve = patient_curve.measure(real[:8] + 1.0, real, patients, np.zeros(len(patients)), 4, rng(), repeats=2)
    assert np.isfinite(row["value"])
    assert np.isnan(row["equal_low"])
    assert len(curve) >= 1
