"""From a scanner's frame to what the models see: region, crop, random resized crop, semantic map and its warp.

Contract: arrays in, arrays out; images are uint8 (grey levels 0..255) until `to_float` scales them to [-1, 1]; a box is
``(top, left, height, width)`` in crop pixels; randomness comes from the generator that is passed in.
Source: paper, "Dataset" and "Synthetic image generation"; what they leave open is marked Choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from nafld_utils.params import PreprocessSettings

REVISION = ("preprocess", 1)
OPENING_RADIUS = 5  # pixels; strokes of overlays are 1 to 4 pixels wide, so they do not survive it (choice)
STUB = 2  # pixels; how far an overlay's stroke may stay attached, the price of keeping the sector's sharp corners


# ---------------------------------------------------------------- region and crop


def region_mask(frame: np.ndarray, threshold: int = 4, closing_radius: int = 5) -> np.ndarray:
    """Ultrasound sector of a frame: its largest connected component, without overlays.

    Pixels above `threshold` are labelled with 4-neighbours and the largest component is kept, which drops depth
    digits, ticks, arrows, grey bar, heart rate and most of the ECG. Its holes are filled (dark vessels and shadows
    belong to it). An opening then cuts the strokes that touch the sector (the mark at the apex, ECG spikes), a closing
    mends dark notches in the border, and the convex hull gives back shadows at the edge: a sector is convex. Corners
    that the opening rounded off are taken back within `STUB` pixels.

    Parameters
    ----------
    frame : (H, W) uint8 ndarray
        Grey levels.
    threshold : int
        Pixels above this grey level may be ultrasound.
    closing_radius : int
        Half the side of the square that closes notches, in pixels.

    Returns
    -------
    (H, W) bool ndarray
        True inside the sector.

    Raises
    ------
    ValueError
        Nothing is above the threshold.

    Notes
    -----
    Paper: "we extract the region of interest from each raw image by cropping the largest connected component". A stroke
    burned in INSIDE the sector (an ECG spike in some real frames) cannot be told from tissue here and stays.
    """
    bright = np.asarray(frame) > threshold
    if not bright.any():
        raise ValueError(
            f"frame: expected pixels above grey level {threshold} (preprocess.threshold), found none; lower the"
            " threshold or remove the frame."
        )
    filled = _fill_holes(_largest(bright))
    core = _erode(filled, OPENING_RADIUS)
    if not core.any():  # the whole region is as thin as a stroke: keep it as it is
        return filled
    core = _largest(_dilate(core, OPENING_RADIUS))
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


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    # One labelling of the padded background: several times faster than ndimage.binary_fill_holes.
    labels, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.maximum_filter(mask.view(np.uint8), 2 * radius + 1, mode="constant") > 0


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    # Outside the frame counts as inside the mask, so that a sector cut by the frame's border is not eaten from there.
    return ndimage.minimum_filter(mask.view(np.uint8), 2 * radius + 1, mode="constant", cval=1) > 0


def crop_corner(region: np.ndarray, crop_size: int) -> tuple[int, int]:
    """Top left corner of the centre crop, centred on the region's bounding box; may lie outside the frame.

    Parameters
    ----------
    region : (H, W) bool ndarray
        True inside the region.
    crop_size : int
        Side of the crop in pixels.

    Returns
    -------
    (int, int)
        Row and column of the crop's first pixel.

    Notes
    -----
    Choice: the paper crops to the component first and centre crops the result, so the centre is the component's, not
    the frame's (30 rows lower in the real frames, where the near field would be lost).
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top = (int(rows[0]) + int(rows[-1]) + 1 - crop_size) // 2
    left = (int(columns[0]) + int(columns[-1]) + 1 - crop_size) // 2
    return top, left


