"""What a Frechet distance says when the real images come from a few dozen patients.

Contract: features and patients in, tables out. The distance falls as a set grows, in proportion to one over its size
(Chong and Forsyth 2020, arXiv 1911.07023); here the size that counts is the number of PATIENTS, since frames of one
patient are alike. So the distance is drawn as a function of that number, read off at equal numbers for both classes
and extrapolated to infinitely many. Subsets are drawn without replacement: a patient drawn twice makes the spread of
the real set too small and the distance too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.networks import checked_pair

REVISION = ("small_samples", 2)
LEAST = 3  # patients (or images, times ten) in the smallest subset


class DistanceToSubsets:
    """Frechet distances of one fixed set to many subsets of another, from Gram matrices computed once.

    Parameters
    ----------
    fixed, other : array, shapes (m, d) and (n, d)
        Features; subsets are taken of `other`.

    Notes
    -----
    The trace of the root of the product of covariances is the sum of the roots of the eigenvalues of C K C / (n - 1),
    K the Gram matrix of `other` under the fixed covariance and C the centring: an n x n problem for every subset,
    whatever the number of features and of fixed images.
    """

    def __init__(self, fixed: Any, other: Any):
        fixed, other = checked_pair(fixed, other, ("the fixed set", "the set that subsets are taken of"))
        middle = other.mean(axis=0)
        fixed, other = fixed - middle, other - middle
        self.mean = fixed.mean(axis=0)
        spread = (fixed - self.mean) / np.sqrt(len(fixed) - 1)
        self.trace = float((spread * spread).sum())
        seen = other @ spread.T
        self.under_fixed = seen @ seen.T
        self.plain = other @ other.T
        self.towards = other @ self.mean

    def __call__(self, rows: np.ndarray) -> float:
        """Distance to the rows of a subset, at least two."""
        n = len(rows)
        plain = self.plain[np.ix_(rows, rows)]
        mean = plain.mean() - 2.0 * self.towards[rows].mean() + self.mean @ self.mean
        own = (np.trace(plain) - n * plain.mean()) / (n - 1)
        k = self.under_fixed[np.ix_(rows, rows)]
        k = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()
        roots = np.sqrt(np.maximum(np.linalg.eigvalsh(k), 0.0)).sum() / np.sqrt(n - 1)
        return float(mean + self.trace + own - 2.0 * roots)


def draw_patients(patients: np.ndarray, strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` of the patients without replacement, in the strata's own shares; rows of all their images.

    Parameters
    ----------
    patients, strata : numpy.ndarray, shape (N,)
        Patient and stratum (class) of each image.
    n : int
        Patients to draw, at most as many as there are.
    rng : numpy.random.Generator
    """
    table = pd.DataFrame({"patient": patients, "stratum": strata}).drop_duplicates("patient")
    groups = [part["patient"].to_numpy() for _, part in table.groupby("stratum")]
    shares = np.array([len(group) for group in groups]) * n / len(table)
    counts = np.floor(shares + 1e-9).astype(int)
    for i in np.argsort(counts - shares)[: n - counts.sum()]:  # the largest remainders
        counts[i] += 1
    chosen = [
        rng.choice(group, min(count, len(group)), replace=False) for group, count in zip(groups, counts, strict=True)
    ]
    return np.flatnonzero(np.isin(patients, np.concatenate(chosen)))


def subset_sizes(n: int, n_sizes: int = 5) -> list[int]:
    """Sizes from a third of `n` to `n`, evenly spaced in one over the size, where the curve is close to a line."""
    low = max(LEAST, int(np.ceil(n / 3)))
    sizes = 1.0 / np.linspace(1.0 / low, 1.0 / n, n_sizes) if n > low else np.array([n])
    return sorted({round(size) for size in sizes})


