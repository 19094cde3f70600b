"""Stage 06, the trainings of the grid: where they run, their scores put together. Opens and writes files.

Contract: where a training runs, and beside which others, changes rounding at most. Scores lie in the store; what is
finished is never made again, and a failed trial stops no other.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, networks
from nafld_utils.artifacts import NotEnoughMemoryError, Run, Unit, digest, save_table, threads
from nafld_utils.sweep import trial_grid, trial_store
from nafld_utils.sweep.prefix_features import build_features, network
from nafld_utils.sweep.trial_units import options_of, refuse, seed_of, status, store, training_set, trials

REVISION = ("stages.sweep", 2)
REASON_LENGTH = 200  # characters of a failure's reason that a table shows
Found = tuple[Any, pd.DataFrame, dict[str, Any]]  # a trained tail, its scores, its facts: see `train`


# ---------------------------------------------------------------- training


def train(run: Run, trial: dict[str, Any], quick: bool = True) -> Found:
    """Train one trial; writes nothing. `quick` is of `training.Options`.

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
    (found,) = train_seeds(run, [trial], quick)
    if isinstance(found, Exception):
        raise found
    return found


def train_seeds(run: Run, group: Sequence[dict[str, Any]], quick: bool = True) -> list[Found | Exception]:
    """Train trials that differ in nothing but the seed: side by side on a GPU, one after another elsewhere.

    By trial what `train` returns, or why it failed; what `composition` refuses fails them all.
    """
    from nafld_utils.sweep import gpu_training, training

    started, first = time.perf_counter(), group[0]
    weights, freeze = run.settings.sweep.weights, first["freeze"]
    options = replace(options_of(run, first["arm"]), quick=quick)
    _, pretrained = network(first["backbone"], weights, freeze)
    data, seeds = [training_set(run, trial) for trial in group], [seed_of(run, trial) for trial in group]
    jobs = [
        gpu_training.Job(training.fresh_tail(pretrained, seed), one["parts"], seed)
        for one, seed in zip(data, seeds, strict=True)
    ]
    device, decoder = engine.device(run.settings.engine), networks.Decoder(first["backbone"])
    record, named = run.settings.sweep.cuda_graphs, (first["backbone"], weights, freeze)
    fitted = gpu_training.train_jobs(jobs, decoder, options, device, named, record)
    found: list[Found | Exception] = []
    for trial, one, result in zip(group, data, fitted, strict=True):
        if isinstance(result, Exception):
            found.append(_explained(result, run))
            continue
        tail, losses = result
        scores = one["images"][["image_id", "patient_id", "label"]].assign(
            score=training.predict(tail, one["held_out"], decoder, device)
        )
        facts = {name: trial[name] for name in trial_store.TRIAL_COLUMNS}
        facts |= {name: one[name] for name in ("n_real", "n_synthetic")}
        facts["fatty_share"] = float(np.concatenate([part.labels for part in one["parts"]]).mean())
        facts |= {"first_loss": float(losses[:5].mean()), "last_loss": float(losses[-5:].mean())}
        facts |= {"losses": [round(float(loss), 5) for loss in losses], "device": str(device)}
        facts |= {"threads": threads(), "quick": quick and device.type == "cpu"}
        facts |= networks.hub_facts(first["backbone"], weights)
        found.append((tail, scores, facts))
    seconds = round((time.perf_counter() - started) / len(group), 3)
    for one in found:
        if not isinstance(one, Exception):
            one[2]["seconds"] = seconds
    return found


def _explained(error: Exception, run: Run) -> Exception:
    """The error itself, or what to do where the device's memory was the cause."""
    if engine.lacked_memory(error):
        chosen, device = run.settings.sweep, engine.device(run.settings.engine)
        return NotEnoughMemoryError(
            f"{device}: a batch of {chosen.batch_size} with {chosen.at_once} trainings at once does not fit its memory;"
            " lower sweep.batch_size or sweep.at_once."
        )
    return error


# ---------------------------------------------------------------- the whole sweep


def run_sweep(run: Run) -> pd.DataFrame:
    """Make what is missing, features first, and return the state of every trial, as `trial_store.read_store`'s status.

    A failed trial stops no other; those that failed before are tried again where ``sweep.retry_failed`` says so.

    Raises
    ------
    ValueError
        Something makes a training of the grid impossible (`refuse`); nothing was trained.
    """
    now = status(run)
    todo = trial_store.to_train(now, run.settings.sweep.retry_failed)
    refuse(run, todo)
    build_features(run)
    for row in todo[todo["state"] == "damaged"].itertuples():
        engine.notice(row.reason)
    tasks = _tasks(run, todo[[*trial_store.TRIAL_COLUMNS, "hash"]])
    if tasks:
        where = run.settings.engine
        made = engine.map_units(run_trials, tasks, where, "trainings", raise_failed=False, files_of=trial_files)
        for task, ended in zip(tasks, made.itertuples(), strict=True):
            if ended.killed:  # its trainings could not note anything themselves
                for trial in _not_done(**task):
                    trial_store.record_failure(store(run), trial, trial["hash"], engine.UnitError(ended.error))
    return status(run) if tasks else now


