"""The simulator: geometry, physics, its variants, and how near it comes to the real frames."""

import os
import time

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nafld_utils import artifacts, images, phantom
from nafld_utils.cohort import simulate, simulation
from nafld_utils.ldm import shipped_autoencoder
from nafld_utils.phantom import TISSUES, anatomy, looks, scanner, sector_mask, simulate_patient, variants

# Measured on the 55 real patients: mean correlation of neighbouring frames inside the sector. The lowest and highest
# patient; simulated patients must lie inside, and their median within 0.07 of the real one.
REAL_CORRELATION = (0.653, 0.923)
REAL_MEDIAN = 0.838


@pytest.fixture(scope="module")
def cohort():
    return simulate(12, seed=5, n_frames=3)


def test_the_full_variant_is_the_simulation_of_revision_2():
    """Pixels of a frame that revision 2 made; who changes the simulation raises the revision and writes them anew."""
    assert artifacts.revision("phantom") == artifacts.revision("phantom_anatomy") == 2
    known = [[0, 0, 100, 96, 55, 0], [64, 95, 134, 78, 60, 54], [81, 112, 125, 88, 52, 45]]
    known += [[61, 46, 47, 75, 44, 47], [62, 63, 49, 65, 64, 59], [122, 120, 63, 113, 71, 80]]
    frame = simulate_patient(5, 1, 40.0, 1)[0][0]
    assert frame[60:360:50, 200:440:40].astype(int) == pytest.approx(np.array(known), abs=2)


def test_sector_matches_measured_corners():
    """Corner pixels read off the real frames: apex, the two ends of the arc, the lowest point."""
    sector = sector_mask()
    rows, cols = np.nonzero(sector)
    assert (rows.min(), rows.max()) == (9, 366)
    assert abs(cols.min() - 33) <= 1
    assert abs(cols.max() - 602) <= 1
    assert sector[sector.any(axis=1)].any(axis=1).all()
    assert abs(rows[cols == cols.min()].mean() - 226) <= 3


def test_frame_is_black_outside_sector_but_for_overlays(cohort):
    outside = cohort.pixels[0].copy()
    outside[sector_mask()] = 0
    assert outside[26, 615] == 203  # grey bar
    assert outside[26:124, 615].min() < 5
    assert outside[8:22, 332:350].max() == 226  # V mark
    assert outside[198:212, 20:60].max() > 100  # depth digits
    assert outside[375:434, 25:200].max() > 100  # electrocardiogram
    assert outside[400:434, 560:636].max() > 100  # heart rate and frame number
    assert (outside > 0).mean() < 0.03
    assert (cohort.masks[:, ~sector_mask()] == TISSUES["outside"]).all()
    assert (cohort.masks[:, sector_mask()] != TISSUES["outside"]).all()


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
    uniform = anatomy.draw_anatomy(np.random.default_rng(0), 0.0)
    liver = np.full_like(uniform.labels, TISSUES["liver"])
    uniform = uniform._replace(labels=liver, echo=np.zeros_like(uniform.echo), curves=uniform.curves[:0])
    monkeypatch.setattr(scanner, "draw_anatomy", lambda *arguments: uniform)
    ratios = []
    for index in range(3):
        envelope = scanner.Patient(1, index, 0.0).envelope(0)
        blocks = envelope[100:340, 60:340].reshape(24, 10, 28, 10).transpose(0, 2, 1, 3).reshape(24 * 28, 100)
        # Blocks take out gain and shadow; dividing by the block's mean power keeps the speckle.
        speckle = blocks / np.sqrt((blocks**2).mean(axis=1, keepdims=True))
        ratios.append(speckle.mean() / speckle.std())
    assert np.mean(ratios) == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), abs=0.12)


def _neighbour_correlation(frames):
    inside = frames[:, sector_mask()].astype(np.float32)
    return np.diag(np.corrcoef(inside), 1).mean()


def test_frames_of_a_patient_correlate_as_in_the_real_cohort(cohort):
    values = [_neighbour_correlation(frames) for frames in simulate(55, seed=1, n_frames=3).frames]
    low, high = REAL_CORRELATION
    assert low < min(values)
    assert max(values) < high
    assert np.median(values) == pytest.approx(REAL_MEDIAN, abs=0.07)
    strangers = np.corrcoef(cohort.frames[:, 0][:, sector_mask()].astype(np.float32))
    assert np.median(strangers[np.triu_indices(12, 1)]) < min(values)


