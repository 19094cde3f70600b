"""What every reader of an image file gives: a grey picture and what its file says of it, or a fault in a phrase.

Contract: arrays in, arrays out. Where a file says what its numbers mean, that range becomes 0..255, the same for every
picture of a cohort; a picture's own darkest and brightest value decide only where nothing is said, and it says so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

MAX_PIXELS = 50_000_000  # of an image (choice): 7000 x 7000, more than any radiograph
MIN_SIDE = 8  # pixels (choice): below it there is nothing to crop


class ImageFault(ValueError):
    """A file that is no usable image; the message is a phrase without the file's name."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself: ``shape`` (height, width) after turning, ``kind`` PNG, JPEG, TIFF or DICOM.

    ``burned_in``: it says that text is burned into the pixels.
    """

    shape: tuple[int, int]
    kind: str
    burned_in: bool = False


@dataclass(frozen=True)
class Picture:
    """A decoded image: grey ``pixels`` (H, W) uint8, and how they were made.

    ``colour``: from colour; ``deep``: from more than 8 bits; ``own``: scaled from its own darkest to its brightest
    value; ``windowed``: through a window or a table of its DICOM tags; ``turned``: as its orientation entry says;
    ``hidden``: pixels that are transparent or padding became black. ``said``: what the file says of its grey levels,
    by name.
    """

    pixels: np.ndarray
    colour: bool = False
    deep: bool = False
    own: bool = False
    windowed: bool = False
    turned: bool = False
    hidden: bool = False
    said: Mapping[str, str] = field(default_factory=dict)


def checked(height: int, width: int, pages: int, command: str) -> tuple[int, int]:
    """Height and width; a fault where a file holds more than one image, which `command` makes single ones of."""
    if pages != 1:
        raise ImageFault(f"expected one image in a file, found {pages}; make one file of each with {command}")
    if height * width > MAX_PIXELS:
        raise ImageFault(f"expected at most {MAX_PIXELS:,} pixels, found {width} x {height}; scale it down")
    if min(height, width) < MIN_SIDE:
        raise ImageFault(f"expected at least {MIN_SIDE} x {MIN_SIDE} pixels, found {width} x {height}")
    return height, width


def reason(error: BaseException) -> str:
    """What a decoder says, in whole words and at most 120 characters."""
    return textwrap.shorten(str(error).partition(" in file ")[0], 120, placeholder=" ...") or type(error).__name__


def scaled(values: np.ndarray, span: tuple[float, float] | None = None, hidden: np.ndarray | None = None) -> np.ndarray:
    """Grey levels 0..255 of the range `span`, or of the values' own; a constant image stays constant.

    Pixels in `hidden`, (H, W) bool, are black and do not count for the range.
    """
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageFault("expected finite grey levels, found NaN or infinity")
    shown = values if hidden is None or hidden.all() else values[~hidden]
    low, high = (shown.min(), shown.max()) if span is None else span
    grey = np.zeros(values.shape, np.uint8)
    if low != high:
        grey = np.round((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return blackened(grey, hidden)


def blackened(grey: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
    """The picture with black where `hidden` says so."""
    return grey if hidden is None else np.where(hidden, 0, grey).astype(np.uint8)


def luminance(rgb: np.ndarray) -> tuple[np.ndarray, bool]:
    """Grey levels of an (H, W, 3) uint8 picture, and whether it has any colour."""
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.shape[2] != 3:
        raise ImageFault(f"expected 8-bit colour of three channels, found {rgb.dtype} of shape {rgb.shape}; save it so")
    # many grey images are stored as three equal channels
    colour = bool((rgb[..., 0] != rgb[..., 1]).any() or (rgb[..., 1] != rgb[..., 2]).any())
    return np.array(Image.fromarray(rgb).convert("L"), dtype=np.uint8), colour
