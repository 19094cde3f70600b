"""Tables of a sweep: the AUC of every arm and rate, and each arm against real images alone.

Contract: tables in, tables out; a table of scores has a held-out image a row, with columns as in `auc_by_seed`. Rows
are told apart by whichever of `CELL` they have: a *group* is one network trained in one way, a *cell* an arm and rate
of it, and an arm is compared with real images alone of its own group. The same `seed` gives the same intervals, and
every table names in `over` what its interval is over. No table averages over what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import delong, resampling, stats

REVISION = ("sweep_tables", 5)

GROUP = ("backbone", "freeze", "balance")
CELL = (*GROUP, "arm", "rate")
LEVELS = ("image", "patient")
OVER_SEEDS = "training seeds (Student t); these patients, this split"
OVER_PATIENTS = stats.OVER_PATIENTS
OVER_BOTH = f"patients within class and training seeds (crossed bootstrap); {stats.GIVEN}"
OVER_FOLDS = f"patients within class and fold, and training seeds (crossed bootstrap); {stats.GIVEN}"
# What a row of `compare_arms` is for.
PRIMARY = "primary"
SENSITIVITY = "sensitivity analysis of the primary, unadjusted"
EXPLORATORY = "exploratory, Holm-adjusted"
# Two-sided 5 % test with 80 % power: 1.96 + 0.84 standard errors.
DETECTABLE = 2.8


class Scored(NamedTuple):
    """Scores of one cell: label (n,), patient (n,), scores (seeds, n), seeds, fold (n,) or None."""

    label: np.ndarray
    patient: np.ndarray
    scores: np.ndarray
    seeds: np.ndarray
    fold: np.ndarray | None


def over_patients(n_seeds: int, within: str = "") -> str:
    """What an interval over patients is over: the seeds too, where there are several; `within` what besides a class."""
    over = OVER_BOTH if n_seeds > 1 else OVER_PATIENTS
    return over.replace("within class", f"within class{within}", 1)


def present(table: pd.DataFrame, names: Sequence[str] = CELL) -> list[str]:
    """Those of `names` that are columns of the table, in that order."""
    return [name for name in names if name in table]


def where(table: pd.DataFrame, cell: Mapping[str, Any]) -> np.ndarray:
    """Rows ``(n,) bool`` whose columns have the cell's values; names that the table lacks are ignored."""
    keep = np.ones(len(table), dtype=bool)
    for name, value in cell.items():
        if name in table:
            keep &= (table[name] == value).to_numpy()
    return keep


