"""Which of many comparisons are tested: one primary, a short declared family beside it, and all others as they are.

Contract: a table of `comparisons.compare_arms`, of both levels, in and out; which rows are tested follows from what
was declared, never from a number of the table. The p that are adjusted come from t distributions, so that none is
kept from being small by the number of resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.artifacts import claim, key_of
from nafld_utils.sweep import comparisons

REVISION = ("sweep_families", 1)

# What a row of the table is for.
PRIMARY = "primary"
SECONDARY = "secondary, Holm-adjusted"
EXPLORATORY = "exploratory, unadjusted"


def with_roles(table: pd.DataFrame, primary: Mapping[str, Any], secondary_arms: Sequence[str] = ()) -> pd.DataFrame:
    """The table with ``role``, ``primary`` (bool) and ``p_patients_holm``, which the secondary family alone has.

    Primary is the row of `primary` (columns of `comparisons.CELL` and their values) at image level, tested once and
    unadjusted. The secondary family is that comparison at patient level and, at image level, those of `secondary_arms`
    that stand beside it at the same rate; its ``p_patients`` are adjusted together (Holm 1979). All other rows
    explore.
    """
    image, patient = (table["level"] == level for level in comparisons.LEVELS)
    declared = comparisons.where(table, primary)
    named = image & declared
    if named.sum() != 1:
        raise ValueError(
            f"primary: expected one comparison named {dict(primary)}, found {named.sum()} among {int(image.sum())};"
            f" name {', '.join(comparisons.present(table))}."
        )
    others = np.any([comparisons.where(table, {**primary, "arm": arm}) for arm in secondary_arms] or [False], axis=0)
    family = (patient & declared) | (image & others & ~declared)
    role = np.select([named, family], [PRIMARY, SECONDARY], EXPLORATORY)
    tested = family & table["p_patients"].notna()
    table, adjusted = table.assign(primary=named, role=role), np.full(len(table), np.nan)
    if tested.any():
        adjusted[tested] = holm(table.loc[tested, "p_patients"].to_numpy())
    table.insert(table.columns.get_loc("p_patients") + 1, "p_patients_holm", adjusted)
    return table


def holm(p: np.ndarray) -> np.ndarray:
    """Holm-adjusted p ``(n,)`` of one family."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, method="holm")[1]


def bounds_in_words(row: pd.Series) -> str:
    """The interval over patients of a row, or that it has none."""
    if not np.isfinite(row.low_patients):
        return "a range that cannot be said"
    return f"[{row.low_patients:+.3f}, {row.high_patients:+.3f}]"


def p_in_words(row: pd.Series) -> str:
    """The adjusted p of a row of the secondary family, or that it has none."""
    return f"Holm p = {row['p_patients_holm']:.2g}" if np.isfinite(row["p_patients_holm"]) else "not tested"


def in_words(table: pd.DataFrame) -> str:
    """The secondary family of `with_roles` in a sentence, and what all other rows are worth."""
    found = table[table["role"] == SECONDARY]
    each = [
        f"{row.arm} images{' with a patient counted once' * (row.level == 'patient')} {row.difference:+.3f}"
        f" {bounds_in_words(row)}, {p_in_words(row)}"
        for _, row in found.iterrows()
    ]
    words = [f"Secondary, as declared (intervals unadjusted): {'; '.join(each)}."] if each else []
    if n_others := int((table["role"] == EXPLORATORY).sum()):
        words.append(f"All others ({n_others}) explore: their p are unadjusted and test nothing.")
    return " ".join(words)


def claims(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The gains of the secondary family, each with its adjusted p; the intervals are those of one comparison alone."""
    rows = []
    for _, row in table[table["role"] == SECONDARY].iterrows():
        whole = row.level == "patient"
        key = key_of("sweep.gain.secondary", "patient_level" if whole else row.arm)
        text = f"gain by {row.arm} images, r = {row.rate:g}{', a patient counted once' * whole}"
        over = f"{comparisons.over_gain(row.n_seeds)}; unadjusted"
        facts = {"interval": (row.low_patients, row.high_patients, over), "n": row.n_patients}
        text += f" (secondary, {p_in_words(row)})"
        rows.append(claim(key, text, row.difference, "not in the paper", **facts, unit=f"{row.level}-level AUC"))
    return rows
