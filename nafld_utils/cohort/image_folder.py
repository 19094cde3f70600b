"""A folder of images with a table as a cohort: everything checked, images decoded one at a time into a store on disk.

Two layouts of a folder, told apart by what lies in it:

- image files (PNG, JPEG, TIFF, DICOM) and a table of `folder_table`, whose column ``image`` names them;
- ``pixels.npy``, one (N, H, W) uint8 array that row ``i`` of ``images.csv`` belongs to, and optionally ``masks.npy`` of
  the same shape. It is read through a memory map; the simulator writes large cohorts so (`simulation.write_folder`).

``cohort.json`` with ``{"simulated": "<sentence>"}`` marks a simulated cohort, which so never passes for a real one;
``"model": "phantom"`` beside it says that it is the study's own liver model, and so of the paper's modality.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, images
from nafld_utils.cohort import data, file_tags, folder_files, folder_table, one_person
from nafld_utils.cohort.data import Cohort, spread
from nafld_utils.cohort.folder_files import MARK_FILE, MASKS, PIXELS
from nafld_utils.cohort.one_person import AS_WRITTEN, People
from nafld_utils.cohort.problems import CohortError, Problem, Problems, shown

REVISION = ("cohort_folder", 4), ("cohort_checks", 1)  # raise the first; units name the second beside it
MARK = "simulated"
SOURCES = "sources.csv"  # of a run, where the stage says its path
CONVERSIONS = {
    "colour": "converted from colour to grey by luminance",
    "deep": "of more than 8 bits brought to 8",
    "own": "scaled each from its own darkest to its brightest pixel, since the file does not say the range",
    "windowed": "shown through the window or table of their DICOM tags",
    "turned": "turned as their orientation entry says",
    "hidden": "with transparent pixels or padding, which became black",
}
_BURNED_IN = (
    "expected pixels without text, found BurnedInAnnotation YES, which may be a patient's name; take the text out, or"
    ' give SET="cohort.burned_in=allow" once you have looked at the images'
)
Decoder = Callable[[int], images.Picture | None]  # of the image at a place of a table; None: cannot be opened


def read(
    folder: Path,
    class_names: Sequence[str],
    work: Path | None = None,
    keep: int | None = None,
    in_place: bool = False,
    people: People = AS_WRITTEN,
) -> Cohort:
    """Check a folder and decode its images, one at a time; `work`, `keep`, `people` are those of `cohort.load`.

    An interrupted call goes on in `work`. Patients with fewer than `keep` images keep theirs. With `in_place` an array
    of the second layout is read where it lies; its rows must be in the order of their patients. A `CohortError` says
    everything that is wrong with the table, every file, and the pixels of the images that are used, by row.
    """
    source, table, problems = _open_table(folder, class_names, people)
    by_patient = table.groupby("patient_id")
    places, sizes = by_patient.cumcount(), by_patient["row"].transform("size")
    used = np.array([place in spread(size, keep) for place, size in zip(places, sizes, strict=True)])
    rows = table[used].sort_values("patient_id", kind="stable").reset_index(names="place")
    if (folder / PIXELS).is_file():
        shapes, image_of = _array_source(folder, len(table), rows, problems, source)
        masks = _masks(folder, (len(table), *shapes[0]), problems)
    else:
        shapes, image_of = _file_source(rows, problems, people)
        _file_source(table[~used].reset_index(), problems, people)  # left out of this run, but not of the check
        masks = None
    if in_place and not rows["place"].is_monotonic_increasing:
        problems.add(None, "expected rows in the order of their patients, found others; sort the table")
    stored, facts = _decode(rows, shapes, image_of, masks, work, hash_only=in_place)
    problems += [Problem(row, text) for row, text in facts["problems"]] + _copies(rows, stored["sha256"])
    if problems:
        raise CohortError(source, problems, len(table))
    if in_place:
        stored |= {"pixels": _mapped(folder / PIXELS), "masks": masks}
    said = [_sentence(rows, shapes, facts), one_person.told(table, people)]
    found = _cohort(folder, rows, stored, "; ".join(filter(None, said)))
    others = len(folder_table.of_others(source, people.leave_out)[0])
    found.provenance.update(images=len(table), of_other_classes=others)  # type: ignore[call-overload]
    return found


def check(
    folder: Path,
    class_names: Sequence[str],
    n_splits: int | None = None,
    keep: int | None = None,
    scratch: Path | None = None,
    people: People = AS_WRITTEN,
) -> None:
    """Check the table of a folder; where something is wrong with it, the images too, so that all is said at once.

    Images of a folder whose table is right are not opened: the stage that decodes them says what is wrong with them.

    Parameters
    ----------
    folder : Path
        The cohort.
    class_names : (str, str)
        Names of label 0 and label 1.
    n_splits : int, optional
        Folds that are asked for; compared with the patients of each class and with a column ``fold``.
    keep : int, optional
        Images per patient that the run reads.
    scratch : Path, optional
        Where the images are decoded into a folder that is removed; by default where the system keeps such folders. If
        they cannot be written there, what is wrong with the table is said alone.
    people : People or its fields
        Settings of ``cohort`` that say who is a patient, see `one_person.People`.

    Raises
    ------
    CohortError
        Everything that is wrong, by row.
    """
    source, table, problems = _open_table(folder, class_names, People(*people))
    problems += folder_table.fold_problems(table, n_splits)
    if not problems:
        return
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".check-", dir=scratch) as work:
        try:
            read(folder, class_names, Path(work), keep, people=People(*people))
        except CohortError as error:
            problems = list(dict.fromkeys([*problems, *error.problems]))
    raise CohortError(source, problems, len(table))


# ---------------------------------------------------------------- the table beside the folder


def _open_table(folder: Path, class_names: Sequence[str], people: People) -> tuple[Path, pd.DataFrame, Problems]:
    """The table with ``patient_id``, ``number`` and ``path`` of each image, and what is wrong; no image is opened.

    ``path`` is None where the image may not or cannot be opened.
    """
    source, in_array = folder_files.find_table(folder), (folder / PIXELS).is_file()
    table, problems = folder_table.read_table(source, class_names, not in_array, people)
    table["patient_id"], table["path"] = patient_ids(table["patient"], people.numbers, problems), None
    table["number"] = table.groupby("patient_id").cumcount()
    if in_array:
        named = table["image"].str.extract(r"_f(\d{1,6})$", expand=False)
        if named.notna().all():  # "p001_f04": frames may have been left out when it was written
            numbered = table.assign(number=named.astype(np.int64))
            table = table if numbered.duplicated(["patient_id", "number"]).any() else numbered
        return source, table, problems
    root, listing, paths = folder.resolve(), None, []
    for row, name in zip(table["row"], table["image"], strict=True):
        path, fault = folder_files.locate(folder, root, name)
        if path is not None and not os.path.isfile(path):
            listing = _listing(folder) if listing is None else listing
            path, fault = None, f"expected an image file, found no {shown(name)}{_nearest(name, listing)}"
        paths.append(path)
        if fault:
            problems.add(row, fault)
    return source, table.assign(path=paths), problems


def patient_ids(patient: pd.Series, numbers: str, problems: Problems) -> pd.Series:
    """Patient ids, counted from 1 in the order of the table; the user's own where these run from 1, or as asked for."""
    names = list(dict.fromkeys(patient))
    whole = [name.isascii() and name.isdigit() and len(name) < 12 and 0 < int(name) < 2**31 for name in names]
    own = {int(name) for name in names} if all(whole) else set()
    unlike = len(own) != len(names)
    if numbers == "own" and unlike:
        found = next((name for name, fits in zip(names, whole, strict=True) if not fits), names[0])
        wanted = "expected whole numbers from 1 to 2147483647, each written in one way, as patients"
        remedy = 'correct the table or give SET="cohort.patient_numbers=counted"'
        problems.add(None, f"{wanted} where cohort.patient_numbers is own, found {shown(found)}; {remedy}")
    if not unlike and (numbers == "own" or max(own) == len(names)):  # 1 to the number of patients tells nobody anything
        return patient.astype(np.int64)
    return patient.map({name: number for number, name in enumerate(names, start=1)})


