"""Attributions: exact for a linear classifier, seeds, additivity, which images and trials are picked, the figure."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nafld_utils import artifacts, explain, networks, preprocessing, sweep, views
from nafld_utils.artifacts import Unit
from nafld_utils.explain import attribution_units, explainers, figures, map_measures
from nafld_utils.sweep.elsewhere import classifier_units

# shap's own colour maps; nothing of ours can avoid it
pytestmark = pytest.mark.filterwarnings("ignore:The set_(bad|over|under) function:PendingDeprecationWarning")
SIZE = 8


class Linear(nn.Module):
    """Log-odds that are a weighted sum of pixels, so that attributions are known in closed form."""

    def __init__(self):
        super().__init__()
        weight = torch.linspace(-1, 1, SIZE * SIZE)
        self.register_buffer("weight", weight.view(1, 1, SIZE, SIZE))

    def forward(self, images):
        return (images * self.weight).sum(dim=(1, 2, 3))[:, None]


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8)


def test_a_linear_classifier_against_one_background_image_is_exact():
    """weight times (image minus background), whatever is drawn."""
    images, background = pictures(2), pictures(1, seed=1)
    values = explainers.attributions(Linear(), background, images, n_samples=5, seed=0)
    difference = (images.astype(float) - background.astype(float)) / 127.5
    np.testing.assert_allclose(values, difference * Linear().weight[0].numpy(), atol=1e-5)
    outputs = explainers.log_odds(Linear(), images)
    base = explainers.log_odds(Linear(), background).mean()
    table = explainers.additivity(values, outputs, base)
    assert table["error"].abs().max() < 1e-4
    np.testing.assert_allclose(table["explained"], outputs - base)


def test_more_samples_add_up_better_for_a_background_of_many():
    images, background = pictures(3), pictures(20, seed=1)
    outputs, base = explainers.log_odds(Linear(), images), explainers.log_odds(Linear(), background).mean()
    errors = [
        explainers.additivity(explainers.attributions(Linear(), background, images, n, 0), outputs, base)["error"]
        .abs()
        .mean()
        for n in (5, 2000)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_the_seed_decides_and_numpys_generator_is_left_as_it_was():
    images, background = pictures(1), pictures(9, seed=1)
    np.random.seed(4)  # noqa: NPY002
    wanted = np.random.random(3)  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    runs = [explainers.attributions(Linear(), background, images, 8, seed) for seed in (1, 1, 2)]
    assert np.array_equal(np.random.random(3), wanted)  # noqa: NPY002
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_additivity_checkable_by_eye():
    table = explainers.additivity(np.array([[[1.0, 2.0], [0.0, 0.5]]]), np.array([5.0]), base=1.0).iloc[0]
    assert (table.explained, table.attributed, table.error, table.relative_error) == (4.0, 3.5, -0.5, 0.125)


def test_the_grey_classifier_is_the_network():
    """The same log-odds as the network fed by `networks.to_input`, and no gradient for weights."""
    model = networks.load("resnet18", "random")
    prefix, tail = networks.split(model, "resnet18")
    tail = sweep.fresh_tail(tail, 0)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    classifier = networks.GreyClassifier(prefix, tail, "resnet18")
    with torch.no_grad():
        out = tail(prefix(networks.to_input(images, "resnet18")))
    np.testing.assert_allclose(explainers.log_odds(classifier, images), out[:, 1] - out[:, 0], atol=1e-4)
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.fixture(scope="module")
def linear_owen():
    images, background = pictures(2), pictures(5, seed=1)
    return images, background, explainers.attributions(Linear(), background, images, 4000, 0, explainer="partition")


def test_the_partition_explainer_adds_up_exactly_from_the_mean_image(linear_owen):
    images, background, values = linear_owen
    base = explainers.base_value(Linear(), background, explainer="partition")
    assert base == pytest.approx(explainers.log_odds(Linear(), explainers.mean_image(background)[None])[0])
    table = explainers.additivity(values, explainers.log_odds(Linear(), images), base)
    assert table["error"].abs().max() < 1e-4


def test_two_explainers_agree_on_a_linear_classifier(linear_owen):
    """Both are weight times (image minus mean background), pixel by pixel."""
    images, background, values = linear_owen
    wanted = (images.astype(float) - explainers.mean_image(background)) / 127.5 * Linear().weight[0].numpy()
    np.testing.assert_allclose(values, wanted, atol=1e-4)
    gradient = explainers.attributions(Linear(), background, images, 3000, 0)
    assert np.corrcoef(gradient.ravel(), wanted.ravel())[0, 1] > 0.95


def test_missing_share_checkable_by_eye():
    table = pd.DataFrame({"error": [1.0, -1.0], "explained": [-4.0, 1.0]})
    assert explain.missing_share(table) == 0.4


def test_smoothing_keeps_the_sum_and_the_scale_is_shared():
    values = np.zeros((2, 32, 32))
    values[0, 16, 16], values[1, 16, 16] = 1.0, -3.0
    soft = explainers.smooth(values, 2.0)
    np.testing.assert_allclose(soft.sum(axis=(1, 2)), [1.0, -3.0], rtol=1e-3)
    assert explain.shared_limit(values, 1.0) == 3.0
    assert explain.shared_limit(np.zeros((1, 2, 2))) == 1.0


# ---------------------------------------------------------------- which images


def table_of(labels):
    return pd.DataFrame({"label": labels, "synthetic_id": [f"s{i}" for i in range(len(labels))]})


def test_the_first_drawn_of_each_class_fatty_first():
    picked = explainers.pick(table_of([0, 1, 0, 1, 1, 0]), np.array([4, 2, 0, 3]), n_per_class=2)
    assert picked["row"].tolist() == [4, 3, 2, 0]
    assert picked["label"].tolist() == [1, 1, 0, 0]
    assert picked["in_training"].all()


def test_others_follow_where_the_training_drew_too_few_and_say_so():
    picked = explainers.pick(table_of([0, 1, 0, 1]), np.array([1, 0]), n_per_class=2)
    assert picked["row"].tolist() == [1, 3, 0, 2]
    assert picked["in_training"].tolist() == [True, False, True, False]


def test_a_set_without_a_class_is_refused():
    with pytest.raises(ValueError, match="expected 2 images of class 0, found 0"):
        explainers.pick(table_of([1, 1, 1]), np.array([0]), 2)


def test_patients_are_picked_once_each_with_classes_in_turn():
    images = pd.DataFrame({"patient_id": [1, 1, 2, 3, 4, 4], "label": [1, 1, 1, 1, 0, 0]})
    assert explainers.pick_patients(images, 3)["patient_id"].tolist() == [4, 1, 2]
    assert explainers.pick_patients(images, 9).index.tolist() == [4, 0, 2, 3]


def test_the_middle_image_of_each_outcome_that_occurs():
    scores = pd.DataFrame({"image_id": list("abcdef"), "label": [1, 1, 1, 0, 0, 1]})
    scores["score"] = [0.6, 0.9, 0.7, 0.2, 0.8, 0.4]
    found = explainers.pick_outcomes(scores)
    assert found["image_id"].tolist() == ["c", "e", "d", "f"]
    assert found["outcome"].tolist() == list(explainers.OUTCOMES.values())
    assert explainers.pick_outcomes(scores[:3])["outcome"].tolist() == ["true positive"]


# ---------------------------------------------------------------- the stage


def test_the_stage_explains_the_sweeps_own_classifier(swept, monkeypatch):
    unit = sweep.train_again(swept, attribution_units.trial(swept))
    again = unit.load_table("scores.csv")
    assert again["difference"].max() < 1e-6
    assert len(again) == 8
    everything = explain.explain_all(swept)
    found, again_drawn = (everything[name] for name in ("explained", attribution_units.Against.DRAWS))
    assert found.attributions.shape == found.images.shape == (len(found.table), 32, 32)
    np.testing.assert_allclose(found.attributions.sum(axis=(1, 2)), found.table["attributed"], rtol=1e-3, atol=1e-5)
    stored = attribution_units.open_classifier(swept)
    np.testing.assert_allclose(explainers.log_odds(stored, found.images), found.table["log_odds"], atol=1e-5)
    real = found.table[found.table["origin"] == "held-out"].merge(again, left_on="name", right_on="image_id")
    # the sweep keeps features in half precision
    np.testing.assert_allclose(real["called"], real["score_stored"], atol=2e-3)
    compared = found.table["compared"].to_numpy()
    assert not np.array_equal(again_drawn.attributions, found.attributions[compared]), "other draws"
    np.testing.assert_allclose(again_drawn.table["called"], found.table.loc[compared, "called"], atol=1e-6)
    monkeypatch.setattr(explainers, "attributions", None)
    assert np.array_equal(explain.explain_all(swept)["explained"].attributions, found.attributions), "made once"


@pytest.mark.parametrize(("known", "quick"), [({}, False), ({"quick": True}, True)])
def test_a_training_is_repeated_with_the_gradients_that_it_had(swept, monkeypatch, known, quick):
    wanted = attribution_units.trial(swept)
    stored, facts = sweep.read_trial(sweep.store(swept), wanted["hash"])
    assert facts["quick"]
    monkeypatch.setattr(classifier_units.trial_store, "read_trial", lambda *_: (stored, known))
    monkeypatch.setattr(Unit, "done", lambda _: False)
    seen = []

    def train(run, trial, quick):
        seen.append(quick)
        raise InterruptedError

    monkeypatch.setattr(classifier_units, "train", train)
    with pytest.raises(InterruptedError):
        sweep.train_again(swept, wanted)
    assert seen == [quick]


def test_synthetic_images_of_the_training_and_one_real_image_of_each_outcome(swept):
    table = attribution_units.pick_images(swept).load_table("table.csv")
    fakes, real = (table[table["origin"] == name] for name in ("synthetic", "held-out"))
    assert fakes["label"].tolist() == [1, 1, 0, 0]
    assert fakes["in_training"].any()
    assert fakes["shown"].all()
    assert set(real["patient_id"]) <= {1, 2, 3, 4}, "fold 0 is held out"
    assert not real["in_training"].any()
    scores = attribution_units.stored_scores(swept, attribution_units.trial(swept))
    assert set(real.loc[real["shown"], "outcome"]) == set(explainers.outcome(scores["label"], scores["score"]))
    assert real.loc[real["judged"], "patient_id"].is_unique
    assert real["compared"].sum() == swept.settings.shap.n_compared


def test_any_trained_trial_can_be_explained(swept, overrides):
    """Real images alone have no synthetic set of their own: the model's images are explained as ones not trained on."""
    other = artifacts.open_run("smoke", {**overrides, "shap.arm": "real", "shap.rate": 0.0})
    found = explain.explain_all(other)["explained"]
    assert attribution_units.trial(other)["hash"] != attribution_units.trial(swept)["hash"]
    assert (found.table["origin"] == "synthetic").sum() == 4
    assert not found.table["in_training"].any()