def patient_level(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each patient's images, in every group that the table distinguishes.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``patient_id, label, score``, an image a row, and any of `CELL` and ``fold, seed``.

    Returns
    -------
    pandas.DataFrame
        The group columns, ``patient_id, label, score, n_images``, and ``image_id`` naming the patient, so that the
        table fits wherever one of images does.

    Raises
    ------
    ValueError
        A column is missing, or a patient has two labels.
    """
    _require(scores, ("patient_id", "label", "score"))
    stats.patient_codes(scores["label"].to_numpy().astype(bool), scores["patient_id"])
    groups = present(scores, (*CELL, "fold", "seed"))
    table = scores.groupby([*groups, "patient_id", "label"], as_index=False, sort=False, observed=True)
    table = table.agg(score=("score", "mean"), n_images=("score", "size"))
    return table.assign(image_id=table["patient_id"].astype(str))


def auc_by_seed(scores: pd.DataFrame, level: str = "image") -> pd.DataFrame:
    """AUC of every cell and seed, from the folds' held-out scores put together, and its average over folds.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``arm, rate, seed, image_id, patient_id, label, score``; ``backbone, freeze, balance`` and ``fold`` where there
        are any.
    level : {"image", "patient"}
        Whether a row or a patient's mean score is ranked.

    Returns
    -------
    pandas.DataFrame
        The cell's columns, ``seed, auc, fold_auc, n_folds, n_patients``. `auc` is the paper's (concatenated);
        `fold_auc` is the mean over the `n_folds` folds that hold both classes (Supplementary S3), NaN where
        `n_folds` is 0.

    Raises
    ------
    ValueError
        A column is missing, or a score is not finite.
    """
    table = at_level(scores, level)
    keys = [*present(table), "seed"]
    rows = []
    for key, part in table.groupby(keys, sort=False, observed=True):
        folds = [f for _, f in part.groupby("fold")] if "fold" in part else []
        each = [stats.auc(fold["label"], fold["score"]) for fold in folds if fold["label"].nunique() == 2]
        mean = float(np.mean(each)) if each else float("nan")
        rows.append((*key, stats.auc(part["label"], part["score"]), mean, len(each), part["patient_id"].nunique()))
    return pd.DataFrame(rows, columns=[*keys, "auc", "fold_auc", "n_folds", "n_patients"])


def arm_intervals(
    scores: pd.DataFrame, level: str = "image", n_resamples: int = 2000, seed: int = 0, method: str = "percentile"
) -> pd.DataFrame:
    """Mean AUC of every cell with its interval over patients and seeds.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `auc_by_seed`.
    level : {"image", "patient"}
    n_resamples, seed, method
        As in `stats.auc_interval`.

    Returns
    -------
    pandas.DataFrame
        The cell's columns, ``mean_auc, low, high, fold_auc, fold_low, fold_high, sd_seeds, best_seed_auc, n_seeds,
        n_patients, over, over_folds``; the `fold_` columns are of the mean of the folds' AUCs (Supplementary S3), NaN
        where a fold has too few patients of a class. `best_seed_auc` is the optimistic maximum over seeds, `sd_seeds`
        NaN where there is one seed.

    Raises
    ------
    ValueError
        As in `stats.auc_interval`; or seeds of one arm were scored on different images.
    """
    rows = []
    for cell, found in cells(at_level(scores, level)):
        mean, low, high = stats.mean_auc_interval(
            found.label, found.scores, found.patient, n_resamples, seed, method=method
        )
        fold_mean, fold_low, fold_high = _fold_interval(found, n_resamples, seed, method)
        each = [stats.auc(found.label, row) for row in found.scores]
        row = {**cell, "mean_auc": mean, "low": low, "high": high, "fold_auc": fold_mean, "fold_low": fold_low}
        row |= {"fold_high": fold_high, "sd_seeds": float(np.std(each, ddof=1)) if len(each) > 1 else float("nan")}
        row |= {"best_seed_auc": max(each), "n_seeds": len(each), "n_patients": len(np.unique(found.patient))}
        rows.append({**row, "over": over_patients(len(each)), "over_folds": over_patients(len(each), " and fold")})
    return pd.DataFrame(rows)


def _fold_interval(found: Scored, n_resamples: int, seed: int, method: str) -> tuple[float, float, float]:
    """Mean of the folds' AUCs with its interval; NaN where a fold has fewer than two patients of a class."""
    if found.fold is None:
        return (float("nan"),) * 3
    patients = pd.DataFrame({"fold": found.fold, "label": found.label, "patient": found.patient}).drop_duplicates()
    if pd.crosstab(patients["fold"], patients["label"]).to_numpy().min() < 2:
        return (float("nan"),) * 3
    return stats.mean_auc_interval(
        found.label, found.scores, found.patient, n_resamples, seed, fold=found.fold, method=method
    )


def compare_arms(
    scores: pd.DataFrame,
    level: str = "image",
    base: str = "real",
    primary: Mapping[str, Any] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    method: str = "percentile",
    fewer_seeds: bool = False,
) -> pd.DataFrame:
    """Every arm and rate against real images alone: the paper's test over seeds beside the interval over patients.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `auc_by_seed`; every arm with the seeds and images of its group's `base`.
    level : {"image", "patient"}
    base : str
        Arm that the others are compared with.
    primary : mapping, optional
        Columns of `CELL` and values that name the one comparison declared beforehand; without it all rows explore.
    n_resamples, seed, method
        As in `stats.auc_interval`.
    fewer_seeds : bool
        Whether an arm may have been planned with fewer seeds than `base`, which is then taken with those seeds alone
        and the note says so; for a grid that is known to be complete.

    Returns
    -------
    pandas.DataFrame
        One row a cell: its columns, ``mean_auc, mean_auc_base, difference`` (arm minus base); over seeds ``t, p,
        p_holm, low_seeds, high_seeds``; over patients and seeds ``p_patients, p_patients_holm, low_patients,
        high_patients, se_patients, smallest_effect`` (the difference that this many patients show with 80 % power: 2.8
        standard errors; NaN where no resample moves the difference, so that there is no error to reckon with); at
        patient level, seeds held fixed, DeLong's ``delong_p, delong_p_holm, delong_low, delong_high`` (NaN at image
        level, where rows are not independent); ``n_seeds, n_patients, primary, role, over`` (what each interval is
        over), ``note`` (why an entry is NaN).

    Raises
    ------
    ValueError
        `base` is missing, an arm was not scored with the same seeds and images as `base`, or `primary` names
        no row or several.

    Notes
    -----
    One row and one test are primary: the declared comparison at image level, judged by ``low_patients, high_patients``
    (the crossed bootstrap over patients and seeds). Its paired t over seeds, and its row at patient level with DeLong's
    test, are sensitivity analyses of the same comparison; ``role`` says so, and no p of theirs is adjusted. All other
    rows explore. A Holm family is one column of p (``p``, ``p_patients`` or ``delong_p``) of all exploratory rows of
    the table, every group, arm and rate of one level.
    """
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], Scored]]] = {}
    for cell, found in cells(at_level(scores, level)):
        groups.setdefault(tuple(cell[name] for name in GROUP if name in cell), []).append((cell, found))
    rows = []
    for members in groups.values():
        bases = [found for cell, found in members if cell["arm"] == base]
        if len(bases) != 1:
            raise ValueError(
                f"scores: expected arm {base!r} at one rate, found it at {len(bases)} rates; score it first."
            )
        options = {"n_resamples": n_resamples, "seed": seed, "method": method}
        for cell, found in members:
            if cell["arm"] != base:
                rows.append(_compare(cell, found, _like(bases[0], found, fewer_seeds), level, options))
                if len(found.seeds) < len(bases[0].seeds):
                    note = f"{len(found.seeds)} of the {len(bases[0].seeds)} seeds of {base}"
                    rows[-1]["note"] = "; ".join(filter(None, [rows[-1]["note"], note]))
    if not rows:
        raise ValueError(f"scores: expected an arm beside {base!r}, found none; score one first.")
    table = pd.DataFrame(rows)
    named = _named(table, primary)
    table["primary"] = named & (level == "image")
    table["role"] = np.where(named, PRIMARY if level == "image" else SENSITIVITY, EXPLORATORY)
    for name in ("p", "p_patients", "delong_p"):
        adjusted = holm(table[name].to_numpy(), named)
        table.insert(table.columns.get_loc(name) + 1, f"{name}_holm", adjusted)
    return table


