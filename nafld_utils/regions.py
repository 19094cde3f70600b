"""Which part of an image is looked at, by setting: its region, the square crop about it, and the crop's own pixels.

Contract: arrays in, arrays out, as in `preprocess`, whose functions do the work for the paper's cohort. Settings are
those of section ``preprocess``: ``region`` (largest | box | none), ``region_box``, ``threshold``, ``closing_radius``,
``crop`` and ``crop_size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nafld_utils import preprocess

if TYPE_CHECKING:
    from nafld_utils.params import PreprocessSettings

REVISION = ("regions", 1)


@dataclass(frozen=True)
class Window:
    """A square of an image: row and column of its first pixel, which may lie outside, and its side, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: np.ndarray, size: int, labels: bool = False) -> np.ndarray:
        """The square's pixels, black beyond the image, resized where `size` is not its side.

        Parameters
        ----------
        image : (H, W) uint8 ndarray
            Grey levels, or labels.
        size : int
            Side of the result in pixels.
        labels : bool
            Take the nearest pixel when resizing, so that labels stay labels.

        Returns
        -------
        (size, size) uint8 ndarray
        """
        square = preprocess.cut(np.asarray(image), (self.top, self.left), self.side)
        if size == self.side:
            return square
        return preprocess.resize_box(square, preprocess.whole_box(square), size, labels)


def find(image: np.ndarray, settings: PreprocessSettings) -> np.ndarray:
    """Region of an image.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
        Grey levels.
    settings : PreprocessSettings
        ``region`` largest: `preprocess.region_mask`, the paper's; box: the rectangle ``region_box`` of top, left,
        height and width in pixels, cut at the image's border; none: the whole image.

    Returns
    -------
    (H, W) bool ndarray
        True inside.

    Raises
    ------
    ValueError
        Nothing is above the threshold, or the box lies outside the image.
    """
    if settings.region == "largest":
        return preprocess.region_mask(image, settings.threshold, settings.closing_radius)
    inside = np.ones(image.shape, dtype=bool)
    if settings.region == "none":
        return inside
    top, left, height, width = settings.region_box or (0, 0, 0, 0)
    inside[:] = False
    inside[top : top + height, left : left + width] = True
    if not inside.any():
        raise ValueError(
            f"preprocess.region_box: expected a box inside the image of {image.shape[1]} x {image.shape[0]} pixels,"
            f" found it at row {top}, column {left}; move it."
        )
    return inside


def window(region: np.ndarray, settings: PreprocessSettings, fit: bool) -> Window:
    """The square that is cropped about a region.

    Parameters
    ----------
    region : (H, W) bool ndarray
        True inside.
    settings : PreprocessSettings
        Read: ``crop_size``.
    fit : bool
        False: a square of ``crop_size`` at original spacing about the region's centre, as in the paper. True: the
        smallest square that holds the region, which is then resized to ``crop_size``.

    Returns
    -------
    Window

    Notes
    -----
    Choice: images of a folder have no common spacing that could be known, so by default they are fitted; shape is kept,
    what the square adds is black.
    """
    if not fit:
        return Window(*preprocess.crop_corner(region, settings.crop_size), settings.crop_size)
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    side = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
    return Window(*preprocess.crop_corner(region, side), side)


def kept_share(region: np.ndarray, square: Window) -> float:
    """Share of a region's pixels that lie inside a square.

    Parameters
    ----------
    region : (H, W) bool ndarray
        True inside; not empty.
    square : Window
        From `window`.

    Returns
    -------
    float in (0, 1]
    """
    return float(preprocess.cut(region, (square.top, square.left), square.side).sum() / region.sum())
