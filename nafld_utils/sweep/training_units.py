"""Stage 06, the trainings of the grid: what each is made of, what is refused, its scores. Opens and writes files.

Contract: whatever can be refused is refused before a training starts. A training is a function of its row of the grid
and of `recipe`; where it runs, and beside which others, changes rounding at most. Features and scores lie in units,
trials in the store; what is finished is never made again, and a failed trial stops no other. What a training reads is
`nafld_utils.sweep.prefix_features`', what the scores amount to `nafld_utils.sweep.verdict`'s.
"""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, networks, params, preprocessing, quality
from nafld_utils.artifacts import NotEnoughMemoryError, Run, Unit, digest, revision, save_table, unit_seed
from nafld_utils.sweep import timing, trial_grid, trial_store
from nafld_utils.sweep.prefix_features import (
    build_features,
    feature_tasks,
    features_unit,
    identity,
    kinds_of,
    network,
    read_unit,
    stored,
)

REVISION = ("stages.sweep", 2), ("stages.sweep_trials", 2)
STAGE = "06_classification_sweep"
REASON_LENGTH = 200  # characters of a failure's reason that a table shows
# Modules that decide what a training is made of and how it runs, on a CPU or a GPU.
MODULES = (
    "arms", "backbones", "trial", "trial_draws", "trial_resident", "sweep", "stages.sweep_features",
    "stages.sweep_trials",
)  # fmt: skip
Found = tuple[Any, pd.DataFrame, dict[str, Any]]  # a trained tail, its scores, its facts: see `train`


# ---------------------------------------------------------------- the grid


def require_capacity(run: Run) -> None:
    """Refuse, before any model is trained, a run that will draw fewer images than its classifiers take.

    Raises
    ------
    ValueError
        As `trial_grid.check_capacity`, `preprocessing.make_folds` and `sweep.grid`; or the cohort is not stored.
    """
    trial_grid.check_capacity(preprocessing.folded_images(run), run.settings)


def store(run: Run) -> Path:
    """Folder of the finished trials."""
    return run.root / "sweep"


def trials(run: Run) -> pd.DataFrame:
    """The grid with each trial's hash: `sweep.TRIAL_COLUMNS` and ``hash``."""
    table = trial_grid.grid(run.settings)
    cells = ["backbone", "freeze", "arm", "fold"]  # all that a recipe reads of a trial
    recipes = {key: recipe(run, part.iloc[0].to_dict()) for key, part in table.groupby(cells, sort=False)}
    rows = table.to_dict("records")
    return table.assign(hash=[trial_grid.trial_hash(row, recipes[tuple(row[name] for name in cells)]) for row in rows])


def status(run: Run) -> pd.DataFrame:
    """State of every trial of the grid, as `trial_store.read_store`."""
    return trial_store.read_store(store(run), trials(run))[1]


