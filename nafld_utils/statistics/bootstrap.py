"""Bootstrap over patients within class, crossed with training seeds, by scipy.

Contract: a statistic takes index arrays and gives one number per resample; the same `seed` gives the same interval.
Patients are drawn with replacement within their stratum (a class, or a class of one fold) and, independently of them,
seeds: each is one of the samples that `scipy.stats.bootstrap` resamples. What is held fixed, and so is missing from
every interval made here: the trained models of each seed and the split into folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

REVISION = ("resampling", 2)


class Resampled(NamedTuple):
    """A statistic with its interval, its bootstrap standard error and its replicates (n_resamples,).

    `over` says what another interval that stands in for the bootstrap's is over.
    """

    estimate: float
    low: float
    high: float
    error: float
    draws: np.ndarray
    over: str = ""


def crossed_bootstrap(
    statistic: Callable[..., Any],
    sizes: Sequence[int],
    n_seeds: int = 1,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Resampled:
    """95 % interval of a statistic over patients within strata and over training seeds.

    Parameters
    ----------
    statistic : callable
        Called with one int64 index array per stratum, ``(..., n)`` with values below the stratum's size, then the array
        of seeds; gives ``(...)``. With one seed that array holds zeros and is not resampled.
    sizes : sequence of int
        Patients of each stratum, two or more in each.
    n_seeds, n_resamples, seed : int
        Training seeds, bootstrap resamples, seed of the draws.

    Returns
    -------
    Resampled
        Bounds and error are NaN where no resample moves the statistic.
    """
    _check(sizes, n_resamples)
    samples = [np.arange(n) for n in sizes] + ([np.arange(n_seeds)] if n_seeds > 1 else [])

    def called(*drawn: np.ndarray) -> np.ndarray:
        indices = [part.astype(np.int64) for part in drawn]
        if n_seeds == 1:
            indices.append(np.zeros((*indices[0].shape[:-1], 1), dtype=np.int64))
        return np.asarray(statistic(*indices))

    def rounded(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.round(called(*drawn), 12)  # rounding errors are no spread

    options = {"n_resamples": n_resamples, "confidence_level": 0.95, "vectorized": True, "paired": False, "axis": -1}
    found = scipy.stats.bootstrap(samples, rounded, method="percentile", rng=np.random.default_rng(seed), **options)
    draws = np.asarray(found.bootstrap_distribution)
    low, high = found.confidence_interval
    estimate = float(called(*samples))
    error = float(draws.std(ddof=1)) if n_resamples > 1 else float("nan")
    if np.ptp(draws) == 0:  # no spread is not certainty
        low = high = error = np.nan
    return Resampled(estimate, float(low), float(high), error, draws)


def counts(index: np.ndarray, n: int) -> np.ndarray:
    """How often each of `n` was drawn: index ``(..., m)`` to ``(..., n)`` float64."""
    rows = index.reshape(-1, index.shape[-1])
    flat = rows + n * np.arange(len(rows))[:, None]
    return np.bincount(flat.ravel(), minlength=len(rows) * n).reshape(*index.shape[:-1], n).astype(float)


def _check(sizes: Sequence[int], n_resamples: int) -> None:
    if n_resamples < 1:
        raise ValueError(f"n_resamples: expected at least 1, found {n_resamples}; the default is 2000.")
    if min(sizes) < 2:
        raise ValueError(
            "patient: expected two or more patients in each class (and fold, where folds are averaged) for an interval"
            f" over patients, found {list(sizes)}; add patients or use fewer folds."
        )
