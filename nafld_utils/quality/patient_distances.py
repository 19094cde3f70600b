"""Distances between synthetic and real images when the real ones come from a few dozen patients.

Contract: features and patients in, numbers out. Frames of one patient are alike, so what counts is the number of
PATIENTS. The Frechet distance falls as a set grows (Chong and Forsyth 2020, arXiv 1911.07023), by how much nobody can
say where features outnumber images: it is compared at equal numbers of patients, drawn without replacement, since a
patient drawn twice makes the spread of the real set too small. The kernel distance is unbiased at every number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy

from nafld_utils.networks import checked_pair

REVISION = ("small_samples", 3)
LEAST = 3  # patients (or images, times two) in the smallest set that is measured
CHUNK = 512  # rows of the kernel held at once


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


def equal_distance(
    distance: DistanceToSubsets,
    rows: np.ndarray,
    patients: np.ndarray,
    strata: np.ndarray,
    n_equal: int,
    repeats: int,
    rng: np.random.Generator,
) -> float:
    """Mean distance to `repeats` subsets of `n_equal` patients among those of `rows`."""
    patients, strata = patients[rows], strata[rows]
    n = len(np.unique(patients))
    draws = repeats if n > n_equal else 1
    subsets = [draw_patients(patients, strata, min(n_equal, n), rng) for _ in range(draws)]
    return float(np.mean([distance(rows[subset]) for subset in subsets]))


def measure(
    made: np.ndarray,
    real: np.ndarray,
    patients: np.ndarray,
    strata: np.ndarray,
    n_equal: int,
    rng: np.random.Generator,
    repeats: int = 5,
    n_halves: int = 20,
) -> dict[str, float]:
    """Frechet distance of a set (m, d) to real images (n, d) of `patients`: as it is, and at `n_equal` patients.

    Returns
    -------
    dict
        ``value`` (all images), ``equal`` with ``equal_low, equal_high``, ``n_patients, n_equal, n_images``. Interval:
        by Student's t on the log scale (`statistics.POSITIVE`), from the standard error of the delete-half jackknife of
        `n_halves` half-samples of the patients; the synthetic set is held fixed.
    """
    distance, n, everyone = DistanceToSubsets(made, real), len(np.unique(patients)), np.arange(len(real))
    args = patients, strata, n_equal, repeats, rng
    equal = equal_distance(distance, everyone, *args)
    found = {"value": distance(everyone), "equal": equal, "equal_low": float("nan"), "equal_high": float("nan")}
    if n_halves > 1 and n // 2 > LEAST:
        drawn = [draw_patients(patients, strata, n // 2, rng) for _ in range(n_halves)]
        spread = float(np.std([equal_distance(distance, half, *args) for half in drawn]))
        if equal > 0:  # on the log scale, as `statistics.POSITIVE`
            ends = _student(0.0, spread / equal, n - 1)
            found["equal_low"], found["equal_high"] = (equal * float(np.exp(end)) for end in ends)
    return {**found, "n_patients": n, "n_equal": min(n_equal, n), "n_images": len(made)}


def _student(value: float, error: float, freedom: int) -> tuple[float, float]:
    """Student's 95 % t interval from a standard error."""
    reach = float(scipy.stats.t.ppf(0.975, freedom)) * error
    return value - reach, value + reach


def halves_of_real(
    real: np.ndarray,
    patients: np.ndarray,
    strata: np.ndarray,
    n_equal: int,
    rng: np.random.Generator,
    n_draws: int = 25,
) -> dict[str, float]:
    """The floor: ``equal``, mean Frechet distance of `n_equal` real patients to all others, with ``n_equal``.

    NaN from fewer than four patients.
    """
    n_all = len(np.unique(patients))
    n_equal, found = min(n_equal, n_all - 2), []
    for _ in range(n_draws if n_all >= 4 else 0):
        some = draw_patients(patients, strata, n_equal, rng)
        rest = np.setdiff1d(np.arange(len(real)), some)
        found.append(DistanceToSubsets(real[rest], real[some])(np.arange(len(some))))
    return {
        "equal": float(np.mean(found)) if found else float("nan"),
        "n_patients": n_all - n_equal,
        "n_equal": n_equal,
    }


