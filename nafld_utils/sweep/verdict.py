"""Stage 06, the answer: what the scores of the grid say, and what each arm cost. Opens and writes files.

Contract: only units are opened and written, no path is named here; what is stored is computed once, and never from an
incomplete grid. ``tables`` are always those of `build_tables`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nafld_utils import ldm, params, preprocessing, statistics, views
from nafld_utils.artifacts import Run, Unit, claim, key_of, of_row, save_table
from nafld_utils.sweep import clinical_measures, comparisons, families, planning, trial_grid
from nafld_utils.sweep.prefix_features import feature_tasks, features_unit
from nafld_utils.sweep.training_units import scores_unit

REVISION = ("stages.sweep_answer", 2)

# Settings that what a classifier learns depends on; those of statistics, of arithmetic and of speed are left out.
TRAINING = (
    *("weights", "crops", "steps", "batch_size", "learning_rate", "weight_decay"),
    *("rotation", "rotation_probability"),
)
PIXELS = tuple(name for name in params.PreprocessSettings.model_fields if name != "image_size")  # its own entry

TABLES = ("comparisons", "arms", "seeds", "measures", "optimistic", "variants", "roc", "reliability", "power")

# Image-level AUC with real images alone and with r = 1.5 semantic (paper, Results and Fig. 5B), by network.
PAPER_AUC = {
    "resnet50": ("ResNet-50", 0.861, 0.882),
    "tf_efficientnet_b0": ("EfficientNet v1", 0.871, 0.884),
    "tf_efficientnetv2_s": ("EfficientNet v2", 0.864, 0.879),
}
PAPER_T = 12.39  # ResNet-50, 25 seeds, p 6.43e-12; printed with the opposite sign (real minus mixed)
PAPER_BEST_SEED = ("EfficientNet v1", 0.904)  # the maximum over its seeds


# ---------------------------------------------------------------- the tables


def tables_unit(run: Run) -> Unit:
    """Unit of the sweep's tables."""
    chosen = run.settings.sweep
    settings = {"n_resamples": chosen.n_resamples, "primary": [chosen.primary_arm, chosen.primary_rate]}
    settings |= {"secondary": list(chosen.secondary_arms)}
    settings |= {"interval": chosen.interval_method, "specificity": chosen.specificity, "seed": run.settings.seed}
    settings |= {"grade": views.words_for(run).grade, "declared_gains": list(chosen.declared_gains)}
    modules = ["sweep_tables", "sweep_families", "sweep_summaries", "stats", "resampling", "delong", "auc_intervals"]
    modules += ["readers", "patients_needed", "measures"]
    return run.unit("sweep_tables", settings=settings, inputs=[scores_unit(run)], modules=modules)


def declared(run: Run, table: pd.DataFrame, **change: Any) -> dict[str, Any]:
    """The one comparison declared beforehand.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Where no network is frozen as in the paper, or none is without oversampling, its first freeze or balance counts.
    **change
        Columns that are to have another value, e.g. ``arm``.

    Returns
    -------
    dict
        Columns and values of `comparisons.CELL`.
    """
    chosen = run.settings.sweep
    cell = {"backbone": chosen.backbones[0]}
    for name, value in comparisons.MAIN.items():
        if name in table:
            cell[name] = value if (table[name] == value).any() else table[name].iloc[0]
    return {**cell, "arm": chosen.primary_arm, "rate": chosen.primary_rate, **change}


