"""A folder of images with a table as a cohort: everything checked, images decoded one at a time into a store on disk.

Two layouts of a folder, told apart by what lies in it:

- image files (PNG, JPEG, TIFF, DICOM) and a table of `cohort_table`, whose column ``image`` names them;
- ``pixels.npy``, one (N, H, W) uint8 array that row ``i`` of ``images.csv`` belongs to, and optionally ``masks.npy`` of
  the same shape. It is read through a memory map; the simulator writes large cohorts so (`phantom_folder.write`).

``cohort.json`` with ``{"simulated": "<sentence>"}`` marks a simulated cohort, which so never passes for a real one;
``"model": "phantom"`` beside it says that it is the study's own liver model, and so of the paper's modality.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, cohort_checks, cohort_table, engine, image_files, pixel_store
from nafld_utils.cohort_checks import PIXELS
from nafld_utils.cohort_table import CohortError, Problem, shown

REVISION = ("cohort_folder", 2)
MASKS, MARK_FILE, MARK = "masks.npy", "cohort.json", "simulated"
SOURCES = "sources.csv"  # of a run, where the stage says its path
CONVERSIONS = {
    "colour": "converted from colour to grey by luminance",
    "deep": "of more than 8 bits scaled each from its own darkest to its brightest pixel",
    "turned": "turned as their EXIF entry says",
}


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes
    ----------
    images : pandas.DataFrame
        ``image_id, patient_id, label, grade, sha256``, patients ascending, images of a patient in the table's order.
    pixels : (N, H, W) uint8 ndarray or pixel_store.Ragged
        Grey levels; ragged where sizes differ.
    masks : (N, H, W) uint8 ndarray or None
        Tissue codes of simulated images.
    sources : pandas.DataFrame
        ``image_id, patient, file``: the user's own names, safe to open in a spreadsheet; ``row`` of the table, counted
        from the header as 1.
    folds : pandas.DataFrame or None
        ``patient_id, fold`` from 0 where the table states folds.
    text : str
        One sentence for reports.
    mark : dict or None
        Content of ``cohort.json`` of a simulated cohort.
    numbered : bool
        Whether the table has the labels 0 and 1 instead of names.
    """

    images: pd.DataFrame
    pixels: Any
    masks: np.ndarray | None
    sources: pd.DataFrame
    folds: pd.DataFrame | None
    text: str
    mark: dict[str, str] | None
    numbered: bool


def spread(n: int, k: int | None) -> np.ndarray:
    """Places of `k` of `n` images, spread evenly from the first to the last (one: the middle one).

    Parameters
    ----------
    n : int
        Images there are.
    k : int or None
        Images wanted; all where there are fewer, or for None.

    Returns
    -------
    (min(n, k),) int ndarray
        Ascending.

    Examples
    --------
    >>> spread(10, 3).tolist(), spread(10, 1).tolist(), spread(2, 3).tolist()
    ([0, 4, 9], [4], [0, 1])
    """
    if k is None or k >= n:
        return np.arange(n)
    return np.rint(np.linspace(0, n - 1, k) if k > 1 else np.array([(n - 1) / 2])).astype(int)


# ---------------------------------------------------------------- reading


def read(folder: Path, class_names: Sequence[str], work: Path | None = None, keep: int | None = None) -> Folder:
    """Check a folder and decode its images.

    Parameters
    ----------
    folder : Path
        The cohort.
    class_names : (str, str)
        Names of label 0 and label 1.
    work : Path, optional
        Folder of the store into which images are decoded, one at a time; an interrupted call goes on there. None
        decodes into memory.
    keep : int, optional
        Images a patient that are decoded, spread evenly; patients with fewer keep theirs. All by default.

    Returns
    -------
    Folder

    Raises
    ------
    CohortError
        Everything that is wrong with the table, with every file, and with the pixels of the images that are used, by
        row.
    """
    source, table, problems = cohort_checks.open_table(folder, class_names)
    table["patient_id"] = _numbered(table["patient"])
    table["number"] = _frame_numbers(folder, table)
    place = table.groupby("patient_id").cumcount()
    size = table.groupby("patient_id")["row"].transform("size")
    used = [number in spread(n, keep) for number, n in zip(place, size, strict=True)]
    used_rows = table[used].sort_values("patient_id", kind="stable").reset_index(names="place")
    if (folder / PIXELS).is_file():
        shapes, image_of = _array_source(folder, len(table), used_rows, problems, source)
    else:
        shapes, image_of = _file_source(used_rows, problems)
        _file_source(table[~np.array(used)].reset_index(), problems)  # left out of this run, but not of the check
    mark = _mark(folder)
    masks = _mapped(folder / MASKS) if mark and (folder / PIXELS).is_file() else None
    if masks is not None and (masks.shape != (len(table), *shapes[0]) or masks.dtype != np.uint8):
        found = f"{masks.shape} {masks.dtype}"
        problems.append(Problem(None, f"{MASKS}: expected the shape and type of {PIXELS}, found {found}"))
        masks = None
    with contextlib.ExitStack() as stack:
        place = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pixels, codes, sha256, counts = _decode(used_rows, shapes, image_of, masks, place, problems)
        if work is None:
            pixels, codes = _in_memory(pixels), None if codes is None else np.array(codes)
    problems += _copies(used_rows, sha256)
    if problems:
        raise CohortError(source, problems, len(table))
    return _assembled(folder, used_rows, pixels, codes, sha256, _sentence(folder, used_rows, shapes, counts))


