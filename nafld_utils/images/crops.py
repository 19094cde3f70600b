"""From a scanner's frame to what the models see: its region, a square crop about it, random resized crops.

Contract: arrays in, arrays out; images are uint8 (grey levels 0..255) until `to_float` scales them to [-1, 1]; a box is
``(top, left, height, width)`` in crop pixels; randomness comes from the generator that is passed in.
Source: paper, "Dataset" and "Synthetic image generation"; what they leave open is marked Choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy

if TYPE_CHECKING:
    from nafld_utils.params import PreprocessSettings

# raise the first; units of this stage name the second beside it, those of the arm `trivial` the third
REVISION = ("preprocess", 1), ("regions", 1), ("trivial_augment", 1)
OPENING_RADIUS = 5  # pixels; strokes of overlays are 1 to 4 pixels wide, so they do not survive it (choice)
STUB = 2  # pixels; how far an overlay's stroke may stay attached, the price of keeping the sector's sharp corners
# Where a shadow parts the sector (choice). A part has so much of the largest one's area: overlays of the published
# frames have 0.02 or less. Parts fill so much of their hull, and share so many of the taller one's rows. In so many of
# these the gap may narrow downwards: between two sectors it does in half or more, below a curved probe in a third.
PIECE, WHOLE, BESIDE, NARROWING = 0.05, 0.6, 0.5, 0.4
Box = tuple[float, float, float, float]


# ---------------------------------------------------------------- region


def find_region(image: np.ndarray, settings: PreprocessSettings) -> np.ndarray:
    """Region of an image, as ``region`` of the settings says.

    Parameters
    ----------
    image : numpy.ndarray, shape (H, W), uint8
    settings : PreprocessSettings
        ``region``: largest, `region_mask`, the paper's; box, the rectangle ``region_box`` of top, left, height
        and width in pixels, cut at the image's border; none, the whole image.

    Returns
    -------
    numpy.ndarray, shape (H, W), bool

    Raises
    ------
    ValueError
        Nothing is above the threshold, or the box lies outside the image.
    """
    if settings.region == "largest":
        return region_mask(image, settings.threshold, settings.closing_radius)
    if settings.region == "none":
        return np.ones(image.shape, dtype=bool)
    top, left, height, width = settings.region_box
    inside = np.zeros(image.shape, dtype=bool)
    inside[top : top + height, left : left + width] = True
    if not inside.any():
        raise ValueError(
            f"preprocess.region_box: expected a box inside the image of {image.shape[1]} x {image.shape[0]} pixels,"
            f" found it at row {top}, column {left}; move it."
        )
    return inside


def region_mask(frame: np.ndarray, threshold: int = 4, closing_radius: int = 5) -> np.ndarray:
    """(H, W) bool: the ultrasound sector of a (H, W) uint8 frame, its largest connected component without overlays.

    Pixels above `threshold` are labelled with 4-neighbours and the largest component is kept, which drops depth
    digits, ticks, arrows, grey bar, heart rate and most of the ECG. Its holes are filled (dark vessels and shadows
    belong to it). An opening then cuts the strokes that touch the sector (the mark at the apex, ECG spikes), a closing
    mends dark notches in the border, and the convex hull gives back shadows at the edge: a sector is convex. Corners
    that the opening rounded off are taken back within `STUB` pixels.

    Paper: "we extract the region of interest from each raw image by cropping the largest connected component". A stroke
    burned in INSIDE the sector (an ECG spike in some real frames) cannot be told from tissue here and stays.

    Choice: parts of a sector between which a black shadow lies are taken together, where they are large and lie as a
    beam would part them (`PIECE` and beside it). Two images of one height side by side look the same, and are too.
    """
    bright = np.asarray(frame) > threshold
    if not bright.any():
        raise ValueError(
            f"frame: expected pixels above grey level {threshold} (preprocess.threshold), found none; lower the"
            " threshold or remove the frame."
        )
    filled = _fill_holes(np.any(_pieces(bright), axis=0))
    core = _erode(filled, OPENING_RADIUS)
    if not core.any():  # the whole region is as thin as a stroke: keep it as it is
        return _fill_holes(_pieces(bright)[0])
    core = _sector(_pieces(_dilate(core, OPENING_RADIUS)))
    if closing_radius:
        core = _close(core, closing_radius)
    return _hull(core) | (filled & _dilate(core, STUB))


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    # Padded, so that the closing does not fill the wedge between the sector's edge and the frame's border.
    return _erode(_dilate(np.pad(mask, radius), radius), radius)[radius:-radius, radius:-radius]


def _hull(mask: np.ndarray) -> np.ndarray:
    """Convex hull, row by row: its left edge is the greatest convex function below the mask's left edge."""
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    span = np.arange(rows[0], rows[-1] + 1)
    low = np.ceil(np.interp(span, *_convex_below(rows, left)) - 1e-9)
    high = np.floor(-np.interp(span, *_convex_below(rows, -right)) + 1e-9)
    columns = np.arange(mask.shape[1])
    out = np.zeros_like(mask)
    out[span] = (columns >= low[:, None]) & (columns <= high[:, None])
    return out


