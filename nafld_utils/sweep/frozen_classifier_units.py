"""Stage 06, the baselines of a sceptic, the spread of splits and the canary. Opens and writes files.

Contract: only units are opened and written. Frozen features are those of `BASELINE_SIZE` pixels in every profile, so
that their AUC can be compared between runs; nothing here is trained by gradient steps or tuned.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import cohort, engine, networks, preprocessing
from nafld_utils.artifacts import Run, Unit, claim, key_of, of_row, remembered, save_array, save_table
from nafld_utils.images import resize_box, texture_features, whole_box
from nafld_utils.sweep import frozen_classifiers

REVISION = ("stages.baselines", 1)

BASELINE_SIZE = 256  # pixels
CHUNK = 20  # shuffles per unit of the canary
TOLERANCE, SHUFFLES, PATIENTS = 0.03, 100, 40  # of the canary's mean AUC; choice: below these numbers it says nothing
# Of pooled scores: the patients that are left for training hold a little more of the other class.
BIASED = "scores of patients left out one by one, put together, rank a little too low"
EXPECTED = {
    frozen_classifiers.IN_FOLDS: "a sound protocol gives 0.5 or up to 0.03 less",
    frozen_classifiers.ONE_OUT: f"below 0.5 without any leak: {BIASED}",
}
_SPLITS = {frozen_classifiers.IN_FOLDS: "folds", frozen_classifiers.ONE_OUT: "one_out"}  # in keys of claims


# ---------------------------------------------------------------- features


@remembered
def frozen_unit(run: Run) -> Unit:
    """Unit of the baseline's frozen features of the real crops."""
    chosen = run.settings.sweep
    settings = {"backbone": chosen.baseline_backbone, "weights": chosen.baseline_weights, "size": BASELINE_SIZE}
    inputs = [preprocessing.preprocess_unit(run)]
    modules = ["backbones"]
    return run.unit("features_frozen", chosen.baseline_backbone, settings=settings, inputs=inputs, modules=modules)


@remembered
def texture_unit(run: Run) -> Unit:
    """Unit of the texture features of the real crops."""
    inputs = [preprocessing.preprocess_unit(run)]
    return run.unit("features_texture", settings={}, inputs=inputs, modules=["baselines"])


def frozen_features(run: Run, crops: np.ndarray) -> np.ndarray:
    """Pooled features (N, d) float32 of whole crops at `BASELINE_SIZE` pixels."""
    name = run.settings.sweep.baseline_backbone
    images = np.stack([resize_box(crop, whole_box(crop), BASELINE_SIZE) for crop in crops])
    model = networks.load(name, run.settings.sweep.baseline_weights)
    return networks.features(model, images, name, engine.device(run.settings.engine))


def make_frozen(run: Run) -> None:
    """Compute the frozen features of the real crops."""
    features = frozen_features(run, preprocessing.open_preprocessed(run).crops)
    source = networks.hub_facts(run.settings.sweep.baseline_backbone, run.settings.sweep.baseline_weights)
    with frozen_unit(run).writing(**source) as folder:
        save_array(folder / "features.npy", features)


def make_texture(run: Run) -> None:
    """Compute the texture features of the real crops."""
    with texture_unit(run).writing() as folder:
        save_array(folder / "features.npy", texture_features(preprocessing.open_preprocessed(run).crops))


def open_learners(run: Run) -> dict[str, tuple[np.ndarray, frozen_classifiers.Learner]]:
    """Every learnt baseline by name: its features (N, d), and what scores them."""
    features, texture = (unit.load_array("features.npy") for unit in (frozen_unit(run), texture_unit(run)))
    return {
        frozen_classifiers.FEATURES_SVM: (features, frozen_classifiers.svm_scores),
        frozen_classifiers.FEATURES_LOGISTIC: (features, frozen_classifiers.linear_scores),
        frozen_classifiers.GLCM_SVM: (texture, frozen_classifiers.svm_scores),
    }


# ---------------------------------------------------------------- the tables