def _like(base: Scored, arm: Scored, fewer_seeds: bool) -> Scored:
    """The base arm with the seeds of an arm that has some of them, where that is allowed."""
    if not fewer_seeds or not np.isin(arm.seeds, base.seeds).all():
        return base
    kept = np.isin(base.seeds, arm.seeds)
    return base._replace(scores=base.scores[kept], seeds=base.seeds[kept])


def _compare(cell: dict[str, Any], arm: Scored, base: Scored, level: str, options: Mapping[str, Any]) -> dict[str, Any]:
    same = np.array_equal(arm.seeds, base.seeds) and arm.scores.shape == base.scores.shape
    if not (same and np.array_equal(arm.patient, base.patient) and np.array_equal(arm.label, base.label)):
        raise ValueError(
            f"scores of arm {cell['arm']} at rate {cell['rate']}: expected the seeds and images of the base arm, found"
            f" seeds {arm.seeds.tolist()} against {base.seeds.tolist()} and {arm.scores.shape[1]} against"
            f" {base.scores.shape[1]} images; finish the missing trainings."
        )
    gain = stats.difference_bootstrap(arm.label, arm.scores, base.scores, arm.patient, **options)
    each, before = ([stats.auc(arm.label, row) for row in found.scores] for found in (arm, base))
    nan = float("nan")
    t, p, low, high, note = nan, nan, nan, nan, ""
    try:
        t, p, _, _, low, high = stats.paired_t(each, before)
    except ValueError:
        note = "one seed: no test over seeds" if len(each) < 2 else "every seed differs alike: t is not defined"
    tested = delong.compare(arm.label, arm.scores, base.scores) if level == "patient" else None
    over = f"_seeds: {OVER_SEEDS} | _patients: {over_patients(len(each))}"
    return {
        **cell,
        "mean_auc": float(np.mean(each)),
        "mean_auc_base": float(np.mean(before)),
        "difference": gain.estimate,
        "t": t,
        "p": p,
        "low_seeds": low,
        "high_seeds": high,
        "p_patients": resampling.two_sided_p(gain.draws),
        "low_patients": gain.low,
        "high_patients": gain.high,
        "se_patients": gain.error,
        "smallest_effect": DETECTABLE * gain.error if gain.error > 0 else nan,
        "delong_p": tested.p if tested else nan,
        "delong_low": tested.low if tested else nan,
        "delong_high": tested.high if tested else nan,
        "n_seeds": len(each),
        "n_patients": len(np.unique(arm.patient)),
        "over": f"{over} | delong_: patients (DeLong); {stats.GIVEN}" if tested else over,
        "note": note,
    }


