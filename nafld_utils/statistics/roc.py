"""ROC AUC of a clustered cohort: intervals over patients, tests over seeds, and what each of them is about.

Contract: arrays in, numbers or named tuples out; the same `seed` gives the same interval. Two sources of chance are
kept apart. *Seeds*: the same patients, trained again (the paper's paired t test); says nothing about other patients.
*Patients*: other patients drawn like these; always given these trained models and this split, so it is still too
narrow for a newly trained model. Every function refuses, with a ValueError, one class only, unequal lengths and scores
that are not finite; those over patients also a patient with two labels and fewer than two patients in a class.

Notes
-----
An AUC is the share of (fatty, healthy) image pairs in the right order. Summed by pair of patients these wins are a
small matrix ``K``; if a bootstrap draws patient ``i`` ``w_i`` times, its AUC is exactly
``w_fatty' K w_healthy / (w_fatty' m_fatty * w_healthy' m_healthy)`` with ``m`` the images a patient has. So the images
are compared once, a resample is a product of small matrices, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from nafld_utils.statistics import bootstrap

REVISION = ("stats", 2)

# What every interval of a bootstrap over patients is given, and what one of a single training is over.
GIVEN = "these trained models, this split"
OVER_PATIENTS = f"patients within class (bootstrap); {GIVEN}"


class Interval(NamedTuple):
    """An AUC (or a difference of AUCs) with its interval; unpacks as ``auc, low, high``."""

    auc: float
    low: float
    high: float


class PairedT(NamedTuple):
    """A paired t test with the interval of the mean difference, all over seeds."""

    t: float
    p: float
    df: int
    difference: float
    low: float
    high: float


class MeanInterval(NamedTuple):
    """A mean with its Student t interval; unpacks as ``mean, low, high``."""

    mean: float
    low: float
    high: float


# ---------------------------------------------------------------- one score per row


def auc(label: Any, score: Any) -> float:
    """Area under the ROC curve, in [0, 1], by midranks, ties counted one half.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class; 1 is the positive one.
    score : (n,) array of float
        Higher means more positive.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    label, scores = checked(label, score)
    n_pos = int(label.sum())
    ranks = scipy_stats.rankdata(scores[0])
    return float((ranks[label].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * (len(label) - n_pos)))


