"""The image Turing test: which images raters see, and how well they tell real from synthetic (paper, Table 1).

Contract: tables in, tables out; only `read_ratings` opens a file. A *rating* is one answer: rater, image, and
``said_real`` (1 "real", 0 "synthetic"). As in the paper *sensitivity* is the share of real images recognised as real
and *specificity* the share of synthetic images recognised as synthetic; a rater's rate is one observation, so means
and intervals are over raters, for these images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from nafld_utils import stats

if TYPE_CHECKING:
    from nafld_utils.params import TuringSettings

REVISION = 1

GROUPS = ("unhealthy", "healthy", "both")
METRICS = ("accuracy", "sensitivity", "specificity")
CELLS = ("real unhealthy", "real healthy", "synthetic unhealthy", "synthetic healthy")
RATING_COLUMNS = ("rater", "image_id", "said_real")
OVER = "raters (Student t, not clipped); these images"
ITEM_COLUMNS = ["order", "image_id", "kind", "is_real", "label", "patient_id", "fold", "source_id", "row"]

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


# ---------------------------------------------------------------- the set


def draw_set(real: pd.DataFrame, synthetic: Mapping[str, pd.DataFrame], settings: TuringSettings) -> pd.DataFrame:
    """Draw the images that raters see, in one fixed random order.

    Parameters
    ----------
    real : pandas.DataFrame
        ``image_id, patient_id, label, fold``, an image a row; its row number is kept as `row`.
    synthetic : mapping of str to pandas.DataFrame
        By model (``"semantic"``, ``"class"``): ``synthetic_id, fold, label, source_patient`` (-1 or missing where
        there is none), ``row``; the label of a semantic image is the one it inherits from its source map.
    settings : TuringSettings
        Numbers of images; the synthetic ones are divided evenly over the models (paper: 9 unhealthy and 6 healthy
        each). ``settings.seed`` fixes the draw and the order.

    Returns
    -------
    pandas.DataFrame
        ``order`` (from 1), ``image_id`` (opaque: tells a rater nothing), ``kind`` (real or the model), ``is_real``,
        ``label``, ``patient_id`` (of a real image, or of a semantic image's source; missing for the class model),
        ``fold, source_id, row`` (where the pixels are). Integers are nullable where an entry can be missing.

    Raises
    ------
    ValueError
        A class or a synthetic set holds fewer images than asked for; names it and the setting.

    Notes
    -----
    Source: paper, Synthetic image evaluation. Choice: one image of a patient where the numbers allow it, since
    frames of one patient are near-duplicates; and semantic images from maps of patients who are not shown as real.
    """
    rng = np.random.default_rng(settings.seed)
    asked = {"real": (settings.n_real_unhealthy, settings.n_real_healthy)}
    asked |= _shares(list(synthetic), settings.n_synthetic_unhealthy, settings.n_synthetic_healthy)
    pools = {"real": _pool(real, "image_id", "patient_id", np.arange(len(real)))}
    pools |= {name: _pool(t, "synthetic_id", "source_patient", t["row"]) for name, t in synthetic.items()}
    shown: set[Any] = set()
    parts = []
    for kind, numbers in asked.items():
        for label, n in zip((1, 0), numbers, strict=True):
            pool = pools[kind][pools[kind]["label"] == label]
            if len(pool) < n:
                raise ValueError(_too_few(kind, label, n, len(pool)))
            part = _spread(pool, n, shown, rng)
            shown |= set(part["patient_id"].dropna())
            parts.append(part.assign(kind=kind, is_real=int(kind == "real")))
    items = pd.concat(parts, ignore_index=True)
    items = items.iloc[rng.permutation(len(items))].reset_index(drop=True)
    items["order"] = np.arange(1, len(items) + 1)
    # Opaque, and with a letter in front so that no spreadsheet takes it for a number.
    items["image_id"] = [f"t{value:06x}" for value in rng.choice(16**6, size=len(items), replace=False)]
    return items[ITEM_COLUMNS]


def _shares(models: Sequence[str], n_unhealthy: int, n_healthy: int) -> dict[str, tuple[int, int]]:
    """(unhealthy, healthy) images of each model; an odd unhealthy one goes to the first, an odd healthy to the last."""
    if not models:
        raise ValueError("synthetic: expected the images of at least one model, found none; sample one first.")
    unhealthy = [n_unhealthy // len(models) + (i < n_unhealthy % len(models)) for i in range(len(models))]
    healthy = [n_healthy // len(models) + (i < n_healthy % len(models)) for i in range(len(models))][::-1]
    return {model: (unhealthy[i], healthy[i]) for i, model in enumerate(models)}


def _pool(table: pd.DataFrame, name: str, patient: str, row: Any) -> pd.DataFrame:
    who = pd.to_numeric(table[patient])
    return pd.DataFrame(
        {
            "source_id": table[name].astype(str).to_numpy(),
            "patient_id": pd.array(who.where(who >= 0).to_numpy(), dtype="Int64"),
            "label": table["label"].to_numpy(),
            "fold": pd.array(table["fold"].to_numpy(), dtype="Int64"),
            "row": np.asarray(row),
        }
    )


def _spread(pool: pd.DataFrame, n: int, shown: set[Any], rng: np.random.Generator) -> pd.DataFrame:
    """Draw n rows at random, the second image of a patient only after the first of all, patients in `shown` last."""
    pool = pool.iloc[rng.permutation(len(pool))]
    patient = pool["patient_id"]
    turn = pool.groupby("patient_id").cumcount().where(patient.notna(), 0)
    order = pd.DataFrame({"turn": turn, "again": patient.isin(shown).to_numpy()})
    return pool.loc[order.sort_values(["turn", "again"], kind="stable").index[:n]]


def _too_few(kind: str, label: int, expected: int, found: int) -> str:
    group = "unhealthy" if label else "healthy"
    source = "the cohort" if kind == "real" else f"the {kind} model's synthetic sets"
    key = f"turing.n_{'real' if kind == 'real' else 'synthetic'}_{group}"
    more = "use a larger cohort" if kind == "real" else "raise sampling.n_images"
    return f"{source}: expected {expected} {group} images for the Turing test, found {found}; lower {key} or {more}."


# ---------------------------------------------------------------- ratings


def read_ratings(path: str | Path, items: pd.DataFrame) -> pd.DataFrame:
    """Read raters' answers and check them against the set they were shown.

    Parameters
    ----------
    path : path
        CSV with a header, UTF-8: ``rater, image_id, said_real`` (1 real, 0 synthetic); further columns are dropped.
    items : pandas.DataFrame
        The set, from `draw_set`.

    Returns
    -------
    pandas.DataFrame
        ``rater`` str, ``image_id`` str, ``said_real`` int; every rater with every image once.

    Raises
    ------
    ValueError
        No such file, no CSV, a missing column, an answer other than 0 and 1, an unknown image, an image that a rater
        answered twice or not at all. One sentence names the file and the line or the rater.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a CSV of ratings, found no file; correct turing.ratings.") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a CSV of ratings in UTF-8, found {reason}; export it again.") from None
    missing = [name for name in RATING_COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"{path}: expected columns {', '.join(RATING_COLUMNS)}, found no {', '.join(missing)}; add a header line."
        )
    table = table[list(RATING_COLUMNS)].apply(lambda column: column.str.strip())
    wrong = np.flatnonzero(~table["said_real"].isin(["0", "1"]) | (table["rater"] == ""))
    if len(wrong):
        row = table.iloc[wrong[0]].to_dict()
        raise ValueError(
            f"{path}, line {wrong[0] + 2}: expected a rater and said_real 0 or 1, found {row}; correct that line."
        )
    table["said_real"] = table["said_real"].astype(int)
    check_ratings(table, items, str(path))
    return table


