"""The copy audit: correlation by eye, nearest frames by patient, thresholds, planted copies, real patients."""

import resource
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from toy_frames import smooth

from nafld_utils import networks, params, quality, statistics
from nafld_utils.images import extract_crop, resize_box, whole_box
from nafld_utils.quality import copies


def rng(seed=0):
    return np.random.default_rng(seed)


def test_relative_distance_and_threshold_by_hand():
    nearest = networks.Nearest(np.array([1, 2, 3]), np.array([[1.0, 4.0, 6.0]], np.float32), np.zeros((1, 3), int))
    row = copies.statistics(nearest).iloc[0]
    assert (row["patient"], row["distance"], row["relative"]) == (1, 1.0, pytest.approx(0.2))
    real = pd.DataFrame({"distance": [5.0, 1.0, 4.0, 3.0], "relative": [0.5, 0.1, 0.4, 0.3]})
    found = copies.thresholds(real, np.array([1, 1, 2, 2]))
    assert found == {"distance": 1.0, "relative": 0.1}
    many = pd.DataFrame({"distance": np.arange(79.0)[::-1], "relative": np.arange(79.0)})
    assert copies.thresholds(many, np.arange(79)) == {"distance": 1.0, "relative": 1.0}, "the second of 79 patients"


def near(apart, n):
    """Which of all patients come nearer to another than the threshold that all others set, by distances (N, N)."""
    apart = np.where(np.eye(len(apart), dtype=bool), np.inf, apart)
    out = []
    for i in range(len(apart)):
        others = np.delete(np.delete(apart, i, 0), i, 1)
        real = pd.DataFrame({"distance": others.min(axis=1), "relative": 0.0})
        out.append(apart[i].min() < copies.thresholds(real, np.arange(n))["distance"])
    return np.flatnonzero(out).tolist()


def test_of_any_patients_no_more_are_near_than_the_bound_says():
    """Each patient in turn is new; the bound holds for all kinds of distances, and is met by the nearest pair."""
    for seed in range(12):
        n = (12, 20, 40)[seed % 3]
        apart = rng(seed).exponential(size=(n + 1, n + 1)) * rng(seed + 1).lognormal(0.0, 1.0, n + 1)[None]
        if seed % 2:
            apart = apart + apart.T
        share = len(near(apart, n)) / (n + 1)
        assert share <= copies.by_chance(n)["measure"] + 1e-12
        if seed % 2:
            assert share == 2 / (n + 1), "the two of the nearest pair, where distances have no direction"


def test_the_bound_is_met_where_distances_have_a_direction():
    apart = np.full((80, 80), 10.0)
    apart[4, 2], apart[3, 1], apart[2, 1], apart[1, 9] = 1.0, 2.0, 3.0, 4.0
    apart += rng().uniform(0.0, 0.1, apart.shape)
    assert near(apart, 79) == [1, 2, 3, 4]
    assert copies.by_chance(79) == {"measure": 0.05, "verdict": 0.1}


def test_few_patients_have_the_minimum_and_its_rate():
    assert copies.order(12) == copies.order(38) == copies.order(78) == 1
    assert copies.by_chance(12)["measure"] == pytest.approx(2 / 13)
    assert copies.by_chance(2)["verdict"] == 1.0


def test_one_patient_is_too_few():
    nearest = networks.Nearest(np.array([1]), np.ones((2, 1), np.float32), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="at least two patients"):
        copies.statistics(nearest)


def test_authentic_images_are_farther_than_other_patients_are():
    found = pd.DataFrame({"distance": [0.5, 3.0], "row": [0, 1]})
    assert copies.authentic(found, pd.DataFrame({"distance": [1.0, 2.0]})).tolist() == [False, True]


def test_verdict_needs_pixels_or_both_others():
    table = pd.DataFrame({"pixels": [1, 0, 0, 0], "latents": [0, 1, 1, 0], "features": [0, 1, 0, 1]}, dtype=bool)
    assert copies.verdict(table).tolist() == [True, True, False, False]


