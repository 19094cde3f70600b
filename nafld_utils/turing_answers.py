"""Answers to the image Turing test as a table: read from a CSV, checked against the set, put beside the truth.

Contract: tables (or the bytes of a CSV) in, tables out. Answers are accepted only where every rater answered every
image of the set once. The results files that the page writes are `nafld_utils.turing_import`'s.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd

from nafld_utils.turing_sitting import CONFIDENCE_LEVELS

REVISION = ("turing_answers", 1)

RATING_COLUMNS = ("rater", "image_id", "said_real")
FORMULA = "=+-@"  # a spreadsheet computes a cell that begins so
_RATER_LENGTH = 40  # choice: of a rater's name in a table made by hand


# ---------------------------------------------------------------- a table made by hand


def read_table(content: bytes, items: pd.DataFrame) -> pd.DataFrame:
    """Read a CSV of answers, for a sitting that was held without the page.

    Parameters
    ----------
    content : bytes
        UTF-8 with a header: ``rater, image_id, said_real`` (1 real, 0 synthetic) and, where there is one,
        ``confidence`` (per cent, may be empty); further columns are dropped.
    items : pandas.DataFrame
        The set: ``image_id``.

    Returns
    -------
    pandas.DataFrame
        ``rater, image_id`` str, ``said_real`` int, ``confidence`` float; every rater with every image once.

    Raises
    ------
    ValueError
        No CSV, a missing column, an answer other than 0 and 1, an unknown image, an image that a rater answered twice
        or not at all. One sentence names the line or the rater.
    """
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected a CSV of ratings in UTF-8, found {reason}; export it again.") from None
    missing = [name for name in RATING_COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"expected columns {', '.join(RATING_COLUMNS)}, found no {', '.join(missing)}; add a header line."
        )
    if "confidence" not in table:
        table["confidence"] = ""
    table = table[[*RATING_COLUMNS, "confidence"]].apply(lambda column: column.str.strip())
    plain = [0 < len(r) <= _RATER_LENGTH and r.isprintable() and r[0] not in FORMULA for r in table["rater"]]
    named = np.array(plain, dtype=bool)
    sure = table["confidence"].isin(["", *(f"{level}" for level in CONFIDENCE_LEVELS)])
    wrong = np.flatnonzero(~table["said_real"].isin(["0", "1"]) | ~named | ~sure)
    if len(wrong):
        row = table.iloc[wrong[0]].to_dict()
        levels = ", ".join(map(str, CONFIDENCE_LEVELS))
        raise ValueError(
            f"line {wrong[0] + 2}: expected a rater of at most {_RATER_LENGTH} characters that begins with none of"
            f" {FORMULA}, said_real 0 or 1 and a confidence empty or of {levels}, found {row}; correct that line."
        )
    table["said_real"] = table["said_real"].astype(int)
    table["confidence"] = pd.to_numeric(table["confidence"]).astype(float)
    check_ratings(table, items)
    return table


# ---------------------------------------------------------------- answers against the set


def check_ratings(ratings: pd.DataFrame, items: pd.DataFrame) -> None:
    """Refuse ratings that do not answer every image of the set exactly once.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id, said_real``.
    items : pandas.DataFrame
        The set: ``image_id``.

    Raises
    ------
    ValueError
        No rater, an unknown image, an image answered twice, an image not answered; names the first one.
    """
    if not len(ratings):
        raise ValueError("expected one row an answer, found none; collect ratings first.")
    unknown = ratings[~ratings["image_id"].isin(items["image_id"])]
    if len(unknown):
        row = unknown.iloc[0]
        raise ValueError(
            f"expected images of this set, found {row.image_id!r} by rater {row.rater!r}"
            f" ({len(unknown)} such answers); these are answers to another set."
        )
    refuse_repeats(ratings)
    answered = ratings.groupby("rater")["image_id"].nunique()
    short = answered[answered < len(items)]
    if len(short):
        rater = short.index[0]
        absent = items.loc[~items["image_id"].isin(ratings.loc[ratings["rater"] == rater, "image_id"]), "image_id"]
        raise ValueError(
            f"expected {len(items)} answers from each rater, found {short.iloc[0]} from {rater!r}"
            f" ({absent.iloc[0]!r} is missing); complete them or leave this rater out."
        )


def refuse_repeats(ratings: pd.DataFrame) -> None:
    """Refuse two answers of one rater to one image, with a ValueError that names the first.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id`` at least.
    """
    twice = ratings[ratings.duplicated(["rater", "image_id"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"expected one answer an image, found a second for {row.image_id!r} by rater {row.rater!r};"
            " keep one of them."
        )


def attach_key(ratings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Put the answers beside the truth, the form that `turing.summarize` takes.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id, said_real``; ``confidence, seconds, simulated`` are kept where they are given.
    items : pandas.DataFrame
        The set, from `nafld_utils.turing_sitting.put_in_order`.

    Returns
    -------
    pandas.DataFrame
        ``rater, image_id, order, kind, label, is_real, said_real, confidence, seconds, simulated``, sorted by rater
        and order.

    Raises
    ------
    ValueError
        As in `check_ratings`.
    """
    check_ratings(ratings, items)
    key = items[["image_id", "order", "kind", "label", "is_real"]]
    given = {"confidence": float("nan"), "seconds": float("nan"), "simulated": False}
    answers = ratings[list(RATING_COLUMNS)].assign(**{name: ratings.get(name, other) for name, other in given.items()})
    table = answers.merge(key, on="image_id", validate="many_to_one")
    columns = ["rater", "image_id", "order", "kind", "label", "is_real", "said_real", *given]
    return table[columns].sort_values(["rater", "order"], kind="stable").reset_index(drop=True)
