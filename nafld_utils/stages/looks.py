"""Stage 01: what the frames of a cohort have in common, on its own geometry. Reads the stored cohort, writes nothing.

The paper's frames are sectors of one shape, compared pixel by pixel and read over depth and angle. Images of a folder
may have any size and shape: each one's region is brought to one square, and read over its height and its width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nafld_utils import describe, engine, pixel_store, preprocess
from nafld_utils.artifacts import Run
from nafld_utils.cohort import Cohort
from nafld_utils.stages.cohort import open_cohort, region_of

SIDE = 64  # pixels of the square (choice): coarser than texture, finer than organs
SECTOR = (("depth", "Over depth, central half of the sector"), ("lateral", "Over angle, middle third of the depths"))
SQUARE = (("rows", "Over the region's height"), ("columns", "Over the region's width"))


@dataclass(frozen=True)
class Looks:
    """``pairs`` from `describe.similarity`; ``curves`` a patient; ``panels``: their kinds, each with a title."""

    pairs: pd.DataFrame
    curves: pd.DataFrame
    panels: tuple[tuple[str, str], ...]


def of(run: Run) -> Looks:
    """Likeness of frames and brightness over the region, one image at a time in memory.

    Parameters
    ----------
    run : Run
        Its cohort is stored.

    Returns
    -------
    Looks

    Raises
    ------
    ValueError
        Images have no region; names each (`stages.cohort.region_of`).
    """
    found = open_cohort(run)
    if run.is_foreign:
        squares = _squares(run, found)
        pairs = describe.similarity(found.images, squares, np.ones((SIDE, SIDE), dtype=bool), step=1)
        return Looks(pairs, describe.square_profiles(found.patients, found.images, squares), SQUARE)
    first = found.images.groupby("patient_id", sort=False).head(1).index
    inside = np.stack([region_of(run, found, i, found.pixels[i]) for i in first])
    pairs = describe.similarity(found.images, found.pixels, inside.all(axis=0))
    return Looks(pairs, describe.profiles(found.patients, found.images, found.pixels, inside), SECTOR)


def _squares(run: Run, found: Cohort) -> np.ndarray:
    """(N, SIDE, SIDE) uint8: the bounding square of each image's region, resized; shape is kept."""
    out = np.empty((len(found.images), SIDE, SIDE), dtype=np.uint8)
    images = engine.progress(pixel_store.stream(found.pixels), "comparing images", total=len(out))
    for row, image in enumerate(images):
        region = region_of(run, found, row, image)
        square = preprocess.crop_window(region, run.settings.preprocess, fit=True)
        out[row] = square.cut(np.where(region, image, 0).astype(np.uint8), SIDE)
    return out
