"""What stage 06 claims and stands on, the sweep and its baselines, and how well its intervals hold the truth.

The study of the intervals stands in the package, made by ``tests/benchmarks/interval_study.py``; it is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.artifacts import Run, Unit, load_table
from nafld_utils.sweep import frozen_classifier_units, planning, simulated_only, verdict
from nafld_utils.sweep.elsewhere import scored_units

STUDY = Path(__file__).parent / "stored" / "interval_study.csv"
LEAST_COVERAGE = 0.92  # of a 95 % interval; where the study counted less, a sentence says so


def claims(
    run: Run, tables: dict[str, pd.DataFrame], baselines: dict[str, pd.DataFrame], elsewhere: Any = None
) -> list[dict[str, Any]]:
    """Headline numbers of stage 06.

    Parameters
    ----------
    run : Run
    tables : dict of str to pandas.DataFrame
        Of `sweep.build_tables`.
    baselines : dict of str to pandas.DataFrame
        Of `sweep.build_baselines`.
    elsewhere : Elsewhere or None
        Of `sweep.build_elsewhere`.

    Returns
    -------
    list of dict
        As `artifacts.claim` makes them.
    """
    return [
        *verdict.claims(run, tables),
        *planning.claims(tables["power"]),
        *frozen_classifier_units.claims(run, baselines),
        *scored_units.claims(run, elsewhere),
    ]


def units(run: Run) -> list[Unit]:
    """Every unit stage 06 stands on."""
    apart = [*frozen_classifier_units.units(run), *simulated_only.units.units(run), *scored_units.units(run)]
    return [*verdict.units(run), *apart]


def stored(path: Path = STUDY) -> pd.DataFrame:
    """How often each method's 95 % interval of an AUC holds it, from the stored study; all simulated.

    One row per size and method: ``patients`` (label 1 + label 0), ``method``, ``holds`` (mean share over the cells of
    that size), ``least`` (in the worst cell), ``below, above`` (mean shares that lie wholly below or above the truth),
    ``width`` (mean), ``below_92`` (the cells where it holds the truth in less than 92 %, in words).
    """
    table = load_table(path)
    table[["method", "what"]] = table["outcome"].str.split(" ", expand=True)
    rows = []
    for (size, method), part in table.groupby(["patients", "method"], sort=False):
        held, mean = part[part["what"] == "holds"], part.groupby("what")["value"].mean()
        short = [
            f"AUC {row.auc:g}, correlation {row.correlation:g}: {100 * row.value:.2f} %"
            for row in held[held["value"] < LEAST_COVERAGE].itertuples()
        ]
        row = {"patients": size, "method": method, "holds": mean["holds"], "least": held["value"].min()}
        rows.append({**row, **mean[["below", "above", "width"]], "below_92": "; ".join(short)})
    return pd.DataFrame(rows)


def class_shares(scores: pd.DataFrame, class_names: Sequence[str]) -> str:
    """How many patients are of each class, in words.

    Parameters
    ----------
    scores : pandas.DataFrame
        Of `sweep.build_scores`.
    class_names : sequence of str
        Of label 0 and 1.

    Returns
    -------
    str
        E.g. ``38 fatty : 17 healthy``.
    """
    counts = scores.groupby("label")["patient_id"].nunique()
    return " : ".join(f"{counts[label]} {class_names[label]}" for label in (1, 0))


def report(run: Run, scores: pd.DataFrame, path: Path = STUDY) -> str:
    """What the stored study of intervals says of the run's method at the size nearest to the run's patients.

    Parameters
    ----------
    run : Run
    scores : pandas.DataFrame
        Of `sweep.build_scores`.
    path : Path
        The stored study.

    Returns
    -------
    str
    """
    patients = scores.drop_duplicates("patient_id")["label"]
    own = [max(1, int((patients == label).sum())) for label in (1, 0)]
    table, method = stored(path), run.settings.sweep.interval_method

    def far(size: str) -> float:
        return float(np.abs(np.log(sorted(own)) - np.log(sorted(map(int, size.split("+"))))).sum())

    size = min(table["patients"].unique(), key=far)
    row = table[(table["patients"] == size) & (table["method"] == method)].iloc[0]
    cells = row.below_92.split("; ") if row.below_92 else []
    worst = f" ({cells[0].partition(':')[0]})" if len(cells) == 1 else ""
    text = (
        f"This run has {own[0]}+{own[1]} patients; nearest in the study are {size}. There the interval in force"
        f" ({method}) holds the AUC in {100 * row.holds:.1f} % of simulated data sets, in {100 * row.least:.2f} % where"
        f" it does worst{worst}."
    )
    if len(cells) > 1:
        text += f" It holds it in less than {100 * LEAST_COVERAGE:.0f} % at {row.below_92}."
    if min(own) < min(int(n) for one in table["patients"] for n in one.split("+")):
        text += " This run has fewer patients of a class than any size studied: expect worse."
    return text