def recipe(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """All that a trial depends on besides its name: settings, the hashes of its inputs, code revisions."""
    chosen = run.settings.sweep
    names = ("steps", "batch_size", "learning_rate", "weight_decay", "crops")
    backbone, freeze, fold = trial["backbone"], trial["freeze"], int(trial["fold"])
    return {
        "settings": {**{name: getattr(chosen, name) for name in names}, "root_seed": run.settings.seed},
        "arithmetic": arithmetic(run),
        "weights": identity(backbone, chosen.weights),
        "inputs": [read_unit(run, backbone, freeze, kind, fold).hash for kind in kinds_of([trial["arm"]])],
        "revisions": {name: revision(name) for name in MODULES},
    }


def arithmetic(run: Run) -> str:
    """Precision that trainings are computed in, as far as whoever names them can know: ``fp32`` on any CPU.

    Trainings of a CPU in fp32 and of a GPU in bf16 differ by more than rounding, and a store keeps them apart. A
    driver does not see the devices of a cluster's workers: with ``engine.device`` auto its trainings are named by that.
    """
    chosen, where = run.settings.sweep.precision, run.settings.engine
    if chosen == "fp32" or where.device == "cpu":
        return "fp32"
    if where.device != "auto":
        return chosen
    if where.mode == "cluster":
        return f"{chosen} on a GPU, fp32 on a CPU"
    return chosen if engine.device(where).type == "cuda" else "fp32"


# ---------------------------------------------------------------- before


def experiments(run: Run) -> pd.DataFrame:
    """The experiments of the run and how much of each is done, as `trial_grid.experiments`."""
    return trial_grid.experiments(run.settings, status(run))


def dry_run(run: Run) -> pd.DataFrame:
    """Trainings in all, done, failed and to do, and the time they will take here; trains nothing (see `sweep.plan`).

    Raises
    ------
    ValueError
        As in `refuse`, before anything is computed.
    """
    refuse(run)
    now, images = status(run), images_without_features(run)
    n_scored = len(held_out_images(run)) / len(trial_grid.folds_of(run.settings))
    seconds, features = {}, {}
    for key, part in now.groupby(["backbone", "freeze"], sort=False):
        if images[key] or not (part["state"] == "done").any():
            seconds[key], each = time_training(run, *key, n_scored)
            features[key] = each * images[key]
    return trial_grid.plan(
        now, seconds, engine.side_by_side(run.settings.engine), features, run.settings.sweep.retry_failed
    )


def images_without_features(run: Run) -> Counter[tuple[str, str]]:
    """Images, views counted one by one, whose prefix features are still to be computed, by (backbone, freeze)."""
    data, counts = preprocessing.open_preprocessed(run), Counter()
    n, n_views = data.pool.shape[:2]
    sizes = {params.REAL: n * (n_views + 1), "traditional": n * n_views}
    for task in feature_tasks(run):
        if not features_unit(**task).done():
            kind = task["kind"]
            n_images = sizes.get(kind) or len(quality.open_set(run, kind, task["fold"]).table)
            counts[task["backbone"], task["freeze"]] += n_images
    return counts


def time_training(run: Run, backbone: str, freeze: str = "paper", n_scored: float = 0) -> tuple[float, float]:
    """Seconds of one training with the scores of `n_scored` images, and of one image's features, on this device.

    From a few steps on noise; weights are random, time does not ask.
    """
    device, chosen = engine.device(run.settings.engine), run.settings.sweep
    network = timing.Network(backbone, freeze, run.settings.preprocess.image_size, device)
    with engine.worker_threads(run.settings.engine):
        training = network.seconds_a_training(options_of(run), chosen.at_once, chosen.cuda_graphs)
        return training + n_scored * network.seconds_a_score(), network.prefix_seconds


def refuse(run: Run) -> None:
    """Refuse, before any training, whatever the settings and the sets make impossible.

    Raises
    ------
    ValueError
        As in `composition`, for any fold, arm and rate of the grid; an unknown backbone or stage to freeze.
    """
    table = trial_grid.grid(run.settings)
    for backbone, freeze in table[["backbone", "freeze"]].drop_duplicates().itertuples(index=False):
        network(backbone, run.settings.sweep.weights, freeze)
    for trial in trial_grid.hardest(table).to_dict("records"):
        for _ in composition(run, trial):
            pass


# ---------------------------------------------------------------- what a training is made of


def composition(run: Run, trial: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sets that a training is made of, which of their images and views, and their labels; no pixel is read.

    Yields
    ------
    kind : str
        ``real``, ``traditional`` or a generator.
    chosen : dict
        ``labels, rows, views`` of `sweep.Views`; ``drawn``, rows of the set (of the flattened pool of rotated crops).

    Raises
    ------
    ValueError
        A patient on both sides; one class among the training images; a synthetic set of another fold or split; a rate
        above the set's size.
    """
    from nafld_utils.sweep import draws

    arm, fold, seed = params.parse(trial["arm"]), int(trial["fold"]), seed_of(run, trial)
    data = preprocessing.open_preprocessed(run)
    held_out, label = trial_grid.check_fold(data.images, fold), data.images["label"].to_numpy()
    training, n_views = np.flatnonzero(~held_out), data.pool.shape[1]
    rows = draws.training_rows(training, label, trial["balance"], seed)
    if arm.with_real:
        fixed = run.settings.sweep.crops == "fixed"
        views = draws.fixed_crops(len(label), n_views, seed)[rows] if fixed else None
        yield params.REAL, {"labels": label[rows], "rows": rows, "views": views}
    for i, kind in enumerate(arm.generators):
        part = (i, len(arm.generators))
        available = _available(run, kind, fold, training)
        if arm.matched:
            drawn = draws.draw_matched(label[rows], trial["rate"], available, seed, part)
        else:
            drawn = draws.draw_synthetic(len(rows), trial["rate"], len(available), seed, part)
        chosen = {"labels": available[drawn], "rows": drawn, "views": None, "drawn": drawn}
        if kind == params.TRADITIONAL:
            chosen |= {"rows": training[drawn // n_views], "views": drawn % n_views}
        yield kind, chosen


def _available(run: Run, kind: str, fold: int, rows: np.ndarray) -> np.ndarray:
    """Labels of all images that a generator can add to a fold's training images `rows`."""
    data = preprocessing.open_preprocessed(run)
    if kind == params.TRADITIONAL:
        return np.repeat(data.images["label"].to_numpy()[rows], data.pool.shape[1])
    made = quality.open_set(run, kind, fold)
    trial_grid.check_fold(data.images, fold, made.table, made.split)
    return made.table["label"].to_numpy()


def training_set(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial is trained and judged on, after every refusal that can come before training.

    Returns
    -------
    dict
        ``parts`` (list of `sweep.Views`: the real images, unless the arm is without them, and each set mixed in),
        ``drawn`` (by generator: rows of its set), ``n_real, n_synthetic``, ``held_out`` (`sweep.Views`), ``images``
        (table of the held-out images)

    Raises
    ------
    ValueError
        As in `composition`.
    """
    from nafld_utils.sweep.training import Views

    backbone, freeze, fold = trial["backbone"], trial["freeze"], int(trial["fold"])
    parts, drawn, counts = [], {}, {"n_real": 0, "n_synthetic": 0}
    for kind, chosen in list(composition(run, trial)):  # whole, before a feature is read
        views = stored(run, backbone, freeze, kind, fold)
        parts.append(Views(views, chosen["labels"], chosen["rows"], chosen["views"]))
        counts["n_real" if kind == params.REAL else "n_synthetic"] += len(parts[-1])
        if kind != params.REAL:
            drawn[kind] = chosen["drawn"]
    images = preprocessing.open_preprocessed(run).images
    outside = np.flatnonzero(images["fold"].to_numpy() == fold)
    resized = stored(run, backbone, freeze, params.REAL, fold, "resized")
    held_out = Views(resized, images["label"].to_numpy()[outside], outside)
    return {"parts": parts, "drawn": drawn, **counts, "held_out": held_out, "images": images.iloc[outside]}


def held_out_images(run: Run) -> pd.DataFrame:
    """Images that the grid scores, with the fold that holds them out: ``image_id, patient_id, label, fold``."""
    images = preprocessing.open_preprocessed(run).images
    kept = images[images["fold"].isin(trial_grid.folds_of(run.settings))]
    return kept[["image_id", "patient_id", "label", "fold"]].reset_index(drop=True)


def seed_of(run: Run, trial: dict[str, Any]) -> int:
    """Seed of a training: the same for every arm and rate of a fold, so that arms are compared in pairs."""
    return unit_seed(run.settings.seed, "sweep", int(trial["fold"]), int(trial["seed"]))


def options_of(run: Run) -> Any:
    """How a tail is trained, `sweep.Options`."""
    from nafld_utils.sweep.training import Options

    chosen = run.settings.sweep
    return Options(chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.weight_decay, chosen.precision)


# ---------------------------------------------------------------- training


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


def train_seeds(run: Run, group: Sequence[dict[str, Any]]) -> list[Found | Exception]:
    """Train trials that differ in nothing but the seed: side by side on a GPU, one after another elsewhere.

    By trial what `train` returns, or why it failed; what `composition` refuses fails them all.
    """
    from nafld_utils.sweep import training

    started, first = time.perf_counter(), group[0]
    _, pretrained = network(first["backbone"], run.settings.sweep.weights, first["freeze"])
    data, seeds = [training_set(run, trial) for trial in group], [seed_of(run, trial) for trial in group]
    jobs = [(training.fresh_tail(pretrained, seed), one["parts"], seed) for one, seed in zip(data, seeds, strict=True)]
    device, decoder = engine.device(run.settings.engine), networks.Decoder(first["backbone"])
    fitted = _on_gpu(run, first, decoder, jobs) if device.type == "cuda" else _here(run, decoder, jobs)
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
        found.append((tail, scores, facts))
    seconds = round((time.perf_counter() - started) / len(group), 3)
    for one in found:
        if not isinstance(one, Exception):
            one[2]["seconds"] = seconds
    return found


def _here(run: Run, decoder: Any, jobs: Sequence[tuple[Any, Any, int]]) -> list[Any]:
    """By job its trained tail and losses, or why it failed."""
    from nafld_utils.sweep import training

    results: list[Any] = []
    for tail, parts, seed in jobs:
        try:
            results.append(training.train_tail(tail, parts, options_of(run), seed, decoder))
        except Exception as error:
            results.append(error)
    return results


_TRAINERS: dict[tuple[Any, ...], list[Any]] = {}


def _on_gpu(run: Run, trial: dict[str, Any], decoder: Any, jobs: Sequence[tuple[Any, Any, int]]) -> list[Any]:
    """As `_here`, on trainers that stay for the next trials of the same network: recording a step costs seconds."""
    import copy

    from nafld_utils.sweep import gpu_training

    device, chosen, like = engine.device(run.settings.engine), run.settings.sweep, jobs[0][1][0].features
    view = tuple(like.shape[2:]), str(like.dtype)  # what a step is recorded for
    key = (trial["backbone"], chosen.weights, trial["freeze"], options_of(run), str(device), chosen.cuda_graphs, *view)
    if key not in _TRAINERS:
        _TRAINERS.clear()  # of another network: their memory is wanted
    ready = _TRAINERS.setdefault(key, [])
    try:
        while len(ready) < len(jobs):
            tail = copy.deepcopy(jobs[0][0])
            how = {"view": like.shape[2:], "dtype": like.dtype, "record": chosen.cuda_graphs}
            ready.append(gpu_training.Resident(tail, decoder, options_of(run), device, **how))
    except Exception as error:
        _TRAINERS.clear()
        return [error] * len(jobs)
    return gpu_training.train_side_by_side(ready, [gpu_training.Job(*job) for job in jobs])


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
    refuse(run)
    build_features(run)
    todo = trial_store.to_train(status(run), run.settings.sweep.retry_failed)
    for row in todo[todo["state"] == "damaged"].itertuples():
        engine.notice(row.reason)
    tasks = _tasks(run, todo[[*trial_store.TRIAL_COLUMNS, "hash"]])
    if tasks:
        where = run.settings.engine
        made = engine.map_units(run_trials, tasks, where, "trainings", raise_failed=False, files_of=trial_files)
        for task, error in zip(tasks, made["error"], strict=True):
            if error.startswith("KilledWorker"):  # its trainings could not note anything themselves
                for trial in _not_done(run, **task):
                    trial_store.record_failure(store(run), trial, trial["hash"], engine.UnitError(error))
    return status(run)


def _tasks(run: Run, todo: pd.DataFrame) -> list[dict[str, Any]]:
    """One task per training; of a GPU, or of a cluster, as many seeds per task as are to be trained at once."""
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


def summary(status: pd.DataFrame) -> pd.DataFrame:
    """The notebook's table of trainings from their status: one row per network, way of training, arm and rate."""
    cells = [name for name in trial_store.TRIAL_COLUMNS if name not in ("fold", "seed")]
    done = status.where(status["state"] == "done").groupby([status[name] for name in cells], sort=False)
    table = status.groupby(cells, sort=False).size().to_frame("trainings").assign(done=done["state"].count())
    means = {"real images": "n_real", "mixed in": "n_synthetic", "class 1 share": "fatty_share"}
    means |= {"loss, first steps": "first_loss", "loss, last steps": "last_loss"}
    table = table.assign(**{name: done[column].mean() for name, column in means.items()})
    return table.assign(**{"seconds each": done["seconds"].median()}).round(3)


def failures(status: pd.DataFrame) -> pd.DataFrame:
    """Trials that are not done and why, one per row: `sweep.TRIAL_COLUMNS`, ``state, reason`` (one short line)."""
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
