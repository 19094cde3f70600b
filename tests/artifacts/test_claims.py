"""Claims: keys, and the rows that they stand in."""

import re

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, networks, statistics
from nafld_utils.quality import metric_units
from nafld_utils.report import texts


def test_a_claim_fills_every_column():
    row = artifacts.claim("a.b", "b of a", 0.5, "yes", interval=(0.4, 0.6, "patients"), n=8, unit="AUC", paper=0.7)
    assert set(row) == set(artifacts.CLAIM_COLUMNS)
    assert [row[name] for name in ("key", "claim", "this_run", "low", "high", "over", "n")] == [
        "a.b", "b of a", 0.5, 0.4, 0.6, "patients", 8,
    ]  # fmt: skip
    bare = artifacts.claim("a", "a", 1, "yes")
    assert [bare[name] for name in ("paper", "low", "high", "over", "n", "unit")] == [None, None, None, "", None, ""]


def test_rows_of_tables_and_values_per_fold_are_claims():
    row = {"auc": 0.5, "low": 0.4, "high": 0.6, "over": "patients", "n_patients": 8}
    made = artifacts.of_row("a", "a", row, unit="AUC", columns=("auc", "n_patients"))
    assert made == artifacts.claim("a", "a", 0.5, artifacts.UNSTATED, interval=(0.4, 0.6, "patients"), n=8, unit="AUC")
    folds = artifacts.over_folds("a", "a", pd.Series([1.0, 3.0]), "dB")
    assert folds["this_run"] == 2.0
    assert folds["low"] < 1.0 < 3.0 < folds["high"]
    assert (folds["over"], folds["n"]) == ("folds", 2)
    assert folds["low"] < 0 < artifacts.over_folds("a", "a", [1.0, 3.0], "ratio", (0.0, float("inf")))["low"]
    for alike, why in (([2.0, 2.0], "all folds alike"), ([2.0], "only one fold")):
        folds = artifacts.over_folds("a", "a", pd.Series(alike), "dB")
        assert np.isnan([folds["low"], folds["high"]]).all()
        assert folds["over"] == f"no interval: {why}"
    row = {"auc": 0.5, "low": np.nan, "high": np.nan, "over": statistics.NO_SPREAD, "n_patients": 8}
    assert artifacts.of_row("a", "a", row, columns=("auc", "n_patients"))["over"] == statistics.NO_SPREAD


@pytest.mark.parametrize("name", ["frozen features + SVM", "tf_efficientnet_b0.in1k", "0.9", " <b>A</b>, b! "])
def test_a_name_becomes_one_part_of_a_key(name):
    assert re.fullmatch(r"room\.a\.[a-z0-9_]+", artifacts.key_of("room.a", name))


def test_keys_do_not_hold_what_the_user_calls_a_class(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("cpu", {"cohort.class_names": ["gesund", "1"]})
    assert [metric_units.class_part(run, name) for name in ("gesund", "1", 1, "both")] == [
        "label_0", "label_1", "label_1", "both",
    ]  # fmt: skip


def test_reports_name_the_networks_of_the_metrics_as_the_tables_do():
    named = texts.load()["words"]["features"]
    assert {name: text.removeprefix("an ") for name, text in named.items()} == {
        name: kind.network for name, kind in networks.FEATURES.items()
    }
