"""What a sweep's scores say besides each arm's gain: maxima, measures by patient, ROC bands, robustness variants.

Contract: as of `nafld_utils.sweep_tables`, whose tables these read: tables in, tables out, and `over` names what an
interval is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import measures, stats, sweep_tables

REVISION = ("sweep_summaries", 3)

# The paper's robustness checks: how a group differs from the main one, and where the paper shows it.
VARIANTS = {
    ("freeze", "all"): "every hidden layer frozen (S4)",
    ("freeze", "none"): "every layer trained (S5)",
    ("balance", "oversample"): "healthy oversampled (S7)",
}
MAIN = {"freeze": "paper", "balance": "none"}


def optimistic(arms: pd.DataFrame) -> pd.DataFrame:
    """The maxima that a reader is tempted to quote: the best rate of each arm and the best seed at any rate.

    Parameters
    ----------
    arms : pandas.DataFrame
        From `sweep_tables.arm_intervals`, of one level or with a column ``level``.

    Returns
    -------
    pandas.DataFrame
        Group columns, ``arm, n_rates, mean_auc`` (over rates and seeds), ``best_rate, best_rate_auc, best_seed_rate,
        best_seed_auc, trainings`` (seeds and rates searched), ``is``: what it is. Chosen by the patients that it is
        judged on, so both maxima are too high.
    """
    keys = sweep_tables.present(arms, (*sweep_tables.GROUP, "level", "arm"))
    rows = []
    for key, part in arms.groupby(keys, sort=False, observed=True):
        top, seed = part.loc[part["mean_auc"].idxmax()], part.loc[part["best_seed_auc"].idxmax()]
        row = {**dict(zip(keys, key, strict=True)), "n_rates": len(part), "mean_auc": part["mean_auc"].mean()}
        row |= {"best_rate": top["rate"], "best_rate_auc": top["mean_auc"], "best_seed_rate": seed["rate"]}
        row |= {"best_seed_auc": seed["best_seed_auc"], "trainings": int(part["n_seeds"].sum())}
        rows.append({**row, "is": "optimistic: chosen by the held-out patients"})
    return pd.DataFrame(rows)


def patient_measures(
    scores: pd.DataFrame,
    grade: Mapping[Any, float],
    specificity: float,
    n_resamples: int = 2000,
    seed: int = 0,
    grade_name: str = "fat",
) -> pd.DataFrame:
    """Calibration, sensitivity at a fixed specificity and correlation with the grade of every cell, by patient.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `sweep_tables.auc_by_seed`; scores are probabilities.
    grade : mapping of patient to float
        Fat percent or another grade; NaN where it is not known: then there is no row about it.
    specificity : float in (0, 1]
        As in `measures.sensitivity_at`.
    n_resamples, seed : int
        As in `stats.auc_interval`.
    grade_name : str
        What the grade is.

    Returns
    -------
    pandas.DataFrame
        The cell's columns (`sweep_tables.CELL`), ``measure`` (Brier score, sensitivity, Spearman with fat), ``value,
        low, high, reference`` (Brier score of the share of fatty patients; NaN otherwise), ``n_seeds, n_patients,
        over``.
    """
    rows = []
    for cell, found in sweep_tables.cells(sweep_tables.patient_level(scores)):
        share = found.label.mean()
        values = {
            "Brier score": measures.brier(found.label, found.scores, n_resamples, seed),
            f"sensitivity at specificity {specificity:g}": measures.sensitivity_at(
                found.label, found.scores, specificity, n_resamples, seed
            ),
            f"Spearman correlation with {grade_name}": measures.fat_correlation(
                found.label, [grade.get(who, np.nan) for who in found.patient], found.scores, n_resamples, seed
            ),
        }
        for name, value in values.items():
            if value is not None:
                row = {**cell, "measure": name, "value": value.estimate, "low": value.low, "high": value.high}
                row |= {"reference": share * (1 - share) if name == "Brier score" else float("nan")}
                row |= {"n_seeds": len(found.seeds), "n_patients": len(found.label)}
                rows.append({**row, "over": sweep_tables.over_patients(len(found.seeds))})
    return pd.DataFrame(rows)


def reliability(scores: pd.DataFrame, n_bins: int = 5) -> pd.DataFrame:
    """Share of fatty patients by predicted probability: each cell's columns, `measures.reliability`'s and ``over``."""
    over = f"patients of a bin (Wilson); {stats.GIVEN}"
    parts = [
        measures.reliability(found.label, found.scores, n_bins).assign(**cell, over=over)
        for cell, found in sweep_tables.cells(sweep_tables.patient_level(scores))
    ]
    return pd.concat(parts, ignore_index=True)


def variants(arms: pd.DataFrame) -> pd.DataFrame:
    """The AUC over the mixing rate once for every robustness variant that the run holds, for small multiples.

    Parameters
    ----------
    arms : pandas.DataFrame
        From `sweep_tables.arm_intervals`, both levels, with a column ``level``.

    Returns
    -------
    pandas.DataFrame
        ``backbone, variant, arm, rate, auc, low, high, n_seeds, over``. Of the main way of training (`MAIN`) at image
        level, as the mean over folds and at patient level; of the others (`VARIANTS`) at image level.
    """
    parts = []
    for level, columns, name in (
        ("image", ("mean_auc", "low", "high", "over"), "image level, folds together (Fig. 5)"),
        ("image", ("fold_auc", "fold_low", "fold_high", "over_folds"), "image level, mean of the folds' AUCs (S3)"),
        ("patient", ("mean_auc", "low", "high", "over"), "patient level (S6)"),
    ):
        main = arms[(arms["level"] == level) & sweep_tables.where(arms, MAIN)]
        parts.append(_variant(main, columns, name))
    for (column, value), name in VARIANTS.items():
        if column in arms:
            other = {**MAIN, column: value}
            found = arms[(arms["level"] == "image") & sweep_tables.where(arms, other)]
            parts.append(_variant(found, ("mean_auc", "low", "high", "over"), name))
    table = pd.concat(parts, ignore_index=True)
    return table.dropna(subset=["auc"]).reset_index(drop=True)


def _variant(arms: pd.DataFrame, columns: tuple[str, ...], name: str) -> pd.DataFrame:
    keys = sweep_tables.present(arms, ("backbone", "arm", "rate", "n_seeds"))
    table = arms[[*keys, *columns]].rename(columns=dict(zip(columns, ("auc", "low", "high", "over"), strict=True)))
    return table.assign(variant=name)


def roc_bands(scores: pd.DataFrame, n_resamples: int = 500, seed: int = 0, n_points: int = 101) -> pd.DataFrame:
    """Mean ROC curve over seeds of every cell with a pointwise 95 % band over patients and seeds.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `sweep_tables.auc_by_seed`; folds are put together as in the paper.
    n_resamples, seed : int
        As in `stats.auc_interval`.
    n_points : int
        Points of the grid of false positive rates from 0 to 1.

    Returns
    -------
    pandas.DataFrame
        The cell's columns (`sweep_tables.CELL`), ``fpr, tpr, low, high`` in [0, 1], ``n_seeds, over``; `tpr` is the
        mean over seeds at equal false positive rate, a line between neighbouring thresholds.
    """
    at, parts = np.linspace(0.0, 1.0, n_points), []
    for cell, found in sweep_tables.cells(scores):
        rng = np.random.default_rng(seed)
        names, code = np.unique(found.patient, return_inverse=True)
        is_pos = np.bincount(code, weights=found.label) > 0
        weight = np.zeros((n_resamples, len(names)))
        for stratum in (np.flatnonzero(is_pos), np.flatnonzero(~is_pos)):
            weight[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), n_resamples)
        seeds = rng.multinomial(len(found.scores), np.full(len(found.scores), 1 / len(found.scores)), n_resamples)
        label = found.label.astype(bool)
        once = np.mean([_curve(label, row, np.ones(len(label)), at) for row in found.scores], axis=0)
        drawn = np.zeros((n_resamples, n_points))
        for s, row in enumerate(found.scores):
            for i in np.flatnonzero(seeds[:, s]):
                drawn[i] += seeds[i, s] * _curve(label, row, weight[i][code], at)
        low, high = np.quantile(drawn / len(found.scores), [0.025, 0.975], axis=0)
        facts = {"n_seeds": len(found.scores), "over": sweep_tables.over_patients(len(found.scores))}
        parts.append(pd.DataFrame({**cell, "fpr": at, "tpr": once, "low": low, "high": high, **facts}))
    return pd.concat(parts, ignore_index=True)


def _curve(label: np.ndarray, score: np.ndarray, weight: np.ndarray, at: np.ndarray) -> np.ndarray:
    """True positive rates ``(n_points,)`` at the false positive rates `at`, rows counted `weight` times."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.diff(score[order]) != 0, True)  # ties share a threshold
    hits, alarms = np.cumsum((weight * label)[order])[ends], np.cumsum((weight * ~label)[order])[ends]
    rate = np.interp(at, np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1]))
    rate[0] = 0.0  # a curve starts at (0, 0) even where it rises at once
    return rate
