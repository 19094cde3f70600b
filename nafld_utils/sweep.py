"""The grid of classifier trainings, the store of their held-out scores, and what may be read from it.

Contract: a *trial* is one training, named by ``backbone, arm, rate, fold, seed`` and by the hash of everything it
depends on. The store is a folder with one ``<hash>.parquet`` a finished trial: whole or absent, checked page by page
when it is read, so that a killed worker or two sweeps at once cost time and never rows. A failed trial leaves
``<hash>.error.json``. No table is made from an incomplete grid unless that is asked for, and then it says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import folds
from nafld_utils.artifacts import digest, replacing, save_json
from nafld_utils.params import Settings

REVISION = 1

TRIAL_COLUMNS = ("backbone", "arm", "rate", "fold", "seed")
SCORE_COLUMNS = ("image_id", "patient_id", "label", "score")
REAL = "real"
STATES = ("done", "not trained yet", "damaged", "failed")
_METADATA = b"nafld_trial"


# ---------------------------------------------------------------- the grid


def folds_of(settings: Settings) -> list[int]:
    """Folds that are trained: those with a diffusion model, so that every arm is compared on the same patients."""
    return list(settings.ldm.folds) if settings.ldm.folds is not None else list(range(settings.folds.n_splits))


def grid(settings: Settings) -> pd.DataFrame:
    """Every trial of a run, rate 0 once for all arms.

    Parameters
    ----------
    settings : Settings
        Reads ``sweep``, ``folds.n_splits`` and ``ldm.folds, ldm.conditionings``.

    Returns
    -------
    pandas.DataFrame
        ``backbone, arm, rate, fold, seed``, a trial a row; real images alone are arm ``real`` at rate 0. With the
        paper's Fig. 5A settings 13 cells x 5 folds x 25 seeds are 1,625 rows.

    Raises
    ------
    ValueError
        An arm asks for a diffusion model that the run does not train.
    """
    chosen = settings.sweep
    made = [*settings.ldm.conditionings, "filtered", *["gan"] * settings.gan.enabled]
    lacking = [arm for arm in chosen.arms if arm != "traditional" and arm not in made]
    if lacking:
        raise ValueError(
            f"sweep.arms: expected generators of this run {made}, found {lacking[0]!r}; train it (ldm.conditionings,"
            " gan.enabled) or drop the arm."
        )
    cells = [(REAL, 0.0), *((arm, float(rate)) for arm in chosen.arms for rate in chosen.rates)]
    rows = [
        (backbone, arm, rate, fold, seed)
        for backbone in chosen.backbones
        for fold in folds_of(settings)
        for seed in range(chosen.n_seeds)
        for arm, rate in cells
    ]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS)).drop_duplicates(ignore_index=True)


def trial_hash(trial: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Hash of a trial's name and of all it depends on (settings, inputs' hashes, code revisions)."""
    return digest({"trial": {name: trial[name] for name in TRIAL_COLUMNS}, **recipe})


# ---------------------------------------------------------------- guards


def check_fold(images: pd.DataFrame, fold: int, synthetic: pd.DataFrame | None = None) -> np.ndarray:
    """Rows held out in a fold, after making sure that nothing of them can be in the training set.

    Parameters
    ----------
    images : pandas.DataFrame
        ``patient_id, label, fold, sha256``, a row an image.
    fold : int
        The fold that is held out.
    synthetic : pandas.DataFrame, optional
        The synthetic set's table: ``fold, source_patient`` (-1 where an image has no source).

    Returns
    -------
    (N,) bool
        True where an image is held out.

    Raises
    ------
    ValueError
        A patient or a frame is on both sides, the training side has one class, no image is held out, or a synthetic
        image was made for another fold, from a held-out patient or from an unknown one.
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
        folds.assert_trained_without(images, fold, synthetic["source_patient"])
        foreign = sorted(set(synthetic["source_patient"]) - set(images["patient_id"]) - {-1})
        if foreign:
            raise ValueError(
                f"synthetic set of fold {fold}: expected sources in this cohort, found patients {foreign[:5]};"
                " draw it again."
            )
    return images["fold"].to_numpy() == fold


# ---------------------------------------------------------------- the store


def trial_path(store: Path, key: str) -> Path:
    """File of a finished trial."""
    return store / f"{key}.parquet"


def _error_path(store: Path, key: str) -> Path:
    return store / f"{key}.error.json"


def write_trial(store: Path, key: str, scores: pd.DataFrame, facts: Mapping[str, Any]) -> Path:
    """Write one finished trial atomically; clears the record of an earlier failure.

    Parameters
    ----------
    store : Path
        Folder of the store.
    key : str
        The trial's hash.
    scores : pandas.DataFrame
        ``image_id, patient_id, label, score``, a held-out image a row.
    facts : mapping
        JSON-able: the trial's name, how long it took, what it was trained on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(scores[list(SCORE_COLUMNS)], preserve_index=False)
    text = json.dumps({"hash": key, "rows": len(scores), **facts}, default=str)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: text.encode()})
    path = trial_path(store, key)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
    _error_path(store, key).unlink(missing_ok=True)
    return path


