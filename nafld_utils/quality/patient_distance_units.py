"""Stage 05: distances of each set to the real patients of all folds, one unit per set. Opens and writes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, sampling
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_table, unit_seed
from nafld_utils.params import listed
from nafld_utils.quality import patient_distances
from nafld_utils.quality.figures import WORDS, short
from nafld_utils.quality.metric_tables import BOTH, FeatureSet
from nafld_utils.quality.metric_units import CEILINGS, REPEATED, class_part, labels_of, role_of

REVISION = ("stages.patients", 3)
HALVES = "halves_of_real"
# What the interval of each distance is over.
OVER = {
    "equal": "patients (delete-half jackknife); these synthetic sets",
    "kernel": "patients, by jackknife; these trained models",
}


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
    """Measure one set against all real patients.

    Writes ``table.csv``, one row per class, see `patient_distances.measure` and `kernel_over_patients`. The reference
    is pooled: every patient, from the fold that holds them out, one crop per image. The set is that of all folds.
    A patient held out of one fold's model has trained the others', so copies bring these distances down; the copy audit
    tells whether there are any.
    """
    unit = unit_of(run, name)
    chosen, role = run.settings.quality, names(run)[name]
    reference, made = _reference(run), None if name in (HALVES, REPEATED) else _pooled(run, name)
    # Choice: half of the smaller class, so that as many other real patients are left for the floor; at least `LEAST`.
    n_patients = [len(np.unique(reference.patients[reference.rows(label)])) for label in (0, 1)]
    n_equal = max(patient_distances.LEAST, min(n_patients) // 2)
    rows = []
    for label, group in [*enumerate(run.settings.cohort.class_names), (None, BOTH)]:
        rng = np.random.default_rng(unit_seed(run.settings.seed, "patients", name, group))
        real = reference.at(reference.rows(label))
        args = real.features, real.patients, real.labels, n_equal, rng
        facts = {"model": name, "role": role, "class": group}
        if name == HALVES:
            rows.append({**facts, **patient_distances.halves_of_real(*args)})
            continue
        some = _repeated(real) if made is None else made.at(made.rows(label))
        if len(some.features) < 2 * patient_distances.LEAST:
            rows.append({**facts, "n_images": len(some.features), "note": "too few images of this class"})
            continue
        halves = 0 if role == "ceiling" else chosen.half_samples
        row = patient_distances.measure(some.features, *args, chosen.subset_repeats, halves)
        kernel = patient_distances.kernel_over_patients(some.features, real.features, some.patients, real.patients)
        rows.append({**facts, **row, **kernel})
    with unit.writing() as folder:
        save_table(folder / "table.csv", pd.DataFrame(rows))


def _reference(run: Run) -> FeatureSet:
    """The first stored crop of every real image of the folds in use."""
    found, table = sampling.load_features(run, run.settings.quality.features, sampling.REAL), sampling.real_table(run)
    rows = np.flatnonzero(~table["image_id"].duplicated() & table["fold"].isin(ldm.folds_of(run)))
    labels, patients = table["label"].to_numpy(), table["patient_id"].to_numpy()
    return FeatureSet(sampling.REAL, "reference", *found, labels, patients=patients).at(rows)


def _repeated(real: FeatureSet) -> FeatureSet:
    """One typical real image, as often as there are real images; none of them is of a patient."""
    n = len(real.features)
    return replace(real.at(np.full(n, networks.typical(real.features))), patients=-1 - np.arange(n))


def _pooled(run: Run, name: str) -> FeatureSet:
    """A set of all folds together, each image with the patient of its map or a number of its own."""
    kind, folds = run.settings.quality.features, ldm.folds_of(run)
    found = [
        np.concatenate(part) for part in zip(*(sampling.load_features(run, kind, name, k) for k in folds), strict=True)
    ]
    labels = [labels_of(run, name, fold) for fold in folds]
    labels = None if labels[0] is None else np.concatenate(labels)
    patients = -1 - np.arange(len(found[0]))
    if labels is not None:
        source = np.concatenate([sampling.patients_of(sampling.drawn_table(run, name, fold)) for fold in folds])
        patients = np.where(source >= 0, source, patients)
    return FeatureSet(name, "", *found, labels, patients=patients)


def build_patient_distances(run: Run) -> pd.DataFrame:
    """Rows of all sets, made where they are missing: ``model, role, class, value, equal, kernel, ...``."""
    engine.map_units(make, tasks(run), run.settings.engine, "distances over patients", unit_of=unit_of)
    return pd.concat([unit.require().load_table("table.csv") for unit in units(run)], ignore_index=True)


def units(run: Run) -> list[Unit]:
    """Every unit of this part."""
    return [unit_of(**task) for task in tasks(run)]


def with_intervals(rows: pd.DataFrame, statistic: str = "equal") -> pd.DataFrame:
    """Distances over patients as `figures.bars` and claims read them.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of `quality.build_patient_distances`.
    statistic : {"equal", "kernel"}
        Frechet distance at equal numbers of patients, or kernel distance.

    Returns
    -------
    pandas.DataFrame
        ``model, role, class, mean, low, high, over, n``.
    """
    columns = {statistic: "mean", f"{statistic}_low": "low", f"{statistic}_high": "high", "n_patients": "n"}
    table = rows.reindex(columns=["model", "role", "class", *columns, "n_equal"]).rename(columns=columns)
    why = np.where(
        table["role"] == "floor", "no interval: none is made for this floor", "no interval: too few patients"
    )
    return table.assign(over=np.where(table["low"].notna(), OVER[statistic], why))


def reading(rows: pd.DataFrame, frechet: str, kernel: str, untrained: Sequence[str] = ()) -> list[str]:
    """What both distances, called `frechet` and `kernel`, say of the generators, both classes together, in sentences.

    The first holds them against other real patients, those apart that are not trained enough to compare.
    """
    lines = []
    table = _generators(rows, "equal")
    floor = table[table["role"] == "floor"]
    if not floor.empty:
        limit, n = floor["mean"].iloc[0], int(floor["n_equal"].iloc[0])
        sides = _sides(table[~table["model"].isin(untrained)], limit, ("farther", "not told apart", "no interval"))
        lines.append(
            f"{frechet} to real patients at {n} patients, 95 % over patients: other real patients {short(limit)}"
        )
        lines[0] += f"; {sides}." if sides else "."
    table, says = _generators(rows, "kernel"), "the interval lies above 0, so these differ from images of new patients"
    words = (says, "it does not lie above 0, so no difference is shown", "too few patients for an interval")
    if sides := _sides(table, 0.0, words):
        over = f"95 % over {OVER['kernel']}; images alike give 0 on average"
        lines.append(f"{kernel} to real patients ({over}); {sides}.")
    return lines


def _generators(rows: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """Generators and the floor, both classes together, where there is a distance."""
    table = with_intervals(rows, statistic)
    return table[(table["class"] == BOTH) & (table["role"] != "ceiling")].dropna(subset="mean")


def _sides(table: pd.DataFrame, limit: float, words: Sequence[str]) -> str:
    """Generators with their distances, by whether the interval lies above a limit, holds it, or is none, in `words`."""
    found: dict[str, list[str]] = {word: [] for word in words}
    for row in table[table["role"] != "floor"].to_dict("records"):
        bounded = np.isfinite(row["low"])
        bounds = f" [{short(row['low'])}, {short(row['high'])}]" if bounded else ""
        side = words[0 if row["low"] > limit else 1 if bounded else 2]
        found[side].append(f"{WORDS.get(row['model'], row['model'])} {short(row['mean'])}{bounds}")
    return "; ".join(f"{side}: {listed(parts)}" for side, parts in found.items() if parts)


def claims(run: Run, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Frechet distances at equal numbers of patients, of generators and the floor, and kernel distances."""
    metrics, out = networks.FEATURES[run.settings.quality.features].metrics, []
    for statistic, metric in (("equal", "frechet"), ("kernel", "kernel")):
        for row in with_intervals(rows, statistic).to_dict("records"):
            if row["role"] != "ceiling" and np.isfinite(row["mean"]):
                n = int(row["n_equal"])
                parts, where = [row["model"], class_part(run, row["class"])], ""
                if statistic == "equal":
                    parts, where = [*parts, f"at_{n}"], f", at {n} patients"
                text = f"{metrics[metric]}, {WORDS.get(row['model'], row['model'])}, {row['class']}{where}"
                out.append(of_row(key_of(f"patients.{metric}", *parts), text, row))
    return out
