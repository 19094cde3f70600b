"""Statistics of the image Turing test that fit few raters better than Table 1's: bounded, over images too, of doubt.

Contract: tables in, tables out, ratings as `nafld_utils.turing.table_1.summarize` describes them. Every interval is
of 95 %, and the column ``over`` says what it is over; where a number is missing, ``note`` says why. Five raters can
show little, so these intervals are wide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special
from scipy import stats as scipy_stats

from nafld_utils import statistics
from nafld_utils.turing import table_1

REVISION = ("turing_statistics", 2)

_NAN = float("nan")
_OVER_RATERS = "raters (Student t, logit scale); these images"


# ---------------------------------------------------------------- Table 1 with bounded intervals


def bounded_summary(ratings: pd.DataFrame) -> pd.DataFrame:
    """Table 1's means with intervals over raters that stay in [0, 1], in the form of
    `nafld_utils.turing.table_1.summarize`.

    Choice: Korn and Graubard (1998, Survey Methodology 24, 193): Clopper-Pearson at the effective number of answers
    ``mean (1 - mean) / var(mean)``, at most the real one, shrunk by ``(t_{n-1} / t_{R-1})^2`` for R raters; R's
    ``survey::svyciprop(method = "beta")`` is the same without the upper limit. It is defined where all raters are
    alike or perfect, and with one rater it is the exact binomial interval over the images.
    """
    rows = []
    for (group, metric), own in table_1.rater_rates(ratings).groupby(["group", "metric"], sort=False):
        rates = own["rate"].to_numpy()
        over, note = "raters (Korn-Graubard, bounded); these images", ""
        if len(rates) == 1:
            over, note = "images (exact binomial); this rater", "one rater: nothing about other raters"
        interval = _korn_graubard(rates, int(own["n"].sum()))
        rows.append((group, metric, rates.mean(), *interval, len(rates), over, note))
    return pd.DataFrame(rows, columns=table_1.SUMMARY_COLUMNS)


def _korn_graubard(rates: np.ndarray, n: int) -> tuple[float, float]:
    """Interval of the mean of raters' rates, which are of n answers in all."""
    mean, n_raters, effective = float(rates.mean()), len(rates), float(n)
    if n_raters > 1:
        variance = rates.var(ddof=1) / n_raters
        effective = min(n, mean * (1 - mean) / variance) if variance > 0 else float(n)
        if n > 1:
            effective *= (scipy_stats.t.ppf(0.975, n - 1) / scipy_stats.t.ppf(0.975, n_raters - 1)) ** 2
    right = effective * mean
    low = scipy_stats.beta.ppf(0.025, right, effective - right + 1) if mean > 0 else 0.0
    high = scipy_stats.beta.ppf(0.975, right + 1, effective - right) if mean < 1 else 1.0
    return float(low), float(high)


# ---------------------------------------------------------------- Table 1 over raters and images


def crossed_summary(ratings: pd.DataFrame) -> pd.DataFrame:
    """Table 1's means with intervals over raters AND images: what another panel would find on other such images.

    Every rater has the same images. In the form of `nafld_utils.turing.table_1.summarize`, and ``se, df`` of the mean.

    Choice: two-way crossed analysis of variance, raters by images, both random, images within their kind and class:
    ``var(mean) = (MS_raters + MS_images - MS_rest) / (raters * images)``, no mean square taken below that of the rest
    (no negative variance), with Satterthwaite's degrees of freedom; limits on the logit scale, so that they stay in
    (0, 1). In simulated panels of five raters and 50 images (1500 for each of five
    settings; SDs of 0 to 1 over raters and images on the log-odds scale) it held the truth in 95 to 98 %.
    """
    table = table_1.checked(ratings)
    table_1.rater_rates(table)  # refuses a rater without one of the four kinds
    rows = [{"group": group, "metric": metric} | crossed_mean(part) for group, metric, part in table_1.subsets(table)]
    return pd.DataFrame(rows, columns=[*table_1.SUMMARY_COLUMNS, "se", "df"])


def crossed_mean(table: pd.DataFrame) -> dict[str, Any]:
    """Share of right answers over raters and images: ``mean, low, high, n_raters, over, note, se, df``."""
    grid, cells = right_answers(table)
    cell = cells.groupby(["is_real", "label"]).ngroup().to_numpy()
    mean = float(grid.mean(axis=1).mean())
    out = {"mean": mean, "low": _NAN, "high": _NAN, "n_raters": len(grid), "over": "raters and images", "note": ""}
    out |= {"se": _NAN, "df": _NAN}
    if len(grid) < 2:
        return out | {"note": "one rater: no interval over raters and images"}
    if grid.shape[1] <= cell.max() + 1:
        return out | {"note": "one image per kind: no interval over raters and images"}
    if grid.isna().to_numpy().any():
        return out | {"note": "raters saw different images: no crossed analysis"}
    squares = mean_squares(grid.to_numpy(), cell)
    if mean in (0.0, 1.0) or max(squares.raters, squares.images, squares.rest) < 1e-12:
        return out | {"note": "no answer differs within a kind: no spread to build an interval on"}
    se, df = crossed_error(squares, grid.size)
    half = scipy_stats.t.ppf(0.975, df) * se / (mean * (1 - mean))
    low, high = scipy_stats.logistic.cdf(scipy_stats.logistic.ppf(mean) + np.array([-half, half]))
    return out | {"low": float(low), "high": float(high), "se": se, "df": df}