def check(
    folder: Path,
    class_names: Sequence[str],
    n_splits: int | None = None,
    keep: int | None = None,
    scratch: Path | None = None,
) -> None:
    """Check the table of a folder; where something is wrong with it, the images too, so that all is said at once.

    Images of a folder whose table is right are not opened: the stage that decodes them says what is wrong with them.

    Parameters
    ----------
    folder, class_names, n_splits
        As in `cohort_checks.check`.
    keep : int, optional
        Images a patient that a run decodes, as in `read`.
    scratch : Path, optional
        Where the images are decoded into a folder that is removed; by default where the system keeps such folders. If
        they cannot be written there, what is wrong with the table is said alone.

    Raises
    ------
    CohortError
        Everything that is wrong, by row.
    """
    try:
        cohort_checks.check(folder, class_names, n_splits)
        return
    except CohortError as error:
        found = error
    problems = found.problems
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".check-", dir=scratch) as work:
        try:
            read(folder, class_names, Path(work), keep)
        except CohortError as error:
            problems = list(dict.fromkeys([*problems, *error.problems]))
    raise CohortError(found.source, problems, found.n_rows)


def open_in_place(folder: Path, class_names: Sequence[str]) -> Folder:
    """Open a folder of the second layout without copying its array; checked and hashed in one pass over it.

    Parameters
    ----------
    folder : Path
        The cohort.
    class_names : (str, str)
        Names of label 0 and label 1.

    Returns
    -------
    Folder

    Raises
    ------
    CohortError
        Everything that is wrong, as `read`; also rows that are not in the order of their patients.
    """
    source, table, problems = cohort_checks.open_table(folder, class_names)
    table["patient_id"] = _numbered(table["patient"])
    table["number"], table["place"] = _frame_numbers(folder, table), np.arange(len(table))
    shapes, image_of = _array_source(folder, len(table), table, problems, source)
    if not table["patient_id"].is_monotonic_increasing:
        problems.append(Problem(None, "expected rows in the order of their patients, found others; sort the table"))
    sha256 = []
    for place in engine.progress(range(len(table)), "reading images"):
        image = image_of(place).pixels
        if image.min() == image.max():
            problems.append(
                Problem(int(table["row"][place]), f"expected an image, found one grey level ({image.flat[0]})")
            )
        sha256.append(hashlib.sha256(np.ascontiguousarray(image)).hexdigest())
    problems += _copies(table, sha256)
    if problems:
        raise CohortError(source, problems, len(table))
    mark = _mark(folder)
    text = _sentence(folder, table, shapes, dict.fromkeys(CONVERSIONS, 0))
    codes = _mapped(folder / MASKS) if mark else None
    return _assembled(folder, table, _mapped(folder / PIXELS), codes, sha256, text)


def _assembled(
    folder: Path, rows: pd.DataFrame, pixels: Any, codes: np.ndarray | None, sha256: list[str], text: str
) -> Folder:
    names = [f"p{p:03d}_f{f:02d}" for p, f in zip(rows["patient_id"], rows["number"], strict=True)]
    images = rows[["patient_id", "label", "grade"]].assign(sha256=sha256)
    images.insert(0, "image_id", names)
    safe = cohort_table.spreadsheet_safe
    user = {"patient": rows["patient"].map(safe), "file": rows["image"].map(safe), "row": rows["row"]}
    folds = None
    if rows["fold"].notna().any():
        folds = rows[["patient_id", "fold"]].drop_duplicates().astype(np.int64).reset_index(drop=True)
    sources = pd.DataFrame({"image_id": names, **user})
    return Folder(images, pixels, codes, sources, folds, text, _mark(folder), bool(rows["is_number"].all()))


