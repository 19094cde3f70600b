"""Tables of trainings without a real image: AUCs and what they vary with, controls, the half ratio, real patients.

Contract: tables in, tables out; a table of scores is that of `units.scores`. AUCs are the mean of the folds' own, of
patients (the mean score of their images) unless `level` says image; where a fold has fewer than two patients of a class
all are ranked together. Every table names in ``over`` what its interval is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

from nafld_utils import statistics
from nafld_utils.sweep import clinical_measures

REVISION = ("simulated_only_tables", 1)

STRATA = 3  # of the half ratio, equally many patients in each (choice: 55 patients leave 18 in each)
UNTRAINED, SHUFFLED, HALVES = "untrained tail", "shuffled labels", "upper / lower half"
SEEN = {"border": "overlays and border masked", "depth": "depth profile flattened"}
OVER = "patients of a class and fold, and simulated cohorts with their trainings (Obuchowski-Rockette)"
OVER_PATIENTS = "patients of a class and fold; these trainings"


class Scored(NamedTuple):
    """Scores (n_cohorts, n_seeds, n) of rows with label, patient and fold (None: ranked together), each (n,)."""

    label: np.ndarray
    patient: np.ndarray
    fold: np.ndarray | None
    scores: np.ndarray

    def auc(self, base: Any = None) -> statistics.Nested:
        """Mean AUC, or its difference to that of `base` on the same rows."""
        return statistics.nested_auc(self.label, self.scores, self.patient, self.fold, base)

    @property
    def flat(self) -> np.ndarray:
        """Scores (trainings, n)."""
        return self.scores.reshape(-1, self.scores.shape[-1])

    @property
    def each(self) -> np.ndarray:
        """AUC of each training, (n_cohorts, n_seeds)."""
        values = [
            statistics.nested_auc(self.label, row[None, None], self.patient, self.fold).value for row in self.flat
        ]
        return np.reshape(values, self.scores.shape[:2])


def scored(part: pd.DataFrame, level: str = "patient") -> Scored:
    """Scores of some trainings, one step and one way of seeing, as a matrix; ValueError where one lacks a row."""
    rows = ["patient_id", "image_id"] if level == "image" else ["patient_id"]
    means = part.groupby(["cohort", "seed", *rows])["score"].mean()
    wide = means.unstack(rows)  # noqa: PD010
    shape = [wide.index.get_level_values(name).nunique() for name in ("cohort", "seed")]
    if wide.isna().to_numpy().any() or len(wide) != shape[0] * shape[1]:
        raise ValueError(
            f"scores: expected every image once by each of {shape[0]} x {shape[1]} trainings, found some missing; run"
            " the notebook again."
        )
    facts = part.drop_duplicates(rows).set_index(rows).loc[list(wide.columns)].reset_index()
    label, patient, fold = (facts[name].to_numpy() for name in ("label", "patient_id", "fold"))
    patients = facts.drop_duplicates("patient_id")
    few = min(np.bincount(labels, minlength=2).min() for _, labels in patients.groupby("fold")["label"]) < 2
    return Scored(label, patient, None if few else fold, wide.to_numpy().reshape(*shape, -1))


def over(found: Scored, value: statistics.Nested) -> str:
    """What an interval of `Scored.auc` is over."""
    words = OVER if len(found.scores) >= statistics.FEWEST_SEEDS else OVER_PATIENTS
    return statistics.stated(words if found.fold is not None else words.replace(" and fold", ""), value.low)


# ---------------------------------------------------------------- AUCs of trainings and controls


def main_part(scores: pd.DataFrame, variant: str, step: int | None = None) -> pd.DataFrame:
    """Rows of the declared trainings, of real images as they are; at the last step unless another is named."""
    step = scores["step"].max() if step is None else step
    keep = (scores["variant"] == variant) & ~scores["shuffled"] & (scores["step"] == step)
    return scores[keep & (scores["seen"] == "as they are")]


def parts(scores: pd.DataFrame, variant: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Every kind of training or of seeing: ``(kind, name, rows)``, the declared one first."""
    last = scores[scores["step"] == scores["step"].max()]
    own = last[(last["variant"] == variant) & ~last["shuffled"]]
    plain = last[last["seen"] == "as they are"]
    found = [("declared", variant, main_part(scores, variant)), ("control", UNTRAINED, main_part(scores, variant, 0))]
    found.append(("control", SHUFFLED, plain[plain["shuffled"]]))
    found += [("control", words, own[own["seen"] == seen]) for seen, words in SEEN.items()]
    others = [name for name in plain["variant"].unique() if name != variant]
    return found + [("variant", name, plain[plain["variant"] == name]) for name in others]