def test_peers_share_arm_rate_and_fold_and_the_explained_one_is_first(run, overrides):
    more = {**overrides, "sweep.n_seeds": 3, "sweep.backbones": ["resnet18", "resnet34"], "shap.seed": 1}
    other = artifacts.open_run("smoke", more)
    found = attribution_units.peers(other)
    assert found.iloc[0]["hash"] == attribution_units.trial(other)["hash"]
    assert found[["backbone", "seed"]].to_numpy().tolist() == [
        ["resnet18", 1],
        ["resnet18", 0],
        ["resnet34", 0],
        ["resnet34", 1],
    ]
    assert len(found[["arm", "rate", "fold"]].drop_duplicates()) == 1


def test_background_comes_from_training_patients_alone(run):
    data = preprocessing.open_preprocessed(run)
    inside = {image.tobytes() for image in data.pool[8:].reshape(-1, 32, 32)}
    background = attribution_units.draw_background(run, 0, 6)
    assert len(background) == 6
    assert {image.tobytes() for image in background} <= inside
    assert len(attribution_units.draw_background(run, 0, 99)) == 8


def test_a_trial_outside_the_sweep_is_refused(run):
    other = artifacts.open_run("smoke", {"shap.seed": 7})
    with pytest.raises(ValueError, match="expected a trial of the sweep, found none of network tf_efficientnet_lite0"):
        attribution_units.trial(other)
    assert attribution_units.trial(run)["hash"] in set(sweep.trials(run)["hash"])
    assert list(attribution_units.trial(run))[:-1] == list(sweep.TRIAL_COLUMNS)


