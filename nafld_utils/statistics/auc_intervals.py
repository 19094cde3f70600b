"""The 95 % interval of one AUC over patients, and over training seeds where there are several.

Contract: as in `statistics.roc`, which says what is refused; nothing is drawn. An AUC of 0 or 1 has a bound inside
(0, 1), and constant scores have NaN bounds: `over` then says in words that nothing can be said. How often each method
holds the truth, and two bootstraps beside them, is counted by ``tests/benchmarks/interval_study.py`` (notebook 06).

References
----------
Newcombe 2006, doi:10.1002/sim.2324; images of a patient: Obuchowski 1997, doi:10.2307/2533958; seeds as readers:
Obuchowski and Rockette 1995, doi:10.1080/03610919508813243, degrees of freedom by Hillis 2007, doi:10.1002/sim.2532.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy

from nafld_utils.statistics import delong, readers, roc

REVISION = ("auc_intervals", 1)

METHODS = {"newcombe": "Newcombe", "logit": "logit DeLong"}  # what each is called in a table's words


def auc_interval(
    label: Any, score: Any, patient: Any, *, level: float = 0.95, method: str = "newcombe"
) -> roc.Interval:
    """Image-level AUC with an interval over patients.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class of each image; one class per patient.
    score : (n,) array of float
        Higher means more likely class 1.
    patient : (n,) array
        Patient of each image.
    level : float
        Coverage asked for.
    method : {"newcombe", "logit"}
        Score interval with the effective number of images, or DeLong's on the logit scale; nothing is drawn.

    Returns
    -------
    Interval
        ``auc, low, high``, over patients, given these scores; NaN bounds where the scores are constant.

    Notes
    -----
    Choice: Newcombe held the truth in 91.95 to 98 % of the draws of each simulated cell, logit in 88.6 to 96 %. The
    trained models stay fixed, so intervals of cross-validated scores hold 0.5 less often where labels are shuffled.

    Examples
    --------
    >>> label, patient = [0, 0, 0, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "c", "c", "d", "d"]
    >>> auc, low, high = auc_interval(label, [1, 2, 3, 4, 2.5, 5, 6, 7], patient)
    >>> auc, round(low, 3), round(high, 3)
    (0.875, 0.364, 0.987)
    """
    return mean_auc_interval(label, score, patient, level=level, method=method)


def mean_auc_interval(
    label: Any, scores: Any, patient: Any, *, level: float = 0.95, fold: Any = None, method: str = "newcombe"
) -> roc.Interval:
    """Mean AUC over seeds with an interval over patients and seeds.

    Parameters
    ----------
    scores : (n_seeds, n) array of float
        Row s holds the scores of training seed s for the same images. Fewer than `readers.FEWEST_SEEDS`: an interval
        over patients alone, given these trainings.
    fold : (n,) array, optional
        Fold of each image: the AUC is then the mean of the folds' own AUCs (Supplementary Fig. 3), and patients are
        those of a class and fold. None ranks the folds' scores together.
    label, patient, level, method
        As in `auc_interval`.

    Returns
    -------
    Interval
        ``auc, low, high``.

    Raises
    ------
    ValueError
        `method` is none of `METHODS`.

    Notes
    -----
    Seeds count as readers: the variance is the covariance of two seeds' AUCs over patients, and that of the seeds' AUCs
    divided by their number (Obuchowski and Rockette). Newcombe's formula asks for independent rows: the images are
    divided by their design effect, Obuchowski's variance over DeLong's of independent images, and never count for fewer
    rows than there are patients or for more than there are images.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {method!r}.")
    found = _spread(label, scores, patient, fold)
    if found.constant:
        return roc.Interval(found.auc, float("nan"), float("nan"))
    quantile, variance = float(scipy.stats.t.ppf((1 + level) / 2, found.df)), found.patients + found.seeds
    if method == "newcombe" or variance == 0 or found.auc in (0, 1):
        bounds = delong.score_bounds(found.auc, found.sizes, quantile, found.alike, found.seeds)
    else:
        half = quantile * np.sqrt(variance) / (found.auc * (1 - found.auc))
        bounds = tuple(float(1 / (1 + (1 / found.auc - 1) * np.exp(-side * half))) for side in (-1, 1))
    return roc.Interval(found.auc, *bounds)


def over(found: roc.Interval, n_seeds: int = 1, method: str = "newcombe", within: str = "") -> str:
    """What an interval of `mean_auc_interval` is over, or that nothing can be said; `within` what besides a class.

    Examples
    --------
    >>> over(roc.Interval(0.8, 0.7, 0.9), n_seeds=3)
    'patients within class and training seeds (Newcombe); this split, these generators and training patients'
    """
    seeds, given = ("", roc.GIVEN) if n_seeds < readers.FEWEST_SEEDS else (" and training seeds", roc.GIVEN_SEEDS)
    return roc.stated(f"patients within class{within}{seeds} ({METHODS[method]}); {given}", found.low)


# ---------------------------------------------------------------- what varies


class _Spread(NamedTuple):
    """Mean AUC, variance over patients and over seeds, df, effective rows of blocks, correlation of seeds, constant."""

    auc: float
    patients: float
    seeds: float
    df: float
    sizes: list[tuple[float, float]]
    alike: float
    constant: bool


def _spread(label: Any, scores: Any, patient: Any, fold: Any) -> _Spread:
    """What varies in a mean AUC of scores (seeds, n) in one block or in folds."""
    label, scores = roc.checked(label, scores)
    code = roc.patient_codes(label, patient)
    part = np.zeros(len(label), dtype=int) if fold is None else np.unique(fold, return_inverse=True)[1]
    n_blocks, n_seeds = int(part.max()) + 1, len(scores)
    blocks = [part == k for k in range(n_blocks)]
    measured = [delong.covariance(label[rows], scores[:, rows], code[rows]) for rows in blocks]
    each = np.mean([aucs for aucs, _ in measured], axis=0)
    both = np.sum([one for _, one in measured], axis=0) / n_blocks**2
    singly = sum(np.diag(delong.covariance(label[rows], scores[:, rows])[1]).mean() for rows in blocks) / n_blocks**2
    single = float(np.diag(both).mean())
    few = n_seeds < readers.FEWEST_SEEDS
    shared = both.mean() if few else (both.sum() - np.trace(both)) / (n_seeds * (n_seeds - 1))
    shared = max(shared, single / n_seeds)  # as if seeds were independent: never less than a mean of them has
    seeds = 0.0 if few else float(each.var(ddof=1)) / n_seeds
    effect = single / singly if min(single, singly) > 0 else np.inf
    sizes = []
    for rows in blocks:
        kinds = [rows & (label == kind) for kind in (True, False)]
        sizes.append(tuple(max(kind.sum() / max(effect, 1.0), len(np.unique(code[kind]))) for kind in kinds))
    df = (shared + seeds) ** 2 / (seeds**2 / (n_seeds - 1)) if seeds > 0 else np.inf
    constant = all((np.ptp(scores[:, rows], axis=1) == 0).all() for rows in blocks)
    alike = min(1.0, shared / single) if single > 0 else 1.0
    return _Spread(float(each.mean()), shared, seeds, df, sizes, alike, constant)
