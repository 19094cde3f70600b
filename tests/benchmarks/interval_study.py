"""Do the intervals keep their promise? Simulates cohorts and counts.

Each of 50 simulated cohorts of 55 patients goes through the study's protocol with frozen EfficientNet-Lite0 features
and a logistic regression: five folds by patient, scores out of fold, 95 % intervals by every method. Each fold's model
then scores 2,000 new simulated patients, and the mean of the folds' AUCs there is what an interval should hold. Choice:
two frames per patient, 128 px; about 20 minutes on two cores. Patients are simulated in blocks, units below
``artifacts/interval-study``; a run that was stopped goes on where it was. The result is stored in the package and
shown by notebook 06. Simulated patients say how the method behaves, and nothing about livers.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import records
import torch

from nafld_utils import artifacts, engine, networks, statistics, sweep
from nafld_utils.artifacts import Run, Unit, files
from nafld_utils.cohort import simulate
from nafld_utils.engine import workers
from nafld_utils.images import extract_crop, resize_box, whole_box
from nafld_utils.statistics import delong
from nafld_utils.sweep import frozen_classifiers, verdict

N_SPLITS = 5
FIRST_SEED = 20_000  # far from the seeds of cohorts that the shipped autoencoder and the profiles use
METHODS = ("patients, percentile", "patients, BCa", "patients, DeLong", "images as if independent, percentile")
STRENGTH = 0.01  # of the logistic regression, as in `frozen_classifiers.linear_scores`


@dataclass(frozen=True)
class Size:
    """How large a study is: cohorts, patients and frames of each, new patients, pixels per side."""

    cohorts: int = 50
    patients: int = 55
    frames: int = 2
    new_patients: int = 2000
    block: int = 50
    pixels: int = 128
    n_resamples: int = 2000


# ---------------------------------------------------------------- simulated patients as frozen features


def block_unit(run: Run, seed: int, n_patients: int, n_frames: int, pixels: int) -> Unit:
    """Unit of the features of simulated patients."""
    settings = {"seed": seed, "patients": n_patients, "frames": n_frames, "pixels": pixels}
    modules = ["phantom", "phantom_anatomy", "preprocess", "backbones"]
    name = f"seed{seed}_{n_patients}x{n_frames}"
    return run.unit("features", name, settings=settings, modules=modules)


def make_block(run: Run, seed: int, n_patients: int, n_frames: int, pixels: int) -> None:
    """Simulate patients and keep their features; does nothing when they are there."""
    unit = block_unit(run, seed, n_patients, n_frames, pixels)
    if unit.done():
        return
    cohort = simulate(n_patients, seed, n_frames)
    crops = [extract_crop(frame) for frame in cohort.pixels]
    images = np.stack([resize_box(crop, whole_box(crop), pixels) for crop in crops])
    name = "tf_efficientnet_lite0"
    features = networks.features(_network(name), images, name, engine.device(run.settings.engine))
    with unit.writing() as folder:
        files.save_array(folder / "features.npy", features)
        artifacts.save_table(folder / "images.csv", cohort.images[["image_id", "patient_id", "label"]])


@functools.lru_cache(maxsize=1)
def _network(name: str) -> Any:
    return networks.load(name)


def tasks(run: Run, size: Size) -> list[dict[str, Any]]:
    """One task per cohort, then one per block of new patients; together they hold ``new_patients``."""
    common = {"run": run, "pixels": size.pixels, "n_frames": size.frames}
    cohorts = [{**common, "seed": FIRST_SEED + i, "n_patients": size.patients} for i in range(size.cohorts)]
    starts = range(0, size.new_patients, size.block)
    new = [
        {**common, "seed": FIRST_SEED + 5000 + i, "n_patients": min(size.block, size.new_patients - at)}
        for i, at in enumerate(starts)
    ]
    return cohorts + new


def open_block(**task: Any) -> tuple[np.ndarray, pd.DataFrame]:
    """Features ``(N, d)`` of a block and its images' table."""
    unit = block_unit(**task)
    return unit.load_array("features.npy"), unit.load_table("images.csv")


# ---------------------------------------------------------------- one cohort


def intervals(label: np.ndarray, score: np.ndarray, patient: np.ndarray, n_resamples: int, seed: int) -> pd.DataFrame:
    """The interval of every method, ``method, level, auc, low, high``; DeLong's is of patients' mean scores."""
    whole = by_patient(label, score, patient)
    options = {"n_resamples": n_resamples, "seed": seed}
    found = [
        ("image", statistics.auc_interval(label, score, patient, **options)),
        ("image", statistics.auc_interval(label, score, patient, **options, method="bca")),
        ("patient", delong.interval(whole["label"], whole["score"])),
        ("image", statistics.auc_interval(label, score, np.arange(len(label)), **options)),
    ]
    rows = [(name, level, *interval) for name, (level, interval) in zip(METHODS, found, strict=True)]
    return pd.DataFrame(rows, columns=["method", "level", "auc", "low", "high"])


