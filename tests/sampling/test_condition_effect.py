"""The check of the condition: what is there shows with an interval, and what is not does not."""

import re
import types

import demo_promises
import numpy as np
import pandas as pd
import pytest

from nafld_utils import sampling, statistics
from nafld_utils.sampling import condition_effect, condition_units


def rng(seed=0):
    return np.random.default_rng(seed)


def test_map_agreement_by_eye():
    a = np.array([[[0, 0], [1, 1]]])
    assert [x[0] for x in condition_effect.map_agreement(a, a, 3)] == [1.0, 1.0]  # an absent class does not count
    accuracy, dice = condition_effect.map_agreement(a, np.array([[[0, 0], [1, 2]]]), 3)
    assert accuracy[0] == 0.75
    assert dice[0] == pytest.approx((1 + 2 / 3 + 0) / 3)
    with pytest.raises(ValueError, match="use one map size"):
        condition_effect.map_agreement(a, np.zeros((1, 3, 3), int), 3)


def test_condition_agreement_shows_what_is_there_and_nothing_else():
    draw = rng()
    conditions = draw.integers(0, 4, (30, 8, 8))
    patients = np.repeat(np.arange(6), 5)
    noisy = np.where(draw.random(conditions.shape) < 0.5, conditions, draw.integers(0, 4, conditions.shape))
    own = condition_effect.condition_agreement(noisy, conditions, patients, 4, rng())
    null = condition_effect.condition_agreement(draw.integers(0, 4, conditions.shape), conditions, patients, 4, rng())
    for name in ("accuracy", "dice"):
        mean, low, high = condition_effect.cluster_interval(own[name] - own[f"{name}_shuffled"], own["patient"], rng())
        assert low > 0.25
        mean, low, high = condition_effect.cluster_interval(
            null[name] - null[f"{name}_shuffled"], null["patient"], rng()
        )
        assert low < 0 < high
        assert abs(mean) < 0.05


def test_shuffled_conditions_come_from_other_patients():
    """All images of a patient share one map and differ from the other patient's: shuffled agreement must be nil."""
    conditions = np.repeat([np.zeros((4, 4), int), np.ones((4, 4), int)], 5, axis=0)
    patients = np.repeat([7, 9], 5)
    table = condition_effect.condition_agreement(conditions, conditions, patients, 2, rng())
    assert (table["accuracy"] == 1).all()
    assert (table["accuracy_shuffled"] == 0).all()
    with pytest.raises(ValueError, match="two or more source patients"):
        condition_effect.condition_agreement(conditions, conditions, np.ones(10), 2, rng())


def test_cluster_interval_is_wider_than_one_over_images():
    """Ten equal values a patient carry the information of one."""
    values = np.repeat(rng(8).normal(size=20), 10)
    _, low, high = condition_effect.cluster_interval(values, np.repeat(np.arange(20), 10), rng())
    _, naive_low, naive_high = condition_effect.cluster_interval(values, np.arange(200), rng())
    assert 2.4 < (high - low) / (naive_high - naive_low) < 3.9  # sqrt(10) = 3.2
    assert np.isnan(condition_effect.cluster_interval(np.ones(200), np.arange(200), rng())[1:]).all()
    with pytest.raises(ValueError, match="two or more to resample"):
        condition_effect.cluster_interval(values, np.zeros(200), rng())


def test_condition_separation_finds_a_label_and_no_more():
    draw = rng(9)
    labels = np.arange(80) % 2
    train = draw.normal(size=(80, 30)) + labels[:, None]
    parts, null = [], []
    for k in range(3):
        part = pd.DataFrame({"fold": k, "label": np.arange(60) % 2})
        shown = draw.normal(size=(60, 30)) + 0.4 * part["label"].to_numpy()[:, None]
        parts.append(part.assign(score=sampling.condition_separation(train, labels, shown)))
        null.append(part.assign(score=sampling.condition_separation(train, labels, draw.normal(size=(60, 30)))))
    facts = {"conditioning": "class", "drawn_with": "condition"}
    folds, images = condition_units.separation_rows(pd.concat(parts).assign(**facts))
    assert 0.8 < images["low"] < images["mean"] < images["high"] < 1
    assert images["mean"] == pytest.approx(folds["mean"])
    assert images["over"].startswith("images")
    _, images = condition_units.separation_rows(pd.concat(null).assign(**facts))
    assert images["low"] < 0.5 < images["high"]
    # images that are told apart completely have a bound below 1; folds that do not differ have none
    told = pd.concat(parts).assign(**facts, score=lambda part: part["label"])
    folds, images = condition_units.separation_rows(told)
    assert np.isnan(folds["low"])
    assert folds["over"] == "no interval: the folds do not differ"
    assert 0.9 < images["low"] < images["high"] == 1
    with pytest.raises(ValueError, match="expected labels 0 and 1, found one class"):
        sampling.condition_separation(train, np.ones(80), train)


