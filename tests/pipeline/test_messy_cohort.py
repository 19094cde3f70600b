"""A messy folder of another modality, as its owner would meet it: each room says what is wrong while it costs nothing.

One patient has two names that differ by case, one has a twin with a caption, one has frames under two names as two
videos of one examination would be; pictures of one class are larger, and one has a transparent layer.
"""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from nafld_utils import artifacts, cohort, images, pipeline, preprocessing
from nafld_utils.cohort import example
from nafld_utils.report import facts, texts
from nafld_utils.sweep import frozen_classifier_units, frozen_classifiers


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """Path of the folder, which is written; both first rows of its table are of one patient."""
    path = example.write(tmp_path_factory.mktemp("messy") / "chest", 24, seed=1)
    table = pd.read_csv(path / "images.csv")
    for name in table.loc[table["label"] == "effusion", "image"]:
        with Image.open(path / name) as picture:
            picture.resize([round(1.3 * side) for side in picture.size]).save(path / name)
    first, second = (table[table["patient"] == name].iloc[0] for name in ("case B1", "case E4"))
    captioned = Image.fromarray(images.read(path / first["image"]).pixels)
    ImageDraw.Draw(captioned).text((8, 8), "PORTABLE 12:40", fill=255)
    captioned.save(path / "again.png")
    frame = images.read(path / second["image"]).pixels.astype(float)
    later = np.roll(frame, (5, -4), (0, 1)) * 0.9 + np.random.default_rng(0).normal(0, 2, frame.shape)
    Image.fromarray(later.clip(0, 255).astype(np.uint8)).convert("RGBA").save(path / "later.png")
    more = pd.DataFrame([first, second]).assign(image=["again.png", "later.png"], patient=["case Z1", "case Z2"])
    assert table["patient"].iloc[:2].tolist() == ["case A0"] * 2
    table.loc[0, "patient"] = "CASE a0"
    pd.concat([table, more]).to_csv(path / "images.csv", index=False)
    return path


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))


def opened(path, **more):
    values = {"cohort.source": "file", "cohort.path": str(path), "cohort.class_names": list(example.CLASSES)}
    values |= {"cohort.frames_per_patient": None, "preprocess.crops_per_image": 1, "engine.device": "cpu"}
    return artifacts.open_run("smoke", values | {"cohort.alike_names": "same", "preprocess.region": "none"} | more)


def test_two_writings_of_one_name_stop_it_with_both_rows_and_what_to_do(messy):
    with pytest.raises(cohort.CohortError) as caught:
        cohort.build_cohort(opened(messy, **{"cohort.alike_names": "stop"}))
    assert re.search(r"row 3:.*CASE a0.* in row 2, which differ by case; correct the table, or give", str(caught.value))


def test_the_plan_counts_what_is_there_before_anything_is_made(messy):
    lines = dict(line.split(maxsplit=1) for line in pipeline.plan_text(opened(messy)).splitlines())
    assert lines["cohort"].startswith("26 patients (13 clear, 13 effusion; effusion is to be detected), 62 ")
    assert lines["dropped"] == "nothing"
    assert re.fullmatch(r"\d+ synthetic images per model and fold; .*, too few: give SET=.*", lines["needed"])


def test_twins_are_shown_and_said_wherever_a_reader_looks_and_a_table_joins_them(messy):
    run = opened(messy)
    cohort.build_cohort(run)
    unit = cohort.build_pairs(run)
    found = pd.read_csv(unit.path / "look_alikes.csv")
    twins = {frozenset(pair) for pair in found[["patient", "same_as"]].to_numpy()}
    assert twins == {frozenset(("case B1", "case Z1")), frozenset(("case E4", "case Z2"))}
    said = cohort.pairs_reading(run)
    assert "Warning: 2 pairs of patients look like one person" in said
    assert f"All {len(cohort.open_cohort(run).images)} images of 26 patients were searched" in said
    (claim,) = cohort.pair_claims(run)
    assert (claim["key"], claim["this_run"], claim["n"]) == ("cohort.one_person", 2, 26)
    run.record_claims("01_data_analysis", [claim])
    assert texts.one_person(facts.claims_table(run)).startswith("2 pairs of patients look like one person")
    again = opened(messy, **{"cohort.join": str(unit.path / "look_alikes.csv")})
    cohort.build_cohort(again)
    assert len(cohort.open_cohort(again).patients) == 24


def test_sizes_that_give_the_class_away_are_warned_about_and_win_without_a_pixel(messy):
    run = opened(messy)
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    told = preprocessing.by_class(preprocessing.facts_of(run), example.CLASSES)
    said = " ".join(preprocessing.crop_warnings(told, "none"))
    assert "Warning: the height of the image (pixels) differs by class" in said
    assert said.endswith("The images themselves differ in size: export or cut them alike, whatever their class.")
    frozen_classifier_units.make_no_pixels(run)
    table = frozen_classifier_units.no_pixels_unit(run).load_table("auc.csv").query("level == 'patient'")
    note = frozen_classifier_units.no_pixels_note(run, {"auc": table})
    assert table["baseline"].tolist() == [frozen_classifiers.NO_PIXELS]
    assert table["low"].item() > 0.5
    assert "Warning: how the images were made tells the class" in note
    assert run.is_foreign
    assert not run.shows_livers, "so that no paper, no organ and no ratio of halves stand beside it"
