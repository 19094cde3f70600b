"""The files of a folder cohort: its table, and what the table names; whatever else lies there is no part of it.

Contract: nothing is decoded, and nothing outside the folder is opened. A link to a place in the folder is followed; one
that leads out of it, or to nothing, is called a link.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import unicodedata
from pathlib import Path

from nafld_utils import artifacts
from nafld_utils.cohort.problems import CohortError, Problem, shown

TABLE = "images.csv"
REQUIRED, OPTIONAL = ("image", "patient", "label"), ("grade", "fold")
PIXELS = "pixels.npy"  # a folder that holds it has one array instead of image files
MASKS, MARK_FILE = "masks.npy", artifacts.MARK_FILE
_SHEETS = (*artifacts.SHEETS, ".parquet", ".feather", ".jsonl", ".sav", ".dta")
_TEXTS = (".txt", ".tsv", ".tab", ".dat")
MAX_TABLE_BYTES = 64 * 2**20  # (choice)


def mat_files(folder: Path) -> list[Path]:
    """The .mat files of a folder, without what other systems leave beside them (``._a.mat``)."""
    return [path for path in sorted(folder.glob("*.mat")) if not artifacts.is_litter(Path(path.name))]


def find_table(folder: Path) -> Path:
    """``images.csv`` of a folder, or its only .csv file, or the only one with all columns; else a `CohortError`."""
    if (folder / TABLE).is_file():
        return _inside(folder, folder / TABLE)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not artifacts.is_litter(Path(path.name)))
    found = [path for path in files if path.suffix.lower() == ".csv"]
    found = [path for path in found if _has_columns(path)] if len(found) > 1 else found
    if len(found) == 1:
        return _inside(folder, found[0])
    others = {
        f"keep one of them, or name it {TABLE}": found or [path for path in files if path.suffix.lower() == ".csv"],
        f"save the sheet as CSV UTF-8 under the name {TABLE}": [p for p in files if p.suffix.lower() in _SHEETS],
        f"if that is the table, rename it to {TABLE}": [p for p in files if p.suffix.lower() in _TEXTS and _wide(p)],
        "take the folder in which the table lies": [*sorted(folder.glob("*/*.csv")), *sorted(folder.glob("../*.csv"))],
    }
    remedy, near = next(((how, those) for how, those in others.items() if those), ("write one", []))
    what = ", ".join(shown(os.path.relpath(path, folder)) for path in near[:5]) or "none"
    wanted = f"expected a file {TABLE} with the columns image, patient and label"
    raise CohortError(folder, [Problem(None, f"{wanted}, found {what}; {remedy}")])


def _inside(folder: Path, table: Path) -> Path:
    if not table.resolve().is_relative_to(folder.resolve()):
        text = f"expected a table inside the folder, found {shown(table.name)}, a link out of it; put the file there"
        raise CohortError(folder, [Problem(None, text)])
    return table


def _has_columns(table: Path) -> bool:
    """Whether a table has all columns that a cohort needs."""
    with contextlib.suppress(ValueError), open(table, "rb") as handle:
        return len(artifacts.read_sheet(handle.readline(2**16), REQUIRED).places(REQUIRED)) == len(REQUIRED)
    return False


def _wide(table: Path) -> bool:
    """Whether a text file's first line has three columns or more."""
    with contextlib.suppress(ValueError), open(table, "rb") as handle:
        return len(artifacts.read_sheet(handle.readline(2**16), REQUIRED).header) >= len(REQUIRED)
    return False


def content_files(folder: Path) -> list[Path]:
    """Files that a folder cohort is made of, those that are there, in the order of their paths below the folder.

    They are its table, the images that the table names, and its array, masks and mark where it has them: what file
    managers, Jupyter or people leave beside them is never read. Of a folder without a table, or with one that cannot
    be read, only what is known.
    """
    names = (PIXELS, MASKS, MARK_FILE) if (folder / PIXELS).is_file() else (MARK_FILE,)
    found = {path for path in (folder / name for name in names) if path.is_file()}
    try:
        table = find_table(folder)
    except CohortError:
        return sorted(found)
    if folder / PIXELS not in found:
        stat, root = table.stat(), folder.resolve()
        located = (locate(folder, root, name)[0] for name in _named(table, stat.st_size, stat.st_mtime_ns))
        found |= {path for path in located if path is not None and os.path.isfile(path)}
    return sorted(found | {table})


@functools.lru_cache(maxsize=8)
def _named(table: Path, size: int, time: int) -> tuple[str, ...]:
    """Names in the column ``image``; none of a table that cannot be read, since reading it says why."""
    if size > MAX_TABLE_BYTES:
        return ()
    try:
        sheet = artifacts.read_sheet(table.read_bytes(), (*REQUIRED, *OPTIONAL))
        place = sheet.places(["image"]).get("image")
    except ValueError:
        return ()
    return () if place is None else tuple(dict.fromkeys(sheet.column(place)))


def locate(folder: Path, root: Path, name: str) -> tuple[Path | None, str]:
    """Path of an image inside the folder, whose real path is `root`, or what speaks against it."""
    if not name:
        return None, ""  # the table's own check has said so
    plain = name.replace("\\", "/")  # written on Windows, or with letters composed otherwise than the file system's
    spelt = dict.fromkeys((name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))))
    found = next((one for one in spelt if os.path.exists(os.path.join(folder, one))), name)
    path, below = folder / found, not os.path.isabs(found) and ".." not in found.split("/")
    way = itertools.accumulate(found.split("/"), os.path.join) if below else ()
    linked = any(os.path.islink(os.path.join(folder, place)) for place in way)
    if below and not linked:
        return path, ""
    try:
        real = path.resolve()
    except (OSError, ValueError):
        return None, f"expected the name of an image, found {shown(name)}"
    except RuntimeError:
        return None, f"expected an image, found {shown(name)}, a link that leads back to itself; put the file there"
    if not real.is_relative_to(root):
        what = ", a link out of it; put the file there" if linked else "; move it there"
        return None, f"expected an image inside the folder, found {shown(name)}{what}"
    if linked and not os.path.exists(path):
        target = shown(real.relative_to(root).as_posix())
        return None, f"expected an image, found {shown(name)}, a link to {target}, where nothing is; get that file"
    return path, ""
