"""A folder of images as a cohort: formats, faults by row, memory maps, interrupted reading, large simulations."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nafld_utils import cohort, cohort_table

NAMES = ("benign", "malignant")
ROWS = [
    {"image": f"{patient}{frame}.png", "patient": f"P-{patient}", "label": NAMES[patient % 2]}
    for patient in range(4)
    for frame in range(2)
]


def picture(seed, height=24, width=30, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(path, rows=ROWS, **columns):
    """Eight grey images of one size, four patients."""
    path.mkdir()
    for number, row in enumerate(ROWS):
        Image.fromarray(picture(number)).save(path / row["image"])
    pd.DataFrame(rows).assign(**columns).to_csv(path / "images.csv", index=False)
    return path


def changed(number, **values):
    return [{**row, **values} if i == number else row for i, row in enumerate(ROWS)]


def problems(path):
    """Row and text of everything that is wrong."""
    with pytest.raises(cohort_table.CohortError) as caught:
        cohort.load(path, NAMES)
    return [(problem.row, problem.text) for problem in caught.value.problems]


def test_a_folder_of_images_is_a_cohort(tmp_path):
    found = cohort.load(folder(tmp_path / "a", grade=[1, 1, 2, 2, 3, 3, 4, 4]), NAMES)
    assert found.patients["patient_id"].tolist() == [1, 2, 3, 4]
    assert found.patients["label"].tolist() == [0, 1, 0, 1]
    assert found.patients["grade"].tolist() == [1, 2, 3, 4]
    assert found.images["image_id"].tolist()[:3] == ["p001_f00", "p001_f01", "p002_f00"]
    assert found.sources["patient"].tolist()[:3] == ["P-0", "P-0", "P-1"]
    assert found.folds is None
    assert found.frames.shape == (4, 2, 24, 30)
    assert all((found.pixels[i] == picture(i)).all() for i in range(8))
    assert found.provenance["kind"] == "other content"
    assert "8 images of 4 patients, 30 x 24 pixels" in found.provenance["text"]


def test_whole_numbers_stay_the_patients_ids(tmp_path):
    rows = [{**row, "patient": 7 * (4 - int(row["patient"][2]))} for row in ROWS]
    found = cohort.load(folder(tmp_path / "a", rows), NAMES)
    assert found.patients["patient_id"].tolist() == [7, 14, 21, 28]
    assert (found.pixels[0] == picture(6)).all(), "patients come in the order of their ids"
