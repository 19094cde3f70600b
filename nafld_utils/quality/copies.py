"""Whether synthetic images are copies of training patients: nearest frames, thresholds from real patients, a verdict.

Contract: images, features and patient numbers in; arrays and tables out. A *measure* is a distance between images
(`networks.nearest_frames`): of pixels, of autoencoder latents, of network features. What counts as near is read from
how near other real patients come, each counted once.

Sources: Carlini et al. 2023, arXiv 2301.13188 (relative distance); Alaa et al. 2022, arXiv 2102.08921 (authenticity);
Dar et al. 2024, arXiv 2402.01054 (copies of patients in medical latent diffusion); Bates et al. 2023, doi
10.1214/22-AOS2244, and Barber et al. 2021, doi 10.1214/20-AOS1965 (thresholds as order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy import ndimage

from nafld_utils.images import resize_box, rotate_about, semantic_maps, whole_box
from nafld_utils.networks import Nearest

REVISION = ("memorization", 3)
LEVEL = 0.05  # share of new patients that a measure may call near, where there are patients enough
MEASURES = ("pixels", "latents", "features")
STATISTICS = ("distance", "relative")
WARP = 0.02  # SD of a planted copy's warp as a share of the side, that of the maps that images are drawn from
FOUND = 0.95  # share of planted copies below which a change is beyond the audit


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


def thresholds(real: pd.DataFrame, own: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """How near real patients come to each other: an image below both ``distance`` and ``relative`` is nearer than that.

    `real` are `statistics` of the training images without their `own` patients; a threshold is the `order`-th smallest
    of the patients' smallest values.
    """
    least = real.groupby(np.asarray(own))[list(STATISTICS)].min()
    return {name: float(np.sort(least[name])[order(len(least), level) - 1]) for name in STATISTICS}


def order(n: int, level: float = LEVEL) -> int:
    """Which of `n` training patients, the nearest first, is the threshold of a measure; the first where n is small.

    Examples
    --------
    >>> [order(n) for n in (12, 39, 78, 79)]
    [1, 1, 1, 2]
    """
    return max(1, int(level * (n + 1) / 2 + 1e-9))


def by_chance(n: int, level: float = LEVEL) -> dict[str, float]:
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
    measure = min(1.0, 2 * order(n, level) / (n + 1))
    return {"measure": measure, "verdict": min(1.0, 2 * measure)}


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
    aligned first, find copies under every change of `CHANGES`, which move latents and features.
    """
    return (table["pixels"] | (table["latents"] & table["features"])).to_numpy()


# ---------------------------------------------------------------- planted copies


def plant(images: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Copies of training images (n, S, S) uint8 under a change of `CHANGES`, to test the audit with."""
    return np.stack([CHANGES[name](np.asarray(image), rng) for image in images])


def _grey(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values as grey levels; what is black in `image` stays black."""
    return np.where(image > 0, values, 0).round().clip(0, 255).astype(np.uint8)


def _cropped(image: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    extent = side * math.sqrt(area)
    return resize_box(image, (*rng.uniform(0, side - extent, size=2), extent, extent), side)


def _augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    crop = _cropped(image, rng.uniform(0.9, 1.0), rng)
    return _grey(crop * rng.uniform(0.95, 1.05) + rng.normal(0.0, 2.0, crop.shape), crop)


def _brightened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain, gamma = rng.uniform(0.8, 1.2, size=2)
    return _grey(255 * gain * (image / 255) ** gamma, image)


def _warped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    field = semantic_maps.warp_field(side, rng.normal(0.0, WARP * side, size=(4, 4, 2)))
    return ndimage.map_coordinates(image, np.mgrid[:side, :side] + field, order=1, mode="nearest")


def _redrawn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The local mean times new speckle of the image's own relative spread, Rayleigh as of many scatterers."""
    side, values = image.shape[0], image.astype(float)
    mean = ndimage.gaussian_filter(values, side / 32)
    spread = (values / np.maximum(mean, 1.0))[image > 10].std() if (image > 10).any() else 0.0
    grain = (0, side / 128, side / 80)  # SD in pixels; speckle is wider than it is deep
    speckle = np.hypot(*ndimage.gaussian_filter(rng.normal(size=(2, side, side)), grain))
    return _grey(mean * (1.0 + spread * (speckle - speckle.mean()) / speckle.std()), image)


# What planted copies are changed by, each within what a generator or a hand could do to hide one.
CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "exact copies": lambda image, rng: image,
    "augmented copies": _augmented,  # crop of 0.9 to 1 of the area, gain within 5 %, noise of 2 grey levels
    "flipped copies": lambda image, rng: image[:, ::-1],
    "rotated copies": lambda image, rng: rotate_about(image, whole_box(image), rng.uniform(-10.0, 10.0)),
    "cropped copies": lambda image, rng: _cropped(image, 0.8, rng),
    "brightened copies": _brightened,  # gain and gamma within 20 %
    "warped copies": _warped,
    "redrawn copies": _redrawn,
}
