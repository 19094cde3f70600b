"""The two file formats of a cohort, read into plain arrays and tables: the published .mat file and a folder of images.

Contract: a fault of the file raises a ValueError of one sentence that names the file and the patient or row, what was
expected, what was found and what to do. What the content means is checked in `cohort`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

FRAMES_PER_PATIENT = 10  # of the published .mat file
FIELDS = ("id", "class", "fat", "images")
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


def read_folder(folder: Path, class_names: tuple[str, str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Read a folder of 8-bit images with its ``images.csv``: ``image, patient, label`` and, if known, ``grade``.

    Parameters
    ----------
    folder : Path
        The folder.
    class_names : (str, str)
        Names that may stand for label 0 and label 1.

    Returns
    -------
    images : pandas.DataFrame
        ``patient_id, label, grade``, patients ascending, images of a patient in the order of the file.
    pixels : (N, H, W) uint8 ndarray
        Grey levels; colour images are converted by luminance.

    Raises
    ------
    ValueError
        No or a damaged ``images.csv``, a wrong row, an image that is missing, damaged, outside the folder, or of
        another size or depth.
    """
    source = folder / "images.csv"
    if not source.is_file():
        raise ValueError(
            f"{folder}: expected a file images.csv beside the images, found none; write one (image, patient, label)."
        )
    try:
        table = pd.read_csv(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"{source}: expected a CSV table, found {' '.join(str(error).split())}; correct it.") from None
    missing = {"image", "patient", "label"} - set(table)
    if missing or not len(table):
        found = f"no {', '.join(sorted(missing))}" if missing else "no rows"
        raise ValueError(f"{source}: expected the columns image, patient and label, found {found}; add them.")
    names = {**{str(i): i for i in (0, 1)}, **{name: i for i, name in enumerate(class_names)}}
    label = table["label"].astype(str).map(names)
    patient = pd.to_numeric(table["patient"], errors="coerce")
    wrong = label.isna() | patient.isna() | (patient % 1 != 0) | (patient < 1)
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(
            f"{source}: expected patient as a whole number from 1 and label as 0, 1, {' or '.join(class_names)}, found"
            f" patient {row['patient']} and label {row['label']} for {row['image']}; correct the row."
        )
    grade = pd.to_numeric(table["grade"], errors="coerce") if "grade" in table else np.nan
    images = pd.DataFrame(
        {"patient_id": patient.astype(int), "label": label.astype(int), "grade": grade, "file": table["image"]}
    )
    images = images.sort_values("patient_id", kind="stable").reset_index(drop=True)
    return images.drop(columns="file"), _read_images(folder, source, images["file"])


def _read_images(folder: Path, source: Path, files: pd.Series) -> np.ndarray:
    from PIL import Image

    pixels: list[np.ndarray] = []
    for name in files.astype(str):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{source}: expected images inside the folder, found {name}; move the image.")
        try:
            with Image.open(path) as picture:
                pixels.append(np.asarray(picture.convert("L") if picture.mode in ("L", "P", "RGB") else picture))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}: expected an image, found {type(error).__name__}; correct {source.name}."
            ) from None
        if pixels[-1].dtype != np.uint8 or pixels[-1].shape != pixels[0].shape:
            raise ValueError(
                f"{path}: expected 8-bit grey of size {pixels[0].shape}, found {pixels[-1].dtype} of size"
                f" {pixels[-1].shape}; bring all images to one size and depth."
            )
    return np.stack(pixels)