class MeanSquares(NamedTuple):
    """Mean squares of a raters-by-images analysis of variance, and their degrees of freedom."""

    raters: float
    images: float
    rest: float
    df_raters: float
    df_images: float
    df_rest: float


def crossed_error(squares: MeanSquares, n_answers: int) -> tuple[Any, Any]:
    """Standard error of the grand mean and its degrees of freedom; see `crossed_summary`. Takes arrays, too."""
    rest = squares.rest
    raters, images = np.maximum(squares.raters, rest), np.maximum(squares.images, rest)
    top = raters + images - rest
    parts = raters**2 / squares.df_raters + images**2 / squares.df_images + rest**2 / squares.df_rest
    return np.sqrt(top / n_answers), top**2 / parts


def mean_squares(grid: np.ndarray, cell: np.ndarray) -> MeanSquares:
    """Of a grid (R, n) of 0 and 1, was rater r right about image i; `cell` (n,) int is image i's kind and class."""
    n_raters, n = grid.shape
    _, cell = np.unique(cell, return_inverse=True)
    n_cells = int(cell.max()) + 1
    member = np.eye(n_cells)[cell] / np.bincount(cell)[cell][:, None]
    by_rater_cell = (grid @ member)[:, cell]  # each rater's mean in the cell of each image
    image, centre = grid.mean(0), grid.mean(0) @ member
    rest = grid - by_rater_cell - image + centre[cell]
    df = (n_raters - 1.0, float(n - n_cells), float((n_raters - 1) * (n - n_cells)))
    return MeanSquares(
        float(n * ((grid.mean(1) - grid.mean()) ** 2).sum() / df[0]),
        float(n_raters * ((image - centre[cell]) ** 2).sum() / df[1]),
        float((rest**2).sum() / df[2]),
        *df,
    )


