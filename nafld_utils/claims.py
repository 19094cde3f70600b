"""Claims: the headline numbers of a stage, each with a key that reports ask for and a sentence that people read.

Contract: pure. A key is made of parts joined by dots, the room first and then what tells the claim from the room's
others, e.g. ``sweep.gain.patients`` or ``copies.share.class``; a part holds small letters, digits and underscores.
A key stays when its sentence is reworded, and stands once in a run (`artifacts.record_claims` checks it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nafld_utils import stats

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
        A 95 % interval and what it is over; without bounds, ``over`` may say why there are none.
    n : int, optional
        How many of what the interval is over.
    unit : str
        Unit of the numbers.
    paper : float, optional
        The paper's number.
    """
    low, high, over = interval
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


def over_folds(key: str, text: str, values: Any, unit: str) -> dict[str, Any]:
    """A claim that the paper does not make, from one value per fold: their mean, with Student's t over folds."""
    mean, low, high = stats.over_folds(values)
    return claim(key, text, mean, UNSTATED, interval=(low, high, "folds"), n=len(values), unit=unit)