def test_patient_depends_on_seed_and_number_alone(cohort):
    again = simulate(3, seed=5, n_frames=2, n_jobs=2)
    assert np.array_equal(again.frames[2], cohort.frames[2, :2])
    assert np.array_equal(again.masks[:2], cohort.masks[:2])
    assert not np.array_equal(simulate(1, seed=6, n_frames=1).pixels[0], cohort.pixels[0])


def _brightness_ratio(index, fat):
    frames, masks = simulate_patient(400, index, fat, 1)
    return frames[masks == TISSUES["liver"]].mean() / frames[masks == TISSUES["kidney_cortex"]].mean()


@pytest.mark.slow
def test_brightness_ratio_separates_classes_as_published():
    """Hepatorenal ratio of 100 patients: AUC 0.85 to 0.97, so that the classes overlap as in real cohorts."""
    from sklearn.metrics import roc_auc_score

    fats = simulation.draw_fat(100, 100)
    ratios = [_brightness_ratio(index, fat) for index, fat in enumerate(fats.tolist())]
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
    sector = sector_mask()
    lit = (frames.reshape(-1, *phantom.FRAME_SHAPE) > 0).mean(axis=0) > 0.5
    lit[:, 604:] = False  # the grey bar
    lit[370:] = False  # the electrocardiogram
    assert (lit & sector).sum() / (lit[30:] | sector[30:]).sum() > 0.985
    values = [_neighbour_correlation(patient) for patient in frames]
    assert np.percentile(values, [0, 50, 100]) == pytest.approx([0.653, REAL_MEDIAN, 0.923], abs=0.002)


# ---------------------------------------------------------------- one feature


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


def test_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match="feature: expected one of echogenicity, vessel_blur, diaphragm_blur"):
        simulate(2, seed=0, feature="colour")


# ---------------------------------------------------------------- variants


@pytest.mark.parametrize("name", ["no_effects", *(f"only_{effect}" for effect in variants.EFFECTS)])
def test_fat_changes_what_the_variant_says_and_nothing_else(name):
    """The anatomy with and without fat from one generator: which of its parts differ."""
    lean, fat = (anatomy.draw_anatomy(np.random.default_rng(4), f, None, phantom.VARIANTS[name]) for f in (0.0, 80.0))
    assert np.array_equal(lean.labels, fat.labels)
    changed = np.abs(fat.echo - lean.echo) > 1e-6
    found = {
        "echo of the liver": changed[lean.labels == TISSUES["liver"]].mean() > 0.99,
        "echo of vessels": changed[lean.labels == TISSUES["vessel"]].mean() > 0.99,
        "echo": changed.any(),
        "lines": not np.array_equal(lean.curves, fat.curves),
        "attenuation": lean.attenuation[TISSUES["liver"]] < fat.attenuation[TISSUES["liver"]],
    }
    expected = {
        "no_effects": set(),
        "only_echogenicity": {"echo of the liver", "echo of vessels", "echo"},
        "only_attenuation": {"attenuation"},
        "only_border_blur": {"echo of vessels", "echo"},
        "only_vessel_loss": {"echo of vessels", "echo", "lines"},
        "only_diaphragm_loss": {"lines"},
        "only_capsule_loss": {"lines"},
    }[name]
    assert {part for part, differs in found.items() if differs} == expected


def test_effects_are_half_and_twice_as_strong():
    def drawn(name, fat=80.0):
        found = anatomy.draw_anatomy(np.random.default_rng(4), fat, None, phantom.VARIANTS[name])
        return found.attenuation[TISSUES["liver"]], np.median(found.echo[found.labels == TISSUES["liver"]])

    lean = np.array(drawn("full", 0.0))
    half, full, double = (np.array(drawn(name)) - lean for name in ("half", "full", "double"))
    assert full[0] == pytest.approx(0.10 * (1 - np.exp(-4)))
    assert half == pytest.approx(full / 2, rel=0.05)
    assert double == pytest.approx(full * 2, rel=0.05)


