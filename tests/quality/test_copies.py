"""The copy audit: correlation by eye, nearest frames by patient, thresholds, planted copies, real patients."""

import resource
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_frames import smooth

from nafld_utils import artifacts, cohort, engine, ldm, networks, params, preprocessing, sampling, statistics
from nafld_utils.images import extract_crop, resize_box, whole_box
from nafld_utils.networks import copy_rules
from nafld_utils.quality import copies, copy_units


def rng(seed=0):
    return np.random.default_rng(seed)


def test_relative_distance_and_threshold_by_hand():
    nearest = networks.Nearest(np.array([1, 2, 3]), np.array([[1.0, 4.0, 6.0]], np.float32), np.zeros((1, 3), int))
    row = copy_rules.statistics(nearest).iloc[0]
    assert (row["patient"], row["distance"], row["relative"]) == (1, 1.0, pytest.approx(0.2))
    real = pd.DataFrame({"distance": [5.0, 1.0, 4.0, 3.0], "relative": [0.5, 0.1, 0.4, 0.3]})
    found = copy_rules.thresholds(real, np.array([1, 1, 2, 2]))
    assert found == {"distance": 1.0, "relative": 0.1}
    many = pd.DataFrame({"distance": np.arange(79.0)[::-1], "relative": np.arange(79.0)})
    assert copy_rules.thresholds(many, np.arange(79)) == {"distance": 1.0, "relative": 1.0}, "the second of 79 patients"


def near(apart, n):
    """Which of all patients come nearer to another than the threshold that all others set, by distances (N, N)."""
    apart = np.where(np.eye(len(apart), dtype=bool), np.inf, apart)
    out = []
    for i in range(len(apart)):
        others = np.delete(np.delete(apart, i, 0), i, 1)
        real = pd.DataFrame({"distance": others.min(axis=1), "relative": 0.0})
        out.append(apart[i].min() < copy_rules.thresholds(real, np.arange(n))["distance"])
    return np.flatnonzero(out).tolist()


def test_of_any_patients_no_more_are_near_than_the_bound_says():
    """Each patient in turn is new; the bound holds for all kinds of distances, and is met by the nearest pair."""
    for seed in range(12):
        n = (12, 20, 40)[seed % 3]
        apart = rng(seed).exponential(size=(n + 1, n + 1)) * rng(seed + 1).lognormal(0.0, 1.0, n + 1)[None]
        if seed % 2:
            apart = apart + apart.T
        share = len(near(apart, n)) / (n + 1)
        assert share <= copy_rules.by_chance(n)["measure"] + 1e-12
        if seed % 2:
            assert share == 2 / (n + 1), "the two of the nearest pair, where distances have no direction"


def test_the_bound_is_met_where_distances_have_a_direction():
    apart = np.full((80, 80), 10.0)
    apart[4, 2], apart[3, 1], apart[2, 1], apart[1, 9] = 1.0, 2.0, 3.0, 4.0
    apart += rng().uniform(0.0, 0.1, apart.shape)
    assert near(apart, 79) == [1, 2, 3, 4]
    assert copy_rules.by_chance(79) == {"measure": 0.05, "verdict": 0.1}


def test_few_patients_have_the_minimum_and_its_rate():
    assert copy_rules.order(12) == copy_rules.order(38) == copy_rules.order(78) == 1
    assert copy_rules.by_chance(12)["measure"] == pytest.approx(2 / 13)
    assert copy_rules.by_chance(2)["verdict"] == 1.0


def line(places, own):
    """`Nearest` of frames at places on a line, the same under every measure."""
    apart = np.abs(np.subtract.outer(places, places))
    patients = np.unique(own)
    distance = np.stack([apart[:, own == patient].min(axis=1) for patient in patients], axis=1).astype(np.float32)
    return dict.fromkeys(copy_rules.MEASURES, networks.Nearest(patients, distance, np.zeros(distance.shape, int)))


