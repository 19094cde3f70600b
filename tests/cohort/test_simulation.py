"""The simulated cohort: tables, classes, counts, and the one feature of a cohort about it."""

import numpy as np
import pytest

from nafld_utils import phantom
from nafld_utils.cohort import FEATURE_FAT, simulate, simulation


def test_tables_and_arrays_agree():
    cohort = simulate(12, seed=5, n_frames=3)
    assert cohort.pixels.shape == cohort.masks.shape == (36, 434, 636)
    assert cohort.pixels.dtype == cohort.masks.dtype == np.uint8
    assert cohort.images["image_id"].iloc[4] == "p002_f01"
    assert list(cohort.patients["patient_id"]) == list(range(1, 13))
    assert (cohort.patients["label"] == (cohort.patients["grade"] >= 5)).all()
    assert cohort.provenance["kind"] == "simulated"
    assert cohort.images["sha256"].is_unique


@pytest.mark.parametrize("seed", range(20))
def test_both_classes_from_two_patients_on(seed):
    fats = simulation.draw_fat(110, seed)
    for n in (2, 3, 5, 35):
        assert len(set(fats[:n] >= 5)) == 2
    for block in (fats[:55], fats[55:]):  # the bands of the real cohort
        assert np.histogram(block, [0, 5, 33.5, 66.5, 100])[0].tolist() == [17, 20, 8, 10]
    assert np.array_equal(simulation.draw_fat(7, seed), fats[:7])


@pytest.mark.parametrize(("name", "value"), [("n_patients", 0), ("n_frames", 0), ("n_jobs", 0), ("seed", -1)])
def test_bad_counts_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        simulate(**{"n_patients": 2, "seed": 0, name: value})


def test_a_cohort_about_one_feature_has_pairs_of_patients_and_says_so():
    found = simulate(4, seed=2, n_frames=1, feature="vessel_blur")
    assert found.patients["label"].tolist() == (found.patients["grade"] == FEATURE_FAT).astype(int).tolist()
    assert found.patients["label"].iloc[:2].sum() == found.patients["label"].iloc[2:].sum() == 1
    assert "vessel_blur alone" in found.provenance["text"]


def test_a_cohort_of_a_variant_says_so_and_draws_fat_as_it_wants():
    even, full = phantom.VARIANTS["literature"], simulation.draw_fat(110, 3)
    fats = simulation.draw_fat(110, 3, even)
    assert np.array_equal(fats >= 5, full >= 5)
    assert fats.max() > 85
    assert np.array_equal(simulation.draw_fat(7, 3, even), fats[:7])
    text = simulate(1, 3, 1, variant=phantom.VARIANTS["half"]).provenance["text"]
    assert text.endswith("Variant half: Every effect of steatosis is half as strong.")
    assert "ariant" not in simulate(1, 3, 1).provenance["text"]
