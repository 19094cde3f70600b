"""What attributions can be held against: tissue, another map of the same image, and the classifier's own answer.

Contract: arrays in, tables out; nothing is trained, drawn or opened here. Shares of an image are of its *smoothed
absolute* attribution, since single pixels of expected gradients are noise, and of what lies inside the sector.

Notes
-----
The paper reads four maps by eye. Choice of measures: the share of attribution on a tissue against that tissue's share
of the area, and the pointing game (Zhang et al. 2018, doi 10.1007/s11263-017-1059-x); rank correlation of maps after
a sanity check (Adebayo et al. 2018, arXiv:1810.03292); deletion and insertion curves (Petsiuk et al. 2018,
arXiv:1806.07421) against random maps as smooth as those that are judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import statistics

REVISION = ("explain_truth", 1)

READABLE_FROM = 0.7  # lower bound of the held-out AUC from which attributions are interpreted; Choice: the study's rule

# Regions of an image, by code. A border is a band around its tissue, so vessels belong to their border.
REGIONS = ("outside", "other tissue", "liver", "kidney cortex", "vessel border", "diaphragm border")
JUDGED = REGIONS[2:]  # what readers of liver ultrasound look at (paper, Data section)
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the pixels, in deletion and insertion


def readable(low: float) -> bool:
    """Whether attributions may be read: the held-out AUC's lower bound lies above `READABLE_FROM`; NaN never does."""
    return bool(low > READABLE_FROM)


# ---------------------------------------------------------------- tissue


def regions(tissue: np.ndarray, codes: Mapping[str, int], border: int) -> np.ndarray:
    """Places in `REGIONS` of tissue codes (N, S, S) uint8: the regions that attributions are shared among.

    `codes` are by tissue: ``outside, liver, vessel, kidney_cortex, diaphragm`` are read; `border` is the half width in
    pixels of the band around a vessel or the diaphragm. Where bands meet, the diaphragm's is first.
    """
    from scipy import ndimage

    out = np.full(tissue.shape, REGIONS.index("other tissue"), np.uint8)
    out[tissue == codes["liver"]] = REGIONS.index("liver")
    out[tissue == codes["kidney_cortex"]] = REGIONS.index("kidney cortex")
    for name in ("vessel", "diaphragm"):
        band = ndimage.maximum_filter(tissue == codes[name], size=(1, 2 * border + 1, 2 * border + 1))
        out[band] = REGIONS.index(f"{name} border")
    out[tissue == codes["outside"]] = REGIONS.index("outside")
    return out


def shares(values: np.ndarray, parts: np.ndarray) -> pd.DataFrame:
    """Where smoothed attributions (N, S, S) lie among `parts` (N, S, S) uint8 from `regions`.

    One row per image and region other than outside: ``image`` (row of `values`), ``region``, ``area`` and ``share``
    (of the pixels and of the absolute attribution inside the sector, in [0, 1]; areas of an image add up to 1),
    ``ratio`` (share over area; NaN where the image lacks the region), ``net`` (sum of the attribution, log-odds),
    ``peak`` (the largest absolute attribution inside the sector lies here: the pointing game).
    """
    rows = []
    for i, (value, part) in enumerate(zip(np.asarray(values, dtype=np.float64), parts, strict=True)):
        inside = part > 0
        if not inside.any():
            raise ValueError(f"image {i}: expected pixels inside the sector, found none; check its tissue mask.")
        strength = np.where(inside, np.abs(value), 0.0)
        total, peak = strength.sum(), part.flat[strength.argmax()]
        for code, name in enumerate(REGIONS[1:], start=1):
            here = part == code
            area, share = here.sum() / inside.sum(), strength[here].sum() / total if total > 0 else 0.0
            ratio = share / area if area > 0 else np.nan
            rows.append((i, name, area, share, ratio, value[here].sum(), peak == code and total > 0))
    return pd.DataFrame(rows, columns=["image", "region", "area", "share", "ratio", "net", "peak"])


