"""Stage 06, the answer: what the scores of the grid say, beside the check of the protocol. Opens and writes files.

Contract: only units are opened and written, no path is named here; what is stored is computed once, and never from an
incomplete grid. ``tables`` are always those of `build_tables`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import backbones, engine, folds, params, preprocess, stats, sweep, sweep_tables
from nafld_utils.artifacts import Run, Unit, save_array, save_table
from nafld_utils.stages import prepare
from nafld_utils.stages.sweep import feature_tasks, features_unit, scores_unit

REVISION = 1

BASELINE = "tf_efficientnet_lite0"
BASELINE_SIZE = 256  # pixels; the same in every profile, so that its AUC can be compared between runs

# Image-level AUC with real images alone and with r = 1.5 semantic (paper, Results and Fig. 5B), by network.
PAPER_AUC = {
    "resnet50": ("ResNet-50", 0.861, 0.882),
    "tf_efficientnet_b0": ("EfficientNet v1", 0.871, 0.884),
    "tf_efficientnetv2_s": ("EfficientNet v2", 0.864, 0.879),
}
PAPER_T = 12.39  # ResNet-50, 25 seeds, p 6.43e-12; printed with the opposite sign (real minus mixed)
PAPER_BEST_SEED = 0.904  # EfficientNet v1, the maximum over seeds


# ---------------------------------------------------------------- the check of the protocol


def frozen_unit(run: Run) -> Unit:
    """Unit of the baseline's frozen features of the real crops."""
    settings = {"backbone": BASELINE, "weights": run.settings.sweep.baseline_weights, "size": BASELINE_SIZE}
    return run.unit(
        "features_frozen", BASELINE, settings=settings, inputs=[prepare.preprocess_unit(run)], modules=["backbones"]
    )


def baseline_unit(run: Run) -> Unit:
    """Unit of the protocol check."""
    settings = {"splits": run.settings.sweep.baseline_splits, "n_splits": run.settings.folds.n_splits}
    return run.unit("baseline", settings=settings, inputs=[frozen_unit(run)], modules=["sweep", "folds", "stats"])


def build_baseline(run: Run) -> pd.DataFrame:
    """AUC of a linear classifier on frozen features over many split seeds, split by patient and by image.

    Returns
    -------
    pandas.DataFrame
        ``split_by`` ("patient" or "image"), ``seed``, ``auc``.
    """
    unit = baseline_unit(run)
    if not unit.done():
        frozen = frozen_unit(run)
        data = prepare.open_preprocessed(run)
        if not frozen.done():
            with frozen.writing() as folder:
                save_array(folder / "features.npy", frozen_features(run, data.crops))
        table = protocol_check(
            frozen.load_array("features.npy"),
            data.images,
            run.settings.folds.n_splits,
            range(run.settings.sweep.baseline_splits),
        )
        with unit.writing() as folder:
            save_table(folder / "auc.csv", table)
    return unit.load_table("auc.csv")


def frozen_features(run: Run, crops: np.ndarray) -> np.ndarray:
    """Pooled EfficientNet-Lite0 features (N, 1280) float32 of whole crops at `BASELINE_SIZE` pixels."""
    images = np.stack([preprocess.resize_box(crop, preprocess.whole_box(crop), BASELINE_SIZE) for crop in crops])
    model = backbones.load(BASELINE, run.settings.sweep.baseline_weights)
    return backbones.features(model, images, BASELINE, engine.device(run.settings.engine))


def protocol_check(features: np.ndarray, images: pd.DataFrame, n_splits: int, seeds: Any) -> pd.DataFrame:
    """Out-of-fold AUC for every split seed, by patient and by image: ``split_by, seed, auc``.

    Parameters
    ----------
    features : (N, d) float
        Frozen features, a row an image.
    images : pandas.DataFrame
        ``patient_id, label``, in the same order.
    n_splits : int
        Folds.
    seeds : iterable of int
        Split seeds.
    """
    label = images["label"].to_numpy()
    patients = images[["patient_id", "label"]].drop_duplicates("patient_id")
    rows = []
    for seed in seeds:
        by_patient = folds.make_folds(patients, n_splits, seed).set_index("patient_id")["fold"]
        assignments = {
            "patient": images["patient_id"].map(by_patient).to_numpy(),
            "image": sweep.image_folds(label, n_splits, seed),
        }
        for name, fold in assignments.items():
            rows.append((name, seed, stats.auc(label, sweep.linear_scores(features, label, fold))))
    return pd.DataFrame(rows, columns=["split_by", "seed", "auc"])


# ---------------------------------------------------------------- the answer


def tables_unit(run: Run) -> Unit:
    """Unit of the sweep's tables."""
    chosen = run.settings.sweep
    settings = {"n_resamples": chosen.n_resamples, "primary": [chosen.primary_arm, chosen.primary_rate]}
    modules = ["sweep", "sweep_tables", "stats"]
    return run.unit("sweep_tables", settings=settings, inputs=[scores_unit(run)], modules=modules)


