"""Classifiers of finished trainings, trained again where the sweep kept scores alone. Opens and writes files.

Contract: a training is a function of its settings; the largest difference between the scores of the first training and
of the second stands in the unit's manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, networks, params
from nafld_utils.artifacts import Run, Unit, load_weights, save_table, save_weights
from nafld_utils.sweep import comparisons, trial_store, verdict
from nafld_utils.sweep.prefix_features import computed, network
from nafld_utils.sweep.training_units import train
from nafld_utils.sweep.trial_units import store, trials

TAIL = "tail.safetensors"


def classifier_unit(run: Run, trial: dict[str, Any]) -> Unit:
    """Unit of the weights of a trial's classifier."""
    settings = {name: trial[name] for name in trial_store.TRIAL_COLUMNS}
    inputs, modules = [trial["hash"]], ["trial", "sweep"]
    return run.unit("shap", "classifier", trial["hash"], settings=settings, inputs=inputs, modules=modules)


def train_again(run: Run, trial: dict[str, Any]) -> Unit:
    """Train a trial of the sweep again, as it was, and keep its tail; does nothing when that is done."""
    unit = classifier_unit(run, trial)
    if unit.done():
        return unit
    stored, known = trial_store.read_trial(store(run), trial["hash"])
    engine.announce(f"training {trial['backbone']}, seed {trial['seed']} again, since the sweep kept its scores alone")
    tail, scores, facts = train(run, trial, quick=known.get("quick", False))
    paired = stored.merge(scores, on="image_id", validate="one_to_one", suffixes=("_stored", "_again"))
    paired["difference"] = (paired["score_stored"] - paired["score_again"]).abs()
    with unit.writing(device=facts["device"], largest_score_difference=float(paired["difference"].max())) as folder:
        save_tail(folder, tail)
        save_table(folder / "scores.csv", paired[["image_id", "score_stored", "score_again", "difference"]])
    return unit


def save_tail(folder: Path, tail: Any) -> None:
    """Keep the weights of a trained tail in a unit's folder, for `tail_weights`."""
    save_weights(folder / TAIL, {k: v.cpu().contiguous() for k, v in tail.state_dict().items()})


def tail_weights(unit: Unit) -> dict[str, Any]:
    """The weights that `save_tail` kept."""
    return load_weights(unit.require().file(TAIL))[0]


# ---------------------------------------------------------------- the folds' classifiers


def of_arm(run: Run, arm: str) -> list[dict[str, Any]]:
    """Trials of the first seed of every fold, trained in the declared comparison's way with one of its two arms."""
    table = trials(run)
    rate = 0.0 if arm == params.REAL else float(run.settings.sweep.primary_rate)
    cell = verdict.declared(run, table, arm=arm, rate=rate)
    found = table[comparisons.where(table, cell)]
    return found[found["seed"] == found["seed"].min()].sort_values("fold").to_dict("records")


def build_classifiers(run: Run, chosen: Sequence[dict[str, Any]]) -> int:
    """Train again what is missing of some trials, and return how many these were.

    Raises
    ------
    ValueError
        A training of them is not finished.
    """
    missing = [trial for trial in chosen if not classifier_unit(run, trial).done()]
    undone = [trial for trial in missing if not trial_store.is_done(store(run), trial["hash"])]
    if undone:
        first = ", ".join(f"{name} {undone[0][name]}" for name in trial_store.TRIAL_COLUMNS)
        raise ValueError(
            f"run {run.name!r}: expected {len(chosen)} finished trainings, one per fold, found {len(undone)} of them"
            f" missing (the first: {first}); run notebook 06 first."
        )
    tasks = [{"run": run, "trial": trial} for trial in missing]
    if tasks:
        engine.map_units(train_again, tasks, run.settings.engine, "classifiers", unit_of=classifier_unit)
    return len(missing)


def scores_of(run: Run, chosen: Sequence[dict[str, Any]], images: np.ndarray) -> np.ndarray:
    """Probability of class 1 of images ``(n, S, S)`` uint8 by each classifier, ``(len(chosen), n)`` float64 in [0, 1].

    All trials are of one network and way of training; what is computed is what the sweep computes of held-out images.
    """
    from nafld_utils.sweep import training

    name, freeze, device = chosen[0]["backbone"], chosen[0]["freeze"], engine.device(run.settings.engine)
    _, pretrained = network(name, run.settings.sweep.weights, freeze)
    images = computed(run, name, freeze, images)
    views, found = training.Views(images[:, None], np.zeros(len(images), np.int64)), []
    for trial in chosen:
        tail = training.fresh_tail(pretrained, 0)
        tail.load_state_dict(tail_weights(classifier_unit(run, trial)))
        found.append(training.predict(tail, views, networks.Decoder(name), device))
    return np.array(found)


def held_out_scores(run: Run, chosen: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Scores that the sweep keeps of some trials: ``image_id, patient_id, label, score, fold``."""
    parts = [trial_store.read_trial(store(run), trial["hash"])[0].assign(fold=trial["fold"]) for trial in chosen]
    return pd.concat(parts, ignore_index=True)
