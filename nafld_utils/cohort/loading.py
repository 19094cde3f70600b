"""Read a cohort of labelled images: find or download it, load and validate it, say where it comes from.

Contract: a cohort is a .mat file of the published structure, ten frames per patient, or a folder of images with a table
(`image_folder`). Bad input raises a ValueError that names the file and the patient, what was expected, what was found
and what to do.
"""

from __future__ import annotations

import contextlib
import functools
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import artifacts
from nafld_utils.cohort import download, folder_files, folder_table, image_folder, one_person
from nafld_utils.cohort.data import Cohort, from_arrays, tables, validate
from nafld_utils.cohort.one_person import AS_WRITTEN, People
from nafld_utils.cohort.problems import CohortError, Problems, shown

if TYPE_CHECKING:
    from nafld_utils.params import CohortSettings

REVISION = ("cohort", 1)
KNOWN_CONTENT = "fcc3390f7541d40d1039761cbf09b0625a0d69240295bd8719f5a8f983dc6776"  # SHA-256 of its decoded array
CITATION = "Byra et al. 2018, Dataset of B-mode fatty liver ultrasound images, doi 10.5281/zenodo.1009146, CC BY 4.0"
FRAMES_PER_PATIENT = 10  # of the published .mat file
FIELDS = ("id", "class", "fat", "images")
_COMPRESSED = 15  # miCOMPRESSED of the MATLAB 5 format
MOST_BYTES = 4 * 2**30  # choice: of an unpacked .mat file, 25 times the published cohort
_HDF5, _HDF5_AT = b"\x89HDF\r\n\x1a\n", (512, 1024, 2048, 4096)
_NO_MATLAB = {  # how files begin that are named .mat and have no head of MATLAB
    "an empty file; get it again": rb"\Z",
    "a MATLAB v4 file, which holds no structs; open it in MATLAB and save the struct with save(..., 'data', '-v7')": (
        rb"(?s)(?:[\0-\x34]\0{3}.{8}[\0\1]\0{3}[\1-\x3f]\0{3}|\0\0[\3\4].{9}\0{3}[\0\1]\0{3}[\1-\x3f])[A-Za-z]"
    ),
    "a file of Octave's own format; save it there with save -v7": rb"# Created by Octave|Octave-1-[LB]",
    "an answer of a server in JSON; get the file itself": rb"\s*[{\[]",
    "no MATLAB file but text; get the file itself": rb"[\t\r\n -~]+\Z",
}
MARK = "simulated"  # variable beside `data` in a file written here: a simulated file never passes for a real one


def load(
    path: str | Path,
    class_names: tuple[str, str] = ("healthy", "fatty"),
    fat_threshold: float = 5.0,
    work: Path | None = None,
    keep: int | None = None,
    people: People = AS_WRITTEN,
) -> Cohort:
    """Read and validate a cohort from a .mat file or from a folder of images with a table (`cohort.image_folder`).

    Parameters
    ----------
    path : str or Path
        A MATLAB 5 file with a 1 x P struct array ``data`` of fields ``id`` (1..P), ``class`` (0 or 1), ``fat``
        (percent of hepatocytes) and ``images`` ((10, H, W) uint8); or a folder of images and a table of the columns
        ``image`` (file in the folder), ``patient`` (any text), ``label`` (0, 1 or a class name) and, if known,
        ``grade`` and ``fold``.
    class_names : (str, str)
        Names of label 0 and label 1.
    fat_threshold : float
        Class 1 starts at this fat percent; read for a .mat file.
    work : Path, optional
        Folder into which a folder's images are decoded, to be read through a memory map; else they are in memory.
    keep : int, optional
        Images per patient that are read of a folder (see `Cohort.subset_frames`); all by default.
    people : (str, str or None, str, str, sequence of str)
        Settings of ``cohort``: ``alike_names``; ``join``, the path of a CSV file of the columns ``patient, same_as``
        (ids of a .mat file are names too); and, for a folder, ``patient_numbers``, ``burned_in`` and ``leave_out``.

    Returns
    -------
    Cohort
        Patients ascending by id, images of a patient in file order.

    Raises
    ------
    ValueError
        What the file or folder is, what was expected and what was found; of a folder everything that is wrong, one
        line per row (`cohort.CohortError`).
    """
    path = Path(path)
    if path.is_dir():
        return image_folder.read(path, class_names, work, keep, people=People(*people))
    if not path.is_file():
        raise ValueError(f"{path}: expected a .mat file or a folder of images, found nothing there; correct the path.")
    with open(path, "rb") as handle:
        start = handle.read(1024)
    if path.suffix.lower() != ".mat":
        found = artifacts.file_kind(start) or "another kind of file; see the README"
        raise ValueError(f"{path}: expected a .mat file or a folder of images, found {found}.")
    frames, label, fat, mark = _read_mat(path)
    found = from_arrays(frames, fat, label, {})
    if People(*people).join:
        found = _joined(found, Path(people[1]).expanduser())
    validate(found, fat_threshold, str(path))
    provenance = _provenance(path, found.provenance["sha256"], mark)
    if len(found.patients) < len(frames):
        provenance["text"] += f" {len(frames)} patients were joined to {len(found.patients)}, as cohort.join says."
    return replace(found, provenance={**provenance, **found.provenance})


