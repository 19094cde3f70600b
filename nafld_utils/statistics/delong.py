"""DeLong's variance of AUCs and of their differences over patients, and Newcombe's bounds of one AUC.

Contract: arrays in, numbers or named tuples out; nothing is drawn, but for a permutation test of many patients. What is
independent is a PATIENT: ten frames of a patient taken as ten rows would make intervals about 2.7 times too narrow, so
images go in with their patients. All is given the trained models and the split. No spread is not certainty: an AUC of
1 has a bound below 1, and constant scores give NaN.

References
----------
DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595; computed by midranks as in Sun and Xu 2014,
doi:10.1109/LSP.2014.2337313. Clustered rows: Obuchowski 1997, doi:10.2307/2533958. Bounds: Newcombe 2006,
doi:10.1002/sim.2324.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from nafld_utils.statistics import roc

REVISION = ("delong", 2)


class DelongTest(NamedTuple):
    """Difference of two mean AUCs over patients: standard error, z, two-sided p and interval, cut at -1 and 1."""

    difference: float
    error: float
    z: float
    p: float
    low: float
    high: float


def placements(label: Any, scores: Any, patient: Any = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """AUCs (k,) in [0, 1] of k scores (k, n) of the same rows, and what each patient of a class adds to their errors.

    Two arrays, ``(k, patients of class 1)`` and ``(k, patients of class 0)``: the covariance of the AUCs over patients
    is the sum of ``part @ part.T``. Without `patient` (n,) each row is a patient; with it rows are images, whose
    placements are summed by patient (Obuchowski 1997).
    """
    label, scores = roc.checked(label, scores)
    code = np.arange(len(label)) if patient is None else roc.patient_codes(label, patient)
    pos, neg = scores[:, label], scores[:, ~label]
    ranks = scipy.stats.rankdata(scores, axis=1)
    above = (ranks[:, label] - scipy.stats.rankdata(pos, axis=1)) / neg.shape[1]
    below = 1 - (ranks[:, ~label] - scipy.stats.rankdata(neg, axis=1)) / pos.shape[1]
    aucs, parts = above.mean(axis=1), []
    for placed, of in ((above, code[label]), (below, code[~label])):
        place = np.unique(of, return_inverse=True)[1]
        n = int(place.max()) + 1
        if n < 2:
            raise ValueError(
                "patient: expected two or more patients in each class (and fold, where folds are averaged), found"
                f" {len(np.unique(code[~label]))} of class 0 and {len(np.unique(code[label]))} of class 1; add patients"
                " or use fewer folds."
            )
        sums = np.stack([np.bincount(place, row, n) for row in placed - aucs[:, None]])
        parts.append(sums * np.sqrt(n / (n - 1)) / placed.shape[1])
    return aucs, parts


def covariance(label: Any, scores: Any, patient: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """AUCs (k,) in [0, 1] of k scores (k, n) and their covariance (k, k) over patients, as in `placements`.

    Examples
    --------
    >>> aucs, variance = covariance([0, 0, 1, 1], [[0.1, 0.4, 0.35, 0.8]])
    >>> float(aucs[0]), round(float(variance[0, 0]), 3)
    (0.75, 0.125)
    """
    aucs, parts = placements(label, scores, patient)
    return aucs, sum(part @ part.T for part in parts)


def score_variance(auc: float, n_pos: float, n_neg: float) -> float:
    """Variance of a true AUC's estimate from independent rows of both classes (Newcombe 2006, method 5)."""
    pairs = 1 + ((n_pos + n_neg) / 2 - 1) * ((1 - auc) / (2 - auc) + auc / (1 + auc))
    return pairs * auc * (1 - auc) / (n_pos * n_neg)


