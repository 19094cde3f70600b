"""Whether feature spaces rank sets alike: correlations by hand, distances of the same images in every space."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from nafld_utils import networks, sampling
from nafld_utils.images import texture_features
from nafld_utils.quality import agreement_units

NAMES = {"lite0": "Lite0", "texture": "texture"}


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(agreement_units, "spaces", lambda run: NAMES)
    rows = [(fold, label, model) for fold in range(3) for label in (0, 1) for model in ("semantic", "class", "gan")]
    drawn = np.random.default_rng(0).lognormal(size=(len(rows), 2))
    return pd.DataFrame(rows, columns=["fold", "label", "model"]).assign(lite0=drawn[:, 0], texture=drawn[:, 1])


def test_rank_correlations_are_those_of_scipy(table):
    (row,) = agreement_units.agreement(None, table).to_dict("records")
    assert row["all"] == pytest.approx(scipy.stats.spearmanr(table["lite0"], table["texture"]).statistic)
    each = [scipy.stats.spearmanr(part["lite0"], part["texture"]).statistic for _, part in table.groupby("fold")]
    assert row["mean"] == pytest.approx(np.mean(each))
    assert -1 <= row["low"] < row["mean"] < row["high"] <= 1
    assert (row["folds"], row["n"]) == (3, 18)


def test_sets_that_could_not_be_measured_are_left_out(table):
    table.loc[table["fold"] == 2, "texture"] = np.nan
    (row,) = agreement_units.agreement(None, table).to_dict("records")
    assert (row["folds"], row["n"]) == (2, 12)


def test_spaces_that_agree_are_said_to(table):
    text = agreement_units.reading(None, table.assign(texture=2 * table["lite0"]))
    assert "18 sets" in text
    assert "1.00 for Lite0 and texture" in text
    assert "in 6 of 6 folds and classes" in text
    (claim,) = agreement_units.claims(None, table)
    assert (claim["key"], claim["n"]) == ("quality.agreement.lite0.texture", 3)


@pytest.mark.slow
def test_distances_are_of_the_same_images_in_every_space(run):
    """A fold of the small run, worked out again."""
    table = agreement_units.compare_spaces(run).query("fold == 0 and model == 'class'")
    drawn, data = sampling.open_set(run, "class", 0), sampling.real_table(run)
    for label in (0, 1):
        row = table[table["label"] == label].iloc[0]
        known = (data["fold"] == 0) & (data["label"] == label) & ~data["image_id"].duplicated()
        made = np.flatnonzero(drawn.table["label"] == label)
        made = made[np.linspace(0, len(made) - 1, int(row["n"])).astype(int)]
        parts = [sampling.load_features(run, "lite0", *where)[0] for where in (("class", 0), ("real",))]
        expected = networks.frechet_distance(parts[0][made], parts[1][known])
        assert row["lite0"] == pytest.approx(expected, rel=1e-6)
        assert row["n_reference"] == known.sum()
        assert row["texture"] > 0
    assert texture_features(np.asarray(drawn.images[:1])).shape == (1, 36)
