"""Stage 04's check that the condition matters: features, agreement and separation. Opens and writes files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, ldm, statistics
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_table, unit_seed
from nafld_utils.sampling import condition_effect, feature_units, set_units

REVISION = ("stages.conditions", 2)
SEPARATION = "AUC of a classifier that saw real images only"


def feature_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a set that the check of the condition needs; always EfficientNet-Lite0, which is installed."""
    return feature_units.feature_tasks(run, "lite0", feature_units.prefixed(run, ("", "null_")))


@remembered
def unit_of(run: Run) -> Unit:
    """Unit of the check that the condition matters."""
    maps = run.settings.section("preprocess")
    settings = {key: maps[key] for key in ("map_classes", "map_size", "map_order", "map_blur", "map_bins")}
    return run.unit(
        "quality",
        "conditions",
        settings=settings | {"seed": run.settings.seed},
        inputs=[feature_units.features_unit(**task) for task in feature_tasks(run)],
        modules=["condition_checks", "preprocess", "stages.conditions"],
    )


def build(run: Run) -> Unit:
    """Check the condition of every model; writes ``agreement.csv``, ``separation.csv`` (image rows), ``summary.csv``.

    The column ``drawn_with`` says whether images were drawn with their condition ("condition") or without it ("no
    condition"; the word "null" reads back as missing from a CSV). An image without is judged by the condition it would
    have had, so both effects should vanish there.
    """
    unit = unit_of(run)
    if unit.done():
        return unit
    agreement, separation = [], []
    for task in engine.progress(ldm.autoencoder_units.tasks(run), "does the condition matter"):
        for drawn_with, prefix in (("condition", ""), ("no condition", "null_")):
            facts = {"conditioning": task["conditioning"], "drawn_with": drawn_with, "fold": task["fold"]}
            separation.append(_separation(**task, prefix=prefix).assign(**facts))
            if task["conditioning"] == "semantic":
                agreement.append(_agreement(**task, prefix=prefix).assign(**facts))
    rng = np.random.default_rng(unit_seed(run.settings.seed, "conditions"))
    separated = pd.concat(separation, ignore_index=True)
    rows = _separation_rows(separated, rng)
    with unit.writing() as folder:
        save_table(folder / "separation.csv", separated)
        if agreement:
            agreed = pd.concat(agreement, ignore_index=True)
            save_table(folder / "agreement.csv", agreed)
            rows = _agreement_rows(agreed, rng) + rows
        save_table(folder / "summary.csv", pd.DataFrame(rows))
    return unit


def _agreement(run: Run, conditioning: str, fold: int, prefix: str) -> pd.DataFrame:
    drawn = set_units.open_synthetic(**feature_units.set_task(run, f"{prefix}{conditioning}", fold))
    chosen = run.settings.preprocess
    maps = images.semantic_maps.semantic_maps(np.asarray(drawn.images), chosen)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "agreement", prefix, fold))
    patients = drawn.table["source_patient"].to_numpy()
    return condition_effect.condition_agreement(maps, np.asarray(drawn.conditions), patients, chosen.map_classes, rng)


def _separation(run: Run, conditioning: str, fold: int, prefix: str) -> pd.DataFrame:
    table = feature_units.real_table(run)
    training = table["fold"].to_numpy() != fold
    real, _ = feature_units.load_features(run, "lite0", feature_units.REAL)
    made, _ = feature_units.load_features(run, "lite0", f"{prefix}{conditioning}", fold)
    score = condition_effect.condition_separation(real[training], table["label"].to_numpy()[training], made)
    drawn = feature_units.drawn_table(run, f"{prefix}{conditioning}", fold)
    return drawn[["synthetic_id", "label"]].assign(score=score)


def _agreement_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for (conditioning, drawn_with), part in table.groupby(["conditioning", "drawn_with"], sort=False):
        for name in ("accuracy", "dice"):
            gain = part[name] - part[f"{name}_shuffled"]
            mean, low, high = condition_effect.cluster_interval(gain, part["patient"], rng)
            row = {"effect": f"{name} of the map, own minus shuffled condition", "conditioning": conditioning}
            row |= {"drawn_with": drawn_with, "mean": mean, "low": low, "high": high, "expected_without": 0.0}
            rows.append({**row, "over": "source patients", "n": part["patient"].nunique(), "n_images": len(part)})
    return rows


def _separation_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for (conditioning, drawn_with), part in table.groupby(["conditioning", "drawn_with"], sort=False):
        row = {"effect": SEPARATION, "conditioning": conditioning}
        row |= {"drawn_with": drawn_with, "expected_without": 0.5, "n_images": len(part)}
        folds = {fold: rows_of for fold, rows_of in part.groupby("fold") if set(rows_of["label"]) == {0, 1}}
        missing = sorted(set(part["fold"]) - set(folds))
        row["note"] = f"fold {', '.join(map(str, missing))}: images of one class only" if missing else ""
        aucs = [statistics.auc(one["label"], one["score"]) for one in folds.values()]
        if len(aucs) > 1:
            mean, low, high = statistics.student_t_interval(aucs)
            low, high = np.clip((low, high), 0.0, 1.0)  # two folds give bounds that no AUC can have
            rows.append({**row, "mean": mean, "low": low, "high": high, "over": "folds", "n": len(aucs)})
        # Semantic images share source patients, so images are no units there.
        if conditioning == "class":
            mean, low, high = condition_effect.separation_interval(part, rng)
            rows.append({**row, "mean": mean, "low": low, "high": high, "over": "images", "n": len(part)})
    return rows


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of the check that the condition matters; the paper has none."""
    table, rows = build(run).load_table("summary.csv"), []
    for row in table[~table["effect"].str.startswith("dice")].to_dict("records"):
        with_it, separates = row["drawn_with"] == "condition", row["effect"] == SEPARATION
        text = f"{row['conditioning']} model drawn {'with its condition' if with_it else 'without condition'}"
        measure, unit = ("auc", "AUC") if separates else ("accuracy", "share of pixels")
        parts = (row["conditioning"], "with" if with_it else "without", row["over"])
        rows.append(of_row(key_of(f"condition.{measure}", *parts), f"{text}: {row['effect']}", row, unit=unit))
    return rows


def units(run: Run) -> list[Unit]:
    """Every unit the check of the condition stands on."""
    return [*(feature_units.features_unit(**task) for task in feature_tasks(run)), unit_of(run)]