def by_patient(label: np.ndarray, score: np.ndarray, patient: np.ndarray) -> pd.DataFrame:
    """Mean ``label, score`` of each patient's images."""
    return pd.DataFrame({"label": label, "score": score, "patient": patient}).groupby("patient").mean()


def one_cohort(
    cohort: tuple[np.ndarray, pd.DataFrame], new: tuple[np.ndarray, pd.DataFrame], seed: int, n_resamples: int
) -> pd.DataFrame:
    """Intervals of one cohort beside the AUC of its trained models on new patients; no patient is in both.

    `cohort` and `new` are frozen features (N, d) and the table ``patient_id, label`` in the same order. Returns
    `intervals` with ``truth`` (mean over the folds' models of their AUC on the new patients, at the interval's level)
    and ``holds``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, images = cohort
    label, patient = images["label"].to_numpy(), images["patient_id"].to_numpy()
    new_label, new_patient = new[1]["label"].to_numpy(), new[1]["patient_id"].to_numpy()
    fold = frozen_classifiers.patient_folds(images, N_SPLITS, seed)
    score, truth = np.empty(len(label)), []
    for k in range(N_SPLITS):
        train = fold != k
        model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
        model.fit(features[train], label[train])
        score[~train] = model.predict_proba(features[~train])[:, 1]
        held = model.predict_proba(new[0])[:, 1]
        whole = by_patient(new_label, held, new_patient)
        truth.append((statistics.auc(new_label, held), statistics.auc(whole["label"], whole["score"])))
    level = dict(zip(("image", "patient"), np.mean(truth, axis=0), strict=True))
    table = intervals(label, score, patient, n_resamples, seed)
    table["truth"] = table["level"].map(level)
    return table.assign(holds=table["low"].le(table["truth"]) & table["high"].ge(table["truth"]))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Share of intervals that hold the truth, by method, as `sweep.stored` tells it.

    `table` is that of `one_cohort`, all cohorts, with a column ``cohort``.
    """
    from statsmodels.stats.proportion import proportion_confint

    rows = []
    for (method, level), part in table.groupby(["method", "level"], sort=False):
        n, held = len(part), int(part["holds"].sum())
        low, high = proportion_confint(held, n, method="wilson")
        row = {"method": method, "level": level, "cohorts": n, "holds": held / n, "holds_low": low, "holds_high": high}
        row |= {"below": int((part["high"] < part["truth"]).sum()), "above": int((part["low"] > part["truth"]).sum())}
        row |= {"mean_width": (part["high"] - part["low"]).mean(), "mean_auc": part["auc"].mean()}
        rows.append({**row, "mean_truth": part["truth"].mean()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the study and its stored result


def study(run: Run, size: Size) -> pd.DataFrame:
    """Simulate what is missing and return `summarise`'s table."""
    todo = tasks(run, size)
    engine.map_units(make_block, todo, run.settings.engine, "simulated patients", unit_of=block_unit)
    blocks = [open_block(**task) for task in todo]
    cohorts, rest = blocks[: size.cohorts], blocks[size.cohorts :]
    # a block numbers its patients from 1: told apart by the block
    names = [images.assign(patient_id=images["patient_id"] + 10_000 * i) for i, (_, images) in enumerate(rest)]
    new = np.concatenate([features for features, _ in rest]), pd.concat(names, ignore_index=True)
    found = [
        one_cohort(cohort, new, i, size.n_resamples).assign(cohort=i)
        for i, cohort in enumerate(engine.progress(cohorts, "cohorts", total=len(cohorts)))
    ]
    table = pd.concat(found, ignore_index=True)
    return summarise(table).assign(
        patients=size.patients, frames=size.frames, new_patients=new[1]["patient_id"].nunique(), pixels=size.pixels
    )


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Make the study, store its result, and yield its one row."""
    run = artifacts.open_run("demo", {"run": "interval-study", "engine.mode": options.mode})
    size, started = Size(**{field: getattr(options, field) for field in Size.__dataclass_fields__}), time.perf_counter()
    n_there = sum(block_unit(**task).done() for task in tasks(run, size))
    try:
        table = study(run, size)
    finally:
        workers.release_workers()  # at the interpreter's exit Dask's threads are gone, and closing waits for them
    options.result.parent.mkdir(parents=True, exist_ok=True)
    artifacts.save_table(options.result, table)
    print(sweep.report(options.result))
    per = f"{size.cohorts} cohorts of {size.patients} simulated patients, {size.new_patients} new ones"
    per += f"; {n_there} of {len(tasks(run, size))} blocks of patients were there already" if n_there else ""
    seconds = time.perf_counter() - started
    yield {"stage": "06", "what": "study of the intervals", "per": per, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="Share of intervals that hold the AUC on new simulated patients.")
    for name, value in Size().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--mode", choices=("serial", "local"), default="local")
    parser.add_argument(
        "--result", type=Path, default=verdict.STUDY, help="where it is stored; notebook 06 shows the default"
    )
    return records.run("interval_study", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