def auc_table(scores: pd.DataFrame, variant: str) -> pd.DataFrame:
    """AUC of every kind, by patient and, of the declared one, by image, and its difference to the declared one.

    ``kind, name, level, auc, low, high, difference, low_difference, high_difference, sd_patients, sd_cohorts, sd_seeds,
    n_cohorts, n_seeds, n_patients, over``. A difference is paired: the same simulated cohorts, seeds and patients.
    """
    rows = []
    for kind, name, part in parts(scores, variant):
        for level in ("patient", "image") if kind == "declared" else ("patient",):
            found = scored(part, level)
            value = found.auc()
            row = {"kind": kind, "name": name, "level": level, "auc": value.value, "low": value.low, "high": value.high}
            row |= dict(zip(("sd_patients", "sd_cohorts", "sd_seeds"), value[3:], strict=True))
            if kind != "declared":
                row |= _difference(part, main_part(scores, variant))
            n_cohorts, n_seeds = found.scores.shape[:2]
            row |= {"n_cohorts": n_cohorts, "n_seeds": n_seeds, "n_patients": len(np.unique(found.patient))}
            rows.append({**row, "over": over(found, value)})
    columns = ["kind", "name", "level", "auc", "low", "high", "difference", "low_difference", "high_difference"]
    return pd.DataFrame(rows).pipe(lambda table: table[[*columns, *table.columns.difference(columns, sort=False)]])


def _difference(part: pd.DataFrame, declared: pd.DataFrame) -> dict[str, float]:
    """AUC of trainings minus that of the declared ones with the same simulated cohort and seed."""
    keys = ["cohort", "seed"]
    both = declared[keys].drop_duplicates().merge(part[keys].drop_duplicates())
    value = scored(part.merge(both)).auc(scored(declared.merge(both)).scores)
    return dict(zip(("difference", "low_difference", "high_difference"), value[:3], strict=True))


def curve(scores: pd.DataFrame, variant: str) -> pd.DataFrame:
    """AUC by patient of each declared training at each look: ``step, cohort, seed, auc``."""
    rows = []
    for step in np.unique(scores.loc[(scores["variant"] == variant), "step"]):
        found = scored(main_part(scores, variant, step))
        rows += [
            (step, c, s, found.each[c, s]) for c in range(found.scores.shape[0]) for s in range(found.scores.shape[1])
        ]
    return pd.DataFrame(rows, columns=["step", "cohort", "seed", "auc"])


def optimistic(looks: pd.DataFrame) -> pd.DataFrame:
    """The maxima that a reader is tempted to quote, from `curve`: ``what, auc, of``; chosen by the real patients."""
    last = looks[looks["step"] == looks["step"].max()]
    rows = [("best training at the last step", last["auc"].max(), len(last))]
    means = looks.groupby("step")["auc"].mean()
    rows.append((f"best step on average ({means.idxmax()})", means.max(), len(means)))
    rows.append(("best training at its best step", looks["auc"].max(), len(looks)))
    return pd.DataFrame(rows, columns=["what", "auc", "of"]).assign(is_="optimistic: chosen by the held-out patients")


def measures(found: Scored, grade: Sequence[float], n_resamples: int, seed: int) -> pd.DataFrame:
    """Calibration and agreement with the grade, by patient: ``measure, value, low, high, reference, over``.

    Trainings see half patients of class 1 and half of class 0 (`simulated.share`), and the cohort another mix, so that
    probabilities are too low where class 1 is the larger.
    """
    how, share = {"n_resamples": n_resamples, "seed": seed}, float(found.label.mean())
    values = {
        "Brier score": clinical_measures.brier(found.label, found.flat, **how),
        "Spearman correlation with the grade": clinical_measures.fat_correlation(found.label, grade, found.flat, **how),
    }
    rows = []
    for name, value in values.items():
        if value is not None:
            words = "patients within class and trainings (crossed bootstrap)"
            reference = share * (1 - share) if name == "Brier score" else float("nan")
            rows.append((name, value.estimate, value.low, value.high, reference, statistics.stated(words, value.low)))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "reference", "over"])


# ---------------------------------------------------------------- beside the half ratio


def beside_ratio(found: Scored, ratio: np.ndarray, grade: Sequence[float]) -> pd.DataFrame:
    """The declared trainings beside the upper-to-lower-half ratio of each patient, which learns nothing.

    ``what, value, low, high, over``: the ratio's own AUC, the trainings' minus it (paired), their AUC within `STRATA`
    of the ratio, the rank correlation of both within a class, and each one's correlation with the grade.
    """
    alone = Scored(found.label, found.patient, found.fold, ratio[None, None])
    value, gain = alone.auc(), found.auc(ratio)
    rows = [
        (f"{HALVES}: AUC", *value[:3], over(alone, value)),
        (f"trainings minus {HALVES}", *gain[:3], over(found, gain)),
    ]
    stratum = pd.qcut(ratio, STRATA, labels=False, duplicates="drop")
    for name, one in (("trainings", found.flat), (HALVES, ratio[None])):
        within = statistics.auc_within(found.label, one, stratum)
        words = f"patients ({within.pairs} pairs of one stratum); {statistics.GIVEN}"
        rows.append(
            (f"{name}: AUC within {STRATA} strata of {HALVES}", *within[:3], statistics.stated(words, within.low))
        )
    alike = []
    for label in (0, 1):
        mine = found.label == label
        alike += [scipy.stats.spearmanr(row[mine], ratio[mine]).statistic for row in found.flat if np.ptp(row[mine])]
    none = "no interval: a description"
    mean = float(np.mean(alike)) if alike else float("nan")
    rows.append((f"rank correlation with {HALVES}, within a class", mean, np.nan, np.nan, none))
    known = np.asarray(grade, dtype=float)
    if np.isfinite(known).all() and np.ptp(known):
        rows.append(
            (f"{HALVES}: Spearman with the grade", scipy.stats.spearmanr(ratio, known).statistic, np.nan, np.nan, none)
        )
    return pd.DataFrame(rows, columns=["what", "value", "low", "high", "over"])


