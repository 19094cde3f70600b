"""Other cohorts scored by a run's classifiers: by hand, and on simulated patients of the same and of other scanners."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nafld_utils import artifacts, cohort, params, phantom, preprocessing, release, statistics, sweep
from nafld_utils.sweep import frozen_classifiers, verdict
from nafld_utils.sweep.elsewhere import classifier_units, figures, measures, scored_units

# ---------------------------------------------------------------- by hand


def table(scores, label=(0, 0, 1, 1)):
    """Scores of two folds' classifiers, ``(2, patients, images)``, of one scorer."""
    rows = []
    for fold, one in enumerate(scores):
        for patient, images in enumerate(one):
            for image, score in enumerate(images):
                facts = {"image_id": f"p{patient}_{image}", "patient_id": patient, "label": label[patient]}
                rows.append({"scorer": params.REAL, "fold": fold, **facts, "score": score})
    return pd.DataFrame(rows)


# patient 1 has one image; by fold the patients' means are .2 .4 .3 .8 and .4 .2 .6 .6
TWO = [[(0.1, 0.3), (0.4,), (0.2, 0.4), (0.8, 0.8)], [(0.4, 0.4), (0.2,), (0.6, 0.6), (0.5, 0.7)]]


def test_a_patients_score_is_the_mean_over_images_and_then_over_the_folds_classifiers():
    found = measures.by_patient(table(TWO), params.REAL)
    assert found.scores == pytest.approx(np.array([[0.2, 0.4, 0.3, 0.8], [0.4, 0.2, 0.6, 0.6]]))
    assert found.mean.tolist() == pytest.approx([0.3, 0.3, 0.45, 0.7])
    listed = measures.patients(table(TWO), params.REAL)
    assert listed["images"].tolist() == [2, 1, 2, 2]
    assert listed["lowest"].tolist() == pytest.approx([0.2, 0.2, 0.3, 0.6])
    assert listed["highest"].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.8])


def test_single_classifiers_are_compared_with_those_at_home_and_their_mean_stands_beside():
    """Three and four of four pairs in order: 0.875 for one classifier, 1 for the mean of both; at home three."""
    home = pd.DataFrame({"image_id": list("abcd"), "patient_id": [1, 2, 3, 4], "label": [0, 0, 1, 1]})
    home = home.assign(score=[0.1, 0.5, 0.4, 0.9], scorer=params.REAL)
    row = measures.compared(table(TWO), home, "newcombe").iloc[0]
    assert (row["auc"], row["together"], row["here"], row["drop"]) == pytest.approx((0.875, 1.0, 0.75, -0.125))
    there = statistics.mean_auc_interval([0, 0, 1, 1], [[0.2, 0.4, 0.3, 0.8], [0.4, 0.2, 0.6, 0.6]], [1, 2, 3, 4])
    here = statistics.auc_interval(home["label"], home["score"], home["patient_id"])
    low = -0.125 - np.sqrt((here.auc - here.low) ** 2 + (there.high - there.auc) ** 2)
    high = -0.125 + np.sqrt((here.high - here.auc) ** 2 + (there.auc - there.low) ** 2)
    assert (row["drop_low"], row["drop_high"]) == pytest.approx((low, high))
    assert row["together_over"].startswith("patients of the other cohort within class (Newcombe)")


def test_probabilities_are_judged_and_decision_values_are_not():
    found = measures.measured(table(TWO), params.REAL, "newcombe", {"n_resamples": 100, "seed": 0}).set_index("measure")
    squares = [0.3**2, 0.3**2, 0.55**2, 0.3**2]
    assert found.loc["Brier score", "value"] == pytest.approx(np.mean(squares))
    assert found.loc["Brier score", "reference"] == 0.25
    assert found.loc["mean probability", ["value", "reference"]].tolist() == pytest.approx([0.4375, 0.5])
    margins = table(TWO).assign(score=lambda t: 4 * t["score"] - 2)
    alone = measures.measured(margins, params.REAL, "newcombe", {"n_resamples": 100, "seed": 0})
    assert alone["measure"].tolist() == ["AUC"]
    assert alone["value"].iloc[0] == found.loc["AUC", "value"] == 1.0