def auc_interval(
    label: Any,
    score: Any,
    patient: Any,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """Image-level AUC with an interval over patients.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class of each image; one class per patient.
    score : (n,) array of float
        Higher means more likely class 1.
    patient : (n,) array
        Patient of each image.
    n_resamples : int
        Bootstrap resamples. Patients are drawn with replacement within their class, with all their images.
    seed : int
        Seed of the draws.
    level : float
        Coverage asked for.
    method : {"percentile", "bca"}
        As in `statistics.crossed_bootstrap`.

    Returns
    -------
    Interval
        ``auc, low, high``, over patients, given these scores.

    Notes
    -----
    Choice: percentile interval. The trained models stay fixed, so under shuffled labels a "95 %" interval of
    cross-validated scores covers 0.5 less often (86 % of 200 shuffles on the real cohort, frozen features).

    Examples
    --------
    >>> label, patient = [0, 0, 0, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "c", "c", "d", "d"]
    >>> auc_interval(label, [1, 2, 3, 4, 2.5, 5, 6, 7], patient)
    Interval(auc=0.875, low=0.5, high=1.0)
    """
    return mean_auc_interval(label, np.atleast_2d(score), patient, n_resamples, seed, level, method=method)


def student_t_interval(values: Any, level: float = 0.95) -> MeanInterval:
    """Mean of independent values with its Student t interval, not clipped to any range.

    Parameters
    ----------
    values : (n,) array of float
        One value per rater, seed or fold; at least two.
    level : float
        Coverage.

    Returns
    -------
    MeanInterval
        ``mean, low, high``; no width where all values are equal.

    Examples
    --------
    >>> mean, low, high = student_t_interval([0.4, 0.5, 0.6])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (0.5, 0.252, 0.748)
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"values: expected two or more finite numbers for a Student t interval, found {_brief(values)};"
            " add raters, seeds or folds."
        )
    half = scipy_stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return MeanInterval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def over_folds(values: Any) -> MeanInterval:
    """Mean of one value per fold and its Student t interval; NaN for what one fold, or none, cannot have.

    Folds share training patients: the interval describes the folds, not new patients.
    """
    values = np.asarray(values, dtype=float)
    if len(values) > 1:
        return student_t_interval(values)
    return MeanInterval(float(values[0]) if len(values) else float("nan"), float("nan"), float("nan"))


def exact_interval(n_right: int, n: int) -> tuple[float, float]:
    """Exact binomial (Clopper-Pearson) 95 % interval of a share: `n_right` of `n` independent tries."""
    return tuple(map(float, scipy_stats.binomtest(n_right, n).proportion_ci(0.95, "exact")))


def paired_t(new: Any, base: Any, level: float = 0.95) -> PairedT:
    """Paired t test over seeds, as in the paper: does `new` differ from `base` on the same patients?

    Parameters
    ----------
    new, base : (n_seeds,) array of float
        AUC of each seed, in the same order of seeds.
    level : float
        Coverage of the interval of the mean difference.

    Returns
    -------
    PairedT
        ``t, p, df, difference, low, high``; difference is new minus base, so a gain has a positive t (the paper
        prints the opposite sign). ValueError where all differences are equal: t is then not defined.
    """
    new, base = np.asarray(new, dtype=float), np.asarray(base, dtype=float)
    if new.shape != base.shape:
        raise ValueError(
            f"new and base: expected the same seeds in both, found {new.shape} and {base.shape}; pair them."
        )
    difference, low, high = student_t_interval(new - base, level)
    error = (new - base).std(ddof=1) / np.sqrt(len(new))
    if error <= 1e-12:  # rounding alone may leave a spread of 1e-17
        raise ValueError(
            f"new and base differ by {difference:g} in every seed, expected some spread; t is not defined."
        )
    t = difference / error
    return PairedT(float(t), float(2 * scipy_stats.t.sf(abs(t), len(new) - 1)), len(new) - 1, difference, low, high)


# ---------------------------------------------------------------- several seeds, same images


def mean_auc_interval(
    label: Any,
    scores: Any,
    patient: Any,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    fold: Any = None,
    method: str = "percentile",
) -> Interval:
    """Mean AUC over seeds with a crossed bootstrap interval over patients and seeds.

    Parameters
    ----------
    scores : (n_seeds, n) array of float
        Row s holds the scores of training seed s for the same images. One row: an interval over patients alone.
    fold : (n,) array, optional
        Fold of each image: the AUC is then the mean of the folds' own AUCs (Supplementary Fig. 3), and patients are
        drawn within class and fold. None ranks the folds' scores together.
    label, patient, n_resamples, seed, level, method
        As in `auc_interval`.

    Returns
    -------
    Interval
        ``auc, low, high``.
    """
    found = _crossed(_pair_wins(label, scores, patient, fold), n_resamples, seed, level, method)
    return Interval(found.estimate, found.low, found.high)


Blocks = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _crossed(arm: Blocks, n_resamples: int, seed: int, level: float, method: str) -> bootstrap.Resampled:
    """Mean AUC over seeds, resampled."""
    sizes = [n for wins, _, _ in arm for n in wins.shape[1:]]
    n_seeds = len(arm[0][0])

    def statistic(*drawn: np.ndarray) -> np.ndarray:
        seeds = bootstrap.counts(drawn[-1], n_seeds)
        weights = [bootstrap.counts(index, n) for index, n in zip(drawn[:-1], sizes, strict=True)]
        return _weighted_auc(arm, weights, seeds)

    return bootstrap.crossed_bootstrap(statistic, sizes, n_seeds, n_resamples, seed, level, method)


def _pair_wins(label: Any, scores: Any, patient: Any, fold: Any = None) -> Blocks:
    """By fold: wins summed by pair of patients (seeds, P, N), images of each positive (P,) and negative (N,) patient.

    Without folds one block of all images.
    """
    label, scores = checked(label, scores)
    code = patient_codes(label, patient)
    parts = np.zeros(len(label), dtype=int) if fold is None else np.unique(fold, return_inverse=True)[1]
    blocks = []
    for k in range(parts.max() + 1):
        rows = np.flatnonzero(parts == k)
        positives, place = np.unique(code[rows[label[rows]]], return_inverse=True)
        negatives = np.unique(code[rows[~label[rows]]])
        images = np.bincount(code[rows], minlength=code.max() + 1)
        wins = np.empty((len(scores), len(positives), len(negatives)))
        for s, row in enumerate(scores):
            high = row[rows[label[rows]]]
            for j, who in enumerate(negatives):
                below = np.sort(row[rows[code[rows] == who]])
                won = np.searchsorted(below, high, "left") + np.searchsorted(below, high, "right")
                wins[s, :, j] = np.bincount(place, weights=won / 2, minlength=len(positives))
        blocks.append((wins, images[positives], images[negatives]))
    return blocks


def _weighted_auc(blocks: Blocks, weights: Sequence[np.ndarray], seeds: np.ndarray) -> np.ndarray:
    """Mean AUC (...) over blocks and seeds when patients count `weights`, two arrays (..., n) per block, times."""
    total = 0.0
    for (wins, m_pos, m_neg), pos, neg in zip(blocks, weights[::2], weights[1::2], strict=True):
        pairs = (pos @ m_pos) * (neg @ m_neg)
        each = np.stack([((pos @ matrix) * neg).sum(axis=-1) / pairs for matrix in wins], axis=-1)
        total = total + (each * seeds).sum(axis=-1) / seeds.sum(axis=-1)
    return total / len(blocks)


def checked(label: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Label as (n,) bool and scores as (seeds, n) float64, or a ValueError."""
    label, scores = np.asarray(label), np.atleast_2d(np.asarray(scores, dtype=float))
    if label.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(label):
        raise ValueError(
            f"label and score: expected one row per image in both, found {label.shape} and {scores.shape}; align them."
        )
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"label: expected 0 and 1, found {_brief(np.unique(label))}; code the classes as 0 and 1.")
    label = label.astype(bool)
    if label.all() or not label.any():
        raise ValueError(f"label: expected both classes, found one in {len(label)} rows; an AUC needs both.")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ValueError(f"score: expected finite numbers, found {bad} that are not; train the failed runs again.")
    return label, scores


def patient_codes(label: np.ndarray, patient: Any) -> np.ndarray:
    """Each image's patient as a number from 0, (n,) int64, in sorted order of the patients; `label` is (n,) bool."""
    names, code = np.unique(np.asarray(patient), return_inverse=True)
    if code.shape != label.shape:
        raise ValueError(f"patient: expected one entry per image ({len(label)}), found {code.shape}; align it.")
    share = np.bincount(code, weights=label) / np.bincount(code)
    mixed = np.flatnonzero((share > 0) & (share < 1))
    if len(mixed):
        raise ValueError(
            f"patient {names[mixed[0]]}: expected one label, found both 0 and 1; a patient has one diagnosis."
        )
    return code


def _brief(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), threshold=6, precision=4)