# ---------------------------------------------------------------- how many real patients it is worth


def worth_table(worth: pd.DataFrame) -> pd.DataFrame:
    """AUC over the number of real training patients, alone and after simulated: ``n, first, auc, low, high, over``.

    Of the rows after simulated ones also ``difference, low_difference, high_difference``, paired by seed and subset.
    """
    rows = []
    for n, part in worth.groupby("n"):
        alone, after = (_by_seed(part[part["first"] == first]) for first in (False, True))
        for first, found in ((False, alone), (True, after)):
            value = found.auc()
            row = {"n": n, "first": first, "auc": value.value, "low": value.low, "high": value.high}
            if first:
                gain = found.auc(alone.scores)
                row |= dict(zip(("difference", "low_difference", "high_difference"), gain[:3], strict=True))
            words = over(found, value).replace("simulated cohorts with their trainings", "trainings with their subsets")
            rows.append({**row, "n_seeds": len(found.scores), "over": words})
    return pd.DataFrame(rows)


def _by_seed(part: pd.DataFrame) -> Scored:
    """Seeds in the place of cohorts: each has its own simulated cohort and its own subset of real patients."""
    return scored(part.assign(cohort=part["seed"], seed=0))


def equivalents(worth: pd.DataFrame, found: Scored, n_resamples: int, seed: int) -> pd.DataFrame:
    """Real training patients, alone, that reach the AUC of simulated patients, with or without real ones after them.

    ``real`` (real patients after the simulated ones), ``auc, equals, low, high, most, over``. The curve of real images
    alone starts at 0.5 without a patient, never falls, and is straight between the numbers trained; where it never gets
    there, `equals` is the largest number, ``most``, and means "more than that".
    """
    sizes = sorted(worth["n"].unique())
    alone = [_by_seed(worth[(worth["n"] == n) & ~worth["first"]]) for n in sizes]
    after = {int(n): _by_seed(worth[(worth["n"] == n) & worth["first"]]) for n in sizes}
    rows = []
    for real, other in {0: found, **after}.items():
        value = _resampled([*alone, other], [0, *sizes], n_resamples, seed)
        facts = {"real": real, "auc": other.auc().value, "equals": value.estimate, "low": value.low, "high": value.high}
        words = "held-out patients within class and fold (bootstrap); these trainings and training patients"
        rows.append({**facts, "most": sizes[-1], "over": statistics.stated(words, value.low)})
    return pd.DataFrame(rows)


def _resampled(curves: list[Scored], sizes: list[int], n_resamples: int, seed: int) -> statistics.Resampled:
    """`statistics.crossed_bootstrap` of where the last AUC lies on the curve of the others."""
    first = curves[0]
    fold = np.zeros(len(first.label)) if first.fold is None else first.fold
    blocks = [
        (np.flatnonzero((fold == k) & (first.label == 1)), np.flatnonzero((fold == k) & (first.label == 0)))
        for k in np.unique(fold)
    ]
    above = [
        [
            np.mean([np.heaviside(row[pos][:, None] - row[neg][None], 0.5) for row in one.flat], axis=0)
            for pos, neg in blocks
        ]
        for one in curves
    ]

    def equal(*drawn: np.ndarray) -> np.ndarray:
        aucs = []
        for one in above:
            each = []
            for k, matrix in enumerate(one):
                weights = [statistics.counts(drawn[2 * k + i], matrix.shape[i]) for i in (0, 1)]
                each.append(((weights[0] @ matrix) * weights[1]).sum(axis=-1) / matrix.size)
            aucs.append(np.mean(each, axis=0))
        known = np.maximum.accumulate(np.stack([np.full_like(aucs[0], 0.5), *aucs[:-1]]), axis=0)
        flat, target = known.reshape(len(known), -1), np.ravel(aucs[-1])
        found = [np.interp(one, flat[:, i] + 1e-9 * np.arange(len(flat)), sizes) for i, one in enumerate(target)]
        return np.reshape(found, np.shape(aucs[-1]))

    strata = [len(part) for block in blocks for part in block]
    return statistics.crossed_bootstrap(equal, strata, n_resamples=n_resamples, seed=seed)
