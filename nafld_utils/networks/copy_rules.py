"""Whether synthetic images are copies of training patients: nearest frames, thresholds from real patients, a verdict.

Contract: images, features and patient numbers in; arrays and tables out. A *measure* is a distance between images
(`networks.nearest_frames`): of pixels, of autoencoder latents, of network features. What counts as near is read from
how near other real patients come, each counted once.

Sources: Carlini et al. 2023, arXiv 2301.13188 (relative distance); Alaa et al. 2022, arXiv 2102.08921 (authenticity);
Dar et al. 2024, arXiv 2402.01054 (copies of patients in medical latent diffusion); Bates et al. 2023, doi
10.1214/22-AOS2244, and Barber et al. 2021, doi 10.1214/20-AOS1965 (thresholds as order statistics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from nafld_utils.networks.nearest_frames import Nearest

REVISION = ("memorization", 3)
LEVEL = 0.05  # share of new patients that a measure may call near, where there are patients enough
MEASURES = ("pixels", "latents", "features")
STATISTICS = ("distance", "relative")
FEWEST = 4  # training patients of whom one can be left out: the rule of the others compares each of them with two


# ---------------------------------------------------------------- what is too near


def statistics(nearest: Nearest) -> pd.DataFrame:
    """What each query's distances amount to: ``patient`` (nearest), ``row`` (its frame), ``distance``, ``relative``.

    ``relative`` is the distance over the mean distance to the nearest frame of every other patient, after Carlini et
    al., who divide by the mean over the nearest images, which here would be frames of one patient.
    """
    apart = nearest.distance.astype(np.float64)
    order, place, known = np.arange(len(apart)), apart.argmin(axis=1), np.isfinite(apart)
    if len(apart) and known.sum(axis=1).min() < 2:
        raise ValueError("copies: expected at least two patients to compare an image with, found fewer; add patients.")
    distance = apart[order, place]
    others = (np.where(known, apart, 0.0).sum(axis=1) - distance) / (known.sum(axis=1) - 1)
    table = pd.DataFrame({"patient": nearest.patients[place], "row": nearest.row[order, place]})
    return table.assign(distance=distance, relative=distance / np.maximum(others, 1e-12))


def thresholds(real: pd.DataFrame, own: np.ndarray) -> dict[str, float]:
    """How near real patients come to each other: an image below both ``distance`` and ``relative`` is nearer than that.

    `real` are `statistics` of the training images without their `own` patients; a threshold is the `order`-th smallest
    of the patients' smallest values.
    """
    least = real.groupby(np.asarray(own))[list(STATISTICS)].min()
    return {name: float(np.sort(least[name])[order(len(least)) - 1]) for name in STATISTICS}


def order(n: int) -> int:
    """Which of `n` training patients, the nearest first, is the threshold of a measure; the first where n is small.

    Examples
    --------
    >>> [order(n) for n in (12, 39, 78, 79)]
    [1, 1, 1, 2]
    """
    return max(1, int(LEVEL * (n + 1) / 2 + 1e-9))


def by_chance(n: int) -> dict[str, float]:
    """Largest share of new patients, exchangeable with `n` training patients, called near by a ``measure`` and copies.

    Among any n + 1 patients at most 2k are nearer to another one than all but k - 1 of the rest are to each other, k
    the `order`, as the two of a nearest pair are near at once; so a new patient is with a probability of at most
    2k / (n + 1). A patient and a nearest neighbour share their distance, therefore k / (n + 1) would be half of what
    is seen. The ``verdict`` adds that of pixels and that of latents and features together.

    Examples
    --------
    >>> by_chance(39)
    {'measure': 0.05, 'verdict': 0.1}
    """
    measure = min(1.0, 2 * order(n) / (n + 1))
    return {"measure": measure, "verdict": min(1.0, 2 * measure)}


def left_out(real: Mapping[str, Nearest], own: np.ndarray) -> np.ndarray:
    """Whether the rule of the other patients, thresholds and all, calls each training image a copy: (N,) bool.

    `real` holds the distances of the training images to all patients, by measure; their `own` patients are left out in
    turn. Nothing can be left out of fewer than `FEWEST` patients, of whom every image is called a copy.
    """
    patients = np.unique(own)
    found = np.full(len(own), len(patients) < FEWEST)
    for patient in () if found.all() else patients:
        mine, limits, near = own == patient, {}, {}
        for name, one in real.items():
            others = statistics(one.without_own(own).without_own(np.full(len(own), patient)))
            limits[name], near[name] = thresholds(others[~mine], own[~mine]), others[mine]
        found[mine] = flags(near, limits)["copy"]
    return found


def nominal(found: np.ndarray, own: np.ndarray) -> float:
    """Rate at which images that copy nobody are called copies, from `left_out`: (1 + sum of shares) / (patients + 1).

    Patients count alike, and one more counts as called a copy in all images, as in the upper bound of Clopper and
    Pearson and in the p-values of Bates et al. Without that one, few patients of whom none is called a copy would give
    a rate of 0, which the first false alarm exceeds. By exchangeability the mean of the shares is on average what the
    rule of one patient less calls copies of a new patient's images, which more patients make rarer.

    Examples
    --------
    >>> nominal(np.array([True, False, False, False]), np.array([1, 1, 2, 3]))
    0.375
    """
    shares = pd.Series(found).groupby(np.asarray(own)).mean()
    return float((1 + shares.sum()) / (1 + len(shares)))


def authentic(found: pd.DataFrame, real: pd.DataFrame) -> np.ndarray:
    """Whether each query is farther from its nearest training image than that image is from every other patient.

    `found` are `statistics` of the queries; `real` holds the ``distance`` of every row of the reference to others.
    """
    return found["distance"].to_numpy() > real["distance"].to_numpy()[found["row"].to_numpy()]


def flags(found: Mapping[str, pd.DataFrame], limits: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Which measures call each image a copy, and the verdict, from `statistics` and `thresholds` by measure.

    Columns ``pixels, latents, features`` (nearer than the threshold both in distance and relative to other patients),
    ``copy`` (see `verdict`), ``why`` (in words, empty where nothing was found).
    """
    table = pd.DataFrame(
        {name: np.all([one[s] < limits[name][s] for s in STATISTICS], axis=0) for name, one in found.items()}
    )
    near = "nearer to a training patient than real patients are, by "
    words = ["; ".join(near + name for name in found if row[name]) for row in table.to_dict("records")]
    table["copy"] = verdict(table)
    return table.assign(why=np.where(table["copy"], words, "").astype(object))


def verdict(table: pd.DataFrame) -> np.ndarray:
    """Whether an image is a copy: the pixels say so, or latents and features together.

    Choice: every measure has its own rate of false alarms, so that any one of three would triple it; pixels, which are
    aligned first, find copies under the changes that are planted, which move latents and features.
    """
    return (table["pixels"] | (table["latents"] & table["features"])).to_numpy()
