"""Tables of a sweep: the AUC of every arm and rate, each arm against real images alone, and their summaries.

Contract: tables in, tables out; a table of scores has one row per held-out image: ``arm, rate, seed, image_id,
patient_id, label, score``, and ``backbone, freeze, balance, fold`` where there are any. Rows are told apart by
whichever of `CELL` they have: a *group* is one network trained in one way, a *cell* an arm and rate of it, and an arm
is compared with real images alone of its own group. ``n_resamples, seed, method`` are those of
`statistics.auc_interval`; the same `seed` gives the same intervals, and every table names in `over` what its
interval is over. No table averages over what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import statistics
from nafld_utils.params import REAL

REVISION = ("sweep_tables", 6)

GROUP = ("backbone", "freeze", "balance")
CELL = (*GROUP, "arm", "rate")
LEVELS = ("image", "patient")
OVER_SEEDS = "training seeds (Student t); these patients, this split"
OVER_PATIENTS = statistics.OVER_PATIENTS
OVER_BOTH = f"patients within class and training seeds (crossed bootstrap); {statistics.GIVEN_SEEDS}"
# A gain: over seeds too where there are `statistics.FEWEST_SEEDS`; what is given then (Nadeau and Bengio 2003).
OVER_GAIN = f"patients and training seeds (Obuchowski-Rockette, degrees of freedom of Hillis); {statistics.GIVEN_SEEDS}"
OVER_FEW = f"patients with their images (Obuchowski 1997); {statistics.GIVEN}"

# The paper's robustness checks: how a group differs from the main one, and where the paper shows it.
VARIANTS = {
    ("freeze", "all"): "every hidden layer frozen (S4)",
    ("freeze", "none"): "every layer trained (S5)",
    ("balance", "oversample"): "smaller class oversampled (S7)",
}
MAIN = {"freeze": "paper", "balance": "none"}
_BOUNDS, _FOLD_BOUNDS = ("mean_auc", "low", "high", "over"), ("fold_auc", "fold_low", "fold_high", "over_folds")


# ---------------------------------------------------------------- a table as matrices


class Scored(NamedTuple):
    """Scores of one cell: label (n,), patient (n,), scores (seeds, n), seeds, fold (n,) or None."""

    label: np.ndarray
    patient: np.ndarray
    scores: np.ndarray
    seeds: np.ndarray
    fold: np.ndarray | None

    @property
    def aucs(self) -> list[float]:
        """AUC of each seed."""
        return [statistics.auc(self.label, row) for row in self.scores]

    @property
    def counts(self) -> dict[str, int]:
        """``n_seeds, n_patients`` for a row of a table."""
        return {"n_seeds": len(self.seeds), "n_patients": len(np.unique(self.patient))}


def over_patients(n_seeds: int) -> str:
    """What a bootstrap over patients is over: the seeds too, where there are several."""
    return OVER_BOTH if n_seeds > 1 else OVER_PATIENTS


def over_gain(n_seeds: int) -> str:
    """What a gain's interval over patients is over: the seeds too, where there are enough."""
    return OVER_GAIN if n_seeds >= statistics.FEWEST_SEEDS else OVER_FEW


def present(table: pd.DataFrame, names: Sequence[str] = CELL) -> list[str]:
    """Those names that are columns of a table.

    Parameters
    ----------
    table : pandas.DataFrame
    names : sequence of str

    Returns
    -------
    list of str
        In the order of `names`.
    """
    return [name for name in names if name in table]


def where(table: pd.DataFrame, cell: Mapping[str, Any]) -> np.ndarray:
    """Which rows have a cell's values in its columns.

    Parameters
    ----------
    table : pandas.DataFrame
    cell : mapping of str to value
        Names that the table lacks are ignored.

    Returns
    -------
    numpy.ndarray, shape (n,), bool
    """
    keep = np.ones(len(table), dtype=bool)
    for name, value in cell.items():
        if name in table:
            keep &= (table[name] == value).to_numpy()
    return keep


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
        (row, seeds), (column, images) = (pd.factorize(part[of], sort=True) for of in ("seed", "image_id"))
        scores, place = np.full((len(seeds), len(images)), np.nan), row * len(images) + column
        if np.bincount(place).max() > 1:
            again = part[part.duplicated(["seed", "image_id"])].iloc[0]
            raise ValueError(
                f"{name}: expected image {again.image_id} once with seed {again.seed},"
                " found it again; score each held-out image once."
            )
        scores.flat[place] = part["score"]
        missing = int(np.isnan(scores).sum())
        if missing:
            raise ValueError(
                f"{name}: expected {len(images)} scored images with every seed, found"
                f" {missing} missing or not a number; finish or repeat these trainings."
            )
        facts = part.iloc[np.unique(column, return_index=True)[1]]
        label, patient = facts["label"].to_numpy(), facts["patient_id"].to_numpy()
        fold = facts["fold"].to_numpy() if "fold" in facts else None
        yield cell, Scored(label, patient, scores, seeds.to_numpy(), fold)


