"""The published .mat file of a cohort, read into plain arrays; a folder of images is read by `cohort_folder`.

Contract: a fault of the file raises a ValueError of one sentence that names the file and the patient, what was
expected, what was found and what to do. What the content means is checked in `cohort`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

FRAMES_PER_PATIENT = 10  # of the published .mat file
FIELDS = ("id", "class", "fat", "images")
_COMPRESSED = 15  # miCOMPRESSED of the MATLAB 5 format
MOST_BYTES = 4 * 2**30  # choice: of an unpacked .mat file, 25 times the published cohort
MARK = "simulated"  # variable beside `data` in a file written here: a simulated file never passes for a real one


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
    """Read the published structure: a 1 x P struct array ``data`` with `FIELDS`.

    Returns
    -------
    frames : (P, 10, H, W) uint8 ndarray
        Patients 1..P, ascending.
    label : (P,) int ndarray
        Field ``class``.
    fat : (P,) float ndarray
        Percent.
    mark : str or None
        Sentence of a file that holds simulated patients.

    Raises
    ------
    ValueError
        The file cannot be read, lacks a field, has a patient without ten uint8 frames, frames of several sizes, or ids
        that are not 1..P.
    """
    data, mark = _read_struct(path)
    records = sorted((_record(path, place, record) for place, record in enumerate(data, start=1)), key=lambda r: r[0])
    ids = [record[0] for record in records]
    if ids != list(range(1, len(ids) + 1)):
        odd = next(i for i, found in enumerate(ids, start=1) if i != found)
        raise ValueError(
            f"{path}: expected field id to run from 1 to {len(ids)}, each once, found {ids[odd - 1]} where {odd}"
            " belongs; correct the ids."
        )
    shapes = [record[3].shape[1:] for record in records]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"{path}: expected frames of one size, found {shapes[0]} for patient 1 and {shapes[odd]} for patient"
            f" {ids[odd]}; bring them to one size."
        )
    label, fat = np.array([record[1] for record in records]), np.array([record[2] for record in records])
    return np.stack([record[3] for record in records]), label, fat, mark


def _read_struct(path: Path) -> tuple[np.ndarray, str | None]:
    """Records of variable ``data`` and the mark of a simulated file."""
    from scipy import io

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
        found = "no such variable" if data is None else f"{data.dtype} of shape {data.shape}"
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
    number = int(_scalar(path, place, record, "id"))
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
