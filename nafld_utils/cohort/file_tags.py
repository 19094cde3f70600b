"""What the files of a cohort say beside their pixels, and whether it gives the class away.

Contract: one text per image (`Picture.said` as ``name: value``, separated by semicolons) in, tables and sentences out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from nafld_utils.cohort.data import Cohort

REVISION = ("file_tags", 1)
WIDTH = 240  # bytes of a text (choice): the longest that a reader gives has 150
LEVEL = 0.01  # choice: several tags are looked at, and a warning costs a reader time
FEW = 5  # values (choice) up to which each is compared; more are compared as numbers
COLUMNS = ("tag", "value", "patients_0", "patients_1", "p", "differs")


def encoded(said: Mapping[str, str]) -> np.ndarray:
    """What a file says as (WIDTH,) uint8, so that a store can hold it."""
    text = "; ".join(f"{name}: {value}" for name, value in said.items())
    return np.frombuffer(text.encode()[:WIDTH].ljust(WIDTH), np.uint8)


def decoded(rows: np.ndarray) -> list[str]:
    """Texts of (N, WIDTH) uint8."""
    return [row.tobytes().decode(errors="ignore").strip(" \0") for row in rows]


def tags_by_class(found: Cohort) -> pd.DataFrame:
    """Tags of the files that are not the same for all patients, by class.

    Parameters
    ----------
    found : Cohort
        A cohort; one that is no folder of files has no tags.

    Returns
    -------
    pandas.DataFrame
        One row per tag and value: ``tag, value``; ``patients_0, patients_1`` (patients of each class most of whose
        images have it); ``p`` (two-sided; one value against all others by Fisher's exact test, times the number of
        values; or the numbers of many values by Mann and Whitney's); ``differs``: below `LEVEL`, or no value of one
        class occurs in the other. Choice: over patients, since the images of one are read alike.
    """
    if found.file_tags is None:
        return pd.DataFrame(columns=list(COLUMNS))
    usual = _tags(found).groupby(found.images["patient_id"].to_numpy()).agg(lambda column: column.mode()[0])
    label = found.patients.set_index("patient_id")["label"].loc[usual.index].to_numpy()
    varying = usual.columns[(usual != usual.iloc[0]).any()]
    parts = [_compared(name, usual[name], label) for name in varying]
    rows = [row for part in parts for row in part]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _tags(found: Cohort) -> pd.DataFrame:
    """Text of each tag of each image, a column per tag; no column where the cohort is no folder of files."""
    if found.file_tags is None:
        return pd.DataFrame(index=range(len(found.images)))
    pairs = found.file_tags["file_says"].fillna("").map(lambda text: dict(re.findall(r"([a-z]+): ([^;]*)", text)))
    return pd.DataFrame(list(pairs)).fillna("not said")


def mixed_levels(found: Cohort) -> str:
    """A sentence where the range of grey levels is decided in several ways within one cohort; else nothing."""
    tags = _tags(found)
    said = tags["levels"] if "levels" in tags else pd.Series(dtype=str)
    ways = said.str.replace(r"^window.*", "a window", regex=True).value_counts()
    if len(ways) < 2:
        return ""
    counts = ", ".join(f"{way} ({count})" for way, count in ways.items())
    return (
        f"Warning: grey levels of the images are scaled in {len(ways)} ways, {counts}; save all with one range, or"
        " brightness tells which way it was."
    )


def tag_numbers(found: Cohort) -> pd.DataFrame:
    """Tags of each image as numbers, (N, d) float: 0 or 1 for each of few values, one of many as the number it is."""
    tags, parts = _tags(found), []
    for name, values in tags.items():
        many = values.nunique() > FEW
        parts.append(_numbers(values).rename(name) if many else pd.get_dummies(values, prefix=name, prefix_sep=" "))
    return pd.concat([tags[[]], *parts], axis=1).astype(float)


def _numbers(values: pd.Series) -> pd.Series:
    """The number in each text, below all others where there is none."""
    numbers = values.str.extract(r"(-?\d+\.?\d*)", expand=False).astype(float)
    return numbers.fillna(min(0.0, numbers.min()) - 1)


def _compared(name: str, values: pd.Series, label: np.ndarray) -> list[tuple[object, ...]]:
    """Rows of `tags_by_class` of one tag, from one value per patient."""
    from scipy import stats

    counts = pd.crosstab(values.to_numpy(), label).reindex(columns=[0, 1], fill_value=0)
    apart = bool((counts.min(axis=1) == 0).all())
    if len(counts) > FEW:
        numbers = _numbers(values).to_numpy()
        p = float(stats.mannwhitneyu(numbers[label == 0], numbers[label == 1]).pvalue)
        return [(name, f"{len(counts)} values", *counts.sum(), p, p < LEVEL)]
    rows = []
    for value, (a, b) in zip(counts.index, counts.to_numpy(), strict=True):
        others = counts.sum().to_numpy() - (a, b)
        p = min(1.0, float(stats.fisher_exact([[a, b], others]).pvalue) * len(counts))
        rows.append((name, value, int(a), int(b), p, apart or p < LEVEL))
    return rows


def tag_warnings(table: pd.DataFrame, class_names: tuple[str, str]) -> list[str]:
    """One sentence for each tag of image files that differs by class.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `cohort.tags_by_class`.
    class_names : (str, str)
        Of label 0 and 1.

    Returns
    -------
    list of str
        Empty where no tag differs.

    Examples
    --------
    >>> rows = [("format", "PNG", 8, 0, 0.0002, True), ("format", "TIFF", 0, 8, 0.0002, True)]
    >>> print(*tag_warnings(pd.DataFrame(rows, columns=list(COLUMNS)), ("benign", "malignant")))
    Warning: format of the files differs by class: PNG for 8 patients of benign and 0 of malignant, TIFF for 0 and 8.
    """
    differing = table[table["differs"].astype(bool)]
    said = []
    for tag, rows in differing.groupby("tag", sort=False):
        first, *others = rows[["value", "patients_0", "patients_1"]].itertuples(index=False)
        texts = [f"{first[0]} for {first[1]} patients of {class_names[0]} and {first[2]} of {class_names[1]}"]
        texts += [f"{value} for {a} and {b}" for value, a, b in others]
        said.append(f"Warning: {tag} of the files differs by class: {', '.join(texts)}.")
    return said
