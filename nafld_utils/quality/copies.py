"""Planted copies: training images under changes that a generator or a hand could make, to test the copy audit with.

Contract: images (S, S) uint8 and a random generator in, images out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy

from nafld_utils.images import resize_box, rotate_about, semantic_maps, whole_box

REVISION = ("planted", 1)
WARP = 0.02  # SD of a planted copy's warp as a share of the side, that of the maps that images are drawn from
FOUND = 0.95  # share of planted copies below which a change is beyond the audit


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
    return scipy.ndimage.map_coordinates(image, np.mgrid[:side, :side] + field, order=1, mode="nearest")


def _redrawn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The local mean times new speckle of the image's own relative spread, Rayleigh as of many scatterers."""
    side, values = image.shape[0], image.astype(float)
    mean = scipy.ndimage.gaussian_filter(values, side / 32)
    spread = (values / np.maximum(mean, 1.0))[image > 10].std() if (image > 10).any() else 0.0
    grain = (0, side / 128, side / 80)  # SD in pixels; speckle is wider than it is deep
    speckle = np.hypot(*scipy.ndimage.gaussian_filter(rng.normal(size=(2, side, side)), grain))
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