def test_the_nominal_rate_of_five_patients_by_hand():
    """The first two, whose frames are nearest to each other, are copies by the rule of the rest, the others are not.

    Without the first, the others are 11 apart and more, in relation 11 / 46 = 0.24 (of the frame at 9); the first one's
    frames are 5 and 4 from the second one, 5 / 43 = 0.12 and 4 / 42 = 0.09. Without the second the others are 19 apart
    and more, 19 / 54 = 0.35 (of that at 1); its frames are 8 and 4 from the first one, 8 / 34 = 0.23 and 4 / 38 = 0.10.
    Without another one, these two are 4 apart, and nobody is nearer.
    """
    own = np.array([1, 1, 2, 2, 3, 4, 5])
    found = copy_rules.left_out(line(np.array([0.0, 1.0, 9.0, 5.0, 20.0, 40.0, 70.0]), own), own)
    assert found.tolist() == [True, True, True, True, False, False, False]
    assert copy_rules.nominal(found, own) == pytest.approx((1 + 2) / 6)


def test_of_three_patients_none_can_be_left_out():
    own = np.array([1, 2, 3])
    found = copy_rules.left_out(line(np.array([0.0, 1.0, 5.0]), own), own)
    assert copy_rules.nominal(found, own) == 1.0


def test_images_of_new_patients_are_called_copies_no_more_often_than_the_nominal_rate():
    """On average over toy cohorts of four patients with two frames each, and 40 more patients like them.

    The test of a checkpoint is over images, given its cohort: over cohorts, a model that draws these 40 new patients is
    told to copy in more than the 5 % of the test, since four patients say little of how near new ones come.
    """
    own, shares, rates, told = np.repeat(np.arange(44), 2), [], [], []
    known = own < 4
    for seed in range(60):
        places = rng(seed).normal(size=(44, 6))[own] + 0.3 * rng(seed + 1000).normal(size=(88, 6))
        near = networks.nearest_features(places, places[known], own[known])
        train, new = (networks.Nearest(near.patients, near.distance[rows], near.row[rows]) for rows in (known, ~known))
        limits = copy_rules.thresholds(copy_rules.statistics(train.without_own(own[known])), own[known])
        found = copy_rules.flags(*(dict.fromkeys(copy_rules.MEASURES, x) for x in (copy_rules.statistics(new), limits)))
        shares.append(found["copy"].mean())
        left = copy_rules.left_out(dict.fromkeys(copy_rules.MEASURES, train), own[known])
        rates.append(copy_rules.nominal(left, own[known]))
        copies = int(found["copy"][::2].sum())
        told.append(ldm.over_training_units.at_least(copies, 40, rates[-1]) < 0.05)
    assert 0.05 < np.mean(shares) < np.mean(rates) < 0.45 < copy_rules.by_chance(4)["verdict"]
    assert np.mean(told) < 0.2


def test_one_patient_is_too_few():
    nearest = networks.Nearest(np.array([1]), np.ones((2, 1), np.float32), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="at least two patients"):
        copy_rules.statistics(nearest)


def test_authentic_images_are_farther_than_other_patients_are():
    found = pd.DataFrame({"distance": [0.5, 3.0], "row": [0, 1]})
    assert copy_rules.authentic(found, pd.DataFrame({"distance": [1.0, 2.0]})).tolist() == [False, True]


def test_verdict_needs_pixels_or_both_others():
    table = pd.DataFrame({"pixels": [1, 0, 0, 0], "latents": [0, 1, 1, 0], "features": [0, 1, 0, 1]}, dtype=bool)
    assert copy_rules.verdict(table).tolist() == [True, True, False, False]


@pytest.fixture(scope="module")
def search():
    """Simulated patients, 24 of whom 18 are known, and the audit's search among the known as stage 05 runs it."""
    from nafld_utils.ldm import autoencoder

    settings = params.load("demo").preprocess
    drawn = cohort.simulate(24, 77, n_frames=2)
    crops = np.stack([extract_crop(f, settings.threshold, settings.closing_radius, 320) for f in drawn.pixels])
    images = np.stack([resize_box(c, whole_box(c), 64) for c in crops])
    patients = drawn.images["patient_id"].to_numpy()
    known = patients <= 18
    stage = autoencoder.load_shipped()

    def measured(x):
        latents = ldm.encode_images(stage, x, torch.device("cpu"))
        features, _ = networks.extract(x, "lite0", batch_size=16)
        return x, latents, features

    reference, own = measured(images[known]), patients[known]

    def near(x, left_out=None):
        parts = measured(x)
        found = [networks.nearest_pixels(x, reference[0], own)]
        found += [networks.nearest_features(q, r, own) for q, r in zip(parts[1:], reference[1:], strict=True)]
        found = [one if left_out is None else one.without_own(left_out) for one in found]
        return {name: copy_rules.statistics(one) for name, one in zip(copy_rules.MEASURES, found, strict=True)}

    real = near(images[known], own)
    limits = {name: copy_rules.thresholds(one, own) for name, one in real.items()}
    return images, patients, known, lambda x: copy_rules.flags(near(x), limits)


