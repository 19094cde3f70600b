"""How frames look: brightness, contrast, size of speckle and depth profile, of real and simulated frames side by side.

Contract: frames and their regions in, tables out, one value per patient; no label is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from nafld_utils.phantom.fat import draw_fat
from nafld_utils.phantom.scanner import simulate_patient
from nafld_utils.phantom.variants import Variant

REVISION = ("phantom_looks", 1)

# Measures of a frame and how a reader calls them; all but the profile are one number.
MEASURES = {
    "brightness": "brightness (mean grey level)",
    "contrast": "contrast (SD of grey levels)",
    "speckle_across": "speckle across the beam (pixels)",
    "speckle_along": "speckle along the beam (pixels)",
}
BANDS = 10  # of the depth profile: tenths of the region's height
_COARSE, _LAGS, _MARGIN = 6.0, 15, 8  # pixels: what is no speckle any more, the lags looked at, the border left out


def measure(pixels: Sequence[np.ndarray], regions: Sequence[np.ndarray], patients: Sequence[int]) -> pd.DataFrame:
    """Measures of each patient, averaged over the frames.

    Parameters
    ----------
    pixels : sequence of (H, W) uint8
        Frames, grey levels 0..255.
    regions : sequence of (H, W) bool
        The part of each frame that shows the patient.
    patients : sequence of int
        Whose frame it is.

    Returns
    -------
    pandas.DataFrame
        One row per patient: the keys of `MEASURES` (grey levels; pixels, the width of the autocovariance at half its
        maximum) and ``depth_0`` to ``depth_9``, the mean grey level in tenths of the region's height from the top, in
        the middle third of its width.
    """
    rows = [_of_frame(frame, region) for frame, region in zip(pixels, regions, strict=True)]
    return pd.DataFrame(rows).groupby(np.asarray(patients)).mean().rename_axis("patient")


def simulated(variant: Variant, n_patients: int, seed: int) -> pd.DataFrame:
    """Measures of simulated patients, one frame and the table's row of each; healthy and fatty in turn."""
    rng, rows = np.random.default_rng([seed, 10]), []
    for index in range(n_patients):
        frames, masks = simulate_patient(seed, index, draw_fat(index % 2, rng, variant), 1, None, variant)
        rows.append(_of_frame(frames[0], masks[0] > 0))
    return pd.DataFrame(rows).rename_axis("patient")


def _of_frame(frame: np.ndarray, region: np.ndarray) -> dict[str, float]:
    grey = frame.astype(np.float32)
    inner = ndimage.binary_erosion(region, iterations=_MARGIN)
    weight = np.maximum(ndimage.gaussian_filter(region.astype(np.float32), _COARSE), 1e-3)
    fine = np.where(inner, grey - ndimage.gaussian_filter(np.where(region, grey, 0), _COARSE) / weight, 0)
    found = {"brightness": float(grey[region].mean()), "contrast": float(grey[region].std())}
    found |= {"speckle_across": _width(fine, inner, 1), "speckle_along": _width(fine, inner, 0)}
    rows, columns = np.nonzero(region)
    left, right = np.quantile(columns, [1 / 3, 2 / 3])
    middle = (columns >= left) & (columns <= right)
    rows, values = rows[middle], grey[rows[middle], columns[middle]]
    band = np.minimum((rows - rows.min()) * BANDS // (np.ptp(rows) + 1), BANDS - 1)
    total, count = np.bincount(band, values, BANDS), np.bincount(band, minlength=BANDS)
    return found | {f"depth_{i}": float(total[i] / max(count[i], 1)) for i in range(BANDS)}


def _width(fine: np.ndarray, inside: np.ndarray, axis: int) -> float:
    """Full width at half maximum of the autocovariance along an axis, in pixels."""
    fine, inside, values = np.moveaxis(fine, axis, 0), np.moveaxis(inside, axis, 0), []
    for lag in range(_LAGS):
        both = inside[lag:] & inside[: len(inside) - lag]
        values.append((fine[lag:] * fine[: len(fine) - lag])[both].mean())
    share = np.array(values) / max(values[0], 1e-6)
    below = int(np.argmax(share < 0.5)) or _LAGS - 1
    step = (share[below - 1] - 0.5) / max(share[below - 1] - share[below], 1e-6)
    return float(2 * (below - 1 + min(step, 1)))


def draw(groups: Mapping[str, pd.DataFrame], axes: Sequence[Any], colors: Mapping[str, str]) -> None:
    """Boxes over patients of each measure, and the depth profiles: on one Axes per measure of `MEASURES`, and one more.

    `groups` are tables of `measure` and `colors` their colours, by the group's name. Boxes end at the quartiles,
    whiskers at 5 and 95 %.
    """
    names = list(groups)
    for ax, (key, label) in zip(axes, MEASURES.items(), strict=False):
        box = ax.boxplot([groups[name][key] for name in names], whis=(5, 95), showfliers=False, patch_artist=True)
        for patch, line, name in zip(box["boxes"], box["medians"], names, strict=True):
            patch.set_facecolor(colors[name])
            line.set_color("white")
        ax.set_xticks(range(1, len(names) + 1), names)
        ax.set_ylabel(label)
    place = (np.arange(BANDS) + 0.5) * 100 / BANDS
    for name in names:
        depths = groups[name][[f"depth_{i}" for i in range(BANDS)]]
        axes[-1].plot(place, depths.median(), color=colors[name], label=name)
        axes[-1].fill_between(place, *depths.quantile([0.05, 0.95]).to_numpy(), color=colors[name], alpha=0.2)
    axes[-1].set_xlabel("depth (percent of the region's height)")
    axes[-1].set_ylabel("mean grey level")
    axes[-1].legend(title="median, 5 to 95 % of patients")
