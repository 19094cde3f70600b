"""Stage 06, the grid: frozen-prefix features, its trainings, their scores. Opens and writes files.

Contract: features and scores lie in units, trials in the store; what is finished is never made again, and a failed
trial stops no other. What the scores amount to is `nafld_utils.stages.sweep_answer`'s.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import backbones, engine, sweep
from nafld_utils.artifacts import Run, Unit, digest, load_array, revision, save_array, save_table, unit_seed
from nafld_utils.stages import prepare, samples

REVISION = 1
STAGE = "06_classification_sweep"
FREEZE = "paper"
# Choice: half the disk and memory of float32; it moves a loss by at most 6e-4.
PRECISION = "float16"
_SHARED = -1  # fold of features that every fold shares


# ---------------------------------------------------------------- features of the frozen prefix


def features_unit(run: Run, backbone: str, kind: str, fold: int = _SHARED) -> Unit:
    """Unit of a set's prefix features.

    Parameters
    ----------
    run : Run
    backbone : str
        timm name.
    kind : str
        ``real`` (stored crops and deterministic resize), ``traditional`` (rotated crops), or a model's name.
    fold : int
        The model's fold; the real sets are shared by all folds, since the prefix is never trained.
    """
    shared = kind in (sweep.REAL, "traditional")
    settings = {"backbone": backbone, "weights": run.settings.sweep.weights, "freeze": FREEZE, "kept_in": PRECISION}
    if kind == sweep.REAL:
        source = prepare.preprocess_unit(run)
    elif kind == "traditional":
        source = prepare.traditional_unit(run)
    else:
        source = samples.synthetic_unit(run, kind, fold)
    keys = (kind,) if shared else (kind, f"fold{fold}")
    modules = ["backbones", "trial"]
    return run.unit(
        "features_prefix", backbone, *keys, settings={**settings, "set": kind}, inputs=[source], modules=modules
    )


def make_features(run: Run, backbone: str, kind: str, fold: int = _SHARED) -> None:
    """Compute the prefix features of one set; does nothing when they are there.

    Writes ``pool.npy`` (n, K, C, h, w), K views an image, and of real images ``resized.npy`` (n, 1, C, h, w).
    """
    from nafld_utils import trial

    unit = features_unit(run, backbone, kind, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    prefix, _ = _network(backbone, run.settings.sweep.weights)
    arrays = {}
    if kind in (sweep.REAL, "traditional"):
        data = prepare.open_preprocessed(run)
        arrays["pool"] = data.pool if kind == sweep.REAL else data.traditional_pool
        if kind == sweep.REAL:
            arrays["resized"] = data.resized[:, None]  # one view an image
    else:
        arrays["pool"] = samples.open_synthetic(run, kind, fold).images[:, None]
    with unit.writing(device=str(device)) as folder:
        for name, images in arrays.items():
            flat = images.reshape(-1, *images.shape[2:])
            out = trial.prefix_features(prefix, flat, backbone, device, precision=PRECISION)
            save_array(folder / f"{name}.npy", out.reshape(*images.shape[:2], *out.shape[1:]))


def feature_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a set whose prefix features the grid needs."""
    chosen, tasks = run.settings.sweep, []
    for backbone in chosen.backbones:
        for kind in (sweep.REAL, *chosen.arms):
            shared = kind in (sweep.REAL, "traditional")
            for fold in [_SHARED] if shared else sweep.folds_of(run.settings):
                tasks.append({"run": run, "backbone": backbone, "kind": kind, "fold": fold})
    return tasks


def build_features(run: Run) -> None:
    """Make the prefix features that are not there yet."""
    tasks = [task for task in feature_tasks(run) if not features_unit(**task).done()]
    if any(task["kind"] == "traditional" for task in tasks):
        prepare.build_traditional(run)
    if tasks:
        engine.map_units(make_features, tasks, run.settings.engine, "frozen prefix", unit_of=features_unit)


@functools.lru_cache(maxsize=2)
def _network(backbone: str, weights: str) -> tuple[Any, Any]:
    """Frozen prefix and pretrained tail, read once a process; a training copies the tail."""
    return backbones.split(backbones.load(backbone, weights), backbone, FREEZE)


# ---------------------------------------------------------------- trials


def store(run: Run) -> Path:
    """Folder of the finished trials."""
    return run.root / "sweep"


