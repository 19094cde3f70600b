"""A cohort of labelled images: load it, find or download it, validate it, say where it comes from.

Contract: a cohort is two tables and an array. ``images`` has one row an image and row ``i`` describes ``pixels[i]``;
``patients`` has one row a patient. "Ten frames a patient" is a rule of the .mat adapter alone. Bad input raises a
ValueError of one sentence that names the file and the patient, what was expected, what was found and what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, cohort_files, cohort_folder, download, pixel_store

if TYPE_CHECKING:
    from nafld_utils.params import CohortSettings

REVISION = ("cohort", 1)
KNOWN_CONTENT = "fcc3390f7541d40d1039761cbf09b0625a0d69240295bd8719f5a8f983dc6776"  # SHA-256 of its decoded array
CITATION = "Byra et al. 2018, Dataset of B-mode fatty liver ultrasound images, doi 10.5281/zenodo.1009146, CC BY 4.0"
IMAGE_COLUMNS = ("image_id", "patient_id", "label", "grade", "sha256")
PATIENT_COLUMNS = ("patient_id", "label", "grade")


def image_id(patient: int, frame: int) -> str:
    """Name of a frame, counted from 0.

    Examples
    --------
    >>> image_id(3, 0)
    'p003_f00'
    """
    return f"p{patient:03d}_f{frame:02d}"


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order, in hex."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


@dataclass(frozen=True, eq=False)
class Cohort:
    """Images, patients and pixels of one cohort.

    Attributes
    ----------
    images : pandas.DataFrame
        One row an image: ``image_id`` str, ``patient_id`` int, ``label`` int (0 or 1), ``grade`` float (percent of
        hepatocytes with fatty infiltration; NaN where not known), ``sha256`` str of the image's pixels.
    patients : pandas.DataFrame
        One row a patient, ascending: ``patient_id``, ``label``, ``grade``.
    pixels : (N, H, W) uint8 ndarray or pixel_store.Ragged
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
        ``image_id, patient, file, row``: names in a folder's table, and the row that has them.
    """

    images: pd.DataFrame
    patients: pd.DataFrame
    pixels: Any
    provenance: Mapping[str, Any]
    masks: np.ndarray | None = None
    folds: pd.DataFrame | None = None
    sources: pd.DataFrame | None = None

    @property
    def frames(self) -> np.ndarray:
        """View of the pixels as (patients, frames, H, W) uint8, patients in the order of the table.

        Raises
        ------
        ValueError
            Patients have different numbers of images, their rows are not contiguous, or sizes differ.
        """
        if isinstance(self.pixels, pixel_store.Ragged):
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
        """Cohort of `k` images of every patient, spread evenly from the first to the last (one: the middle one).

        Parameters
        ----------
        k : int or None
            Images a patient; None keeps all, and a patient with fewer keeps theirs. Image ids, hashes and provenance
            stay those of the whole cohort.

        Raises
        ------
        ValueError
            Every patient has fewer images.
        """
        if k is None:
            return self
        counts = self.images.groupby("patient_id", sort=False).size()
        if counts.max() < k:
            raise ValueError(
                f"cohort.frames_per_patient is {k}, expected at most the images of a patient, found {counts.max()} for"
                f" patient {counts.idxmax()}, who has most; lower it or use null."
            )
        groups = self.images.reset_index(drop=True).groupby("patient_id", sort=False).indices
        keep = np.concatenate([place[cohort_folder.spread(len(place), k)] for place in groups.values()])
        return replace(
            self,
            images=self.images.iloc[keep].reset_index(drop=True),
            pixels=self.pixels[keep],
            masks=None if self.masks is None else self.masks[keep],
        )


def from_arrays(
    frames: np.ndarray,
    grade: np.ndarray,
    label: np.ndarray,
    provenance: Mapping[str, Any],
    masks: np.ndarray | None = None,
) -> Cohort:
    """Build a cohort from patients' frames; nothing is checked (see `validate`).

    Parameters
    ----------
    frames : (P, F, H, W) uint8 ndarray
        Frames of patients 1..P.
    grade : (P,) array
        Percent of hepatocytes with fatty infiltration.
    label : (P,) int array
        0 or 1.
    provenance : mapping
        ``kind`` and ``text``; ``sha256`` of the pixels is added.
    masks : (P, F, H, W) uint8 ndarray, optional
        Tissue codes.
    """
    n_patients, n_frames = frames.shape[:2]
    images = pd.DataFrame(
        {
            "patient_id": np.repeat(np.arange(1, n_patients + 1), n_frames),
            "label": np.repeat(np.asarray(label, dtype=np.int64), n_frames),
            "grade": np.repeat(np.asarray(grade, dtype=np.float64), n_frames),
        }
    )
    pixels = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
    masks = None if masks is None else np.ascontiguousarray(masks).reshape(pixels.shape)
    return _assemble(images, pixels, provenance, masks)


def _assemble(
    images: pd.DataFrame, pixels: np.ndarray, provenance: Mapping[str, Any], masks: np.ndarray | None = None
) -> Cohort:
    """Cohort of images in the order of their patients; adds ids and hashes."""
    number = images.groupby("patient_id").cumcount()
    images = images.assign(sha256=[array_sha256(image) for image in pixels])
    images.insert(0, "image_id", [image_id(p, f) for p, f in zip(images["patient_id"], number, strict=True)])
    patients = images[list(PATIENT_COLUMNS)].drop_duplicates().reset_index(drop=True)
    return Cohort(images, patients, pixels, {**provenance, "sha256": array_sha256(pixels)}, masks)


# ---------------------------------------------------------------- reading


def load(
    path: str | Path,
    class_names: tuple[str, str] = ("healthy", "fatty"),
    fat_threshold: float = 5.0,
    work: Path | None = None,
    keep: int | None = None,
) -> Cohort:
    """Read and validate a cohort from a .mat file or from a folder of images with a table.

    Parameters
    ----------
    path : str or Path
        A MATLAB 5 file with a 1 x P struct array ``data`` of fields ``id`` (1..P), ``class`` (0 or 1), ``fat``
        (percent of hepatocytes) and ``images`` ((10, H, W) uint8); or a folder of `cohort_folder`: images and a table
        of the columns ``image`` (file in the folder), ``patient`` (any text), ``label`` (0, 1 or a class name) and, if
        known, ``grade`` and ``fold``.
    class_names : (str, str)
        Names of label 0 and label 1.
    fat_threshold : float
        Class 1 starts at this fat percent; read for a .mat file.
    work : Path, optional
        Folder into which a folder's images are decoded, to be read through a memory map; else they are in memory.
    keep : int, optional
        Images a patient that are read of a folder (see `Cohort.subset_frames`); all by default.

    Returns
    -------
    Cohort
        Patients ascending by id, images of a patient in file order.

    Raises
    ------
    ValueError
        What the file or folder is, what was expected and what was found; of a folder everything that is wrong, a line
        a row (`cohort_table.CohortError`).
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(cohort_folder.read(path, class_names, work, keep))
    if not path.is_file():
        raise ValueError(f"{path}: expected a .mat file or a folder of images, found nothing there; correct the path.")
    if path.suffix.lower() != ".mat":
        raise ValueError(
            f"{path}: expected a .mat file or a folder of images, found another kind of file; see the README."
        )
    frames, label, fat, mark = cohort_files.read_mat(path)
    found = from_arrays(frames, fat, label, {})
    found = replace(found, provenance=_provenance(path, found.provenance["sha256"], mark))
    validate(found, fat_threshold, str(path))
    return found