def cut(image: np.ndarray, corner: tuple[int, int], crop_size: int) -> np.ndarray:
    """Square window of an image; zeros where it reaches beyond the image.

    Parameters
    ----------
    image : (H, W) ndarray
        Any type.
    corner : (int, int)
        Row and column of the window's first pixel, may be negative.
    crop_size : int
        Side of the window in pixels.

    Returns
    -------
    (crop_size, crop_size) ndarray
    """
    out = np.zeros((crop_size, crop_size), dtype=image.dtype)
    top, left = corner
    height, width = image.shape
    r0, r1 = max(top, 0), min(top + crop_size, height)
    c0, c1 = max(left, 0), min(left + crop_size, width)
    if r0 < r1 and c0 < c1:
        out[r0 - top : r1 - top, c0 - left : c1 - left] = image[r0:r1, c0:c1]
    return out


def extract_crop(frame: np.ndarray, threshold: int = 4, closing_radius: int = 5, crop_size: int = 320) -> np.ndarray:
    """Region of a frame, black outside it, centre cropped at original spacing.

    Parameters
    ----------
    frame : (H, W) uint8 ndarray
        Grey levels.
    threshold, closing_radius : int
        See `region_mask`.
    crop_size : int
        Side of the crop in pixels; 320 in the paper.

    Returns
    -------
    (crop_size, crop_size) uint8 ndarray
    """
    region = region_mask(frame, threshold, closing_radius)
    return cut(np.where(region, frame, 0).astype(np.uint8), crop_corner(region, crop_size), crop_size)


# ---------------------------------------------------------------- grey levels and crops


