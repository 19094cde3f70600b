"""Whether the condition that an image was drawn with shows in the image.

Contract: maps, features and labels in, tables and intervals out; the trained models are held fixed, so an interval
over source patients or images says nothing about another training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.networks import checked_pair

REVISION = ("condition_checks", 2)
LEVEL = 0.95
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
SHUFFLES, RESAMPLES = 8, 2000  # other conditions that an image is compared with, and draws of source patients


def map_agreement(a: np.ndarray, b: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean Dice, (N,) in [0, 1], of pairs of (N, M, M) label maps, over the classes present in a pair."""
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
    maps: np.ndarray, conditions: np.ndarray, patients: np.ndarray, n_classes: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Agreement of images' own maps (N, M, M) with their conditions, and with those of other source patients (N,).

    One row per image: ``patient, accuracy, accuracy_shuffled, dice, dice_shuffled``. Choice: the shuffled agreement is
    the mean over `SHUFFLES` other conditions, which is steadier than one.
    """
    patients = np.asarray(patients)
    if len(np.unique(patients)) < 2:
        raise ValueError("conditions: expected maps of two or more source patients to shuffle, found one; draw more.")
    own = map_agreement(maps, conditions, n_classes)
    others = np.array([rng.choice(np.flatnonzero(patients != p), SHUFFLES) for p in patients])
    shuffled = np.mean([map_agreement(maps, conditions[column], n_classes) for column in others.T], axis=0)
    columns = {"patient": patients}
    for i, name in enumerate(("accuracy", "dice")):
        columns |= {name: own[i], f"{name}_shuffled": shuffled[i]}
    return pd.DataFrame(columns)


def cluster_interval(values: Any, clusters: Any, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean, low, high of `values` (N,): percentile bootstrap that resamples whole clusters (source patients)."""
    values = np.asarray(values, dtype=float)
    names, code = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"clusters: expected two or more to resample, found {len(names)}; add source patients.")
    sums, sizes = np.bincount(code, values), np.bincount(code)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    draws = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(draws, TAILS) if np.ptp(draws) > 1e-12 else (np.nan, np.nan)  # no spread is not certainty
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

    Raises
    ------
    ValueError
        The training images are of one class.

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
