"""ROC AUC of a clustered cohort: what is refused, means of seeds and folds, and what an interval is over.

Contract: arrays in, numbers or named tuples out; nothing is drawn. Two sources of chance are kept apart. *Seeds*: the
same patients, trained again (the paper's paired t test); says nothing about other patients. *Patients*: other patients
drawn like these (`auc_intervals`, `delong`, `readers`). Functions of scores refuse, with a ValueError, one class only,
unequal lengths and scores that are not finite; those over patients also a patient with two labels and fewer than two
patients in a class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy

REVISION = ("stats", 3)

# What every interval over patients is given, what a bootstrap of a single training is over, and why there is none.
GIVEN = "these trained models, this split"
GIVEN_SEEDS = "this split, these generators and training patients"  # where training seeds vary too
OVER_PATIENTS = f"patients within class (bootstrap); {GIVEN}"
# Ranges that a mean and its interval cannot leave; `SIGNED` is that of correlations and of differences of two shares.
ANY, POSITIVE, SHARE, SIGNED = (-np.inf, np.inf), (0.0, np.inf), (0.0, 1.0), (-1.0, 1.0)
NO_SPREAD = "no interval: cannot be said, since nothing varies"


_ROUNDING = 1e-12  # what rounding alone may leave of a spread


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
    ranks = scipy.stats.rankdata(scores[0])
    return float((ranks[label].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * (len(label) - n_pos)))


def student_t_interval(values: Any, level: float = 0.95, within: tuple[float, float] = ANY) -> MeanInterval:
    """Mean of independent values with its Student t interval, which stays in the range of the values.

    Parameters
    ----------
    values : (n,) array of float
        One value per rater, seed or fold; at least two.
    level : float
        Coverage.
    within : (low, high)
        Range of the values: `ANY`, `POSITIVE`, `SHARE` or `SIGNED`. The interval is built on the log scale above
        a lower end, on the logit scale between two ends, the standard error carried there by the delta method (Agresti
        2013, section 16.1), so that it ends inside the range; the mean is that of the values.

    Returns
    -------
    MeanInterval
        ``mean, low, high``; bounds are NaN where all values are equal: without spread nothing can be said.

    Raises
    ------
    ValueError
        There are fewer than two values, or one is not finite or outside `within`.

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
    low, high = within
    slack = 1e-6 * max(1.0, float(np.abs(values).max()))  # rounding may leave the range
    if values.min() < low - slack or values.max() > high + slack:
        raise ValueError(f"values: expected numbers in [{low:g}, {high:g}], found {_brief(values)}; correct them.")
    values = np.clip(values, low, high)
    mean = float(values.mean())
    half = scipy.special.stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    sides = np.array([-half, half])
    if np.ptp(values) <= _ROUNDING:
        ends = np.array([np.nan, np.nan])
    elif np.isinf(low):
        ends = mean + sides
    elif np.isinf(high):
        ends = low + (mean - low) * np.exp(sides / (mean - low))
    else:
        share = (mean - low) / (high - low)
        sides /= (high - low) * share * (1 - share)
        ends = low + (high - low) * scipy.special.expit(scipy.special.logit(share) + sides)
    return MeanInterval(mean, *map(float, ends))


def over_folds(values: Any, within: tuple[float, float] = ANY) -> MeanInterval:
    """Mean of one value per fold and its Student t interval; NaN for what one fold, or none, or equal ones cannot have.

    Folds share training patients: the interval describes the folds, not new patients. `within` is as in
    `student_t_interval`.
    """
    values = np.asarray(values, dtype=float)
    if len(values) > 1:
        return student_t_interval(values, within=within)
    return MeanInterval(float(values[0]) if len(values) else float("nan"), float("nan"), float("nan"))


def stated(over: str, low: float, why: str = NO_SPREAD) -> str:
    """What an interval is over, or `why` there is none."""
    return over if np.isfinite(low) else why


def exact_interval(n_right: float, n: float) -> tuple[float, float]:
    """Exact binomial (Clopper-Pearson) 95 % interval of a share: `n_right` of `n` independent tries."""
    low = 0.0 if n_right == 0 else scipy.special.betaincinv(n_right, n - n_right + 1, 0.025)
    high = 1.0 if n_right == n else scipy.special.betaincinv(n_right + 1, n - n_right, 0.975)
    return float(low), float(high)


def clustered_share(found: Any, cluster: Any) -> MeanInterval:
    """Share of true entries of `found` (n,) with an exact 95 % interval over clusters (n,), such as patients.

    Clopper and Pearson's with as many tries as the entries are worth (Korn and Graubard 1998, Survey Methodology 24,
    193-201): their number over the design effect, at least the clusters'. Where all are alike a cluster is one try.

    Examples
    --------
    >>> [round(value, 3) for value in clustered_share([0, 0, 0, 0], ["a", "a", "b", "b"])]
    [0.0, 0.0, 0.842]
    """
    found, code = np.asarray(found, dtype=float), np.unique(np.asarray(cluster), return_inverse=True)[1]
    n, n_clusters, share = len(found), int(code.max()) + 1, float(found.mean())
    off = np.bincount(code, found - share)
    variance = n_clusters / max(n_clusters - 1, 1) * float((off**2).sum()) / n**2
    tries = float(np.clip(share * (1 - share) / variance, n_clusters, n)) if variance > 0 else float(n_clusters)
    return MeanInterval(share, *exact_interval(tries * share, tries))


def paired_t(new: Any, base: Any, within: tuple[float, float] = ANY) -> PairedT:
    """Paired t test over seeds, as in the paper: does `new` differ from `base` on the same patients?

    Parameters
    ----------
    new, base : (n_seeds,) array of float
        AUC of each seed, in the same order of seeds.
    within : (low, high)
        Where the 95 % interval of the mean difference is cut, `SIGNED` for AUCs: on the scale of t and p, so that it
        holds 0 where p is above 0.05.

    Returns
    -------
    PairedT
        ``t, p, df, difference, low, high``; difference is new minus base, so a gain has a positive t (the paper
        prints the opposite sign).

    Raises
    ------
    ValueError
        The seeds differ, are fewer than two, or all have the same difference: t is then not defined.
    """
    new, base = np.asarray(new, dtype=float), np.asarray(base, dtype=float)
    if new.shape != base.shape:
        raise ValueError(
            f"new and base: expected the same seeds in both, found {new.shape} and {base.shape}; pair them."
        )
    difference, *ends = student_t_interval(new - base)
    low, high = (float(end) for end in np.clip(ends, *within))
    error = (new - base).std(ddof=1) / np.sqrt(len(new))
    if not np.isfinite(low):
        raise ValueError(
            f"new and base differ by {difference:g} in every seed, expected some spread; t is not defined."
        )
    t = difference / error
    return PairedT(float(t), float(2 * scipy.stats.t.sf(abs(t), len(new) - 1)), len(new) - 1, difference, low, high)


# ---------------------------------------------------------------- what is refused


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
