"""The single-feature study: judged by where the feature is, read only where the classifier has learnt it."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, explain, phantom, views
from nafld_utils.explain import explainers, figures, map_measures, single_feature_study

pytestmark = pytest.mark.filterwarnings("ignore:The set_(bad|over|under) function:PendingDeprecationWarning")
LIVER, VESSEL = map_measures.REGIONS.index("liver"), map_measures.REGIONS.index("vessel border")
GOOD = {"auc": 0.95, "low": 0.85, "ratio": 3.0, "ratio_low": 2.0, "ratio_high": 4.0, "gain_low": 1.0, "target": "x"}


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        ({}, "found: the x carries 3.00 times its area's share [2.00, 4.00]"),
        ({"low": 0.7}, "not interpreted: the held-out AUC 0.95 has a lower bound of 0.70, not above 0.7"),
        ({"low": np.nan}, "not interpreted: the held-out AUC 0.95 has no lower bound"),
        ({"gain_low": -0.1}, "not told apart from an untrained network"),
        ({"gain_low": np.nan}, "not told apart from an untrained network"),
        ({"ratio_low": 0.9}, "not found: the x carries 3.00 times"),
        ({"ratio_low": np.nan}, "not found"),
    ],
)
def test_the_verdict_follows_from_the_numbers(change, starts):
    row = {**GOOD, **change}
    assert single_feature_study.verdict(row).startswith(starts)
    assert starts.startswith(single_feature_study.finding(row))


def test_a_map_on_the_feature_is_found_and_a_map_elsewhere_is_not():
    rng = np.random.default_rng(0)
    parts = np.full((6, 16, 16), LIVER, np.uint8)
    parts[:, 4:8, 4:8] = VESSEL
    noise = rng.uniform(0, 0.1, parts.shape)
    on, off = (parts == VESSEL) + noise, (parts == LIVER) + noise
    row = single_feature_study.judge({"trained": on, "untrained": noise}, on, parts, ("vessel border",))
    assert row["ratio_low"] > 5
    assert row["gain_low"] > 4
    assert row["peaks"] == 1.0
    assert row["area"] == pytest.approx(1 / 16)
    assert row["agreement"] == pytest.approx(1.0)
    assert single_feature_study.verdict({"auc": 0.95, "low": 0.9, **row}).startswith("found")
    row = single_feature_study.judge({"trained": off, "untrained": noise}, on, parts, ("vessel border",))
    assert row["ratio"] < 1
    assert single_feature_study.verdict({"auc": 0.95, "low": 0.9, **row}).startswith("not found")


def test_an_image_without_the_target_does_not_count():
    parts = np.full((3, 8, 8), LIVER, np.uint8)
    parts[:2, 2:4, 2:4] = VESSEL
    values = (parts == VESSEL) + 0.1
    row = single_feature_study.judge({"trained": values, "untrained": values}, values, parts, ("vessel border",))
    assert np.isfinite([row["ratio"], row["gain"]]).all()
    assert np.isnan(row["ratio_low"]), "two equal ratios have no spread"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One feature through the stage: simulated, trained for two steps, explained twice."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NAFLD_ROOT", str(tmp_path_factory.mktemp("features")))
    patch.setattr(phantom, "FEATURES", ("diaphragm_blur",))
    small = {"feature_patients": 8, "feature_steps": 2, "feature_explained": 2, "n_samples": 4, "n_background": 2}
    run = artifacts.open_run("smoke", {f"shap.{name}": value for name, value in small.items()})
    study = explain.build_study(run)
    yield run, study
    patch.undo()


def test_a_study_in_the_run_says_so_and_is_made_once(made, monkeypatch):
    run, study = made
    assert study.table["explainer"].tolist() == list(explainers.EXPLAINERS)
    assert study.table["n_patients"].tolist() == [4, 4]
    assert study.table["verdict"].notna().all()
    assert "Made in this run" in study.note
    exact = study.table.set_index("explainer")["additivity_error"]
    assert exact["partition"] < 1e-3 < exact["gradient"]
    monkeypatch.setattr(single_feature_study, "study", None)
    assert explain.build_study(run).table["verdict"].tolist() == study.table["verdict"].tolist()


def test_twins_differ_where_the_feature_is(made):
    arrays = made[1].arrays["diaphragm_blur"]
    assert arrays["images"].shape == (2, single_feature_study.SIZE, single_feature_study.SIZE)
    for difference in arrays["difference"]:
        changed = np.abs(difference) > 8
        rows, cols = np.nonzero(changed)
        assert 20 < changed.sum() < 0.1 * changed.size
        # the lower right of the crop, where the diaphragm is
        assert np.median(rows) > 64
        assert np.median(cols) > 64


def test_held_out_patients_are_explained_one_image_each():
    images = pd.DataFrame({"patient_id": np.repeat([1, 2, 3, 4], 2), "label": np.repeat([0, 1, 0, 1], 2)})
    images["fold"] = np.repeat([0, 1, 0, 0], 2)
    assert single_feature_study.chosen_rows(images, 5).tolist() == [0, 6, 4]


def test_the_twins_are_drawn(made):
    import matplotlib.pyplot as plt

    with views.style():
        fig, axes = plt.subplots(3, 1)
        figures.twin("diaphragm_blur", made[1].arrays["diaphragm_blur"], axes)
        assert axes[0].get_title(loc="left") == "diaphragm blur"
        fig.canvas.draw()
        plt.close(fig)
