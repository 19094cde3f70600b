"""Tables of a sweep: the AUC of every arm and rate, and each arm against real images alone.

Contract: tables in, tables out; a table of scores has a held-out image a row, with columns as in `auc_by_seed`. The
same `seed` gives the same intervals, and every table names in `over` what its interval is over: training seeds or
patients, the two sources of chance that `nafld_utils.stats` keeps apart. No table averages over what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import stats

REVISION = 1

LEVELS = ("image", "patient")
OVER_SEEDS = "training seeds (Student t); these patients, this split"
OVER_PATIENTS = "patients within class (bootstrap); these trained models, this split"
OVER_BOTH = "patients within class and training seeds (crossed bootstrap); this split"
# Two-sided 5 % test with 80 % power: 1.96 + 0.84 standard errors.
DETECTABLE = 2.8


def over_patients(n_seeds: int) -> str:
    """What an interval over patients is over: the seeds too, where there are several."""
    return OVER_BOTH if n_seeds > 1 else OVER_PATIENTS


def patient_level(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each patient's images, in every group that the table distinguishes.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``patient_id, label, score``, an image a row, and any of ``backbone, arm, rate, fold, seed``.

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
    groups = [name for name in ("backbone", "arm", "rate", "fold", "seed") if name in scores]
    table = scores.groupby([*groups, "patient_id", "label"], as_index=False, sort=False, observed=True)
    table = table.agg(score=("score", "mean"), n_images=("score", "size"))
    return table.assign(image_id=table["patient_id"].astype(str))


def auc_by_seed(scores: pd.DataFrame, level: str = "image") -> pd.DataFrame:
    """AUC of every arm, rate and seed, from the folds' held-out scores put together, and its average over folds.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``arm, rate, seed, image_id, patient_id, label, score``; ``backbone`` and ``fold`` where there are any.
    level : {"image", "patient"}
        Whether a row or a patient's mean score is ranked.

    Returns
    -------
    pandas.DataFrame
        ``[backbone], arm, rate, seed, auc, fold_auc, n_folds, n_patients``. `auc` is the paper's (concatenated);
        `fold_auc` is the mean over the `n_folds` folds that hold both classes (Supplementary S3), NaN where
        `n_folds` is 0.

    Raises
    ------
    ValueError
        A column is missing, or a score is not finite.
    """
    table = _at_level(scores, level)
    keys = [name for name in ("backbone", "arm", "rate", "seed") if name in table]
    rows = []
    for key, part in table.groupby(keys, sort=False, observed=True):
        folds = [f for _, f in part.groupby("fold")] if "fold" in part else []
        each = [stats.auc(fold["label"], fold["score"]) for fold in folds if fold["label"].nunique() == 2]
        mean = float(np.mean(each)) if each else float("nan")
        rows.append((*key, stats.auc(part["label"], part["score"]), mean, len(each), part["patient_id"].nunique()))
    return pd.DataFrame(rows, columns=[*keys, "auc", "fold_auc", "n_folds", "n_patients"])


def arm_intervals(scores: pd.DataFrame, level: str = "image", n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean AUC of every arm and rate with its interval over patients and seeds.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `auc_by_seed`.
    level : {"image", "patient"}
    n_resamples, seed : int
        As in `stats.auc_interval`.

    Returns
    -------
    pandas.DataFrame
        ``[backbone], arm, rate, mean_auc, low, high, sd_seeds, best_seed_auc, n_seeds, n_patients, over``;
        `best_seed_auc` is the optimistic maximum over seeds, `sd_seeds` NaN where there is one seed.

    Raises
    ------
    ValueError
        As in `stats.auc_interval`; or seeds of one arm were scored on different images.
    """
    rows = []
    for backbone, arms in _matrices(_at_level(scores, level)).items():
        for (arm, rate), (label, patient, matrix, seeds) in arms.items():
            mean, low, high = stats.mean_auc_interval(label, matrix, patient, n_resamples, seed)
            each = [stats.auc(label, row) for row in matrix]
            spread = float(np.std(each, ddof=1)) if len(each) > 1 else float("nan")
            over = over_patients(len(seeds))
            n = len(np.unique(patient))
            rows.append((backbone, arm, rate, mean, low, high, spread, max(each), len(seeds), n, over))
    columns = ["backbone", "arm", "rate", "mean_auc", "low", "high", "sd_seeds", "best_seed_auc"]
    columns += ["n_seeds", "n_patients", "over"]
    return _without_empty_backbone(pd.DataFrame(rows, columns=columns), scores)