def _numbered(patient: pd.Series) -> pd.Series:
    """Patient ids: the user's own where all are different whole numbers from 1, else counted from 1 in their order."""
    names = list(dict.fromkeys(patient))
    whole = [name.isascii() and name.isdigit() and 0 < int(name) < 2**31 for name in names if len(name) < 12]
    if len(whole) == len(names) and all(whole) and len({int(name) for name in names}) == len(names):
        return patient.astype(np.int64)
    return patient.map({name: number for number, name in enumerate(names, start=1)})


def _frame_numbers(folder: Path, table: pd.DataFrame) -> pd.Series:
    """Number of each image within its patient; of an array that in its name, "p001_f04": frames may be left out."""
    counted = table.groupby("patient_id").cumcount()
    named = table["image"].str.extract(r"_f(\d{1,6})$", expand=False)
    if not (folder / PIXELS).is_file() or named.isna().any():
        return counted
    named = named.astype(np.int64)
    return counted if pd.DataFrame({"p": table["patient_id"], "n": named}).duplicated().any() else named


def _file_source(rows: pd.DataFrame, problems: list[Problem]) -> tuple[np.ndarray, Callable[[int], Any]]:
    """Sizes from the files' headers, and the function that decodes one of them."""
    shapes = np.zeros((len(rows), 2), dtype=np.int64)
    bad = set()
    for place, path in enumerate(rows["path"]):
        if path is None:
            bad.add(place)
            continue
        try:
            shapes[place] = image_files.read_header(path).shape
        except image_files.ImageFault as fault:
            bad.add(place)
            problems.append(Problem(rows["row"][place], f"{shown(rows['image'][place])}: {fault}"))

    def image_of(place: int) -> image_files.Picture | None:
        return None if place in bad else image_files.read(rows["path"][place])

    return shapes, image_of


def _array_source(
    folder: Path, n: int, rows: pd.DataFrame, problems: list[Problem], source: Path
) -> tuple[np.ndarray, Callable[[int], Any]]:
    pixels = _mapped(folder / PIXELS)
    known = pixels is not None and pixels.ndim == 3 and pixels.dtype == np.uint8 and len(pixels) == n
    if not known or min(pixels.shape) < 1:
        found = "a damaged file" if pixels is None else f"{pixels.shape} {pixels.dtype}"
        problems.append(
            Problem(None, f"{PIXELS}: expected ({n}, height, width) uint8 as {source.name} has rows, found {found}")
        )
        raise CohortError(source, problems, n)

    def image_of(place: int) -> image_files.Picture:
        if place % pixel_store.COMMIT_EVERY == 0:
            pixel_store.release(pixels)
        return image_files.Picture(np.asarray(pixels[rows["place"][place]]))

    return np.tile(pixels.shape[1:], (len(rows), 1)), image_of


