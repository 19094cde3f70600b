"""A folder whose bright region or whose files differ by class: stage 02 warns, and the baseline without pixels wins."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nafld_utils import artifacts, cohort, preprocessing
from nafld_utils.sweep import frozen_classifier_units, frozen_classifiers

NAMES = ("benign", "malignant")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Stages 01 and 02 of sixteen patients of two noisy images whose bright square grows with `grows`, by class."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))

    def make(grows, ending=(".png", ".png"), **changes):
        folder = tmp_path / "cohort"
        folder.mkdir()
        rows = []
        for place in range(32):
            rng, patient = np.random.default_rng(place), place // 2
            label, image = patient % 2, np.zeros((90, 96), np.uint8)
            side = 50 + grows * label + int(rng.integers(0, 8))
            image[5 : 5 + side, 8 : 8 + side] = rng.integers(20, 250, (side, side))
            name = f"{place}{ending[label]}"
            Image.fromarray(image).save(folder / name)
            rows.append({"image": name, "patient": f"P-{patient}", "label": NAMES[label]})
        pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
        values = {"cohort.source": "file", "cohort.path": str(folder), "cohort.class_names": list(NAMES)}
        values |= {"preprocess.crop_size": 64, "preprocess.image_size": 32, "preprocess.map_size": 32}
        run = artifacts.open_run(
            "smoke", {**values, "preprocess.crops_per_image": 1, "engine.device": "cpu", **changes}
        )
        cohort.build_cohort(run)
        preprocessing.build_preprocessed(run)
        return run

    return make


def judged(run):
    """Sentences of stage 02, and AUC by patient and lower bound of the baseline without pixels."""
    told = preprocessing.by_class(preprocessing.facts_of(run), NAMES)
    frozen_classifier_units.make_no_pixels(run)
    table = frozen_classifier_units.no_pixels_unit(run).load_table("auc.csv").query("level == 'patient'")
    assert table["baseline"].tolist() == [frozen_classifiers.NO_PIXELS]
    assert table["split"].tolist() == [frozen_classifiers.IN_FOLDS]
    return preprocessing.crop_warnings(told, run.settings.preprocess.region), table["auc"].item(), table["low"].item()


def test_a_region_that_grows_with_the_class_is_warned_about_and_tells_it_without_a_pixel(prepared):
    run = prepared(20)
    said, auc, low = judged(run)
    assert said[0].startswith("Warning: the side of the crop (pixels) differs by class: median 5")
    assert said[-1].endswith('SET="preprocess.region=none" shows the models the whole image.')
    assert auc == 1.0
    assert low > 0.5
    keys = {row["key"]: row for row in preprocessing.preprocess_claims(run)}
    assert keys["preprocessing.crop.kept"]["this_run"] == 100, "a fitted crop keeps all of its region"
    assert keys["preprocessing.crop.of_image"]["this_run"] < 70, "and not all of the image"
    assert keys["preprocessing.crop.tells.crop_side"]["this_run"] == 1.0


def test_the_remedy_takes_the_crop_out_of_it(prepared):
    said, auc, low = judged(prepared(20, **{"preprocess.region": "none"}))
    assert said == []
    assert auc == 0.5, "all images are of one size, kind and number"
    assert np.isnan(low)


def test_the_format_of_the_files_tells_the_class_without_a_pixel(prepared):
    said, auc, _ = judged(prepared(0, ending=(".png", ".jpg"), **{"preprocess.region": "none"}))
    assert said == []
    assert auc == 1.0