def check_ratings(ratings: pd.DataFrame, items: pd.DataFrame, source: str = "ratings") -> None:
    """Refuse ratings that do not answer every image of the set exactly once.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id, said_real``.
    items : pandas.DataFrame
        The set, from `draw_set`.
    source : str
        What the message calls the ratings.

    Raises
    ------
    ValueError
        No rater, an unknown image, an image answered twice, an image not answered; names the first one.
    """
    if not len(ratings):
        raise ValueError(f"{source}: expected one row an answer, found none; collect ratings first.")
    unknown = ratings[~ratings["image_id"].isin(items["image_id"])]
    if len(unknown):
        row = unknown.iloc[0]
        raise ValueError(
            f"{source}: expected images of this set, found {row.image_id!r} by rater {row.rater!r}"
            f" ({len(unknown)} such rows); these are answers to another set."
        )
    twice = ratings[ratings.duplicated(["rater", "image_id"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"{source}: expected one answer an image, found a second for {row.image_id!r} by rater {row.rater!r};"
            " keep one of them."
        )
    answered = ratings.groupby("rater")["image_id"].nunique()
    short = answered[answered < len(items)]
    if len(short):
        rater = short.index[0]
        absent = items.loc[~items["image_id"].isin(ratings.loc[ratings["rater"] == rater, "image_id"]), "image_id"]
        raise ValueError(
            f"{source}: expected {len(items)} answers from each rater, found {short.iloc[0]} from {rater!r}"
            f" ({absent.iloc[0]!r} is missing); complete them or leave this rater out."
        )


def attach_key(ratings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Put the answers beside the truth, the form that `summarize` takes.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id, said_real``; ``simulated`` is kept where there is one.
    items : pandas.DataFrame
        The set, from `draw_set`.

    Returns
    -------
    pandas.DataFrame
        ``rater, image_id, order, kind, label, is_real, said_real, simulated``, sorted by rater and order.

    Raises
    ------
    ValueError
        As in `check_ratings`.
    """
    check_ratings(ratings, items)
    key = items[["image_id", "order", "kind", "label", "is_real"]]
    answers = ratings[list(RATING_COLUMNS)].assign(simulated=ratings.get("simulated", False))
    table = answers.merge(key, on="image_id", validate="many_to_one")
    columns = ["rater", "image_id", "order", "kind", "label", "is_real", "said_real", "simulated"]
    return table[columns].sort_values(["rater", "order"], kind="stable").reset_index(drop=True)


def simulate_raters(
    items: pd.DataFrame, n_raters: int, seed: int, d_prime: float = 0.0, spread: float = 0.6
) -> pd.DataFrame:
    """Answers of raters who do not exist, so that the analysis can be tried before a sitting.

    Parameters
    ----------
    items : pandas.DataFrame
        The set, from `draw_set`.
    n_raters : int
        Raters to simulate.
    seed : int
        Seed of their answers.
    d_prime : float
        How far apart real and synthetic images look, in standard deviations; 0 is guessing.
    spread : float
        Standard deviation over raters of the inclination to say "synthetic"; over images, of looking real, half of it.

    Returns
    -------
    pandas.DataFrame
        ``rater, image_id, said_real`` and ``simulated``, True in every row.

    Notes
    -----
    Choice: equal-variance signal detection. Inclinations are evenly spaced normal quantiles, so that raters differ as
    real ones do and the group leans neither way. By default nobody can tell, so whatever these answers show is
    chance: they say nothing about the images.
    """
    rng = np.random.default_rng(seed)
    looks = d_prime * (items["is_real"].to_numpy() - 0.5) + spread / 2 * rng.normal(size=len(items))
    criterion = spread * scipy_stats.norm.ppf((np.arange(n_raters)[:, None] + 0.5) / n_raters)
    said = looks + rng.normal(size=(n_raters, len(items))) > criterion
    width = len(str(n_raters))
    names = [f"simulated {i + 1:0{width}d}" for i in range(n_raters)]
    return pd.DataFrame(
        {
            "rater": np.repeat(names, len(items)),
            "image_id": np.tile(items["image_id"].to_numpy(), n_raters),
            "said_real": said.astype(int).ravel(),
            "simulated": True,
        }
    )


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
        clipped to [0, 1]), ``n_raters``, ``over``, ``note`` (why a bound is NaN or an interval has no width).

    Raises
    ------
    ValueError
        A missing column or value, a value other than 0 and 1, an image rated twice by one rater, or a rater without
        a real or a synthetic image of one class.

    Notes
    -----
    Source: paper, Table 1; its bound of 1.017 shows that the intervals were not clipped.
    """
    rates = rater_rates(ratings)
    rows = []
    for group in GROUPS:
        for metric in METRICS:
            values = rates.loc[(rates["group"] == group) & (rates["metric"] == metric), "rate"].to_numpy()
            mean, low, high, note = (
                float(values.mean()),
                float("nan"),
                float("nan"),
                "one rater: no interval over raters",
            )
            if len(values) > 1:
                mean, low, high = stats.student_t_interval(values)
                note = "all raters alike: the interval has no width" if np.ptp(values) == 0 else ""
            rows.append((group, metric, mean, low, high, len(values), OVER, note))
    return pd.DataFrame(rows, columns=["group", "metric", "mean", "low", "high", "n_raters", "over", "note"])


def rater_rates(ratings: pd.DataFrame) -> pd.DataFrame:
    """Each rater's accuracy, sensitivity and specificity by class: the observations behind Table 1.

    Parameters
    ----------
    ratings : pandas.DataFrame
        As in `summarize`.

    Returns
    -------
    pandas.DataFrame
        ``rater, group, metric, rate`` in [0, 1], ``n`` (images it is of).

    Raises
    ------
    ValueError
        As in `summarize`.
    """
    table = _checked(ratings)
    rows = []
    for rater, own in table.groupby("rater", sort=False):
        for group in GROUPS:
            part = own if group == "both" else own[own["label"] == int(group == "unhealthy")]
            for metric, seen in zip(
                METRICS, (part, part[part["is_real"] == 1], part[part["is_real"] == 0]), strict=True
            ):
                if seen.empty:
                    what = {"sensitivity": "real", "specificity": "synthetic"}.get(metric, "")
                    raise ValueError(
                        f"ratings of {rater!r}: expected real and synthetic images of both classes, found no"
                        f" {what} {group} one; complete them or leave this rater out.".replace("  ", " ")
                    )
                right = seen["said_real"] == seen["is_real"]
                rows.append((rater, group, metric, float(right.mean()), len(seen)))
    return pd.DataFrame(rows, columns=["rater", "group", "metric", "rate", "n"])


def per_rater(ratings: pd.DataFrame) -> pd.DataFrame:
    """Each rater alone: accuracy with its exact interval, and discrimination free of the inclination to say "real".

    Parameters
    ----------
    ratings : pandas.DataFrame
        As in `summarize`.

    Returns
    -------
    pandas.DataFrame
        ``rater, n, n_right, accuracy, low, high`` (Clopper-Pearson 95 %, over images), ``p`` (exact two-sided
        binomial test against 0.5), ``said_real`` (share), ``d_prime`` (0: cannot tell), ``criterion`` (above 0:
        inclined to say synthetic), ``over``.

    Raises
    ------
    ValueError
        As in `summarize`.

    Notes
    -----
    With 20 real images in 50, a rater who always says "synthetic" is right in 0.6: the accuracy's chance level is
    0.5 only for a rater without inclination, that of d' is always 0. Rates enter d' as (k + 0.5) / (n + 1), which
    keeps perfect raters finite (Hautus 1995, doi 10.3758/BF03203619).
    """
    rows = []
    for rater, own in _checked(ratings).groupby("rater", sort=False):
        right = int((own["said_real"] == own["is_real"]).sum())
        test = scipy_stats.binomtest(right, len(own), 0.5)
        low, high = test.proportion_ci(0.95, "exact")
        hit, false_alarm = (_z(own.loc[own["is_real"] == real, "said_real"]) for real in (1, 0))
        rates = (len(own), right, right / len(own), low, high, test.pvalue, own["said_real"].mean())
        rows.append((rater, *rates, hit - false_alarm, -(hit + false_alarm) / 2, "images (exact binomial); this rater"))
    columns = ["rater", "n", "n_right", "accuracy", "low", "high", "p", "said_real", "d_prime", "criterion", "over"]
    return pd.DataFrame(rows, columns=columns)


def _z(said_real: pd.Series) -> float:
    return float(scipy_stats.norm.ppf((said_real.sum() + 0.5) / (len(said_real) + 1)))


def per_image(ratings: pd.DataFrame) -> pd.DataFrame:
    """How raters saw each image: which are always recognised and which fool them (Supplementary Fig. 2).

    Parameters
    ----------
    ratings : pandas.DataFrame
        As in `summarize`; ``kind`` and ``order`` are kept where there are any.

    Returns
    -------
    pandas.DataFrame
        ``image_id, [order, kind,] label, is_real, said_real`` (share of raters), ``right`` (share), ``n_raters``;
        the most often recognised first.

    Raises
    ------
    ValueError
        As in `summarize`.
    """
    table = _checked(ratings)
    keys = [name for name in ("image_id", "order", "kind", "label", "is_real") if name in table]
    table = table.assign(right=table["said_real"] == table["is_real"]).groupby(keys, as_index=False, sort=False)
    table = table.agg(said_real=("said_real", "mean"), right=("right", "mean"), n_raters=("right", "size"))
    return table.sort_values("right", ascending=False, kind="stable").reset_index(drop=True)


def agreement(ratings: pd.DataFrame) -> float:
    """Fleiss' kappa of the answers: 0 is agreement by chance, 1 complete.

    Parameters
    ----------
    ratings : pandas.DataFrame
        As in `summarize`, every image seen by the same number of raters.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        One rater, unequal numbers of raters an image, or one answer only (kappa is not defined).
    """
    from statsmodels.stats.inter_rater import fleiss_kappa

    counts = _checked(ratings).groupby("image_id")["said_real"].agg(["size", "sum"])
    if np.ptp(counts["size"]) or counts["size"].iloc[0] < 2:
        raise ValueError(
            "ratings: expected the same two or more raters for every image, found"
            f" {sorted(counts['size'].unique().tolist())} raters an image; kappa needs equal numbers."
        )
    if counts["sum"].sum() in (0, counts["size"].sum()):
        raise ValueError("ratings: expected both answers, found one only; kappa is not defined.")
    return float(fleiss_kappa(np.stack([counts["sum"], counts["size"] - counts["sum"]], axis=1)))


def _checked(ratings: pd.DataFrame) -> pd.DataFrame:
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
    twice = ratings[ratings.duplicated(["rater", "image_id"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"ratings: expected one answer an image, found a second for {row.image_id!r} by {row.rater!r}; keep one."
        )
    return ratings.astype(dict.fromkeys(columns[2:], int))


# ---------------------------------------------------------------- the paper's own result


def from_counts(counts: Any, sizes: Sequence[int], raters: Sequence[str] | None = None) -> pd.DataFrame:
    """Ratings that have given counts of right answers; which image was answered rightly is arbitrary.

    Parameters
    ----------
    counts : (n_raters, 4) array of int
        Right answers of each rater in each of `CELLS`.
    sizes : (4,) sequence of int
        Images in each of `CELLS`.
    raters : sequence of str, optional
        Their names.

    Returns
    -------
    pandas.DataFrame
        ``rater, image_id, label, is_real, said_real``, as `summarize` takes it.

    Raises
    ------
    ValueError
        A count is negative or above the cell's size, or there are not four columns.

    Examples
    --------
    >>> from_counts([[1, 1, 0, 1]], [1, 1, 1, 1])["said_real"].tolist()
    [1, 1, 1, 0]
    """
    counts, sizes = np.asarray(counts), np.asarray(sizes)
    if counts.ndim != 2 or counts.shape[1] != 4 or sizes.shape != (4,):
        raise ValueError(f"counts: expected a row a rater of {', '.join(CELLS)}, found shape {counts.shape}.")
    if (counts < 0).any() or (counts > sizes).any():
        raise ValueError(
            f"counts: expected 0 to {sizes.tolist()} right answers, found {counts.tolist()}; correct them."
        )
    raters = raters if raters is not None else [f"rater {i + 1}" for i in range(len(counts))]
    rows = []
    for rater, row in zip(raters, counts, strict=True):
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
    return pd.DataFrame(rows, columns=["group", "metric", "mean", "low", "high", "n_raters"])


def paper_ratings() -> pd.DataFrame:
    """Answers of the paper's five raters as far as Table 1 determines them; see `PAPER_COUNTS`."""
    return from_counts(PAPER_COUNTS, PAPER_SIZES)


def as_table_1(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary in the paper's layout: a row a class, a column a metric, ``0.512 [0.406, 0.618]`` in the cells.

    Parameters
    ----------
    summary : pandas.DataFrame
        From `summarize` or `paper_summary`.

    Returns
    -------
    pandas.DataFrame
        Index ``group``, columns ``accuracy, sensitivity, specificity``, str.
    """
    cells = {
        (row.group, row.metric): f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
        if np.isfinite([row.low, row.high]).all()
        else f"{row.mean:.3f} [one rater]"
        for row in summary.itertuples(index=False)
    }
    table = pd.DataFrame([[cells[group, metric] for metric in METRICS] for group in GROUPS], GROUPS, list(METRICS))
    return table.rename_axis("class")
