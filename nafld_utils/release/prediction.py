"""Scores of a folder of images by the classifiers of a run's declared arm, and, where it has labels, how good they are.

Contract: nothing is fitted, chosen or scaled on these images. The tables hold the user's own names of patients, and
therefore lie beside the run's artifacts, not among its reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nafld_utils import artifacts, engine, sweep
from nafld_utils.artifacts import Run

FOLDER = "predicted"


class Predicted(NamedTuple):
    """Where the tables lie, and what they hold.

    ``patients`` as `sweep.patients` with the user's names in ``patient`` and class names in ``label`` (empty where the
    folder has none); ``measures`` as `sweep.measured` and ``reliability`` as `sweep.reliability`, None without labels;
    ``facts`` of the cohort.
    """

    folder: Path
    patients: pd.DataFrame
    measures: pd.DataFrame | None
    reliability: pd.DataFrame | None
    facts: dict[str, object]


def write_prediction(run: Run, data: str) -> Predicted:
    """Score the cohort at `data`, a folder of images with a table or a .mat file, and write its tables.

    Writes ``patients.csv`` and, where the table has labels, ``measures.csv`` and ``calibration.csv`` into
    ``artifacts/<run>/predicted/<digest>``. ValueError as `sweep.score`, and where `data` is no such place.
    """
    path, chosen = Path(data).expanduser(), run.settings.sweep
    if not data or not path.exists():
        found = f"nothing at {data}" if data else "no path"
        raise ValueError(f"DATA: expected a folder of images or a .mat file to score, found {found}; correct the path.")
    engine.use_threads(run.settings.engine.threads)
    unit = sweep.score(run, path.absolute())
    scores = unit.load_table("scores.parquet")
    names, table = _names(unit.file("sources.csv")), sweep.patients(scores, sweep.DECLARED)
    table.insert(0, "patient", table["patient_id"].map(names) if names else table["patient_id"])
    labelled = bool((table["label"] >= 0).all())
    classes = dict(enumerate(run.settings.cohort.class_names))
    folder, measures, reliability = run.root / FOLDER / unit.path.name, None, None
    shown = table.drop(columns="patient_id").assign(label=table["label"].map(classes).fillna(""))
    artifacts.save_table(folder / "patients.csv", shown)
    if labelled:
        options = {"n_resamples": chosen.n_resamples, "seed": run.settings.seed}
        measures = sweep.measured(scores, sweep.DECLARED, chosen.interval_method, options)
        reliability = sweep.reliability(run, scores, sweep.DECLARED)
        artifacts.save_table(folder / "measures.csv", measures)
        artifacts.save_table(folder / "calibration.csv", reliability)
    return Predicted(folder, shown, measures, reliability, artifacts.load_record(unit.file("facts.json")) or {})


def _names(sources: Path) -> dict[int, str]:
    """The user's name of each patient; empty for a .mat file, whose ids are the user's own."""
    if not sources.is_file():
        return {}
    table = pd.read_csv(sources, dtype=str, keep_default_na=False)
    return dict(zip(table["patient_id"].astype(int), table["patient"], strict=True))