def _listing(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not artifacts.is_litter(path))[:20_000]


def _nearest(name: str, listing: list[str]) -> str:
    name, folded = urllib.parse.unquote(name), {item.casefold(): item for item in listing}
    last = name.replace("\\", "/").rsplit("/", 1)[-1].casefold()  # a path of another machine, or no extension
    ends = [item for low, item in folded.items() if last in ((end := low.rsplit("/", 1)[-1]), end.rsplit(".", 1)[0])]
    known = [folded.get(name.casefold()), *(ends if len(ends) == 1 else ())]
    close = [*known, *difflib.get_close_matches(name, listing[:2000], n=1, cutoff=0.8)]
    return next((f"; the nearest is {shown(item)}" for item in close if item), "")


def _copies(rows: pd.DataFrame, sha256: list[str]) -> list[Problem]:
    """Images that equal an image of another patient, pixel for pixel.

    Choice: among the images that are used. One that ``cohort.frames_per_patient`` leaves out is not decoded, and is on
    no side of any split.
    """
    table = rows.assign(sha256=sha256)
    table = table[(table["sha256"] != "") & (table["patient"] != "")].sort_values("row")
    first = table.groupby("sha256")[["patient", "row", "label"]].transform("first")
    text = (
        "expected every image under one patient, found the pixels of {image} of patient {patient} in row {there} under"
        " patient {other} too"
    )
    table, problems = table.assign(other=first["patient"], there=first["row"]), Problems()
    again, same = table["patient"] != first["patient"], table["label"] == first["label"]
    problems.each(table[again & same], text + "; merge the patients or remove the copy")
    asked = "of another label; find out whose picture it is and remove it from the other"
    problems.each(table[again & ~same], f"{text}, {asked}")
    return problems


