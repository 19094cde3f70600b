"""What a crop tells of the class: shares by hand, a warning where they differ, and none where chance explains it."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import preprocessing
from nafld_utils.preprocessing import crop_facts

NAMES = ("benign", "malignant")


def table(sides, label, n=2):
    """Facts of patients of `n` images of 100 x 80 pixels, their square regions of so many pixels a side."""
    sides, label = np.repeat(sides, n), np.repeat(label, n)
    images = pd.DataFrame({"patient_id": np.arange(len(label)) // n, "label": label, "crop_side": sides})
    images = images.assign(region_pixels=sides**2, kept_share=1.0)
    return crop_facts.crop_facts(images, np.tile([80, 100], (len(images), 1)))


def test_shares_are_of_the_image_and_not_of_the_region():
    images = pd.DataFrame({"crop_side": [60, 320], "region_pixels": [1000, 4000], "kept_share": [1.0, 0.5]})
    found = crop_facts.crop_facts(images, np.array([[50, 80], [100, 100]]))
    assert found["region_share"].tolist() == [0.25, 0.4]
    assert found["image_share"].tolist() == [0.25, 0.2]
    assert found["aspect"].tolist() == [1.6, 1.0]


def test_a_side_that_differs_by_class_is_told_by_patient_and_warned_about():
    label = np.arange(20) % 2
    found = preprocessing.by_class(table(np.where(label, 50 + np.arange(20), 30 + np.arange(20)), label), NAMES)
    side = found.set_index("fact").loc["crop_side"]
    assert (side["benign"], side["malignant"]) == (39, 60)  # medians of 30, 32, .. 48 and of 51, 53, .. 69
    assert side["auc"] == 1.0
    assert side["n"] == 20
    assert found.loc[found["differs"], "fact"].tolist() == ["crop_side", "image_share", "region_share"]
    said = preprocessing.crop_warnings(found, "largest")
    assert said[0].startswith("Warning: the side of the crop (pixels) differs by class: median 39 for benign, 60 for")
    assert said[-1].endswith('SET="preprocess.region=none" shows the models the whole image.')
    said = preprocessing.crop_warnings(found, "none")
    assert said[-1] == "The images themselves differ in size: export or cut them alike, whatever their class."
    assert not any("SET" in line for line in said)


@pytest.mark.parametrize("sides", [np.full(20, 40), np.repeat(np.arange(30, 40), 2)])
def test_alike_or_the_same_for_all_is_no_warning(sides):
    found = preprocessing.by_class(table(sides, np.arange(20) % 2), NAMES)
    assert not found["differs"].any()
    assert found.set_index("fact").loc["crop_side", "auc"] == 0.5
    assert found.set_index("fact").loc["height", "over"] == "no interval: all patients are alike"
    assert preprocessing.crop_warnings(found, "largest") == []


def test_a_difference_of_a_hundredth_of_a_percent_is_drawn_as_none():
    import matplotlib.pyplot as plt

    from nafld_utils.preprocessing import figures

    shares = [0.3186, 0.31861, 0.31862, 0.3186]
    facts = pd.DataFrame({"patient_id": range(4), "label": [0, 0, 1, 1], "crop_side": 320, "image_share": shares})
    fig, axes = plt.subplots(1, 2)
    figures.crops_by_class(facts, ("healthy", "fatty"), axes)
    (low, high), _ = axes[1].get_ylim(), plt.close(fig)
    assert low < 28 < 36 < high