def right_answers(ratings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Right answers (0 or 1, NaN where there is none) as raters by images, and the images: ``is_real, label``."""
    table = _right(ratings)
    grid = table.pivot_table(index="rater", columns="image_id", values="right")
    return grid, table.drop_duplicates("image_id").set_index("image_id").loc[grid.columns, ["is_real", "label"]]


def _right(ratings: pd.DataFrame) -> pd.DataFrame:
    """Checked ratings with ``right``, 0.0 or 1.0."""
    table = table_1.checked(ratings)
    return table.assign(right=(table["said_real"] == table["is_real"]).astype(float))


# ---------------------------------------------------------------- agreement


def agreement(ratings: pd.DataFrame) -> float:
    """Fleiss' kappa of the answers: 0 is agreement by chance, 1 complete.

    Refuses one rater, unequal numbers of raters per image, and one answer only, where kappa is not defined.
    """
    from statsmodels.stats.inter_rater import fleiss_kappa

    counts = table_1.checked(ratings).groupby("image_id")["said_real"].agg(["size", "sum"])
    if np.ptp(counts["size"]) or counts["size"].iloc[0] < 2:
        raise ValueError(
            "ratings: expected the same two or more raters for every image, found"
            f" {sorted(counts['size'].unique().tolist())} raters per image; kappa needs equal numbers."
        )
    if counts["sum"].sum() in (0, counts["size"].sum()):
        raise ValueError("ratings: expected both answers, found one only; kappa is not defined.")
    return float(fleiss_kappa(np.stack([counts["sum"], counts["size"] - counts["sum"]], axis=1)))


def agreement_table(ratings: pd.DataFrame, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Fleiss' kappa of all, of the real and of the synthetic images, with a bootstrap interval over images.

    Columns ``images, kappa, low, high, n_images, over, note``. Resamples with one answer only, where kappa is not
    defined, are left out.
    """
    rng, table = np.random.default_rng(seed), table_1.checked(ratings)
    parts = {"all": table, "real": table[table["is_real"] == 1], "synthetic": table[table["is_real"] == 0]}
    rows = []
    for name, part in parts.items():
        n = part["image_id"].nunique()
        try:
            kappa = agreement(part)
        except ValueError as error:
            rows.append((name, _NAN, _NAN, _NAN, n, "", str(error)))
            continue
        said = part.groupby("image_id")["said_real"].agg(["size", "sum"])
        draws = _kappas(said["sum"].to_numpy()[rng.integers(n, size=(n_resamples, n))], int(said["size"].iloc[0]))
        still = np.nanmax(draws) == np.nanmin(draws)
        low, high = (_NAN, _NAN) if still else np.nanpercentile(draws, [2.5, 97.5])
        over = statistics.NO_SPREAD if still else "images (percentile bootstrap); these raters"
        rows.append((name, kappa, low, high, n, over, ""))
    return pd.DataFrame(rows, columns=["images", "kappa", "low", "high", "n_images", "over", "note"])


def _kappas(said_real: np.ndarray, n_raters: int) -> np.ndarray:
    """Fleiss' kappa of two answers along the last axis: (..., n_images) counts of "real"; NaN where not defined."""
    said_synthetic = n_raters - said_real
    pairs = said_real * (said_real - 1) + said_synthetic * (said_synthetic - 1)
    agree = pairs.mean(-1) / (n_raters * (n_raters - 1))
    share = said_real.mean(-1) / n_raters
    chance = share**2 + (1 - share) ** 2
    return np.where(chance < 1, (agree - chance) / np.where(chance < 1, 1 - chance, 1), np.nan)


# ---------------------------------------------------------------- images that fool everyone, and doubt


def unanimous(ratings: pd.DataFrame) -> pd.DataFrame:
    """Images that all raters recognised and images that fooled all: ``images, found``, and ``expected``.

    Expected is the number if each rater's right answers fell on the images of a kind at random and independently of
    the other raters.
    """
    table = _right(ratings)
    images = table.groupby(["image_id", "is_real"])["right"].agg(["min", "max"]).reset_index()
    rates = table.groupby(["is_real", "rater"])["right"].mean()
    expected = {"all": 0.0, "none": 0.0}
    for kind, part in images.groupby("is_real"):
        expected["all"] += len(part) * float(rates[kind].prod())
        expected["none"] += len(part) * float((1 - rates[kind]).prod())
    found = {"all": int((images["min"] == 1).sum()), "none": int((images["max"] == 0).sum())}
    rows = [(f"recognised by {who}", found[who], expected[who]) for who in found]
    return pd.DataFrame(rows, columns=["images", "found", "expected"])


def calibration(ratings: pd.DataFrame) -> pd.DataFrame:
    """Do raters know when they know? The share of right answers at each stated confidence (per cent).

    Columns ``confidence, n, n_raters, right`` (share), ``low, high`` (Clopper-Pearson), ``over``; no row where nobody
    stated a confidence.
    """
    rows = []
    for level, own in _sure(ratings).groupby("confidence"):
        interval = statistics.exact_interval(int(own["right"].sum()), len(own))
        raters = own["rater"].nunique()
        rows.append((level, len(own), raters, own["right"].mean(), *interval, "answers, taken for independent"))
    return pd.DataFrame(rows, columns=["confidence", "n", "n_raters", "right", "low", "high", "over"])


def overconfidence(ratings: pd.DataFrame) -> pd.DataFrame:
    """How much surer raters are than they are right, and whether their confidence is worth anything, over raters.

    Rows "overconfidence" (mean stated confidence less share right; 0 is calibrated, above 0 too sure) and "Brier
    score" (mean squared error of the stated probability of being right; 0.25 for always saying 50 %, lower is
    better); columns ``quantity, value, low, high, n, over, note``.
    """
    table = _sure(ratings)
    table["overconfidence"] = table["confidence"] / 100 - table["right"]
    table["Brier score"] = table["overconfidence"] ** 2
    why_not = {0: "nobody stated a confidence", 1: "one rater: no interval over raters"}
    rows = []
    for name, least in {"overconfidence": -1.0, "Brier score": 0.0}.items():
        values = table.groupby("rater")[name].mean().to_numpy()
        n = len(values)
        rows.append((name, *_within(values, least), n, _OVER_RATERS if n > 1 else "", why_not.get(n, "")))
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n", "over", "note"])


def _within(values: np.ndarray, least: float) -> tuple[float, float, float]:
    """Mean and Student t interval of values in [least, 1], on the logit scale, so that it stays there."""
    mean, low, high = (np.array(statistics.over_folds(values)) - least) / (1 - least)
    if 0 < mean < 1:
        half = (high - mean) / (mean * (1 - mean))
        low, high = special.expit(special.logit(mean) + np.array([-half, half]))
    return tuple(float(value * (1 - least) + least) for value in (mean, low, high))


def _sure(ratings: pd.DataFrame) -> pd.DataFrame:
    """The answers with a stated confidence, and ``right``."""
    table = _right(ratings)
    given = table["confidence"] if "confidence" in table else pd.Series(_NAN, table.index)
    return table.assign(confidence=pd.to_numeric(given)).dropna(subset=["confidence"])