# ---------------------------------------------------------------- the images


def _file_source(rows: pd.DataFrame, problems: Problems, people: People) -> tuple[np.ndarray, Decoder]:
    """Sizes (N, 2) from the files' headers, and the function that decodes one of them."""
    shapes = np.zeros((len(rows), 2), dtype=np.int64)
    bad = set(np.flatnonzero(rows["path"].isna()))
    for place in np.flatnonzero(rows["path"].notna()):
        try:
            header = images.read_header(rows["path"][place])
            shapes[place] = header.shape
            if header.burned_in and people.burned_in == "stop":
                problems.add(rows["row"][place], f"{shown(rows['image'][place])}: {_BURNED_IN}")
        except images.ImageFault as fault:
            bad.add(place)
            problems.add(rows["row"][place], f"{shown(rows['image'][place])}: {fault}")
    return shapes, lambda place: None if place in bad else images.read(rows["path"][place])


def _array_source(
    folder: Path, n: int, rows: pd.DataFrame, problems: Problems, source: Path
) -> tuple[np.ndarray, Decoder]:
    """As `_file_source`, of the array whose rows ``place`` names."""
    pixels = _mapped(folder / PIXELS)
    known = pixels is not None and pixels.ndim == 3 and pixels.dtype == np.uint8 and len(pixels) == n
    if not known or min(pixels.shape) < 1:
        found = "a damaged file" if pixels is None else f"{pixels.shape} {pixels.dtype}"
        wanted = f"{PIXELS}: expected ({n}, height, width) uint8 as {source.name} has rows"
        raise CohortError(source, [*problems, Problem(None, f"{wanted}, found {found}")], n)
    height, width = pixels.shape[1:]
    if height * width > images.MAX_PIXELS:
        wanted = f"{PIXELS}: expected at most {images.MAX_PIXELS:,} pixels of an image"
        raise CohortError(source, [*problems, Problem(None, f"{wanted}, found {width} x {height}; scale them down")], n)

    def image_of(place: int) -> images.Picture:
        if place % images.COMMIT_EVERY == 0:
            images.release(pixels)
        return images.Picture(np.asarray(pixels[rows["place"][place]]))

    return np.tile(pixels.shape[1:], (len(rows), 1)), image_of


def _masks(folder: Path, shape: tuple[int, ...], problems: Problems) -> np.ndarray | None:
    """Tissue codes of a simulated cohort."""
    masks = _mapped(folder / MASKS) if _mark(folder) else None
    if masks is not None and (masks.shape != shape or masks.dtype != np.uint8):
        found = f"{masks.shape} {masks.dtype}"
        problems.add(None, f"{MASKS}: expected the shape and type of {PIXELS}, found {found}")
        return None
    return masks


def _mapped(path: Path) -> np.ndarray | None:
    try:  # a pipe of that name may never end
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
    except (OSError, ValueError, EOFError):
        return None


