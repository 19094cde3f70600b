"""Does the gate of stage 07 let maps be read that must not be? Simulates held-out scores and counts.

Patients of each fold have scores that are normal within a class, correlated within a patient, and as far apart as the
true AUC says; in cells with a ``spread`` the folds' own true AUCs go that far to both sides of their mean. ``passes``
is the gate, the lower bound of `statistics.fold_mean_auc` above 0.7; ``as_published`` the lower bound of LeDell 2015
in its place; ``above_truth`` says that the gate's lower bound lies above the true AUC (nominal 2.5 %). At a true AUC of
0.7 or less every pass is wrong, and at 0.9 the share is the power. Five images per patient.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies
from scipy import stats

from nafld_utils import statistics
from nafld_utils.explain import map_measures

IMAGES = 5  # per patient


def cell(patients: str, folds: int, auc: float, within: float, spread: float = 0.0) -> dict[str, Any]:
    """A cell: ``patients`` of both classes of a fold, correlation ``within`` a patient."""
    return {"folds": folds, "patients": patients, "within": within, "auc": auc, "spread": spread}


SIZES, AUCS = ("2+2", "3+2", "5+3", "8+3"), (0.5, 0.6, 0.7, 0.8, 0.9)
CELLS = [
    *(cell(patients, 5, auc, 0.5) for patients in SIZES for auc in AUCS),
    *(cell(patients, 5, auc, 0.9) for patients in SIZES for auc in (0.7, 0.9)),
    *(cell(patients, folds, auc, 0.5) for patients in ("2+2", "8+3") for folds in (1, 2) for auc in (0.5, 0.7, 0.9)),
    *(cell(patients, folds, 0.7, 0.9) for patients in ("2+2", "8+3") for folds in (1, 2)),
    *(cell(patients, 5, auc, 0.5, 0.1) for patients in ("3+2", "8+3") for auc in (0.7, 0.85)),
]


def simulate(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Held-out scores of one study: ``label, score, patient, fold``, an entry per image."""
    n_pos, n_neg = map(int, cell["patients"].split("+"))
    n, k = n_pos + n_neg, cell["folds"]
    label = np.tile(np.arange(n) < n_pos, (k, 1))
    truth = cell["auc"] + cell["spread"] * np.linspace(-1, 1, k)
    apart = np.sqrt(2) * stats.norm.ppf(truth)
    own = np.sqrt(cell["within"]) * rng.standard_normal((k, n)) + apart[:, None] * label
    score = own[..., None] + np.sqrt(1 - cell["within"]) * rng.standard_normal((k, n, IMAGES))
    patient = np.arange(k * n).reshape(k, n)
    fold = np.repeat(np.arange(k)[:, None], n, axis=1)
    per_image = {
        name: np.repeat(value.ravel(), IMAGES)
        for name, value in (("label", label.astype(int)), ("patient", patient), ("fold", fold))
    }
    return {**per_image, "score": score.ravel()}


def published_low(label: np.ndarray, score: np.ndarray, patient: np.ndarray, fold: np.ndarray) -> float:
    """Lower bound of LeDell 2015, as in its R package with `ids`: influence of each patient, normal, AUC scale."""
    aucs, total, names = [], 0.0, np.unique(fold)
    for name in names:
        rows = fold == name
        y, s, who = label[rows] == 1, score[rows], np.unique(patient[rows], return_inverse=True)[1]
        order = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
        aucs.append(order.mean())
        influence = np.empty(len(s))
        influence[y], influence[~y] = order.mean(axis=1) / y.mean(), order.mean(axis=0) / (~y).mean()
        influence -= aucs[-1] * np.where(y, 1 / y.mean(), 1 / (~y).mean())
        total += (np.bincount(who, weights=influence) ** 2).sum() / len(s) ** 2
    return float(np.mean(aucs) - stats.norm.ppf(0.975) * np.sqrt(total) / len(names))


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """Whether the gate opens, for one study."""
    scores = simulate(cell, rng)
    found = statistics.fold_mean_auc(**scores)
    return {
        "passes": map_measures.readable(found.low),
        "as_published": map_measures.readable(published_low(**scores)),
        "above_truth": bool(found.low > cell["auc"]),
        "auc": found.auc,
    }


STUDY = studies.Study(
    script="gate_study",
    about="Whether stage 07 lets maps be read that must not be",
    cells=CELLS,
    once=once,
    modules=["cross_validated", "explain_truth"],
    repetitions=4000,
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
