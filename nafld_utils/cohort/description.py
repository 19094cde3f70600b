"""Describe a cohort before anything is learnt from it: counts, likeness of frames, echogenicity over depth and angle.

Contract: tables and arrays in, tidy tables out. Statistics over patients use one value per patient, since frames of one
patient are near-duplicates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.cohort.data import spread
from nafld_utils.images import release

REVISION = ("describe", 1)
# Percent of hepatocytes: no, mild, moderate, severe steatosis.
GRADE_BANDS = ("below 5", "5 to 33", "above 33 to 66", "above 66 to 100")
PAIRED = 200  # patients (choice): pairs of different patients grow with the square


def summary_table(
    images: pd.DataFrame,
    patients: pd.DataFrame,
    class_names: tuple[str, str],
    grade: str = "fat (%)",
    bands: bool = True,
) -> pd.DataFrame:
    """Patients, images and grades of each class and of all: the paper's Supplementary Table 1 as far as data allow.

    Parameters
    ----------
    images, patients : pandas.DataFrame
        A cohort's tables.
    class_names : (str, str)
        Names of label 0 and 1.
    grade : str
        What the grade is, with its unit; ``-`` stands where none is known.
    bands : bool
        Whether the grade is the fat percent that `GRADE_BANDS` divides; the patients of each are then counted.
    """
    rows = {}
    for name, chosen in [*((n, [i]) for i, n in enumerate(class_names)), ("all", [0, 1])]:
        people, pictures = patients[patients["label"].isin(chosen)], images[images["label"].isin(chosen)]
        known = people["grade"].dropna()
        row = {"patients": len(people), "images": len(pictures), "unique images": pictures["sha256"].nunique()}
        row[f"{grade}, median"] = f"{known.median():g}" if len(known) else "-"
        row[f"{grade}, range"] = f"{known.min():g} to {known.max():g}" if len(known) else "-"
        if bands:
            found = grade_band(known)
            row |= {f"fat {label} %": int((found == label).sum()) for label in GRADE_BANDS}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")


def grade_band(grade: pd.Series) -> pd.Series:
    """Which of `GRADE_BANDS` each grade (percent) lies in."""
    number = (grade >= 5).astype(int) + (grade > 33) + (grade > 66)
    return number.map(dict(enumerate(GRADE_BANDS)))


# ---------------------------------------------------------------- likeness of frames


def similarity(images: pd.DataFrame, pixels: np.ndarray, region: np.ndarray, step: int = 2) -> pd.DataFrame:
    """Pearson correlation of grey levels between images of one patient and between patients.

    `images` has ``patient_id``; `pixels` (N, H, W) uint8; `region` (H, W) bool, the pixels compared in all images; of
    every `step` rows and columns one is used, 2 is still finer than speckle. Returns ``pair`` ("same patient": every
    pair of the patient's images; "different patients": the middle images of two patients, of `PAIRED` patients spread
    over the table where there are more), ``patient_a, patient_b, correlation`` (-1 to 1).
    """
    keep = region[::step, ::step]

    def standard(places: np.ndarray) -> np.ndarray:
        rows = np.stack([pixels[place][::step, ::step][keep] for place in places]).astype(np.float32)
        rows -= rows.mean(axis=1, keepdims=True)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    groups = images.reset_index(drop=True).groupby("patient_id", sort=False).indices
    rows: list[tuple[str, int, int, float]] = []
    middle = np.empty((len(groups), int(keep.sum())), dtype=np.float32)
    for number, (patient, places) in enumerate(groups.items()):
        vectors = standard(places)  # one patient's at a time, so that memory does not grow with the images
        middle[number] = vectors[len(places) // 2]
        within = vectors @ vectors.T
        rows.extend(("same patient", patient, patient, r) for r in within[np.triu_indices(len(places), k=1)])
        release(pixels)
    names = np.array(list(groups))
    some = spread(len(names), PAIRED)
    between, names = middle[some] @ middle[some].T, names[some].tolist()
    rows.extend(
        ("different patients", names[a], names[b], between[a, b])
        for a, b in zip(*np.triu_indices(len(names), k=1), strict=True)
    )
    return pd.DataFrame(rows, columns=["pair", "patient_a", "patient_b", "correlation"])


# ---------------------------------------------------------------- echogenicity


def sector_geometry(region: np.ndarray) -> tuple[float, float, float]:
    """Row and column (pixels) of a sector's apex and half its opening angle (degrees), from its (H, W) bool region.

    The apex is where the least-squares lines of the straight parts of the edges meet. A region that does not widen
    downwards is refused.
    """
    rows = np.flatnonzero(region.any(axis=1))
    left = region[rows].argmax(axis=1)
    right = region.shape[1] - 1 - region[rows, ::-1].argmax(axis=1)
    n = min(int(left.argmin()), int(right.argmax()))  # rows above the corners
    straight = slice(n // 5, max(n - 2, n // 5 + 2))
    if n < 10:
        raise ValueError(
            f"region: expected a sector that widens downwards, found {n} widening rows; check the threshold."
        )
    (a, b), (c, d) = (np.polyfit(rows[straight], edge[straight], 1) for edge in (left - 0.5, right + 0.5))
    row = (d - b) / (a - c)
    return float(row), float(a * row + b), float(np.degrees(np.arctan(c) - np.arctan(a)) / 2)


def profiles(
    patients: pd.DataFrame, images: pd.DataFrame, pixels: np.ndarray, regions: np.ndarray, n_bins: int = 40
) -> pd.DataFrame:
    """Mean grey level over depth and over angle of a sector, one curve per patient, averaged over the images.

    `pixels` (N, H, W) uint8; `regions` (P, H, W) bool, the sector of each patient in the order of `patients`. Returns
    ``patient_id, label, kind`` ("depth": distance from the apex in pixels, central half of the angles; "lateral": angle
    from the axis in degrees, positive to the right, middle third of the depths), ``position, grey`` (0 to 255).
    """
    places = images.reset_index(drop=True).groupby("patient_id").indices
    curves = []
    for person, region in zip(patients.itertuples(index=False), regions, strict=True):
        mean = np.mean([pixels[i] for i in places[person.patient_id]], axis=0)
        release(pixels)
        row, column, half = sector_geometry(region)
        y, x = np.indices(region.shape)
        radius, angle = np.hypot(y - row, x - column), np.degrees(np.arctan2(x - column, y - row))
        deepest = radius[region].max()
        central = region & (np.abs(angle) < half / 2)
        # Two degrees off the edges, where the region's border is as thick as a pixel or three.
        middle = region & (radius > deepest / 3) & (radius < 2 * deepest / 3) & (np.abs(angle) < half - 2)
        curves.append((person, "depth", *_binned(radius[central], mean[central], (0.0, 360.0), n_bins)))
        curves.append((person, "lateral", *_binned(angle[middle], mean[middle], (-60.0, 60.0), n_bins)))
    return _tidy(curves)


def square_profiles(patients: pd.DataFrame, images: pd.DataFrame, squares: np.ndarray) -> pd.DataFrame:
    """Mean grey level over height and width of (N, S, S) uint8 images of one shape, one curve per patient.

    Returns ``patient_id, label, kind`` ("rows": from the top; "columns": from the left), ``position`` (percent of the
    side), ``grey`` (0 to 255).
    """
    places = images.reset_index(drop=True).groupby("patient_id").indices
    position = (np.arange(squares.shape[1]) + 0.5) * 100 / squares.shape[1]
    curves = []
    for person in patients.itertuples(index=False):
        mean = squares[places[person.patient_id]].mean(axis=0)
        curves += [(person, "rows", position, mean.mean(axis=1)), (person, "columns", position, mean.mean(axis=0))]
    return _tidy(curves)


def _tidy(curves: list[tuple[Any, str, np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Patient, kind, positions and grey levels of each curve as one table."""
    return pd.concat(
        [
            pd.DataFrame({"patient_id": p.patient_id, "label": p.label, "kind": kind, "position": x, "grey": grey})
            for p, kind, x, grey in curves
        ],
        ignore_index=True,
    )