def test_copies_under_every_change_are_found(search):
    """Of 20 each, at 64 pixels; the chance of a run of bad luck is shared by no two changes."""
    images, _, known, flags = search
    share = {}
    for name in copies.CHANGES:
        found = flags(copies.plant(images[known][:20], name, rng(3)))
        share[name] = found["copy"].mean()
        assert found.loc[found["copy"], "why"].str.contains("nearer to a training patient").all()
    assert share["exact copies"] == 1.0
    assert min(share.values()) >= 0.9, share


def test_new_patients_are_not_called_copies(search):
    images, patients, known, flags = search
    fresh = flags(images[~known])
    flagged = fresh.groupby(patients[~known])["copy"].any()
    assert flagged.sum() <= 1, "six new patients, at most 2 in 19 per measure"
    assert (fresh["why"] == "").sum() == (~fresh["copy"]).sum()


@pytest.mark.slow
def test_changed_copies_are_told_from_new_patients_in_the_real_cohort(real_patients):
    """By pixels alone, two frames per patient; crops of crops and new speckle are found less often than the rest."""
    found, settings = real_patients, params.load("paper").preprocess
    rows = np.flatnonzero(found.images.groupby("patient_id").cumcount() % 5 == 0)
    boxes = [extract_crop(found.pixels[i], settings.threshold, settings.closing_radius, 320) for i in rows]
    images = np.stack([resize_box(x, whole_box(x), 128) for x in boxes])
    patients = found.images["patient_id"].to_numpy()[rows]
    known = np.isin(patients, np.unique(patients)[:44])
    own = patients[known]

    def near(x):
        return networks.nearest_pixels(x, images[known], own)

    limits = copy_rules.thresholds(copy_rules.statistics(near(images[known]).without_own(own)), own)

    def flagged(x):
        return (copy_rules.statistics(near(x))[list(limits)] < pd.Series(limits)).all(axis=1).to_numpy()

    planted = images[known][::2][:40]
    share = {name: flagged(copies.plant(planted, name, rng(4))).mean() for name in copies.CHANGES}
    hard = [share.pop(name) for name in ("cropped copies", "redrawn copies")]
    assert min(share.values()) >= 0.9, share
    assert min(hard) >= 0.6, hard
    new = pd.Series(flagged(images[~known])).groupby(patients[~known]).any()
    assert new.sum() <= 1, "at most 2 in 45 by this measure"


def changed(name, image, seed=0):
    return copies.plant(np.asarray(image)[None], name, rng(seed))[0]


def test_changes_of_planted_copies_are_what_their_names_say():
    """On a ramp, where every change is known by hand."""
    ramp = np.broadcast_to(np.arange(40, 168, dtype=np.uint8), (128, 128))
    assert (changed("exact copies", ramp) == ramp).all()
    assert (changed("flipped copies", ramp) == ramp[:, ::-1]).all()
    cropped = changed("cropped copies", ramp).astype(float)
    assert np.diff(cropped[64]).mean() == pytest.approx(0.8**0.5, abs=0.02), "a ramp of 0.8 of the area is less steep"
    turned = changed("rotated copies", ramp)[44:84, 44:84].astype(float)
    slope = np.rad2deg(np.arctan2(np.diff(turned, axis=0).mean(), np.diff(turned, axis=1).mean()))
    assert 0.5 < abs(slope) <= 10.0
    gain, gamma = rng().uniform(0.8, 1.2, size=2)
    assert changed("brightened copies", ramp)[0, 60] == round(255 * gain * (100 / 255) ** gamma)
    moved = np.abs(changed("warped copies", ramp).astype(float) - ramp)[20:-20, 20:-20]
    assert 0.5 < moved.mean() < 6.0, "grey levels are pixels here; the SD of the control points is 2.6"
    assert 1.0 < np.abs(changed("augmented copies", smooth(1)[0]).astype(float) - smooth(1)[0]).mean() < 40.0