def _joined(found: Cohort, source: Path) -> Cohort:
    """Patients of a .mat file joined under the first of their ids, as the table `source` says."""
    problems = Problems()
    rows = found.images[["patient_id"]].assign(row=found.images["patient_id"])
    rows["patient"] = rows["patient_id"].astype(str)
    name = one_person.one_each(rows, "different", folder_table.read_joins(source), problems)
    images = found.images.assign(patient_id=name.astype("int64"))
    for column in ("label", "grade"):
        counts = images.groupby("patient_id")[column].nunique()
        for patient in counts.index[counts > 1]:
            problems.add(None, f"expected one {column} per person, found {counts[patient]} of patient {patient}")
    if problems:
        raise CohortError(source, problems)
    order = np.argsort(images["patient_id"], kind="stable")
    images = images.iloc[order].reset_index(drop=True)
    number = images.groupby("patient_id").cumcount()
    parts = [images[column] for column in ("label", "grade")]
    images, patients = tables(images["patient_id"], number, *parts, images["sha256"].tolist())
    return replace(found, images=images, patients=patients, pixels=found.pixels[order])


def _provenance(path: Path, sha256: str, mark: str | None) -> dict[str, str]:
    """Where the content comes from, as far as it can be proved: mark, record's checksum, decoded array's hash."""
    if mark is not None:
        return {"kind": "simulated", "text": mark}
    record = download.matching_record(path)
    if record is not None:
        doi, checksum = record["doi"], record["checksum"]
        text = f"The file as published under doi {doi} (the record's checksum {checksum} matches). {CITATION}."
        return {"kind": "published file", "text": text}
    if sha256 == KNOWN_CONTENT:
        text = f"The file holds the frames of the published data set (decoded array {sha256[:12]}), not its bytes."
        return {"kind": "same content", "text": f"{text} {CITATION}."}
    text = f"The file holds other frames than the published data set (decoded array {sha256[:12]})."
    return {"kind": "other content", "text": text}


def find(settings: CohortSettings, data_root: str | Path, fetch: bool = True) -> Path:
    """Where the cohort is: ``cohort.path``, else the one .mat file in `data_root`, else (`fetch`) downloaded.

    Where it is not, a ValueError says which file to put where.
    """
    data_root = Path(data_root)
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if not (path.is_file() or path.is_dir()):
            raise ValueError(
                f"cohort.path: expected a .mat file or a folder, found nothing at {path}; correct the path."
            )
        return path
    found = folder_files.mat_files(data_root)
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


