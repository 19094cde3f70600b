"""Stage 05: the Frechet distance against the number of real patients, one unit per set. Opens and writes files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, sampling
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_table, unit_seed
from nafld_utils.quality import patient_curve
from nafld_utils.quality.metric_tables import BOTH
from nafld_utils.quality.metric_units import CEILINGS, REPEATED, class_part, labels_of, role_of

REVISION = ("stages.patients", 2)
HALVES = "halves_of_real"
OVER = "patients (delete-half jackknife); these synthetic sets"


def names(run: Run) -> dict[str, str]:
    """Sets that are measured, with their role: generators, ceilings, and real patients against other real patients."""
    judged = [*sampling.prefixed(run, CEILINGS), sampling.NOISE, REPEATED]
    roles = {name: role_of(name) for name in sampling.generators(run)}
    return {HALVES: "floor", **roles, **dict.fromkeys(judged, "ceiling")}


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per set."""
    return [{"run": run, "name": name} for name in names(run)]


@remembered
def unit_of(run: Run, name: str) -> Unit:
    """Unit of one set's distances."""
    kind, chosen = run.settings.quality.features, run.settings.quality
    inputs = [sampling.features_unit(run, kind, sampling.REAL)]
    if name not in (HALVES, REPEATED):
        inputs += [sampling.features_unit(run, kind, name, fold) for fold in ldm.folds_of(run)]
    settings = {"repeats": chosen.subset_repeats, "halves": chosen.half_samples, "seed": run.settings.seed}
    settings |= {"class_names": run.settings.cohort.class_names}
    modules = ["small_samples", "quality", "stages.patients"]
    return run.unit("quality", "patients", name, settings=settings, inputs=inputs, modules=modules)


def make(run: Run, name: str) -> None:
    """Measure one set against all real patients; does nothing when the unit is done.

    Writes ``table.csv`` (one row per class, see `patient_curve.measure`) and ``curve.csv``. The reference is pooled:
    every patient, from the fold that holds them out, one crop per image; the set is that of all folds together. A
    patient held out of one fold's model has trained the others', so copies bring this distance down; the copy audit
    tells whether there are any.
    """
    unit = unit_of(run, name)
    if unit.done():
        return
    kind, chosen = run.settings.quality.features, run.settings.quality
    real, patients, label = _reference(run, kind)
    made, drawn = _pooled(run, kind, name) if name not in (HALVES, REPEATED) else (real[:0], None)
    # Choice: half of the smaller class, so that as many other real patients are left for the floor.
    n_equal = max(patient_curve.LEAST, min(len(np.unique(patients[label == value])) for value in (0, 1)) // 2)
    rows, curves = [], []
    for value, group in [*enumerate(run.settings.cohort.class_names), (None, BOTH)]:
        rng = np.random.default_rng(unit_seed(run.settings.seed, "patients", name, group))
        mine = np.ones(len(label), bool) if value is None else label == value
        args = real[mine], patients[mine], label[mine]
        facts = {"model": name, "role": names(run)[name], "class": group}
        if name == HALVES:
            found = patient_curve.halves_of_real(*args, n_equal, rng, repeats=chosen.subset_repeats)
            rows.append({**facts, **found})
            continue
        some = made if value is None or drawn is None else made[drawn == value]
        if name == REPEATED:
            some = args[0][[networks.typical(args[0])] * len(args[0])]
        halves = 0 if facts["role"] == "ceiling" else chosen.half_samples
        if len(some) < 2 * patient_curve.LEAST:
            rows.append({**facts, "n_images": len(some), "note": "too few images of this class"})
            continue
        row, curve = patient_curve.measure(some, *args, n_equal, rng, chosen.subset_repeats, halves)
        rows.append({**facts, **row})
        curves.append(curve.assign(model=name, **{"class": group}))
    with unit.writing() as folder:
        save_table(folder / "table.csv", pd.DataFrame(rows))
        empty = pd.DataFrame(columns=["n_patients", "value", "subsets", "sd", "model", "class"])
        save_table(folder / "curve.csv", pd.concat(curves, ignore_index=True) if curves else empty)


def _reference(run: Run, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the first stored crop of every image of the folds in use, their patients and labels."""
    found, _ = sampling.load_features(run, kind, sampling.REAL)
    table = sampling.real_table(run)
    first = ~table["image_id"].duplicated().to_numpy() & table["fold"].isin(ldm.folds_of(run)).to_numpy()
    return found[first], table["patient_id"].to_numpy()[first], table["label"].to_numpy()[first]


def _pooled(run: Run, kind: str, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of a set of all folds, and its labels where it has any."""
    folds = ldm.folds_of(run)
    found = np.concatenate([sampling.load_features(run, kind, name, fold)[0] for fold in folds])
    labels = [labels_of(run, name, fold) for fold in folds]
    return found, None if labels[0] is None else np.concatenate(labels)


def build_patient_curves(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows and all curves, made where they are missing."""
    engine.map_units(make, tasks(run), run.settings.engine, "distance against patients", unit_of=unit_of)
    return load(run)


def load(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``model, role, class, value, equal, infinite, ...`` of every set, and the curves behind them."""
    found = [unit_of(**task).require() for task in tasks(run)]
    rows = pd.concat([unit.load_table("table.csv") for unit in found], ignore_index=True)
    curves = [table for table in (unit.load_table("curve.csv") for unit in found) if len(table)]
    return rows, pd.concat(curves, ignore_index=True)


def units(run: Run) -> list[Unit]:
    """Every unit of this part."""
    return [unit_of(**task) for task in tasks(run)]


def with_intervals(rows: pd.DataFrame, statistic: str = "equal") -> pd.DataFrame:
    """Rows as `figures.bars` and claims read them: ``model, role, class, mean, low, high, over, n``."""
    columns = {statistic: "mean", f"{statistic}_low": "low", f"{statistic}_high": "high", "n_patients": "n"}
    table = rows.reindex(columns=["model", "role", "class", *columns, "n_equal"]).rename(columns=columns)
    return table.assign(over=OVER)


def claims(run: Run, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Distances at equal numbers of patients and extrapolated, generators and the floor."""
    metric = networks.FEATURES[run.settings.quality.features].metrics["frechet"]
    out = []
    for statistic, words in (("equal", "at {n} patients"), ("infinite", "extrapolated to infinitely many patients")):
        for row in with_intervals(rows, statistic).to_dict("records"):
            if row["role"] != "ceiling" and np.isfinite(row["mean"]):
                n = int(row["n_equal"]) if np.isfinite(row["n_equal"]) else 0
                parts = (row["model"], class_part(run, row["class"]), f"at_{n}" if statistic == "equal" else "infinite")
                text = f"{metric}, {row['model']}, {row['class']}, {words.format(n=n)}"
                out.append(of_row(key_of("patients.frechet", *parts), text, row))
    return out
