"""Distances over patients: the fast Frechet form, whole patients, and the kernel distance with its interval."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import networks
from nafld_utils.quality import patient_distances


def rng(seed=0):
    return np.random.default_rng(seed)


def patients_of(n, frames=4, d=6, shift=0.0, seed=0):
    centres = rng(seed).normal(shift, 1.0, size=(n, d))
    rows = centres.repeat(frames, axis=0)
    return rows + rng(seed + 1).normal(0, 0.1, rows.shape), np.arange(n).repeat(frames)


def test_distance_to_a_subset_equals_the_plain_formula():
    fixed, other = rng(0).normal(1.0, 2.0, size=(50, 20)), rng(1).normal(size=(40, 20))
    distance = patient_distances.DistanceToSubsets(fixed, other)
    for rows in (np.arange(40), np.arange(0, 40, 3), np.array([3, 7])):
        plain = networks.frechet_distance(fixed, other[rows])
        assert distance(rows) == pytest.approx(plain, rel=1e-7), "roots of eigenvalues near zero"


def test_patients_are_drawn_whole_without_repeats_in_the_shares_of_the_classes():
    patients, strata = np.arange(12).repeat(3), (np.arange(12) >= 4).astype(int).repeat(3)
    rows = patient_distances.draw_patients(patients, strata, 6, rng())
    chosen = np.unique(patients[rows])
    assert len(chosen) == 6
    assert len(rows) == 18
    assert (chosen < 4).sum() == 2


def test_fewer_patients_are_farther():
    real, patients = patients_of(60, seed=0)
    made, _ = patients_of(400, frames=1, seed=5)  # the same distribution of patients: the true distance is zero
    row = patient_distances.measure(made, real, patients, np.zeros(len(patients)), 20, rng(), repeats=8)
    assert row["equal"] > row["value"] > 0
    assert row["equal_low"] < row["equal"] < row["equal_high"]
    found = patient_distances.kernel_over_patients(made, real, -1 - np.arange(len(made)), patients)
    assert found["kernel_low"] < 0 < found["kernel_high"]


def test_the_floor_at_equal_numbers_lies_below_images_of_other_patients_shifted_away():
    """Real patients against as many others stand below a set that lies elsewhere, compared at the same number."""
    real, patients = patients_of(24, 3)
    strata = np.zeros(len(patients))
    floor = patient_distances.halves_of_real(real, patients, strata, 8, rng())
    assert (floor["n_patients"], floor["n_equal"]) == (16, 8)
    made, _ = patients_of(24, 3, shift=3.0)
    far = patient_distances.measure(made, real, patients, strata, 8, rng(), n_halves=0)
    assert floor["equal"] < far["equal"]
    assert np.isnan(far["equal_low"])


def test_three_patients_give_no_floor_and_few_no_interval():
    real, patients = patients_of(4)
    some = patients < 3
    assert np.isnan(patient_distances.halves_of_real(real[some], patients[some], np.zeros(12), 2, rng())["equal"])
    row = patient_distances.measure(real[:8] + 1.0, real, patients, np.zeros(len(patients)), 4, rng(), repeats=2)
    assert np.isfinite(row["value"])
    assert np.isnan(row["equal_low"])
    two = patient_distances.kernel_over_patients(real[:8], real, np.arange(2).repeat(4), patients)
    assert np.isfinite(two["kernel"])
    assert np.isnan([two["kernel_low"], two["kernel_high"]]).all()
    one = patient_distances.kernel_over_patients(real[:4], real, np.zeros(4), patients)
    assert np.isnan(one["kernel"])


# ---------------------------------------------------------------- kernel distance


def test_kernel_distance_of_patients_with_one_image_is_torchmetrics_and_torch_fidelitys():
    import torch
    from torchmetrics.image.kid import poly_mmd

    made, real = rng(0).normal(size=(40, 24)), rng(1).normal(0.2, 1.3, size=(40, 24))
    found = patient_distances.kernel_over_patients(made, real, -1 - np.arange(40), np.arange(40))["kernel"]
    assert found == pytest.approx(float(poly_mmd(torch.from_numpy(made), torch.from_numpy(real))), rel=1e-9)
    fidelity = networks.kernel_distance(made, real, n_subsets=1, subset_size=40)  # torch-fidelity, one whole subset
    assert found == pytest.approx(fidelity, rel=1e-9)


def plain(made, real, made_patients, real_patients):
    """By loops over pairs of patients; a patient's own pairs are left out everywhere."""

    def mean(x, own_x, y, own_y):
        return np.mean(
            [
                np.mean((x[own_x == a] @ y[own_y == b].T / x.shape[1] + 1) ** 3)
                for a in np.unique(own_x)
                for b in np.unique(own_y)
                if a != b
            ]
        )

    sides = (made, made_patients), (real, real_patients)
    within = sum(mean(*side, *side) for side in sides)
    return within - 2 * mean(*sides[0], *sides[1])


