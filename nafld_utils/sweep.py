"""The grid of classifier trainings, what is checked before one starts, and why patients are never split.

Contract: a *trial* is one training, named by ``backbone, freeze, balance, arm, rate, fold, seed`` and by the hash of
everything it depends on; what is finished lies in the store (`nafld_utils.trial_store`). An experiment is a named
grid; experiments that share a training share its row, so a run trains their union without repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import arms, folds
from nafld_utils.arms import BASELINES, REAL
from nafld_utils.artifacts import digest
from nafld_utils.params import PLAIN, ExperimentSettings, Settings
from nafld_utils.trial_store import (
    SCORE_COLUMNS,
    STATES,
    TRIAL_COLUMNS,
    is_done,
    read_store,
    read_trial,
    record_failure,
    require_complete,
    to_train,
    trial_path,
    write_trial,
)

__all__ = [
    "REAL", "SCORE_COLUMNS", "STATES", "TRIAL_COLUMNS", "check_fold", "experiment", "experiments", "folds_of", "grid",
    "hardest", "image_folds", "is_done", "linear_scores", "of_experiment", "plan", "planned", "read_store",
    "read_trial", "record_failure", "require_complete", "to_train", "trial_hash", "trial_path", "write_trial",
]  # fmt: skip

REVISION = ("sweep", 2)

# How an experiment's figure is read, in the words of the robustness variants.
READ_AT = {
    "image": "image level, folds together",
    "fold": "image level, mean of the folds' AUCs",
    "patient": "patient level",
}

# ---------------------------------------------------------------- the grid


def folds_of(settings: Settings) -> list[int]:
    """Folds that are trained: those with a diffusion model, so that every arm is compared on the same patients."""
    return list(settings.ldm.folds) if settings.ldm.folds is not None else list(range(settings.folds.n_splits))


def experiment(settings: Settings, name: str) -> ExperimentSettings:
    """An experiment with nothing left out: what its line does not say is as in section ``sweep``.

    Raises
    ------
    ValueError
        There is no such experiment.
    """
    chosen = settings.sweep
    own = ExperimentSettings(about="the grid of section sweep") if name == PLAIN else settings.experiments.get(name)
    if own is None:
        raise ValueError(
            f"experiment {name!r}: expected one of {', '.join([PLAIN, *settings.experiments])}, found none."
        )
    fields = ("backbones", "freeze", "balance", "arms", "rates")
    filled = {field: getattr(chosen, field) if getattr(own, field) is None else getattr(own, field) for field in fields}
    n_seeds = chosen.n_seeds if own.n_seeds is None else min(own.n_seeds, chosen.n_seeds)
    return own.model_copy(update={**filled, "n_seeds": n_seeds, "level": own.level or "image"})


def planned(settings: Settings, field: str) -> list[Any]:
    """Every value of ``backbones, arms`` or ``rates`` in the experiments of a run and its declared comparison.

    Parameters
    ----------
    settings : Settings
    field : {"backbones", "arms", "rates"}

    Returns
    -------
    list
        Each once, in the order of the experiments.
    """
    declared = {"arms": settings.sweep.primary_arm, "rates": settings.sweep.primary_rate}
    values = [value for name in settings.sweep.experiments for value in getattr(experiment(settings, name), field)]
    return list(dict.fromkeys([*values, declared.get(field, settings.sweep.backbones[0])]))


def experiment_grid(settings: Settings, name: str) -> pd.DataFrame:
    """Every trial of one experiment, `TRIAL_COLUMNS`; real images alone are arm ``real`` at rate 0, once for all arms.

    Raises
    ------
    ValueError
        There is no such experiment, or an arm asks for a diffusion model that the run does not train.
    """
    chosen = experiment(settings, name)
    made = settings.generators
    for arm in chosen.arms:
        lacking = set(arms.parse(arm).generators) - {"traditional", "filtered"} - set(made)
        if lacking:
            raise ValueError(
                f"arm {arm} of experiment {name}: expected generators of this run {made}, found {min(lacking)!r};"
                f" train it (ldm.conditionings, {', '.join(f'{name}.enabled' for name in BASELINES)}) or drop the arm."
            )
    cells = [(REAL, 0.0), *((arm, float(rate)) for arm in chosen.arms if arm != REAL for rate in chosen.rates)]
    rows = [
        (backbone, chosen.freeze, chosen.balance, arm, rate, fold, seed)
        for backbone in chosen.backbones
        for fold in folds_of(settings)
        for seed in range(chosen.n_seeds)
        for arm, rate in cells
    ]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS)).drop_duplicates(ignore_index=True)


def grid(settings: Settings) -> pd.DataFrame:
    """Every trial of a run: the union of its experiments, no training twice, and always the declared comparison.

    Parameters
    ----------
    settings : Settings
        Reads ``sweep``, ``experiments``, ``folds.n_splits`` and ``ldm.folds, ldm.conditionings``.

    Returns
    -------
    pandas.DataFrame
        `TRIAL_COLUMNS`, a trial a row. The paper's Fig. 5A is 13 cells x 5 folds x 25 seeds, 1,625 rows; Fig. 5B adds
        500, Supplementary Figs. 4 and 5 1,625 each, Fig. 7 325; Figs. 3 and 6 add none. Where no experiment holds
        the arm and rate declared beforehand (``sweep.primary_arm, sweep.primary_rate``), these are added to the first.

    Raises
    ------
    ValueError
        As in `experiment_grid`.
    """
    chosen = settings.sweep
    parts = [experiment_grid(settings, name) for name in chosen.experiments]
    declared = {"backbone": chosen.backbones[0], "arm": chosen.primary_arm, "rate": float(chosen.primary_rate)}
    whole = pd.concat(parts)
    if not (whole[list(declared)] == pd.Series(declared)).all(axis=1).any():
        real = parts[0][(parts[0]["arm"] == REAL) & (parts[0]["backbone"] == parts[0]["backbone"].iloc[0])]
        real = real.assign(backbone=declared["backbone"])
        whole = pd.concat([whole, real, real.assign(**declared)])
    return whole.drop_duplicates(ignore_index=True)


def hardest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each balance, arm and fold the trial that takes the most images: its largest rate, in any one seed.

    Parameters
    ----------
    table : pandas.DataFrame
        From `grid`.
    """
    return table.sort_values("rate").drop_duplicates(["balance", "arm", "fold"], keep="last")