def _mapped(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _decode(
    rows: pd.DataFrame,
    shapes: np.ndarray,
    image_of: Callable[[int], image_files.Picture | None],
    masks: np.ndarray | None,
    work: Path,
    problems: list[Problem],
) -> tuple[Any, np.ndarray | None, list[str], dict[str, int]]:
    """Decode what is not decoded yet; pixels, masks, hashes ("" where undecodable) and counts of conversions."""
    n, even = len(rows), bool((shapes == shapes[0]).all())
    ends = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
    array = (n, *shapes[0]) if even and ends[-1] else (max(1, int(ends[-1])),)  # an empty file cannot be mapped
    arrays = {"pixels": (array, np.uint8), "sha256": ((n, 32), np.uint8)}
    if masks is not None:
        arrays["masks"] = (array, np.uint8)
    _check_room(work, int(ends[-1]) * (2 if masks is not None else 1))
    with pixel_store.Store(work, arrays) as store:
        facts = store.facts or {"problems": [], **dict.fromkeys(CONVERSIONS, 0)}
        store.facts = facts
        for place in _progress(store, n):
            try:
                picture = image_of(place)
            except image_files.ImageFault as fault:
                facts["problems"].append([int(rows["row"][place]), f"{shown(rows['image'][place])}: {fault}"])
                continue
            if picture is None:
                continue
            image = picture.pixels
            if image.min() == image.max():
                text = f"expected an image, found one grey level ({image.flat[0]}) in the whole of"
                facts["problems"].append([int(rows["row"][place]), f"{text} {shown(rows['image'][place])}; remove it"])
            store.put("pixels", place if even else int(ends[place]), image)
            store.put("sha256", place, np.frombuffer(hashlib.sha256(np.ascontiguousarray(image)).digest(), np.uint8))
            if masks is not None:
                store.put("masks", place, masks[rows["place"][place]])
                if place % pixel_store.COMMIT_EVERY == 0:
                    pixel_store.release(masks)
            for name in CONVERSIONS:
                facts[name] += getattr(picture, name)
        problems += [Problem(row, text) for row, text in facts["problems"]]
        flat, digests = store.read("pixels"), np.array(store.read("sha256"))
        codes = None if masks is None else store.read("masks")
    pixels = flat if even else pixel_store.Ragged(flat, shapes)
    sha256 = [row.tobytes().hex() if row.any() else "" for row in digests]
    return pixels, codes, sha256, {name: facts[name] for name in CONVERSIONS}


def _check_room(work: Path, needed: int) -> None:
    """Refuse images that the disk cannot hold once decoded, before any is."""
    existing = artifacts.existing(work)
    free = shutil.disk_usage(existing).free
    needed -= sum(path.stat().st_blocks * 512 for path in work.glob("*.npy"))  # what an interrupted call has written
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"no space for the decoded images: they need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free in"
            f" {existing}; scale them down, name fewer, or point NAFLD_ROOT to another disk",
        )


def _progress(store: pixel_store.Store, n: int) -> Iterator[int]:
    return engine.progress(store.remaining(n), "reading images", total=n - store.done)


def _in_memory(pixels: Any) -> Any:
    if isinstance(pixels, pixel_store.Ragged):
        return pixel_store.Ragged(np.array(pixels.flat), pixels.all_shapes)
    return np.array(pixels)


def _copies(rows: pd.DataFrame, sha256: list[str]) -> list[Problem]:
    """Images that equal an image of another patient, pixel for pixel.

    Choice: among the images that are used. One that ``cohort.frames_per_patient`` leaves out is not decoded, and is on
    no side of any split.
    """
    table = rows.assign(sha256=sha256)
    table = table[table["sha256"] != ""].sort_values("row")
    first = table.drop_duplicates("sha256").set_index("sha256")
    out = []
    for item in table[table["sha256"].duplicated()].itertuples(index=False):
        other = first.loc[item.sha256]
        if other["patient"] != item.patient:
            out.append(
                Problem(
                    item.row,
                    f"expected every image under one patient, found the pixels of {shown(item.image)} of patient"
                    f" {shown(item.patient)} in row {other['row']} under patient {shown(other['patient'])} too; merge"
                    " the patients or remove the copy",
                )
            )
    return out


# ---------------------------------------------------------------- tables and words


def _mark(folder: Path) -> dict[str, str] | None:
    try:
        found = json.loads((folder / MARK_FILE).read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in found.items()} if found.get(MARK) else None
    except (OSError, ValueError, AttributeError):
        return None


def _sentence(folder: Path, rows: pd.DataFrame, shapes: np.ndarray, counts: dict[str, int]) -> str:
    low, high = shapes.min(axis=0), shapes.max(axis=0)
    size = f"{low[1]} x {low[0]}" if (low == high).all() else f"{low[1]} x {low[0]} to {high[1]} x {high[0]}"
    done = [f"{counts[name]} {words}" for name, words in CONVERSIONS.items() if counts[name]]
    if (rows["patient"].str.lstrip("0") != rows["patient_id"].astype(str)).any():
        done.append(f"patients are numbered in the order of the table, {SOURCES} has their names")
    elif rows["patient"].str.startswith("0").any():
        done.append(f"patients keep their numbers without leading zeros, {SOURCES} has them as written")
    return (
        f"Folder {shown(folder.name)}: {len(rows)} images of {rows['patient_id'].nunique()} patients, {size} pixels"
        + "".join(f"; {text}" for text in done)
        + "."
    )
