"""Tags of files that differ by class: found over patients, said on every report, and not where chance explains them."""

import numpy as np
import pandas as pd
import pytest
from dicom_files import write
from PIL import Image

from nafld_utils import cohort
from nafld_utils.cohort import file_tags
from nafld_utils.cohort.data import Cohort

NAMES = ("benign", "malignant")


def folder(path, save, n=8, frames=2):
    """`n` patients of `frames` images; `save` writes one under a path without ending and returns the file's name."""
    path.mkdir()
    rows = []
    for place in range(n * frames):
        patient = place // frames
        grey = np.random.default_rng(place).integers(0, 200, (24, 30), dtype=np.uint8)
        name = save(path / f"{place}", grey, patient % 2, patient)
        rows.append({"image": name, "patient": f"P-{patient}", "label": NAMES[patient % 2]})
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    return cohort.load(path, NAMES)


def png_or_jpeg(path, grey, jpeg):
    file = path.with_suffix(".jpg" if jpeg else ".png")
    Image.fromarray(grey).save(file)
    return file.name


def scan(path, grey, **tags):
    return write(path.with_suffix(".dcm"), grey, **tags).name


def differing(found):
    table = cohort.tags_by_class(found)
    return set(table.loc[table["differs"].astype(bool), "tag"])


def turned(path, grey, label):
    Image.fromarray(grey).save(path.with_suffix(".tif"), tiffinfo={274: 1 + 2 * label})
    return f"{path.name}.tif"


def keyed(path, grey, label):
    Image.fromarray(grey).save(path.with_suffix(".png"), **({"transparency": int(grey[0, 0])} if label else {}))
    return f"{path.name}.png"


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (lambda p, g, label, _: png_or_jpeg(p, g, label), {"format"}),
        (lambda p, g, label, _: turned(p, g, label), {"orientation"}),
        (lambda p, g, label, _: keyed(p, g, label), {"transparent"}),
        (lambda p, g, label, _: scan(p, g, **({"WindowCenter": 90, "WindowWidth": 180} if label else {})), {"levels"}),
        (lambda p, g, label, _: scan(p, g, RescaleSlope=1 + label, RescaleIntercept=0), {"rescale"}),
        (lambda p, g, label, _: scan(p, g, **({"PixelPaddingValue": int(g[0, 0])} if label else {})), {"padding"}),
        (lambda p, g, label, _: scan(p, g, photometric=f"MONOCHROME{1 + label}"), {"format"}),
        (lambda p, g, label, _: scan(p, g.astype(np.uint16) * 16, BitsStored=12 + 2 * label), {"bits", "levels"}),
        (lambda p, g, _, patient: png_or_jpeg(p, g, patient % 4 > 1), set()),
        (lambda p, g, _, __: png_or_jpeg(p, g, p.name.endswith("1")), set()),
    ],
)
def test_tags_that_differ_by_class_are_warned_about(tmp_path, save, expected):
    found = folder(tmp_path / "a", save)
    assert differing(found) == expected
    said = cohort.tag_warnings(cohort.tags_by_class(found), NAMES)
    text = found.provenance["text"]
    assert bool(said) == bool(expected) == ("Warning" in text)
    assert all(sum(f"{tag} of the files differs by class: " in text for text in said) == 1 for tag in expected)
    if expected:
        names = " and ".join(sorted(expected))
        assert f"Warning: {names} of the files differ by class, which may give the class away; notebook 01" in text


def test_grey_levels_scaled_in_several_ways_are_warned_about(tmp_path):
    def save(path, grey, *_):
        bits = {"BitsStored": 12, "HighBit": 11} if path.stem.endswith("0") else {}
        return scan(path, grey.astype(np.uint16) * 16, **bits)

    text = folder(tmp_path / "two", save).provenance["text"]
    assert "Warning: grey levels of the images are scaled in 2 ways" in text
    assert "12 bits (" in text
    one = folder(tmp_path / "one", lambda path, grey, *_: scan(path, grey.astype(np.uint16) * 16))
    assert "grey levels" not in one.provenance["text"]


def made(values, label):
    """A cohort of one image per patient, whose file says `values` of its levels."""
    patients = pd.DataFrame({"patient_id": range(len(label)), "label": label})
    said = pd.DataFrame({"file_says": [f"levels: {value}" for value in values]})
    return Cohort(patients, patients, None, {}, file_tags=said)


def test_the_numbers_are_those_of_the_tests_named():
    label = np.repeat([0, 1], [6, 6])
    table = cohort.tags_by_class(made(["a"] * 5 + ["b"] + ["a"] + ["b"] * 5, label))
    assert table["value"].tolist() == ["a", "b"]
    assert table[["patients_0", "patients_1"]].to_numpy().tolist() == [[5, 1], [1, 5]]
    assert np.allclose(table["p"], 2 * 2 * (6 * 6 + 1) / 924), "Fisher by hand, two values"
    assert not table["differs"].any()
    windows = [f"window {center}/256" for center in range(12)]
    (row,) = cohort.tags_by_class(made(windows, label)).itertuples()
    assert (row.value, row.patients_0, row.patients_1) == ("12 values", 6, 6)
    assert row.p == pytest.approx(2 / 924), "every number of one class below all of the other, exact"
    assert row.differs
    assert not cohort.tags_by_class(made(windows, np.arange(12) % 2))["differs"].any()


def test_chance_alone_is_seldom_warned_about():
    rng = np.random.default_rng(1)
    label = np.arange(40) % 2
    warned = [differing(made(rng.choice(["a", "b", "c"], 40), label)) for _ in range(200)]
    assert sum(map(bool, warned)) <= 6, "at most 1 percent is asked for, 6 of 200 are two standard errors above it"


def test_a_cohort_that_is_no_folder_of_files_has_no_tags():
    found = cohort.simulate(2, 1, n_frames=1)
    assert cohort.tags_by_class(found).empty
    assert cohort.tag_warnings(cohort.tags_by_class(found), NAMES) == []


def test_a_text_is_kept_as_it_is():
    said = {"format": "DICOM MONOCHROME2", "levels": "window 128/256"}
    rows = np.stack([file_tags.encoded(said), file_tags.encoded({})])
    assert file_tags.decoded(rows) == ["format: DICOM MONOCHROME2; levels: window 128/256", ""]


def test_tags_as_numbers_are_switches_of_few_values_and_the_number_of_many():
    texts = [f"format: {('PNG', 'JPEG')[i % 2]}; window: {40 + i}/350" for i in range(7)] + ["format: PNG"]
    images = pd.DataFrame({"image_id": [f"i{i}" for i in range(8)]})
    found = Cohort(images, images, None, {}, file_tags=images.assign(file_says=texts))
    table = cohort.tag_numbers(found)
    assert table.columns.tolist() == ["format JPEG", "format PNG", "window"]
    assert table["format JPEG"].tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert table["window"].tolist() == [40, 41, 42, 43, 44, 45, 46, -1]
    assert cohort.tag_numbers(Cohort(images, images, None, {})).shape == (8, 0)
