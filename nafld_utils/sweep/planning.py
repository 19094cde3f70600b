"""How many patients it would take to show gains that were declared beforehand, and what these patients can show.

Contract: no power is given for the gain that was seen. The variance is that of the declared comparison at image level:
its part between patients falls with their number, its part between seeds does not (`statistics.planned`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import statistics
from nafld_utils.artifacts import claim, key_of
from nafld_utils.sweep import comparisons

REVISION = ("patients_needed", 2)

POINTS = 60  # of a curve of power
LEAST_POWER = 0.1  # below it, patients "cannot show" a gain
UNKNOWN = "how far trainings vary is not known"


def power_table(scores: pd.DataFrame, primary: Mapping[str, Any], gains: Sequence[float]) -> pd.DataFrame:
    """Power to show each gain over the number of patients, at image level.

    Parameters
    ----------
    scores : pandas.DataFrame
        As of `comparisons`.
    primary : dict
        Columns and values that name the declared comparison.
    gains : sequence of float
        Declared gains in AUC.

    Returns
    -------
    pandas.DataFrame
        ``gain, patients, power`` (0 to 1, planned cautiously), and alike in every row of a gain ``needed``
        (patients for 80 % power, from the cohort's number on; infinite where so few seeds hide the gain, NaN where
        nothing varies), ``power_here`` (the cohort's), ``n_patients, n_seeds, over``. Patients are in its class shares.
    """
    arm, base = comparisons.declared_pair(scores, primary)
    found, n_seeds = statistics.gain(arm.label, arm.scores, base.scores, arm.patient), len(arm.seeds)
    spread, here, nothing = statistics.cautious(found.spread, n_seeds), arm.counts["n_patients"], np.isnan(found.error)
    # of fewer no p can be 0.05
    fewest = statistics.fewest_patients(len(np.unique(arm.patient[arm.label == 1])), here)
    needed = [
        np.nan if nothing else max(fewest, statistics.patients_needed(spread, n_seeds, here, gain)) for gain in gains
    ]
    most = 2 * max([here, *(number for number in needed if np.isfinite(number))])
    patients = np.unique(np.geomspace(here, 40 * here if np.isinf(needed).any() else most, POINTS).round())
    parts = []
    for gain, number in zip(gains, needed, strict=True):
        power = statistics.power(gain, *statistics.planned(spread, n_seeds, patients / here)) if not nothing else np.nan
        part = pd.DataFrame({"patients": patients, "power": power * (patients >= fewest)})
        facts = {"gain": gain, "needed": number, "power_here": part["power"].iloc[0]}
        parts.append(part.assign(**facts, n_patients=here, n_seeds=n_seeds))
    return pd.concat(parts, ignore_index=True).assign(over=comparisons.over_gain(n_seeds))


def each_gain(table: pd.DataFrame) -> pd.DataFrame:
    """One row per declared gain: ``gain, needed, power_here, n_patients, n_seeds, over``."""
    names = ["gain", "needed", "power_here", "n_patients", "n_seeds", "over"]
    return table[names].drop_duplicates("gain").reset_index(drop=True)


def takes(needed: float, n_patients: int, n_seeds: int) -> str:
    """How many patients 80 % power takes, in words."""
    if np.isinf(needed):
        return f"more than {n_seeds} seeds, however many patients there are"
    if n_seeds < statistics.FEWEST_SEEDS:
        return f"at least {needed:,.0f} patients ({UNKNOWN})"
    return "about these patients or fewer" if needed <= n_patients else f"about {needed:,.0f} patients"


def report(table: pd.DataFrame) -> str:
    """How many patients each declared gain takes, in sentences, and how it is planned.

    Parameters
    ----------
    table : pandas.DataFrame
        ``power`` of `sweep.build_tables`.

    Returns
    -------
    str
    """
    rows = each_gain(table)
    if rows["needed"].isna().any():
        return "How many patients a gain takes cannot be told: nothing varies or an arm scores all images alike."
    text, few = [], rows["n_seeds"].iloc[0] < statistics.FEWEST_SEEDS
    for row in rows.itertuples():
        shows = f"show it with {'at most' if few else 'about'} {100 * row.power_here:.0f} %"
        shows = shows if row.power_here >= LEAST_POWER else "cannot show it"
        patients = takes(row.needed, row.n_patients, row.n_seeds)
        text.append(f"With 80 % power a gain of {row.gain:g} takes {patients}; these {row.n_patients} {shows}.")
    if not few:
        text.append(
            "Planned cautiously, with upper 80 % limits of what varies: about one such plan in five asks for too few"
            " patients, and the power said is too low more often than too high."
        )
    return " ".join(text)


def claims(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims on each declared gain: the power of these patients, and the patients needed where a number is enough."""
    rows = []
    for row in each_gain(table).itertuples():
        few, planned = row.n_seeds < statistics.FEWEST_SEEDS, f"show a declared gain of {row.gain:g}"
        least, how = (f", at least: {UNKNOWN}", f", at most: {UNKNOWN}") if few else (", about", ", about")
        over = f"planned over {row.over.partition(' (')[0]}; no interval"
        for key, text, value, unit in (
            ("sweep.power", f"power of these patients to {planned}{how}", row.power_here, "share"),
            ("sweep.patients_needed", f"patients needed to {planned} with 80 % power{least}", row.needed, "patients"),
        ):
            if np.isfinite(value):
                facts = {"interval": (None, None, over), "n": row.n_patients, "unit": unit}
                rows.append(claim(key_of(key, f"gain {row.gain:g}"), text, value, "not in the paper", **facts))
    return rows