def curve(
    distance: DistanceToSubsets,
    patients: np.ndarray,
    strata: np.ndarray,
    sizes: Sequence[int],
    repeats: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Distance against the number of patients: ``n_patients, value`` (mean over subsets), ``sd, subsets``."""
    rows = []
    n_all = len(np.unique(patients))
    for n in sizes:
        draws = 1 if n >= n_all else repeats
        values = [distance(draw_patients(patients, strata, n, rng)) for _ in range(draws)]
        row = {"n_patients": n, "value": float(np.mean(values)), "subsets": draws}
        rows.append({**row, "sd": float(np.std(values, ddof=1)) if draws > 1 else float("nan")})
    return pd.DataFrame(rows)


def extrapolate(sizes: Any, values: Any) -> tuple[float, float]:
    """Value at infinite size and slope in one over the size, by least squares; NaN from fewer than two sizes.

    Examples
    --------
    >>> extrapolate([10, 20, 40], [15.0, 10.0, 7.5])
    (5.0, 100.0)
    """
    sizes, values = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if len(sizes) < 2:
        return float("nan"), float("nan")
    slope, intercept = np.polyfit(1.0 / sizes, values, 1)
    return round(float(intercept), 10), round(float(slope), 10)


def image_slope(distance: DistanceToSubsets, n: int, repeats: int, rng: np.random.Generator) -> float:
    """Slope of the distance in one over the number of images of the set that subsets are taken of."""
    sizes = subset_sizes(n, 4)
    values = [np.mean([distance(rng.choice(n, size, replace=False)) for _ in range(repeats)]) for size in sizes]
    return extrapolate(sizes, values)[1]


def measure(
    made: np.ndarray,
    real: np.ndarray,
    patients: np.ndarray,
    strata: np.ndarray,
    n_equal: int,
    rng: np.random.Generator,
    repeats: int = 5,
    n_halves: int = 20,
    most_images: int = 1000,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Distance of a set to real images: as it is, at `n_equal` patients, and at infinitely many.

    Parameters
    ----------
    made, real : numpy.ndarray, shapes (m, d) and (n, d)
        Features of the set and of real images of one class, or of both.
    patients, strata : numpy.ndarray, shape (n,)
        Patient and class of each real image.
    n_equal : int
        Number of patients at which classes of unequal size are compared.
    rng : numpy.random.Generator
        Draws subsets.
    repeats : int
        Subsets a size.
    n_halves : int
        Half-samples of patients for the intervals.
    most_images : int
        Images of the set from which its own slope is measured (choice: an n x n eigenproblem a subset).

    Returns
    -------
    dict
        ``value`` (all images), ``equal`` and ``infinite`` with their ``_low, _high``, ``slope`` in one over patients,
        ``image_slope`` in one over images, ``n_patients, n_equal, n_images``. Intervals: estimate plus or minus
        Student's t times the delete-half jackknife's standard error, over patients; the synthetic set is held fixed.
    pandas.DataFrame
        `curve`.

    Notes
    -----
    ``infinite`` takes off what both sizes add: slope / patients and image_slope / images. Where images are few
    beside the number of features it is still too high; two halves of the real patients show by how much.
    """
    distance = DistanceToSubsets(made, real)
    kept = rng.choice(len(made), min(len(made), most_images), replace=False)
    per_image = image_slope(DistanceToSubsets(real, made[kept]), len(kept), repeats, rng)
    n = len(np.unique(patients))
    n_equal = min(n_equal, n)

    def estimates(some: np.ndarray, count: int, equal: int) -> tuple[float, float, float, pd.DataFrame]:
        found = curve(_Rows(distance, some), patients[some], strata[some], subset_sizes(count), repeats, rng)
        infinite, slope = extrapolate(found["n_patients"], found["value"])
        at = curve(_Rows(distance, some), patients[some], strata[some], [equal], repeats, rng)["value"].iloc[0]
        return at, infinite - per_image / len(made), slope, found

    everyone = np.arange(len(real))
    equal, infinite, slope, found = estimates(everyone, n, n_equal)
    half = n // 2
    shares = []
    for _ in range(n_halves if half >= LEAST + 1 else 0):
        some = draw_patients(patients, strata, half, rng)
        shares.append(estimates(some, half, min(n_equal, half))[:2])
    row = {"value": distance(everyone), "equal": equal, "infinite": infinite, "slope": slope, "image_slope": per_image}
    for i, name in enumerate(("equal", "infinite")):
        low, high = _interval(row[name], [share[i] for share in shares], n)
        row |= {f"{name}_low": low, f"{name}_high": high}
    return {**row, "n_patients": n, "n_equal": n_equal, "n_images": len(made)}, found


class _Rows:
    """A distance to subsets of some of the rows, which are numbered anew."""

    def __init__(self, distance: DistanceToSubsets, rows: np.ndarray):
        self.distance, self.rows = distance, rows

    def __call__(self, rows: np.ndarray) -> float:
        return self.distance(self.rows[rows])


def _interval(value: float, halves: Sequence[float], n: int, level: float = 0.95) -> tuple[float, float]:
    """Delete-half jackknife: the standard error is the root mean square deviation of the half-samples' estimates."""
    from scipy import stats as scipy_stats

    if len(halves) < 2:
        return float("nan"), float("nan")
    reach = scipy_stats.t.ppf((1 + level) / 2, n - 1) * float(np.std(halves))
    return value - reach, value + reach


def halves_of_real(
    real: np.ndarray,
    patients: np.ndarray,
    strata: np.ndarray,
    n_equal: int,
    rng: np.random.Generator,
    n_splits: int = 5,
    repeats: int = 5,
) -> dict[str, float]:
    """Disjoint groups of the real patients against each other: the floor, and what extrapolation leaves of zero.

    Returns
    -------
    dict
        ``equal`` (`n_equal` patients against all others, mean over draws), ``value`` (two halves, mean over splits)
        and ``infinite`` (the halves, both sides extrapolated); ``n_patients`` of a half, ``n_equal``. NaN from fewer
        than four patients.
    """
    n_all = len(np.unique(patients))
    n, n_equal = n_all // 2, min(n_equal, n_all - 2)
    if n_all < 4:
        return dict.fromkeys(("equal", "value", "infinite"), float("nan")) | {"n_patients": n, "n_equal": n}
    values, limits, floor = [], [], []
    for _ in range(n_splits * repeats):
        some = draw_patients(patients, strata, n_equal, rng)
        rest = np.setdiff1d(np.arange(len(real)), some)
        floor.append(DistanceToSubsets(real[rest], real[some])(np.arange(len(some))))
    for _ in range(n_splits):
        first = draw_patients(patients, strata, n, rng)
        rest = np.setdiff1d(np.arange(len(real)), first)
        slopes = []
        for a, b in ((first, rest), (rest, first)):
            found = curve(DistanceToSubsets(real[a], real[b]), patients[b], strata[b], subset_sizes(n), repeats, rng)
            slopes.append(extrapolate(found["n_patients"], found["value"])[1])
        values.append(DistanceToSubsets(real[first], real[rest])(np.arange(len(rest))))
        limits.append(values[-1] - slopes[0] / n - slopes[1] / n)
    means = {"equal": float(np.mean(floor)), "value": float(np.mean(values)), "infinite": float(np.mean(limits))}
    return {**means, "n_patients": n, "n_equal": n_equal}
