"""Stage 06, the trials of the grid: their hashes, what each is made of, and what is refused. Opens units.

Contract: whatever can be refused is refused before a training starts. A training is a function of its row of the grid
and of `recipe`. What a training reads is `nafld_utils.sweep.prefix_features`'.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, params, preprocessing, quality, sampling
from nafld_utils.artifacts import Run, remembered, revision, unit_seed
from nafld_utils.sweep import draws, trial_grid, trial_store
from nafld_utils.sweep.prefix_features import identity, kinds_of, network, read_unit, stored

REVISION = ("stages.sweep_trials", 2)

# Modules that decide what a training is made of and how it runs, on a CPU or a GPU.
MODULES = (
    *("arms", "backbones", "trial", "trial_draws", "trial_resident", "sweep"),
    *("stages.sweep_features", "stages.sweep_trials"),
)


def require_capacity(run: Run) -> None:
    """Refuse, before any model is trained, a run that will draw fewer images than its classifiers take.

    Raises
    ------
    ValueError
        As `trial_grid.check_capacity`, `preprocessing.make_folds`, `sampling.require_liver` and `sweep.grid`; or the
        cohort is not stored.
    """
    sampling.require_liver(run)
    trial_grid.check_capacity(preprocessing.folded_images(run), run.settings)


def store(run: Run) -> Path:
    """Folder of the finished trials."""
    return run.root / "sweep"


@remembered
def trials(run: Run) -> pd.DataFrame:
    """The grid with each trial's hash: `sweep.TRIAL_COLUMNS` and ``hash``; nobody writes into it."""
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
    names = ["steps", "batch_size", "learning_rate", "weight_decay", "crops"]
    names += ["pretrain_share"] * params.parse(trial["arm"]).first
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
    return chosen if engine.gpus() else "fp32"


def refuse(run: Run, todo: pd.DataFrame) -> None:
    """Refuse, before any training, whatever the settings and the sets make impossible.

    Raises
    ------
    ValueError
        As in `composition`, for any fold, arm and rate of the grid; an unknown backbone or stage to freeze of `todo`,
        the trials that are to be trained.
    """
    for backbone, freeze in todo[["backbone", "freeze"]].drop_duplicates().itertuples(index=False):
        network(backbone, run.settings.sweep.weights, freeze)
    for trial in trial_grid.hardest(trials(run)).to_dict("records"):
        for _ in composition(run, trial):
            pass


# ---------------------------------------------------------------- what a training is made of


def composition(run: Run, trial: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sets that a training is made of, which of their images and views, and their labels; no pixel is read.

    Yields the set's name (``real``, ``traditional``, ``trivial`` or a generator) and ``labels, rows, views`` of
    `sweep.Views` with ``drawn``, rows of the set (of the flattened pool of changed crops). ValueError for a patient on
    both sides; one class among the training images; a synthetic set of another fold or split; a rate above the set's
    size.
    """
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
        available = _available(run, data, kind, fold, training)
        if arm.matched:
            drawn = draws.draw_matched(label[rows], trial["rate"], available, seed, part)
        else:
            drawn = draws.draw_synthetic(len(rows), trial["rate"], len(available), seed, part)
        chosen = {"labels": available[drawn], "rows": drawn, "views": None, "drawn": drawn}
        if kind in params.AUGMENTED:
            chosen |= {"rows": training[drawn // n_views], "views": drawn % n_views}
        yield kind, chosen


def _available(run: Run, data: preprocessing.Preprocessed, kind: str, fold: int, rows: np.ndarray) -> np.ndarray:
    """Labels of all images that a generator can add to a fold's training images `rows`."""
    if kind in params.AUGMENTED:
        return np.repeat(data.images["label"].to_numpy()[rows], data.pool.shape[1])
    made = quality.open_set(run, kind, fold)
    trial_grid.check_fold(data.images, fold, made.table, made.split)
    return made.table["label"].to_numpy()


def training_set(run: Run, trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial is trained and judged on, after every refusal that can come before training (`composition`).

    Parameters
    ----------
    run : Run
    trial : dict
        A row of the grid.

    Returns
    -------
    dict
        ``parts`` (list of `sweep.Views`: the real images, unless the arm is without them, and each set added),
        ``drawn`` (by generator: rows of its set), ``n_real, n_synthetic``, ``held_out`` (`sweep.Views`), ``images``
        (table of the held-out images)
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


def options_of(run: Run, arm: str = params.REAL) -> Any:
    """How a tail is trained in an arm, `sweep.Options`."""
    from nafld_utils.sweep.training import Options

    chosen = run.settings.sweep
    how = chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.weight_decay, chosen.precision
    return Options(*how, first=round(chosen.pretrain_share * chosen.steps) if params.parse(arm).first else 0)
