"""The table of a folder cohort against the folder: are its images there, inside it, and enough for the folds?

Contract: no image is opened and nothing is written, so that this runs before any kernel starts.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nafld_utils import cohort_table
from nafld_utils.cohort_table import CohortError, Problem, shown

REVISION = ("cohort_checks", 1)
PIXELS = "pixels.npy"  # a folder that holds it has one array instead of image files


def check(folder: Path, class_names: Sequence[str], n_splits: int | None = None) -> pd.DataFrame:
    """Check the table of a folder and that its images are there; no image is opened.

    Parameters
    ----------
    folder : Path
        The cohort.
    class_names : (str, str)
        Names of label 0 and label 1.
    n_splits : int, optional
        Folds that are asked for; compared with the patients of each class and with a column ``fold``.

    Returns
    -------
    pandas.DataFrame
        As `cohort_table.read_table` gives it, and ``path``.

    Raises
    ------
    CohortError
        Everything that is wrong.
    """
    source, table, problems = open_table(folder, class_names)
    problems += _fold_problems(table, n_splits)
    if problems:
        raise CohortError(source, problems, len(table))
    return table


def open_table(folder: Path, class_names: Sequence[str]) -> tuple[Path, pd.DataFrame, list[Problem]]:
    """The table with the path of each image, None where it may not or cannot be opened, and what is wrong so far."""
    source = cohort_table.find_table(folder)
    if (folder / PIXELS).is_file():
        table, problems = cohort_table.read_table(source, class_names, need_images=False)
        return source, table.assign(path=None), problems
    table, problems = cohort_table.read_table(source, class_names)
    root, listing, paths = folder.resolve(), None, []
    for row, name in zip(table["row"], table["image"], strict=True):
        path, fault = _inside(folder, root, name)
        if path is not None and not os.path.isfile(path):
            listing = _listing(folder) if listing is None else listing
            path, fault = None, f"expected an image file, found no {shown(name)}{_nearest(name, listing)}"
        paths.append(path)
        if fault:
            problems.append(Problem(row, fault))
    return source, table.assign(path=paths), problems


def _inside(folder: Path, root: Path, name: str) -> tuple[Path | None, str]:
    """Path of an image inside the folder, or what speaks against it."""
    if not name:
        return None, ""  # the table's own check has said so
    try:
        path = folder / name
        if not os.path.exists(path):  # written on Windows, or with letters composed otherwise than the file system's
            plain = name.replace("\\", "/")
            others = (folder / other for other in (plain, *(unicodedata.normalize(f, plain) for f in ("NFC", "NFD"))))
            path = next((other for other in others if os.path.exists(other)), path)
        if not path.resolve().is_relative_to(root):
            return None, f"expected an image inside the folder, found {shown(name)}; move it there"
    except (OSError, ValueError, RuntimeError):  # too long a name, a loop of links
        return None, f"expected the name of an image, found {shown(name)}"
    return path, ""


def _listing(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(found)[:20_000]


def _nearest(name: str, listing: list[str]) -> str:
    folded = {item.casefold(): item for item in listing}
    if name.casefold() in folded:
        return f"; the nearest is {shown(folded[name.casefold()])}"
    close = difflib.get_close_matches(name, listing[:2000], n=1, cutoff=0.8)
    return f"; the nearest is {shown(close[0])}" if close else ""


def _fold_problems(table: pd.DataFrame, n_splits: int | None) -> list[Problem]:
    if n_splits is None:
        return []
    if table["fold"].notna().any():
        found = int(table["fold"].max()) + 1
        if found != n_splits:
            words = (
                f'expected as many folds as folds.n_splits {n_splits}, found {found}; give SET="folds.n_splits={found}"'
            )
            return [Problem(None, words)]
        return []
    counts = table.drop_duplicates("patient")["class_name"].value_counts()
    few = counts[counts < n_splits]
    return [
        Problem(
            None,
            f"expected at least folds.n_splits {n_splits} patients of each class, found {count} of"
            f' {shown(name)}; add patients or give SET="folds.n_splits={max(2, count)}"',
        )
        for name, count in few.items()
    ]