def test_the_gain_elsewhere_is_the_difference_of_the_two_numbers_shown():
    arm = table([[(0.1,), (0.2,), (0.15,), (0.9,)]] * 2).assign(scorer=measures.DECLARED)
    found = measures.gain(pd.concat([table(TWO), arm]))
    assert found["mean"] == pytest.approx(0.75 - 1.0)
    assert found["n"] == 4
    assert found["low"] <= found["mean"] <= found["high"]


def test_a_baseline_elsewhere_is_fitted_on_each_folds_training_rows_alone():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(40, 5)), rng.normal(3.0, 2.0, (7, 5))
    label, fold = (known[:, 0] + 0.3 * rng.normal(size=40) > 0).astype(int), np.arange(40) % 2
    found = scored_units.fitted_elsewhere(frozen_classifiers.linear_scores, known, label, fold, new)
    for k, scores in enumerate(found):
        scale = StandardScaler().fit(known[fold != k])
        model = LogisticRegression(C=0.01, max_iter=2000).fit(scale.transform(known[fold != k]), label[fold != k])
        assert scores == pytest.approx(model.predict_proba(scale.transform(new))[:, 1], abs=1e-6)
    others = scored_units.fitted_elsewhere(frozen_classifiers.linear_scores, known, label, fold, new[:1])
    assert others[:, 0] == pytest.approx(found[:, 0], abs=1e-9), "an image's score depends on no other image there"


def test_the_strongest_baseline_is_one_that_any_cohort_can_be_scored_by():
    rows = [(frozen_classifiers.RATIO, 0.99), (frozen_classifiers.NO_PIXELS, 0.98), (frozen_classifiers.GLCM_SVM, 0.9)]
    auc = pd.DataFrame([*rows, (frozen_classifiers.HALVES, 0.8)], columns=["baseline", "auc"])
    auc = auc.assign(level="patient", split=frozen_classifiers.IN_FOLDS)
    more = auc.assign(split=frozen_classifiers.ONE_OUT, auc=1.0)
    assert scored_units.strongest(pd.concat([auc, more])) == frozen_classifiers.GLCM_SVM


def test_without_another_cohort_nothing_is_scored_said_or_drawn():
    run = artifacts.open_run("smoke")
    assert scored_units.build_elsewhere(run, {}) is None
    assert scored_units.units(run) == scored_units.claims(run, None) == []
    assert figures.draw_elsewhere(run, None) is None
    assert sweep.elsewhere_words(run, None).startswith("No other cohort is named (cohort.external)")


# ---------------------------------------------------------------- simulated patients