def scores_unit(run: Run) -> Unit:
    """Unit of the baselines' held-out scores and their AUCs."""
    settings = {"seed": run.settings.seed, "interval": run.settings.sweep.interval_method}
    modules = ["baselines", "sweep", "stats", "delong", "auc_intervals"]
    inputs = [frozen_unit(run), texture_unit(run)]
    settings |= {"halves": False} if run.is_foreign else {}  # of older code, scores of other organs had them
    return run.unit("baselines", "scores", settings=settings, inputs=inputs, modules=modules)


def make_scores(run: Run) -> None:
    """Score held-out patients by every baseline that sees pixels."""
    scores = _scores(open_learners(run), preprocessing.open_preprocessed(run), run.is_foreign)
    table = frozen_classifiers.baseline_table(scores, run.settings.sweep.interval_method)
    with scores_unit(run).writing() as folder:
        save_table(folder / "scores.parquet", scores)
        save_table(folder / "auc.csv", table)


def no_pixels_unit(run: Run) -> Unit:
    """Unit of the baseline without pixels: what it knows of each patient, its held-out scores and their AUCs."""
    settings = {"seed": run.settings.seed, "interval": run.settings.sweep.interval_method}
    modules = ["no_pixels", "stats", "delong", "auc_intervals"]
    inputs = [preprocessing.preprocess_unit(run)]
    return run.unit("baselines", "no_pixels", settings=settings, inputs=inputs, modules=modules)


def make_no_pixels(run: Run) -> None:
    """Score patients by a forest on what is known of them before a pixel is looked at."""
    unit, method = no_pixels_unit(run), run.settings.sweep.interval_method
    facts, images = without_pixels(run), preprocessing.open_preprocessed(run).images
    patients = images.groupby("patient_id")[["label", "fold"]].first()
    known = facts.loc[patients.index].to_numpy()
    scored = frozen_classifiers.forest_scores(known, patients["label"], patients["fold"].to_numpy(), run.settings.seed)
    score = images["patient_id"].map(dict(zip(patients.index, scored, strict=True)))
    table = frozen_classifiers.fixed_scores({frozen_classifiers.NO_PIXELS: score.to_numpy()}, images)
    with unit.writing() as folder:
        save_table(folder / "known.csv", facts.reset_index())
        save_table(folder / "scores.parquet", table)
        save_table(folder / "auc.csv", frozen_classifiers.baseline_table(table, method))


def without_pixels(run: Run) -> pd.DataFrame:
    """`frozen_classifiers.without_pixels` of the run's cohort."""
    return frozen_classifiers.without_pixels(preprocessing.facts_of(run), cohort.tag_numbers(cohort.open_cohort(run)))


def spread_unit(run: Run) -> Unit:
    """Unit of the learnt baselines over many splits."""
    settings = {"splits": run.settings.sweep.baseline_splits, "n_splits": run.settings.folds.n_splits}
    modules = ["baselines", "sweep", "folds", "stats"]
    return run.unit(
        "baselines", "spread", settings=settings, inputs=[frozen_unit(run), texture_unit(run)], modules=modules
    )


def make_spread(run: Run) -> None:
    """Score the learnt baselines in many splits."""
    splits, images = range(run.settings.sweep.baseline_splits), preprocessing.open_preprocessed(run).images
    table = frozen_classifiers.split_spread(open_learners(run), images, run.settings.folds.n_splits, splits)
    with spread_unit(run).writing() as folder:
        save_table(folder / "auc.csv", table)


def canary_unit(run: Run, part: int) -> Unit:
    """Unit of some of the canary's shuffles."""
    seeds = canary_seeds(run, part)
    settings = {"first": seeds.start, "stop": seeds.stop, "n_splits": run.settings.folds.n_splits}
    settings["interval"] = run.settings.sweep.interval_method
    modules = ["baselines", "sweep", "folds", "stats", "delong", "auc_intervals"]
    return run.unit(
        "baselines", "canary", f"part{part:02d}", settings=settings, inputs=[frozen_unit(run)], modules=modules
    )


def canary_seeds(run: Run, part: int) -> range:
    """Shuffles of one part."""
    return range(part * CHUNK, min((part + 1) * CHUNK, run.settings.sweep.canary_shuffles))