def compare_arms(
    scores: pd.DataFrame,
    level: str = "image",
    base: str = "real",
    primary: tuple[Any, ...] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every arm and rate against real images alone: the paper's test over seeds beside the interval over patients.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `auc_by_seed`; every arm with the seeds and images of `base`.
    level : {"image", "patient"}
    base : str
        Arm that the others are compared with.
    primary : (arm, rate) or (backbone, arm, rate), optional
        The one comparison declared beforehand; the p values of all others are Holm-adjusted among themselves.
    n_resamples, seed : int
        As in `stats.auc_interval`.

    Returns
    -------
    pandas.DataFrame
        One row an arm and rate: ``[backbone], arm, rate, mean_auc, mean_auc_base, difference`` (arm minus base);
        over seeds ``t, p, p_holm, low_seeds, high_seeds``; over patients and seeds ``low_patients, high_patients,
        se_patients, smallest_effect`` (the difference that this many patients show with 80 % power: 2.8 standard
        errors); ``n_seeds, n_patients, primary, over`` (what each interval is over), ``note`` (why an entry is NaN).

    Raises
    ------
    ValueError
        `base` is missing, an arm was not scored with the same seeds and images as `base`, or `primary` names
        no row or several.
    """
    rows = []
    for backbone, arms in _matrices(_at_level(scores, level)).items():
        bases = [key for key in arms if key[0] == base]
        if len(bases) != 1:
            raise ValueError(
                f"scores: expected arm {base!r} at one rate, found it at {len(bases)} rates; score it first."
            )
        for key, arm in arms.items():
            if key != bases[0]:
                rows.append({"backbone": backbone, **_compare(key, arm, arms[bases[0]], n_resamples, seed)})
    if not rows:
        raise ValueError(f"scores: expected an arm beside {base!r}, found none; score one first.")
    table = pd.DataFrame(rows)
    table["primary"] = _is_primary(table, primary)
    table.insert(table.columns.get_loc("p") + 1, "p_holm", _holm(table["p"].to_numpy(), table["primary"].to_numpy()))
    return _without_empty_backbone(table, scores)


def _compare(key: tuple[Any, Any], arm: tuple, base: tuple, n_resamples: int, seed: int) -> dict[str, Any]:
    label, patient, new, seeds = arm
    base_label, base_patient, old, base_seeds = base
    same = np.array_equal(seeds, base_seeds) and new.shape == old.shape
    if not (same and np.array_equal(patient, base_patient) and np.array_equal(label, base_label)):
        raise ValueError(
            f"scores of arm {key[0]} at rate {key[1]}: expected the seeds and images of the base arm, found seeds"
            f" {seeds.tolist()} against {base_seeds.tolist()} and {new.shape[1]} against {old.shape[1]} images;"
            " finish the missing trainings."
        )
    gain, error = stats.difference_interval(label, new, old, patient, n_resamples, seed)
    each, before = [stats.auc(label, row) for row in new], [stats.auc(label, row) for row in old]
    nan = float("nan")
    t, p, low, high, note = nan, nan, nan, nan, ""
    try:
        t, p, _, _, low, high = stats.paired_t(each, before)
    except ValueError:
        note = "one seed: no test over seeds" if len(seeds) < 2 else "every seed differs alike: t is not defined"
    return {
        "arm": key[0],
        "rate": key[1],
        "mean_auc": float(np.mean(each)),
        "mean_auc_base": float(np.mean(before)),
        "difference": gain.auc,
        "t": t,
        "p": p,
        "low_seeds": low,
        "high_seeds": high,
        "low_patients": gain.low,
        "high_patients": gain.high,
        "se_patients": error,
        "smallest_effect": DETECTABLE * error,
        "n_seeds": len(seeds),
        "n_patients": len(np.unique(patient)),
        "over": f"_seeds: {OVER_SEEDS} | _patients: {over_patients(len(seeds))}",
        "note": note,
    }


def _is_primary(table: pd.DataFrame, primary: tuple[Any, ...] | None) -> np.ndarray:
    if primary is None:
        return np.zeros(len(table), dtype=bool)
    names = ["backbone", "arm", "rate"][-len(primary) :]
    chosen = (table[names] == list(primary)).all(axis=1).to_numpy()
    if chosen.sum() != 1:
        raise ValueError(
            f"primary: expected one comparison named {tuple(primary)}, found {chosen.sum()} among {len(table)};"
            " name backbone, arm and rate."
        )
    return chosen


def _holm(p: np.ndarray, primary: np.ndarray) -> np.ndarray:
    """Holm-adjusted p of the exploratory rows; the primary row keeps its own."""
    from statsmodels.stats.multitest import multipletests

    adjusted = p.copy()
    explored = ~primary & np.isfinite(p)
    if explored.any():
        adjusted[explored] = multipletests(p[explored], method="holm")[1]
    return adjusted


def _matrices(table: pd.DataFrame) -> dict[Any, dict[tuple[Any, Any], tuple]]:
    """By backbone and (arm, rate): label (n,), patient (n,), scores (seeds, n), seeds; images in one fixed order."""
    if "backbone" not in table:
        table = table.assign(backbone="")
    out: dict[Any, dict[tuple[Any, Any], tuple]] = {}
    for (backbone, arm, rate), part in table.groupby(["backbone", "arm", "rate"], sort=False, observed=True):
        repeated = part.duplicated(["seed", "image_id"])
        if repeated.any():
            row = part[repeated].iloc[0]
            raise ValueError(
                f"scores of arm {arm} at rate {rate}: expected image {row.image_id} once with seed {row.seed},"
                " found it again; score each held-out image once."
            )
        # not pivot_table, which drops what is missing instead of showing it
        wide = part.pivot(index="seed", columns="image_id", values="score").sort_index()  # noqa: PD010
        if wide.isna().to_numpy().any():
            raise ValueError(
                f"scores of arm {arm} at rate {rate}: expected {wide.shape[1]} scored images with every seed, found"
                f" {int(wide.isna().to_numpy().sum())} missing or not a number; finish or repeat these trainings."
            )
        facts = part.drop_duplicates("image_id").set_index("image_id").loc[wide.columns]
        matrix = (facts["label"].to_numpy(), facts["patient_id"].to_numpy(), wide.to_numpy(), wide.index.to_numpy())
        out.setdefault(backbone, {})[(arm, rate)] = matrix
    return out


def _at_level(scores: pd.DataFrame, level: str) -> pd.DataFrame:
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


def _without_empty_backbone(table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    return table if "backbone" in scores else table.drop(columns="backbone")