def of_experiment(table: pd.DataFrame, settings: Settings, name: str) -> pd.DataFrame:
    """Rows of a table with `TRIAL_COLUMNS` (scores, status) that belong to an experiment, in their order."""
    wanted = pd.MultiIndex.from_frame(experiment_grid(settings, name))
    return table[pd.MultiIndex.from_frame(table[list(TRIAL_COLUMNS)]).isin(wanted)].reset_index(drop=True)


def experiments(settings: Settings, status: pd.DataFrame) -> pd.DataFrame:
    """The experiments of a run: ``experiment, about, level, trainings, of these new, done, failed``.

    Parameters
    ----------
    settings : Settings
    status : pandas.DataFrame
        From `read_store`.

    Returns
    -------
    pandas.DataFrame
        A row an experiment; ``level`` is how its figure is read (`READ_AT`), ``of these new`` are trainings that no
        experiment above it has.
    """
    rows, seen = [], pd.DataFrame(columns=list(TRIAL_COLUMNS))
    for name in settings.sweep.experiments:
        mine = of_experiment(status, settings, name)
        states = mine["state"].value_counts()
        union = (
            pd.concat([seen, mine[list(TRIAL_COLUMNS)]]).drop_duplicates() if len(seen) else mine[list(TRIAL_COLUMNS)]
        )
        counts = (len(mine), len(union) - len(seen), int(states.get("done", 0)), int(states.get("failed", 0)))
        own = experiment(settings, name)
        rows.append((name, own.about, READ_AT[own.level], *counts))
        seen = union
    return pd.DataFrame(rows, columns=["experiment", "about", "level", "trainings", "of these new", "done", "failed"])


