"""Folds by patient: sizes by eye, guards, and agreement with the paper's 44/11."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import preprocessing
from nafld_utils.preprocessing import folds


def people(n_healthy, n_fatty):
    return pd.DataFrame(
        {"patient_id": range(1, n_healthy + n_fatty + 1), "label": [0] * n_healthy + [1] * n_fatty, "grade": 0.0}
    )


def pictures(patients, n=3):
    table = patients.loc[patients.index.repeat(n)].reset_index(drop=True)
    return table.assign(sha256=[f"frame{i}" for i in range(len(table))])


def test_the_real_cohorts_class_mix_gives_44_and_11_in_every_fold():
    patients = people(17, 38)
    table = preprocessing.make_folds(patients, 5, seed=0).merge(patients, on="patient_id")
    held_out = pd.crosstab(table["fold"], table["label"])
    assert held_out.sum(axis=1).tolist() == [11] * 5
    assert held_out[0].between(3, 4).all()
    assert held_out[1].between(7, 8).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_healthy", "n_fatty", "n_splits"), [(2, 6, 2), (12, 28, 5), (5, 5, 5), (17, 38, 10)])
def test_every_patient_is_held_out_once_and_classes_are_even(n_healthy, n_fatty, n_splits, seed):
    patients = people(n_healthy, n_fatty)
    table = preprocessing.make_folds(patients, n_splits, seed)
    assert table["patient_id"].tolist() == patients["patient_id"].tolist()
    assert sorted(table["fold"].unique()) == list(range(n_splits))
    counts = pd.crosstab(table["fold"], patients["label"].to_numpy())
    assert (counts.max() - counts.min()).max() <= 1


def test_the_split_is_the_seeds_and_nothing_elses():
    patients = people(17, 38)
    first = preprocessing.make_folds(patients, 5, seed=0)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    assert preprocessing.make_folds(patients, 5, seed=0).equals(first)
    assert not preprocessing.make_folds(patients, 5, seed=1).equals(first)


def test_a_table_with_another_index_keeps_its_patients():
    patients = people(4, 6).sample(frac=1, random_state=0)
    table = preprocessing.make_folds(patients, 2, seed=0)
    assert table["patient_id"].tolist() == patients["patient_id"].tolist()
    labels = patients.set_index("patient_id")["label"]
    assert table["fold"].groupby(table["patient_id"].map(labels)).value_counts().tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("patients", "n_splits", "message"),
    [
        (people(4, 20), 5, "folds.n_splits is 5, .* found 4 with label 0; lower"),
        (people(0, 9), 3, r"two classes, found label \[1\] only"),
        (people(9, 9), 1, "at least 2 folds, found 1"),
        (pd.concat([people(5, 5), people(5, 5)]), 2, "one row per patient, found patient 1 twice"),
    ],
)
def test_refusals(patients, n_splits, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.make_folds(patients, n_splits, seed=0)


def test_split_gives_both_sides():
    patients = people(4, 6)
    images = pictures(patients).merge(preprocessing.make_folds(patients, 2, seed=0), on="patient_id")
    training, held_out = preprocessing.split(images, 0)
    assert len(training) + len(held_out) == len(images)
    assert not set(training["patient_id"]) & set(held_out["patient_id"])
    with pytest.raises(ValueError, match="fold 7: expected images on both sides of the split, found 0 of 30"):
        preprocessing.split(images, 7)


def test_a_patient_on_both_sides_is_refused():
    images = pictures(people(4, 6))
    with pytest.raises(ValueError, match="found patient 2 in training and held-out images"):
        folds.assert_no_leak(images.iloc[:4], images.iloc[4:])


def test_a_copied_frame_is_refused_although_ids_differ():
    images = pictures(people(4, 6))
    images.loc[29, "sha256"] = images.loc[0, "sha256"]
    with pytest.raises(ValueError, match="one of patient 1 in training that equals one of held-out patient 10"):
        folds.assert_no_leak(images.iloc[:15], images.iloc[15:])
    folds.assert_no_leak(images.iloc[:15], images.iloc[15:29])


def test_a_synthetic_set_of_another_fold_is_refused():
    images = pictures(people(4, 6)).assign(fold=lambda t: t["patient_id"] % 2)
    preprocessing.assert_trained_without(images, 0, pd.Series([1, 3, -1, 9]))
    with pytest.raises(ValueError, match=r"synthetic set of fold 0: .* found patient 4, who is held out"):
        preprocessing.assert_trained_without(images, 0, pd.Series([1, 4, -1]))


def test_folds_that_hold_one_patient_of_a_class_are_refused_before_any_training():
    label = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1])
    images = pd.DataFrame({"patient_id": range(9), "label": label, "fold": [0, 1, 1, 0, 0, 0, 1, 1, 1]})
    preprocessing.assert_comparable(images, [1], ("healthy", "fatty"))
    preprocessing.assert_comparable(images, [0, 1], ("healthy", "fatty"))
    with pytest.raises(ValueError, match=r"ldm.folds: .* of the folds \[0\] together, found 1 of healthy"):
        preprocessing.assert_comparable(images, [0], ("healthy", "fatty"))