def summarise_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of `shares` over images, one per patient, with Student t intervals over them; one row per region.

    Columns ``region, n`` (images that hold it), ``area, share`` (means), ``ratio, low, high`` (mean of the images'
    ratios), ``net`` (mean log-odds), ``peaks`` and ``peaks_by_area`` (how often the largest attribution lies here, and
    how often a point thrown at random would, both in [0, 1]).
    """
    rows = []
    for name, part in table.groupby("region", sort=False):
        ratios, mean = part.loc[part["area"] > 0, "ratio"], part[["area", "share", "net", "peak"]].mean()
        middle = statistics.over_folds(ratios)
        rows.append((name, len(ratios), mean["area"], mean["share"], *middle, mean["net"], mean["peak"], mean["area"]))
    columns = ["region", "n", "area", "share", "ratio", "low", "high", "net", "peaks", "peaks_by_area"]
    return pd.DataFrame(rows, columns=columns)


def auc_over_patients(scores: pd.DataFrame) -> dict[str, Any]:
    """Image-level AUC of ``patient_id, label, score`` over patients: ``auc, low, high, n_patients``.

    NaN where the patients do not allow it: an AUC needs both classes, its interval two patients of each.
    """
    counts = scores.drop_duplicates("patient_id")["label"].value_counts()
    found = {"auc": np.nan, "low": np.nan, "high": np.nan, "n_patients": int(counts.sum())}
    if len(counts) == 2:
        found["auc"] = statistics.auc(scores["label"], scores["score"])
    if len(counts) == 2 and counts.min() > 1:
        interval = statistics.auc_interval(scores["label"], scores["score"], scores["patient_id"])
        found |= interval._asdict()
    return found


# ---------------------------------------------------------------- two maps of one image


def agreement(a: np.ndarray, b: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rank correlation of two sets of maps (N, S, S), smoothed alike, image by image: (N,) in [-1, 1].

    Pixels outside `inside` (N, S, S) bool do not count. 0 where a map is constant: it orders nothing.

    Examples
    --------
    >>> agreement(np.array([[[1.0, 2.0, 3.0]]]), np.array([[[2.0, 4.0, 9.0]]]))
    array([1.])
    """
    from scipy.stats import rankdata

    out = np.zeros(len(a))
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        kept = np.ones(x.shape, bool) if inside is None else inside[i]
        ranks = [rankdata(value[kept]) for value in (x, y)]
        if min(rank.std() for rank in ranks) > 0:
            out[i] = np.corrcoef(*ranks)[0, 1]
    return out


def pairwise(maps: Sequence[np.ndarray], inside: np.ndarray | None = None) -> np.ndarray:
    """Mean agreement of every pair of two or more maps, image by image: ``(N,)``."""
    return np.mean([agreement(a, b, inside) for a, b in itertools.combinations(maps, 2)], axis=0)


# ---------------------------------------------------------------- the classifier's own answer


def curves(
    score: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    baseline: np.ndarray,
    fractions: tuple[float, ...] = FRACTIONS,
) -> pd.DataFrame:
    """Deletion and insertion: how the log-odds move as the pixels that a map ranks first are taken away or put in.

    `score` gives the log-odds ``(n,)`` of images ``(n, S, S)`` uint8. Maps (N, S, S) are by name, positive speaks for
    fatty; pixels are ordered by how much they speak for the side of the `baseline` (S, S) uint8, which stands for a
    pixel that is taken away, on which the classifier puts the image. `fractions` of the pixels go from 0 to 1.

    Columns ``map, mode`` (deletion, insertion), ``image, fraction, kept``: log-odds on the image's side of the
    baseline, so that deletion starts where insertion ends. A good map makes deletion fall and insertion rise early.
    """
    ends = score(np.concatenate([images, baseline[None]]))
    side, origin = np.where(ends[:-1] >= ends[-1], 1.0, -1.0), ends[-1]
    rows = []
    for name, values in maps.items():
        for i, image in enumerate(images):
            order = np.argsort(-side[i] * np.asarray(values[i], dtype=np.float64), axis=None, kind="stable")
            deleted, inserted = (_steps(*pair, order, fractions) for pair in ((image, baseline), (baseline, image)))
            out = side[i] * (score(np.concatenate([deleted, inserted])) - origin)
            for mode, part in zip(("deletion", "insertion"), np.split(out, 2), strict=True):
                rows += [(name, mode, i, fraction, value) for fraction, value in zip(fractions, part, strict=True)]
    return pd.DataFrame(rows, columns=["map", "mode", "image", "fraction", "kept"])


def _steps(start: np.ndarray, end: np.ndarray, order: np.ndarray, fractions: tuple[float, ...]) -> np.ndarray:
    """`start` with more and more of its pixels replaced by those of `end`, (fractions, S, S) uint8."""
    out = np.repeat(start[None], len(fractions), axis=0)
    for step, fraction in zip(out, fractions, strict=True):
        places = order[: round(fraction * order.size)]
        step.flat[places] = end.flat[places]
    return out


def curve_gain(table: pd.DataFrame, judged: str, reference: str) -> pd.DataFrame:
    """Area between the curves of two maps: positive where `judged` finds what moves the classifier.

    Columns ``mode, n`` (images), ``gain, low, high``: mean difference of the areas under the curves in log-odds,
    reference minus judged for deletion and the reverse for insertion, with a Student t interval over images.
    """
    area = table.groupby(["map", "mode", "image"]).apply(
        lambda part: np.trapezoid(part["kept"], part["fraction"]), include_groups=False
    )
    rows = []
    for mode, sign in (("deletion", -1.0), ("insertion", 1.0)):
        gain = sign * (area[judged, mode] - area[reference, mode])
        rows.append((mode, len(gain), *statistics.over_folds(gain)))
    return pd.DataFrame(rows, columns=["mode", "n", "gain", "low", "high"])
