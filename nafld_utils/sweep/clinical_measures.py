"""What a clinic asks besides the AUC, by patient: calibration, sensitivity at a fixed specificity, agreement with fat.

Contract: ``label (n,)`` of 0 and 1 and ``scores (n_seeds, n)`` or ``(n,)``: one column per PATIENT, one row per
training seed; a measure is computed for each seed and averaged, and its interval is over patients within class and
seeds, given the trained models and the split. ``n_resamples, seed`` and what is refused are as in
`statistics.auc_interval`. Where no resample moves a measure its bounds are NaN and ``over`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy

from nafld_utils import statistics
from nafld_utils.sweep import comparisons

REVISION = ("measures", 2), ("sweep_summaries", 4)


def brier(label: Any, scores: Any, n_resamples: int = 2000, seed: int = 0) -> statistics.Resampled:
    """Brier score: mean squared distance of the probability (in [0, 1]) from the outcome, 0 is perfect.

    Someone who says the share of fatty patients for everyone scores ``share * (1 - share)``.
    """
    label, scores = _probabilities(label, scores)
    squared = (scores - label) ** 2
    return _resample(label, scores, lambda s, columns: squared[s, columns].mean(axis=-1), n_resamples, seed)


def sensitivity_at(
    label: Any, scores: Any, specificity: float = 0.9, n_resamples: int = 2000, seed: int = 0
) -> statistics.Resampled:
    """Sensitivity at the lowest threshold that keeps at least this specificity, in (0, 1]; positive lies above it.

    Every resample sets its own threshold, on the patients that it is judged on, as on a ROC curve, so the number is
    optimistic. With 17 healthy patients one of them is 0.06 of specificity: 0.9 allows one false alarm. Where every
    resample finds all patients of class 1 the interval is the exact binomial one of their number, as `over` then says.

    Examples
    --------
    >>> sensitivity_at([0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 2.5, 5, 6, 7], 0.75).estimate
    0.75
    """
    label, scores = statistics.checked(label, scores)
    n_pos, n_neg = int(label.sum()), int((~label).sum())
    place = int(np.ceil(specificity * n_neg - 1e-9)) - 1

    def statistic(s: np.ndarray, columns: np.ndarray) -> np.ndarray:
        drawn = scores[s, columns]
        threshold = np.sort(drawn[..., n_pos:], axis=-1)[..., place, None]
        return (drawn[..., :n_pos] > threshold).mean(axis=-1)

    found = _resample(label, scores, statistic, n_resamples, seed)
    if np.isfinite(found.low) or found.estimate < 1:
        return found
    low, high = statistics.exact_interval(n_pos, n_pos)
    return found._replace(low=low, high=high, over=f"patients of class 1 (exact binomial); {statistics.GIVEN}")


def fat_correlation(
    label: Any, grade: Any, scores: Any, n_resamples: int = 2000, seed: int = 0
) -> statistics.Resampled | None:
    """Spearman's correlation of the score with the biopsied fat; None where a patient's fat is unknown or all is equal.

    `grade` (n,) is the percent of hepatocytes with fatty infiltration, in [0, 100], NaN where it is not known.
    """
    label, scores = statistics.checked(label, scores)
    grade = np.asarray(grade, dtype=float)
    if not np.isfinite(grade).all() or np.ptp(grade) == 0:
        return None

    def statistic(s: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return _correlation(*(scipy.stats.rankdata(drawn, axis=-1) for drawn in (scores[s, columns], grade[columns])))

    return _resample(label, scores, statistic, n_resamples, seed)


def calibration_bins(label: Any, scores: Any, n_bins: int = 5) -> pd.DataFrame:
    """Share of fatty patients by predicted probability (averaged over seeds), in bins of equally many patients.

    ``predicted`` (mean probability), ``observed`` (share of class 1), ``low, high`` (Wilson 95 % over the bin's
    patients), ``n``; one row per bin, fewer where probabilities tie. Choice: five bins, so that 55 patients leave
    eleven in each.
    """
    from statsmodels.stats.proportion import proportion_confint

    label, scores = _probabilities(label, scores)
    table = pd.DataFrame({"predicted": scores.mean(axis=0), "observed": label.astype(float)})
    flat = np.ptp(table["predicted"]) == 0
    bins = np.zeros(len(table)) if flat else pd.qcut(table["predicted"], n_bins, duplicates="drop")
    out = table.groupby(bins, observed=True).agg(
        predicted=("predicted", "mean"), observed=("observed", "mean"), n=("observed", "size")
    )
    hits = (out["observed"] * out["n"]).round()
    out["low"], out["high"] = proportion_confint(hits, out["n"], method="wilson")
    return out[["predicted", "observed", "low", "high", "n"]].reset_index(drop=True)


# ---------------------------------------------------------------- resampling columns of a score matrix


def _resample(
    label: np.ndarray, scores: np.ndarray, measure: Callable[..., Any], n_resamples: int, seed: int
) -> statistics.Resampled:
    """Bootstrap of a measure, averaged over seeds, of a seed and patients ``(..., n)``, those of class 1 first."""
    places = [np.flatnonzero(label), np.flatnonzero(~label)]

    def statistic(*drawn: np.ndarray) -> np.ndarray:
        columns = np.concatenate([place[index] for place, index in zip(places, drawn[:-1], strict=True)], axis=-1)
        if drawn[-1].ndim == 1:
            return np.mean([measure(s, columns) for s in drawn[-1]])
        # seeds one after the other: at once, 25 of them would take a gigabyte
        each = np.stack([measure(np.intp(s), columns) for s in range(len(scores))], axis=-1)
        weight = statistics.counts(drawn[-1], len(scores))
        return (each * weight).sum(axis=-1) / weight.sum(axis=-1)

    return statistics.crossed_bootstrap(statistic, [len(p) for p in places], len(scores), n_resamples, seed)


def _probabilities(label: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    label, scores = statistics.checked(label, scores)
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(
            f"score: expected probabilities in [0, 1], found {scores.min():g} to {scores.max():g}; convert them first."
        )
    return label, scores


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; 0 where one side does not vary."""
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.where(scale > 0, scale, 1.0)


