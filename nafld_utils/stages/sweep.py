"""Stage 06, the grid: its trainings and their scores. Opens and writes files.

Contract: features and scores lie in units, trials in the store; what is finished is never made again, and a failed
trial stops no other. What a training reads is `nafld_utils.stages.sweep_features`', how one runs is
`nafld_utils.stages.sweep_trials`', what the scores amount to `nafld_utils.stages.sweep_answer`'s.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils import engine, sweep, sweep_speed, timer
from nafld_utils.artifacts import Run, Unit, digest, save_table
from nafld_utils.stages import filtering, prepare
from nafld_utils.stages.sweep_features import build_features, feature_tasks, features_unit
from nafld_utils.stages.sweep_trials import (
    Found,
    options_of,
    recipe,
    refuse,
    train_seeds,
    training_set,
)

__all__ = [
    "STAGE", "build_features", "build_scores", "dry_run", "experiments", "failures", "feature_tasks",
    "features_unit", "held_out_images", "recipe", "refuse", "run_sweep", "run_trial", "run_trials", "scores_unit",
    "status", "store", "summarise_cell", "train", "training_set", "trial_files", "trials",
]  # fmt: skip

REVISION = ("stages.sweep", 2)
STAGE = "06_classification_sweep"
REASON_LENGTH = 200  # characters of a failure's reason that a table shows


def store(run: Run) -> Path:
    """Folder of the finished trials."""
    return run.root / "sweep"


def trials(run: Run) -> pd.DataFrame:
    """The grid with each trial's hash: `sweep.TRIAL_COLUMNS` and ``hash``."""
    table = sweep.grid(run.settings)
    cells = ["backbone", "freeze", "arm", "fold"]  # all that a recipe reads of a trial
    recipes = {key: recipe(run, part.iloc[0].to_dict()) for key, part in table.groupby(cells, sort=False)}
    rows = table.to_dict("records")
    return table.assign(hash=[sweep.trial_hash(row, recipes[tuple(row[name] for name in cells)]) for row in rows])


def status(run: Run) -> pd.DataFrame:
    """State of every trial of the grid, as `sweep.read_store`."""
    return sweep.read_store(store(run), trials(run))[1]


# ---------------------------------------------------------------- before


def experiments(run: Run) -> pd.DataFrame:
    """The experiments of the run and how much of each is done, as `sweep.experiments`."""
    return sweep.experiments(run.settings, status(run))


def dry_run(run: Run) -> pd.DataFrame:
    """Trainings in all, done, failed and to do, and the time they will take here; trains nothing (see `sweep.plan`).

    Raises
    ------
    ValueError
        As in `refuse`, before anything is computed.
    """
    refuse(run)
    now, images = status(run), images_without_features(run)
    n_scored = len(held_out_images(run)) / len(sweep.folds_of(run.settings))
    seconds, features = {}, {}
    for key, part in now.groupby(["backbone", "freeze"], sort=False):
        if images[key] or not (part["state"] == "done").any():
            seconds[key], each = time_training(run, *key, n_scored)
            features[key] = each * images[key]
    return sweep.plan(now, seconds, timer.side_by_side(run.settings.engine), features, run.settings.sweep.retry_failed)


def images_without_features(run: Run) -> Counter[tuple[str, str]]:
    """Images, views counted one by one, whose prefix features are still to be computed, by (backbone, freeze)."""
    data, counts = prepare.open_preprocessed(run), Counter()
    n, n_views = data.pool.shape[:2]
    sizes = {sweep.REAL: n * (n_views + 1), "traditional": n * n_views}
    for task in feature_tasks(run):
        if not features_unit(**task).done():
            kind = task["kind"]
            n_images = sizes.get(kind) or len(filtering.open_set(run, kind, task["fold"]).table)
            counts[task["backbone"], task["freeze"]] += n_images
    return counts


def time_training(run: Run, backbone: str, freeze: str = "paper", n_scored: float = 0) -> tuple[float, float]:
    """Seconds of one training with the scores of `n_scored` images, and of one image's features, on this device.

    From a few steps on noise; weights are random, time does not ask.
    """
    device, chosen = engine.device(run.settings.engine), run.settings.sweep
    network = sweep_speed.Network(backbone, freeze, run.settings.preprocess.image_size, device)
    with engine.worker_threads(run.settings.engine):
        training = network.seconds_a_training(options_of(run), chosen.at_once, chosen.cuda_graphs)
        return training + n_scored * network.seconds_a_score(), network.prefix_seconds


# ---------------------------------------------------------------- the trainings


def train(run: Run, trial: dict[str, Any]) -> Found:
    """Train one trial; writes nothing.

    Returns
    -------
    tail : torch.nn.Sequential
        The trained tail.
    scores : pandas.DataFrame
        ``image_id, patient_id, label, score`` of the held-out images.
    facts : dict
        What it was trained on and how long it took.

    Raises
    ------
    DivergedError
        Its loss is not finite.
    MemoryError
        A batch does not fit the device.
    """
    (found,) = train_seeds(run, [trial])
    if isinstance(found, Exception):
        raise found
    return found


def run_trial(run: Run, **trial: Any) -> None:
    """Train one trial of the grid and put it in the store; does nothing when it is there, notes why when it fails."""
    key = trial.pop("hash", None) or sweep.trial_hash(trial, recipe(run, trial))
    if sweep.is_done(store(run), key):
        return
    try:
        _, scores, facts = train(run, trial)
    except Exception as error:
        sweep.record_failure(store(run), trial, key, error)
        raise
    sweep.write_trial(store(run), key, scores, facts)