def _decode(
    rows: pd.DataFrame,
    shapes: np.ndarray,
    image_of: Decoder,
    masks: np.ndarray | None,
    work: Path | None,
    hash_only: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decode what is not decoded yet: ``pixels, masks, sha256`` ("" where undecodable); problems and conversions.

    With `hash_only` the pixels stay where they are, and only their hashes are kept.
    """
    n, even = len(rows), bool((shapes == shapes[0]).all())
    ends = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
    array = (n, *shapes[0]) if even and ends[-1] else (max(1, int(ends[-1])),)  # an empty file cannot be mapped
    kept = [] if hash_only else ["pixels"] if masks is None else ["pixels", "masks"]
    arrays = {"sha256": ((n, 32), np.uint8), **dict.fromkeys(kept, (array, np.uint8))}
    arrays |= {} if hash_only else {"said": ((n, file_tags.WIDTH), np.uint8)}
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _check_room(folder, int(ends[-1]) * len(kept))
        store = stack.enter_context(images.Store(folder, arrays))
        facts = store.facts = store.facts or {"problems": [], **dict.fromkeys(CONVERSIONS, 0)}
        for place in engine.progress(store.remaining(n), "reading images", total=n - store.done):
            row, name = int(rows["row"][place]), shown(rows["image"][place])
            try:
                picture = image_of(place)
            except images.ImageFault as fault:
                facts["problems"].append([row, f"{name}: {fault}"])
                continue
            if picture is None:
                continue
            image = picture.pixels
            if image.min() == image.max():
                text = f"expected an image, found one grey level ({image.flat[0]}) in the whole of {name}; remove it"
                facts["problems"].append([row, text])
            digest = hashlib.sha256(np.ascontiguousarray(image)).digest()
            store.put("sha256", place, np.frombuffer(digest, np.uint8))
            if "pixels" in kept:
                store.put("said", place, file_tags.encoded(picture.said))
                store.put("pixels", place if even else int(ends[place]), image)
            if "masks" in kept:
                store.put("masks", place, masks[rows["place"][place]])
                if place % images.COMMIT_EVERY == 0:
                    images.release(masks)
            for kind in CONVERSIONS:
                facts[kind] += getattr(picture, kind)
        stored: dict[str, Any] = {name: store.read(name) for name in kept}
        if work is None:  # the store goes away
            stored = {name: np.array(values) for name, values in stored.items()}
        digests = np.array(store.read("sha256"))
        said = [] if hash_only else file_tags.decoded(store.read("said"))
    if kept and not even:
        stored["pixels"] = images.Ragged(stored["pixels"], shapes)
    stored["said"] = said
    stored["sha256"] = [digest.tobytes().hex() if digest.any() else "" for digest in digests]
    return stored, facts


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


# ---------------------------------------------------------------- the cohort


def _cohort(folder: Path, rows: pd.DataFrame, stored: dict[str, Any], text: str) -> Cohort:
    """Cohort of checked rows; the hash of its content is over those of its images, so that it needs no second read."""
    sha256 = stored["sha256"]
    images, patients = data.tables(rows["patient_id"], rows["number"], rows["label"], rows["grade"], sha256)
    content = hashlib.sha256("\n".join(sha256).encode()).hexdigest()
    patient, file = (rows[name].map(artifacts.spreadsheet_safe) for name in ("written", "image"))
    sources = pd.DataFrame({"image_id": images["image_id"], "patient": patient, "file": file, "row": rows["row"]})
    said = images[["image_id"]].assign(file_says=stored["said"]) if any(stored["said"]) else None
    text = f"{text} (content {content[:12]})."
    mark = _mark(folder)
    provenance = {"kind": "other content", "text": text}
    if mark is not None:
        provenance = {"kind": "simulated", "text": f"{mark[MARK]} {text}", "model": mark.get("model", "")}
    provenance |= {"sha256": content, "format": "folder"}
    provenance["labels"] = "numbers" if rows["is_number"].all() else "names"
    folds = None
    if rows["fold"].notna().any():
        folds = rows[["patient_id", "fold"]].drop_duplicates().astype(np.int64).reset_index(drop=True)
    found = Cohort(images, patients, stored["pixels"], provenance, stored.get("masks"), folds, sources, said)
    if mixed := file_tags.mixed_levels(found):
        provenance["text"] += f" {mixed}"
    tags = file_tags.tags_by_class(found)
    if differing := list(dict.fromkeys(tags.loc[tags["differs"].astype(bool), "tag"])):
        warning = f"Warning: {' and '.join(differing)} of the files differ by class, which may give the class away"
        provenance["text"] += f" {warning}; notebook 01 shows how."
    return found


def _mark(folder: Path) -> dict[str, str] | None:
    """Content of ``cohort.json`` of a simulated cohort."""
    found = artifacts.load_record(folder / MARK_FILE) or {}
    return {name: str(value) for name, value in found.items()} if found.get(MARK) else None


def _sentence(rows: pd.DataFrame, shapes: np.ndarray, counts: dict[str, Any]) -> str:
    """What the folder holds and what was done to it, for reports; without the full stop."""
    low, high = shapes.min(axis=0), shapes.max(axis=0)
    size = f"{low[1]} x {low[0]}" if (low == high).all() else f"{low[1]} x {low[0]} to {high[1]} x {high[0]}"
    done = [f"{counts[name]} {words}" for name, words in CONVERSIONS.items() if counts[name]]
    if (rows["patient"].str.lstrip("0") != rows["patient_id"].astype(str)).any():
        done.append(f"patients are numbered in the order of the table, {SOURCES} has their names")
    elif rows["patient"].str.startswith("0").any():
        done.append(f"patients keep their numbers without leading zeros, {SOURCES} has them as written")
    people = rows["patient_id"].nunique()
    return "; ".join([f"A folder of {len(rows)} images of {people} patients, {size} pixels", *done])
