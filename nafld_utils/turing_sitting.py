"""A sitting of the image Turing test: which images raters see, and what they answer.

Contract: tables in, tables out; only `read_ratings` opens a file. The *set* is the table of `draw_set`, an image a row,
in the order in which every rater sees it. A *rating* is one answer: rater, image, and ``said_real`` (1 "real", 0
"synthetic"); ratings are accepted only where every rater answered every image of the set once. What the answers amount
to is `nafld_utils.turing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

if TYPE_CHECKING:
    from nafld_utils.params import TuringSettings

REVISION = 1

RATING_COLUMNS = ("rater", "image_id", "said_real")
ITEM_COLUMNS = ["order", "image_id", "kind", "is_real", "label", "patient_id", "fold", "source_id", "row"]


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
    refuse_repeats(ratings, source)
    answered = ratings.groupby("rater")["image_id"].nunique()
    short = answered[answered < len(items)]
    if len(short):
        rater = short.index[0]
        absent = items.loc[~items["image_id"].isin(ratings.loc[ratings["rater"] == rater, "image_id"]), "image_id"]
        raise ValueError(
            f"{source}: expected {len(items)} answers from each rater, found {short.iloc[0]} from {rater!r}"
            f" ({absent.iloc[0]!r} is missing); complete them or leave this rater out."
        )


def refuse_repeats(ratings: pd.DataFrame, source: str = "ratings") -> None:
    """Refuse two answers of one rater to one image.

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, image_id`` at least.
    source : str
        What the message calls the ratings.

    Raises
    ------
    ValueError
        Names the first such image and its rater.
    """
    twice = ratings[ratings.duplicated(["rater", "image_id"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"{source}: expected one answer an image, found a second for {row.image_id!r} by rater {row.rater!r};"
            " keep one of them."
        )


def attach_key(ratings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Put the answers beside the truth, the form that `turing.summarize` takes.

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