def test_redrawn_speckle_keeps_the_mean_and_the_spread_and_nothing_else():
    grain = np.hypot(*rng(5).normal(size=(2, 128, 128)))
    image = (100 * grain / grain.mean()).clip(1, 255).astype(np.uint8)
    drawn = changed("redrawn copies", image)
    assert drawn.mean() == pytest.approx(image.mean(), rel=0.05)
    assert drawn.std() == pytest.approx(image.std(), rel=0.2)
    assert abs(np.corrcoef(image.ravel(), drawn.ravel())[0, 1]) < 0.1


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
    near = {f"{name}_near": False for name in copy_rules.MEASURES}
    facts = {"pixels_patient": "a", "authentic": True, "source_patient": [-1] * 8, "fold": [0, 0, 1, 1, 2, 2, 3, 3]}
    some = pd.DataFrame({"generator": "gan", "copy": [True] + [False] * 7, **facts, **near})
    drawn = pd.concat([some, some.assign(generator="class", copy=False)])
    held = some.assign(copy=False, patient_id=list("abcdefgh"), planted="exact copies")
    monkeypatch.setattr(copy_units, "audits", lambda run: drawn)
    monkeypatch.setattr(copy_units, "_references", lambda run, name: held)
    summary = copy_units.summary(None)
    found = summary.set_index("set")
    assert found.loc["gan", ["low", "high"]].tolist() == pytest.approx(statistics.exact_interval(1, 8))
    assert found.loc["gan", "low"] < 0.01
    for name in ("class", copy_units.HELD_OUT):
        assert found.loc[name, ["low", "high"]].tolist() == pytest.approx(statistics.exact_interval(0, 8))
    assert "nan" not in " ".join(copy_units.reading(None, summary, copy_units.calibration(None)))


def test_a_fold_reads_of_the_common_search_what_its_own_would_find(tmp_path, monkeypatch):
    """Of simulated patients and of real ones, training and held out, in three folds of two patients with two frames."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke", {"engine.device": "cpu"})
    patient = np.array([4, 1, 4, 6, 2, 6, 1, 3, 2, 5, 5, 3])
    facts = pd.DataFrame({"patient_id": patient, "fold": patient % 3})
    data = SimpleNamespace(images=facts, pool=smooth(24, seed=1).reshape(12, 2, 64, 64), resized=smooth(12))
    drawn = SimpleNamespace(images=smooth(5, seed=2))
    monkeypatch.setattr(preprocessing, "open_preprocessed", lambda run: data)
    monkeypatch.setattr(sampling, "open_set", lambda *_: drawn)
    for name in (sampling.REAL, params.SIMULATED):
        copy_units.search(run, name)
    for fold in range(3):
        training, held_out = (np.flatnonzero(known) for known in (patient % 3 != fold, patient % 3 == fold))
        frames = SimpleNamespace(training=training, patients=patient)
        queries = {rows.tobytes(): (sampling.REAL, data.pool[rows, 0], rows) for rows in (training, held_out)}
        for name, images, *rows in [*queries.values(), (params.SIMULATED, drawn.images)]:
            found = copy_units.searched(run, name, frames, *rows)
            wanted = networks.nearest_pixels(images, data.resized[training], patient[training])
            assert found.patients.tolist() == wanted.patients.tolist()
            assert (found.row == wanted.row).all()
            assert found.distance == pytest.approx(wanted.distance, abs=1e-6)


@pytest.mark.parametrize(
    ("missing", "searched"),
    [((), []), (("reference",), ["real"]), (("gan",), []), (("simulated",), ["simulated"]),
     (("reference", "gan", "simulated"), ["real", "simulated"])],
)  # fmt: skip
def test_the_common_search_is_made_where_an_audit_needs_it_and_nowhere_else(monkeypatch, missing, searched):
    run, seen = artifacts.open_run("smoke", {}), []
    ready, absent = (SimpleNamespace(done=lambda done=done: done) for done in (True, False))
    monkeypatch.setattr(copy_units, "reference_unit", lambda **_: absent if "reference" in missing else ready)
    monkeypatch.setattr(copy_units, "audit_unit", lambda generator, **_: absent if generator in missing else ready)
    monkeypatch.setattr(copy_units, "release_unit", lambda run: ready)
    monkeypatch.setattr(engine, "map_units", lambda function, tasks, *_, **__: seen.append((function.__name__, tasks)))
    copy_units.audit_copies(run)
    names = [task["name"] for function, tasks in seen for task in tasks if function == "search"]
    assert names == searched
    assert [function for function, _ in seen][-2:] == ["make_reference", "audit"]
