"""The simulated cohort: geometry, physics, classes, and how near it comes to the real frames."""

import os
import time

import numpy as np
import pytest
from project import call
from scipy import ndimage

from nafld_utils.cohort import (
    FEATURE_FAT,
    TISSUES,
    simulate,
    simulate_patient,
    simulated_anatomy,
    simulated_scanner,
    simulation,
)
from nafld_utils.cohort.simulated_anatomy import SHAPE

# Measured on the 55 real patients: mean correlation of neighbouring frames inside the sector. The lowest and highest
# patient; simulated patients must lie inside, and their median within 0.07 of the real one.
REAL_CORRELATION = (0.653, 0.923)
REAL_MEDIAN = 0.838


@pytest.fixture(scope="module")
def cohort():
    return simulate(12, seed=5, n_frames=3)


def test_tables_and_arrays_agree(cohort):
    assert cohort.pixels.shape == cohort.masks.shape == (36, 434, 636)
    assert cohort.pixels.dtype == cohort.masks.dtype == np.uint8
    assert cohort.images["image_id"].iloc[4] == "p002_f01"
    assert list(cohort.patients["patient_id"]) == list(range(1, 13))
    assert (cohort.patients["label"] == (cohort.patients["grade"] >= 5)).all()
    assert cohort.provenance["kind"] == "simulated"
    assert cohort.images["sha256"].is_unique


def test_sector_matches_measured_corners():
    """Corner pixels read off the real frames: apex, the two ends of the arc, the lowest point."""
    sector = simulated_scanner.sector_mask()
    rows, cols = np.nonzero(sector)
    assert (rows.min(), rows.max()) == (9, 366)
    assert abs(cols.min() - 33) <= 1
    assert abs(cols.max() - 602) <= 1
    assert sector[sector.any(axis=1)].any(axis=1).all()
    assert abs(rows[cols == cols.min()].mean() - 226) <= 3


def test_frame_is_black_outside_sector_but_for_overlays(cohort):
    outside = cohort.pixels[0].copy()
    outside[simulated_scanner.sector_mask()] = 0
    assert outside[26, 615] == 203  # grey bar
    assert outside[26:124, 615].min() < 5
    assert outside[8:22, 332:350].max() == 226  # V mark
    assert outside[198:212, 20:60].max() > 100  # depth digits
    assert outside[375:434, 25:200].max() > 100  # electrocardiogram
    assert outside[400:434, 560:636].max() > 100  # heart rate and frame number
    assert (outside > 0).mean() < 0.03
    assert (cohort.masks[:, ~simulated_scanner.sector_mask()] == TISSUES["outside"]).all()
    assert (cohort.masks[:, simulated_scanner.sector_mask()] != TISSUES["outside"]).all()


def test_masks_are_nested(cohort):
    """A vessel touches only liver, the sinus only cortex (and itself), in every frame."""
    for inner, outer in (("vessel", "liver"), ("kidney_sinus", "kidney_cortex")):
        for mask in cohort.masks[::3]:
            inside = mask == TISSUES[inner]
            ring = np.zeros_like(inside)
            for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
                ring |= np.roll(inside, step, axis)
            neighbours = set(np.unique(mask[ring & ~inside])) - {TISSUES["outside"]}
            assert neighbours <= {TISSUES[outer]}
    assert all((mask == TISSUES[name]).any() for mask in cohort.masks for name in ("liver", "kidney_cortex", "wall"))


def test_speckle_is_rayleigh_in_homogeneous_liver(monkeypatch):
    """Mean over standard deviation of the envelope is sqrt(pi / (4 - pi)) = 1.91 in fully developed speckle."""
    uniform = simulated_anatomy.draw_anatomy(np.random.default_rng(0), 0.0)
    liver = np.full(SHAPE, TISSUES["liver"], np.uint8)
    uniform = type(uniform)(liver, np.zeros(SHAPE, np.float32), uniform.attenuation, np.zeros((0, 6), np.float32))
    monkeypatch.setattr(simulated_scanner, "draw_anatomy", lambda rng, fat, feature=None: uniform)
    ratios = []
    for index in range(3):
        envelope = simulated_scanner.Patient(1, index, 0.0).envelope(0)
        blocks = envelope[100:340, 60:340].reshape(24, 10, 28, 10).transpose(0, 2, 1, 3).reshape(24 * 28, 100)
        # Blocks take out gain and shadow; dividing by the block's mean power keeps the speckle.
        speckle = blocks / np.sqrt((blocks**2).mean(axis=1, keepdims=True))
        ratios.append(speckle.mean() / speckle.std())
    assert np.mean(ratios) == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), abs=0.12)


def _neighbour_correlation(frames):
    inside = frames[:, simulated_scanner.sector_mask()].astype(np.float32)
    return np.diag(np.corrcoef(inside), 1).mean()