# ---------------------------------------------------------------- kernel distance


def kernel_over_patients(made: Any, real: Any, made_patients: Any, real_patients: Any) -> dict[str, float]:
    """Unbiased squared kernel distance (KID's kernel) between patients, with a jackknife interval over patients.

    Parameters
    ----------
    made, real : array, shapes (m, d) and (n, d)
        Features of synthetic and real images.
    made_patients, real_patients : array, shapes (m,) and (n,)
        Patient of each image; of a synthetic one that of its map, or a number of its own.

    Returns
    -------
    dict
        ``kernel, kernel_low, kernel_high``, in units of the kernel (x·y/d + 1)³; NaN from fewer than two patients on a
        side, no interval from fewer than `LEAST`. A distance of zero gives estimates on both sides of zero.

    Notes
    -----
    The squared MMD of Binkowski et al. 2018 (arXiv 1801.01401) as a U-statistic of patients: each patient counts once,
    by the mean kernel of that patient's images, and no pair of images of one patient counts, whether both are real,
    both are synthetic or one of each. The variance is the jackknife's (Arvesen 1969, doi 10.1214/aoms/1177697287): a
    patient is left out with the synthetic images of that patient's map, and synthetic images without a patient are a
    second sample. The trained models are held fixed. The interval is too wide where the true distance is zero.
    """
    made, real = checked_pair(made, real, ("the synthetic set", "the real set"))
    names, codes = np.unique(
        np.concatenate([np.asarray(made_patients), np.asarray(real_patients)]), return_inverse=True
    )
    y, x, n = (made, codes[: len(made)]), (real, codes[len(made) :]), len(names)
    in_y, in_x = (np.bincount(side[1], minlength=n) > 0 for side in (y, x))
    (yy, _), (xx, _), (yx, xy) = _pair_sums(y, y, n), _pair_sums(x, x, n), _pair_sums(y, x, n)

    def estimate(out_y: Any, out_x: Any, sums: tuple[Any, Any, Any]) -> Any:
        """Distance from sums over pairs, with so many patients left out of each side."""
        n_y, n_x, n_both = in_y.sum() - out_y, in_x.sum() - out_x, (in_y & in_x).sum() - out_y * out_x
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[0] / (n_y * (n_y - 1)) + sums[1] / (n_x * (n_x - 1)) - 2.0 * sums[2] / (n_y * n_x - n_both)

    value, low, high = float(estimate(0, 0, (yy.sum(), xx.sum(), yx.sum()))), float("nan"), float("nan")
    if min(in_x.sum(), in_y.sum()) >= LEAST:
        without = yy.sum() - 2.0 * yy, xx.sum() - 2.0 * xx, yx.sum() - yx - xy
        left_out = estimate(in_y.astype(int), in_x.astype(int), without)
        samples = [part for part in (left_out[in_x], left_out[~in_x]) if len(part)]
        variance = sum((len(part) - 1) * float(np.var(part)) for part in samples)
        low, high = _student(value, variance**0.5, int(in_x.sum()) - 1)
    return {"kernel": value if np.isfinite(value) else float("nan"), "kernel_low": low, "kernel_high": high}


def _pair_sums(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], n: int) -> tuple[Any, Any]:
    """Mean kernel of patients of `a` with those of `b`, summed over the others: by patient of `a`, and of `b`, (n,).

    Each side is features and patients, numbers below `n`.
    """
    (x, own_x), (y, own_y) = a, b
    weight_x, weight_y = (1.0 / np.bincount(own, minlength=n)[own] for own in (own_x, own_y))
    by_x, by_y = np.zeros(n), np.zeros(n)
    for start in range(0, len(x), CHUNK):
        some = slice(start, start + CHUNK)
        kernel = (x[some] @ y.T / x.shape[1] + 1.0) ** 3 * weight_x[some, None] * weight_y
        kernel[own_x[some, None] == own_y] = 0.0
        by_x += np.bincount(own_x[some], kernel.sum(axis=1), n)
        by_y += np.bincount(own_y, kernel.sum(axis=0), n)
    return by_x, by_y
