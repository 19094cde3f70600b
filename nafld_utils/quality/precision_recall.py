"""Precision, recall, density, coverage and realism: whether images lie where real ones do, and the other way round.

Contract: features and patients in, numbers out. A real image's ball reaches to its k-th nearest neighbour of ANOTHER
patient: frames of one patient are near-duplicates, so that with them balls shrink to nothing and even real images of
other patients look unreal. The plain forms are there to show that, under their own names.

Sources: Kynkäänniemi et al. 2019, arXiv 1904.06991 (precision, recall, realism); Naeem et al. 2020, arXiv 2002.09797
(density, coverage).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nafld_utils.networks import checked_pair

REVISION = ("manifolds", 1)
K = 5  # neighbours (choice: as in the density and coverage paper)
CHUNK = 512  # rows of distances held at once
NAMES = ("precision", "recall", "density", "coverage")


def radii(features: Any, patients: Any, k: int = K) -> np.ndarray:
    """Distance (n,) of each image to its k-th nearest image of another patient; NaN with fewer than `k` to count.

    `features` are (n, d); `patients` (n,), or None, which lets every other image count (the plain form).
    """
    x, _ = checked_pair(features, features, ("the set", "the set"))
    own = np.arange(len(x)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    out = np.full(len(x), np.nan)
    for rows, apart in _distances(x, x):
        apart[own[rows][:, None] == own[None]] = np.inf
        if k <= len(x):
            kth = np.partition(apart, k - 1, axis=1)[:, k - 1]
            out[rows] = np.where(np.isfinite(kth), kth, np.nan)
    return out


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of `a` and their Euclidean distances to all of `b`, `CHUNK` at a time."""
    middle = b.mean(axis=0)  # distances stay, their rounding shrinks
    a, b = a - middle, b - middle
    squares = (b * b).sum(axis=1)
    for start in range(0, len(a), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(a)))
        part = a[rows]
        square = (part * part).sum(axis=1)[:, None] + squares[None] - 2.0 * part @ b.T
        yield rows, np.sqrt(np.maximum(square, 0.0))


def manifold_metrics(
    real: Any,
    made: Any,
    real_patients: Any,
    made_patients: Any = None,
    k: int = K,
    names: tuple[str, str] = ("the real set", "the synthetic set"),
) -> dict[str, float]:
    """Precision, recall, density and coverage of a set, features (m, d), against real images (n, d).

    ``precision``: share of synthetic images in the ball of a real one; ``recall``: share of real images in the ball of
    a synthetic one; ``density``: how many balls of real images a synthetic one lies in, over `k`; ``coverage``: share
    of real images whose ball holds a synthetic one. NaN where too few images of other patients are there to make a
    ball. Patients as in `radii`: a synthetic image has that of its map, or none: give it a number of its own.
    """
    real, made = checked_pair(real, made, names)
    reach = radii(real, real_patients, k)
    grown = radii(made, made_patients, k) if len(made) > 1 else np.full(len(made), np.nan)
    inside, covered, found = np.zeros(len(made)), np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, apart in _distances(made, real):
        in_ball = apart <= reach[None]  # NaN: no ball, nothing lies in it
        inside[rows] = in_ball.sum(axis=1)
        covered |= in_ball.any(axis=0)
        found |= (apart <= grown[rows][:, None]).any(axis=0)
    values = dict(zip(NAMES, ((inside > 0).mean(), found.mean(), inside.mean() / k, covered.mean()), strict=True))
    known = {name: np.isfinite(grown if name == "recall" else reach).any() for name in NAMES}
    return {name: float(value) if known[name] else float("nan") for name, value in values.items()}


def realism(made: Any, training: Any, patients: Any, k: int = K) -> np.ndarray:
    """Realism score (m,) of images (m, d) against the TRAINING images (n, d): the largest ratio of radius to distance.

    Above 1 inside some ball. Kynkäänniemi et al. leave out the half of the balls with the largest radius, as odd images
    have large ones, and so does this.
    """
    training, made = checked_pair(training, made, ("the training set", "the synthetic set"))
    reach = radii(training, patients, k)
    kept = reach <= np.nanmedian(reach)
    out = np.empty(len(made))
    for rows, apart in _distances(made, training[kept]):
        out[rows] = (reach[kept][None] / np.maximum(apart, 1e-9)).max(axis=1)
    return out