def test_frames_of_a_patient_correlate_as_in_the_real_cohort(cohort):
    values = [_neighbour_correlation(frames) for frames in simulate(55, seed=1, n_frames=3, n_jobs=2).frames]
    low, high = REAL_CORRELATION
    assert low < min(values)
    assert max(values) < high
    assert np.median(values) == pytest.approx(REAL_MEDIAN, abs=0.07)
    strangers = np.corrcoef(cohort.frames[:, 0][:, simulated_scanner.sector_mask()].astype(np.float32))
    assert np.median(strangers[np.triu_indices(12, 1)]) < min(values)


def test_patient_depends_on_seed_and_number_alone(cohort):
    again = simulate(3, seed=5, n_frames=2, n_jobs=2)
    assert np.array_equal(again.frames[2], cohort.frames[2, :2])
    assert np.array_equal(again.masks[:2], cohort.masks[:2])
    assert not np.array_equal(simulate(1, seed=6, n_frames=1).pixels[0], cohort.pixels[0])


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


def _brightness_ratio(task):
    index, fat = task
    frames, masks = simulate_patient(400, index, fat, 1)
    return frames[masks == TISSUES["liver"]].mean() / frames[masks == TISSUES["kidney_cortex"]].mean()


@pytest.mark.slow
def test_brightness_ratio_separates_classes_as_published():
    """Hepatorenal ratio of 100 patients: AUC 0.85 to 0.97, so that the classes overlap as in real cohorts."""
    from concurrent.futures import ProcessPoolExecutor
    from functools import partial
    from multiprocessing import get_context

    from sklearn.metrics import roc_auc_score

    fats = simulation.draw_fat(100, 100)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ratios = list(pool.map(partial(call, __file__, "_brightness_ratio"), enumerate(fats.tolist()), chunksize=20))
    assert 0.85 < roc_auc_score(fats >= 5, ratios) < 0.97


def test_time_of_a_frame():
    """Ten frames of a patient in under 2 s of processor time: 55 patients in under 60 s on two cores."""
    start = time.process_time()
    simulate_patient(3, 1, 20.0, 10)
    assert time.process_time() - start < 2.0


def test_geometry_and_correlation_constants_hold_on_the_real_cohort():
    path = os.environ.get("NAFLD_COHORT")
    if not path:
        pytest.skip("NAFLD_COHORT is unset: no real cohort to measure")
    from scipy.io import loadmat

    frames = np.stack(loadmat(path)["data"]["images"][0])
    sector = simulated_scanner.sector_mask()
    lit = (frames.reshape(-1, *simulated_scanner.FRAME_SHAPE) > 0).mean(axis=0) > 0.5
    lit[:, 604:] = False  # the grey bar
    lit[370:] = False  # the electrocardiogram
    assert (lit & sector).sum() / (lit[30:] | sector[30:]).sum() > 0.985
    values = [_neighbour_correlation(patient) for patient in frames]
    assert np.percentile(values, [0, 50, 100]) == pytest.approx([0.653, REAL_MEDIAN, 0.923], abs=0.002)


# ---------------------------------------------------------------- cohorts about one feature


@pytest.mark.parametrize(
    ("feature", "tissues"),
    [
        ("echogenicity", ["liver", "kidney_cortex", "kidney_sinus"]),
        ("vessel_blur", ["vessel"]),
        ("diaphragm_blur", ["diaphragm"]),
    ],
)
def test_a_feature_alone_changes_the_same_patient_only_where_it_is(feature, tissues):
    """The same patient with and without the feature: at least nine tenths of what differs lies on its tissue."""
    without, mask = simulate_patient(77, 3, 0.0, 1, feature)
    within, same = simulate_patient(77, 3, 80.0, 1, feature)
    assert np.array_equal(mask, same)
    assert all((mask == TISSUES[name]).any() for name in ("vessel", "diaphragm"))
    difference = np.abs(within.astype(float) - without)[0]
    # the display's range follows the contrast: a grey level or two may change everywhere
    difference[difference < 8] = 0
    band = np.isin(mask[0], [TISSUES[name] for name in tissues])
    grown = ndimage.maximum_filter(band, 21)
    assert difference[grown].sum() > 0.9 * difference.sum() > 0
    assert difference[band].mean() > 5 * difference[~grown & (mask[0] > 0)].mean()


def test_a_cohort_about_one_feature_has_pairs_of_patients_and_says_so():
    found = simulate(4, seed=2, n_frames=1, feature="vessel_blur")
    assert found.patients["label"].tolist() == (found.patients["grade"] == FEATURE_FAT).astype(int).tolist()
    assert found.patients["label"].iloc[:2].sum() == found.patients["label"].iloc[2:].sum() == 1
    assert "vessel_blur alone" in found.provenance["text"]


def test_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match="feature: expected one of echogenicity, vessel_blur, diaphragm_blur"):
        simulate(2, seed=0, feature="colour")
