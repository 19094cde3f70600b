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

from nafld_utils import params, statistics
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
        return "(no interval: nothing varies)"
    return f"[{row.low_patients:+.3f}, {row.high_patients:+.3f}]"


def p_in_words(row: pd.Series) -> str:
    """The adjusted p of a row of the secondary family, or that it has none."""
    return f"Holm p = {row['p_patients_holm']:.2g}" if np.isfinite(row["p_patients_holm"]) else "not tested"


def over_in_words(row: pd.Series) -> str:
    """What the interval over patients of a row is over, with the numbers of patients and, where it is, of seeds."""
    seeds = f" and {row.n_seeds} training seeds" if row.n_seeds >= statistics.FEWEST_SEEDS else ""
    return f"{row.n_patients} patients{seeds}"


def width_in_words(row: pd.Series) -> str:
    """How wide the interval over patients and seeds is beside that over seeds; empty where there are too few seeds."""
    if row.n_seeds < statistics.FEWEST_SEEDS or not row.high_seeds > row.low_seeds:
        return ""
    times = (row.high_patients - row.low_patients) / (row.high_seeds - row.low_seeds)
    if np.isclose(times, 1.0):
        return ", as wide as that over seeds, since the variance between patients is estimated as 0"
    fewer = ", as the patients add degrees of freedom" if times < 1 else ""
    return f", {times:.2g} times as wide as that over seeds{fewer}"


def power_in_words(row: pd.Series) -> str:
    """Which true difference such patients would show, of a row of `with_roles`."""
    if np.isnan(row.smallest_effect):
        return "how small a difference they could show cannot be told"
    text = (
        f"about four in five such studies would find a true difference of {row.smallest_effect:.3f}, and fewer a"
        " smaller one"
    )
    if row.smallest_effect > 1 - row.mean_auc_base:
        text = "no possible gain would be found by four in five such studies; these patients are too few"
    if statistics.is_narrow(row.smallest_effect, row.low_patients, row.high_patients):
        text += (
            f"; most of them would have a wider interval, since these {row.n_seeds} seeds agree more than"
            f" {row.n_patients} patients let expect"
        )
    return text


def verdict_in_words(row: pd.Series) -> str:
    """Whether the images helped, of a row of `with_roles`."""
    if row.n_seeds < statistics.FEWEST_SEEDS:
        needed = f"({row.n_seeds}; {statistics.FEWEST_SEEDS} are needed)"
        return f"too few training seeds {needed} to say whether the images help a network that is trained again"
    if row.low_patients > 0:
        return "the images helped, as far as this split and these training runs show"
    if row.high_patients < 0:
        return "the images did harm, as far as this split and these training runs show"
    over_seeds = np.isfinite(row.low_seeds) and (row.low_seeds > 0 or row.high_seeds < 0)
    seeds = "a difference over seeds alone, and " if over_seeds else ""
    return f"{seeds}this run does not tell whether the images help"


def in_words(table: pd.DataFrame) -> list[str]:
    """The secondary family of `with_roles` in a sentence, and what all other rows are worth."""
    found = table[table["role"] == SECONDARY]
    each = [
        f"{row.arm} images{' with a patient counted once' * (row.level == 'patient')} {row.difference:+.3f}"
        f" {bounds_in_words(row)}, {p_in_words(row)}"
        for _, row in found.iterrows()
    ]
    words = []
    if each:
        over = over_in_words(found.iloc[0])
        words.append(f"Secondary, as declared (95 % over {over}, intervals unadjusted): {'; '.join(each)}.")
    if n_others := int((table["role"] == EXPLORATORY).sum()):
        words.append(
            f"The other {n_others} comparisons are exploratory." if n_others > 1 else "One more is exploratory."
        )
    return words


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


# ---------------------------------------------------------------- which kind of images, and which use of them


def kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm at the network, way of training and rate of the primary comparison: kind and use.

    Parameters
    ----------
    table : pandas.DataFrame
        ``comparisons`` of `sweep.build_tables`.

    Returns
    -------
    pandas.DataFrame
        Its rows at image level, with ``images`` (the arm's name without its use) and ``use`` (``mixed in``,
        ``first`` or ``alone``).
    """
    primary = table[table["primary"]].iloc[0]
    same = {name: primary[name] for name in comparisons.present(table, (*comparisons.GROUP, "rate"))}
    found = table[comparisons.where(table, {**same, "level": "image"})]
    arms = [params.parse(name) for name in found["arm"]]
    use = ["first" if arm.first else "mixed in" if arm.with_real else "alone" for arm in arms]
    return found.assign(images=[arm.name.partition("_first")[0] for arm in arms], use=use).reset_index(drop=True)


def kinds_in_words(table: pd.DataFrame, simulated: bool) -> list[str]:
    """Which kind and use gains most, as a maximum of so many; on simulated patients what the positive control says.

    `simulated` says that the cohort is: simulated images are then more patients of it, and raise the AUC if anything
    does.
    """
    found, words = kinds(table), []
    if len(found) > 1:
        best = found.loc[found["difference"].idxmax()]
        words.append(
            f"Of {len(found)} kinds and uses at r = {best.rate:g} the largest gain is that of {best.images} images used"
            f" {best.use}: {best.difference:+.3f} {bounds_in_words(best)}; the largest of several is optimistic."
        )
    control = found[found["images"] == params.SIMULATED]
    if simulated and len(control):
        each = " and ".join(
            f"used {row.use} {row.difference:+.3f} {bounds_in_words(row)}" for _, row in control.iterrows()
        )
        seen = (control["low_patients"] > 0).any()
        words.append(
            f"Positive control: to this simulated cohort simulated images are more patients. Their gain is {each}:"
            f" {'so a gain can be seen here' if seen else 'as this cannot be shown here, no generator can be'}."
        )
    return words


def kind_claims(table: pd.DataFrame, simulated: bool) -> list[dict[str, Any]]:
    """The gain of each kind and use that explores; the positive control is named."""
    rows = []
    for _, row in kinds(table).query("role == @EXPLORATORY").iterrows():
        control = "; positive control: more patients" if simulated and row.images == params.SIMULATED else ""
        text = f"gain by {row.images} images used {row.use}, r = {row.rate:g} (exploratory{control})"
        over = f"{comparisons.over_gain(row.n_seeds)}; unadjusted"
        facts = {"interval": (row.low_patients, row.high_patients, over), "n": row.n_patients}
        rows.append(
            claim(
                key_of("sweep.kind", row.arm), text, row.difference, "not in the paper", **facts, unit="image-level AUC"
            )
        )
    return rows