def open_array_folder(folder: str | Path, class_names: tuple[str, str] = ("healthy", "fatty")) -> Cohort:
    """Open a folder whose pixels lie in one array, in place: nothing is copied and nothing but hashes is computed.

    Parameters
    ----------
    folder : str or Path
        Written by `phantom_folder.write`; its rows are in the order of the patients.
    class_names : (str, str)
        Names of label 0 and label 1.

    Raises
    ------
    ValueError
        As `load`.
    """
    return _of_folder(cohort_folder.open_in_place(Path(folder), class_names))


def _of_folder(found: cohort_folder.Folder) -> Cohort:
    """Cohort of a folder; the hash of its content is over the hashes of its images, so that it needs no second read."""
    sha256 = hashlib.sha256("\n".join(found.images["sha256"]).encode()).hexdigest()
    provenance = {"kind": "other content", "text": f"{found.text[:-1]} (content {sha256[:12]})."}
    if found.mark is not None:
        text = f"{found.mark[cohort_folder.MARK]} {provenance['text']}"
        provenance = {"kind": "simulated", "text": text, "model": found.mark.get("model", "")}
    provenance |= {"sha256": sha256, "format": "folder", "labels": "numbers" if found.numbered else "names"}
    patients = found.images[list(PATIENT_COLUMNS)].drop_duplicates().reset_index(drop=True)
    return Cohort(found.images, patients, found.pixels, provenance, found.masks, found.folds, found.sources)