def recipe(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """All that a trial depends on besides its name: settings, the hashes of its inputs, code revisions."""
    chosen = run.settings.sweep
    names = ("steps", "batch_size", "learning_rate", "weight_decay")
    inputs = [features_unit(run, trial["backbone"], sweep.REAL).hash]
    if trial["arm"] != sweep.REAL:
        inputs.append(features_unit(run, trial["backbone"], trial["arm"], trial["fold"]).hash)
    return {
        "settings": {**{name: getattr(chosen, name) for name in names}, "root_seed": run.settings.seed},
        "inputs": inputs,
        "revisions": {name: revision(name) for name in ("trial", "sweep")},
    }


def trials(run: Run) -> pd.DataFrame:
    """The grid with each trial's hash: ``backbone, arm, rate, fold, seed, hash``."""
    table = sweep.grid(run.settings)
    return table.assign(hash=[sweep.trial_hash(row, recipe(run, row)) for row in table.to_dict("records")])


def training_set(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial is trained and judged on, after every refusal that can come before training.

    Returns
    -------
    dict
        ``real``, ``mixed`` (`trial.Views`; `mixed` None for real images alone), ``drawn`` (rows of the synthetic set,
        or of the flattened pool of rotated crops), ``held_out`` (features of the held-out images), ``images`` (their
        table)

    Raises
    ------
    ValueError
        A patient on both sides; a synthetic set of another fold or split; a rate above the set's size.
    """
    from nafld_utils import trial as training

    backbone, arm, fold = trial["backbone"], trial["arm"], int(trial["fold"])
    images = prepare.open_preprocessed(run).images
    synthetic = samples.open_synthetic(run, arm, fold) if arm not in (sweep.REAL, "traditional") else None
    held_out = sweep.check_fold(images, fold, None if synthetic is None else synthetic.table)
    stored = functools.partial(_stored, device=engine.device(run.settings.engine))
    unit = features_unit(run, backbone, sweep.REAL)
    label = images["label"].to_numpy()
    rows = np.flatnonzero(~held_out)
    real = training.Views(stored(unit, "pool.npy"), label[rows], rows)
    mixed, drawn = None, np.empty(0, dtype=np.int64)
    if arm == "traditional":
        pool = stored(features_unit(run, backbone, arm), "pool.npy")
        n_views = pool.shape[1]
        drawn = training.draw_synthetic(len(rows), trial["rate"], len(rows) * n_views, _seed(run, trial))
        sources = rows[drawn // n_views]
        mixed = training.Views(pool, label[sources], sources, drawn % n_views)
    elif synthetic is not None:
        drawn = training.draw_synthetic(len(rows), trial["rate"], len(synthetic.table), _seed(run, trial))
        pool = stored(features_unit(run, backbone, arm, fold), "pool.npy")
        mixed = training.Views(pool, synthetic.table["label"].to_numpy()[drawn], drawn)
    outside = np.flatnonzero(held_out)
    return {
        "real": real,
        "mixed": mixed,
        "drawn": drawn,
        "held_out": training.Views(stored(unit, "resized.npy"), label[outside], outside),
        "images": images[held_out],
    }


def _stored(unit: Unit, name: str, device: Any) -> Any:
    """A stored array: memory-mapped for a CPU, whose processes share it; kept on the device for a GPU."""
    return _opened(unit.require().file(name), unit.hash, str(device) if device.type == "cuda" else "")


@functools.lru_cache(maxsize=8)
def _opened(path: Path, _hash: str, device: str) -> Any:
    array = load_array(path, mmap=True)
    if not device:
        return array
    import torch

    return torch.from_numpy(np.array(array)).to(device)


def _seed(run: Run, trial: dict[str, Any]) -> int:
    """Seed of a training: the same for every arm and rate of a fold, so that arms are compared in pairs."""
    return unit_seed(run.settings.seed, "sweep", int(trial["fold"]), int(trial["seed"]))


def train(run: Run, trial: dict[str, Any]) -> tuple[Any, pd.DataFrame, dict[str, Any]]:
    """Train one trial; writes nothing.

    Returns
    -------
    tail : torch.nn.Sequential
        The trained tail.
    scores : pandas.DataFrame
        ``image_id, patient_id, label, score`` of the held-out images.
    facts : dict
        What it was trained on and how long it took.
    """
    import torch

    from nafld_utils import trial as training

    started = time.perf_counter()
    device = engine.device(run.settings.engine)
    data = training_set(run, trial)
    chosen, seed = run.settings.sweep, _seed(run, trial)
    options = training.Options(chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.weight_decay)
    _, pretrained = _network(trial["backbone"], chosen.weights)
    try:
        tail = training.fresh_tail(pretrained, seed)
        tail, losses = training.train_tail(tail, data["real"], data["mixed"], options, seed, device)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"batch of {chosen.batch_size} does not fit {device}; lower sweep.batch_size.") from error
    scores = data["images"][["image_id", "patient_id", "label"]].assign(
        score=training.predict(tail, data["held_out"], device)
    )
    mixed = data["mixed"]
    facts = {
        **{name: trial[name] for name in sweep.TRIAL_COLUMNS},
        "n_real": len(data["real"]),
        "n_synthetic": 0 if mixed is None else len(mixed),
        "fatty_share": float(np.concatenate([data["real"].labels, [] if mixed is None else mixed.labels]).mean()),
        "first_loss": float(losses[:5].mean()),
        "last_loss": float(losses[-5:].mean()),
        "losses": [round(float(loss), 5) for loss in losses],
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return tail, scores, facts


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


def status(run: Run) -> pd.DataFrame:
    """State of every trial of the grid, as `sweep.read_store`."""
    return sweep.read_store(store(run), trials(run))[1]


def dry_run(run: Run) -> pd.DataFrame:
    """Trainings in all, done, failed and to do, and the time they will take here; trains nothing (see `sweep.plan`)."""
    now = status(run)
    todo = [name for name, part in now.groupby("backbone") if not (part["state"] == "done").any()]
    n_workers = 1 if run.settings.engine.mode == "serial" else run.settings.engine.n_workers or engine.default_workers()
    return sweep.plan(now, {name: _time_training(run, name) for name in todo}, n_workers)


def _time_training(run: Run, backbone: str, steps: int = 3) -> float:
    """Seconds of one training, from a few steps on features of noise."""
    from nafld_utils import trial as training

    device, chosen = engine.device(run.settings.engine), run.settings.sweep
    prefix, tail = _network(backbone, chosen.weights)
    size = run.settings.preprocess.image_size
    noise = np.random.default_rng(0).integers(0, 256, (2, size, size), dtype=np.uint8)
    pool = training.prefix_features(prefix, noise, backbone, device)[:, None]
    views = training.Views(pool, np.array([0, 1]))
    seconds = []
    for n in (1, steps + 1):
        options = training.Options(n, chosen.batch_size, chosen.learning_rate, chosen.weight_decay)
        started = time.perf_counter()
        training.train_tail(training.fresh_tail(tail, 0), views, None, options, 0, device)
        seconds.append(time.perf_counter() - started)
    return (seconds[1] - seconds[0]) / steps * chosen.steps


def run_sweep(run: Run, retry_failed: bool = False) -> pd.DataFrame:
    """Make what is missing, features first, and return the state of every trial; a failed trial stops no other.

    Returns
    -------
    pandas.DataFrame
        As `sweep.read_store`'s status.
    """
    build_features(run)
    todo = sweep.to_train(status(run), retry_failed)
    for row in todo[todo["state"] == "damaged"].itertuples():
        engine.notice(row.reason)
    names = [*sweep.TRIAL_COLUMNS, "hash"]
    tasks = [{"run": run, **row} for row in todo[names].to_dict("records")]
    if tasks:
        where = run.settings.engine
        made = engine.map_units(run_trial, tasks, where, "trainings", raise_failed=False, files_of=trial_files)
        for task, error in zip(tasks, made["error"], strict=True):
            if error.startswith("KilledWorker") and not sweep.is_done(store(run), task["hash"]):
                # it took its workers with it and so could not note anything itself
                sweep.record_failure(store(run), task, task["hash"], engine.UnitError(error))
    return status(run)


def trial_files(run: Run, **trial: Any) -> list[Path]:
    """The file that `run_trial` makes."""
    return [sweep.trial_path(store(run), trial["hash"])]


def summarise_cell(part: pd.DataFrame) -> pd.Series:
    """One row of the notebook's table of trainings, from the status rows of one arm and rate."""
    done = part[part["state"] == "done"]
    facts = {"trainings": len(part), "done": len(done), "real images": done["n_real"].mean()}
    facts |= {"mixed in": done["n_synthetic"].mean(), "fatty share": done["fatty_share"].mean()}
    facts |= {"loss, first steps": done["first_loss"].mean(), "loss, last steps": done["last_loss"].mean()}
    return pd.Series({**facts, "seconds each": done["seconds"].median()}).round(3)


# ---------------------------------------------------------------- scores of the whole grid


def scores_unit(run: Run) -> Unit:
    """Unit of the scores of all trials put together."""
    keys = digest(sorted(trials(run)["hash"]))
    return run.unit("sweep_scores", settings={}, inputs=[keys], modules=["sweep"])


def build_scores(run: Run, allow_missing: bool = False) -> tuple[pd.DataFrame, str]:
    """Held-out scores of the complete grid, sealed as one unit, and a sentence on what is missing from them.

    Raises
    ------
    ValueError
        A trial is missing and `allow_missing` is false. An incomplete table is returned but never sealed.
    """
    scores, now = sweep.read_store(store(run), trials(run))
    kept, note = sweep.require_complete(scores, now, allow_missing)
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
