"""How well raters of the image Turing test tell real from synthetic (paper, Table 1), and the paper's own answers.

Contract: tables in, tables out. Ratings are a table as `summarize` describes it, one row per answer; every function
that takes them refuses with a ValueError a missing column or value, a value other than 0 and 1, and an image rated
twice by one rater. *Sensitivity* is the share of real images recognised as real, *specificity* the share of synthetic
images recognised as synthetic. One rater gives one rate, so means and intervals are over raters, for these images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from nafld_utils import statistics
from nafld_utils.turing import results_files

REVISION = ("turing", 1)

GROUPS = ("unhealthy", "healthy", "both")
METRICS = ("accuracy", "sensitivity", "specificity")
CELLS = ("real unhealthy", "real healthy", "synthetic unhealthy", "synthetic healthy")
SUMMARY_COLUMNS = ["group", "metric", "mean", "low", "high", "n_raters", "over", "note"]
OVER = "raters (Student t, not clipped); these images"

# Table 1 of the paper: mean [low, high] of accuracy, sensitivity and specificity; five raters, 50 images.
PAPER_TABLE: dict[str, tuple[tuple[float, float, float], ...]] = {
    "unhealthy": ((0.510, 0.332, 0.687), (0.569, 0.339, 0.799), (0.467, 0.164, 0.770)),
    "healthy": ((0.516, 0.461, 0.570), (0.629, 0.240, 1.017), (0.450, 0.170, 0.730)),
    "both": ((0.512, 0.406, 0.618), (0.590, 0.322, 0.858), (0.460, 0.209, 0.711)),
}
PAPER_SIZES = (13, 7, 18, 12)
# Right answers of the paper's five raters in each of `CELLS`. The paper does not print them; of all ways in which
# five raters can answer 50 images this is the only one, up to the raters' order, that rounds to all 27 numbers of
# Table 1 (exhaustive search, repeated in the tests). Inferred, therefore, and exact.
PAPER_COUNTS = ((4, 1, 11, 9), (6, 5, 10, 5), (8, 4, 6, 7), (9, 7, 2, 2), (10, 5, 13, 4))


# ---------------------------------------------------------------- analysis


def summarize(ratings: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of the paper: accuracy, sensitivity and specificity by class, over raters.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id, label`` (1 unhealthy), ``is_real, said_real``, all of the last three 0 or 1. Raters may
        have seen unequal numbers of images; each rater counts once.

    Returns
    -------
    pandas.DataFrame
        Nine rows: ``group`` (unhealthy, healthy, both), ``metric`` (accuracy, sensitivity = real recognised,
        specificity = synthetic recognised), ``mean``, ``low, high`` (95 % Student t interval over raters, not
        clipped to [0, 1]), ``n_raters``, ``over``, ``note`` (why a bound is NaN).

    Raises
    ------
    ValueError
        A missing column or value, a value other than 0 and 1, an image rated twice by one rater, or a rater without
        a real or a synthetic image of one class.

    Notes
    -----
    Source: paper, Table 1; its bound of 1.017 shows that the intervals were not clipped.
    """
    rows = []
    for (group, metric), own in rater_rates(ratings).groupby(["group", "metric"], sort=False):
        rates = own["rate"].to_numpy()
        note = "all raters alike: no interval, nothing can be said" if np.ptp(rates) == 0 else ""
        if len(rates) == 1:
            note = "one rater: no interval over raters"
        rows.append((group, metric, *statistics.over_folds(rates), len(rates), OVER, note))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def rater_rates(ratings: pd.DataFrame) -> pd.DataFrame:
    """Each rater's rates behind Table 1: ``rater, group, metric, rate`` in [0, 1], ``n`` (images); as `summarize`."""
    rows = []
    for rater, own in checked(ratings).groupby("rater", sort=False):
        for group, metric, seen in subsets(own):
            if seen.empty:
                what = {"sensitivity": "real ", "specificity": "synthetic "}.get(metric, "")
                raise ValueError(
                    f"ratings of {rater!r}: expected real and synthetic images of both classes, found no"
                    f" {what}{group} one; complete them or leave this rater out."
                )
            right = seen["said_real"] == seen["is_real"]
            rows.append((rater, group, metric, float(right.mean()), len(seen)))
    return pd.DataFrame(rows, columns=["rater", "group", "metric", "rate", "n"])