def make_canary(run: Run, part: int) -> None:
    """Score some shuffles."""
    unit = canary_unit(run, part)
    features = frozen_unit(run).load_array("features.npy")
    images, chosen = preprocessing.open_preprocessed(run).images, run.settings
    how = chosen.folds.n_splits, canary_seeds(run, part), chosen.sweep.interval_method
    with unit.writing() as folder:
        save_table(folder / "auc.csv", frozen_classifiers.canary(features, images, *how))


def canary_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per part of the canary."""
    return [{"run": run, "part": part} for part in range(-(-run.settings.sweep.canary_shuffles // CHUNK))]


def build_baselines(run: Run) -> dict[str, pd.DataFrame]:
    """Every baseline, the spread of splits and the canary; only what is missing is computed.

    Returns
    -------
    dict of str to pandas.DataFrame
        ``auc`` (`frozen_classifiers.baseline_table`), ``scores`` (`frozen_classifiers.split_scores`), ``spread``
        (`frozen_classifiers.split_spread`), ``canary`` (`frozen_classifiers.canary`), ``canary_summary``.
    """
    alone = [{"run": run}]
    kinds = {
        "frozen features": (make_frozen, alone, frozen_unit),
        "texture features": (make_texture, alone, texture_unit),
        "scores": (make_scores, alone, scores_unit),
        "no pixels": (make_no_pixels, alone, no_pixels_unit),
        "spread": (make_spread, alone, spread_unit),
        "canary": (make_canary, canary_tasks(run), canary_unit),
    }
    if run.settings.engine.mode == "cluster":  # whose queue would take longer than what is made but once
        for make, tasks, unit_of in kinds.values():
            if tasks is alone:
                engine.once(unit_of(run), functools.partial(make, run))
    engine.map_kinds(kinds, run.settings.engine, "baselines")
    shuffles = pd.concat([canary_unit(**task).load_table("auc.csv") for task in canary_tasks(run)], ignore_index=True)
    made = scores_unit(run), no_pixels_unit(run)
    auc = pd.concat([one.load_table("auc.csv") for one in made], ignore_index=True)
    if run.is_foreign:  # what is published is about livers
        auc["byra"] = float("nan")
    return {
        "auc": auc,
        "scores": pd.concat([one.load_table("scores.parquet") for one in made], ignore_index=True),
        "canary": shuffles,
        "spread": spread_unit(run).load_table("auc.csv"),
        "canary_summary": frozen_classifiers.canary_summary(shuffles),
    }


def _scores(learners: dict[str, Any], data: preprocessing.Preprocessed, foreign: bool) -> pd.DataFrame:
    """Held-out scores of every baseline.

    That the upper half is brighter in class 1 is known of livers alone, so a foreign cohort has no such rule; the
    organs' ratio is there only where masks are known, in simulated cohorts.
    """
    rules = {} if foreign else {frozen_classifiers.HALVES: frozen_classifiers.half_ratio(data.crops)}
    if data.tissue is not None:
        from nafld_utils.phantom import TISSUES

        codes = (TISSUES["liver"], TISSUES["kidney_cortex"])
        patients = data.images["patient_id"]
        rules[frozen_classifiers.RATIO] = frozen_classifiers.organ_ratio(data.resized, data.tissue, *codes, patients)
    learnt = frozen_classifiers.split_scores(learners, data.images)
    return (
        pd.concat([learnt, frozen_classifiers.fixed_scores(rules, data.images)], ignore_index=True) if rules else learnt
    )


# ---------------------------------------------------------------- claims


def claims(run: Run, tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers: each baseline by patient beside the published one, the splits, the leak and the canary."""
    rows, cohort = [], "simulated cohort; " if run.is_simulated else ""
    for row in tables["auc"].query("level == 'patient'").to_dict("records"):
        known, split = bool(np.isfinite(row["byra"])), row["split"]
        same = "not in the paper"
        if known:
            same = f"no: {cohort}{run.settings.sweep.baseline_backbone}, whole crops; published: Byra et al. 2018"
        if split == frozen_classifiers.ONE_OUT:
            same += f"; {BIASED}"
        name = "no_pixels" if row["baseline"] == frozen_classifiers.NO_PIXELS else row["baseline"]
        key, text = key_of("baselines", _SPLITS[split], name), f"{row['baseline']}, {split}"
        paper = row["byra"] if known else None
        rows.append(of_row(key, text, row, same, "patient-level AUC", paper, columns=("auc", "n_patients")))
    for (name, by), part in tables["spread"].groupby(["baseline", "split_by"], sort=False):
        values, same = part["auc"], "not in the paper; the check of the protocol"
        facts = {"interval": (values.min(), values.max(), "split seeds (range)"), "n": len(values)}
        key, text = key_of(f"baselines.by_{by}", name), f"{name}, split by {by}"
        rows.append(claim(key, text, values.median(), same, unit="image-level AUC, median", **facts))
    for row in tables["canary_summary"].itertuples():
        text, split = f"shuffled diagnoses, {row.split}", _SPLITS[row.split]
        over, same = "shuffles of the diagnoses", f"not in the paper; {EXPECTED[row.split]}"
        facts = {"interval": (row.low, row.high, f"{over} (Student t)"), "n": row.shuffles, "unit": "AUC"}
        rows.append(claim(f"canary.auc.{split}", f"{text}: AUC", row.mean_auc, same, **facts))
        facts = {"interval": (row.covers_low, row.covers_high, f"{over} (Wilson)"), "n": row.shuffles, "unit": "share"}
        same, text = "not in the paper; 0.95 is what they promise", f"{text}: 95 % intervals that hold 0.5"
        rows.append(claim(f"canary.covers.{split}", text, row.covers, same, **facts))
    return rows