SUMMARY = [  # effect, conditioning, drawn_with, low, high, expected_without, over: the demo's
    (f"accuracy of the map, {demo_promises.OWN}", "semantic", "condition", 0.357, 0.379, 0.0, "source patients"),
    (f"accuracy of the map, {demo_promises.OWN}", "semantic", "no condition", -0.028, 0.008, 0.0, "source patients"),
    (demo_promises.AUC, "semantic", "condition", 0.664, 0.889, 0.5, "folds"),
    (demo_promises.AUC, "class", "condition", 0.603, 0.926, 0.5, "folds"),
    (demo_promises.AUC, "class", "no condition", 0.475, 0.650, 0.5, "folds"),
]


@pytest.mark.parametrize(
    ("row", "change", "sentence"),
    [
        (None, {}, None),
        (0, {"low": 0.0}, "gain of the semantic model's maps .* above 0.0, found 0.0"),
        (1, {"low": 0.001}, "semantic model without condition, accuracy .* holds 0.0, found"),
        (3, {"low": 0.5}, "AUC of the class model's images .* over folds: expected a lower bound above 0.5, found 0.5"),
        (3, {"low": float("nan")}, "AUC of the class model's images .* found nan"),
        (4, {"high": 0.49}, "class model without condition, AUC .* holds 0.5, found"),
        (3, {"conditioning": "semantic"}, "AUC of the class model's images: expected rows .* found none"),
        (4, {"conditioning": "semantic"}, "null condition: expected both models, found .'semantic'."),
    ],
)
def test_a_broken_promise_of_the_demo_is_named(row, change, sentence):
    columns = ["effect", "conditioning", "drawn_with", "low", "high", "expected_without", "over"]
    table = pd.DataFrame(SUMMARY, columns=columns)
    for name, value in change.items():
        table.loc[row, name] = value
    found = demo_promises.broken(table)
    assert found == [] if sentence is None else re.search(sentence, " ".join(found))


def test_the_condition_matters_where_its_images_alone_show_an_effect():
    columns = ["effect", "conditioning", "drawn_with", "low", "expected_without", "over"]
    rows = [["accuracy", "semantic", "condition", 0.3, 0, "source patients"]]
    rows += [["accuracy", "semantic", "no condition", -0.1, 0, "source patients"]]
    rows += [
        ["dice", "semantic", "condition", -1, 0, "source patients"],
        ["AUC", "class", "condition", 0.6, 0.5, "folds"],
    ]
    rows += [["AUC", "class", "condition", 0.4, 0.5, "images"], ["AUC", "class", "no condition", 0.55, 0.5, "folds"]]
    rows += [["AUC", "semantic", "condition", np.nan, 0.5, condition_units.ALIKE]]
    said = [
        "semantic model: the condition matters (accuracy).",
        "class model: it is not shown that the condition matters, since images drawn without it show as much (AUC).",
        "semantic model: it is not shown that the condition matters (AUC).",
    ]
    assert condition_units.reading(pd.DataFrame(rows, columns=columns)) == said
    unsaid = ["AUC", "class", "condition", np.nan, 0.5, statistics.NO_SPREAD]  # over images, and without an interval
    assert condition_units.reading(pd.DataFrame([*rows, unsaid], columns=columns)) == said


def test_the_key_of_a_claim_is_the_same_with_and_without_an_interval(monkeypatch):
    columns = ["effect", "conditioning", "drawn_with", "mean", "low", "high", "over", "n"]
    overs = ["folds", condition_units.ALIKE, "images", statistics.NO_SPREAD]
    rows = [[condition_units.SEPARATION, "class", "condition", 0.6, 0.5, 0.7, over, 2] for over in overs]
    made = types.SimpleNamespace(load_table=lambda name: pd.DataFrame(rows, columns=columns))
    monkeypatch.setattr(condition_units, "build", lambda run: made)
    keys = [claim["key"] for claim in condition_units.claims(None)]
    assert keys == ["condition.auc.class.with.folds"] * 2 + ["condition.auc.class.with.images"] * 2


def test_an_interval_over_two_folds_stays_within_what_an_auc_can_be():
    scores = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.4, 0.1, 0.3, 0.2]}  # AUC 1 and 0.5
    rows = [
        {"conditioning": "semantic", "drawn_with": "condition", "fold": fold, "label": i // 2, "score": score}
        for fold, values in scores.items()
        for i, score in enumerate(values)
    ]
    (found,) = condition_units.separation_rows(pd.DataFrame(rows))
    assert found["mean"] == pytest.approx((1 + 0.5) / 2)
    half = 12.706205 * 0.25 / (0.75 * 0.25)  # t(0.975, 1), standard error, logit scale
    assert [found["low"], found["high"]] == pytest.approx([3 / (3 + np.exp(half)), 3 / (3 + np.exp(-half))], rel=1e-4)