def run_trials(run: Run, group: Sequence[dict[str, Any]]) -> None:
    """As `run_trial`, for trials that differ in nothing but the seed; one that fails stops no other.

    Raises
    ------
    Exception
        What the first failed trial raised, when all others are in the store.
    """
    waiting = [trial for trial in group if not sweep.is_done(store(run), trial["hash"])]
    failed = None
    for trial, found in zip(waiting, _attempt(run, waiting), strict=True):
        if isinstance(found, Exception):
            sweep.record_failure(store(run), trial, trial["hash"], found)
            failed = failed or found
        else:
            sweep.write_trial(store(run), trial["hash"], *found[1:])
    if failed is not None:
        raise failed


def _attempt(run: Run, group: list[dict[str, Any]]) -> list[Found | Exception]:
    try:
        return train_seeds(run, group) if group else []
    except Exception as error:
        return [error] * len(group)


def run_sweep(run: Run) -> pd.DataFrame:
    """Make what is missing, features first, and return the state of every trial; a failed trial stops no other.

    Trials that failed before are tried again where ``sweep.retry_failed`` says so.

    Returns
    -------
    pandas.DataFrame
        As `sweep.read_store`'s status.

    Raises
    ------
    ValueError
        Something makes a training of the grid impossible (`refuse`); nothing was trained.
    """
    refuse(run)
    build_features(run)
    todo = sweep.to_train(status(run), run.settings.sweep.retry_failed)
    for row in todo[todo["state"] == "damaged"].itertuples():
        engine.notice(row.reason)
    if len(todo):
        function, tasks = _tasks(run, todo[[*sweep.TRIAL_COLUMNS, "hash"]])
        where = run.settings.engine
        made = engine.map_units(function, tasks, where, "trainings", raise_failed=False, files_of=trial_files)
        _note_killed(run, tasks, made["error"])
    return status(run)


def trial_files(run: Run, group: Sequence[dict[str, Any]] | None = None, **trial: Any) -> list[Path]:
    """The files that `run_trial`, or `run_trials` of a group, makes."""
    return [sweep.trial_path(store(run), one["hash"]) for one in group or [trial]]


def _note_killed(run: Run, tasks: list[dict[str, Any]], errors: Sequence[str]) -> None:
    """Record trainings that took their workers with them and so could not note anything themselves."""
    for task, error in zip(tasks, errors, strict=True):
        for trial in task.get("group", [task]) if error.startswith("KilledWorker") else []:
            if not sweep.is_done(store(run), trial["hash"]):
                sweep.record_failure(store(run), trial, trial["hash"], engine.UnitError(error))


def _tasks(run: Run, todo: pd.DataFrame) -> tuple[Any, list[dict[str, Any]]]:
    """A task a training; of a GPU, or of a cluster, as many seeds a task as are to be trained at once."""
    at_once, settings = run.settings.sweep.at_once, run.settings.engine
    if at_once == 1 or (settings.mode != "cluster" and engine.device(settings).type != "cuda"):
        return run_trial, [{"run": run, **row} for row in todo.to_dict("records")]
    tasks = []
    for _, part in todo.groupby([name for name in sweep.TRIAL_COLUMNS if name != "seed"], sort=False):
        rows = part.to_dict("records")
        tasks += [{"run": run, "group": rows[i : i + at_once]} for i in range(0, len(rows), at_once)]
    return run_trials, tasks


def summarise_cell(part: pd.DataFrame) -> pd.Series:
    """One row of the notebook's table of trainings, from the status rows of one arm and rate."""
    done = part[part["state"] == "done"]
    facts = {"trainings": len(part), "done": len(done), "real images": done["n_real"].mean()}
    facts |= {"mixed in": done["n_synthetic"].mean(), "class 1 share": done["fatty_share"].mean()}
    facts |= {"loss, first steps": done["first_loss"].mean(), "loss, last steps": done["last_loss"].mean()}
    return pd.Series({**facts, "seconds each": done["seconds"].median()}).round(3)


# ---------------------------------------------------------------- scores of the whole grid


def scores_unit(run: Run) -> Unit:
    """Unit of the scores of all trials put together."""
    keys = digest(sorted(trials(run)["hash"]))
    return run.unit("sweep_scores", settings={}, inputs=[keys], modules=["sweep"])


def failures(status: pd.DataFrame) -> pd.DataFrame:
    """Trials that are not done and why, a row a trial: `sweep.TRIAL_COLUMNS`, ``state, reason`` (one short line)."""
    left = status.loc[status["state"] != "done", [*sweep.TRIAL_COLUMNS, "state", "reason"]]
    short = left["reason"].map(lambda reason: textwrap.shorten(reason, REASON_LENGTH, placeholder=" ..."))
    return left.assign(reason=short).reset_index(drop=True)


def build_scores(run: Run) -> tuple[pd.DataFrame, str]:
    """Held-out scores of the complete grid, sealed as one unit, and a sentence on what is missing from them.

    With ``sweep.allow_missing`` an incomplete table is returned, of complete seeds alone, but never sealed.

    Raises
    ------
    ValueError
        A trial is missing and ``sweep.allow_missing`` is false.
    """
    scores, now = sweep.read_store(store(run), trials(run))
    kept, note = sweep.require_complete(scores, now, run.settings.sweep.allow_missing)
    unit = scores_unit(run)
    if not note and not unit.done():
        with unit.writing() as folder:
            save_table(folder / "scores.parquet", kept)
            save_table(folder / "trials.csv", now)
    return kept, note


def held_out_images(run: Run) -> pd.DataFrame:
    """Images that the grid scores, with the fold that holds them out: ``image_id, patient_id, label, fold``."""
    images = prepare.open_preprocessed(run).images
    kept = images[images["fold"].isin(sweep.folds_of(run.settings))]
    return kept[["image_id", "patient_id", "label", "fold"]].reset_index(drop=True)
