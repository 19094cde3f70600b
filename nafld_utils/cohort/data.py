"""What a cohort is: two tables and an array; and what no study should be run on.

Contract: ``images`` has one row per image and row ``i`` describes ``pixels[i]``; ``patients`` has one row per patient.
Bad input raises a ValueError of one sentence that names the source and the patient, what was expected, what was found
and what to do. Results are of revision ``cohort``: raise that when they change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.images import Ragged


def image_id(patient: int, frame: int) -> str:
    """Name of a frame, counted from 0: ``p003_f00``."""
    return f"p{patient:03d}_f{frame:02d}"


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order, in hex."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def spread(n: int, k: int | None) -> np.ndarray:
    """Places of `k` of `n` images, ascending, spread evenly from first to last (one: the middle); None or fewer: all.

    Examples
    --------
    >>> spread(10, 3).tolist(), spread(10, 1).tolist(), spread(2, 3).tolist()
    ([0, 4, 9], [4], [0, 1])
    """
    if k is None or k >= n:
        return np.arange(n)
    return np.rint(np.linspace(0, n - 1, k) if k > 1 else np.array([(n - 1) / 2])).astype(int)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Images, patients and pixels of one cohort.

    Attributes
    ----------
    images : pandas.DataFrame
        One row per image: ``image_id`` str, ``patient_id`` int, ``label`` int (0 or 1), ``grade`` float (percent of
        hepatocytes with fatty infiltration; NaN where not known), ``sha256`` str of the image's pixels.
    patients : pandas.DataFrame
        One row per patient, ascending: ``patient_id``, ``label``, ``grade``.
    pixels : (N, H, W) uint8 ndarray or images.Ragged
        Grey levels 0..255 at original spacing; row ``i`` belongs to row ``i`` of `images`. Ragged where sizes differ.
    provenance : mapping
        ``kind`` ("published file", "same content", "other content" or "simulated"), ``text`` (one sentence for
        reports), ``sha256`` (of all decoded pixels, in hex), ``format`` ("folder" of a folder of images),
        ``labels`` of a folder's table ("names" or "numbers"), ``model`` ("phantom" of a folder that this study's
        simulator wrote).
    masks : (N, H, W) uint8 ndarray or None
        Tissue codes of simulated images (`phantom.TISSUES`); None for real ones.
    folds : pandas.DataFrame or None
        ``patient_id, fold`` where the cohort states its own folds.
    sources : pandas.DataFrame or None
        ``image_id, patient, file``: the user's own names in a folder's table, safe to open in a spreadsheet; ``row``
        of the table, counted from the header as 1.
    file_tags : pandas.DataFrame or None
        ``image_id, file_says``: what each image file says of its grey levels, e.g. ``format: PNG; mode: L``.
    """

    images: pd.DataFrame
    patients: pd.DataFrame
    pixels: Any
    provenance: Mapping[str, Any]
    masks: np.ndarray | None = None
    folds: pd.DataFrame | None = None
    sources: pd.DataFrame | None = None
    file_tags: pd.DataFrame | None = None

    @property
    def frames(self) -> np.ndarray:
        """View of the pixels as (patients, frames, H, W) uint8, patients in the order of the table.

        ValueError: patients have different numbers of images, their rows are not contiguous, or sizes differ.
        """
        if isinstance(self.pixels, Ragged):
            raise ValueError(
                "frames: expected images of one size, found several; use pixels with the images table instead."
            )
        patient = self.images["patient_id"].to_numpy()
        counts = self.images.groupby("patient_id", sort=False).size()
        even = counts.min() == counts.max()
        if not even or not np.array_equal(patient, np.repeat(self.patients["patient_id"], counts.iloc[0])):
            raise ValueError(
                f"frames: expected one number of consecutive images for every patient, found {counts.min()} to"
                f" {counts.max()}; use pixels with the images table instead."
            )
        return self.pixels.reshape(len(counts), int(counts.iloc[0]), *self.pixels.shape[1:])

    def subset_frames(self, k: int | None) -> Cohort:
        """Cohort of `k` images of every patient as `spread` chooses; ids, hashes and provenance stay the whole's."""
        if k is None:
            return self
        counts = self.images.groupby("patient_id", sort=False).size()
        if counts.max() < k:
            raise ValueError(
                f"cohort.frames_per_patient is {k}, expected at most the images of one patient, found"
                f" {counts.max()} for patient {counts.idxmax()}, who has most; lower it or use null."
            )
        groups = self.images.reset_index(drop=True).groupby("patient_id", sort=False).indices
        keep = np.concatenate([place[spread(len(place), k)] for place in groups.values()])
        masks = None if self.masks is None else self.masks[keep]
        images = self.images.iloc[keep].reset_index(drop=True)
        return replace(self, images=images, pixels=self.pixels[keep], masks=masks)


