"""Whether the condition that an image was drawn with shows in the image.

Contract: maps, features and labels in, tables and intervals out; the trained models are held fixed, so an interval
over source patients or images says nothing about another training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.networks import checked_pair

REVISION = ("condition_checks", 1)


def map_agreement(a: np.ndarray, b: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel accuracy and mean Dice of pairs of label maps, over the classes present in either of a pair.

    Parameters
    ----------
    a, b : numpy.ndarray, shape (N, M, M), integer labels in [0, n_classes)
    n_classes : int

    Returns
    -------
    accuracy, dice : numpy.ndarray, shape (N,), in [0, 1]
    """
    a, b = (np.asarray(x).reshape(len(x), -1) for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"maps: expected conditions of shape {a.shape}, found {b.shape}; use one map size for both.")
    total, present = np.zeros(len(a)), np.zeros(len(a))
    for label in range(n_classes):
        in_a, in_b = a == label, b == label
        size = in_a.sum(axis=1) + in_b.sum(axis=1)
        total += 2.0 * (in_a & in_b).sum(axis=1) / np.maximum(size, 1)
        present += size > 0
    return (a == b).mean(axis=1), total / present


def condition_agreement(
    maps: np.ndarray,
    conditions: np.ndarray,
    patients: np.ndarray,
    n_classes: int,
    rng: np.random.Generator,
    n_shuffles: int = 8,
) -> pd.DataFrame:
    """Agreement of generated images with their own condition and with conditions of other source patients.

    Parameters
    ----------
    maps : numpy.ndarray, shape (N, M, M), integer
        Otsu maps of the generated images, made as conditions are made from real images.
    conditions : numpy.ndarray, shape (N, M, M), integer
        The maps the images were drawn with.
    patients : numpy.ndarray, shape (N,)
        Source patient of each condition.
    n_classes : int
        Classes of a map.
    rng : numpy.random.Generator
        Draws the other conditions.
    n_shuffles : int
        Other conditions an image, averaged (choice: steadier than one).

    Returns
    -------
    pandas.DataFrame
        One row an image: ``patient, accuracy, accuracy_shuffled, dice, dice_shuffled``.

    Raises
    ------
    ValueError
        Conditions of one source patient only: nothing to shuffle with.
    """
    patients = np.asarray(patients)
    if len(np.unique(patients)) < 2:
        raise ValueError("conditions: expected maps of two or more source patients to shuffle, found one; draw more.")
    accuracy, dice = map_agreement(maps, conditions, n_classes)
    others = np.array([rng.choice(np.flatnonzero(patients != p), n_shuffles) for p in patients])
    shuffled = [map_agreement(maps, conditions[column], n_classes) for column in others.T]
    accuracy_shuffled, dice_shuffled = (np.mean([pair[i] for pair in shuffled], axis=0) for i in (0, 1))
    return pd.DataFrame(
        {
            "patient": patients,
            "accuracy": accuracy,
            "accuracy_shuffled": accuracy_shuffled,
            "dice": dice,
            "dice_shuffled": dice_shuffled,
        }
    )


def cluster_interval(
    values: Any, clusters: Any, rng: np.random.Generator, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `values` with a percentile bootstrap interval that resamples whole clusters (source patients).

    Parameters
    ----------
    values : array, shape (N,)
    clusters : array, shape (N,)
        At least two different ones.
    rng : numpy.random.Generator
    n_resamples : int
    level : float

    Returns
    -------
    mean, low, high : float
        The trained models are held fixed.
    """
    values = np.asarray(values, dtype=float)
    names, code = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"clusters: expected two or more to resample, found {len(names)}; add source patients.")
    sums, sizes = np.bincount(code, values), np.bincount(code)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    draws = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


def condition_separation(train_features: Any, train_labels: Any, features: Any) -> np.ndarray:
    """Probability that each image is fatty, by a classifier that has seen real training images only.

    Parameters
    ----------
    train_features : array, shape (n, d)
        Frozen features of the fold's real training images.
    train_labels : array of int, shape (n,)
        0 healthy, 1 fatty.
    features : array, shape (m, d)
        Frozen features of generated images.

    Returns
    -------
    numpy.ndarray, shape (m,), in [0, 1]

    Notes
    -----
    Choice: logistic regression on standardised features, C = 0.01, since features outnumber images tenfold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train_features, features = checked_pair(train_features, features, ("real training images", "generated images"))
    train_labels = np.asarray(train_labels)
    if len(np.unique(train_labels)) != 2:
        raise ValueError("real training images: expected labels 0 and 1, found one class; check the folds.")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return classifier.fit(train_features, train_labels).predict_proba(features)[:, 1]


def separation_interval(
    scores: pd.DataFrame, rng: np.random.Generator, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over folds of the ROC AUC with a percentile bootstrap interval over images.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``fold, label, score``, one row an image; both labels in every fold.
    rng : numpy.random.Generator
    n_resamples : int
    level : float

    Returns
    -------
    mean, low, high : float
        Images are resampled within fold and label: images drawn from a class alone have no source patient.
    """
    draws, means = np.zeros(n_resamples), []
    for fold, part in scores.groupby("fold"):
        fatty, healthy = (part.loc[part["label"] == label, "score"].to_numpy() for label in (1, 0))
        if not (len(fatty) and len(healthy)):
            raise ValueError(f"fold {fold}: expected generated images of both labels, found one; draw more images.")
        wins = (fatty[:, None] > healthy) + 0.5 * (fatty[:, None] == healthy)
        means.append(wins.mean())
        up = rng.multinomial(len(fatty), np.full(len(fatty), 1 / len(fatty)), size=n_resamples)
        down = rng.multinomial(len(healthy), np.full(len(healthy), 1 / len(healthy)), size=n_resamples)
        draws += ((up @ wins) * down).sum(axis=1) / wins.size
    low, high = np.quantile(draws / len(means), [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean(means)), float(low), float(high)