def _binned(
    where: np.ndarray, grey: np.ndarray, span: tuple[float, float], n_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of bins of `where`, and the mean of `grey` in each; bins with fewer than 20 pixels are left out."""
    edges = np.linspace(*span, n_bins + 1)
    count, _ = np.histogram(where, edges)
    total, _ = np.histogram(where, edges, weights=grey)
    keep = count >= 20
    centre = (edges[:-1] + edges[1:]) / 2
    return centre[keep], total[keep] / count[keep]


def class_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean curve of each class with its 95 % Student t interval over patients.

    Parameters
    ----------
    curves : pandas.DataFrame
        ``curves`` of `cohort.likeness`: ``patient_id, label, kind, position, grey``.

    Returns
    -------
    pandas.DataFrame
        ``kind, label, position, grey, low, high, n_patients``, grey levels 0 to 255; positions that fewer than
        half of the class's patients have, or only one, are left out.
    """
    from scipy import stats

    size = curves.groupby(["kind", "label"])["patient_id"].transform("nunique")
    table = curves.assign(size=size).groupby(["kind", "label", "position"], as_index=False)
    out = table.agg(mean=("grey", "mean"), sd=("grey", "std"), n_patients=("grey", "size"), size=("size", "first"))
    out = out[(out["n_patients"] >= 2) & (out["n_patients"] * 2 >= out["size"])].rename(columns={"mean": "grey"})
    half = stats.t.ppf(0.975, out["n_patients"] - 1) * out["sd"] / np.sqrt(out["n_patients"])
    out = out.assign(low=out["grey"] - half, high=out["grey"] + half)
    return out[["kind", "label", "position", "grey", "low", "high", "n_patients"]].reset_index(drop=True)