# ---------------------------------------------------------------- .mat


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
    """Frames (P, 10, H, W) uint8 of patients 1..P, class (P,) int, fat (P,) in percent; mark of simulated patients."""
    data, mark = _read_struct(path)
    records = sorted((_record(path, place, record) for place, record in enumerate(data, start=1)), key=lambda r: r[0])
    ids, labels, fats, frames = zip(*records, strict=True)
    if list(ids) != list(range(1, len(ids) + 1)):
        odd = next(i for i, found in enumerate(ids, start=1) if i != found)
        raise ValueError(
            f"{path}: expected field id to run from 1 to {len(ids)}, each once, found {ids[odd - 1]} where {odd}"
            " belongs; correct the ids."
        )
    shapes = [images.shape[1:] for images in frames]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"{path}: expected frames of one size, found {shapes[0]} for patient 1 and {shapes[odd]} for patient"
            f" {ids[odd]}; bring them to one size."
        )
    return np.stack(frames), np.array(labels), np.array(fats), mark


@functools.lru_cache(maxsize=1)
def labels(path: Path, changed: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Class of each patient of a .mat file, (P,) int, and the shape of its frames; `changed` tells versions."""
    frames, label, _, _ = _read_mat(path)
    return label, frames.shape[2:]


def _read_struct(path: Path) -> tuple[np.ndarray, str | None]:
    """Records of variable ``data`` and the mark of a simulated file."""
    from scipy import io

    _refuse_others(path)
    _refuse_bomb(path)
    try:
        content = io.loadmat(path, variable_names=["data", MARK])
    except Exception as error:  # scipy's reader raises a dozen kinds, none of which names the file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path}: expected a MATLAB 5 file, found {path.stat().st_size} bytes that cannot be read ({reason}); it"
            " may be truncated, get it again."
        ) from None
    data = content.get("data")
    if data is None or data.dtype.names is None or data.size == 0:
        found = _variables(path) if data is None else f"{data.dtype} of shape {data.shape}"
        raise ValueError(
            f"{path}: expected a struct array `data` of patients, found {found}; take the published file or"
            " write one of its structure."
        )
    missing = [name for name in FIELDS if name not in data.dtype.names]
    if missing:
        raise ValueError(
            f"{path}: expected the fields {', '.join(FIELDS)} in `data`, found no {', '.join(missing)}; take the"
            " published file or write one of its structure."
        )
    mark = content.get(MARK)
    return data.ravel(), None if mark is None else str(np.ravel(mark)[0])


def _variables(path: Path) -> str:
    """The variables of a file, for a message."""
    from scipy import io

    with contextlib.suppress(Exception):  # as many kinds as loadmat has
        names = [shown(name, 30) for name, *_ in io.whosmat(path) if name != MARK]
        return f"no such variable, but {', '.join(names[:5])}" if names else "no such variable"
    return "no such variable"


def _refuse_others(path: Path) -> None:
    """Refuse a file that is of another kind, by what it is and what to do."""
    with open(path, "rb") as handle:
        start = handle.read(8192)
    found = artifacts.file_kind(start)
    # version 2 of the header, or the signature of HDF5 where its own text may begin
    if start[124:128] in (b"\x00\x02IM", b"\x02\x00MI") or any(start[at : at + 8] == _HDF5 for at in (0, *_HDF5_AT)):
        mark = "a MATLAB v7.3 file, which is HDF5" if start.startswith(b"MATLAB") else "an HDF5 file"
        found = f"{mark}; open it in MATLAB and save its variable with save(..., 'data', '-v7')"
    if not found and not (start.startswith(b"MATLAB 5.0") or start[124:128] in (b"\x00\x01IM", b"\x01\x00MI")):
        found = next((kind for kind, begins in _NO_MATLAB.items() if re.match(begins, start)), "no MATLAB file")
    if found:
        raise ValueError(f"{path}: expected a MATLAB 5 file, found {found}.")


def _refuse_bomb(path: Path) -> None:
    """Refuse a file whose compressed variables unpack to more than `MOST_BYTES`, before anything is unpacked whole."""
    total = 0
    with open(path, "rb") as handle:
        order = {b"IM": "little", b"MI": "big"}.get(handle.read(128)[126:])
        while order is not None and len(tag := handle.read(8)) == 8:
            kind, left = (int.from_bytes(tag[i : i + 4], order) for i in (0, 4))
            if kind != _COMPRESSED:
                total += left
                handle.seek(left, 1)
                continue
            unpack = zlib.decompressobj()
            while left and total <= MOST_BYTES:
                packed = handle.read(min(left, 2**16))
                left -= len(packed) or left
                while packed and total <= MOST_BYTES:
                    try:
                        total += len(unpack.decompress(packed, 2**20))
                    except zlib.error:
                        return  # the reader says what is wrong
                    packed = unpack.unconsumed_tail
            if total > MOST_BYTES:
                break
    if total > MOST_BYTES:
        raise ValueError(
            f"{path}: expected a cohort of at most {MOST_BYTES / 2**30:g} GiB, found {path.stat().st_size} bytes that"
            " unpack to more; bring larger cohorts as a folder of images."
        )


def _record(path: Path, place: int, record: np.void) -> tuple[int, int, float, np.ndarray]:
    """Id, class, fat and frames of one patient."""
    number = _scalar(path, place, record, "id")
    if number % 1:
        raise ValueError(
            f"{path}: expected a whole number as id of record {place}, found {number:g}; correct the file."
        )
    number = int(number)
    label = _scalar(path, place, record, "class")
    if label not in (0, 1):
        raise ValueError(f"{path}: expected class 0 or 1 for patient {number}, found {label:g}; correct the file.")
    fat = _scalar(path, place, record, "fat")
    if not 0 <= fat <= 100:
        raise ValueError(
            f"{path}: expected fat between 0 and 100 percent for patient {number}, found {fat:g}; correct it."
        )
    images = np.asarray(record["images"])
    if images.ndim != 3 or images.shape[0] != FRAMES_PER_PATIENT or images.dtype != np.uint8 or images.size == 0:
        raise ValueError(
            f"{path}: expected images of patient {number} as ({FRAMES_PER_PATIENT}, height, width) uint8, found"
            f" {images.shape} {images.dtype}; correct the file."
        )
    return number, int(label), float(fat), images


def _scalar(path: Path, place: int, record: np.void, name: str) -> float:
    value = np.asarray(record[name])
    if value.size != 1 or value.dtype.kind not in "uifb" or not np.isfinite(value).all():
        raise ValueError(
            f"{path}: expected one number in field {name} of record {place}, found {value.dtype} of shape"
            f" {value.shape}; correct the file."
        )
    return float(value.ravel()[0])


def write_mat(path: str | Path, cohort: Cohort) -> Path:
    """Write a cohort in the structure of the published .mat file, atomically and uncompressed.

    Parameters
    ----------
    path : str or Path
        File to write.
    cohort : Cohort
        Ten images per patient, ids 1..P. Of a simulated cohort the file carries a mark that `load` reads back.

    Raises
    ------
    ValueError
        Patients have another number of images, or ids that are not 1..P.
    """
    from scipy import io

    frames, patients, n_frames = cohort.frames, cohort.patients, FRAMES_PER_PATIENT
    if frames.shape[1] != n_frames or patients["patient_id"].tolist() != list(range(1, len(patients) + 1)):
        raise ValueError(
            f"{path}: expected {n_frames} images of each of patients 1 to {len(patients)}, found"
            f" {frames.shape[1]} per patient and ids from {patients['patient_id'].min()} to"
            f" {patients['patient_id'].max()}; this format holds no other cohort."
        )
    data = np.empty((1, len(frames)), dtype=[(name, object) for name in FIELDS])
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
        content[MARK] = cohort.provenance["text"]
    with artifacts.replacing(path) as temporary, open(temporary, "wb") as handle:
        io.savemat(handle, content, do_compression=False)
    return Path(path)
