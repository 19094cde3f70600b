"""ROC AUC of a clustered cohort: intervals over patients, tests over seeds, and what each of them is about.

Contract: arrays or tables in, named tuples or tables out; the same `seed` gives the same interval. Two sources of
chance are kept apart and every table names in `over` what its interval is over. *Seeds*: the same patients, trained
again (the paper's paired t test); says nothing about other patients. *Patients*: other patients drawn like these;
always given these trained models and this split, so it is still too narrow for a newly trained model.

Notes
-----
An AUC is the share of (fatty, healthy) image pairs in the right order. Summed by pair of patients these wins are a
small matrix ``K``; if a bootstrap draws patient ``i`` ``w_i`` times, its AUC is exactly
``w_fatty' K w_healthy / (w_fatty' m_fatty * w_healthy' m_healthy)`` with ``m`` the images a patient has. So the images
are compared once, a resample is a product of small matrices, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

REVISION = 1

LEVELS = ("image", "patient")
OVER_SEEDS = "training seeds (Student t); these patients, this split"
OVER_PATIENTS = "patients within class (bootstrap); these trained models, this split"
OVER_BOTH = "patients within class and training seeds (crossed bootstrap); this split"
# Two-sided 5 % test with 80 % power: 1.96 + 0.84 standard errors.
DETECTABLE = 2.8


class Interval(NamedTuple):
    """An AUC (or a difference of AUCs) with its interval; unpacks as ``auc, low, high``."""

    auc: float
    low: float
    high: float


class PairedT(NamedTuple):
    """A paired t test with the interval of the mean difference, all over seeds."""

    t: float
    p: float
    df: int
    difference: float
    low: float
    high: float


class MeanInterval(NamedTuple):
    """A mean with its Student t interval; unpacks as ``mean, low, high``."""

    mean: float
    low: float
    high: float


# ---------------------------------------------------------------- one score a row


def auc(label: Any, score: Any) -> float:
    """Area under the ROC curve by midranks, ties counted one half.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class; 1 is the positive one.
    score : (n,) array of float
        Higher means more positive.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        One class only, a score that is not finite, or unequal lengths.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    label, scores = _checked(label, score)
    n_pos = int(label.sum())
    ranks = scipy_stats.rankdata(scores[0])
    return float((ranks[label].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * (len(label) - n_pos)))


def auc_interval(
    label: Any, score: Any, patient: Any, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Image-level AUC with a percentile interval over patients.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class of each image; one class a patient.
    score : (n,) array of float
        Higher means more likely class 1.
    patient : (n,) array
        Patient of each image.
    n_resamples : int
        Bootstrap resamples. Patients are drawn with replacement within their class, with all their images.
    seed : int
        Seed of the draws (class 1 first, then class 0).
    level : float
        Coverage asked for.

    Returns
    -------
    Interval
        ``auc, low, high``, over patients, given these scores.

    Raises
    ------
    ValueError
        One class only, fewer than two patients in a class, a patient with two labels, a score that is not finite.

    Notes
    -----
    Choice: percentile interval. The trained models stay fixed, so under shuffled labels a "95 %" interval of
    cross-validated scores covers 0.5 less often (81 % in a check on the real cohort).

    Examples
    --------
    >>> label, patient = [0, 0, 0, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "c", "c", "d", "d"]
    >>> auc_interval(label, [1, 2, 3, 4, 2.5, 5, 6, 7], patient)
    Interval(auc=0.875, low=0.5, high=1.0)
    """
    return mean_auc_interval(label, np.atleast_2d(score), patient, n_resamples, seed, level)


def student_t_interval(values: Any, level: float = 0.95) -> MeanInterval:
    """Mean of independent values with its Student t interval, not clipped to any range.

    Parameters
    ----------
    values : (n,) array of float
        One value a rater, seed or fold; at least two.
    level : float
        Coverage.

    Returns
    -------
    MeanInterval
        ``mean, low, high``; no width where all values are equal.

    Raises
    ------
    ValueError
        Fewer than two values, or one that is not finite.

    Examples
    --------
    >>> mean, low, high = student_t_interval([0.4, 0.5, 0.6])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (0.5, 0.252, 0.748)
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"values: expected two or more finite numbers for a Student t interval, found {_brief(values)};"
            " add raters, seeds or folds."
        )
    half = scipy_stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return MeanInterval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def paired_t(new: Any, base: Any, level: float = 0.95) -> PairedT:
    """Paired t test over seeds, as in the paper: does `new` differ from `base` on the same patients?

    Parameters
    ----------
    new, base : (n_seeds,) array of float
        AUC of each seed, in the same order of seeds.
    level : float
        Coverage of the interval of the mean difference.

    Returns
    -------
    PairedT
        ``t, p, df, difference, low, high``; difference is new minus base, so a gain has a positive t (the paper
        prints the opposite sign).

    Raises
    ------
    ValueError
        Unequal lengths, fewer than two seeds, or differences without any spread (t is then not defined).
    """
    new, base = np.asarray(new, dtype=float), np.asarray(base, dtype=float)
    if new.shape != base.shape:
        raise ValueError(
            f"new and base: expected the same seeds in both, found {new.shape} and {base.shape}; pair them."
        )
    difference, low, high = student_t_interval(new - base, level)
    error = (new - base).std(ddof=1) / np.sqrt(len(new))
    if error <= 1e-12:  # rounding alone may leave a spread of 1e-17
        raise ValueError(
            f"new and base differ by {difference:g} in every seed, expected some spread; t is not defined."
        )
    t = difference / error
    return PairedT(float(t), float(2 * scipy_stats.t.sf(abs(t), len(new) - 1)), len(new) - 1, difference, low, high)


