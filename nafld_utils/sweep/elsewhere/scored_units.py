"""Images of another cohort, scored by the run's classifiers, and the locked test of ``cohort.external``. Opens and
writes files.

Contract: frames go through the run's own region, crop and resize; nothing is fitted, chosen or scaled on them. Images
that the run was made of are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import artifacts, cohort, engine, images, params, preprocessing, statistics
from nafld_utils.artifacts import Run, Unit, claim, digest, key_of, load_record, of_row, save_json, save_table
from nafld_utils.images import texture_features
from nafld_utils.sweep import clinical_measures, frozen_classifier_units, frozen_classifiers
from nafld_utils.sweep.elsewhere import classifier_units, measures
from nafld_utils.sweep.elsewhere.measures import DECLARED

REVISION = ("elsewhere_scores", 1)
FOLDER, BASELINE = "elsewhere", "baseline"
LOCKED = (params.REAL, DECLARED, BASELINE)  # scorers of the locked test
# Baselines that read a crop alone, and so any cohort's; the others need tissue masks, or say how images were made.
PORTABLE = (
    *(frozen_classifiers.FEATURES_SVM, frozen_classifiers.FEATURES_LOGISTIC),
    *(frozen_classifiers.GLCM_SVM, frozen_classifiers.HALVES),
)
_FACTS, _SCORES, _SOURCES = "facts.json", "scores.parquet", "sources.csv"


class Elsewhere(NamedTuple):
    """The locked test on another cohort.

    ``table`` is `measures.compared` with ``words`` for each scorer; ``measures`` is `measures.measured` of the networks
    with ``scorer``; ``gain`` is `measures.gain`; ``reliability`` is `clinical_measures.calibration_bins` of the
    networks with ``arm, rate, over``; ``facts`` say of the cohort its ``text``, ``simulated``, ``counts`` (patients of
    class 0 and 1), and ``again``, how many classifiers were trained again.
    """

    table: pd.DataFrame
    measures: pd.DataFrame
    gain: dict[str, Any]
    reliability: pd.DataFrame
    facts: dict[str, Any]


# ---------------------------------------------------------------- scores


def scored_unit(run: Run, path: Path, scorers: tuple[str, ...]) -> Unit:
    """Unit of the scores of a cohort at `path` (a folder of images or a .mat file) by some scorers."""
    content, s = cohort.content_of(path), run.settings
    settings = {"scorers": list(scorers), "fit": preprocessing.fits(run), "classes": s.cohort.class_names}
    settings |= {"fat_threshold": s.cohort.fat_threshold, "leave_out": s.cohort.leave_out}
    units: list[Any] = [preprocessing.preprocess_unit(run)]
    units += [classifier_units.classifier_unit(run, trial) for trial in _trials(run, scorers)]
    units += [frozen_classifier_units.scores_unit(run)] if BASELINE in scorers else []
    modules = ["elsewhere_scores", "baselines", "trial", "cohort", "cohort_folder", "cohort_table", "image_files"]
    name = digest([content, scorers])[:16]
    return run.unit(FOLDER, name, settings=settings, inputs=[content, *units], modules=modules)


def _trials(run: Run, scorers: tuple[str, ...]) -> list[dict[str, Any]]:
    names = {params.REAL: params.REAL, DECLARED: run.settings.sweep.primary_arm}
    return [trial for name in scorers if name in names for trial in classifier_units.of_arm(run, names[name])]


def score(run: Run, path: Path, scorers: tuple[str, ...] = (DECLARED,), labelled: bool = False) -> Unit:
    """Score a cohort's images, unless that is done, with the classifiers trained again where they are missing.

    Writes ``scores.parquet`` (`measures`: a row per image and classifier, label -1 where the table has none),
    ``facts.json`` and, of a folder, ``sources.csv``: the user's own names of patients and files.

    Raises
    ------
    ValueError
        The cohort cannot be read, or lacks labels where it must be `labelled`; an image has no region; images are the
        run's own; a training is not finished.
    """
    unit = scored_unit(run, path, scorers)
    if unit.done():
        return unit
    chosen, found = run.settings.cohort, cohort.one_person.People.of(run.settings.cohort)
    people = found._replace(join=None, labelled=labelled)  # whose names are this cohort's own
    found = cohort.load(path, chosen.class_names, chosen.fat_threshold, people=people)
    _refuse_own(run, found, path)
    crops, seen = _seen(run, found)
    trials = {name: _trials(run, (name,)) for name in scorers if name != BASELINE}
    again = classifier_units.build_classifiers(run, [trial for group in trials.values() for trial in group])
    parts = {name: classifier_units.scores_of(run, group, seen) for name, group in trials.items()}
    folds = {name: [trial["fold"] for trial in group] for name, group in trials.items()}
    if BASELINE in scorers:
        name = strongest(frozen_classifier_units.build_baselines(run)["auc"])
        parts[name] = _baseline_scores(run, name, crops)
        folds[name] = list(range(len(parts[name])))
    facts = found.images[["image_id", "patient_id", "label"]]
    rows = [
        facts.assign(scorer=name, fold=fold, score=one)
        for name, scores in parts.items()
        for fold, one in zip(folds[name], scores, strict=True)
    ]
    counts = [int((found.patients["label"] == label).sum()) for label in (0, 1)]
    said = {"text": found.provenance["text"], "simulated": found.provenance["kind"] == "simulated", "counts": counts}
    with unit.writing() as folder:
        save_table(folder / _SCORES, pd.concat(rows, ignore_index=True))
        save_json(folder / _FACTS, {**said, "images": len(facts), "patients": len(found.patients), "again": again})
        if found.sources is not None:
            whose = found.images[["image_id", "patient_id"]]
            save_table(folder / _SOURCES, found.sources.merge(whose, on="image_id", validate="one_to_one"))
    return unit


def _refuse_own(run: Run, found: cohort.Cohort, path: Path) -> None:
    own = preprocessing.open_preprocessed(run).images["sha256"]
    shared = found.images[found.images["sha256"].isin(own)]
    if len(shared):
        raise ValueError(
            f"{path}: expected images of another cohort, found {len(shared)} of this run's own; its classifiers were"
            " trained on them, notebook 06 has their held-out scores."
        )


def _seen(run: Run, found: cohort.Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Crops (n, C, C) and what the classifiers see (n, S, S), uint8, of every frame of another cohort."""
    crops, seen = [], []
    names = found.images["image_id"] if found.sources is None else found.sources["file"]
    for name, frame in zip(names, engine.progress(images.stream(found.pixels), "preparing", len(names)), strict=True):
        try:
            crop, resized = preprocessing.as_held_out(run, frame)
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).removeprefix('frame: ')}") from None
        crops.append(crop)
        seen.append(resized)
    return np.stack(crops), np.stack(seen)