GIVEN = {
    "cohort.frames_per_patient": None, "folds.n_splits": 2, "preprocess.image_size": 128,
    "sweep.arms": ["traditional"], "sweep.primary_arm": "traditional", "sweep.secondary_arms": [], "sweep.n_seeds": 1,
    "sweep.freeze": "all", "sweep.steps": 150, "sweep.learning_rate": 1e-2, "sweep.batch_size": 16,
    "sweep.baseline_splits": 1, "sweep.canary_shuffles": 1, "shap.arm": "real", "shap.rate": 0.0,
    "engine.mode": "serial", "engine.device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run on 16 simulated patients, 16 others, and the same 16 as a scanner of other settings shows them."""
    root, patch = tmp_path_factory.mktemp("elsewhere"), pytest.MonkeyPatch()
    patch.setenv("NAFLD_ROOT", str(root))
    for name, seed in (("home", 1), ("same", 2)):
        cohort.simulation.write_folder(root / name, 16, seed, 1, variant=phantom.VARIANTS["double"])
    shutil.copytree(root / "same", root / "other")
    frames = np.load(root / "same" / "pixels.npy")
    np.save(root / "other" / "pixels.npy", np.stack([other_scanner(frame, i) for i, frame in enumerate(frames)]))
    run = opened(root)
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    assert (sweep.run_sweep(run)["state"] == "done").all()
    yield root
    patch.undo()


def opened(root, external=None):
    return artifacts.open_run("smoke", GIVEN | {"cohort.external": external}, run="home", data=str(root / "home"))


def other_scanner(frame, seed):
    """The frame with a narrower sector, from a greater depth, with more gain and noise."""
    sector, rng = phantom.sector_mask(), np.random.default_rng(seed)
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    kept = sector & (np.abs(columns - 317.5) <= np.tan(np.radians(30)) * (rows - 7.25))
    small = ndimage.zoom(np.where(kept, frame * 1.5 + 20 + rng.normal(0, 25, frame.shape), 0), 0.8, order=1)
    inside, out = ndimage.zoom(kept.astype(float), 0.8, order=0) > 0, np.zeros(frame.shape, np.uint8)
    left = (frame.shape[1] - small.shape[1]) // 2
    out[: small.shape[0], left : left + small.shape[1]] = np.where(inside, np.clip(small, 8, 255), 0)
    return out


def elsewhere_of(root, name):
    run = opened(root, name)
    return run, sweep.build_elsewhere(run, sweep.build_baselines(run))


@pytest.mark.slow
def test_the_same_scanner_shows_no_drop_and_another_one_does(world):
    run, same = elsewhere_of(world, "same")
    _, other = elsewhere_of(world, str(world / "other"))
    assert same.table["scorer"].tolist()[:2] == [params.REAL, measures.DECLARED]
    assert same.table["drop"].max() < 0.1
    assert (same.table["drop_low"] < 0).all()
    assert (other.table["drop"] - same.table["drop"] > 0.08).all(), other.table["drop"].tolist()
    assert other.table["here"].tolist() == same.table["here"].tolist()
    assert same.facts["counts"] == [5, 11]
    assert same.facts["simulated"]
    assert "16 patients of another cohort (5 healthy and 11 fatty)" in sweep.elsewhere_words(run, same)
    keys = [row["key"] for row in scored_units.claims(run, same)]
    parts = (params.REAL, measures.DECLARED, "baseline")
    assert {f"elsewhere.{what}.{part}" for what in ("auc", "drop") for part in parts} <= {*keys}
    assert {"elsewhere.gain", "elsewhere.patients"} <= {*keys}
    assert len(keys) == len({*keys})
    assert all(unit.done() for unit in sweep.units(run)[-5:])
    assert figures.draw_elsewhere(run, same).axes[0].get_yticklabels()[0].get_text() == "real images alone"


@pytest.mark.slow
def test_labels_there_change_no_score(world):
    """Nothing is fitted, chosen or scaled: with the labels exchanged every score is the same, and an AUC its mirror."""
    shutil.copytree(world / "same", world / "flipped")
    listed = pd.read_csv(world / "flipped" / "images.csv")
    listed.assign(label=1 - listed["label"]).to_csv(world / "flipped" / "images.csv", index=False)
    found = {}
    for name in ("same", "flipped"):
        run, judged = elsewhere_of(world, name)
        unit = scored_units.scored_unit(run, world / name, scored_units.LOCKED)
        found[name] = judged.table["together"].to_numpy(), unit.load_table("scores.parquet")
    pd.testing.assert_frame_equal(*(scores.drop(columns="label") for _, scores in found.values()))
    assert found["same"][0] == pytest.approx(1 - found["flipped"][0])


@pytest.mark.slow
def test_a_folder_without_labels_is_scored_as_with_them_and_under_its_own_names(world):
    shutil.copytree(world / "same", world / "unlabelled")
    listed = pd.read_csv(world / "unlabelled" / "images.csv")
    listed["patient"] = [f"Erika {chr(65 + number)}." for number in listed["patient"]]
    listed.drop(columns=["label", "grade"]).to_csv(world / "unlabelled" / "images.csv", index=False)
    run = opened(world)
    bare, labelled = (release.write_prediction(run, str(world / name)) for name in ("unlabelled", "same"))
    assert bare.measures is bare.reliability is None
    assert not (bare.folder / "measures.csv").exists()
    assert bare.patients["patient"].tolist() == [f"Erika {chr(66 + i)}." for i in range(16)]
    assert bare.patients["label"].eq("").all()
    assert bare.patients["score"].tolist() == pytest.approx(labelled.patients["score"].tolist())
    assert set(labelled.patients["label"]) == {"healthy", "fatty"}
    auc = labelled.measures.set_index("measure").loc["AUC", "value"]
    truth = labelled.patients["label"].eq("fatty")
    assert auc == statistics.auc(truth, labelled.patients["score"])
    _, locked = elsewhere_of(world, "same")
    assert auc == locked.table.set_index("scorer").loc[measures.DECLARED, "together"]
    assert pd.read_csv(bare.folder / "patients.csv")["patient"].tolist() == bare.patients["patient"].tolist()
    with pytest.raises(ValueError, match="expected a column label"):
        cohort.load(world / "unlabelled")


@pytest.mark.slow
def test_held_out_images_get_the_scores_that_the_sweep_keeps(world):
    """The whole way of another cohort's frames, on this cohort's: region, crop, resize, prefix, tail."""
    run, own = opened(world), cohort.open_cohort(opened(world))
    seen = np.stack([preprocessing.as_held_out(run, frame)[1] for frame in own.pixels])
    trials = classifier_units.of_arm(run, params.REAL)
    assert [trial["fold"] for trial in trials] == [0, 1]
    sweep.build_classifiers(run, trials)
    scores, kept = classifier_units.scores_of(run, trials, seen), sweep.held_out_scores(run, trials)
    rows = pd.Index(own.images["image_id"]).get_indexer(kept["image_id"])
    assert scores[kept["fold"], rows] == pytest.approx(kept["score"].to_numpy(), abs=1e-6)


@pytest.mark.slow
def test_what_cannot_be_a_locked_test_is_refused(world):
    run = opened(world)
    with pytest.raises(ValueError, match=r"expected images of another cohort, found 16 of this run's own"):
        release.write_prediction(run, str(world / "home"))
    with pytest.raises(ValueError, match=r"DATA: expected a folder of images or a .mat file to score, found noth"):
        release.write_prediction(run, str(world / "nowhere"))
    more = artifacts.open_run("smoke", GIVEN | {"sweep.steps": 7}, run="home", data=str(world / "home"))
    with pytest.raises(ValueError, match=r"expected 2 finished trainings, one per fold, found 2 of them missing"):
        release.write_prediction(more, str(world / "same"))
    black = shutil.copytree(world / "same", world / "black")
    frames = np.load(black / "pixels.npy")
    frames[3] = np.where(np.arange(frames.shape[2]) % 2, 3, 2)
    np.save(black / "pixels.npy", frames)
    with pytest.raises(ValueError, match=r"p004_f00.*expected pixels above grey level 4 .*found none"):
        release.write_prediction(run, str(black))


def test_the_declared_arm_is_that_of_the_declared_comparison():
    run = artifacts.open_run("smoke", {"sweep.experiments": ["fig5a"], "sweep.n_seeds": 2})
    cell = verdict.declared(run, sweep.grid(run.settings))
    assert (cell["arm"], cell["rate"]) == ("semantic", 0.5)


def test_the_setting_is_read_by_stage_06_alone_and_is_left_out_of_pages(tmp_path):
    from nafld_utils import pipeline

    (tmp_path / "there").mkdir()
    artifacts.save_text(tmp_path / "there" / "images.csv", "image,patient,label\n")
    stamps = {}
    for external in (None, str(tmp_path / "there")):
        run = artifacts.open_run("smoke", {"cohort.external": external})
        stamps[external] = {stage: pipeline.staleness.stamp_content(run, stage) for stage in pipeline.STAGES}
    changed = [stage for stage, one in stamps[None].items() if one != stamps[str(tmp_path / "there")][stage]]
    assert changed == ["06_classification_sweep"]
    assert list(stamps[str(tmp_path / "there")][changed[0]]["files"]) == [str(tmp_path / "there" / "images.csv")]
    assert str(tmp_path) not in run.show("cohort").to_string()
    assert json.dumps(stamps[None]["01_data_analysis"]).count("external") == 0
