"""What a cohort holds before anything is decoded: patients, classes and images, from its table or file alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import artifacts, images
from nafld_utils.artifacts import Run
from nafld_utils.cohort import folder_files, folder_table, image_folder, loading
from nafld_utils.cohort.data import spread
from nafld_utils.cohort.one_person import People

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
LOOKED_AT = 50  # headers of image files that are read for the mean size (choice)


class Outline(NamedTuple):
    """A cohort from outside.

    ``images``: one row per image that the run uses, ``patient_id, label`` and, where the cohort gives them, ``fold``;
    ``dropped``: what is left out and why, in words; ``pixels``: of all used images together, about.
    """

    images: pd.DataFrame
    dropped: list[str]
    pixels: int


def outlined(run: Run) -> Outline:
    """What a run's own cohort, a file or folder, holds; of a folder no image is decoded.

    Raises
    ------
    ValueError
        The cohort is not there or its table is wrong (`cohort.CohortError`).
    """
    s = run.settings.cohort
    path = loading.find(s, run.data, fetch=False)
    if path.is_dir():
        whole, dropped, shape = _of_folder(run, path)
    else:
        label, shape = loading.labels(path, path.stat().st_mtime_ns)
        n, dropped = loading.FRAMES_PER_PATIENT, []
        whole = pd.DataFrame({"patient_id": np.repeat(np.arange(len(label)) + 1, n), "label": np.repeat(label, n)})
    by_patient = whole.groupby("patient_id")["label"]
    place, size = by_patient.cumcount(), by_patient.transform("size")
    k = s.frames_per_patient
    used = whole[[p in spread(n, k) for p, n in zip(place, size, strict=True)]].reset_index(drop=True)
    if len(used) < len(whole):
        dropped.append(f"{len(whole) - len(used)} of {len(whole)} images by cohort.frames_per_patient {k}")
    return Outline(used, dropped, int(len(used) * np.prod(shape)))


def _of_folder(run: Run, folder: Path) -> tuple[pd.DataFrame, list[str], tuple[float, float]]:
    s, in_array = run.settings.cohort, (folder / folder_files.PIXELS).is_file()
    source = folder_files.find_table(folder)
    table, problems = folder_table.read_table(source, s.class_names, not in_array, People.of(s))
    if problems:
        raise folder_table.CohortError(source, problems, len(table))
    rows = table.assign(patient_id=image_folder.patient_ids(table["patient"], s.patient_numbers, problems))[
        ["patient_id", "label", "fold"]
    ]
    rows = rows.sort_values("patient_id", kind="stable")  # the order in which folds are drawn
    if rows["fold"].isna().all():
        rows = rows.drop(columns="fold")
    labels, patients = folder_table.of_others(source, s.leave_out)
    dropped = [f"{len(labels)} images of {patients.nunique()} patients by cohort.leave_out"] * bool(len(labels))
    if in_array:
        return rows, dropped, np.load(folder / folder_files.PIXELS, mmap_mode="r", allow_pickle=False).shape[1:]
    named = {Path(name.replace("\\", "/")).name.casefold() for name in [*table["image"]]}
    found = (path for path in folder.rglob("*") if path.suffix.casefold() in SUFFIXES and path.is_file())
    files = [path for path in found if not artifacts.is_litter(path.relative_to(folder))]
    unnamed = sum(path.name.casefold() not in named for path in files) - len(labels)
    dropped += [f"{unnamed} image file{'s' * (unnamed > 1)} that {source.name} does not name"] * (unnamed > 0)
    shapes = [*_shapes(folder, table["image"])] or [(0, 0)]
    return rows, dropped, tuple(np.mean(shapes, axis=0))


def _shapes(folder: Path, names: pd.Series) -> Iterator[tuple[int, int]]:
    """Sizes of some images, evenly from all; one that cannot be read is notebook 01's matter."""
    for name in names.iloc[:: max(1, len(names) // LOOKED_AT)]:
        try:
            yield images.read_header(folder / name).shape
        except (images.ImageFault, OSError, ValueError):
            continue