# ---------------------------------------------------------------- several seeds, same images


def mean_auc_interval(
    label: Any, scores: Any, patient: Any, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean AUC over seeds with a crossed bootstrap interval over patients and seeds.

    Parameters
    ----------
    label : (n,) array of 0 and 1
    scores : (n_seeds, n) array of float
        Row s holds the scores of training seed s for the same images. One row: an interval over patients alone.
    patient : (n,) array
    n_resamples, seed, level
        As in `auc_interval`.

    Returns
    -------
    Interval
        ``auc, low, high``.

    Raises
    ------
    ValueError
        As in `auc_interval`.
    """
    estimate, draws = _crossed(label, [scores], patient, n_resamples, seed)
    return Interval(float(estimate[0]), *_percentiles(draws[0], level))


def difference_interval(
    label: Any, new: Any, base: Any, patient: Any, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[Interval, float]:
    """Mean AUC difference ``new - base`` with a crossed bootstrap interval over patients and seeds.

    Patients are drawn within class, the same draw for both arms; seeds are drawn independently of them, in pairs.

    Parameters
    ----------
    label : (n,) array of 0 and 1
    new, base : (n_seeds, n) array of float
        Row s of both was trained with the same seed.
    patient : (n,) array
    n_resamples, seed, level
        As in `auc_interval`.

    Returns
    -------
    Interval
        Difference (in its field ``auc``) with its bounds.
    float
        Bootstrap standard error of the difference.

    Raises
    ------
    ValueError
        As in `auc_interval`, or `new` and `base` of unequal shape.

    Notes
    -----
    With two or three seeds the seeds' part of the spread is underestimated; patients dominate it all the same.
    """
    new, base = np.atleast_2d(np.asarray(new, dtype=float)), np.atleast_2d(np.asarray(base, dtype=float))
    if new.shape != base.shape:
        raise ValueError(
            f"new and base: expected equal shapes (seeds, images), found {new.shape} and {base.shape}; pair them."
        )
    estimate, draws = _crossed(label, [new, base], patient, n_resamples, seed)
    gain = draws[0] - draws[1]
    return Interval(float(estimate[0] - estimate[1]), *_percentiles(gain, level)), float(gain.std(ddof=1))


def _crossed(
    label: Any, arms: Sequence[Any], patient: Any, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean AUC of each arm, (arms,), and its bootstrap replicates, (arms, n_resamples); one draw serves all arms."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples: expected at least 1, found {n_resamples}; the default is 2000.")
    wins = [_pair_wins(label, scores, patient) for scores in arms]
    n_seeds, n_pos, n_neg = wins[0][0].shape
    if min(n_pos, n_neg) < 2:
        raise ValueError(
            f"patient: expected two or more patients in each class for an interval over patients, found {n_neg} of"
            f" class 0 and {n_pos} of class 1; add patients."
        )
    rng = np.random.default_rng(seed)
    pos, neg = _draw_counts(rng, n_pos, n_resamples), _draw_counts(rng, n_neg, n_resamples)
    seeds = _draw_counts(rng, n_seeds, n_resamples) / n_seeds
    once = np.ones((1, n_pos)), np.ones((1, n_neg))
    estimate = np.array([_weighted_auc(*pairs, *once).mean() for pairs in wins])
    draws = np.array([(_weighted_auc(*pairs, pos, neg) * seeds).sum(axis=1) for pairs in wins])
    return estimate, draws


def _pair_wins(label: Any, scores: Any, patient: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wins summed by pair of patients (seeds, P, N), images of each positive (P,) and negative (N,) patient."""
    label, scores = _checked(label, scores)
    code = _patient_codes(label, patient)
    images = np.bincount(code)
    is_pos = np.zeros(len(images), dtype=bool)
    is_pos[code[label]] = True
    positives, negatives = np.flatnonzero(is_pos), np.flatnonzero(~is_pos)
    place = np.searchsorted(positives, code[label])
    wins = np.empty((len(scores), len(positives), len(negatives)))
    for s, row in enumerate(scores):
        for j, who in enumerate(negatives):
            below = np.sort(row[code == who])
            won = np.searchsorted(below, row[label], "left") + np.searchsorted(below, row[label], "right")
            wins[s, :, j] = np.bincount(place, weights=won / 2, minlength=len(positives))
    return wins, images[positives], images[negatives]


def _weighted_auc(
    wins: np.ndarray, m_pos: np.ndarray, m_neg: np.ndarray, pos: np.ndarray, neg: np.ndarray
) -> np.ndarray:
    """AUC (draws, seeds) when patients count `pos` (draws, P) and `neg` (draws, N) times."""
    pairs = (pos @ m_pos) * (neg @ m_neg)
    return np.stack([((pos @ matrix) * neg).sum(axis=1) / pairs for matrix in wins], axis=1)


def _draw_counts(rng: np.random.Generator, n: int, n_resamples: int) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(label: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Label as (n,) bool and scores as (seeds, n) float64, or a ValueError."""
    label, scores = np.asarray(label), np.atleast_2d(np.asarray(scores, dtype=float))
    if label.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(label):
        raise ValueError(
            f"label and score: expected one row an image in both, found {label.shape} and {scores.shape}; align them."
        )
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"label: expected 0 and 1, found {_brief(np.unique(label))}; code the classes as 0 and 1.")
    label = label.astype(bool)
    if label.all() or not label.any():
        raise ValueError(f"label: expected both classes, found one in {len(label)} rows; an AUC needs both.")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ValueError(f"score: expected finite numbers, found {bad} that are not; train the failed runs again.")
    return label, scores


def _patient_codes(label: np.ndarray, patient: Any) -> np.ndarray:
    names, code = np.unique(np.asarray(patient), return_inverse=True)
    if code.shape != label.shape:
        raise ValueError(f"patient: expected one entry an image ({len(label)}), found {code.shape}; align it.")
    share = np.bincount(code, weights=label) / np.bincount(code)
    mixed = np.flatnonzero((share > 0) & (share < 1))
    if len(mixed):
        raise ValueError(
            f"patient {names[mixed[0]]}: expected one label, found both 0 and 1; a patient has one diagnosis."
        )
    return code


def _brief(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), threshold=6, precision=4)


# ---------------------------------------------------------------- tables of a sweep


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
    _patient_codes(scores["label"].to_numpy().astype(bool), scores["patient_id"])
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
        each = [auc(fold["label"], fold["score"]) for fold in folds if fold["label"].nunique() == 2]
        mean = float(np.mean(each)) if each else float("nan")
        rows.append((*key, auc(part["label"], part["score"]), mean, len(each), part["patient_id"].nunique()))
    return pd.DataFrame(rows, columns=[*keys, "auc", "fold_auc", "n_folds", "n_patients"])


def arm_intervals(scores: pd.DataFrame, level: str = "image", n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean AUC of every arm and rate with its interval over patients and seeds.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `auc_by_seed`.
    level : {"image", "patient"}
    n_resamples, seed : int
        As in `auc_interval`.

    Returns
    -------
    pandas.DataFrame
        ``[backbone], arm, rate, mean_auc, low, high, sd_seeds, best_seed_auc, n_seeds, n_patients, over``;
        `best_seed_auc` is the optimistic maximum over seeds, `sd_seeds` NaN where there is one seed.

    Raises
    ------
    ValueError
        As in `auc_interval`; or seeds of one arm were scored on different images.
    """
    rows = []
    for backbone, arms in _matrices(_at_level(scores, level)).items():
        for (arm, rate), (label, patient, matrix, seeds) in arms.items():
            mean, low, high = mean_auc_interval(label, matrix, patient, n_resamples, seed)
            each = [auc(label, row) for row in matrix]
            spread = float(np.std(each, ddof=1)) if len(each) > 1 else float("nan")
            over = OVER_BOTH if len(seeds) > 1 else OVER_PATIENTS
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
        As in `auc_interval`.

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
    gain, error = difference_interval(label, new, old, patient, n_resamples, seed)
    each, before = [auc(label, row) for row in new], [auc(label, row) for row in old]
    nan = float("nan")
    t, p, low, high, note = nan, nan, nan, nan, ""
    try:
        t, p, _, _, low, high = paired_t(each, before)
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
        "over": f"_seeds: {OVER_SEEDS} | _patients: {OVER_BOTH if len(seeds) > 1 else OVER_PATIENTS}",
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
