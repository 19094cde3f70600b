"""DeLong's variance of AUCs and of their differences, on one row per patient.

Contract: arrays in, numbers or named tuples out. The formula takes rows as independent, so a row must be a PATIENT:
given the ten frames of a patient as ten rows, its intervals would be about 2.7 times too narrow. It is given the
trained models and the split, as the bootstrap over patients is, and stands beside it as a check that draws nothing.

References
----------
DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595; computed by midranks as in Sun and Xu 2014,
doi:10.1109/LSP.2014.2337313.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from nafld_utils.statistics import roc

REVISION = ("delong", 1)


class DelongTest(NamedTuple):
    """Difference of two mean AUCs over patients: standard error, z, two-sided p and interval, not clipped."""

    difference: float
    error: float
    z: float
    p: float
    low: float
    high: float


def covariance(label: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """AUCs (k,) in [0, 1] of k scores (k, n) of the same patients, and their covariance (k, k) over patients.

    Examples
    --------
    >>> aucs, variance = covariance([0, 0, 1, 1], [[0.1, 0.4, 0.35, 0.8]])
    >>> float(aucs[0]), float(variance[0, 0])
    (0.75, 0.125)
    """
    label, scores = roc.checked(label, scores)
    pos, neg = scores[:, label], scores[:, ~label]
    n_pos, n_neg = pos.shape[1], neg.shape[1]
    if min(n_pos, n_neg) < 2:
        raise ValueError(
            f"label: expected two or more patients in each class, found {n_neg} of class 0 and {n_pos} of class 1;"
            " add patients."
        )
    ranks = scipy_stats.rankdata(scores, axis=1)
    above = (ranks[:, label] - scipy_stats.rankdata(pos, axis=1)) / n_neg
    below = 1 - (ranks[:, ~label] - scipy_stats.rankdata(neg, axis=1)) / n_pos
    both = np.atleast_2d(np.cov(above)) / n_pos + np.atleast_2d(np.cov(below)) / n_neg
    return above.mean(axis=1), both


def interval(label: Any, scores: Any, level: float = 0.95) -> roc.Interval:
    """Mean AUC over the rows of `scores` ``(k, n)`` or ``(n,)`` with DeLong's interval over patients, not clipped."""
    aucs, both = covariance(label, scores)
    half = float(scipy_stats.norm.ppf((1 + level) / 2) * np.sqrt(both.mean()))
    return roc.Interval(float(aucs.mean()), float(aucs.mean() - half), float(aucs.mean() + half))


def compare(label: Any, new: Any, base: Any, level: float = 0.95) -> DelongTest:
    """Mean AUC of `new` minus that of `base`, tested over patients; seeds are averaged and held fixed.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class of each patient.
    new, base : (n_seeds, n) or (n,) array of float
        Scores of the same patients.
    level : float
        Coverage of the interval.

    Returns
    -------
    DelongTest
        With equal scores ``z`` is NaN and ``p`` 1.

    Notes
    -----
    A mean of AUCs is a linear function of them, so its variance follows from their covariance matrix.
    """
    new, base = np.atleast_2d(new), np.atleast_2d(base)
    aucs, both = covariance(label, np.concatenate([new, base]))
    contrast = np.concatenate([np.full(len(new), 1 / len(new)), np.full(len(base), -1 / len(base))])
    difference = float(contrast @ aucs)
    error = float(np.sqrt(max(0.0, contrast @ both @ contrast)))
    if error <= 1e-8:  # rounding alone may leave a variance of 1e-17
        p = 1.0 if abs(difference) <= 1e-8 else 0.0
        return DelongTest(difference, 0.0, float("nan"), p, difference, difference)
    z, half = difference / error, float(scipy_stats.norm.ppf((1 + level) / 2)) * error
    p = float(2 * scipy_stats.norm.sf(abs(z)))
    return DelongTest(difference, error, z, p, difference - half, difference + half)