def test_the_mean_of_all_folds_decides_and_the_explained_classifier_stands_below_it(swept, monkeypatch):
    """Fold 0 has one pair of nine in the wrong order, fold 1 none."""
    scores = {0: [1, 2, 4, 3, 5, 6], 1: [1, 2, 3, 4, 5, 6]}

    def stored(run, one):
        patient = np.arange(6) + 6 * one["fold"]
        return pd.DataFrame({"patient_id": patient, "label": [0, 0, 0, 1, 1, 1], "score": scores[one["fold"]]})

    wanted = attribution_units.trial(swept)
    folds = pd.DataFrame([wanted, {**wanted, "fold": 1}])
    monkeypatch.setattr(attribution_units, "find_trials", lambda run, **asked: folds[: 1 if "fold" in asked else 2])
    monkeypatch.setattr(attribution_units, "stored_scores", stored)
    table = explain.held_out_auc(swept)
    assert table["of"].tolist() == ["2 folds' classifiers, mean", "this classifier"]
    assert table["auc"].tolist() == pytest.approx([17 / 18, 8 / 9])
    assert table["n_patients"].tolist() == [12, 6]
    mean, one = table["high"] - table["low"]
    assert mean < one, "twelve patients say more than six"


def test_what_cannot_be_said_is_never_readable_and_says_why():
    scores = pd.DataFrame({"patient_id": [1, 1, 2], "label": [1, 1, 0], "score": [0.9, 0.8, 0.1]})
    found = map_measures.auc_over_patients(scores)
    assert found["auc"] == 1.0
    assert not map_measures.readable(found["low"])
    assert map_measures.why_unread(found) == (
        "whether it is above 0.7 cannot be said, since fold 0 holds out fewer than two patients of a class"
    )
    assert map_measures.why_unread({"unsaid": "", "low": 0.652}) == "its lower bound 0.65 is not above 0.7"


def test_figure_has_one_symmetric_scale():
    import matplotlib.pyplot as plt

    image, values = pictures(1)[0], np.linspace(-1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    with views.style():
        fig, axes = plt.subplots(2, 2)
        for ax, limit in zip(axes[:, 1], (2.0, 2.0), strict=True):
            figures.overlay(image, values, limit, ax)
            assert ax.images[1].get_clim() == (-2.0, 2.0)
        figures.picture(image, "title", axes[0, 0])
        colors = figures.scale(fig, axes.ravel(), 2.0)
        assert colors.get_clim() == (-2.0, 2.0)
        fig.canvas.draw()
        plt.close(fig)
