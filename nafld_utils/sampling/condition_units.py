"""Stage 04's check that the condition matters: features, agreement and separation. Opens and writes files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, ldm, statistics
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_table, unit_seed
from nafld_utils.sampling import condition_effect, feature_units, set_units

REVISION = ("stages.conditions", 3)
SEPARATION = "AUC of a classifier that saw real images only"
DRAWN_WITH = {"condition": "", "no condition": "null_"}  # to the prefix of the sets
ALIKE = "no interval: the folds do not differ"
_UNITS = {ALIKE: "folds", statistics.NO_SPREAD: "images"}  # what a row without an interval is over


def feature_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per set that the check of the condition needs; always EfficientNet-Lite0, which is installed."""
    return feature_units.feature_tasks(run, "lite0", feature_units.prefixed(run, DRAWN_WITH.values()))


@remembered
def unit_of(run: Run) -> Unit:
    """Unit of the check that the condition matters."""
    maps = run.settings.section("preprocess")
    settings = {key: maps[key] for key in ("map_classes", "map_size", "map_order", "map_blur", "map_bins")}
    settings |= {"seed": run.settings.seed}
    inputs = [feature_units.features_unit(**task) for task in feature_tasks(run)]
    modules = ["condition_checks", "preprocess", "stages.conditions", "stats", "delong", "auc_intervals"]
    return run.unit("quality", "conditions", settings=settings, inputs=inputs, modules=modules)


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
        conditioning, fold = task["conditioning"], task["fold"]
        for drawn_with, prefix in DRAWN_WITH.items():
            drawn = set_units.open_set(run, f"{prefix}{conditioning}", fold)
            facts = {"conditioning": conditioning, "drawn_with": drawn_with, "fold": fold}
            separation.append(_separation(run, prefix, conditioning, fold, drawn).assign(**facts))
            if conditioning == "semantic":
                agreement.append(_agreement(run, prefix, fold, drawn).assign(**facts))
    rng = np.random.default_rng(unit_seed(run.settings.seed, "conditions"))
    separated = pd.concat(separation, ignore_index=True)
    rows = separation_rows(separated)
    with unit.writing() as folder:
        save_table(folder / "separation.csv", separated)
        if agreement:
            agreed = pd.concat(agreement, ignore_index=True)
            save_table(folder / "agreement.csv", agreed)
            rows = _agreement_rows(agreed, rng) + rows
        save_table(folder / "summary.csv", pd.DataFrame(rows))
    return unit


def _agreement(run: Run, prefix: str, fold: int, drawn: set_units.Synthetic) -> pd.DataFrame:
    chosen = run.settings.preprocess
    maps = images.semantic_maps.semantic_maps(np.asarray(drawn.images), chosen)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "agreement", prefix, fold))
    patients = drawn.table["source_patient"].to_numpy()
    return condition_effect.condition_agreement(maps, np.asarray(drawn.conditions), patients, chosen.map_classes, rng)


def _separation(run: Run, prefix: str, conditioning: str, fold: int, drawn: set_units.Synthetic) -> pd.DataFrame:
    table = feature_units.real_table(run)
    training = table["fold"].to_numpy() != fold
    real, _ = feature_units.load_features(run, "lite0", feature_units.REAL)
    made, _ = feature_units.load_features(run, "lite0", f"{prefix}{conditioning}", fold)
    score = condition_effect.condition_separation(real[training], table["label"].to_numpy()[training], made)
    return drawn.table[["synthetic_id", "label"]].assign(score=score)


def _by_model(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    for (conditioning, drawn_with), part in table.groupby(["conditioning", "drawn_with"], sort=False):
        yield {"conditioning": conditioning, "drawn_with": drawn_with}, part


def _interval(found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), found, strict=True))


def _agreement_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for facts, part in _by_model(table):
        for name in ("accuracy", "dice"):
            gain = part[name] - part[f"{name}_shuffled"]
            found = condition_effect.cluster_interval(gain, part["patient"], rng)
            row = {"effect": f"{name} of the map, own minus shuffled condition", **facts, **_interval(found)}
            row |= {"expected_without": 0.0, "over": "source patients", "n": part["patient"].nunique()}
            rows.append({**row, "n_images": len(part)})
    return rows


def separation_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the summary: the AUC of each model's images over folds and, for the class model, over images."""
    rows = []
    for facts, part in _by_model(table):
        folds = {fold: rows_of for fold, rows_of in part.groupby("fold") if set(rows_of["label"]) == {0, 1}}
        missing = sorted(set(part["fold"]) - set(folds))
        note = f"fold {', '.join(map(str, missing))}: images of one class only" if missing else ""
        row = {"effect": SEPARATION, **facts, "expected_without": 0.5, "n_images": len(part), "note": note}
        aucs = [statistics.auc(one["label"], one["score"]) for one in folds.values()]
        if len(aucs) > 1:
            found = statistics.student_t_interval(aucs, within=statistics.SHARE)
            over = statistics.stated("folds", found.low, ALIKE)
            rows.append({**row, **_interval(found), "over": over, "n": len(aucs)})
        # Semantic images share source patients, so images are no units there.
        if facts["conditioning"] == "class":
            known = part[part["fold"].isin(folds)]
            if folds and known.groupby(["fold", "label"]).size().min() > 1:  # an interval needs two images of each
                each = np.arange(len(known))
                found = statistics.mean_auc_interval(known["label"], known["score"], each, fold=known["fold"])
                over = statistics.stated("images", found.low)
                rows.append({**row, **_interval(found), "over": over, "n": len(known)})
    return rows


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the summary that answer and figure are made of: accuracy of maps, and AUCs but those over images."""
    return table[~table["effect"].str.startswith("dice") & (table["over"].replace(_UNITS) != "images")]


def reading(table: pd.DataFrame) -> list[str]:
    """Whether the condition is shown to matter: beyond no effect with it alone.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `sampling.check_conditions`.

    Returns
    -------
    list of str
        A sentence per model and effect.
    """
    lines = []
    for (model, effect), part in shown(table).groupby(["conditioning", "effect"], sort=False):
        beyond = {row.drawn_with: row.low > row.expected_without for row in part.itertuples()}
        says = "the condition matters" if beyond.get("condition") else "it is not shown that the condition matters"
        if beyond.get("condition") and beyond.get("no condition"):
            says = "it is not shown that the condition matters, since images drawn without it show as much"
        lines.append(f"{model} model: {says} ({effect}).")
    return lines


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of the check that the condition matters; the paper has none."""
    table, rows = build(run).load_table("summary.csv"), []
    for row in table[~table["effect"].str.startswith("dice")].to_dict("records"):
        with_it = row["drawn_with"] == "condition"
        text = f"{row['conditioning']} model drawn {'with its condition' if with_it else 'without condition'}"
        measure, unit = ("auc", "AUC") if row["effect"] == SEPARATION else ("accuracy", "share of pixels")
        over = _UNITS.get(row["over"], row["over"])
        key = key_of(f"condition.{measure}", row["conditioning"], "with" if with_it else "without", over)
        rows.append(of_row(key, f"{text}: {row['effect']}", row, unit=unit))
    return rows


def units(run: Run) -> list[Unit]:
    """Every unit the check of the condition stands on."""
    return [*(feature_units.features_unit(**task) for task in feature_tasks(run)), unit_of(run)]