def test_fat_of_a_class_is_spread_as_in_the_cohort_or_evenly():
    rng = np.random.default_rng(0)
    healthy, fatty = (np.array([phantom.draw_fat(label, rng) for _ in range(2000)]) for label in (0, 1))
    assert np.bincount(healthy) / 2000 == pytest.approx(np.array([2, 3, 8, 3, 1]) / 17, abs=0.04)
    assert np.histogram(fatty, [5, 33.5, 66.5, 86])[0] / 2000 == pytest.approx(np.array([20, 8, 10]) / 38, abs=0.04)
    even = phantom.VARIANTS["literature"]
    healthy, fatty = (np.array([phantom.draw_fat(label, rng, even) for _ in range(2000)]) for label in (0, 1))
    assert np.bincount(healthy) / 2000 == pytest.approx(np.full(5, 0.2), abs=0.04)
    assert (fatty.min(), fatty.max()) == (5, 100)
    assert np.histogram(fatty, 4, (5, 101))[0] / 2000 == pytest.approx(np.full(4, 0.25), abs=0.04)


def _states(seed, index):
    """What the generator of one patient begins with."""
    return np.random.SeedSequence([seed, 11, index, 0]).generate_state(4).tobytes()


def test_seeds_of_units_meet_no_simulated_cohort_and_not_the_shipped_autoencoder():
    """Cohorts have small seeds (the autoencoder's from 9000 on) and count their patients; units have seeds below 2**63.

    A seed of a unit below 2**32 would be one word, as a cohort's is: the words themselves show that none meets.
    """
    units = [artifacts.unit_seed(seed, "simulated", number) for seed in range(4) for number in range(500)]
    assert min(units) > 2**32, "two words, so that the key is longer than that of any cohort"
    arms = {_states(seed, 0) for seed in units}
    assert len(arms) == len(units)
    cohorts = {_states(seed, 0) for seed in range(20_001)}
    cohorts |= {_states(shipped_autoencoder.FIRST_SEED + k, index) for k in range(4) for index in range(300)}
    assert not arms & cohorts
    frames, _ = simulate_patient(units[0], 0, 40.0, 1)
    assert not np.array_equal(frames, simulate_patient(units[1], 0, 40.0, 1)[0])


@pytest.mark.parametrize("name", ["wide", "no_frames", "literature"])
def test_a_frame_of_another_scanner_lies_in_its_own_sector(name):
    variant = phantom.VARIANTS[name]
    frames, masks = simulate_patient(12, 4, 40.0, 2, None, variant)
    patient = scanner.Patient(12, 4, 40.0, None, variant)
    sector = sector_mask(patient.sector)
    assert np.array_equal(masks > 0, np.broadcast_to(sector, masks.shape))
    outside = frames[0][~sector]
    assert not outside.any(), "marks are those of the real cohort's scanner"
    assert sector.sum() != sector_mask().sum()
    assert np.array_equal(frames[:1], simulate_patient(12, 4, 40.0, 1, None, variant)[0])


def test_a_deeper_scanner_shows_the_same_organs_smaller():
    """Pixels of an organ times their area are the organ's area inside the sector, in pixels of the anatomy."""
    steps = []
    for index in range(4):
        patient = scanner.Patient(12, index, 0.0, None, phantom.VARIANTS["wide"])
        labels, (x0, z0) = patient.anatomy.labels, patient.anatomy.origin
        z, x = np.mgrid[z0 : z0 + labels.shape[0], x0 : x0 + labels.shape[1]]
        row, column = z / patient.step + patient.sector.row, x / patient.step + patient.sector.column
        seen = np.abs(x) <= np.tan(np.radians(patient.sector.half_angle)) * z
        seen &= np.hypot(row - patient.sector.arc[0], column - patient.sector.arc[1]) <= patient.sector.arc[2]
        organ = [TISSUES["liver"], TISSUES["wall"]]
        shown = np.isin(patient.mask(0), organ).sum() * patient.step**2
        assert shown == pytest.approx((np.isin(labels, organ) & seen).sum(), rel=0.02)
        steps.append(patient.step)
    assert max(steps) / min(steps) > 1.1


def test_the_beam_is_narrowest_at_its_focus():
    spread = scanner.Spread(axial=0.6, beam=0.5, focus=200, focus_loss=0.8, near=(0.0, 8))
    _, lateral = scanner._filters(spread)
    band = (lateral > lateral[:, :1] / 2).sum(axis=1)  # frequencies that pass: many where the beam is narrow
    assert band.argmax() == pytest.approx(200, abs=25)
    assert band[200] > 1.5 * band[20]
    assert np.mean(lateral**2, axis=1) == pytest.approx(1, rel=1e-3)


