"""Precision, recall, density, coverage and realism: by eye, against torch-fidelity's plain form, and by patient."""

import numpy as np
import pytest

from nafld_utils.quality import precision_recall


def rng(seed=0):
    return np.random.default_rng(seed)


def test_balls_reach_past_frames_of_the_same_patient():
    features = [[0.0], [0.1], [1.0], [3.0]]
    assert precision_recall.radii(features, None, k=1).round(6).tolist() == [0.1, 0.1, 0.9, 2.0]
    assert precision_recall.radii(features, [0, 0, 1, 2], k=1).round(6).tolist() == [1.0, 0.9, 0.9, 2.0]


def test_too_few_images_of_other_patients_make_no_ball():
    assert np.isnan(precision_recall.radii([[0.0], [1.0], [2.0]], [0, 0, 0], k=1)).all()
    found = precision_recall.manifold_metrics([[0.0], [1.0]], [[0.0], [1.0]], [0, 0], [1, 1], k=1)
    assert all(np.isnan(value) for value in found.values())


def test_by_eye():
    real, made = [[0.0], [1.0], [10.0]], [[0.5], [20.0]]
    found = precision_recall.manifold_metrics(real, made, None, None, k=1)
    # balls of the real images: 1, 1, 9; of the made ones: 19.5 each
    assert found["precision"] == 0.5
    assert found["density"] == (2 + 0) / 2
    assert found["coverage"] == 2 / 3
    assert found["recall"] == 1.0


@pytest.mark.parametrize("k", [3, 5])
def test_plain_form_equals_torch_fidelity(k):
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, made = rng(0).normal(size=(80, 12)), rng(1).normal(0.3, 1.2, size=(60, 12))
    ours = precision_recall.manifold_metrics(real, made, None, None, k=k)
    theirs = prc_features_to_metric(torch.from_numpy(made), torch.from_numpy(real), prc_neighborhood=k, verbose=False)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def cohort(n_patients=30, n_frames=6, seed=0):
    """Frames that differ little within a patient and much between patients."""
    centres = rng(seed).normal(size=(n_patients, 8))
    frames = centres.repeat(n_frames, axis=0)
    return frames + rng(seed + 1).normal(0, 0.05, frames.shape), np.arange(n_patients).repeat(n_frames)


def test_frames_of_a_patient_make_other_patients_look_unreal_in_the_plain_form_only():
    features, patients = cohort()
    half = patients < 15
    args = features[half], features[~half]
    plain = precision_recall.manifold_metrics(*args, None, None)
    by_patient = precision_recall.manifold_metrics(*args, patients[half], patients[~half])
    assert plain["precision"] < 0.1
    assert by_patient["precision"] > 0.4
    assert by_patient["recall"] > 0.5


def test_each_metric_moves_where_it_should():
    features, patients = cohort()
    half = patients < 15
    real, other, own = features[half], features[~half], patients[half]
    base = precision_recall.manifold_metrics(real, other, own, patients[~half])
    noise = precision_recall.manifold_metrics(real, other + 8.0, own, patients[~half])
    assert noise["precision"] == noise["coverage"] == noise["density"] == 0.0
    repeated = precision_recall.manifold_metrics(real, np.repeat(real[:1], 90, axis=0), own, np.arange(-90, 0))
    assert repeated["precision"] == 1.0
    assert repeated["recall"] < base["recall"]
    copied = precision_recall.manifold_metrics(real, real, own, own)
    assert copied["precision"] == copied["coverage"] == copied["recall"] == 1.0


def test_realism_is_high_inside_and_low_outside():
    features, patients = cohort()
    score = precision_recall.realism(np.concatenate([features[:3], features[:3] + 20.0]), features, patients)
    assert (score[:3] > 10).all()
    assert (score[3:] < 0.5).all()


def test_errors_name_the_set():
    with pytest.raises(ValueError, match="the synthetic set: expected finite"):
        precision_recall.manifold_metrics([[0.0], [1.0]], [[np.nan], [1.0]], None)
