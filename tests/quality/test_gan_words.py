"""What is said of the GAN: a difference only where it lies below its own ceilings."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import statistics
from nafld_utils.quality import metric_units

ROLE = pd.Series(
    {"class": "model", "semantic": "model", "gan": "baseline", "real_training": "floor"}
    | dict.fromkeys(["gaussian_class", "gaussian_semantic", "untrained_class", "noise"], "ceiling")
)


def folds(gan):
    base = {"class": 340.0, "semantic": 330.0, "real_training": 120.0, "gaussian_class": 420.0}
    base |= {"gaussian_semantic": 360.0, "untrained_class": 800.0, "noise": 960.0, "gan": gan}
    table = pd.DataFrame([base] * 4)
    return table.assign(gan=gan + np.array([-6.0, -2.0, 2.0, 6.0]))


def test_a_gan_beyond_its_ceiling_is_not_compared():
    text = metric_units.gan_in_words(folds(1032.0), ROLE, "class")
    assert text.endswith("not shown to lie below every ceiling: not trained enough to compare.")
    assert "lowest ceiling 420 (Gaussian latents (class))" in text
    assert "minus GAN" not in text


def test_a_gan_below_its_own_ceilings_is_compared_whatever_those_of_other_models_are():
    text = metric_units.gan_in_words(folds(390.0), ROLE, "class")
    mean, low, high = statistics.over_folds(np.array([-44.0, -48.0, -52.0, -56.0]))
    assert mean == pytest.approx(-50)
    assert f"class LDM minus GAN -50 [{low:.3g}, {high:.3g}] (95 % over folds)" in text
    assert "not trained enough" not in text
    assert "below every ceiling" in text


def test_one_fold_is_compared_by_its_means():
    one = folds(390.0).iloc[:1]
    assert "class LDM minus GAN -44 (one fold, no interval)" in metric_units.gan_in_words(one, ROLE, "class")
    assert "not trained enough" in metric_units.gan_in_words(folds(430.0).iloc[:1], ROLE, "class")


def test_the_gap_is_that_to_the_ceiling_it_is_least_clear_of():
    for gan, mean in ((1032.0, 612.0), (390.0, -30.0)):  # of 420: the other models' 360 is no ceiling of its own
        least, gap = metric_units.gan_gap(folds(gan), ROLE, "class")
        assert least == "gaussian_class"
        assert gap.mean() == pytest.approx(mean)
