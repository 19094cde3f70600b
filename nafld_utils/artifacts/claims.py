"""Claims: the headline numbers of a stage, each with a key that reports ask for and a sentence that people read.

Contract: a key is made of parts joined by dots, the room first and then what tells the claim from the room's
others, e.g. ``sweep.gain.patients`` or ``copies.share.class``; a part holds small letters, digits and underscores.
A key stays when its sentence is reworded, and stands once in a run (`Run.record_claims` checks it).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils import statistics

if TYPE_CHECKING:
    import pandas as pd

CLAIM_COLUMNS = ("claim", "paper", "this_run", "low", "high", "over", "n", "unit", "same_protocol", "key")
OTHER_COHORT = "no: another cohort"
UNSTATED = "not stated in the paper"


def key_of(room: str, *parts: Any) -> str:
    """A key from its beginning and the names of what it is about, as parts of a key may be written.

    Examples
    --------
    >>> key_of("baselines.patients", "frozen features + SVM"), key_of("quality.frechet", "class", "label_0")
    ('baselines.patients.frozen_features_svm', 'quality.frechet.class.label_0')
    """
    return ".".join([room, *(re.sub(r"[^a-z0-9]+", "_", str(part).lower()).strip("_") for part in parts)])


def claim(
    key: str,
    text: str,
    value: float,
    same_protocol: str,
    *,
    interval: tuple[Any, Any, str] = (None, None, ""),
    n: Any = None,
    unit: str = "",
    paper: float | None = None,
) -> dict[str, Any]:
    """One row of ``claims.csv``.

    Parameters
    ----------
    key : str
        From `key_of`, or written out.
    text : str
        Its sentence.
    value : float
        The number of this run.
    same_protocol : str
        "yes", or what differs from the paper.
    interval : (low, high, over)
        A 95 % interval and what it is over; without bounds (None), ``over`` may say why there are none, and where they
        are NaN it is made to say so.
    n : int, optional
        How many of what the interval is over.
    unit : str
        Unit of the numbers.
    paper : float, optional
        The paper's number.
    """
    low, high, over = interval
    if isinstance(low, float) and math.isnan(low) and not over.startswith("no interval"):
        why = {"folds": "only one fold" if n == 1 else "all folds alike"}
        over = f"no interval: {why.get(over, f'over {over}, too few or all alike')}"
    numbers = {"paper": paper, "this_run": value, "low": low, "high": high, "over": over, "n": n}
    return {"claim": text, **numbers, "unit": unit, "same_protocol": same_protocol, "key": key}


def of_row(
    key: str,
    text: str,
    row: Mapping[str, Any],
    same: str = UNSTATED,
    unit: str = "",
    paper: float | None = None,
    columns: tuple[str, str] = ("mean", "n"),
) -> dict[str, Any]:
    """A claim from a table's row with ``low, high, over`` and, in `columns`, the value and how many it is over."""
    value, n = columns
    bounds = (row["low"], row["high"], row["over"])
    return claim(key, text, row[value], same, interval=bounds, n=row[n], unit=unit, paper=paper)


def over_folds(
    key: str, text: str, values: Any, unit: str, within: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A claim that the paper does not make, from one value per fold: their mean, with Student's t over folds.

    `within` is the range that the interval must not leave (`statistics.student_t_interval`).
    """
    mean, low, high = statistics.over_folds(values, within or statistics.ANY)
    return claim(key, text, mean, UNSTATED, interval=(low, high, "folds"), n=len(values), unit=unit)


def claims_table(root: Path, stage: str, rows: Iterable[Mapping[str, Any]], is_foreign: bool) -> pd.DataFrame:
    """The table that `Run.record_claims` writes below `root`: rows checked, each with a key of its own in the run."""
    import pandas as pd

    rows = list(rows)
    for row in rows:
        unknown = set(row) - set(CLAIM_COLUMNS)
        missing = {"key", "claim", "this_run", "same_protocol"} - {name for name, value in row.items() if value != ""}
        if unknown or missing:
            raise ValueError(
                f"claim {row.get('claim')!r} of {stage}: unknown {sorted(unknown)}, missing {sorted(missing)}."
            )
    taken = _claim_keys(root, stage)
    for row in rows:
        if row["key"] in taken:
            raise ValueError(
                f"claim {row['claim']!r} of {stage}: expected a key of its own, found {row['key']!r}, which"
                f" {taken[row['key']]} has; give one of them another key."
            )
        taken[row["key"]] = f"claim {row['claim']!r} of {stage}"
    table = pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))
    if is_foreign:
        stated = table["paper"].notna() | (table["same_protocol"] == "yes")
        claim = table["claim"].str.replace(r" \(paper: [^)]*\)", "", regex=True)
        table = table.assign(claim=claim, paper=None, same_protocol=table["same_protocol"].where(~stated, OTHER_COHORT))
    return table


def _claim_keys(root: Path, stage: str) -> dict[str, str]:
    """Keys that the claims of other stages have, each with whose it is."""
    import pandas as pd

    found = {}
    for path in sorted(root.glob("*/claims.csv")):
        if path.parent.name != stage:
            with contextlib.suppress(OSError, ValueError):  # a damaged one is another stage's matter
                table = pd.read_csv(path, dtype=str, keep_default_na=False)
                found |= dict.fromkeys(table.get("key", ()), f"a claim of {path.parent.name}")
    return found