def _provenance(path: Path, sha256: str, mark: str | None) -> dict[str, Any]:
    """Where the content comes from, as far as it can be proved: mark, record's checksum, decoded array's hash."""
    if mark is not None:
        return {"kind": "simulated", "text": mark, "sha256": sha256}
    record = download.read_record(path)
    if record is not None and download.matches(path, record["checksum"]):
        text = (
            f"{path.name} as published under doi {record['doi']} (the record's checksum {record['checksum']} matches)."
        )
        return {"kind": "published file", "text": f"{text} {CITATION}.", "sha256": sha256}
    if sha256 == KNOWN_CONTENT:
        text = f"{path.name} holds the frames of the published data set (decoded array {sha256[:12]}), not its bytes."
        return {"kind": "same content", "text": f"{text} {CITATION}.", "sha256": sha256}
    text = f"{path.name} holds other frames than the published data set (decoded array {sha256[:12]})."
    return {"kind": "other content", "text": text, "sha256": sha256}


# ---------------------------------------------------------------- checking


def validate(cohort: Cohort, fat_threshold: float = 5.0, source: str = "cohort") -> None:
    """Refuse a cohort that no study should be run on.

    Parameters
    ----------
    cohort : Cohort
        What was read.
    fat_threshold : float
        Class 1 starts at this fat percent; compared where the grade is known.
    source : str
        File named in the message.

    Raises
    ------
    ValueError
        A patient with two labels or grades; a class that contradicts the grade; one class only; a frame of one grey
        level; a frame under two patients.
    """
    patients, images = cohort.patients, cohort.images
    twice = patients.loc[patients["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise ValueError(
            f"{source}: expected one label and grade a patient, found several for patient {twice.iloc[0]}; correct"
            " the table."
        )
    known = patients[patients["grade"].notna()]
    against = known[(known["grade"] >= fat_threshold) != (known["label"] == 1)]
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
    constant = [i for i, image in enumerate(pixel_store.stream(cohort.pixels)) if image.min() == image.max()]
    if constant:
        name, level = images["image_id"].iloc[constant[0]], cohort.pixels[constant[0]].flat[0]
        raise ValueError(
            f"{source}: expected an ultrasound image, found one grey level ({level}) in the whole of"
            f" {name} ({len(constant)} such frames); remove it."
        )
    owners = images.groupby("sha256")["patient_id"].unique()
    shared = owners[owners.str.len() > 1]
    if len(shared):
        a, b = sorted(shared.iloc[0])[:2]
        raise ValueError(
            f"{source}: expected every frame under one patient, found one under patients {a} and {b} ({len(shared)}"
            " such frames); merge the patients or remove the copies."
        )


def duplicates(cohort: Cohort) -> pd.DataFrame:
    """Frames that repeat another frame of the same patient, pixel for pixel.

    Returns
    -------
    pandas.DataFrame
        One row a group of equal frames: ``patient_id, label, n`` (frames in the group), ``image_ids``.
    """
    rows = [
        (group["patient_id"].iloc[0], group["label"].iloc[0], len(group), ", ".join(group["image_id"]))
        for _, group in cohort.images.groupby("sha256", sort=False)
        if len(group) > 1
    ]
    return pd.DataFrame(rows, columns=["patient_id", "label", "n", "image_ids"])


# ---------------------------------------------------------------- writing and finding


def write_mat(path: str | Path, cohort: Cohort) -> Path:
    """Write a cohort in the structure of the published .mat file, atomically and uncompressed.

    Parameters
    ----------
    path : str or Path
        File to write.
    cohort : Cohort
        Ten images a patient, ids 1..P. Of a simulated cohort the file carries a mark that `load` reads back.

    Raises
    ------
    ValueError
        Patients have another number of images, or ids that are not 1..P.
    """
    from scipy import io

    frames, patients, n_frames = cohort.frames, cohort.patients, cohort_files.FRAMES_PER_PATIENT
    if frames.shape[1] != n_frames or patients["patient_id"].tolist() != list(range(1, len(patients) + 1)):
        raise ValueError(
            f"{path}: expected {n_frames} images of each of patients 1 to {len(patients)}, found"
            f" {frames.shape[1]} a patient and ids from {patients['patient_id'].min()} to"
            f" {patients['patient_id'].max()}; this format holds no other cohort."
        )
    data = np.empty((1, len(frames)), dtype=[(name, object) for name in cohort_files.FIELDS])
    for place, row in enumerate(patients.itertuples(index=False)):
        whole = float(row.grade).is_integer()
        data[0, place] = (
            np.array([[row.patient_id]], dtype=np.uint8 if len(frames) < 256 else np.uint16),
            np.array([[row.label]], dtype=np.uint8),
            np.array([[row.grade]], dtype=np.uint8 if whole else np.float64),
            frames[place],
        )
    content: dict[str, Any] = {"data": data}
    if cohort.provenance.get("kind") == "simulated":
        content[cohort_files.MARK] = cohort.provenance["text"]
    with artifacts.replacing(path) as temporary, open(temporary, "wb") as handle:
        io.savemat(handle, content, do_compression=False)
    return Path(path)


def find(settings: CohortSettings, data_root: str | Path, fetch: bool = True) -> Path:
    """Where the cohort is: ``cohort.path``, else the one .mat file in `data_root`, else downloaded from its DOI.

    Parameters
    ----------
    settings : CohortSettings
        Read: ``path, doi``.
    data_root : str or Path
        Folder of raw cohorts, ``data/raw``.
    fetch : bool
        Whether to download; else a missing cohort is an error.

    Returns
    -------
    pathlib.Path
        File or folder for `load`.

    Raises
    ------
    ValueError
        The path does not exist, several .mat files lie in `data_root`, or there is none and it cannot be downloaded;
        the sentence says which file to put where.
    """
    data_root = Path(data_root)
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if not path.exists():
            raise ValueError(
                f"cohort.path: expected a .mat file or a folder, found nothing at {path}; correct the path."
            )
        return path
    found = sorted(data_root.glob("*.mat"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{data_root}: expected one .mat file, found {names}; name the one to use with DATA=<path>.")
    if found:
        return found[0]
    if not fetch:
        raise ValueError(
            f"{data_root}: expected the cohort's .mat file, found none; put it there or name it with DATA=<path>."
        )
    return download.fetch(settings.doi, data_root, ".mat")


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Provenance saved as JSON beside a stored cohort."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