# ---------------------------------------------------------------- tables of every cell


def patient_measures(
    scores: pd.DataFrame,
    grade: Mapping[Any, float],
    specificity: float,
    n_resamples: int = 2000,
    seed: int = 0,
    grade_name: str = "fat",
) -> pd.DataFrame:
    """Calibration, sensitivity at a fixed specificity and correlation with the grade of every cell, by patient.

    ``measure`` (Brier score, sensitivity, Spearman with the grade), ``value, low, high, reference`` (Brier score of the
    share of fatty patients; NaN otherwise), ``n_seeds, n_patients, over``. Scores are probabilities; `grade` is fat
    percent or another grade by patient: where one is not known there is no row about it.
    """
    rows, how = [], {"n_resamples": n_resamples, "seed": seed}
    for cell, found in comparisons.cells(comparisons.patient_level(scores)):
        label, row, share = found.label, found.scores, found.label.mean()
        graded = [grade.get(who, np.nan) for who in found.patient]
        values = {
            "Brier score": brier(label, row, **how),
            f"sensitivity at specificity {specificity:g}": sensitivity_at(label, row, specificity, **how),
            f"Spearman correlation with {grade_name}": fat_correlation(label, graded, row, **how),
        }
        for name, value in values.items():
            if value is not None:
                one = {**cell, "measure": name, "value": value.estimate, "low": value.low, "high": value.high}
                one["reference"] = share * (1 - share) if name == "Brier score" else float("nan")
                over = value.over or statistics.stated(comparisons.over_patients(len(found.seeds)), value.low)
                rows.append({**one, **found.counts, "over": over})
    return pd.DataFrame(rows)


def reliability(scores: pd.DataFrame, n_bins: int = 5) -> pd.DataFrame:
    """Share of fatty patients by predicted probability: each cell's columns, `calibration_bins`' and
    ``over``.
    """
    over = f"patients of a bin (Wilson); {statistics.GIVEN}"
    parts = [
        calibration_bins(found.label, found.scores, n_bins).assign(**cell, over=over)
        for cell, found in comparisons.cells(comparisons.patient_level(scores))
    ]
    return pd.concat(parts, ignore_index=True)


def roc_bands(scores: pd.DataFrame, n_resamples: int = 500, seed: int = 0, n_points: int = 101) -> pd.DataFrame:
    """Mean ROC curve over seeds of every cell with a pointwise 95 % band over patients and seeds.

    ``fpr, tpr, low, high`` in [0, 1], ``n_seeds, over``, at `n_points` false positive rates; `tpr` is the mean over
    seeds at equal false positive rate, a line between neighbouring thresholds; folds are put together as in the paper.
    """
    at, parts = np.linspace(0.0, 1.0, n_points), []
    for cell, found in comparisons.cells(scores):
        rng, n_seeds = np.random.default_rng(seed), len(found.scores)
        names, code = np.unique(found.patient, return_inverse=True)
        is_pos = np.bincount(code, weights=found.label) > 0
        weight = np.zeros((n_resamples, len(names)))
        for stratum in (np.flatnonzero(is_pos), np.flatnonzero(~is_pos)):
            weight[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), n_resamples)
        seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_resamples)
        label = found.label.astype(bool)
        once = np.mean([_curve(label, row, np.ones(len(label)), at) for row in found.scores], axis=0)
        drawn = np.zeros((n_resamples, n_points))
        for s, row in enumerate(found.scores):
            for i in np.flatnonzero(seeds[:, s]):
                drawn[i] += seeds[i, s] * _curve(label, row, weight[i][code], at)
        low, high = np.quantile(drawn / n_seeds, [0.025, 0.975], axis=0)
        if np.ptp(drawn, axis=0).max() == 0:  # no resample moves the curve
            low = high = np.full(n_points, np.nan)
        facts = {"n_seeds": n_seeds, "over": statistics.stated(comparisons.over_patients(n_seeds), low[0])}
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