def subsets(ratings: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The answers behind each number of Table 1, in its order: group, metric, rows of `ratings`."""
    for group in GROUPS:
        part = ratings if group == "both" else ratings[ratings["label"] == int(group == "unhealthy")]
        yield group, "accuracy", part
        yield group, "sensitivity", part[part["is_real"] == 1]
        yield group, "specificity", part[part["is_real"] == 0]


def per_rater(ratings: pd.DataFrame) -> pd.DataFrame:
    """Each rater alone: accuracy with its exact interval, and discrimination free of the inclination to say "real".

    Parameters
    ----------
    ratings : pandas.DataFrame
        As in `summarize`.

    Returns
    -------
    pandas.DataFrame
        ``rater, n, n_right, accuracy, low, high`` (Clopper-Pearson 95 %, over images), ``p`` (Fisher's exact test of
        "real" by kind of image, free of inclination and mix), ``said_real`` (share), ``chance`` (the accuracy that this
        inclination gives without any skill), ``d_prime`` (0: cannot tell), ``d_low, d_high`` (95 %, normal),
        ``criterion`` (above 0: inclined to say synthetic), ``over``.

    Notes
    -----
    With 20 real images in 50, a rater who always says "synthetic" is right in 0.6: the accuracy's chance level is
    0.5 only for a rater without inclination, that of d' is always 0. Rates enter d' as (k + 0.5) / (n + 1), which
    keeps perfect raters finite (Hautus 1995, doi 10.3758/BF03203619); its variance is Gourevitch and Galanter's
    (1967, doi 10.1007/BF02289457) at the same rates.
    """
    rows = []
    for rater, own in checked(ratings).groupby("rater", sort=False):
        real, said = own["is_real"].mean(), own["said_real"].mean()
        right = int((own["said_real"] == own["is_real"]).sum())
        low, high = statistics.exact_interval(right, len(own))
        kinds = [[int((own.loc[own["is_real"] == a, "said_real"] == b).sum()) for b in (1, 0)] for a in (1, 0)]
        p = float(scipy_stats.fisher_exact(kinds).pvalue)
        (hit, v_hit), (false_alarm, v_false) = (_z(own.loc[own["is_real"] == kind, "said_real"]) for kind in (1, 0))
        d, half = hit - false_alarm, scipy_stats.norm.ppf(0.975) * np.sqrt(v_hit + v_false)
        rates = (len(own), right, right / len(own), low, high, p, said, real * said + (1 - real) * (1 - said))
        rows.append((rater, *rates, d, d - half, d + half, -(hit + false_alarm) / 2, "images; this rater"))
    columns = ["rater", "n", "n_right", "accuracy", "low", "high", "p", "said_real", "chance"]
    return pd.DataFrame(rows, columns=[*columns, "d_prime", "d_low", "d_high", "criterion", "over"])


def _z(said_real: pd.Series) -> tuple[float, float]:
    """Normal quantile of the corrected share of "real", and its variance."""
    if said_real.empty:
        raise ValueError("ratings: expected real and synthetic images from every rater, found one kind; complete them.")
    rate = (said_real.sum() + 0.5) / (len(said_real) + 1)
    z = scipy_stats.norm.ppf(rate)
    return float(z), float(rate * (1 - rate) / (len(said_real) * scipy_stats.norm.pdf(z) ** 2))


def per_image(ratings: pd.DataFrame) -> pd.DataFrame:
    """How raters saw each image, the most often recognised first (Supplementary Fig. 2).

    Columns ``image_id, [order, kind,] label, is_real, said_real`` (share of raters), ``right`` (share), ``n_raters``.
    """
    table = checked(ratings)
    keys = [name for name in ("image_id", "order", "kind", "label", "is_real") if name in table]
    table = table.assign(right=table["said_real"] == table["is_real"]).groupby(keys, as_index=False, sort=False)
    table = table.agg(said_real=("said_real", "mean"), right=("right", "mean"), n_raters=("right", "size"))
    return table.sort_values("right", ascending=False, kind="stable").reset_index(drop=True)


def checked(ratings: pd.DataFrame) -> pd.DataFrame:
    """The ratings with whole numbers, or a ValueError that names what `summarize` cannot take; see the contract."""
    columns = ["rater", "image_id", "label", "is_real", "said_real"]
    missing = [name for name in columns if name not in ratings]
    if missing or not len(ratings):
        found = f"no {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"ratings: expected rows of {', '.join(columns)}, found {found}; attach the key first.")
    if ratings[["rater", "image_id"]].isna().to_numpy().any():
        raise ValueError("ratings: expected a rater and an image in every row, found a missing one; correct the table.")
    for name in columns[2:]:
        if not ratings[name].isin([0, 1]).all():
            found = ratings.loc[~ratings[name].isin([0, 1]), name].iloc[0]
            raise ValueError(f"ratings: expected 0 or 1 in {name}, found {found}; correct that answer.")
    try:
        results_files.refuse_repeats(ratings)
    except ValueError as error:
        raise ValueError(f"ratings: {error}") from None
    return ratings.astype(dict.fromkeys(columns[2:], int))


# ---------------------------------------------------------------- the paper's own result


def from_counts(counts: Sequence[Sequence[int]], sizes: Sequence[int], raters: Sequence[str] = ()) -> pd.DataFrame:
    """Ratings with given counts of right answers, (n_raters, 4) of the images in each of `CELLS`, (4,).

    Which image was answered rightly is arbitrary.

    Examples
    --------
    >>> from_counts([[1, 1, 0, 1]], [1, 1, 1, 1])["said_real"].tolist()
    [1, 1, 1, 0]
    """
    rows = []
    for rater, row in zip(raters or [f"rater {i + 1}" for i in range(len(counts))], counts, strict=True):
        for cell, right, size in zip(CELLS, row, sizes, strict=True):
            is_real, label = int(cell.startswith("real")), int(cell.endswith("unhealthy"))
            said = [is_real if i < right else 1 - is_real for i in range(size)]
            rows += [(rater, f"{cell} {i + 1:02d}", label, is_real, said[i]) for i in range(size)]
    return pd.DataFrame(rows, columns=["rater", "image_id", "label", "is_real", "said_real"])


def paper_summary() -> pd.DataFrame:
    """Table 1 as printed, in the form of `summarize`: ``group, metric, mean, low, high, n_raters``."""
    rows = [
        (group, metric, *numbers, len(PAPER_COUNTS))
        for group in GROUPS
        for metric, numbers in zip(METRICS, PAPER_TABLE[group], strict=True)
    ]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS[:6])


def paper_ratings() -> pd.DataFrame:
    """Answers of the paper's five raters as far as Table 1 determines them; see `PAPER_COUNTS`."""
    return from_counts(PAPER_COUNTS, PAPER_SIZES)


def as_table_1(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary in the paper's layout: one row per class, one column per metric, ``0.512 [0.406, 0.618]`` in the cells.

    Parameters
    ----------
    summary : pandas.DataFrame
        From `summarize` or `paper_summary`.

    Returns
    -------
    pandas.DataFrame
        Index ``class``, columns ``accuracy, sensitivity, specificity``, str.
    """
    cells = [
        f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
        if np.isfinite([row.low, row.high]).all()
        else f"{row.mean:.3f} [{'one rater' if row.n_raters == 1 else 'no interval'}]"
        for row in summary.itertuples(index=False)
    ]
    table = summary.assign(cell=cells).pivot_table(index="group", columns="metric", values="cell", aggfunc="first")
    return table.loc[list(GROUPS), list(METRICS)].rename_axis(index="class", columns=None)