def read_trial(store: Path, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Scores and facts of one finished trial.

    Raises
    ------
    FileNotFoundError
        It is not trained yet.
    ValueError
        Its file is truncated, altered or another trial's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = trial_path(store, key)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        facts = json.loads(table.schema.metadata[_METADATA])
        scores = table.select(list(SCORE_COLUMNS)).to_pandas()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path}: expected a whole trial, found a damaged file ({reason}); it is trained again."
        ) from None
    if facts.get("hash") != key or facts.get("rows") != len(scores):
        raise ValueError(f"{path}: expected trial {key}, found {facts.get('hash')}; it is trained again.")
    return scores, facts


def is_done(store: Path, key: str) -> bool:
    """Whether a trial is in the store, whole."""
    try:
        read_trial(store, key)
    except (FileNotFoundError, ValueError):
        return False
    return True


def record_failure(store: Path, trial: Mapping[str, Any], key: str, error: BaseException) -> Path:
    """Note why a trial failed, so that it is listed and the others go on."""
    text = f"{type(error).__name__}: {error}"
    return save_json(_error_path(store, key), {"hash": key, **{n: trial[n] for n in TRIAL_COLUMNS}, "error": text})


def _failure(store: Path, key: str) -> str | None:
    try:
        return json.loads(_error_path(store, key).read_text(encoding="utf-8"))["error"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "its error record is damaged"


def read_store(store: Path, trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the finished trials of a grid, and the state of every trial.

    Parameters
    ----------
    store : Path
        Folder of the store; trials of other grids in it are left alone.
    trials : pandas.DataFrame
        ``backbone, arm, rate, fold, seed, hash``.

    Returns
    -------
    scores : pandas.DataFrame
        ``backbone, arm, rate, fold, seed, image_id, patient_id, label, score``.
    status : pandas.DataFrame
        The rows of `trials` with ``state`` (see `STATES`), ``reason`` (empty where done) and, from the trial's facts,
        ``seconds, n_real, n_synthetic, fatty_share, first_loss, last_loss`` (NaN where it is not done).
    """
    parts, rows = [], []
    for trial in trials.to_dict("records"):
        state, reason, facts = "done", "", {}
        try:
            scores, facts = read_trial(store, trial["hash"])
            parts.append(scores.assign(**{name: trial[name] for name in TRIAL_COLUMNS}))
        except FileNotFoundError:
            reason = _failure(store, trial["hash"]) or ""
            state = "failed" if reason else "not trained yet"
        except ValueError as error:
            state, reason = "damaged", str(error)
        numbers = ("seconds", "n_real", "n_synthetic", "fatty_share", "first_loss", "last_loss")
        rows.append({**trial, "state": state, "reason": reason, **{n: facts.get(n, float("nan")) for n in numbers}})
    columns = [*TRIAL_COLUMNS, *SCORE_COLUMNS]
    table = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    return table, pd.DataFrame(rows)


def to_train(status: pd.DataFrame, retry_failed: bool = False) -> pd.DataFrame:
    """Trials that are still to be trained; those that failed before only on request."""
    states = ["not trained yet", "damaged"] + (["failed"] if retry_failed else [])
    return status[status["state"].isin(states)]


def require_complete(
    scores: pd.DataFrame, status: pd.DataFrame, allow_missing: bool = False
) -> tuple[pd.DataFrame, str]:
    """Scores that may be compared, and a sentence on what is missing from them.

    Parameters
    ----------
    scores, status : pandas.DataFrame
        From `read_store`.
    allow_missing : bool
        Go on with the seeds that every arm and fold of a backbone has finished; nothing is averaged over less.

    Returns
    -------
    scores : pandas.DataFrame
        Complete seeds only.
    note : str
        Empty when nothing is missing.

    Raises
    ------
    ValueError
        A trial is missing and that was not allowed, or no seed is complete.

    """
    missing = status[status["state"] != "done"]
    if not len(missing):
        return scores, ""
    counts = ", ".join(f"{n} {state}" for state, n in missing["state"].value_counts().items())
    first = missing.iloc[0]
    name = ", ".join(f"{n} {first[n]}" for n in TRIAL_COLUMNS)
    text = f"{len(missing)} of {len(status)} trials are missing ({counts}; the first: {name})"
    if not allow_missing:
        raise ValueError(f"{text}; run the sweep again, or ask for the finished seeds alone with allow_missing=True.")
    bad = pd.MultiIndex.from_frame(missing[["backbone", "seed"]].drop_duplicates())
    kept = scores[~pd.MultiIndex.from_frame(scores[["backbone", "seed"]]).isin(bad)]
    if not len(kept):
        raise ValueError(f"{text}; no seed is complete, run the sweep again.")
    seeds = kept.groupby("backbone")["seed"].nunique().to_dict()
    return kept.reset_index(drop=True), f"{text}: only complete seeds are shown ({seeds})."


def plan(status: pd.DataFrame, seconds: Mapping[str, float], n_workers: int) -> pd.DataFrame:
    """How much is done and how long the rest will take, a backbone a row.

    Parameters
    ----------
    status : pandas.DataFrame
        From `read_store`.
    seconds : mapping of str to float
        Estimate of one training by backbone, used where none is finished yet.
    n_workers : int
        Trainings at once.

    Returns
    -------
    pandas.DataFrame
        ``backbone, trainings, done, failed, to_do, seconds_each, minutes_left, estimate_from``.
    """
    rows = []
    for backbone, part in status.groupby("backbone", sort=False):
        done = part[part["state"] == "done"]
        to_do = len(to_train(part))
        each = float(done["seconds"].median()) if len(done) else float(seconds.get(backbone, float("nan")))
        basis = f"{len(done)} finished trainings" if len(done) else "a few timed steps"
        minutes = each * to_do / n_workers / 60 if to_do else 0.0
        failed = int((part["state"] == "failed").sum())
        rows.append((backbone, len(part), len(done), failed, to_do, each, minutes, basis))
    columns = ["backbone", "trainings", "done", "failed", "to_do", "seconds_each", "minutes_left", "estimate_from"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- what is read from it


def roc_curves(scores: pd.DataFrame, n_points: int = 201) -> pd.DataFrame:
    """ROC curve of every arm, rate and seed on one grid of false positive rates.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``backbone, arm, rate, seed, label, score``; folds are put together as in the paper.
    n_points : int
        Points of the grid from 0 to 1.

    Returns
    -------
    pandas.DataFrame
        ``backbone, arm, rate, seed, fpr, tpr``; seed -1 is the mean over seeds at the same false positive rate.
    """
    from sklearn.metrics import roc_curve

    at = np.linspace(0.0, 1.0, n_points)
    parts = []
    for cell, arm in scores.groupby(["backbone", "arm", "rate"], sort=False):
        curves = {}
        for seed, part in arm.groupby("seed"):
            fpr, tpr, _ = roc_curve(part["label"], part["score"])
            curves[seed] = np.interp(at, fpr, tpr)
            # a curve starts at (0, 0) even where it rises at once
            curves[seed][0] = 0.0
        curves[-1] = np.mean(list(curves.values()), axis=0)
        for seed, tpr in curves.items():
            names = dict(zip(("backbone", "arm", "rate"), cell, strict=True))
            parts.append(pd.DataFrame({**names, "seed": seed, "fpr": at, "tpr": tpr}))
    return pd.concat(parts, ignore_index=True)


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