def _tasks(run: Run, todo: pd.DataFrame) -> list[dict[str, Any]]:
    """One task per training; of a GPU, or of a cluster, as many seeds per task as are to be trained at once."""
    if not len(todo):
        return []
    at_once, settings = run.settings.sweep.at_once, run.settings.engine
    if settings.mode != "cluster" and engine.device(settings).type != "cuda":
        at_once = 1
    if at_once == 1:
        groups = [[row] for row in todo.to_dict("records")]
    else:
        cells = todo.groupby([name for name in trial_store.TRIAL_COLUMNS if name != "seed"], sort=False)
        parts = [part.to_dict("records") for _, part in cells]
        groups = [rows[i : i + at_once] for rows in parts for i in range(0, len(rows), at_once)]
    return [{"run": run, **first, "others": others} for first, *others in groups]


def _not_done(run: Run, others: Sequence[dict[str, Any]], **trial: Any) -> list[dict[str, Any]]:
    """Trials of a task that are not in the store."""
    return [one for one in (trial, *others) if not trial_store.is_done(store(run), one["hash"])]


def run_trials(run: Run, others: Sequence[dict[str, Any]] = (), **trial: Any) -> None:
    """Train a trial, and others that differ in nothing but the seed; one that fails stops no other.

    Does nothing for those in the store, notes why one failed, and raises, at the end, what the first failed one raised.
    """
    waiting, failed = _not_done(run, others, **trial), []
    try:
        results = train_seeds(run, waiting) if waiting else []
    except Exception as error:
        results = [error] * len(waiting)
    for one, found in zip(waiting, results, strict=True):
        if isinstance(found, Exception):
            trial_store.record_failure(store(run), one, one["hash"], found)
            failed.append(found)
        else:
            trial_store.write_trial(store(run), one["hash"], *found[1:])
    if failed:
        raise failed[0]


def trial_files(run: Run, others: Sequence[dict[str, Any]] = (), **trial: Any) -> list[Path]:
    """The files that `run_trials` makes."""
    return [trial_store.trial_path(store(run), one["hash"]) for one in (trial, *others)]


def experiments(run: Run) -> pd.DataFrame:
    """The experiments of the run and how much of each is done, as `trial_grid.experiments`."""
    return trial_grid.experiments(run.settings, status(run))


def summary(status: pd.DataFrame) -> pd.DataFrame:
    """What the trainings saw, and their loss.

    Parameters
    ----------
    status : pandas.DataFrame
        Of `sweep.run_sweep`.

    Returns
    -------
    pandas.DataFrame
        One row per network, way of training, arm and rate: trainings in all and done, means of what they saw and
        of their loss, median seconds.
    """
    cells = [name for name in trial_store.TRIAL_COLUMNS if name not in ("fold", "seed")]
    done = status.where(status["state"] == "done").groupby([status[name] for name in cells], sort=False)
    table = status.groupby(cells, sort=False).size().to_frame("trainings").assign(done=done["state"].count())
    means = {"real images": "n_real", "mixed in": "n_synthetic", "class 1 share": "fatty_share"}
    means |= {"loss, first steps": "first_loss", "loss, last steps": "last_loss"}
    table = table.assign(**{name: done[column].mean() for name, column in means.items()})
    return table.assign(**{"seconds each": done["seconds"].median()}).round(3)


def failures(status: pd.DataFrame) -> pd.DataFrame:
    """Trainings that are not done, and why.

    Parameters
    ----------
    status : pandas.DataFrame
        Of `sweep.run_sweep`.

    Returns
    -------
    pandas.DataFrame
        `sweep.TRIAL_COLUMNS`, ``state, reason`` (one short line), one training per row.
    """
    left = status.loc[status["state"] != "done", [*trial_store.TRIAL_COLUMNS, "state", "reason"]]
    short = left["reason"].map(lambda reason: textwrap.shorten(reason, REASON_LENGTH, placeholder=" ..."))
    return left.assign(reason=short).reset_index(drop=True)


# ---------------------------------------------------------------- scores of the whole grid


def scores_unit(run: Run) -> Unit:
    """Unit of the scores of all trials put together."""
    keys = digest(sorted(trials(run)["hash"]))
    return run.unit("sweep_scores", settings={}, inputs=[keys], modules=["sweep"])


def build_scores(run: Run) -> tuple[pd.DataFrame, str]:
    """Held-out scores of the complete grid, sealed as one unit, and a sentence on what is missing from them.

    With ``sweep.allow_missing`` an incomplete table is returned, of complete seeds alone, but never sealed.

    Raises
    ------
    ValueError
        A trial is missing and ``sweep.allow_missing`` is false.
    """
    scores, now = trial_store.read_store(store(run), trials(run))
    kept, note = trial_store.require_complete(scores, now, run.settings.sweep.allow_missing)
    unit = scores_unit(run)
    if not note and not unit.done():
        with unit.writing() as folder:
            save_table(folder / "scores.parquet", kept)
            save_table(folder / "trials.csv", now)
    return kept, note
