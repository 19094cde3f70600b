"""Stage 07, the check: what attributions are held against, and what they can show here. Opens and writes files.

Contract: tables are computed once and stored as units; sentences follow from the stored numbers and from nothing else.
Tissue is known for simulated patients alone; on a real cohort those tables are absent and the answer says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, phantom, preprocessing, statistics, sweep
from nafld_utils.artifacts import Run, Unit, save_array, save_json, save_table, unit_seed
from nafld_utils.explain import attribution_units, explainers, map_measures, single_feature_study
from nafld_utils.explain.attribution_units import Against, Explanation, explain, shuffled_unit

REVISION = ("stages.explain_truth", 2)

STORED = Path(__file__).parent / "stored" / "single_feature_study.json"
STORE_COMMAND = "python -m nafld_utils.explain.check_units"
_STUDY_MODULES = (
    *("phantom", "phantom_anatomy", "preprocess", "folds", "backbones", "trial"),
    *("explain", "explain_truth", "feature_study", "cross_validated"),
)


# ---------------------------------------------------------------- the maps held against something


class Checks(NamedTuple):
    """What the explained classifier's maps were held against.

    ``agreement`` is from `compare`; ``curves`` (of ``SHAP`` and ``random`` maps), ``gains`` and ``tissue`` (None where
    no tissue is known) are from `map_measures.curves`, `curve_gain` and `summarise_shares`; ``shuffled`` is the
    held-out AUC of the classifier with shuffled labels.
    """

    agreement: pd.DataFrame
    curves: pd.DataFrame
    gains: pd.DataFrame
    tissue: pd.DataFrame | None
    shuffled: dict[str, Any]
    unit: Unit


def explain_all(run: Run) -> dict[str, Explanation]:
    """Attributions of every classifier that is compared, by name: the explained one's (``explained``) come first.

    The single-feature study, where it is made in this run, is made beside them, so that no core waits.
    """
    tasks = attribution_units.explained(run)
    if run.settings.shap.feature_patients:
        attribution_units.pick_images(run)
        trials = [{"run": run, "trial": one} for one in attribution_units.peers(run).to_dict("records")]
        kinds = {
            "single-feature study": (make_feature, feature_tasks(run), feature_unit),
            "classifier": (sweep.train_again, trials, sweep.classifier_unit),
            "shuffled labels": (attribution_units.train_shuffled, [{"run": run}], shuffled_unit),
            "attributions": (explain, [*tasks.values()], attribution_units.attributions_unit),
        }
        engine.map_kinds(kinds, run.settings.engine, "classifiers and single-feature study")
    return {name: explain(**task) for name, task in tasks.items()}


def checks_unit(run: Run, attributions: Iterable[Unit]) -> Unit:
    """Unit of the checks of these attributions, the explained classifier's first."""
    chosen = run.settings.shap
    settings = {"smoothing": chosen.smoothing, "border": chosen.border, "root_seed": run.settings.seed}
    modules = ["explain_truth", "stages.explain_truth"]
    return run.unit("shap", "checks", settings=settings, inputs=list(attributions), modules=modules)


def build_checks(run: Run, found: dict[str, Explanation]) -> Checks:
    """Hold the maps against each other, the classifier and, where it is known, the tissue; skipped when done.

    Parameters
    ----------
    run : Run
    found : dict of str to Explanation
        Of `explain.explain_all`.

    Returns
    -------
    Checks
        Tables ``agreement, curves, gains, tissue`` (None without masks), the shuffled classifier's AUC, the unit.
    """
    unit = checks_unit(run, [one.unit for one in found.values()])
    if not unit.done():
        with unit.writing() as folder:
            save_table(folder / "agreement.csv", compare(run, found))
            save_table(folder / "curves.csv", _curves(run, found["explained"]))
            shares = share_tissue(run, found["explained"])
            if shares is not None:
                save_table(folder / "tissue.csv", shares)
    curves = unit.load_table("curves.csv")
    tissue = unit.load_table("tissue.csv") if unit.file("tissue.csv").exists() else None
    return Checks(
        agreement=unit.load_table("agreement.csv"),
        curves=curves,
        gains=map_measures.curve_gain(curves, "SHAP", "random"),
        tissue=None if tissue is None else map_measures.summarise_shares(tissue),
        shuffled=map_measures.auc_over_patients(shuffled_unit(run).load_table("scores.csv")),
        unit=unit,
    )