def build_tables(run: Run, scores: pd.DataFrame, note: str = "") -> dict[str, pd.DataFrame]:
    """Every table of the notebook; sealed as a unit where the grid is complete.

    Parameters
    ----------
    run : Run
    scores : pandas.DataFrame
        From `sweep.build_scores`.
    note : str
        What is missing; with a note nothing is stored.

    Returns
    -------
    dict of str to pandas.DataFrame
        From `comparisons` and `clinical_measures`: ``comparisons`` (`compare_arms`, `families.with_roles`), ``arms``
        (`arm_intervals`), ``seeds`` (`auc_by_seed`), each with a column ``level`` (image or patient); ``measures``
        (`patient_measures`), ``optimistic``, ``variants``, and of real images alone and of the declared arm and rate,
        every group, ``roc`` (`roc_bands`) and ``reliability``; ``power`` (`planning.power_table`).
    """
    unit = tables_unit(run)
    if not note and unit.done():
        return {name: unit.load_table(f"{name}.parquet") for name in TABLES}
    chosen = run.settings.sweep
    options = {"n_resamples": chosen.n_resamples, "seed": run.settings.seed}
    named = declared(run, scores)
    levels: dict[str, list[pd.DataFrame]] = {"comparisons": [], "arms": [], "seeds": []}
    for level in comparisons.LEVELS:
        # the grid is complete: an arm with fewer seeds was planned with them
        compared = comparisons.compare_arms(scores, level, fewer_seeds=True)
        levels["comparisons"].append(compared.assign(level=level))
        levels["arms"].append(comparisons.arm_intervals(scores, level, chosen.interval_method).assign(level=level))
        levels["seeds"].append(comparisons.auc_by_seed(scores, level).assign(level=level))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in levels.items()}
    tables["comparisons"] = families.with_roles(tables["comparisons"], named, chosen.secondary_arms)
    tables["measures"] = clinical_measures.patient_measures(
        scores, grades(run), chosen.specificity, **options, grade_name=views.words_for(run).grade
    )
    tables["optimistic"] = comparisons.optimistic(tables["arms"])
    tables["variants"] = comparisons.variants(tables["arms"])
    both = scores[(scores["arm"] == params.REAL) | _at_primary(run, scores)]
    tables["roc"] = clinical_measures.roc_bands(both, min(500, chosen.n_resamples), run.settings.seed)
    tables["reliability"] = clinical_measures.reliability(both)
    tables["power"] = planning.power_table(scores, named, chosen.declared_gains)
    if not note:
        with unit.writing() as folder:
            for name, table in tables.items():
                save_table(folder / f"{name}.parquet", table)
    return tables


def _at_primary(run: Run, table: pd.DataFrame) -> np.ndarray:
    chosen = run.settings.sweep
    return comparisons.where(table, {"arm": chosen.primary_arm, "rate": chosen.primary_rate})


def grades(run: Run) -> dict[Any, float]:
    """Fat percent or another grade of each patient; NaN or empty where the cohort has none."""
    images = preprocessing.open_preprocessed(run).images
    return dict(images.groupby("patient_id")["grade"].first()) if "grade" in images else {}


def grade_note(run: Run) -> str:
    """What is left out because grades are missing, in a sentence; empty where all are known and differ."""
    known = pd.Series(grades(run), dtype=float)
    if len(known) and known.notna().all() and known.min() < known.max():
        return ""
    return (
        f"No correlation of scores with {views.words_for(run).grade}: it is known for {known.notna().sum()} of"
        f" {len(known)} patients, or the same for all."
    )


def at(run: Run, table: pd.DataFrame, level: str | None = "image", **change: Any) -> pd.DataFrame:
    """Rows of the main way of training, every arm and rate, at one level.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        One of `sweep.build_tables`.
    level : {"image", "patient"} or None
        None: the table has no levels.
    **change
        Columns of the declared comparison that are to have another value, e.g. ``backbone``.

    Returns
    -------
    pandas.DataFrame
    """
    cell = declared(run, table, **change)
    keep = {name: value for name, value in cell.items() if name not in ("arm", "rate")}
    if level:
        keep["level"] = level
    return table[comparisons.where(table, keep)].reset_index(drop=True)