@pytest.mark.parametrize("augment", [False, True])
def test_planted_copies_are_found_and_new_patients_are_not(augment):
    """Simulated patients through pixels, latents and features, as stage 05 runs them."""
    from nafld_utils import ldm, networks
    from nafld_utils.cohort import simulate
    from nafld_utils.ldm import autoencoder

    settings = params.load("demo").preprocess
    cohort = simulate(24, 77, n_frames=2)
    crops = np.stack([extract_crop(f, settings.threshold, settings.closing_radius, 320) for f in cohort.pixels])
    images = np.stack([resize_box(c, whole_box(c), 64) for c in crops])
    patients = cohort.images["patient_id"].to_numpy()
    known = patients <= 18
    stage = autoencoder.load_shipped()

    def measured(x):
        latents = ldm.encode_images(stage, x, torch.device("cpu"))
        features, _ = networks.extract(x, "lite0", batch_size=16)
        return x, latents, features

    reference, own = measured(images[known]), patients[known]

    def search(x):
        parts = measured(x)
        near = [networks.nearest_pixels(x, reference[0], own)]
        near += [networks.nearest_features(q, r, own) for q, r in zip(parts[1:], reference[1:], strict=True)]
        return dict(zip(quality.copies.MEASURES, near, strict=True))

    real = {n: quality.copies.statistics(f.without_own(own)) for n, f in search(images[known]).items()}
    limits = {n: quality.copies.thresholds(f, own) for n, f in real.items()}
    copies = quality.copies.plant(images[known][:20], augment, resize_box, rng(3))
    found = quality.copies.flags({n: quality.copies.statistics(f) for n, f in search(copies).items()}, limits)
    assert found["copy"].mean() >= (0.9 if augment else 1.0)
    assert found.loc[found["copy"], "why"].str.contains("nearer to a training patient").all()
    fresh = quality.copies.flags({n: quality.copies.statistics(f) for n, f in search(images[~known]).items()}, limits)
    flagged = fresh.groupby(patients[~known])["copy"].any()
    assert flagged.sum() <= 1, "six new patients, at most 2 in 19 per measure"
    assert (fresh["why"] == "").sum() == (~fresh["copy"]).sum()


def test_exact_copies_are_exact_and_changed_ones_are_changed():
    images = smooth(3)
    assert (copies.plant(images, False, resize_box, rng()) == images).all()
    changed = copies.plant(images, True, resize_box, rng())
    assert 1.0 < np.abs(changed.astype(float) - images).mean() < 40.0


def test_memory_stays_flat_with_the_number_of_images():
    reference = rng(0).normal(size=(440, 1280)).astype(np.float32)
    patients = np.arange(440) // 10
    queries = np.lib.stride_tricks.as_strided(
        rng(1).normal(size=(1, 1280)).astype(np.float32), (10_000, 1280), (0, 4), writeable=False
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = networks.nearest_features(queries, reference, patients)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert found.distance.shape == (10_000, 44)
    assert grown < 200 * 2**20, f"{grown / 2**20:.0f} MiB for 10,000 images against 440"


def test_shares_of_copies_are_bounded_where_nothing_and_where_one_is_flagged(monkeypatch):
    """No "nan%" where every fold has none, and one flagged image is no lower bound above chance."""
    from nafld_utils.quality import copy_units

    near = {f"{name}_near": False for name in copies.MEASURES}
    facts = {"pixels_patient": "a", "authentic": True, "source_patient": [-1] * 8, "fold": [0, 0, 1, 1, 2, 2, 3, 3]}
    some = pd.DataFrame({"generator": "gan", "copy": [True] + [False] * 7, **facts, **near})
    drawn = pd.concat([some, some.assign(generator="class", copy=False)])
    held = some.assign(copy=False, patient_id=list("abcdefgh"), planted="exact copies")
    monkeypatch.setattr(copy_units, "audits", lambda run: drawn)
    monkeypatch.setattr(copy_units, "_references", lambda run, name: held)
    found = copy_units.summary(None).set_index("set")
    assert found.loc["gan", ["low", "high"]].tolist() == pytest.approx(statistics.exact_interval(1, 8))
    assert found.loc["gan", "low"] < 0.01
    for name in ("class", copy_units.HELD_OUT):
        assert found.loc[name, ["low", "high"]].tolist() == pytest.approx(statistics.exact_interval(0, 8))
    assert "nan" not in " ".join(copy_units.reading(None))
