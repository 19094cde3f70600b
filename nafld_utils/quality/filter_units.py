"""Stage 05, the quality filter: the best images of one generator, a set of its own. Opens and writes files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, sampling, statistics
from nafld_utils.artifacts import Run, Unit, over_folds, remembered, save_table
from nafld_utils.quality import copy_units, filter, precision_recall
from nafld_utils.sampling import Synthetic

REVISION = ("stages.filtering", 1)
NAME = "filtered"


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per fold."""
    return [{"run": run, "fold": fold} for fold in ldm.folds_of(run)]


@remembered
def unit_of(run: Run, fold: int) -> Unit:
    """Unit of a fold's choice."""
    chosen = run.settings.quality
    kind, generator = chosen.features, run.settings.filtered_generator
    settings = {"keep": chosen.filter_keep, "kind": kind, "neighbours": chosen.neighbours}
    inputs = [set_unit(run, generator, fold), copy_units.audit_unit(run, generator, fold)]
    inputs += [sampling.features_unit(run, kind, generator, fold), sampling.features_unit(run, kind, sampling.REAL)]
    modules = ["quality_filter", "manifolds", "condition_checks", "stages.filtering"]
    return run.unit(NAME, generator, f"fold{fold}", settings=settings, inputs=inputs, modules=modules)


def make(run: Run, fold: int) -> None:
    """Score a fold's images and choose.

    Realism and class agreement are measured against the fold's training patients alone, as the copy audit is: no
    held-out patient has a say in what a classifier will be trained on.
    """
    unit = unit_of(run, fold)
    kind, generator = run.settings.quality.features, run.settings.filtered_generator
    drawn, table = sampling.drawn_table(run, generator, fold), sampling.real_table(run)
    training = (table["fold"] != fold).to_numpy()
    real, patients = sampling.load_features(run, kind, sampling.REAL)[0][training], table["patient_id"][training]
    made, _ = sampling.load_features(run, kind, generator, fold)
    fatty = sampling.condition_separation(real, table["label"][training], made)
    scores = drawn.assign(
        realism=precision_recall.realism(made, real, patients, run.settings.quality.neighbours),
        agreement=np.where(drawn["label"] == 1, fatty, 1.0 - fatty),
        copy=copy_units.withheld(run, generator, fold),
    )
    with unit.writing() as folder:
        save_table(folder / "table.csv", filter.choose(scores, run.settings.quality.filter_keep))


def choose_images(run: Run) -> pd.DataFrame:
    """The choice of every fold, made where it is missing: `filter.choose`'s rows."""
    engine.map_units(make, tasks(run), run.settings.engine, "quality filter", unit_of=unit_of)
    return pd.concat([unit_of(**task).load_table("table.csv") for task in tasks(run)], ignore_index=True)


def units(run: Run) -> list[Unit]:
    """Every unit of the filter."""
    return [unit_of(**task) for task in tasks(run)]


# ---------------------------------------------------------------- sets by name, for the sweep


def set_unit(run: Run, name: str, fold: int) -> Unit:
    """Unit of a set that a classifier may be trained on: a generator's, or the filtered one."""
    return unit_of(run, fold) if name == NAME else sampling.synthetic_unit(**sampling.task_of(run, name, fold))


def open_set(run: Run, name: str, fold: int) -> Synthetic:
    """Open a set by name, ``filtered`` or a generator's.

    Raises
    ------
    ValueError
        As `sampling.open_synthetic`; or the filter has not been run, or has kept no image.
    """
    if name != NAME:
        return sampling.open_set(run, name, fold)
    drawn = sampling.open_set(run, run.settings.filtered_generator, fold)
    unit = unit_of(run, fold).require()
    kept = np.flatnonzero(unit.load_table("table.csv")["kept"])
    if not len(kept):
        raise ValueError(f"{unit.path}: expected images that the filter kept, found none; raise quality.filter_keep.")
    return Synthetic(drawn.images[kept], drawn.table.iloc[kept].reset_index(drop=True), None, unit, drawn.split)


def kept_against_rest(scores: pd.DataFrame) -> pd.DataFrame:
    """How the images that the filter keeps differ from the rest.

    Parameters
    ----------
    scores : pandas.DataFrame
        Of `quality.choose_images`.

    Returns
    -------
    pandas.DataFrame
        ``label, kept, realism, agreement, copy`` (means), ``images``.
    """
    grouped = scores.groupby(["label", "kept"])
    table = grouped[["realism", "agreement", "copy"]].mean()
    return table.assign(images=grouped.size()).reset_index()


def claims(run: Run, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """What the filter keeps; the paper only suggests one."""
    kept = scores.groupby("fold")["kept"].mean()
    text = f"share of {run.settings.filtered_generator} images that the filter keeps"
    return [over_folds("filter.kept", text, kept, "share of images", statistics.SHARE)]