def _named(table: pd.DataFrame, primary: Mapping[str, Any] | None) -> np.ndarray:
    if primary is None:
        return np.zeros(len(table), dtype=bool)
    chosen = where(table, primary)
    if chosen.sum() != 1:
        raise ValueError(
            f"primary: expected one comparison named {dict(primary)}, found {chosen.sum()} among {len(table)};"
            f" name {', '.join(present(table))}."
        )
    return chosen


def holm(p: np.ndarray, declared: np.ndarray) -> np.ndarray:
    """Holm-adjusted p ``(n,)`` of the exploratory rows; the declared row keeps its own, NaN stays NaN."""
    from statsmodels.stats.multitest import multipletests

    adjusted = p.copy()
    explored = ~declared & np.isfinite(p)
    if explored.sum() > 1:
        adjusted[explored] = multipletests(p[explored], method="holm")[1]
    return adjusted


# ---------------------------------------------------------------- a table as matrices


def cells(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Scored]]:
    """Each cell's name by column and its scores as a matrix; images in one fixed order.

    Raises
    ------
    ValueError
        An image is scored twice with a seed, or a seed lacks one.
    """
    keys = present(table)
    for key, part in table.groupby(keys, sort=False, observed=True):
        cell = dict(zip(keys, key, strict=True))
        name = f"scores of arm {cell['arm']} at rate {cell['rate']}"
        repeated = part.duplicated(["seed", "image_id"])
        if repeated.any():
            row = part[repeated].iloc[0]
            raise ValueError(
                f"{name}: expected image {row.image_id} once with seed {row.seed},"
                " found it again; score each held-out image once."
            )
        # not pivot_table, which drops what is missing instead of showing it
        wide = part.pivot(index="seed", columns="image_id", values="score").sort_index()  # noqa: PD010
        if wide.isna().to_numpy().any():
            raise ValueError(
                f"{name}: expected {wide.shape[1]} scored images with every seed, found"
                f" {int(wide.isna().to_numpy().sum())} missing or not a number; finish or repeat these trainings."
            )
        facts = part.drop_duplicates("image_id").set_index("image_id").loc[wide.columns]
        label, patient = facts["label"].to_numpy(), facts["patient_id"].to_numpy()
        fold = facts["fold"].to_numpy() if "fold" in facts else None
        yield cell, Scored(label, patient, wide.to_numpy(), wide.index.to_numpy(), fold)


def at_level(scores: pd.DataFrame, level: str) -> pd.DataFrame:
    """Scores of images, or the patients' means; ValueError for another level, a missing column or no row."""
    _require(scores, ("arm", "rate", "seed", "image_id", "patient_id", "label", "score"))
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, found {level!r}.")
    return patient_level(scores) if level == "patient" else scores


def _require(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"scores: expected columns {', '.join(columns)}, found no {', '.join(missing)}; add them.")
    if not len(table):
        raise ValueError("scores: expected one row a held-out image, found none; train first.")
