"""What is simulated for a training without a real image, and how real images are changed at test time.

Contract: arrays in, arrays out. Crops are (N, H, W) uint8, black outside their region; what is changed stays in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

from nafld_utils import images, phantom, preprocessing
from nafld_utils.artifacts import Run

REVISION = ("simulated_only_images", 1)

BORDER = 12  # pixels of a crop at original spacing, 4.5 mm: strokes and marks at the region's edge are 1 to 10 wide
SMOOTH = 4.0  # rows, standard deviation over which a depth profile is averaged (choice: speckle is 1 to 2 rows)


def patient_views(run: Run, variant: str, label: int, seed: int) -> tuple[np.ndarray, int]:
    """Views of a simulated patient, (frames, crops, S, S) uint8, and the fat in percent; all follow from `seed`.

    The first view of a frame is its whole crop, the others are random boxes of it, as a training image's are.
    """
    chosen, s, kind = run.settings.simulated_only, run.settings.preprocess, phantom.VARIANTS[variant]
    rng, views = np.random.default_rng([seed, 1]), []
    fat = phantom.draw_fat(label, rng, kind)
    for frame in phantom.simulate_patient(seed, 0, fat, chosen.n_frames, variant=kind)[0]:
        crop = preprocessing.as_held_out(run, frame)[0]
        boxes = [images.whole_box(crop)]
        boxes += [images.random_box(crop.shape, s.crop_scale, s.crop_ratio, rng) for _ in range(chosen.crops - 1)]
        views.append([images.resize_box(crop, box, s.image_size) for box in boxes])
    return np.array(views), fat


def without_border(crops: np.ndarray) -> np.ndarray:
    """Crops with `BORDER` pixels along their region's edge set to 0, and marks of the scanner that touch it."""
    out = np.zeros_like(crops)
    for i, crop in enumerate(crops):
        # the crop's own edge is no edge of the region
        inside = np.pad(scipy.ndimage.binary_fill_holes(crop > 0), BORDER, mode="edge")
        kept = scipy.ndimage.distance_transform_edt(inside)[BORDER:-BORDER, BORDER:-BORDER] > BORDER
        out[i] = np.where(kept, crop, 0)
    return out


def without_depth(crops: np.ndarray) -> np.ndarray:
    """Crops whose rows all have the mean grey of the whole region: no time-gain and no attenuation is left.

    Grey levels are logarithms of the echo, so that a gain is added to a row. A row's mean is that of its pixels above
    0, averaged over rows by a Gaussian of `SMOOTH`.
    """
    out = np.zeros_like(crops)
    for i, crop in enumerate(crops):
        inside = crop > 0
        counts = scipy.ndimage.gaussian_filter1d(inside.sum(axis=1).astype(float), SMOOTH)
        sums = scipy.ndimage.gaussian_filter1d(crop.sum(axis=1, dtype=float), SMOOTH)
        profile = sums / np.maximum(counts, 1e-6)
        flat = np.rint(crop + crop[inside].mean() - profile[:, None])
        out[i] = np.where(inside, np.clip(flat, 1, 255), 0)
    return out


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"border": without_border, "depth": without_depth}