def patient_level(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each patient's images, in every group that the table distinguishes; ``n_images`` in each.

    ``image_id`` names the patient, so that the table fits wherever one of images does. ValueError for a patient with
    two labels.
    """
    statistics.patient_codes(scores["label"].to_numpy().astype(bool), scores["patient_id"])
    groups = present(scores, (*CELL, "fold", "seed"))
    table = scores.groupby([*groups, "patient_id", "label"], as_index=False, sort=False, observed=True)
    table = table.agg(score=("score", "mean"), n_images=("score", "size"))
    return table.assign(image_id=table["patient_id"].astype(str))


def at_level(scores: pd.DataFrame, level: str) -> pd.DataFrame:
    """Scores of images, or the patients' means."""
    return patient_level(scores) if level == "patient" else scores


# ---------------------------------------------------------------- AUCs


def auc_by_seed(scores: pd.DataFrame, level: str = "image") -> pd.DataFrame:
    """AUC of every cell and seed, of images or of patients' mean scores (`level`).

    ``seed, auc, fold_auc, n_folds, n_patients``: `auc` is the paper's, of the folds' held-out scores put together;
    `fold_auc` is the mean over the `n_folds` folds that hold both classes (Supplementary S3), NaN where there is none.
    """
    table = at_level(scores, level)
    keys = [*present(table), "seed"]
    rows = []
    for key, part in table.groupby(keys, sort=False, observed=True):
        folds = [f for _, f in part.groupby("fold")] if "fold" in part else []
        each = [statistics.auc(fold["label"], fold["score"]) for fold in folds if fold["label"].nunique() == 2]
        mean = float(np.mean(each)) if each else float("nan")
        rows.append((*key, statistics.auc(part["label"], part["score"]), mean, len(each), part["patient_id"].nunique()))
    return pd.DataFrame(rows, columns=[*keys, "auc", "fold_auc", "n_folds", "n_patients"])


def arm_intervals(scores: pd.DataFrame, level: str = "image", method: str = "newcombe") -> pd.DataFrame:
    """Mean AUC of every cell with its interval over patients and seeds.

    ``mean_auc, low, high, fold_auc, fold_low, fold_high, sd_seeds, best_seed_auc, n_seeds, n_patients, over,
    over_folds``; the `fold_` columns are of the mean of the folds' AUCs (Supplementary S3), NaN where a fold has too
    few patients of a class. `best_seed_auc` is the optimistic maximum over seeds, `sd_seeds` NaN where there is one.
    """
    rows = []
    for cell, found in cells(at_level(scores, level)):
        each = found.aucs
        whole = statistics.mean_auc_interval(found.label, found.scores, found.patient, method=method)
        row = {**cell, **dict(zip(("mean_auc", "low", "high"), whole, strict=True))}
        by_fold = _fold_interval(found, method)
        row |= dict(zip(("fold_auc", "fold_low", "fold_high"), by_fold, strict=True))
        row |= {"sd_seeds": float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"), "best_seed_auc": max(each)}
        over = {"over": statistics.over(whole, len(each), method)}
        over["over_folds"] = statistics.over(by_fold, len(each), method, " and fold")
        rows.append({**row, **found.counts, **over})
    return pd.DataFrame(rows)


def _fold_interval(found: Scored, method: str) -> statistics.Interval:
    """Mean of the folds' AUCs with its interval; NaN where a fold has fewer than two patients of a class."""
    if found.fold is not None:
        patients = [
            found.patient[(found.fold == k) & (found.label == y)] for k in np.unique(found.fold) for y in (0, 1)
        ]
        if min(len(np.unique(some)) for some in patients) >= 2:
            return statistics.mean_auc_interval(
                found.label, found.scores, found.patient, fold=found.fold, method=method
            )
    return statistics.Interval(*(float("nan"),) * 3)


# ---------------------------------------------------------------- each arm against real images alone


def compare_arms(scores: pd.DataFrame, level: str = "image", fewer_seeds: bool = False) -> pd.DataFrame:
    """Every arm and rate against real images alone: the paper's test over seeds beside the interval over patients.

    One row per cell: its columns, ``mean_auc, mean_auc_base, difference`` (arm minus real images), ``n_seeds,
    n_patients, over`` (what each interval is over), ``note`` (why an entry is NaN), and what `_compare` gives. No p is
    adjusted here: `families.with_roles` says which rows are tested. With `fewer_seeds`, for a grid that is known to be
    complete, an arm may have been planned with fewer seeds than the base, which is then taken with those alone, and the
    note says so.
    """
    rows = []
    for cell, arm, whole in _beside(at_level(scores, level)):
        paired = _paired(cell, arm, whole, fewer_seeds)
        row = {**cell, **_compare(arm, paired, level)}
        if len(paired.seeds) < len(whole.seeds):
            fewer = f"{len(paired.seeds)} of the {len(whole.seeds)} seeds of {REAL}"
            row["note"] = "; ".join(filter(None, [row["note"], fewer]))
        rows.append(row)
    return pd.DataFrame(rows)


def _beside(table: pd.DataFrame) -> list[tuple[dict[str, Any], Scored, Scored]]:
    """Cell by cell, group after group: its name, its scores, and those of its group's real images alone."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], Scored]]] = {}
    for cell, found in cells(table):
        groups.setdefault(tuple(cell[name] for name in GROUP if name in cell), []).append((cell, found))
    pairs = []
    for members in groups.values():
        bases = [found for cell, found in members if cell["arm"] == REAL]
        if len(bases) != 1:
            raise ValueError(
                f"scores: expected arm {REAL!r} at one rate, found it at {len(bases)} rates; score it first."
            )
        pairs += [(cell, arm, bases[0]) for cell, arm in members if cell["arm"] != REAL]
    if not pairs:
        raise ValueError(f"scores: expected an arm beside {REAL!r}, found none; score one first.")
    return pairs


def declared_pair(scores: pd.DataFrame, primary: Mapping[str, Any]) -> tuple[Scored, Scored]:
    """Scores of the comparison that `primary` names: those of its arm, and of real images alone with the same seeds."""
    group = {name: value for name, value in primary.items() if name not in ("arm", "rate")}
    ((cell, arm, base),) = _beside(scores[where(scores, primary) | where(scores, {**group, "arm": REAL})])
    return arm, _paired(cell, arm, base, fewer_seeds=True)


def _paired(cell: Mapping[str, Any], arm: Scored, base: Scored, fewer_seeds: bool) -> Scored:
    """The base with the seeds of an arm that may have some of them alone; ValueError where the two do not pair."""
    if fewer_seeds and np.isin(arm.seeds, base.seeds).all():
        kept = np.isin(base.seeds, arm.seeds)
        base = base._replace(scores=base.scores[kept], seeds=base.seeds[kept])
    same = np.array_equal(arm.seeds, base.seeds) and arm.scores.shape == base.scores.shape
    if not (same and np.array_equal(arm.patient, base.patient) and np.array_equal(arm.label, base.label)):
        raise ValueError(
            f"scores of arm {cell['arm']} at rate {cell['rate']}: expected the seeds and images of the base arm, found"
            f" seeds {arm.seeds.tolist()} against {base.seeds.tolist()} and {arm.scores.shape[1]} against"
            f" {base.scores.shape[1]} images; finish the missing trainings."
        )
    return base


def _compare(arm: Scored, base: Scored, level: str) -> dict[str, Any]:
    """A row of `compare_arms` without its cell.

    Over seeds ``t, p, low_seeds, high_seeds``; over patients and, where there are three, seeds ``p_patients,
    low_patients, high_patients, se_patients, df_patients, smallest_effect`` (about the gain that four in five such
    studies find; all NaN where nothing varies); at patient level, seeds held fixed, DeLong's ``delong_p,
    delong_low, delong_high`` (NaN at image level, where rows are not independent).
    """
    gain = statistics.gain(arm.label, arm.scores, base.scores, arm.patient)
    each, before, nan = arm.aucs, base.aucs, float("nan")
    over = f"_seeds: {OVER_SEEDS} | _patients: {over_gain(len(each))}"
    t, p, low, high, note = nan, nan, nan, nan, ""
    try:
        t, p, _, _, low, high = statistics.paired_t(each, before, within=statistics.SIGNED)
    except ValueError:
        note = "one seed: no test over seeds" if len(each) < 2 else "every seed differs alike: t is not defined"
    tested = statistics.DelongTest(nan, nan, nan, nan, nan, nan)
    if level == "patient":
        tested = statistics.compare(arm.label, arm.scores, base.scores)
        over += f" | delong_: patients (DeLong); {statistics.GIVEN}"
    return {
        "mean_auc": float(np.mean(each)),
        "mean_auc_base": float(np.mean(before)),
        "difference": gain.difference,
        "t": t,
        "p": p,
        "low_seeds": low,
        "high_seeds": high,
        "p_patients": gain.p,
        "low_patients": gain.low,
        "high_patients": gain.high,
        "se_patients": gain.error,
        "df_patients": gain.df,
        "smallest_effect": statistics.smallest_effect(gain, len(each)),
        "delong_p": tested.p,
        "delong_low": tested.low,
        "delong_high": tested.high,
        **arm.counts,
        "over": over,
        "note": note,
    }


# ---------------------------------------------------------------- summaries of the AUCs


def optimistic(arms: pd.DataFrame) -> pd.DataFrame:
    """The maxima that a reader is tempted to quote, from `arm_intervals`: the best rate of each arm and the best seed.

    Group columns, ``arm, n_rates, mean_auc`` (over rates and seeds), ``best_rate, best_rate_auc, best_seed_rate,
    best_seed_auc, trainings`` (seeds and rates searched), ``is``: what it is. Chosen by the patients that it is judged
    on, so both maxima are too high.
    """
    keys = present(arms, (*GROUP, "level", "arm"))
    rows = []
    for key, part in arms.groupby(keys, sort=False, observed=True):
        top, seed = part.loc[part["mean_auc"].idxmax()], part.loc[part["best_seed_auc"].idxmax()]
        row = {**dict(zip(keys, key, strict=True)), "n_rates": len(part), "mean_auc": part["mean_auc"].mean()}
        row |= {"best_rate": top["rate"], "best_rate_auc": top["mean_auc"], "best_seed_rate": seed["rate"]}
        row |= {"best_seed_auc": seed["best_seed_auc"], "trainings": int(part["n_seeds"].sum())}
        rows.append({**row, "is": "optimistic: chosen by the held-out patients"})
    return pd.DataFrame(rows)


def variants(arms: pd.DataFrame) -> pd.DataFrame:
    """The AUC over the mixing rate of every robustness variant, from `arm_intervals` of both levels (``level``).

    ``backbone, variant, arm, rate, auc, low, high, n_seeds, over``. Of the main way of training (`MAIN`) at image
    level, as the mean over folds and at patient level; of the others (`VARIANTS`) at image level.
    """
    shown = [
        ("image level, folds together (Fig. 5)", {"level": "image", **MAIN}, _BOUNDS),
        ("image level, mean of the folds' AUCs (S3)", {"level": "image", **MAIN}, _FOLD_BOUNDS),
        ("patient level (S6)", {"level": "patient", **MAIN}, _BOUNDS),
    ]
    for (column, value), name in VARIANTS.items():
        if column in arms:
            shown.append((name, {"level": "image", **MAIN, column: value}, _BOUNDS))
    keys, parts = present(arms, ("backbone", "arm", "rate", "n_seeds")), []
    for name, cell, columns in shown:
        part = arms.loc[where(arms, cell), [*keys, *columns]]
        names = dict(zip(columns, ("auc", "low", "high", "over"), strict=True))
        parts.append(part.rename(columns=names).assign(variant=name))
    return pd.concat(parts, ignore_index=True).dropna(subset=["auc"]).reset_index(drop=True)