def test_time_of_a_frame_of_another_scanner():
    """A patient with one frame in under 0.3 s of processor time, also where others use the machine."""
    times = []
    for index in range(3):
        start = time.process_time()
        simulate_patient(5, index, 20.0, 1, None, phantom.VARIANTS["wide"])
        times.append(time.process_time() - start)
    assert min(times) < 0.3


# ---------------------------------------------------------------- looks


def test_looks_of_smoothed_noise_are_those_worked_out():
    """Noise smoothed by a Gaussian of SD s has an autocovariance exp(-d**2 / (4 s**2)): 3.33 s at half maximum."""
    noise = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(300, 300)), (1.0, 1.5))
    frame = np.clip(100 + 20 * noise / noise.std(), 0, 255).astype(np.uint8)
    region = np.zeros((300, 300), bool)
    region[20:280, 30:270] = True
    found = looks.measure([frame, frame], [region, region], [7, 7]).loc[7]
    assert found["brightness"] == pytest.approx(99.5, abs=0.5)
    assert found["contrast"] == pytest.approx(20, rel=0.03)
    assert found["speckle_along"] == pytest.approx(4 * np.sqrt(np.log(2)), rel=0.08)
    assert found["speckle_across"] == pytest.approx(6 * np.sqrt(np.log(2)), rel=0.08)
    ramp = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 60, axis=1)
    depths = looks.measure([ramp], [np.ones((100, 60), bool)], [1]).loc[1, "depth_0":]
    assert depths.tolist() == pytest.approx([4.5 + 10 * i for i in range(10)])


def test_looks_of_simulated_patients_are_those_of_their_frames():
    variant = phantom.VARIANTS["half"]
    found = looks.simulated(variant, 2, 6)
    rng = np.random.default_rng([6, 10])
    healthy, fatty = (phantom.draw_fat(label, rng, variant) for label in (0, 1))
    assert healthy < 5 <= fatty
    frames, masks = simulate_patient(6, 1, fatty, 1, None, variant)
    assert found.loc[1, "brightness"] == pytest.approx(frames[masks > 0].mean(), rel=1e-5)
    assert found.loc[0, "brightness"] != found.loc[1, "brightness"]


def test_looks_are_drawn_over_patients():
    import matplotlib.pyplot as plt

    keys = [*looks.MEASURES, *(f"depth_{i}" for i in range(looks.BANDS))]
    groups = {
        "real": pd.DataFrame({key: np.arange(1.0, 5.0) for key in keys}),
        "simulated": pd.DataFrame({key: np.arange(2.0, 23.0) for key in keys}),
    }
    fig, axes = plt.subplots(1, 5)
    looks.draw(groups, axes, {"real": "black", "simulated": "blue"})
    assert axes[-1].lines[0].get_ydata().tolist() == [2.5] * looks.BANDS
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["real", "simulated"]
    plt.close(fig)


@pytest.mark.slow
def test_wide_scanners_cover_the_real_frames():
    path = os.environ.get("NAFLD_COHORT")
    if not path:
        pytest.skip("NAFLD_COHORT is unset: no real cohort to measure")
    from scipy.io import loadmat

    frames = np.stack(loadmat(path)["data"]["images"][0])[:, 0]
    real = looks.measure(frames, [sector_mask()] * 55, range(55))
    low, high = looks.simulated(phantom.VARIANTS["wide"], 30, 21).quantile([0.05, 0.95]).to_numpy()
    covered = ((real >= low) & (real <= high)).mean()
    assert covered[["brightness", "contrast"]].min() > 0.8
    assert covered.filter(like="depth").median() > 0.8


@pytest.mark.parametrize("name", ["full", "wide", "literature"])
def test_the_region_of_a_simulated_frame_is_its_sector(name):
    """Also of the darkest: what is cut from a frame does not depend on its brightness."""
    for index in (1, 3):
        frames, masks = simulate_patient(99, index, 80.0, 1, None, phantom.VARIANTS[name])
        region = images.region_mask(frames[0])
        assert (region & (masks[0] > 0)).sum() / (region | (masks[0] > 0)).sum() > 0.99
