"""The simulator's constants and where each comes from: one table, ``stored/constants.csv``, which the code reads.

A row holds the numbers of one constant (``value``), how a patient's own value is drawn from them (``drawn``: a method
of NumPy's generator; empty: it is fixed), their unit, their kind and their source. The set ``cohort`` has every
constant; a variant puts its own sets over it. Whoever changes a row of the set ``cohort`` raises the revision of
``phantom``, of another set that of ``phantom_variants``.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils.phantom.variants import FULL, VARIANTS, Variant

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TABLE = Path(__file__).with_name("stored") / "constants.csv"
KINDS = {
    "published": "published value, or physics alone",
    "computation": "grid of the computation, no property of a patient or a scanner",
    "by eye": "chosen by eye, partly beside real frames, or a range that the literature leaves open",
    "frames": "measured on unlabelled frames of the real cohort",
    "labels": "fitted to label statistics of the real cohort",
}


class Draws:
    """The constants of a variant, and a generator that draws a patient's own from them."""

    def __init__(self, rng: np.random.Generator, variant: Variant = FULL) -> None:
        self.rng, self._values = rng, _values(variant.sets)

    def __getitem__(self, name: str) -> Any:
        """A constant's numbers: one alone, or several as a tuple."""
        return self._values[name][1]

    def draw(self, name: str, size: int | None = None) -> Any:
        """A patient's own value, or `size` of them; a constant that is not drawn takes nothing from the generator."""
        drawn, value = self._values[name]
        return getattr(self.rng, drawn)(*value, size) if drawn else value


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def _in_force(sets: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Row of each constant where `sets` lie over each other, the last on top."""
    return {row["constant"]: row for name in sets for row in _rows() if row["set"] == name}


@cache
def _values(sets: tuple[str, ...]) -> dict[str, tuple[str, Any]]:
    values = {}
    for name, row in _in_force(sets).items():
        numbers = tuple(float(word) if set(word) & set(".e") else int(word) for word in row["value"].split())
        values[name] = row["drawn"], numbers[0] if len(numbers) == 1 else numbers
    return values


def constants(variant: Variant = FULL) -> pd.DataFrame:
    """Every constant of a variant of the simulator, with its origin.

    Parameters
    ----------
    variant : Variant

    Returns
    -------
    pandas.DataFrame
        ``constant``, ``set`` (whose row is in force), ``drawn``, ``value`` (numbers, as text), ``unit``, ``kind`` (a
        key of `KINDS`), ``source``; px are 0.373 mm, the pixels of the real frames.
    """
    import pandas as pd

    return pd.DataFrame(_in_force(variant.sets).values())


def kinds() -> pd.DataFrame:
    """How many constants of each kind: a row per variant that has constants of its own, a column per kind."""
    import pandas as pd

    names = ("full", "wide", "no_frames", "literature")
    counts = {name: constants(VARIANTS[name])["kind"].value_counts() for name in names}
    return pd.DataFrame(counts, index=list(KINDS)).T.fillna(0).astype(int).rename_axis("variant")
