"""A cohort that states its own folds and has no grades: every later stage takes these folds and misses no grade."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nafld_utils import artifacts, cohort, ldm, preprocessing, report, sampling, sweep, views
from nafld_utils import cohort as cohort_stage
from nafld_utils.cohort import cohort_claims, explorer, figures, open_cohort, summary_table
from nafld_utils.explain import attribution_units
from nafld_utils.ldm import autoencoder_units, gan
from nafld_utils.report import reforms, texts
from nafld_utils.sampling import set_units
from nafld_utils.sweep import trial_grid, trial_units, verdict

NAMES = ("benign", "malignant")
GIVEN = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]  # of each patient, six and four


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stages 01 and 02 of ten patients of two images each."""
    root = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAFLD_ROOT", str(root))
        (root / "a").mkdir()
        rows = []
        for i in range(20):
            image = np.random.default_rng(i).integers(20, 256, (40, 48), dtype=np.uint8)
            Image.fromarray(image).save(root / "a" / f"{i}.png")
            rows.append({"image": f"{i}.png", "patient": f"w{i // 2}", "label": i // 2 % 2, "fold": GIVEN[i // 2]})
        pd.DataFrame(rows).to_csv(root / "a" / "images.csv", index=False)
        values = {"cohort.source": "file", "cohort.path": str(root / "a"), "cohort.class_names": list(NAMES)}
        values |= {"preprocess.crop_size": 64, "preprocess.image_size": 32, "preprocess.map_size": 32}
        values |= {"autoencoder.class.source": "train", "engine.device": "cpu"}
        run = artifacts.open_run("smoke", values)
        cohort.build_cohort(run)
        sweep.require_capacity(run)
        preprocessing.build_preprocessed(run)
        yield run


@pytest.fixture(scope="module")
def data(run):
    return preprocessing.open_preprocessed(run)


# ---------------------------------------------------------------- folds


def test_the_given_folds_are_stored_and_are_not_those_that_would_be_dealt(run, data):
    assert data.folds["fold"].tolist() == GIVEN
    dealt = preprocessing.make_folds(cohort.open_cohort(run).patients, 2, run.settings.folds.seed)
    assert dealt["fold"].value_counts().tolist() == [5, 5]
    assert data.images["fold"].tolist() == [fold for fold in GIVEN for _ in range(2)]


class Seen(Exception):
    """What a training was given."""


def captured(place):
    def stop(*arguments, **_):
        raise Seen(arguments[place])

    return stop


@pytest.mark.parametrize("fold", [0, 1])
def test_stage_03_trains_on_the_images_of_the_other_given_folds(run, data, fold, monkeypatch):
    training = data.pool[[GIVEN[i // 2] != fold for i in range(20)]].reshape(-1, 32, 32)
    monkeypatch.setattr(autoencoder_units, "train_phases", captured(3))
    monkeypatch.setattr(gan, "train", captured(1))
    with pytest.raises(Seen) as caught:
        ldm.train_autoencoder(run, "class", fold)
    assert np.array_equal(caught.value.args[0], training)
    kind = run.settings.section("autoencoder.class")["kind"]
    stage = ldm.published(ldm.before_training(run, "class", fold), kind, 1.0)
    monkeypatch.setattr(autoencoder_units, "first_stage", lambda *_: stage)
    ldm.make_latents(run, "class", fold)
    with pytest.raises(Seen) as caught:
        ldm.train_gan(run, fold)
    encoded = ldm.encode_images(stage, training, torch.device("cpu"))
    wanted = stage.draw(torch.as_tensor(encoded))
    torch.testing.assert_close(caught.value.args[0].float(), wanted.float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("fold", [0, 1])
def test_stages_04_to_07_hold_out_the_given_fold(run, data, fold):
    held_out = {patient for patient, given in zip(data.folds["patient_id"], GIVEN, strict=True) if given == fold}
    table, _ = set_units.draw_conditions(run, "semantic", fold, 60)
    assert set(table["source_patient"]) == set(data.folds["patient_id"]) - held_out
    real = sampling.real_table(run)
    assert set(real.loc[real["fold"] == fold, "patient_id"]) == held_out
    scored = data.images
    assert set(scored.loc[trial_grid.check_fold(scored, fold), "patient_id"]) == held_out
    trial = {"arm": "traditional", "rate": 0.5, "balance": "none", "fold": fold, "seed": 0}
    parts = dict(trial_units.composition(run, trial))
    for name in ("real", "traditional"):
        assert not held_out & set(data.images["patient_id"].iloc[parts[name]["rows"]]), name
    assert len(parts["real"]["rows"]) == 20 - 2 * len(held_out)
    outside = data.images["fold"].to_numpy() != fold
    training = {image.tobytes() for image in data.pool[outside].reshape(-1, 32, 32)}
    assert {image.tobytes() for image in attribution_units.draw_background(run, fold, 99)} <= training


# ---------------------------------------------------------------- no grades


def test_stages_01_and_02_show_a_cohort_without_grades(run, data):
    cohort, said = open_cohort(run), views.words_for(run)
    assert cohort.patients["grade"].isna().all()
    shown = summary_table(cohort.images, cohort.patients, NAMES, said.grade_column, bands=False)
    assert (shown[f"{said.grade_column}, median"] == "-").all()
    fig, axes = plt.subplots(1, 2, squeeze=False)
    figures.grades(cohort.patients, NAMES, None, axes[0, 0], said.grade_axis)
    assert "this cohort has no grades" in axes[0, 0].texts[0].get_text()
    figures.frame_grid(cohort, [1], 1, axes[:, 1:], NAMES, said.grade_text)
    plt.close(fig)
    captions = [figures.caption(image, NAMES, said.grade_text) for _, image in data.images.iterrows()]
    assert not any(" nan" in text or "grade" in text for text in captions)
    explorer.frames(run, cohort)
    preprocessing.explorer.crops(run, cohort, data)
    pairs = cohort_stage.likeness(run).pairs
    for rows in (cohort_claims(run, pairs), preprocessing.preprocess_claims(run)):
        assert not any(str(row.get("this_run")) == "nan" for row in rows)


def test_stage_06_leaves_out_what_needs_a_grade_and_says_so(run, data):
    facts = data.images[["image_id", "patient_id", "label", "fold"]]
    rng, rows = np.random.default_rng(0), []
    for arm, rate in (("real", 0.0), ("semantic", 0.5)):
        for seed in range(2):
            score = rng.uniform(0.1, 0.9, len(facts))
            named = {"backbone": run.settings.sweep.backbones[0], "freeze": "paper", "balance": "none"}
            rows.append(facts.assign(**named, arm=arm, rate=rate, seed=seed, score=score))
    tables = sweep.build_tables(run, pd.concat(rows, ignore_index=True), note="made up")
    assert not tables["measures"]["measure"].str.contains("Spearman").any()
    assert not tables["measures"]["value"].isna().any()
    assert verdict.claims(run, tables)
    assert sweep.answer(run, tables)
    assert "it is known for 0 of 10 patients" in sweep.grade_note(run)


def test_reports_say_that_folds_are_given_and_grades_are_not_there(run):
    entries = {item.number: item.entry for item in reforms.checklist(run, report.claims_table(run))}
    assert entries["3f"].endswith("The cohort has no grade of any patient.")
    assert entries["5c"].startswith("2 folds by patient, as the cohort's own column fold says")
    said = dict(texts.methods(run))
    assert "as the cohort's own column fold says" in said["Folds"]
    page = report.index_html(run)
    assert "The cohort has no grade of any patient." in page
    assert ">nan<" not in page