def trial_hash(trial: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Hash of a trial's name and of all it depends on (settings, inputs' hashes, code revisions)."""
    return digest({"trial": {name: trial[name] for name in TRIAL_COLUMNS}, **recipe})


def plan(
    status: pd.DataFrame,
    seconds: Mapping[tuple[str, str], float],
    n_workers: int,
    features: Mapping[tuple[str, str], float] | None = None,
    retry_failed: bool = False,
) -> pd.DataFrame:
    """How much is done and how long the rest will take, a network (backbone and what is frozen of it) a row.

    Parameters
    ----------
    status : pandas.DataFrame
        From `read_store`.
    seconds : mapping of (backbone, freeze) to float
        Estimate of one training, used where none is finished yet.
    n_workers : int
        Trainings at once.
    features : mapping of (backbone, freeze) to float, optional
        Seconds that the features of the frozen prefix still take, one set after another.
    retry_failed : bool
        Whether trainings that failed are to be done again.

    Returns
    -------
    pandas.DataFrame
        ``backbone, freeze, trainings, done, failed, to_do, seconds_each, features_minutes, minutes_left,
        estimate_from``; minutes left hold those of the features, a last row the sums.
    """
    rows, features = [], features or {}
    for network, part in status.groupby(["backbone", "freeze"], sort=False):
        done = part[part["state"] == "done"]
        to_do = len(to_train(part, retry_failed))
        each = float(done["seconds"].median()) if len(done) else float(seconds.get(network, float("nan")))
        basis = f"{len(done)} finished trainings" if len(done) else "a few timed steps"
        before = features.get(network, 0.0) / n_workers / 60
        minutes = before + (each * to_do / n_workers / 60 if to_do else 0.0)
        failed = int((part["state"] == "failed").sum())
        rows.append((*network, len(part), len(done), failed, to_do, each, before, minutes, basis))
    columns = ["backbone", "freeze", "trainings", "done", "failed", "to_do", "seconds_each"]
    columns += ["features_minutes", "minutes_left"]
    table = pd.DataFrame(rows, columns=[*columns, "estimate_from"])
    total = table[["trainings", "done", "failed", "to_do", "features_minutes", "minutes_left"]].sum(skipna=False)
    return pd.concat([table, pd.DataFrame([{"backbone": "all", "freeze": "", **total}])], ignore_index=True).astype(
        {"trainings": int, "done": int, "failed": int, "to_do": int}
    )


# ---------------------------------------------------------------- guards


def check_fold(
    images: pd.DataFrame, fold: int, synthetic: pd.DataFrame | None = None, made_with: str | None = None
) -> np.ndarray:
    """Rows held out in a fold, after making sure that nothing of them can be in the training set.

    Parameters
    ----------
    images : pandas.DataFrame
        ``patient_id, label, fold, sha256``, a row an image.
    fold : int
        The fold that is held out.
    synthetic : pandas.DataFrame, optional
        The synthetic set's table: ``fold, source_patient`` (-1 where an image has no source).
    made_with : str, optional
        `folds.digest_of` the split that the synthetic set was made with.

    Returns
    -------
    (N,) bool
        True where an image is held out.

    Raises
    ------
    ValueError
        A patient or a frame is on both sides, the training side has one class, no image is held out, or a synthetic
        image was made for another fold, with another split, from a held-out patient or from an unknown one.
    """
    training, _ = folds.split(images, fold)
    classes = sorted(set(training["label"]))
    if classes != [0, 1]:
        raise ValueError(
            f"fold {fold}: expected both classes among the training images, found {classes};"
            " use fewer folds or more patients of the other class."
        )
    if synthetic is not None:
        made_for = sorted(set(synthetic["fold"]))
        if made_for != [fold]:
            raise ValueError(
                f"synthetic set: expected images of fold {fold}, found folds {made_for}; use that fold's own set."
            )
        folds.assert_same_split(images, made_with, f"synthetic set of fold {fold}")
        folds.assert_trained_without(images, fold, synthetic["source_patient"])
        foreign = sorted(set(synthetic["source_patient"]) - set(images["patient_id"]) - {-1})
        if foreign:
            raise ValueError(
                f"synthetic set of fold {fold}: expected sources in this cohort, found patients {foreign[:5]};"
                " draw it again."
            )
    return images["fold"].to_numpy() == fold


# ---------------------------------------------------------------- why patients are never split


def image_folds(label: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Folds by IMAGE, stratified by class: the mistake that the protocol check shows, never used for training.

    Returns
    -------
    (N,) int64
        Fold of each image; frames of one patient fall on both sides.
    """
    from sklearn.model_selection import StratifiedKFold

    fold = np.empty(len(label), dtype=np.int64)
    splitter = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    for k, (_, rows) in enumerate(splitter.split(np.zeros((len(label), 1)), label)):
        fold[rows] = k
    return fold


def linear_scores(features: np.ndarray, label: np.ndarray, fold: np.ndarray, strength: float = 0.01) -> np.ndarray:
    """Out-of-fold probabilities of a logistic regression on frozen features.

    Parameters
    ----------
    features : (N, d) float
        Frozen features; scaled to unit variance on the training side of each fold.
    label : (N,) int
        0 healthy, 1 fatty.
    fold : (N,) int
        Fold of each row.
    strength : float
        Inverse strength of the L2 penalty (sklearn's C). Choice: 0.01, fixed beforehand for 1280 features of some
        forty patients; from 0.001 to 1 the AUC on the published cohort stays within 0.005.

    Returns
    -------
    (N,) float64 in [0, 1]
        Probability of label 1, each row scored by the model that did not see its fold.

    Raises
    ------
    ValueError
        A fold's training side has one class.

    Notes
    -----
    With fewer rows than features the solution lies in the span of the rows, and an L2 penalty does not change under
    rotation: fitting in the training rows' principal axes gives the same scores from smaller matrices.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.empty(len(label))
    for k in np.unique(fold):
        train = fold != k
        if len(np.unique(label[train])) < 2:
            raise ValueError(f"fold {k}: expected both classes in training, found one; use fewer folds.")
        mean, spread = features[train].mean(axis=0), features[train].std(axis=0)
        inputs = _in_span((features - mean) / np.where(spread > 0, spread, 1.0), train)
        model = LogisticRegression(C=strength, max_iter=2000).fit(inputs[train], label[train])
        scores[~train] = model.predict_proba(inputs[~train])[:, 1]
    return scores


def _in_span(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    """All rows in the principal axes of the training rows, from their Gram matrix where that is the smaller one."""
    if train.sum() >= rows.shape[1]:
        return rows
    gram = rows.astype(np.float64) @ rows[train].T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram[train])
    kept = values > 1e-9 * values[-1]
    return gram @ (vectors[:, kept] / np.sqrt(values[kept]))
