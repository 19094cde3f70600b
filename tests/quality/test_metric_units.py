"""Stage 05 on the small run: what its units hold, who may see whom, and that every metric moves where it should."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import networks, params
from nafld_utils.cohort import simulate
from nafld_utils.images import extract_crop, resize_box, whole_box
from nafld_utils.quality import metric_tables
from nafld_utils.quality.metric_tables import FeatureSet

# ---------------------------------------------------------------- metrics on images


@pytest.fixture(scope="module")
def images():
    """Crops of simulated patients at 64 px with labels and patients."""
    settings = params.load("demo").preprocess
    cohort = simulate(20, 91, n_frames=2)
    crops = [extract_crop(f, settings.threshold, settings.closing_radius, 320) for f in cohort.pixels]
    pixels = np.stack([resize_box(crop, whole_box(crop), 64) for crop in crops])
    return pixels, cohort.images["label"].to_numpy(), cohort.images["patient_id"].to_numpy()


def measured(images, labels, patients, made, made_labels=None, made_patients=None):
    features, logits = networks.extract(images, "lite0", batch_size=16)
    found, found_logits = networks.extract(made, "lite0", batch_size=16)
    reference = FeatureSet("real", "reference", features, logits, labels, patients=patients)
    item = FeatureSet("made", "model", found, found_logits, made_labels, patients=made_patients)
    table = metric_tables.measure(reference, [item], "lite0", np.random.default_rng(0), 20, 10)
    return table[table["sample"] == "equal"].set_index(["class", "metric"])["value"]


def test_every_metric_moves_where_it_should(images):
    pixels, labels, patients = images
    half = np.isin(patients, np.unique(patients)[::2])
    real = pixels[half], labels[half], patients[half]
    other = measured(*real, pixels[~half], labels[~half], patients[~half])
    copied = measured(*real, *real)
    noise = measured(*real, np.random.default_rng(1).integers(0, 256, (40, 64, 64)).astype(np.uint8))
    constant = measured(*real, np.full((40, 64, 64), 90, np.uint8))
    repeated = measured(*real, pixels[:1].repeat(40, axis=0))
    swapped = measured(*real, pixels[half], 1 - labels[half], patients[half])
    assert copied["both", "frechet"] == pytest.approx(0.0, abs=1e-4 * other["both", "frechet"])
    assert copied["both", "kernel"] < 0.3 * abs(other["both", "kernel"])
    assert copied["both", "precision"] == copied["both", "coverage"] == 1.0
    for worse in (noise, constant, repeated):
        assert worse["both", "frechet"] > other["both", "frechet"]
        assert worse["both", "kernel"] > other["both", "kernel"]
    assert noise["both", "precision"] == constant["both", "precision"] == 0.0
    assert repeated["both", "score"] == pytest.approx(1.0)
    assert repeated["both", "recall"] <= other["both", "recall"]
    assert swapped["fatty", "frechet"] > copied["fatty", "frechet"] + 0.2 * other["fatty", "frechet"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8), np.uint8), "found none"),
        (np.zeros((3, 8, 8, 3), np.uint8), "found 3 channels"),
        (np.zeros((8, 8), np.uint8), "found shape"),
        ([np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)], "found sizes"),
        (np.full((2, 8, 8), np.nan), "float64 with NaN"),
        (np.full((2, 8, 8), -0.5), "values from -0.5 to -0.5"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=f"synthetic of fold 2: expected grey images .*{message}"):
        networks.extract(images, "lite0", name="synthetic of fold 2")


def test_an_empty_class_and_too_few_images_are_said_not_guessed():
    rng = np.random.default_rng(0)
    one = FeatureSet("real", "reference", rng.normal(size=(6, 4)), rng.normal(size=(6, 5)), np.ones(6, int))
    made = FeatureSet("made", "model", rng.normal(size=(6, 4)), rng.normal(size=(6, 5)), np.ones(6, int))
    one = FeatureSet(one.name, one.role, one.features, one.logits, one.labels, patients=np.arange(6))
    table = metric_tables.measure(one, [made], "lite0", rng, 2, 2)
    empty = table[(table["class"] == "healthy") & (table["model"] == "made")]
    assert empty["value"].isna().all()
    assert (empty["n_images"] == 0).all()
    notes = metric_tables.fold_intervals(table.assign(fold=0)).set_index(["model", "class", "metric"])["note"]
    assert notes["made", "healthy", "frechet"].iloc[0] == "fold 0: fewer than two images"
    with pytest.raises(ValueError, match="made: expected features"):
        networks.frechet_distance(rng.normal(size=(1, 4)), rng.normal(size=(3, 4)), ("made", "real"))


def test_frechet_distance_is_torchmetrics_and_torch_fidelitys():
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(90, 24)), rng.normal(0.3, 1.4, size=(70, 24))
    ours = networks.frechet_distance(a, b)
    stats = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    moments = [v for x in (a, b) for v in (torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False)))]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


def test_galleries_leave_out_what_is_withheld(monkeypatch):
    from types import SimpleNamespace

    from nafld_utils import preprocessing
    from nafld_utils.quality import galleries
    from nafld_utils.sampling import set_units

    pixels = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((6, 2, 2), np.uint8)
    real = SimpleNamespace(images=pd.DataFrame({"image_id": ["b", "a"]}), resized=pixels[:2] + 100)
    monkeypatch.setattr(set_units, "open_set", lambda run, generator, fold: SimpleNamespace(images=pixels + 10 * fold))
    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda run: real)
    facts = {"fold": 1, "row": range(6), "distance": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "nearest_image": list("aabbaa")}
    facts |= {"correlation": [0.9, 0.1, 0.8, 0.2, 0.3, 0.9]}
    judged = pd.DataFrame(facts).assign(generator="class", is_copy=[True, False, False, False, False, True])
    found = galleries.gallery(None, judged, "class", 2)
    near, far = ([int(item["image"].max()) for item in found[kind]] for kind in ("near", "far"))
    assert (near, far) == ([14, 13], [11, 12]), "the nearest and the farthest are copies"
    assert [item["row"] for item in galleries.spread(None, judged, "class", 3)] == [4, 2, 1]
    assert [item["row"] for item in galleries.spread(None, judged, "class", 9)] == [4, 3, 2, 1]
    assert galleries.spread(None, judged.assign(is_copy=True), "class") == []
    closest = galleries.closest(None, judged, "class", 3)
    assert [item["row"] for item in closest] == [0, 5, 2], "copies too"
    assert [int(item["nearest"].max()) for item in closest] == [101, 101, 100]


# ---------------------------------------------------------------- the small run


def test_every_synthetic_image_is_kept_or_withheld_with_a_reason(run):
    from nafld_utils import quality, sampling

    table = quality.release_unit(run).load_table("synthetic_release.csv")
    expected = run.settings.sampling.n_images * run.settings.folds.n_splits
    assert table.groupby("generator").size().to_dict() == dict.fromkeys(sampling.generators(run), expected)
    assert table["synthetic_id"].is_unique
    assert set(table["release"]) <= {"kept", "withheld"}
    assert table["why"].str.len().gt(10).all()
    assert (table["release"] == "withheld").equals(table["copy"].astype(bool))


def test_nearest_frames_are_training_frames_of_the_fold(run):
    from nafld_utils import preprocessing
    from nafld_utils.networks import copy_rules
    from nafld_utils.quality import copy_units

    images = preprocessing.open_preprocessed(run).images.set_index("image_id")
    for fold, part in copy_units.audits(run).groupby("fold"):
        for name in copy_rules.MEASURES:
            assert (images.loc[part[f"{name}_image"], "fold"] != fold).all(), name
            assert (images.loc[part[f"{name}_image"], "patient_id"].to_numpy() == part[f"{name}_patient"]).all(), name


def test_planted_copies_are_found_in_the_small_run_too(run):
    from nafld_utils import preprocessing, quality
    from nafld_utils.quality import copy_units

    checked = quality.calibration(run)
    table = checked.set_index("set")
    assert table.loc["planted: exact copies", "copy"] == 1.0
    assert table.loc[copy_units.HELD_OUT, "n"] == 8
    # the fold with the fewest training patients; twice 2 / (n + 1)
    patients = preprocessing.open_preprocessed(run).images.groupby("fold")["patient_id"].nunique()
    n = patients.sum() - patients.max()
    assert table.loc[copy_units.HELD_OUT, "by_chance"] == pytest.approx(4 / (n + 1))
    found = copy_units.reading(run, quality.summary(run), checked)[-1]
    assert f"With only {n} training patients to set the thresholds, up to {100 * 4 / (n + 1):.3g} % of new" in found
    assert found.endswith(
        f"({100 * 2 / (n + 1):.3g} % by pixels, {100 * 2 / (n + 1):.3g} % by latents and features"
        " together), so this audit shows little: 5 % per rule needs 39."
    )


def test_the_filter_reads_training_patients_only(run):
    """Held-out patients changed to nonsense leave the choice as it was."""
    from nafld_utils import quality, sampling
    from nafld_utils.quality import precision_recall

    kind, generator, fold = run.settings.quality.features, run.settings.filtered_generator, 0
    table = sampling.real_table(run)
    real, _ = sampling.load_features(run, kind, sampling.REAL)
    real = np.where((table["fold"] == fold).to_numpy()[:, None], 1e3, real)
    training = (table["fold"] != fold).to_numpy()
    made, _ = sampling.load_features(run, kind, generator, fold)
    stored = quality.unit_of(run, fold).load_table("table.csv")
    args = real[training], table["patient_id"][training]
    again = precision_recall.realism(made, *args, run.settings.quality.neighbours)
    fatty = sampling.condition_separation(args[0], table["label"][training], made)
    assert stored["realism"].to_numpy() == pytest.approx(again)
    assert stored["agreement"].to_numpy() == pytest.approx(np.where(stored["label"] == 1, fatty, 1 - fatty))


def test_the_filtered_set_opens_as_a_set_of_its_fold(run):
    from nafld_utils import quality

    found = quality.open_set(run, "filtered", 1)
    assert len(found.images) == len(found.table) > 0
    assert set(found.table["fold"]) == {1}
    whole = quality.open_set(run, run.settings.filtered_generator, 1)
    place = int(np.flatnonzero(whole.table["synthetic_id"] == found.table["synthetic_id"].iloc[0])[0])
    assert (whole.images[place] == found.images[0]).all()


def test_the_gan_says_its_steps_its_operations_and_its_seconds(run):
    from nafld_utils import ldm
    from nafld_utils.ldm import gan, gan_units

    table, steps = ldm.table(run), run.settings.gan.steps
    assert table["steps"].eq(steps).all()
    counts = gan.step_operations((4, 8, 8), run.settings.section("gan"))
    assert len(counts) == steps
    assert table["gflop"].tolist() == pytest.approx([sum(counts) / 1e9] * len(table))
    assert table["gflop_given"].isna().all(), "its steps are set, not given"
    assert (table[["seconds", "seconds_beside"]] > 0).all(axis=None)
    assert len(gan_units.curves(run)) == steps * run.settings.folds.n_splits


def test_no_number_of_the_papers_stands_beside_other_features(run):
    from nafld_utils import quality
    from nafld_utils.quality import metric_units

    claims = pd.DataFrame(metric_units.claims(run, quality.load_intervals(run)))
    assert claims["paper"].isna().all()
    quoted = metric_units.quoted()
    assert {69.45, 100.05, 104.83, 72.95, 104.29, 69.77} == {*quoted["FID"]}
    assert {1.90, 1.67, 1.79, 1.81, 1.84, 1.89} == {*quoted["IS"]}
    assert quoted["source"].str.contains("paper").all()


def as_in_the_paper(*overrides):
    from nafld_utils import artifacts

    return artifacts.open_run("paper", overrides)


def test_the_papers_settings_are_its_protocol_whatever_batching_and_records_are():
    from nafld_utils.quality import metric_units

    free = [
        "ldm.accumulate=2",
        "ldm.checkpoint_every=500",
        "ldm.log_every=5",
        "ldm.preview_every=0",
        "ldm.precision=tf32",
    ]
    free += [
        "sampling.batch_size=7",
        "sampling.n_compared=0",
        "sampling.n_null=10",
        "autoencoder.semantic.revision=abc",
    ]
    free += ["ldm.class.channel_mult=[1, 2]", "ldm.balance=[none]", "engine.compile=true"]
    assert metric_units.protocol_difference(as_in_the_paper(), "semantic") == "yes"
    assert metric_units.protocol_difference(as_in_the_paper(*free), "semantic") == "yes"
    original = ["source=ldm_checkpoint", "kind=vq", "scale=1.0", "path=model.ckpt", f"sha256='{'0' * 64}'"]
    original = [f"autoencoder.class.{text}" for text in original]
    assert metric_units.protocol_difference(as_in_the_paper(*original), "class") == "yes"
    assert "source hub, kind kl" in metric_units.protocol_difference(as_in_the_paper(), "class")


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["autoencoder.semantic.source=random"], "another semantic autoencoder (source random, kind vq"),
        (["autoencoder.semantic.source=train"], "another semantic autoencoder (source train, kind vq"),
        (["autoencoder.semantic.hub_id=someone/else"], "another semantic autoencoder (source hub"),
        (["sampling.scheduler=dpmsolver++", "sampling.eta=0"], "other sampling (scheduler dpmsolver++, eta 0.0)"),
        (["sampling.eta=0.5"], "other sampling (eta 0.5)"),
        (["sampling.guidance=2.0"], "other sampling (guidance 2.0)"),
        (["sampling.n_images=20"], "other sampling (n_images 20)"),
        (["ldm.folds=[0, 1]"], "2 of 5 folds, not 5"),
        (["folds.n_splits=10", "ldm.folds=[0, 1, 2, 3, 4]"], "5 of 10 folds, not 5"),
        (["ldm.steps=2"], "other training (steps 2)"),
        (["ldm.min_snr_gamma=5.0"], "other training (min_snr_gamma 5.0)"),
        (["ldm.semantic.channel_mult=[1, 4, 8]"], "another semantic network (channel_mult [1, 4, 8])"),
        (["cohort.source=simulated"], "simulated cohort"),
        (["quality.features=lite0"], "not Inception-v3"),
        (["preprocess.image_size=128"], "128 px"),
    ],
)
def test_every_other_setting_of_a_model_or_its_images_is_another_protocol(overrides, word):
    from nafld_utils.quality import metric_units

    found = metric_units.protocol_difference(as_in_the_paper(*overrides), "semantic")
    assert found.startswith("no: ")
    assert word in found


def test_a_set_of_another_fold_is_refused(run, monkeypatch):
    from nafld_utils import quality, sampling
    from nafld_utils.sampling import set_units

    unit = sampling.synthetic_unit(run, "semantic", 1)
    monkeypatch.setattr(set_units, "synthetic_unit", lambda *args, **kwargs: unit)
    with pytest.raises(ValueError, match="expected images of fold 0"):
        quality.open_set(run, "semantic", 0)
