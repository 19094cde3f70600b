"""The stored study of the intervals, which ``tests/benchmarks/interval_study.py`` makes and notebook 06 shows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nafld_utils import artifacts

RESULT = Path(__file__).parent / "stored" / "interval_study.csv"
COMMAND = "python tests/benchmarks/interval_study.py"


def stored(path: Path = RESULT) -> pd.DataFrame | None:
    """The stored result, or None where the study has not been run.

    Parameters
    ----------
    path : Path
        Table of the result.

    Returns
    -------
    pandas.DataFrame or None
        ``method, level, cohorts, holds, holds_low, holds_high`` (share of intervals that hold the truth, Wilson 95 %
        over cohorts), ``below, above`` (intervals that lie below the truth, or above it), ``mean_width, mean_auc,
        mean_truth, patients, frames, new_patients, pixels``.
    """
    return artifacts.load_table(path) if path.is_file() else None


def report(path: Path = RESULT) -> str:
    """The stored result in words, or how to make it.

    Parameters
    ----------
    path : Path
        Table of the result.
    """
    table = stored(path)
    if table is None:
        return f"The study of the intervals has not been run: {COMMAND}."
    first = table.iloc[0]
    text = [
        f"{first.cohorts} simulated cohorts of {first.patients} patients, {first.frames} frames each at"
        f" {first.pixels} px, frozen features; 95 % intervals that held the AUC on {first.new_patients} new patients:"
    ]
    for row in table.itertuples():
        text.append(f"  {row.method}: {row.holds:.0%} [{row.holds_low:.0%}, {row.holds_high:.0%}]")
    return "\n".join(text)