# ---------------------------------------------------------------- the strongest baseline


def strongest(table: pd.DataFrame) -> str:
    """The baseline of `PORTABLE` with the highest AUC by patient in the run's folds, from ``build_baselines``' AUCs."""
    rows = table[(table["level"] == "patient") & (table["split"] == frozen_classifiers.IN_FOLDS)]
    rows = rows[rows["baseline"].isin(PORTABLE)]
    return str(rows.loc[rows["auc"].idxmax(), "baseline"])


def _baseline_scores(run: Run, name: str, crops: np.ndarray) -> np.ndarray:
    """Scores (folds, n) of another cohort's crops by a baseline fitted on each fold's training patients."""
    if name == frozen_classifiers.HALVES:
        return frozen_classifiers.half_ratio(crops)[None]
    known, learn = frozen_classifier_units.open_learners(run)[name]
    texture = name == frozen_classifiers.GLCM_SVM
    new = texture_features(crops) if texture else frozen_classifier_units.frozen_features(run, crops)
    table = preprocessing.open_preprocessed(run).images
    return fitted_elsewhere(learn, known, table["label"].to_numpy(), table["fold"].to_numpy(), new)


def fitted_elsewhere(
    learn: Callable[..., np.ndarray], known: np.ndarray, label: np.ndarray, fold: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """Scores (folds, m) of `new` features (m, d) by a learner that each fold's training rows of `known` (n, d) fit."""
    found = []
    for k in np.unique(fold):
        rows = fold != k
        given = np.concatenate([known[rows], new]), np.concatenate([label[rows], np.zeros(len(new), label.dtype)])
        sides = np.repeat([-1, 0], [rows.sum(), len(new)])  # trained on, scored
        found.append(learn(*given, sides)[rows.sum() :])
    return np.array(found)


# ---------------------------------------------------------------- the locked test


def external_path(run: Run) -> Path | None:
    """Where ``cohort.external`` lies, relative to the work folder; None where no other cohort is named.

    ValueError where nothing lies there.
    """
    named = run.settings.cohort.external
    path = artifacts.work_root() / Path(named).expanduser() if named else None
    if path is not None and not path.exists():
        raise ValueError(f"cohort.external: expected a folder or .mat file, found nothing at {path}; correct it.")
    return path


def build_elsewhere(run: Run, baselines: dict[str, pd.DataFrame]) -> Elsewhere | None:
    """The locked test on the cohort that ``cohort.external`` names, scored where that is not done; None without one.

    Parameters
    ----------
    run : Run
    baselines : dict of str to pandas.DataFrame
        From `build_baselines`: their held-out scores stand beside.
    """
    path = external_path(run)
    if path is None:
        return None
    unit, chosen = score(run, path, LOCKED, labelled=True), run.settings.sweep
    there, method = unit.load_table(_SCORES), chosen.interval_method
    options = {"n_resamples": chosen.n_resamples, "seed": run.settings.seed}
    words = scorer_words(run, there)
    table = measures.compared(there, _here(run, baselines, list(words)), method)
    table.insert(0, "words", table["scorer"].map(words))
    networks = [params.REAL, DECLARED]
    judged = [measures.measured(there, name, method, options).assign(scorer=words[name]) for name in networks]
    return Elsewhere(
        table,
        pd.concat(judged, ignore_index=True),
        measures.gain(there),
        pd.concat([reliability(run, there, name) for name in networks], ignore_index=True),
        load_record(unit.file(_FACTS)) or {},
    )


def reliability(run: Run, there: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """`clinical_measures.calibration_bins` of one network's patients elsewhere, with ``arm, rate, over``."""
    found, chosen = measures.by_patient(there, scorer), run.settings.sweep
    arm, rate = (params.REAL, 0.0) if scorer == params.REAL else (chosen.primary_arm, chosen.primary_rate)
    over = "patients of a bin (Wilson); these classifiers"
    return clinical_measures.calibration_bins(found.label, found.mean).assign(arm=arm, rate=rate, over=over)


def scorer_words(run: Run, there: pd.DataFrame) -> dict[str, str]:
    """What each scorer of a table is called."""
    chosen = run.settings.sweep
    known = {params.REAL: "real images alone", DECLARED: f"{chosen.primary_arm} images, r = {chosen.primary_rate:g}"}
    return {name: known.get(name, name) for name in dict.fromkeys(there["scorer"])}


def _here(run: Run, baselines: dict[str, pd.DataFrame], scorers: list[str]) -> pd.DataFrame:
    """Held-out scores of the same classifiers on the run's own patients, with ``scorer``."""
    rows = baselines["scores"][baselines["scores"]["split"] == frozen_classifiers.IN_FOLDS]
    parts = [rows[rows["baseline"] == name].assign(scorer=name) for name in scorers]
    for name in (params.REAL, DECLARED):
        parts.append(classifier_units.held_out_scores(run, _trials(run, (name,))).assign(scorer=name))
    return pd.concat(parts, ignore_index=True)


def elsewhere_words(run: Run, found: Elsewhere | None) -> str:
    """What the locked test says.

    Parameters
    ----------
    run : Run
    found : Elsewhere or None
        Of `sweep.build_elsewhere`.

    Returns
    -------
    str
        A line per matter; without another cohort, that none is named.
    """
    if found is None:
        return "No other cohort is named (cohort.external), so nothing is known of other scanners or clinics."
    facts, names = found.facts, run.settings.cohort.class_names
    counts = " and ".join(f"{n} {name}" for n, name in zip(facts["counts"], names, strict=True))
    lines = [f"{'Simulated: ' * facts['simulated']}{facts['patients']} patients of another cohort ({counts})."]
    for row in found.table.itertuples():
        lines.append(
            f"{row.words}: AUC by patient {row.together:.3f} {_bounds(row.together_low, row.together_high)}; single"
            f" classifiers {row.auc:.3f} {_bounds(row.low, row.high)} there and {row.here:.3f}"
            f" {_bounds(row.here_low, row.here_high)} here, a drop of {row.drop:+.3f}"
            f" {_bounds(row.drop_low, row.drop_high)}."
        )
    gain = found.gain
    lines.append(f"Gain by synthetic images there: {gain['mean']:+.3f} {_bounds(gain['low'], gain['high'])}.")
    lines.append("Intervals are 95 % over patients, there, here, or for a drop both; given these training patients.")
    if facts["again"]:
        lines.append(f"{facts['again']} classifiers were trained again, since the sweep keeps scores alone.")
    return "\n".join(lines)


def _bounds(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]" if np.isfinite(low) else "(no interval)"


def claims(run: Run, found: Elsewhere | None) -> list[dict[str, Any]]:
    """Headline numbers of the locked test; none without another cohort."""
    if found is None:
        return []
    same, unit, rows = "not in the paper", "patient-level AUC", []
    for row in found.table.to_dict("records"):
        part = row["scorer"] if row["scorer"] in (params.REAL, DECLARED) else BASELINE
        text, there = row["words"], {name: row[f"together_{name}"] for name in ("low", "high", "over")}
        there |= {"mean": row["together"], "n": row["n"]}
        rows.append(of_row(key_of("elsewhere.auc", part), f"elsewhere: {text}", there, same, unit))
        drop = {"mean": row["drop"], "low": row["drop_low"], "high": row["drop_high"], "n": row["n"]}
        drop["over"] = statistics.stated("patients of both cohorts (Zou and Donner)", row["drop_low"])
        rows.append(of_row(key_of("elsewhere.drop", part), f"drop elsewhere: {text}", drop, same, unit))
    text = f"gain elsewhere by {run.settings.sweep.primary_arm} images, r = {run.settings.sweep.primary_rate:g}"
    rows.append(of_row("elsewhere.gain", text, found.gain, same, unit))
    brier = found.measures[found.measures["measure"] == "Brier score"]
    for part, row in zip((params.REAL, DECLARED), brier.to_dict("records"), strict=True):
        key, text = key_of("elsewhere.brier", part), f"Brier score elsewhere: {row['scorer']}"
        rows.append(of_row(key, text, row, same, "by patient", columns=("value", "n")))
    simulated = "simulated " if found.facts["simulated"] else ""
    n = found.facts["patients"]
    rows.append(claim("elsewhere.patients", f"{simulated}patients of the other cohort", n, same, n=n, unit="patients"))
    return rows


def units(run: Run) -> list[Unit]:
    """Every unit of the locked test; none without another cohort."""
    path = external_path(run)
    if path is None:
        return []
    made = [classifier_units.classifier_unit(run, trial) for trial in _trials(run, LOCKED)]
    return [*made, scored_unit(run, path, LOCKED)]
