"""Which 95 % interval of an AUC holds the truth? Simulates patients with several images each, and counts.

A score is normal (binormal ROC): the class, what the patient's images share and what an image has of its own, so that
the AUC of images of new patients is known. Cells are sizes (patients of label 1 and 0), the correlation of a patient's
images and the AUC; both methods of `statistics.auc_interval` and two bootstraps of patients judge the same scores.
Choice: five images per patient, 400 resamples for both bootstraps, which share them. Simulated scores say how a method
behaves, and nothing about livers; training, whose error no interval here includes, is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies
from scipy import stats as scipy_stats

from nafld_utils import statistics
from nafld_utils.sweep import stage

FRAMES, N_RESAMPLES = 5, 400
SIZES = ("8+7", "38+17", "50+50")
CELLS = [
    {"patients": size, "correlation": correlation, "auc": auc}
    for size in SIZES
    for correlation in (0.0, 0.5, 0.9)
    for auc in (0.7, 0.8, 0.9, 0.95)
]


def scores(cell: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulated label, score and patient (n,) of all images of a cell."""
    n_pos, n_neg = map(int, cell["patients"].split("+"))
    patient = np.repeat(np.arange(n_pos + n_neg), FRAMES)
    label, shared = (patient < n_pos).astype(int), cell["correlation"]
    own = (
        np.sqrt(1 - shared) * rng.normal(size=len(patient)) + np.sqrt(shared) * rng.normal(size=n_pos + n_neg)[patient]
    )
    return label, np.sqrt(2) * scipy_stats.norm.ppf(cell["auc"]) * label + own, patient


def bootstraps(label: np.ndarray, score: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile and bias-corrected bounds of a bootstrap of patients within class, by scipy; none without spread."""
    pos, neg = score[label == 1].reshape(-1, FRAMES), score[label == 0].reshape(-1, FRAMES)
    wins = (pos[:, None, :, None] > neg[None, :, None, :]).mean(axis=(2, 3))

    def auc(of_pos: np.ndarray, of_neg: np.ndarray, axis: int = -1) -> np.ndarray:
        up, down = (statistics.counts(i.astype(int), n) for i, n in zip((of_pos, of_neg), wins.shape, strict=True))
        # BCa counts replicates that equal the estimate: rounding errors must not tell them apart
        pairs = of_pos.shape[axis] * of_neg.shape[axis]  # one patient fewer in the jackknife of BCa
        return np.round(((up @ wins) * down).sum(axis=axis) / pairs, 12)

    samples, how = [np.arange(n) for n in wins.shape], {"vectorized": True, "paired": False}
    drawn = scipy_stats.bootstrap(samples, auc, n_resamples=N_RESAMPLES, method="percentile", rng=seed, **how)
    draws, found = drawn.bootstrap_distribution, {"percentile": tuple(drawn.confidence_interval)}
    if draws.min() < wins.mean() < draws.max():  # not defined where all replicates lie on one side
        again = scipy_stats.bootstrap(samples, auc, n_resamples=0, method="BCa", bootstrap_result=drawn, **how)
        return {**found, "bca": tuple(again.confidence_interval)}
    return {} if np.ptp(draws) == 0 else {**found, "bca": found["percentile"]}


def intervals(label: np.ndarray, score: np.ndarray, patient: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Bounds of every method; where a bootstrap has no spread, Newcombe's stand for it."""
    found = {m: statistics.auc_interval(label, score, patient, method=m)[1:] for m in statistics.METHODS}
    return {**dict.fromkeys(("percentile", "bca"), found["newcombe"]), **found, **bootstraps(label, score, seed)}


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float]:
    """By method: does the interval hold the cell's AUC, does it lie wholly below or above it, how wide is it."""
    label, score, patient = scores(cell, rng)
    out: dict[str, bool | float] = {}
    for method, (low, high) in intervals(label, score, patient, int(rng.integers(2**31))).items():
        below, above = bool(high < cell["auc"]), bool(low > cell["auc"])
        out |= {f"{method} holds": not (below or above), f"{method} below": below, f"{method} above": above}
        out[f"{method} width"] = float(high - low)
    return out


STUDY = studies.Study(
    "interval_study",
    "Whether intervals of an AUC hold it, simulated",
    CELLS,
    once,
    ["stats", "delong", "auc_intervals"],
    folder=stage.STUDY.parent,
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