def compare(run: Run, found: dict[str, Explanation]) -> pd.DataFrame:
    """Rank agreement of the explained classifier's smoothed maps with others of the same images.

    Columns ``with_`` (of `Against`), ``n_maps`` (maps compared per image, 0 where there is none), ``n_images``,
    ``agreement`` (mean Spearman correlation over the pixels of the sector), ``low, high`` (Student t over images, one
    per patient, cut off at what is possible), and ``below, below_low, below_high``: how far the agreement lies below
    that of the same classifier with other draws, over the same images. Each map has draws of its own, equally many.
    """
    own = found["explained"]
    rows = own.table["compared"].to_numpy()
    images, mine = own.images[rows], own.smoothed()[rows]
    inside = images > 0
    others = {against: [one.smoothed() for one in found.values() if one.against == against] for against in Against}
    levels = images.astype(float) - explainers.mean_image(
        attribution_units.images_unit(run).load_array("background.npy")
    )
    others[Against.DIFFERENCE] = [explainers.smooth(levels, own.smoothing * images.shape[1])]
    ceiling, out = map_measures.agreement(mine, others[Against.DRAWS][0], inside), []
    for against, values in others.items():
        n_maps, agreed = len(values), np.empty(0)
        if against is Against.SEED and values:  # every pair of training seeds counts
            n_maps, agreed = 1 + len(values), map_measures.pairwise([mine, *values], inside)
        elif values:
            agreed = np.mean([map_measures.agreement(mine, value, inside) for value in values], axis=0)
        out.append(_agreement_row(against, n_maps, agreed, ceiling))
    return pd.DataFrame(out)


def _agreement_row(against: Against, n_maps: int, values: np.ndarray, ceiling: np.ndarray) -> dict[str, Any]:
    below = ceiling - values if len(values) else values
    row: dict[str, Any] = {"with_": against.value, "n_maps": n_maps, "n_images": len(values)}
    row |= zip(("agreement", "low", "high"), statistics.over_folds(values, statistics.SIGNED), strict=True)
    row |= zip(("below", "below_low", "below_high"), np.clip(statistics.over_folds(below), -2, 2), strict=True)
    return row


def side_by_side(
    found: dict[str, Explanation], n_images: int = 4, n_others: int = 3
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, float]]]:
    """Smoothed maps of the same images by several classifiers, for a figure.

    Parameters
    ----------
    found : dict of str to Explanation
        From `explain_all`.
    n_images : int
        At most so many of the compared images.
    n_others : int
        At most so many other trained classifiers beside the explained one; those that learnt nothing are always there.

    Returns
    -------
    rows : (n,) ndarray of int
        The images' places among the explained classifier's.
    maps : dict of str to tuple of (n, S, S) float ndarray and float
        By classifier, the explained one first, each with the end of its scale (`explain.shared_limit`).
    """
    own = found["explained"]
    rows = np.flatnonzero(own.table["compared"])[:n_images]
    others = [name for name, one in found.items() if one.against in (Against.SEED, Against.NETWORK)][:n_others]
    learnt_nothing = [Against.UNTRAINED.value, Against.SHUFFLED.value]
    values = {"explained": own.smoothed()[rows]}
    values |= {name: found[name].smoothed()[: len(rows)] for name in [*others, *learnt_nothing]}
    return rows, {name: (value, explainers.shared_limit(value)) for name, value in values.items()}


def _curves(run: Run, own: Explanation) -> pd.DataFrame:
    """Deletion and insertion on one image per held-out patient, towards the background's mean image."""
    rows = own.table["judged"].to_numpy()
    device, classifier = engine.device(run.settings.engine), attribution_units.open_classifier(run)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "shap random"))
    noise = rng.standard_normal(own.images[rows].shape)  # smoothed like the maps: an order that knows nothing
    judged = {"SHAP": own.smoothed()[rows], "random": explainers.smooth(noise, own.smoothing * own.images.shape[1])}
    baseline = explainers.mean_image(attribution_units.images_unit(run).load_array("background.npy"))
    return map_measures.curves(
        lambda images: explainers.log_odds(classifier, images, device), own.images[rows], judged, baseline
    )


def share_tissue(run: Run, own: Explanation) -> pd.DataFrame | None:
    """`map_measures.shares` of the judged images; None where the cohort has no tissue masks."""
    tissue = preprocessing.open_preprocessed(run).tissue
    if tissue is None:
        return None
    rows = np.flatnonzero(own.table["judged"])
    codes = np.array(tissue[own.table["row"].to_numpy()[rows]])
    border = max(1, round(run.settings.shap.border * codes.shape[1]))
    return map_measures.shares(own.smoothed()[rows], map_measures.regions(codes, phantom.TISSUES, border))


# ---------------------------------------------------------------- one feature at a time


class Study(NamedTuple):
    """The single-feature study: its table, the arrays of `single_feature_study.study` where it was made here, its
    origin.
    """

    table: pd.DataFrame
    arrays: dict[str, dict[str, np.ndarray]]
    note: str


def feature_options(run: Run) -> single_feature_study.Options:
    """Options of the single-feature study; nothing of the run's own cohort enters it."""
    chosen = run.settings.shap
    shared = {name: getattr(chosen, name) for name in ("n_background", "n_samples", "smoothing", "border")}
    numbers = (chosen.feature_patients, chosen.feature_steps, chosen.feature_explained)
    return single_feature_study.Options(*numbers, **shared, seed=run.settings.seed)