def _convex_below(x: np.ndarray, y: np.ndarray) -> tuple[list[int], list[int]]:
    """Corners of the greatest convex function that is nowhere above (x, y); x ascending."""
    chain: list[tuple[int, int]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(chain) > 1:
            (x0, y0), (x1, y1) = chain[-2:]
            if (x1 - x0) * (point[1] - y0) > (y1 - y0) * (point[0] - x0):
                break
            chain.pop()
        chain.append(point)
    return [corner[0] for corner in chain], [corner[1] for corner in chain]


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected components of a mask, the largest first, and all others that are no smaller than `PIECE` of it."""
    labels, _ = scipy.ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    return [labels == label for label in order[sizes[order] >= max(1, PIECE * sizes.max())]]


def _sector(pieces: list[np.ndarray]) -> np.ndarray:
    """The largest of some masks, with those that shadows part from it: as many as together fill their hull."""
    whole, hulls = pieces[0], [_hull(piece) for piece in pieces[1:]]
    covered = _hull(whole) if hulls else whole
    waiting = list(zip(pieces[1:], hulls, strict=True))
    while waiting:
        fitting = [i for i, (_, hull) in enumerate(waiting) if _parted(covered, hull)]
        if not fitting:
            break
        piece, hull = waiting.pop(fitting[0])
        whole, covered = whole | piece, covered | hull
    return whole


def _parted(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a shadow may part two convex masks, (H, W) bool: together they fill their hull, and lie side by side with
    a gap that is as wide below as above, or wider, as a beam is.
    """
    both, heights = a | b, [mask.any(axis=1) for mask in (a, b)]
    rows = np.flatnonzero(heights[0] & heights[1])
    if len(rows) < max(2, BESIDE * max(height.sum() for height in heights)) or both.sum() < WHOLE * _hull(both).sum():
        return False
    middles = [scipy.ndimage.center_of_mass(mask)[1] for mask in (a, b)]
    left, right = (a, b) if middles[0] < middles[1] else (b, a)
    gap = right[rows].argmax(axis=1) + left[rows, ::-1].argmax(axis=1) - a.shape[1]
    return bool(np.mean(np.diff(scipy.ndimage.median_filter(gap, 9)) < 0) < NARROWING)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    # One labelling of the padded background: several times faster than scipy.ndimage.binary_fill_holes.
    labels, _ = scipy.ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    # By a square; or-ing a mask with itself moved, twice as far each time, takes a tenth of ndimage's time.
    mask = np.pad(mask, radius)
    for _ in range(2):
        mask, width = mask.T, 1
        while width <= 2 * radius:
            step = min(width, 2 * radius + 1 - width)
            mask, width = mask[step:] | mask[:-step], width + step
    return mask


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    # Outside the frame counts as inside the mask, so that a sector cut by the frame's border is not eaten from there.
    return ~_dilate(~mask, radius)


# ---------------------------------------------------------------- crop


@dataclass(frozen=True)
class Window:
    """A square of an image: row and column of its first pixel, which may lie outside, and its side, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: np.ndarray, size: int, labels: bool = False) -> np.ndarray:
        """(size, size) uint8: the square's pixels, black beyond the image; resized, `labels` to the nearest pixel."""
        square = cut(np.asarray(image), (self.top, self.left), self.side)
        if size == self.side:
            return square
        return resize_box(square, whole_box(square), size, labels)

    def share_of(self, region: np.ndarray) -> float:
        """Share (0 to 1) of a region's pixels, (H, W) bool, that lie inside the square."""
        return float(cut(region, (self.top, self.left), self.side).sum() / region.sum())


def crop_window(region: np.ndarray, settings: PreprocessSettings, fit: bool) -> Window:
    """The square that is cropped about a region, (H, W) bool.

    `fit` False: ``crop_size`` pixels at original spacing about the region's centre, as in the paper. True: the smallest
    square that holds the region, to be resized to ``crop_size``. Choice: images of a folder have no common spacing that
    could be known, so by default they are fitted.
    """
    side = settings.crop_size
    if fit:
        side = max(last - first + 1 for first, last in _extent(region))
    return Window(*crop_corner(region, side), side)


def crop_corner(region: np.ndarray, crop_size: int) -> tuple[int, int]:
    """Row and column of the first pixel of a square centred on the region's bounding box; may lie outside the frame.

    Choice: the paper crops to the component first and centre crops the result, so the centre is the component's, not
    the frame's (30 rows lower in the real frames, where the near field would be lost).
    """
    top, left = ((first + last + 1 - crop_size) // 2 for first, last in _extent(region))
    return top, left


def _extent(region: np.ndarray) -> list[tuple[int, int]]:
    """First and last row, and first and last column of a region, (H, W) bool."""
    filled = [np.flatnonzero(region.any(axis=axis)) for axis in (1, 0)]
    return [(int(places[0]), int(places[-1])) for places in filled]


def cut(image: np.ndarray, corner: tuple[int, int], crop_size: int) -> np.ndarray:
    """(crop_size, crop_size) window of an (H, W) image of any type from `corner` on; zeros beyond the image."""
    out = np.zeros((crop_size, crop_size), dtype=image.dtype)
    top, left = corner
    height, width = image.shape
    r0, r1 = max(top, 0), min(top + crop_size, height)
    c0, c1 = max(left, 0), min(left + crop_size, width)
    if r0 < r1 and c0 < c1:
        out[r0 - top : r1 - top, c0 - left : c1 - left] = image[r0:r1, c0:c1]
    return out


def extract_crop(frame: np.ndarray, threshold: int = 4, closing_radius: int = 5, crop_size: int = 320) -> np.ndarray:
    """Region of an (H, W) uint8 frame (`region_mask`), black outside it, centre cropped at original spacing."""
    region = region_mask(frame, threshold, closing_radius)
    return cut(np.where(region, frame, 0).astype(np.uint8), crop_corner(region, crop_size), crop_size)


# ---------------------------------------------------------------- grey levels and boxes


def to_float(images: np.ndarray) -> np.ndarray:
    """Scale grey levels 0..255 (uint8, any shape) linearly to [-1, 1] (float32), as the paper does."""
    return np.asarray(images, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def whole_box(crop: np.ndarray) -> Box:
    """The box that is the whole crop; held-out images use it."""
    return (0.0, 0.0, float(crop.shape[0]), float(crop.shape[1]))


def random_box(
    shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw the box of a random resized crop of an image of height and width `shape`.

    Area share uniform in `scale`, width over height log-uniform in `ratio`, position uniform over whole pixels; ten
    tries, then the largest centred box of an allowed ratio: the same distribution as torchvision's
    ``RandomResizedCrop.get_params``.
    """
    height, width = shape
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return float(top), float(left), float(h), float(w)
    aspect = float(np.clip(width / height, *ratio))
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return float((height - h) // 2), float((width - w) // 2), float(h), float(w)


def resize_box(crop: np.ndarray, box: Box, size: int, labels: bool = False) -> np.ndarray:
    """Cut a box of whole pixels out of an (H, W) uint8 crop and resize it to (size, size) uint8.

    `labels`: take the nearest pixel, so that labels stay labels; else bilinear with antialiasing.
    """
    from PIL import Image

    top, left, height, width = (round(value) for value in box)
    method = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    # Cut first: resizing with a box would let the filter see pixels outside the box.
    picture = Image.fromarray(np.array(crop[top : top + height, left : left + width], dtype=np.uint8))
    return np.asarray(picture.resize((size, size), method))


def rotate_about(crop: np.ndarray, box: Box, degrees: float) -> np.ndarray:
    """Rotate a crop, (H, W) uint8, counter-clockwise about the centre of a box, bilinear, black from outside the crop.

    Choice: rotating before the box is cut fills the box's corners with tissue instead of black wedges, which would
    mark the traditional arm's images.
    """
    from PIL import Image

    top, left, height, width = (float(value) for value in box)
    centre = (left + width / 2, top + height / 2)
    picture = Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(picture.rotate(degrees, Image.Resampling.BILINEAR, center=centre))


def trivial_augment(image: np.ndarray, seed: int) -> np.ndarray:
    """One change of random kind and strength of an image (H, W) uint8, by torchvision's TrivialAugmentWide.

    Kinds and strengths as published (shear, shift, rotation, brightness, contrast, sharpness, fewer grey levels,
    inversion above a level, equalisation, none; arXiv 2103.10158); what comes from outside is black.
    """
    import torch
    from torchvision.transforms import TrivialAugmentWide

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = TrivialAugmentWide(fill=[0.0])(torch.from_numpy(np.array(image))[None])
    return changed[0].numpy()