def score_bounds(
    auc: float, sizes: Sequence[tuple[float, float]], z: float, share: float = 1.0, more: float = 0.0
) -> tuple[float, float]:
    """Bounds in [0, 1] that an AUC differs from by `z` standard errors of the bound itself (Newcombe 2006, method 5).

    Parameters
    ----------
    auc : float
        Mean AUC of blocks, in [0, 1]; one of 1 has a lower bound below 1.
    sizes : sequence of (float, float)
        Rows of both classes in each block, independent ones.
    z : float
        Quantile of the normal or of Student's t distribution.
    share, more : float
        The variance is `share` of that of the blocks' AUCs, and `more`.

    Examples
    --------
    >>> [round(bound, 4) for bound in score_bounds(1.0, [(2, 2)], 1.959964)]
    [0.3856, 1.0]
    """

    def beyond(at: float) -> float:
        variance = sum(score_variance(at, m, n) for m, n in sizes) / len(sizes) ** 2
        return (at - auc) ** 2 - z**2 * (share * variance + more)

    inside = min(max(auc, 1e-9), 1 - 1e-9)
    low, high = (scipy.optimize.brentq(beyond, inside, end) if beyond(end) > 0 else end for end in (0.0, 1.0))
    return float(low), float(high)


def permutation_p(label: np.ndarray, values: np.ndarray) -> float:
    """Two-sided p of equal means of `values` (n,) in both classes, by permuting the classes; exact for few patients."""

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    samples, rng = (values[label], values[~label]), np.random.default_rng(0)
    return float(scipy.stats.permutation_test(samples, statistic, vectorized=True, rng=rng).pvalue)


def least_p(label: Any, patient: Any = None) -> float:
    """Least two-sided p that permuted classes of these patients, or rows, could give."""
    label = np.asarray(label).astype(bool)
    code = np.arange(len(label)) if patient is None else roc.patient_codes(label, patient)
    return least_p_of(len(np.unique(code[label])), len(np.unique(code)))


def least_p_of(n_pos: int, n: int) -> float:
    """The same of `n` patients, `n_pos` of them of class 1; of 3 and 4 it is 2 / 35, so that 5 % is never reached."""
    return min(1.0, 2 / math.comb(n, n_pos))


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
        All but the difference is NaN, which cannot be said, where an arm's scores are constant. ``p`` is never below
        what a permutation of so few patients could give, and error and interval are then as wide as that p asks for.

    Notes
    -----
    A mean of AUCs is a linear function of them, so its variance follows from their covariance matrix. Where that is 0
    (both arms separate the classes) ``z`` is NaN, ``p`` is that of permuted classes for the difference of the ranks,
    and the interval puts Newcombe's bounds of both arms together as if they were not paired (Zou and Donner 2008,
    doi:10.1002/sim.3095), which makes it wide.
    """
    label, both = roc.checked(label, np.concatenate([np.atleast_2d(new), np.atleast_2d(base)]))
    n_new, n_base = len(np.atleast_2d(new)), len(np.atleast_2d(base))
    aucs, variance = covariance(label, both)
    contrast = np.concatenate([np.full(n_new, 1 / n_new), np.full(n_base, -1 / n_base)])
    difference, quantile = float(contrast @ aucs), float(scipy.stats.norm.ppf((1 + level) / 2))
    error = float(np.sqrt(max(0.0, contrast @ variance @ contrast)))
    n_pos, nan, least = int(label.sum()), float("nan"), least_p(label)
    if min(np.ptp(both[:n_new], axis=1).max(), np.ptp(both[n_new:], axis=1).max()) == 0:
        return DelongTest(difference, nan, nan, nan, nan, nan)
    if error > 1e-8:  # rounding alone may leave a variance of 1e-17
        p = float(2 * scipy.stats.norm.sf(abs(difference) / error))
        if p < least:
            p, error = least, abs(difference) / float(scipy.stats.norm.isf(least / 2))
        ends = np.clip([difference - quantile * error, difference + quantile * error], -1, 1)
        return DelongTest(difference, error, difference / error, p, *map(float, ends))
    arms = float(aucs[:n_new].mean()), float(aucs[n_new:].mean())
    (low, high), (base_low, base_high) = (score_bounds(a, [(n_pos, len(label) - n_pos)], quantile) for a in arms)
    down, up = np.hypot(arms[0] - low, base_high - arms[1]), np.hypot(high - arms[0], arms[1] - base_low)
    p = permutation_p(label, contrast @ scipy.stats.rankdata(both, axis=1))
    low, high = max(-1.0, difference - float(down)), min(1.0, difference + float(up))
    if p > 1 - level:  # an interval without 0 would say what the test does not
        low, high = min(low, 0.0), max(high, 0.0)
    return DelongTest(difference, 0.0, nan, p, low, high)