def networks(run: Run, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Networks trained in the main way with the declared arm and rate.

    Parameters
    ----------
    run : Run
    tables : dict of str to pandas.DataFrame
        Of `sweep.build_tables`.

    Returns
    -------
    list of str
        That of the declared comparison first.
    """
    compared = tables["comparisons"]
    keep = declared(run, compared)
    first = keep.pop("backbone")
    others = compared.loc[comparisons.where(compared, keep), "backbone"]
    return [first, *(name for name in dict.fromkeys(others) if name != first)]


def shown(table: pd.DataFrame, name: str) -> Any:
    """A table of notebook 06 as readers see it.

    Parameters
    ----------
    table : pandas.DataFrame
    name : str
        Which of the tables of ``templates/tables.yaml``, e.g. ``"gain"``.

    Returns
    -------
    object
        Of `views.table`.
    """
    chosen = listed_tables()["sweep"][name]
    rows = " ".join(comparisons.present(table, chosen["rows"].split()))
    return views.table(table, chosen["caption"], chosen["columns"], rows)


@functools.cache
def listed_tables() -> dict[str, dict[str, dict[str, str]]]:
    """Tables of notebook 06 by section and name: ``caption, rows, columns``."""
    return yaml.safe_load((Path(__file__).parent / "templates" / "tables.yaml").read_text(encoding="utf-8"))


def primary(run: Run, tables: dict[str, pd.DataFrame]) -> pd.Series:
    """The one comparison that was declared beforehand, with the first backbone.

    Parameters
    ----------
    run : Run
    tables : dict of str to pandas.DataFrame
        Of `sweep.build_tables`.

    Returns
    -------
    pandas.Series
        Its row of ``comparisons``, at image level.
    """
    return tables["comparisons"].query("primary").iloc[0]


def answer(run: Run, tables: dict[str, pd.DataFrame]) -> str:
    """Whether synthetic images helped.

    Parameters
    ----------
    run : Run
    tables : dict of str to pandas.DataFrame
        Of `sweep.build_tables`.

    Returns
    -------
    str
        A line per matter: difference, verdict, intervals, power, the secondary family, agreement with the
        declared analysis.
    """
    row = primary(run, tables)
    simulated = " on simulated patients" if run.is_simulated else ""
    given = "Given these trained models and this split"
    if row.n_seeds >= statistics.FEWEST_SEEDS:
        given = f"On other patients like these, given {statistics.GIVEN_SEEDS}"
    interval = "no interval, since it is the same for all of them"
    if np.isfinite(row.low_patients):
        interval = (
            f"{families.bounds_in_words(row)} (95 % over {families.over_in_words(row)}){families.width_in_words(row)}"
        )
    text = [
        f"Mixing in {row.arm} images at r = {row.rate:g} moved the image-level AUC from {row.mean_auc_base:.3f} to"
        f" {row.mean_auc:.3f}, by {row.difference:+.3f}{simulated}.",
        f"Verdict of this primary comparison: {families.verdict_in_words(row)}.",
        f"{given}: {row.difference:+.3f}, {interval}.",
    ]
    if np.isfinite(row.low_seeds):
        seeds = f"[{row.low_seeds:+.3f}, {row.high_seeds:+.3f}] (95 %, Student t over {row.n_seeds} seeds)"
        text.append(f"Trained again on the same patients: {row.difference:+.3f}, {seeds}.")
    text.append(f"Power: {families.power_in_words(row)}.")
    more = families.kinds_in_words(tables["comparisons"], run.is_simulated)
    return "\n".join([*text, *families.in_words(tables["comparisons"]), *more, params.agreement(run.settings)])


# ---------------------------------------------------------------- beside the paper


def differences(run: Run, backbone: str | None = None) -> list[str]:
    """What differs from the paper's protocol in the classifiers and images that are compared, an entry per matter.

    Parameters
    ----------
    run : Run
    backbone : str, optional
        The network whose declared comparison is meant (the paper has three, Fig. 5B); the run's first without.
    """
    paper, chosen, grid = params.load(params.BASE_PROFILE), run.settings, trial_grid.grid(run.settings)
    backbone = backbone or chosen.sweep.backbones[0]
    differs, cell = ldm.cohort(run), declared(run, grid, backbone=backbone)
    if backbone not in paper.experiments["fig5b"].backbones:
        differs.append(f"{backbone} instead of ResNet-50")
    differs += [f"{name} {cell[name]}" for name, value in comparisons.MAIN.items() if cell[name] != value]
    n_seeds = grid.loc[comparisons.where(grid, cell), "seed"].nunique()
    if n_seeds != paper.sweep.n_seeds:
        differs.append(f"n_seeds {n_seeds}")
    primary = ("primary_arm", "primary_rate")
    if any(getattr(chosen.sweep, name) != getattr(paper.sweep, name) for name in primary):
        differs.append(f"{chosen.sweep.primary_arm} r = {chosen.sweep.primary_rate:g}")
    for section, keys in (("sweep", TRAINING), ("folds", ("n_splits", "seed")), ("preprocess", PIXELS)):
        differs += ldm.changes(f"another {section} section", chosen.section(section), paper.section(section), keys)
    drawn = [name for name in params.parse(chosen.sweep.primary_arm).generators if name in chosen.ldm.conditionings]
    return differs + ldm.models(run, drawn, sampled=True)


def claims(run: Run, tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers of the sweep beside the paper's; those of the baselines are `frozen_classifier_units.claims`."""
    shown, secondary = networks(run, tables), families.claims(tables["comparisons"])
    secondary += families.kind_claims(tables["comparisons"], run.is_simulated)
    rows = [(backbone, row) for backbone in shown for row in _claims_of(run, tables, backbone)]
    if len(shown) == 1:
        return [*(row for _, row in rows), *secondary]
    named = [{**row, "claim": f"{row['claim']} [{name}]", "key": key_of(row["key"], name)} for name, row in rows]
    return named + secondary


def _way(run: Run, table: pd.DataFrame) -> str:
    """How the declared comparison's training differs from the paper's main one, in a claim; mostly empty."""
    cell, named = declared(run, table), comparisons.VARIANTS
    other = {name: cell[name] for name, main in comparisons.MAIN.items() if cell.get(name, main) != main}
    return "".join(f", {named.get(item, ' '.join(item))}" for item in other.items())


def _claims_of(run: Run, tables: dict[str, pd.DataFrame], backbone: str) -> list[dict[str, Any]]:
    """Claims of one network; the paper's numbers are of its main way of training and stand beside no other."""

    def declared_rows(name: str, level: str | None) -> pd.DataFrame:
        table = at(run, tables[name], level, backbone=backbone)
        return table[_at_primary(run, table)]

    named, before, after = PAPER_AUC.get(backbone.partition(".")[0], PAPER_AUC["resnet50"])
    same, way = ldm.in_words(differences(run, backbone)), _way(run, tables["arms"])
    network, known = (named, (before, after, round(after - before, 3))) if not way else ("", (None, None, None))
    rows, row = [], declared_rows("comparisons", "image").iloc[0]
    mixed, unit = f"{row.arm}, r = {row.rate:g}", "image-level AUC"
    for level in comparisons.LEVELS:
        arms = at(run, tables["arms"], level, backbone=backbone)
        real, mixing = arms[arms["arm"] == params.REAL].iloc[0], declared_rows("arms", level).iloc[0]
        cells = (("real", "real images alone", real, known[0]), ("declared", mixed, mixing, known[1]))
        for part, text, one, number in cells:
            text, paper = f"{text}{way or f' (paper: {network})'}", number if level == "image" else None
            key, of = f"sweep.auc.{level}.{part}", f"{level}-level AUC"
            rows.append(of_row(key, text, one, same, of, paper, columns=("mean_auc", "n_patients")))
    best, quoted = declared_rows("arms", "image").iloc[0], network == PAPER_BEST_SEED[0]
    t = row.t if network == "ResNet-50" else np.nan
    over_seeds = (row.low_seeds, row.high_seeds, comparisons.OVER_SEEDS)
    over_both = (row.low_patients, row.high_patients, comparisons.over_gain(row.n_seeds))
    errors = f"two-sided t test over {over_both[2].partition(' (')[0]}; no interval"
    role = "" if backbone == run.settings.sweep.backbones[0] else " (exploratory)"
    gain, alone = f"gain by {row.arm} images, r = {row.rate:g}{way}{role}", "not in the paper"
    least, test = "true gain that about four in five such studies find (80 % power)", "paired t of the gain over seeds"
    highest = f"best single seed, an optimistic maximum{f' (paper: {network})' * quoted}"
    own, maximum = same if quoted else "the paper has it for EfficientNet v1", PAPER_BEST_SEED[1] if quoted else None
    single = (
        ("gain.seeds", gain, row.difference, same, over_seeds, row.n_seeds, unit, known[2]),
        ("gain.patients", gain, row.difference, same, over_both, row.n_patients, unit, known[2]),
        ("smallest_gain", least, row.smallest_effect, alone, (None, None, errors), row.n_patients, unit, None),
        ("paired_t", f"{test} (unadjusted)", t, same, (None, None, over_seeds[2]), row.n_seeds, "t", PAPER_T),
        (
            "best_seed",
            highest,
            best.best_seed_auc,
            own,
            (None, None, "no interval: a maximum"),
            best.n_seeds,
            unit,
            maximum,
        ),
    )
    for key, text, value, protocol, interval, n, of, paper in single:
        if np.isfinite(value):
            facts = {"interval": interval, "n": n, "unit": of, "paper": paper}
            rows.append(claim(f"sweep.{key}", text, value, protocol, **facts))
    for one in declared_rows("measures", None).to_dict("records"):
        key, text = key_of("sweep.measure", one["measure"]), f"{one['measure']}: {one['arm']}, r = {one['rate']:g}"
        rows.append(of_row(key, text, one, alone, "by patient", columns=("value", "n_patients")))
    return rows


# ---------------------------------------------------------------- what the stage hands on


def units(run: Run) -> list[Unit]:
    """Units of the grid and, where it is complete, its tables; those of the baselines are
    `frozen_classifier_units.units`.
    """
    sealed = [scores_unit(run), tables_unit(run)]
    if run.settings.sweep.allow_missing:
        sealed = [unit for unit in sealed if unit.done()]
    return [*(features_unit(**task) for task in feature_tasks(run)), *sealed]
