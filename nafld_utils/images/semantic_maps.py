"""Semantic maps: brightness classes of an image by multi-level Otsu thresholds, and the weak warp of such a map.

Contract: arrays in, arrays out; randomness comes from the generator that is passed in. Results are of revision
``preprocess``: raise that when they change. Source: paper, "Synthetic image generation".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from nafld_utils.images.crops import resize_box, whole_box

if TYPE_CHECKING:
    from nafld_utils.params import PreprocessSettings


def semantic_map(
    image: np.ndarray, classes: int = 5, size: int = 128, order: str = "downsample_first", blur: int = 9, bins: int = 64
) -> np.ndarray:
    """Brightness classes of an (H, W) uint8 image by multi-level Otsu thresholds, (size, size) uint8, 0 the darkest.

    5 classes of 128 pixels a side in the paper; an image of fewer grey levels than classes uses the first labels only.

    Parameters
    ----------
    order : str
        ``"downsample_first"``: resize, blur, threshold. ``"threshold_first"``: blur, threshold, take the nearest pixel.
    blur : int
        Width of the Gaussian kernel before thresholding in pixels; SD 0.15 * width + 0.35, the usual rule for a
        kernel of that width. 1 is no blur.
    bins : int
        Bins of the histogram. Thresholds from 64 bins differ little from those of 256.
    """
    whole = whole_box(image)
    if order == "downsample_first":
        return _threshold(_blur(resize_box(image, whole, size), blur), classes, bins)
    return resize_box(_threshold(_blur(image, blur), classes, bins), whole, size, labels=True)


def semantic_maps(images: np.ndarray, settings: PreprocessSettings) -> np.ndarray:
    """`semantic_map`, (N, map_size, map_size) uint8, of images (N, H, W) uint8 by ``map_*`` of ``preprocess``."""
    s = settings
    out = np.empty((len(images), s.map_size, s.map_size), dtype=np.uint8)
    for row, image in enumerate(images):
        out[row] = semantic_map(image, s.map_classes, s.map_size, s.map_order, s.map_blur, s.map_bins)
    return out


def _blur(image: np.ndarray, width: int) -> np.ndarray:
    image = image.astype(np.float32)
    if width <= 1:
        return image
    return ndimage.gaussian_filter(image, 0.15 * width + 0.35, radius=(width - 1) // 2, mode="nearest")


def _threshold(image: np.ndarray, classes: int, bins: int) -> np.ndarray:
    levels = np.unique(image)
    if len(levels) <= classes:  # nothing to optimise, and a constant image has no histogram
        return np.searchsorted(levels, image).astype(np.uint8)
    counts, edges = np.histogram(image, bins)
    if np.count_nonzero(counts) < classes:  # nearly all pixels share one grey level
        thresholds = np.linspace(levels[0], levels[-1], classes + 1)[1:-1]
    else:  # the centre of each class's last bin as skimage has it, and half a bin: that whole bin belongs to the class
        centres = (edges[:-1] + edges[1:]) / 2
        thresholds = centres[_last_bins(counts, classes)] + (levels[-1] - levels[0]) / bins / 2
    return np.digitize(image, thresholds).astype(np.uint8)


def _last_bins(counts: np.ndarray, classes: int) -> np.ndarray:
    """Last bin of every class but the brightest of a histogram, (B,) int, whose first and last bin are filled.

    Those of `skimage.filters.threshold_multiotsu`, which tries all divisions, in a hundredth of its time: a bound for
    what the classes above can add (dynamic programming) leaves the few divisions that may be the best, and the first
    best of them by skimage's own float32 sums is taken. As there, the first bin is of level 1 like the second, and its
    class ends with the second where that is empty.
    """
    filled = np.flatnonzero(counts)
    if len(filled) == classes:
        return filled[:-1]
    shares = (counts[filled] / counts.sum()).astype(np.float32)
    filled[0] = not counts[1]
    moments = np.maximum(filled, 1).astype(np.float32) * shares
    below, moments_below = (np.cumsum(np.append(np.float32(0), part), dtype=np.float32) for part in (shares, moments))
    mass = below[1:] - below[:-1, None]
    spread = np.zeros_like(mass)  # of a class from one filled bin (row) to another (column)
    np.divide((moments_below[1:] - moments_below[:-1, None]) ** 2, mass, out=spread, where=mass > 0)
    spread[np.tril_indices_from(spread, -1)] = -np.inf
    most = [spread[:, -1].astype(np.float64)]  # that one, two ... classes from a bin on can have
    for _ in range(classes - 1):
        most.append((spread[:, :-1] + most[-1][1:]).max(axis=1))
    enough = most[-1][0] * (1 - 1e-5)  # float32 sums differ by less

    def divisions(first: int, total: float, left: int) -> Iterator[tuple[int, ...]]:
        if not left:
            yield ()
            return
        for last in np.flatnonzero(total + spread[first, :-1] + most[left - 1][1:] >= enough):
            for more in divisions(last + 1, total + float(spread[first, last]), left - 1):
                yield (last, *more)

    def variance(lasts: tuple[int, ...]) -> np.float32:
        ends = spread[0, lasts[0]] + spread[lasts[-1] + 1, -1]
        return sum((spread[a + 1, b] for a, b in itertools.pairwise(lasts)), ends)

    return filled[list(max(divisions(0, 0.0, classes - 1), key=variance))]


def warp_field(size: int, displacement: np.ndarray) -> np.ndarray:
    """Displacement of every pixel, (2, size, size): rows, columns, from that of P x P control points, (P, P, 2) pixels.

    The points lie on a regular grid from corner to corner; it is affine on each of the two triangles into which one
    diagonal cuts a cell of the grid.
    """
    points = displacement.shape[0]
    position = np.linspace(0, points - 1, size)
    cell = np.minimum(position.astype(int), points - 2)
    fraction = position - cell
    r, c = np.meshgrid(cell, cell, indexing="ij")
    v, u = (axis[..., None] for axis in np.meshgrid(fraction, fraction, indexing="ij"))
    d00, d01 = displacement[r, c], displacement[r, c + 1]
    d10, d11 = displacement[r + 1, c], displacement[r + 1, c + 1]
    upper = d00 + v * (d10 - d00) + u * (d01 - d00)
    lower = d11 + (1 - v) * (d01 - d11) + (1 - u) * (d10 - d11)
    return np.moveaxis(np.where(u + v <= 1, upper, lower), -1, 0)


def warp_map(labels: np.ndarray, rng: np.random.Generator, points: int = 4, strength: float = 0.02) -> np.ndarray:
    """Weak random piecewise-affine warp of a semantic map.

    Parameters
    ----------
    labels : numpy.ndarray, shape (M, M), uint8
    rng : numpy.random.Generator
    points : int
        Control points per side.
    strength : float
        SD of their displacement as a share of the side; 0 gives the map back.

    Returns
    -------
    numpy.ndarray, shape (M, M), uint8
        Labels of the nearest source pixel; beyond the border the border's label.

    Notes
    -----
    Paper: weak piecewise-affine transformations of the maps; strong ones gave uneven edges. The mesh is regular on the
    side of the result, so the map is evaluated directly instead of by triangulating scattered points.
    """
    side = labels.shape[0]
    field = warp_field(side, rng.normal(0.0, strength * side, size=(points, points, 2)))
    grid = np.arange(side)
    rows = np.clip(np.rint(grid[:, None] + field[0]), 0, side - 1).astype(int)
    columns = np.clip(np.rint(grid[None, :] + field[1]), 0, side - 1).astype(int)
    return labels[rows, columns]
