"""What scores on another cohort say: AUC there and here, the drop, the gain there, and whether probabilities are right.

Contract: a table of scores has one row per image and classifier: ``scorer, fold, image_id, patient_id, label, score``;
tables out. A patient's score is the mean over images; every interval is over the patients of the cohort that it names,
given the classifiers. No threshold, scale or choice is made from these scores.

Sources: Zou and Donner 2008, doi:10.1002/sim.3095 (interval of a difference from the intervals of both sides).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import params, statistics
from nafld_utils.sweep import clinical_measures

REVISION = ("elsewhere", 1)
DECLARED = "declared"  # scorer: the declared arm; real images alone are `params.REAL`, a baseline has its own name


class ByPatient(NamedTuple):
    """One scorer's scores: ``label (n,)``, ``patient (n,)`` and ``scores (folds, n)``, a column per patient."""

    label: np.ndarray
    patient: np.ndarray
    scores: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(n,): the mean over the folds' classifiers, which is what a patient's score is."""
        return self.scores.mean(axis=0)


def by_patient(scores: pd.DataFrame, scorer: str) -> ByPatient:
    """Mean over each patient's images, of every fold's classifier."""
    mine = scores[scores["scorer"] == scorer]
    wide = mine.pivot_table(index="fold", columns=["patient_id", "label"], values="score", aggfunc="mean")
    return ByPatient(
        *(wide.columns.get_level_values(name).to_numpy() for name in ("label", "patient_id")), wide.to_numpy()
    )


def patients(scores: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """Scores by patient: ``patient_id, score`` (mean), ``lowest, highest`` (of the folds' classifiers), ``images``."""
    found = by_patient(scores, scorer)
    counts = scores.drop_duplicates("image_id").groupby("patient_id").size()
    table = pd.DataFrame({"patient_id": found.patient, "label": found.label, "score": found.mean})
    table = table.assign(lowest=found.scores.min(axis=0), highest=found.scores.max(axis=0))
    return table.assign(images=counts.loc[found.patient].to_numpy())


def measured(scores: pd.DataFrame, scorer: str, method: str, options: dict[str, int]) -> pd.DataFrame:
    """AUC of patients' scores, Brier score and mean probability, ``measure, value, low, high, reference, n, over``.

    ``reference`` of the Brier score is that of saying the share of class 1 for everyone, of the mean probability that
    share. `options` are ``n_resamples, seed`` of the Brier score's bootstrap. Scores that are no probabilities have an
    AUC alone.
    """
    found = by_patient(scores, scorer)
    auc = statistics.auc_interval(found.label, found.mean, found.patient, method=method)
    rows = [("AUC", *auc, np.nan, _stated(auc.low, statistics.METHODS[method]))]
    if found.scores.min() >= 0 and found.scores.max() <= 1:
        share, brier = found.label.mean(), clinical_measures.brier(found.label, found.mean, **options)
        reference, over = share * (1 - share), _stated(brier.low, "bootstrap")
        rows.append(("Brier score", brier.estimate, brier.low, brier.high, reference, over))
        rows.append(("mean probability", found.mean.mean(), np.nan, np.nan, share, "no interval"))
    table = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "reference", "over"])
    return table.assign(n=len(found.label))


def compared(there: pd.DataFrame, here: pd.DataFrame, method: str) -> pd.DataFrame:
    """Each scorer here and elsewhere, like with like: the mean AUC of single classifiers by patient, and its drop.

    Parameters
    ----------
    there : pandas.DataFrame
        Scores on the other cohort.
    here : pandas.DataFrame
        Held-out scores of the same classifiers; each image is scored by the one fold that holds it out.
    method : str
        As `statistics.auc_interval`.

    Returns
    -------
    pandas.DataFrame
        ``scorer, together`` (AUC of the mean score, with ``together_low, together_high, together_over``), ``auc, low,
        high, over`` (single classifiers, mean), ``here, here_low, here_high`` (folds ranked together), ``drop,
        drop_low, drop_high`` (here minus elsewhere, from the intervals of both), ``n, n_here``.
    """
    rows = []
    for scorer in dict.fromkeys(there["scorer"]):
        found, own = by_patient(there, scorer), _at_home(here[here["scorer"] == scorer])
        whole = statistics.auc_interval(found.label, found.mean, found.patient, method=method)
        single = statistics.mean_auc_interval(found.label, found.scores, found.patient, method=method)
        home = statistics.auc_interval(own["label"], own["score"], own["patient_id"], method=method)
        row = {"scorer": scorer, **_named("together", whole), **_named("auc", single), **_named("here", home)}
        drop, (below, above) = home.auc - single.auc, (home.auc - home.low, home.high - home.auc)
        row |= {"drop": drop, "drop_low": drop - np.hypot(below, single.high - single.auc)}
        row |= {"drop_high": drop + np.hypot(above, single.auc - single.low)}
        also = " and the folds' classifiers" if len(found.scores) >= statistics.FEWEST_SEEDS else ""
        named = statistics.METHODS[method]
        row |= {"n": len(found.label), "n_here": len(own), "together_over": _stated(whole.low, named)}
        rows.append({**row, "over": _stated(single.low, named, also)})
    return pd.DataFrame(rows)


def _stated(low: float, method: str, also: str = "") -> str:
    given = "these training patients" if also else "these classifiers"
    return statistics.stated(f"patients of the other cohort within class{also} ({method}); {given}", low)


def _named(name: str, found: statistics.Interval) -> dict[str, float]:
    low, high = ("low", "high") if name == "auc" else (f"{name}_low", f"{name}_high")
    return {name: found.auc, low: found.low, high: found.high}


def _at_home(scores: pd.DataFrame) -> pd.DataFrame:
    """Patients' mean held-out scores."""
    return scores.groupby(["patient_id", "label"], as_index=False)["score"].mean()


def gain(there: pd.DataFrame) -> dict[str, Any]:
    """The declared arm minus real images alone on the other cohort, by patient: ``mean, low, high, n, over``."""
    arm, base = by_patient(there, DECLARED), by_patient(there, params.REAL)
    found = statistics.gain(arm.label, arm.mean, base.mean, arm.patient)
    over = "patients of the other cohort within class (Obuchowski 1997); these classifiers"
    bounds = {"low": found.low, "high": found.high, "over": statistics.stated(over, found.low)}
    return {"mean": found.difference, "n": len(arm.label), **bounds}