def no_pixels_note(run: Run, tables: dict[str, pd.DataFrame]) -> str:
    """What the baseline without pixels reaches, what else it beats, and what to do where it tells the class.

    Parameters
    ----------
    run : Run
        For the setting of the region.
    tables : dict of str to pandas.DataFrame
        From `build_baselines`.

    Returns
    -------
    str
        One to four sentences.
    """
    rows = tables["auc"].query("level == 'patient' and split == @frozen_classifiers.IN_FOLDS").set_index("baseline")
    own, others = rows.loc[frozen_classifiers.NO_PIXELS], rows.drop(index=frozen_classifiers.NO_PIXELS)
    if np.isnan(own["low"]):
        return "What is known without a pixel is the same for all patients, or tells them apart in no fold."
    found = f"{own['auc']:.2f} [{own['low']:.2f}, {own['high']:.2f}]"
    text = [f"Without a pixel, a forest reaches an AUC by patient of {found}, 95 % over patients."]
    beaten = list(others.index[others["auc"] < own["auc"]])
    if beaten and own["auc"] > 0.5:
        text.append(f"It is above {', '.join(beaten)}.")
    if own["low"] > 0.5:
        text.append("Warning: how the images were made tells the class; notebooks 01 and 02 show what differs.")
        if run.settings.preprocess.region != "none":
            text.append('SET="preprocess.region=none" shows the networks the whole image.')
    return " ".join(text)


def leaks(tables: dict[str, pd.DataFrame], images: pd.DataFrame) -> bool | None:
    """Whether shuffled diagnoses score another mean AUC than 0.5 in the folds, by more than `TOLERANCE`.

    None where it cannot be told: fewer shuffles than `SHUFFLES` or fewer patients than `PATIENTS`. With ten patients
    200 shuffles miss 0.5 by more than that by chance, and folds of unequal mix bias so small a cohort.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        From `build`.
    images : pandas.DataFrame
        ``patient_id``, one row per image.
    """
    row = tables["canary_summary"].set_index("split").loc[frozen_classifiers.IN_FOLDS]
    if row["shuffles"] < SHUFFLES or images["patient_id"].nunique() < PATIENTS:
        return None
    return bool(abs(row["mean_auc"] - 0.5) > TOLERANCE)


def units(run: Run) -> list[Unit]:
    """Every unit of the baselines."""
    parts = [canary_unit(**task) for task in canary_tasks(run)]
    return [*(frozen_unit(run), texture_unit(run), scores_unit(run), no_pixels_unit(run), spread_unit(run)), *parts]