def tables(
    patient: Iterable[int], frame: Iterable[int], label: Any, grade: Any, sha256: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``images`` and ``patients`` of a cohort, from one value per image, patients in order."""
    names = [image_id(p, f) for p, f in zip(patient, frame, strict=True)]
    values = {"patient_id": patient, "label": label, "grade": grade, "sha256": sha256}
    images = pd.DataFrame({"image_id": names, **values})
    return images, images[["patient_id", "label", "grade"]].drop_duplicates().reset_index(drop=True)


def from_arrays(
    frames: np.ndarray,
    grade: np.ndarray,
    label: np.ndarray,
    provenance: Mapping[str, Any],
    masks: np.ndarray | None = None,
) -> Cohort:
    """Cohort of patients 1..P, unchecked: `frames`, `masks` (P, F, H, W) uint8; `grade` (P,) percent; `label` (P,).

    The pixels' ``sha256`` is added to `provenance`.
    """
    n_patients, n_frames = frames.shape[:2]
    pixels = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
    images, patients = tables(
        np.repeat(np.arange(1, n_patients + 1), n_frames),
        np.tile(np.arange(n_frames), n_patients),
        np.repeat(np.asarray(label, dtype=np.int64), n_frames),
        np.repeat(np.asarray(grade, dtype=np.float64), n_frames),
        [array_sha256(image) for image in pixels],
    )
    masks = None if masks is None else np.ascontiguousarray(masks).reshape(pixels.shape)
    return Cohort(images, patients, pixels, {**provenance, "sha256": array_sha256(pixels)}, masks)


def validate(cohort: Cohort, fat_threshold: float = 5.0, source: str = "cohort") -> None:
    """Refuse a .mat file's cohort that no study should be run on; `source` is the file that the message names.

    Class 1 starts at `fat_threshold` percent. One class only, a frame of one grey level, or a frame under two patients
    is refused too; that ids, labels and grades are one per patient the file's own structure sees to.
    """
    patients, images = cohort.patients, cohort.images
    against = patients[(patients["grade"] >= fat_threshold) != (patients["label"] == 1)]
    if len(against):
        row = against.iloc[0]
        raise ValueError(
            f"{source}: expected class 1 exactly where fat is at least {fat_threshold:g} percent, found class"
            f" {row['label']:.0f} with fat {row['grade']:g} for patient {row['patient_id']:.0f}; correct the file or"
            " cohort.fat_threshold."
        )
    if patients["label"].nunique() != 2:
        only = patients["label"].unique().tolist()
        raise ValueError(f"{source}: expected patients of both classes, found class {only} only; add the other class.")
    flat = cohort.pixels.reshape(len(images), -1)
    constant = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(constant):
        name, level = images["image_id"].iloc[constant[0]], cohort.pixels[constant[0]].flat[0]
        raise ValueError(
            f"{source}: expected an ultrasound image, found one grey level ({level}) in the whole of"
            f" {name} ({len(constant)} such frames); remove it."
        )
    owners = images.groupby("sha256")["patient_id"].unique()
    shared = owners[owners.str.len() > 1]
    if len(shared):
        a, b = sorted(shared.iloc[0])[:2]
        one, other = patients.set_index("patient_id")["label"].loc[[a, b]]
        differ = "their classes differ, so find out whose they are"
        remedy = "merge the patients or remove the copies" if one == other else differ
        raise ValueError(
            f"{source}: expected every frame under one patient, found one under patients {a} and {b} ({len(shared)}"
            f" such frames); {remedy}."
        )


def duplicates(cohort: Cohort) -> pd.DataFrame:
    """Frames that repeat another frame of the same patient, pixel for pixel, as a table of one row per group.

    Columns are ``patient_id, label, n`` (frames in the group), ``image_ids``.
    """
    groups = cohort.images.groupby("sha256", sort=False)
    table = groups.agg(
        patient_id=("patient_id", "first"),
        label=("label", "first"),
        n=("label", "size"),
        image_ids=("image_id", ", ".join),
    )
    return table[table["n"] > 1].reset_index(drop=True)
