"""Stage 06, one training: what it is made of, what is refused, its scores. Opens files, writes none.

Contract: whatever can be refused is refused before a training starts. A training is a function of its row of the grid
and of `recipe`; where it runs, and beside which others, changes rounding at most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import arms, backbones, engine, sweep
from nafld_utils.artifacts import NotEnoughMemoryError, Run, revision, unit_seed
from nafld_utils.stages import filtering, prepare
from nafld_utils.stages.sweep_features import (
    NOTHING_FROZEN,
    SHARED,
    SHARED_KINDS,
    features_unit,
    identity,
    kinds_of,
    network,
    source_unit,
    stored,
)

REVISION = ("stages.sweep_trials", 2)
# Modules that decide what a training is made of and how it runs, on a CPU or a GPU.
MODULES = (
    "arms", "backbones", "trial", "trial_draws", "trial_resident", "sweep", "stages.sweep_features",
    "stages.sweep_trials",
)  # fmt: skip


def recipe(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """All that a trial depends on besides its name: settings, the hashes of its inputs, code revisions."""
    chosen = run.settings.sweep
    names = ("steps", "batch_size", "learning_rate", "weight_decay", "crops")
    inputs = []
    for kind in kinds_of([trial["arm"]]):
        fold = SHARED if kind in SHARED_KINDS else int(trial["fold"])
        if trial["freeze"] == NOTHING_FROZEN:
            inputs.append(source_unit(run, kind, fold).hash)
        else:
            inputs.append(features_unit(run, trial["backbone"], kind, fold, trial["freeze"]).hash)
    return {
        "settings": {**{name: getattr(chosen, name) for name in names}, "root_seed": run.settings.seed},
        "arithmetic": arithmetic(run),
        "weights": identity(trial["backbone"], chosen.weights),
        "inputs": inputs,
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


# ---------------------------------------------------------------- what a training is made of


def composition(run: Run, trial: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sets that a training is made of, which of their images and views, and their labels; no pixel is read.

    Yields
    ------
    kind : str
        ``real``, ``traditional`` or a generator.
    chosen : dict
        ``labels, rows, views`` of `trial.Views`; ``drawn``, rows of the set (of the flattened pool of rotated crops).

    Raises
    ------
    ValueError
        A patient on both sides; one class among the training images; a synthetic set of another fold or split; a rate
        above the set's size.
    """
    from nafld_utils import trial_draws as draws

    arm, fold, seed = arms.parse(trial["arm"]), int(trial["fold"]), seed_of(run, trial)
    data = prepare.open_preprocessed(run)
    held_out, label = sweep.check_fold(data.images, fold), data.images["label"].to_numpy()
    training, n_views = np.flatnonzero(~held_out), data.pool.shape[1]
    rows = draws.training_rows(training, label, trial["balance"], seed)
    if arm.with_real:
        fixed = run.settings.sweep.crops == "fixed"
        views = draws.fixed_crops(len(label), n_views, seed)[rows] if fixed else None
        yield sweep.REAL, {"labels": label[rows], "rows": rows, "views": views}
    for i, kind in enumerate(arm.generators):
        part = (i, len(arm.generators))
        available = _available(run, kind, fold, training)
        if arm.matched:
            drawn = draws.draw_matched(label[rows], trial["rate"], available, seed, part)
        else:
            drawn = draws.draw_synthetic(len(rows), trial["rate"], len(available), seed, part)
        chosen = {"labels": available[drawn], "rows": drawn, "views": None, "drawn": drawn}
        if kind == "traditional":
            chosen |= {"rows": training[drawn // n_views], "views": drawn % n_views}
        yield kind, chosen


def _available(run: Run, kind: str, fold: int, rows: np.ndarray) -> np.ndarray:
    """Labels of all images that a generator can add to a fold's training images `rows`."""
    data = prepare.open_preprocessed(run)
    if kind == "traditional":
        return np.repeat(data.images["label"].to_numpy()[rows], data.pool.shape[1])
    made = filtering.open_set(run, kind, fold)
    sweep.check_fold(data.images, fold, made.table, made.split)
    return made.table["label"].to_numpy()


def training_set(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial is trained and judged on, after every refusal that can come before training.

    Returns
    -------
    dict
        ``parts`` (list of `trial.Views`: the real images, unless the arm is without them, and each set mixed in),
        ``drawn`` (by generator: rows of its set), ``n_real, n_synthetic``, ``held_out`` (`trial.Views`), ``images``
        (table of the held-out images)

    Raises
    ------
    ValueError
        As in `composition`.
    """
    from nafld_utils.trial import Views

    backbone, freeze, fold = trial["backbone"], trial["freeze"], int(trial["fold"])
    parts, drawn, counts = [], {}, {"n_real": 0, "n_synthetic": 0}
    for kind, chosen in list(composition(run, trial)):  # whole, before a feature is read
        views = stored(run, backbone, freeze, kind, fold)
        parts.append(Views(views, chosen["labels"], chosen["rows"], chosen["views"]))
        counts["n_real" if kind == sweep.REAL else "n_synthetic"] += len(parts[-1])
        if kind != sweep.REAL:
            drawn[kind] = chosen["drawn"]
    images = prepare.open_preprocessed(run).images
    outside = np.flatnonzero(images["fold"].to_numpy() == fold)
    resized = stored(run, backbone, freeze, sweep.REAL, name="resized")
    held_out = Views(resized, images["label"].to_numpy()[outside], outside)
    return {"parts": parts, "drawn": drawn, **counts, "held_out": held_out, "images": images.iloc[outside]}


def seed_of(run: Run, trial: dict[str, Any]) -> int:
    """Seed of a training: the same for every arm and rate of a fold, so that arms are compared in pairs."""
    return unit_seed(run.settings.seed, "sweep", int(trial["fold"]), int(trial["seed"]))


def refuse(run: Run) -> None:
    """Refuse, before any training, whatever the settings and the sets make impossible.

    Raises
    ------
    ValueError
        As in `composition`, for any fold, arm and rate of the grid; an unknown backbone or stage to freeze.
    """
    table = sweep.grid(run.settings)
    for backbone, freeze in table[["backbone", "freeze"]].drop_duplicates().itertuples(index=False):
        network(backbone, run.settings.sweep.weights, freeze)
    for trial in sweep.hardest(table).to_dict("records"):
        for _ in composition(run, trial):
            pass


# ---------------------------------------------------------------- training


Found = tuple[Any, pd.DataFrame, dict[str, Any]]


def train_seeds(run: Run, group: Sequence[dict[str, Any]]) -> list[Found | Exception]:
    """Train trials that differ in nothing but the seed: side by side on a GPU, one after another elsewhere.

    Returns
    -------
    list
        By trial its trained tail (torch.nn.Sequential), its scores (``image_id, patient_id, label, score`` of the
        held-out images) and its facts (what it was trained on, how long it took); or why it failed.

    Raises
    ------
    ValueError
        As in `composition`.
    """
    from nafld_utils import trial as training

    started = time.perf_counter()
    first, weights = group[0], run.settings.sweep.weights
    _, pretrained = network(first["backbone"], weights, first["freeze"])
    data = [training_set(run, trial) for trial in group]
    jobs = [
        (training.fresh_tail(pretrained, seed_of(run, trial)), one["parts"], seed_of(run, trial))
        for trial, one in zip(group, data, strict=True)
    ]
    device, decoder = engine.device(run.settings.engine), backbones.Decoder(first["backbone"])
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
        found.append((tail, scores, {**_facts(trial, one, losses), "device": str(device)}))
    seconds = round((time.perf_counter() - started) / len(group), 3)
    return [one if isinstance(one, Exception) else (*one[:2], {**one[2], "seconds": seconds}) for one in found]


def _facts(trial: dict[str, Any], data: dict[str, Any], losses: np.ndarray) -> dict[str, Any]:
    return {
        **{name: trial[name] for name in sweep.TRIAL_COLUMNS},
        "n_real": data["n_real"],
        "n_synthetic": data["n_synthetic"],
        "fatty_share": float(np.concatenate([part.labels for part in data["parts"]]).mean()),
        "first_loss": float(losses[:5].mean()),
        "last_loss": float(losses[-5:].mean()),
        "losses": [round(float(loss), 5) for loss in losses],
    }


def options_of(run: Run) -> Any:
    """How a tail is trained, `trial.Options`."""
    from nafld_utils.trial import Options

    chosen = run.settings.sweep
    return Options(chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.weight_decay, chosen.precision)


def _here(run: Run, decoder: Any, jobs: Sequence[tuple[Any, Any, int]]) -> list[Any]:
    from nafld_utils import trial as training

    results: list[Any] = []
    for tail, parts, seed in jobs:
        try:
            results.append(training.train_tail(tail, parts, options_of(run), seed, decoder))
        except Exception as error:
            results.append(error)
    return results


_TRAINERS: dict[tuple[Any, ...], list[Any]] = {}


def _on_gpu(run: Run, trial: dict[str, Any], decoder: Any, jobs: Sequence[tuple[Any, Any, int]]) -> list[Any]:
    """Train on trainers that stay for the next trials of the same network: recording a step costs seconds."""
    import copy

    from nafld_utils import trial_resident as resident

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
            ready.append(resident.Resident(tail, decoder, options_of(run), device, **how))
    except Exception as error:
        _TRAINERS.clear()
        return [error] * len(jobs)
    return resident.train_side_by_side(ready, [resident.Job(*job) for job in jobs])


def _explained(error: Exception, run: Run) -> Exception:
    """The error itself, or what to do where the device's memory was the cause."""
    if engine.lacked_memory(error):
        chosen, device = run.settings.sweep, engine.device(run.settings.engine)
        return NotEnoughMemoryError(
            f"{device}: a batch of {chosen.batch_size} with {chosen.at_once} trainings at once does not fit its memory;"
            " lower sweep.batch_size or sweep.at_once."
        )
    return error