def build_tables(run: Run, scores: pd.DataFrame, note: str = "") -> dict[str, pd.DataFrame]:
    """Every table of the notebook; sealed as a unit where the grid is complete.

    Parameters
    ----------
    run : Run
    scores : pandas.DataFrame
        From `stages.sweep.build_scores`.
    note : str
        What is missing; with a note nothing is stored.

    Returns
    -------
    dict of str to pandas.DataFrame
        ``comparisons`` (`sweep_tables.compare_arms`), ``arms`` (`sweep_tables.arm_intervals`), ``seeds``
        (`sweep_tables.auc_by_seed`), each with a column ``level`` (image or patient); ``roc`` (`sweep.roc_curves` with
        the mean ``auc`` over seeds).
    """
    unit = tables_unit(run)
    if not note and unit.done():
        return {name: unit.load_table(f"{name}.parquet") for name in ("comparisons", "arms", "seeds", "roc")}
    chosen = run.settings.sweep
    options = {"n_resamples": chosen.n_resamples, "seed": run.settings.seed}
    primary = (chosen.primary_arm, chosen.primary_rate)
    levels: dict[str, list[pd.DataFrame]] = {"comparisons": [], "arms": [], "seeds": []}
    for level in sweep_tables.LEVELS:
        compared = sweep_tables.compare_arms(scores, level, sweep.REAL, primary, **options)
        levels["comparisons"].append(compared.assign(level=level))
        levels["arms"].append(sweep_tables.arm_intervals(scores, level, **options).assign(level=level))
        levels["seeds"].append(sweep_tables.auc_by_seed(scores, level).assign(level=level))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in levels.items()}
    means = tables["arms"].query("level == 'image'").rename(columns={"mean_auc": "auc"})
    keys = ["backbone", "arm", "rate"]
    tables["roc"] = sweep.roc_curves(scores).merge(means[[*keys, "auc"]], on=keys, validate="many_to_one")
    if not note:
        with unit.writing() as folder:
            for name, table in tables.items():
                save_table(folder / f"{name}.parquet", table)
    return tables


def at(table: pd.DataFrame, level: str, backbone: str) -> pd.DataFrame:
    """Rows of one level (image or patient) and backbone."""
    return table[(table["level"] == level) & (table["backbone"] == backbone)].reset_index(drop=True)


def shown(table: pd.DataFrame, *columns: str) -> Any:
    """Some columns as a styled table with three digits."""
    return table[list(columns)].style.format(precision=3, na_rep="").hide(axis="index")


def primary_curves(run: Run, tables: dict[str, pd.DataFrame], backbone: str) -> pd.DataFrame:
    """ROC curves of the declared comparison: real images alone, and the primary arm at the primary rate."""
    curves, chosen = tables["roc"], run.settings.sweep
    declared = (curves["arm"] == chosen.primary_arm) & (curves["rate"] == chosen.primary_rate)
    return curves[(curves["backbone"] == backbone) & ((curves["arm"] == sweep.REAL) | declared)]


def primary(run: Run, tables: dict[str, pd.DataFrame], level: str = "image") -> pd.Series:
    """The one comparison that was declared beforehand, with the first backbone."""
    table, backbone = tables["comparisons"], run.settings.sweep.backbones[0]
    return table[table["primary"] & (table["level"] == level) & (table["backbone"] == backbone)].iloc[0]


def answer(run: Run, tables: dict[str, pd.DataFrame]) -> str:
    """Whether synthetic images helped, in three sentences: the difference, what each interval is over, the verdict."""
    row = primary(run, tables)
    simulated = " on simulated patients" if run.is_simulated else ""
    text = [
        f"Mixing in {row.arm} images at r = {row.rate:g} moved the image-level AUC from {row.mean_auc_base:.3f} to"
        f" {row.mean_auc:.3f}, by {row.difference:+.3f}{simulated}.",
    ]
    if np.isfinite(row.low_seeds):
        text.append(
            "Trained again on the same patients, the mean difference lies in"
            f" [{row.low_seeds:+.3f}, {row.high_seeds:+.3f}] (95 %, Student t over {row.n_seeds} seeds)."
        )
    text.append(
        f"On other patients like these it lies in [{row.low_patients:+.3f}, {row.high_patients:+.3f}]"
        f" (95 %, bootstrap of {row.n_patients} patients and of the seeds), so {_verdict(row)};"
        f" the smallest difference that so many patients could show is about {row.smallest_effect:.3f}."
    )
    return " ".join(text)


def _verdict(row: pd.Series) -> str:
    if row.low_patients > 0:
        return "the images helped, as far as this split and these training runs show"
    if row.high_patients < 0:
        return "the images did harm, as far as this split and these training runs show"
    return "this run does not tell whether the images help"