def feature_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per feature; none where the study is not made in this run."""
    return [{"run": run, "feature": name} for name in phantom.FEATURES if run.settings.shap.feature_patients]


def feature_unit(run: Run, feature: str) -> Unit:
    """Unit of one feature's study."""
    settings = {"feature": feature, **vars(feature_options(run))}
    return run.unit("shap", "features", feature, settings=settings, modules=_STUDY_MODULES)


def make_feature(run: Run, feature: str) -> None:
    """Study one feature."""
    unit = feature_unit(run, feature)
    device = engine.device(run.settings.engine)
    with unit.writing(device=str(device)) as folder:
        rows, arrays = single_feature_study.study(feature, feature_options(run), device)
        save_json(folder / "rows.json", rows)
        for name, array in arrays.items():
            save_array(folder / f"{name}.npy", array)


def build_study(run: Run) -> Study:
    """Make the single-feature study, or open the stored one where ``shap.feature_patients`` is 0.

    Beside a foreign cohort the place of a feature is not named, since it is one of another organ.
    """
    found = _study(run)
    if not run.is_foreign:
        return found
    rows = found.table.drop(columns=["finding", "verdict"]).assign(target="place of the feature")
    return Study(with_verdicts(rows.to_dict("records")), found.arrays, found.note)


def _study(run: Run) -> Study:
    if not run.settings.shap.feature_patients:
        return stored_study()
    tasks = feature_tasks(run)
    engine.map_units(make_feature, tasks, run.settings.engine, "single-feature study", unit_of=feature_unit)
    rows, arrays = [], {}
    for task in tasks:
        unit = feature_unit(**task).require()
        rows += json.loads(unit.file("rows.json").read_text(encoding="utf-8"))
        arrays[task["feature"]] = {path.stem: unit.load_array(path.name) for path in sorted(unit.path.glob("*.npy"))}
    chosen = run.settings.shap
    note = (
        f"Made in this run: three cohorts of {chosen.feature_patients} simulated patients, half of them held out,"
        f" {chosen.feature_steps} training steps."
    )
    return Study(with_verdicts(rows), arrays, note)


def with_verdicts(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The study's table, each row with the ``finding`` and the ``verdict`` that follow from its numbers."""
    table = pd.DataFrame(rows)
    for name in ("ratio", "untrained_ratio"):
        table[f"{name}_low"] = table[f"{name}_low"].clip(lower=0)
    records = table.to_dict("records")
    return table.assign(
        finding=[single_feature_study.finding(row) for row in records],
        verdict=[single_feature_study.verdict(row) for row in records],
    )


def stored_study() -> Study:
    """The study as it was stored with the package; its note says how it was made, and whether by other code."""
    stored, now = json.loads(STORED.read_text(encoding="utf-8")), study_revisions()
    options = stored["options"]
    note = (
        f"Not made in this run: the stored result of `{STORE_COMMAND}`, three cohorts of {options['n_patients']}"
        f" simulated patients, half of them held out, {options['steps']} training steps."
        " Set shap.feature_patients above 0 to make it here."
    )
    changed = sorted(name for name in now if stored["revisions"].get(name) != now[name])
    if changed:
        note += f" **It was made by other revisions of {', '.join(changed)} and may not hold for this code.**"
    return Study(with_verdicts(stored["rows"]), {}, note)


def study_revisions() -> dict[str, int]:
    """Revision of every module that the study's numbers depend on."""
    return {name: artifacts.revision(name) for name in _STUDY_MODULES}


def units(run: Run) -> list[Unit]:
    """Every unit stage 07 stands on."""
    classifiers = [sweep.classifier_unit(run, one) for one in attribution_units.peers(run).to_dict("records")]
    explained = [attribution_units.attributions_unit(**task) for task in attribution_units.explained(run).values()]
    made = [*classifiers, shuffled_unit(run), attribution_units.images_unit(run), *explained]
    return [*made, checks_unit(run, explained), *(feature_unit(**task) for task in feature_tasks(run))]


def main() -> None:
    """Make the study with the settings of ``params/paper.yaml`` and store it with the package."""
    run = artifacts.open_run("paper", {"run": "feature-study", "engine.mode": "local"})
    found = build_study(run)
    rows = found.table.drop(columns=["finding", "verdict"]).to_dict("records")
    record = {"command": STORE_COMMAND, "options": vars(feature_options(run)), "revisions": study_revisions()}
    versions = {name: artifacts.environment()[name] for name in ("versions", "python", "machine")}
    save_json(STORED, {**record, **versions, "rows": rows})
    print(found.table[["feature", "explainer", "auc", "low", "high", "verdict"]].to_string(index=False))


if __name__ == "__main__":
    main()