def to_float(images: np.ndarray) -> np.ndarray:
    """Scale grey levels 0..255 (uint8, any shape) linearly to [-1, 1] (float32), as the paper does."""
    return np.asarray(images, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Inverse of `to_float`: clip to [-1, 1], scale and round to grey levels 0..255 (uint8)."""
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def whole_box(crop: np.ndarray) -> tuple[float, float, float, float]:
    """The box that is the whole crop; held-out images use it."""
    return (0.0, 0.0, float(crop.shape[0]), float(crop.shape[1]))


def random_box(
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Draw the box of a random resized crop.

    Area share uniform, aspect ratio log-uniform, position uniform over whole pixels; ten tries, then the largest
    centred box of an allowed ratio: the same distribution as torchvision's ``RandomResizedCrop.get_params``.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the crop.
    scale : (float, float)
        Least and greatest share of the area.
    ratio : (float, float)
        Least and greatest width over height.
    rng : numpy.random.Generator
        One for every (seed, image, number of the crop), so that a crop can be drawn again alone.

    Returns
    -------
    (float, float, float, float)
        Top, left, height, width in pixels, whole numbers.
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


def resize_box(crop: np.ndarray, box: tuple[float, float, float, float], size: int, labels: bool = False) -> np.ndarray:
    """Cut a box out of a crop and resize it.

    Parameters
    ----------
    crop : (H, W) uint8 ndarray
        Grey levels, or labels.
    box : (float, float, float, float)
        Top, left, height, width in whole pixels.
    size : int
        Side of the result in pixels.
    labels : bool
        Take the nearest pixel, so that labels stay labels; else bilinear with antialiasing.

    Returns
    -------
    (size, size) uint8 ndarray
    """
    from PIL import Image

    top, left, height, width = (round(value) for value in box)
    method = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    # Cut first: resizing with a box would let the filter see pixels outside the box.
    picture = Image.fromarray(np.array(crop[top : top + height, left : left + width], dtype=np.uint8))
    return np.asarray(picture.resize((size, size), method))


def rotate_about(crop: np.ndarray, box: tuple[float, float, float, float], degrees: float) -> np.ndarray:
    """Rotate a crop about the centre of a box, bilinear, black from outside the crop.

    Parameters
    ----------
    crop : (H, W) uint8 ndarray
        Grey levels.
    box : (float, float, float, float)
        Top, left, height, width in pixels.
    degrees : float
        Counter-clockwise.

    Returns
    -------
    (H, W) uint8 ndarray

    Notes
    -----
    Choice: rotating before the box is cut fills the box's corners with tissue instead of black wedges, which would
    mark the traditional arm's images.
    """
    from PIL import Image

    top, left, height, width = (float(value) for value in box)
    centre = (left + width / 2, top + height / 2)
    picture = Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(picture.rotate(degrees, Image.Resampling.BILINEAR, center=centre))


# ---------------------------------------------------------------- semantic maps


def semantic_map(
    image: np.ndarray, classes: int = 5, size: int = 128, order: str = "downsample_first", blur: int = 9, bins: int = 64
) -> np.ndarray:
    """Brightness classes of an image by multi-level Otsu thresholds.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
        The image whose map it is, so that both share one crop.
    classes : int
        Number of classes; 5 in the paper.
    size : int
        Side of the map in pixels; 128 in the paper.
    order : str
        ``"downsample_first"``: resize, blur, threshold. ``"threshold_first"``: blur, threshold, take the nearest pixel.
    blur : int
        Width of the Gaussian kernel before thresholding in pixels; SD 0.15 * width + 0.35, the usual rule for a
        kernel of that width. 1 is no blur.
    bins : int
        Bins of the histogram. Thresholds from 64 bins differ little from those of 256 and cost a hundredth.

    Returns
    -------
    (size, size) uint8 ndarray
        Labels 0 (darkest) .. classes - 1; an image of fewer grey levels than classes uses the first labels only.

    Raises
    ------
    ValueError
        Unknown `order`.
    """
    whole = whole_box(image)
    if order == "downsample_first":
        return _threshold(_blur(resize_box(image, whole, size), blur), classes, bins)
    if order == "threshold_first":
        return resize_box(_threshold(_blur(image, blur), classes, bins), whole, size, labels=True)
    raise ValueError(
        f"preprocess.map_order: expected downsample_first or threshold_first, found {order!r}; correct it."
    )


def semantic_maps(images: np.ndarray, settings: PreprocessSettings) -> np.ndarray:
    """`semantic_map` of every image under the settings of section ``preprocess``.

    Parameters
    ----------
    images : (N, H, W) uint8 ndarray
        Images.
    settings : PreprocessSettings
        Read: ``map_classes, map_size, map_order, map_blur, map_bins``.

    Returns
    -------
    (N, map_size, map_size) uint8 ndarray
    """
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
    from skimage.filters import threshold_multiotsu

    levels = np.unique(image)
    if len(levels) <= classes:  # nothing to optimise, and a constant image has no histogram
        return np.searchsorted(levels, image).astype(np.uint8)
    try:
        # skimage returns the centre of each class's last bin; that whole bin belongs to the class.
        half_bin = (levels[-1] - levels[0]) / bins / 2
        thresholds = threshold_multiotsu(image, classes=classes, nbins=bins) + half_bin
    except ValueError:  # fewer filled bins than classes: nearly all pixels share one grey level
        thresholds = np.linspace(levels[0], levels[-1], classes + 1)[1:-1]
    return np.digitize(image, thresholds).astype(np.uint8)


def warp_field(size: int, displacement: np.ndarray) -> np.ndarray:
    """Displacement of every pixel from that of control points, affine on each triangle between them.

    Parameters
    ----------
    size : int
        Side of the image in pixels.
    displacement : (P, P, 2) float ndarray
        Row and column displacement in pixels of P x P control points on a regular grid from corner to corner.

    Returns
    -------
    (2, size, size) float ndarray
        Row and column displacement of every pixel. Each cell of the grid is cut by one diagonal into two triangles.
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
    labels : (M, M) uint8 ndarray
        Semantic map.
    rng : numpy.random.Generator
        Draws the control points' displacements.
    points : int
        Control points a side, at least 2.
    strength : float
        SD of a displacement as a share of the side; 0 gives the map back.

    Returns
    -------
    (M, M) uint8 ndarray
        Labels of the nearest source pixel, so no new label appears; beyond the border the border's label.

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