@pytest.mark.parametrize("mapped", [6, 0])
def test_kernel_distance_and_its_jackknife_are_those_of_loops(mapped):
    """Synthetic images of patients' maps, of maps of patients who have no real image, and of nobody."""
    real, own = patients_of(8, frames=3, d=40)
    real, own = real[1:], own[1:]  # unequal numbers of images
    made = rng(7).normal(0.3, 1.0, size=(15, 40))
    source = np.array([0, 0, 2, 5, 5, 5, 9, 9, *(-1 - np.arange(7))]) if mapped else -1 - np.arange(15)
    found = patient_distances.kernel_over_patients(made, real, source, own)
    assert found["kernel"] == pytest.approx(plain(made, real, source, own), rel=1e-9)
    variance = 0.0
    for sample in (np.unique(own), np.setdiff1d(source, own)):
        out = [plain(made[source != i], real[own != i], source[source != i], own[own != i]) for i in sample]
        variance += (len(out) - 1) * np.var(out)
    reach = 2.364624 * variance**0.5  # Student's t, 7 degrees of freedom
    assert found["kernel_high"] - found["kernel"] == pytest.approx(reach, rel=1e-5)
    assert found["kernel"] - found["kernel_low"] == pytest.approx(reach, rel=1e-5)


def test_rows_taken_in_parts_change_nothing(monkeypatch):
    real, own = patients_of(8)
    made, source = patients_of(6, shift=0.5, seed=3)
    whole = patient_distances.kernel_over_patients(made, real, source, own)
    monkeypatch.setattr(patient_distances, "CHUNK", 5)
    assert patient_distances.kernel_over_patients(made, real, source, own) == pytest.approx(whole)


def test_generators_are_held_against_other_real_patients_and_an_untrained_one_is_not():
    from nafld_utils.quality import patient_distance_units

    names = ["model", "role", "equal", "equal_low", "equal_high", "kernel", "kernel_low", "kernel_high"]
    none = [np.nan] * 2
    rows = [["halves_of_real", "floor", 224, *none, np.nan, *none], ["noise", "ceiling", 999, 900, 999, 3, 2, 4]]
    rows += [["semantic", "model", 340, 317, 365, 0.5, 0.4, 0.6], ["class", "model", 230, 215, 259, 0.01, -0.02, 0.04]]
    rows += [["gan", "baseline", 900, 800, 950, 1, *none], ["simulated", "baseline", 300, *none, np.nan, *none]]
    table = pd.DataFrame(rows, columns=names).assign(**{"class": "both", "n_patients": 40, "n_equal": 6})
    beside, kernel = patient_distance_units.reading(table, "FID", "KID", ["gan"])
    assert beside == (
        "FID to real patients at 6 patients, 95 % over patients: other real patients 224; farther: semantic LDM 340"
        " [317, 365]; not told apart: class LDM 230 [215, 259]; no interval: simulated patients 300."
    )
    assert kernel == (
        "KID to real patients (95 % over patients, by jackknife; these trained models; images alike give 0 on average);"
        " the interval lies above 0, so these differ from images of new patients: semantic LDM 0.5 [0.4, 0.6]; it does"
        " not lie above 0, so no difference is shown: class LDM 0.01 [-0.02, 0.04]; too few patients for an interval:"
        " GAN 1."
    )
    assert patient_distance_units.reading(table[table["role"] != "floor"], "FID", "KID") == [kernel], "no floor"


def test_no_interval_of_a_distance_leaves_its_range():
    """Few patients that differ much: Student's t on the raw scale goes below 0, where no distance is."""
    rng, low = np.random.default_rng(0), []
    patients = np.repeat(np.arange(10), 4)
    strata = (patients >= 5).astype(int)
    for _ in range(12):
        real = rng.normal(size=(40, 4)) + 0.7 * rng.normal(size=(10, 4))[patients]
        found = patient_distances.measure(rng.normal(size=(400, 4)), real, patients, strata, 8, rng)
        low.append(found["equal_low"])
        assert found["equal"] ** 2 == pytest.approx(found["equal_low"] * found["equal_high"]), "symmetric as a ratio"
    assert min(low) > 0