def protocol(run: Run) -> str:
    """``"yes"``, or what differs from the paper's protocol."""
    paper, chosen = params.load(params.BASE_PROFILE), run.settings
    differs = ["simulated cohort"] if run.is_simulated else []
    if chosen.sweep.backbones != paper.sweep.backbones:
        differs.append(f"{', '.join(chosen.sweep.backbones)} instead of ResNet-50")
    names = {"steps": "steps", "learning_rate": "learning rate", "batch_size": "batch size", "n_seeds": "seeds"}
    for name, text in names.items():
        if getattr(chosen.sweep, name) != getattr(paper.sweep, name):
            differs.append(f"{text} {getattr(chosen.sweep, name):g}")
    if (chosen.sweep.primary_arm, chosen.sweep.primary_rate) != (paper.sweep.primary_arm, paper.sweep.primary_rate):
        differs.append(f"{chosen.sweep.primary_arm} r = {chosen.sweep.primary_rate:g}")
    if chosen.preprocess.image_size != paper.preprocess.image_size:
        differs.append(f"{chosen.preprocess.image_size} px")
    if chosen.section("ldm") != paper.section("ldm") or chosen.section("autoencoder") != paper.section("autoencoder"):
        differs.append("other diffusion models")
    return f"no: {'; '.join(differs)}" if differs else "yes"


def claims(run: Run, tables: dict[str, pd.DataFrame], check: pd.DataFrame) -> list[dict[str, Any]]:
    """Headline numbers of the sweep beside the paper's; `check` is the table of `build_baseline`."""
    rows, same = [], protocol(run)
    for backbone in run.settings.sweep.backbones:
        rows += _claims_of(run, tables, backbone, same)
    for name, part in check.groupby("split_by", sort=False):
        values = part["auc"]
        low, high = values.min(), values.max()
        row = {
            "claim": f"frozen features + logistic regression, split by {name}",
            "this_run": values.median(),
            "low": low,
        }
        row |= {"high": high, "over": "split seeds (range)", "n": len(values), "unit": "image-level AUC, median"}
        rows.append({**row, "same_protocol": "not in the paper; the check of the protocol"})
    return rows


def _claims_of(run: Run, tables: dict[str, pd.DataFrame], backbone: str, same: str) -> list[dict[str, Any]]:
    network, before, after = PAPER_AUC.get(backbone.partition(".")[0], PAPER_AUC["resnet50"])
    compared, arms = (tables[name][tables[name]["backbone"] == backbone] for name in ("comparisons", "arms"))
    rows = []
    for level in sweep_tables.LEVELS:
        row = compared[compared["primary"] & (compared["level"] == level)].iloc[0]
        paper = (before, after) if level == "image" else (None, None)
        cells = ((sweep.REAL, 0.0, "real images alone"), (row.arm, row.rate, f"{row.arm}, r = {row.rate:g}"))
        for (arm, rate, text), value in zip(cells, paper, strict=True):
            at = arms[(arms["arm"] == arm) & (arms["rate"] == rate) & (arms["level"] == level)].iloc[0]
            facts = {"claim": f"{text} (paper: {network})", "paper": value, "this_run": at.mean_auc, "low": at.low}
            facts |= {"high": at.high, "over": at.over, "n": at.n_patients, "unit": f"{level}-level AUC"}
            rows.append({**facts, "same_protocol": same})
    row = compared[compared["primary"] & (compared["level"] == "image")].iloc[0]
    gain = {"claim": f"gain by {row.arm} images, r = {row.rate:g}", "paper": round(after - before, 3)}
    gain |= {"this_run": row.difference, "unit": "image-level AUC", "same_protocol": same}
    over = {"seeds": sweep_tables.OVER_SEEDS, "patients": sweep_tables.over_patients(row.n_seeds)}
    for name, count in (("seeds", row.n_seeds), ("patients", row.n_patients)):
        rows.append({**gain, "low": row[f"low_{name}"], "high": row[f"high_{name}"], "over": over[name], "n": count})
    if network == "ResNet-50" and np.isfinite(row.t):
        facts = {"claim": "paired t of the gain over seeds", "paper": PAPER_T, "this_run": row.t, "n": row.n_seeds}
        rows.append({**facts, "over": sweep_tables.OVER_SEEDS, "unit": "t", "same_protocol": same})
    best = arms[(arms["arm"] == row.arm) & (arms["rate"] == row.rate) & (arms["level"] == "image")].iloc[0]
    facts = {"claim": "best single seed, an optimistic maximum (paper: EfficientNet v1)", "paper": PAPER_BEST_SEED}
    facts |= {"this_run": best.best_seed_auc, "n": best.n_seeds, "over": "no interval: a maximum"}
    rows.append({**facts, "unit": "image-level AUC", "same_protocol": same})
    return rows


# ---------------------------------------------------------------- what the stage hands on


def units(run: Run) -> list[Unit]:
    """Every unit stage 06 stands on."""
    return [
        *(features_unit(**task) for task in feature_tasks(run)),
        scores_unit(run),
        tables_unit(run),
        baseline_unit(run),
    ]
