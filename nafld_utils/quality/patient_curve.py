"""What a Frechet distance says when the real images come from a few dozen patients.

Contract: features and patients in, tables out. The distance falls as a set grows, in proportion to one over its size
(Chong and Forsyth 2020, arXiv 1911.07023); here the size that counts is the number of PATIENTS, since frames of one
patient are alike. So the distance is drawn as a function of that number, read off at equal numbers for both classes
and extrapolated to infinitely many. Subsets are drawn without replacement: a patient drawn twice makes the spread of
the real set too small and the distance too large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.networks import checked_pair

REVISION = ("small_samples", 2)
LEAST = 3  # patients (or images, times ten) in the smallest subset
MOST_IMAGES = 1000  # of a set, from which its own slope is measured (choice: an n x n eigenproblem per subset)


class DistanceToSubsets:
    """Frechet distances of one fixed set (m, d) to many subsets of another (n, d), from Gram matrices computed once.

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
    """Rows of all images of `n` patients, drawn without replacement in the shares of the strata (classes) of (N,)."""
    table = pd.DataFrame({"patient": patients, "stratum": strata}).drop_duplicates("patient")
    groups = [part.to_numpy() for _, part in table.groupby("stratum")["patient"]]
    shares = np.array([len(group) for group in groups]) * n / len(table)
    counts = np.floor(shares + 1e-9).astype(int)
    for i in np.argsort(counts - shares)[: n - counts.sum()]:  # the largest remainders
        counts[i] += 1
    sizes = zip(groups, counts, strict=True)
    chosen = [rng.choice(group, min(count, len(group)), replace=False) for group, count in sizes]
    return np.flatnonzero(np.isin(patients, np.concatenate(chosen)))


def subset_sizes(n: int, n_sizes: int = 5) -> list[int]:
    """Sizes from a third of `n` to `n`, evenly spaced in one over the size, where the curve is close to a line."""
    low = max(LEAST, int(np.ceil(n / 3)))
    sizes = 1.0 / np.linspace(1.0 / low, 1.0 / n, n_sizes) if n > low else np.array([n])
    return sorted({round(size) for size in sizes})


def curve(
    distance: Callable[[np.ndarray], float],
    patients: np.ndarray,
    strata: np.ndarray,
    sizes: Sequence[int],
    repeats: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Distance against the number of patients: ``n_patients, value`` (mean over subsets), ``sd, subsets``."""
    rows, n_all = [], len(np.unique(patients))
    for n in sizes:
        draws = 1 if n >= n_all else repeats
        values = [distance(draw_patients(patients, strata, n, rng)) for _ in range(draws)]
        sd = float(np.std(values, ddof=1)) if draws > 1 else float("nan")
        rows.append({"n_patients": n, "value": float(np.mean(values)), "subsets": draws, "sd": sd})
    return pd.DataFrame(rows)


def extrapolate(sizes: Any, values: Any) -> tuple[float, float]:
    """Value at infinite size and slope in one over the size, by least squares; NaN from fewer than two sizes.

    Examples
    --------
    >>> extrapolate([10, 20, 40], [15.0, 10.0, 7.5])
    (5.0, 100.0)
    """
    if len(sizes) < 2:
        return float("nan"), float("nan")
    slope, intercept = np.polyfit(1.0 / np.asarray(sizes, dtype=float), np.asarray(values, dtype=float), 1)
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
) -> tuple[dict[str, float], pd.DataFrame]:
    """Distance of a set (m, d) to real images (n, d): as it is, at `n_equal` patients, and at infinitely many.

    Returns
    -------
    dict
        ``value`` (all images), ``equal`` and ``infinite`` with their ``_low, _high``, ``slope`` in one over patients,
        ``image_slope`` in one over images, ``n_patients, n_equal, n_images``. Intervals: estimate plus or minus
        Student's t times the standard error of the delete-half jackknife, from `n_halves` half-samples of the patients;
        the synthetic set is held fixed.
    pandas.DataFrame
        `curve`, from `repeats` subsets per size.

    Notes
    -----
    ``infinite`` takes off what both sizes add: slope / patients and image_slope / images. Where images are few
    beside the number of features it is still too high; two halves of the real patients show by how much.
    """
    distance = DistanceToSubsets(made, real)
    kept = rng.choice(len(made), min(len(made), MOST_IMAGES), replace=False)
    per_image = image_slope(DistanceToSubsets(real, made[kept]), len(kept), repeats, rng)

    def estimates(some: np.ndarray, count: int) -> tuple[float, float, float, pd.DataFrame]:
        """At equal numbers, at infinitely many, the slope and the curve, of the rows `some` of `count` patients."""
        sizes = [*subset_sizes(count), min(n_equal, count)]
        found = curve(lambda rows: distance(some[rows]), patients[some], strata[some], sizes, repeats, rng)
        equal, found = found["value"].iloc[-1], found.iloc[:-1]
        infinite, slope = extrapolate(found["n_patients"], found["value"])
        return equal, infinite - per_image / len(made), slope, found

    n, everyone = len(np.unique(patients)), np.arange(len(real))
    equal, infinite, slope, found = estimates(everyone, n)
    halves = []
    for _ in range(n_halves if n // 2 >= LEAST + 1 else 0):
        halves.append(estimates(draw_patients(patients, strata, n // 2, rng), n // 2)[:2])
    row = {"value": distance(everyone), "equal": equal, "infinite": infinite, "slope": slope, "image_slope": per_image}
    for i, name in enumerate(("equal", "infinite")):
        row[f"{name}_low"], row[f"{name}_high"] = _interval(row[name], [half[i] for half in halves], n)
    return {**row, "n_patients": n, "n_equal": min(n_equal, n), "n_images": len(made)}, found


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

    ``equal`` (`n_equal` patients against all others, mean over draws), ``value`` (two halves, mean over splits) and
    ``infinite`` (the halves, both sides extrapolated); ``n_patients`` of a half, ``n_equal``. NaN from fewer than four
    patients.
    """
    n_all = len(np.unique(patients))
    n, n_equal = n_all // 2, min(n_equal, n_all - 2)
    found: dict[str, list[float]] = {"equal": [], "value": [], "infinite": []}

    def against_the_rest(count: int) -> tuple[np.ndarray, np.ndarray]:
        some = draw_patients(patients, strata, count, rng)
        return some, np.setdiff1d(np.arange(len(real)), some)

    for _ in range(n_splits * repeats if n_all >= 4 else 0):
        some, rest = against_the_rest(n_equal)
        found["equal"].append(DistanceToSubsets(real[rest], real[some])(np.arange(len(some))))
    for _ in range(n_splits if n_all >= 4 else 0):
        first, rest = against_the_rest(n)
        slopes = []
        for a, b in ((first, rest), (rest, first)):
            part = curve(DistanceToSubsets(real[a], real[b]), patients[b], strata[b], subset_sizes(n), repeats, rng)
            slopes.append(extrapolate(part["n_patients"], part["value"])[1])
        found["value"].append(DistanceToSubsets(real[first], real[rest])(np.arange(len(rest))))
        found["infinite"].append(found["value"][-1] - slopes[0] / n - slopes[1] / n)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}
    return {**means, "n_patients": n, "n_equal": n_equal}
