"""Stage 06, the answer: what the scores of the grid say, and what each arm cost. Opens and writes files.

Contract: only units are opened and written, no path is named here; what is stored is computed once, and never from an
incomplete grid. ``tables`` are always those of `build_tables`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import ldm, params, preprocessing, quality, sampling, views
from nafld_utils.artifacts import Run, Unit, claim, key_of, of_row, save_table
from nafld_utils.sweep import comparisons, trial_grid
from nafld_utils.sweep.prefix_features import feature_tasks, features_unit, kinds_of
from nafld_utils.sweep.training_units import scores_unit

REVISION = ("stages.sweep_answer", 2)

# Settings that what a classifier learns depends on; those of statistics, of arithmetic and of speed are left out.
TRAINING = (
    "weights", "crops", "steps", "batch_size", "learning_rate", "weight_decay", "rotation",
    "rotation_probability",
)  # fmt: skip
PIXELS = tuple(name for name in params.PreprocessSettings.model_fields if name != "image_size")  # its own entry

TABLES = ("comparisons", "arms", "seeds", "measures", "optimistic", "variants", "roc", "reliability")

# Columns of the notebook's tables, in their order; a table shows those that it has.
_PATIENTS = ("low_patients", "high_patients", "p_patients")
COLUMNS = {
    "gain": (*comparisons.CELL, "mean_auc_base", "mean_auc", "difference", "role", "note"),
    "intervals": (
        *comparisons.CELL, "t", "p", "p_holm", "low_seeds", "high_seeds", "n_seeds",
        *_PATIENTS, "p_patients_holm", "smallest_effect", "n_patients",
    ),
    "by patient": (
        *comparisons.CELL, "difference", *_PATIENTS, "delong_low", "delong_high", "delong_p", "delong_p_holm", "role",
    ),
    "arms": (
        "level", *comparisons.CELL, "mean_auc", "low", "high", "fold_auc", "fold_low", "fold_high", "sd_seeds",
        "n_seeds", "n_patients", "over",
    ),
    "optimistic": (
        *comparisons.GROUP, "arm", "mean_auc", "best_rate", "best_rate_auc", "best_seed_rate", "best_seed_auc",
        "trainings", "is",
    ),
    "measures": ("arm", "rate", "measure", "value", "low", "high", "reference", "n_patients", "over"),
    "baselines": ("baseline", "split", "level", "auc", "low", "high", "byra", "n_patients", "over"),
    "costs": (
        "arm", "trainings", "seconds_each", "classifier_minutes", "feature_minutes", "generator_minutes", "difference",
    ),
}  # fmt: skip

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
    settings |= {"interval": chosen.interval_method, "specificity": chosen.specificity, "seed": run.settings.seed}
    settings["grade"] = views.of(run).grade
    modules = ["sweep_tables", "sweep_summaries", "stats", "resampling", "delong", "measures"]
    return run.unit("sweep_tables", settings=settings, inputs=[scores_unit(run)], modules=modules)


def declared(run: Run, table: pd.DataFrame, **change: Any) -> dict[str, Any]:
    """The one comparison declared beforehand, as columns and values of `comparisons.CELL`, but for what is changed.

    Where a run has no network frozen as in the paper, or none without oversampling, the first way of training of
    `table` is meant.
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
        Those of `sweep_tables`: ``comparisons`` (`compare_arms`), ``arms`` (`arm_intervals`), ``seeds``
        (`auc_by_seed`), each with a column ``level`` (image or patient); ``measures`` (`patient_measures`),
        ``optimistic``, ``variants``, and of real images alone and of the declared arm and rate, every group, ``roc``
        (`roc_bands`) and ``reliability``.
    """
    unit = tables_unit(run)
    if not note and unit.done():
        return {name: unit.load_table(f"{name}.parquet") for name in TABLES}
    chosen = run.settings.sweep
    options = {"n_resamples": chosen.n_resamples, "seed": run.settings.seed}
    intervals = {**options, "method": chosen.interval_method}
    primary = declared(run, scores)
    levels: dict[str, list[pd.DataFrame]] = {"comparisons": [], "arms": [], "seeds": []}
    for level in comparisons.LEVELS:
        # the grid is complete: an arm with fewer seeds was planned with them
        compared = comparisons.compare_arms(scores, level, params.REAL, primary, **intervals, fewer_seeds=True)
        levels["comparisons"].append(compared.assign(level=level))
        levels["arms"].append(comparisons.arm_intervals(scores, level, **intervals).assign(level=level))
        levels["seeds"].append(comparisons.auc_by_seed(scores, level).assign(level=level))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in levels.items()}
    tables["measures"] = comparisons.patient_measures(
        scores, grades(run), chosen.specificity, **options, grade_name=views.of(run).grade
    )
    tables["optimistic"] = comparisons.optimistic(tables["arms"])
    tables["variants"] = comparisons.variants(tables["arms"])
    both = scores[(scores["arm"] == params.REAL) | _at_primary(run, scores)]
    tables["roc"] = comparisons.roc_bands(both, min(500, chosen.n_resamples), run.settings.seed)
    tables["reliability"] = comparisons.reliability(both)
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
        f"No correlation of scores with {views.of(run).grade}: it is known for {known.notna().sum()} of {len(known)}"
        " patients, or the same for all."
    )


def at(run: Run, table: pd.DataFrame, level: str | None = "image", **change: Any) -> pd.DataFrame:
    """Rows of the main way of training (see `declared`), every arm and rate, at one level (image or patient)."""
    cell = declared(run, table, **change)
    keep = {name: value for name, value in cell.items() if name not in ("arm", "rate")}
    if level:
        keep["level"] = level
    return table[comparisons.where(table, keep)].reset_index(drop=True)


def networks(run: Run, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Networks trained in the main way with the declared arm and rate, that of the declared comparison first."""
    compared = tables["comparisons"]
    keep = declared(run, compared)
    first = keep.pop("backbone")
    others = compared.loc[comparisons.where(compared, keep), "backbone"]
    return [first, *(name for name in dict.fromkeys(others) if name != first)]


def shown(table: pd.DataFrame, name: str) -> Any:
    """The columns of one of the notebook's tables (`COLUMNS`), those that it has, as a styled table of three digits."""
    names = [column for column in COLUMNS[name] if column in table]
    return table[names].style.format(precision=3, na_rep="").hide(axis="index")


def primary(run: Run, tables: dict[str, pd.DataFrame], level: str = "image") -> pd.Series:
    """The one comparison that was declared beforehand, with the first backbone.

    It is primary at image level; its row at patient level is a sensitivity analysis (`comparisons.compare_arms`).
    """
    table = tables["comparisons"]
    return table[(table["role"] != comparisons.EXPLORATORY) & (table["level"] == level)].iloc[0]


def answer(run: Run, tables: dict[str, pd.DataFrame]) -> str:
    """Whether synthetic images helped: the difference, what each interval is over, the verdict, what could be seen.

    The last sentence says whether the run's settings are those of the declared analysis.
    """
    row, whole = primary(run, tables), primary(run, tables, "patient")
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
    seeds = " and of the seeds" if row.n_seeds > 1 else ""
    text.append(
        "On other patients like these, given these trained models and this split, it lies in"
        f" [{row.low_patients:+.3f}, {row.high_patients:+.3f}] (95 %, bootstrap of {row.n_patients} patients{seeds}),"
        f" so {_verdict(row)}; {_could_show(row)}."
    )
    text.append(
        "That is the primary analysis. Unadjusted sensitivity analyses of the same comparison are"
        f" {'the interval over seeds and, ' if seeds else ''}with a patient counted once, a difference of"
        f" {whole.difference:+.3f}"
        f" [{whole.low_patients:+.3f}, {whole.high_patients:+.3f}], DeLong p = {whole.delong_p:.2g}."
    )
    text.append(params.declared.declared(run.settings))
    return " ".join(text)


def _could_show(row: pd.Series) -> str:
    if np.isfinite(row.smallest_effect):
        return f"the smallest difference that so many patients could show is about {row.smallest_effect:.3f}"
    return "how small a difference they could show cannot be told, since every resample of them gives this one"


def _verdict(row: pd.Series) -> str:
    if row.low_patients > 0:
        return "the images helped, as far as this split and these training runs show"
    if row.high_patients < 0:
        return "the images did harm, as far as this split and these training runs show"
    over_seeds = np.isfinite(row.low_seeds) and (row.low_seeds > 0 or row.high_seeds < 0)
    seeds = "a difference over seeds alone, and " if over_seeds else ""
    return f"{seeds}this run does not tell whether the images help"


# ---------------------------------------------------------------- what an arm costs


def costs(run: Run, status: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What each arm cost on this device: its classifiers, and the diffusion models and sets that it mixes in.

    Parameters
    ----------
    run : Run
    status : pandas.DataFrame
        From `sweep.run_sweep`.
    tables : dict
        From `build_tables`.

    Returns
    -------
    pandas.DataFrame
        ``arm, trainings, seconds_each`` (median), ``classifier_minutes, feature_minutes`` (frozen prefixes of the arm's
        sets, real images among them), ``generator_minutes`` (`_makers`; 0 for real and traditional images),
        ``difference`` (image level, main way of training, at the declared rate; NaN where the arm was not trained at
        it). What several arms share is counted with each of them. Left out is what stages 01 and 02 took.
    """
    done, compared = status[status["state"] == "done"], at(run, tables["comparisons"])
    rows = []
    for arm, part in done.groupby("arm", sort=False):
        gain = compared[comparisons.where(compared, {"arm": arm, "rate": run.settings.sweep.primary_rate})]
        row = {"arm": arm, "trainings": len(part), "seconds_each": part["seconds"].median()}
        row |= {"classifier_minutes": part["seconds"].sum() / 60, "feature_minutes": _features(run, arm) / 60}
        row |= {"generator_minutes": _generators(run, arm) / 60}
        rows.append({**row, "difference": gain["difference"].iloc[0] if len(gain) else float("nan")})
    return pd.DataFrame(rows)


def _features(run: Run, arm: str) -> float:
    """Seconds of the frozen prefixes' features that trainings of an arm read, of all networks and folds."""
    tasks = [task for task in feature_tasks(run) if task["kind"] in kinds_of([arm])]
    return float(sum(features_unit(**task).seconds() for task in tasks))


def _generators(run: Run, arm: str) -> float:
    """Seconds of everything that made the synthetic images of an arm, in all folds; what folds share counts once."""
    names = params.parse(arm).models
    units = [unit for name in names for fold in trial_grid.folds_of(run.settings) for unit in _makers(run, name, fold)]
    return float(sum(unit.seconds() for unit in {unit.path: unit for unit in units}.values()))


def _makers(run: Run, name: str, fold: int) -> list[Unit]:
    """First stage, latents, the generator's training, the drawing of its set, and what the filter chose by."""
    if name == quality.NAME:
        made_by, kind = run.settings.filtered_generator, run.settings.quality.features
        read = [sampling.features_unit(run, kind, made_by, fold), sampling.features_unit(run, kind, sampling.REAL)]
        chosen = [*read, quality.audit_unit(run, made_by, fold), quality.unit_of(run, fold)]
        return [*_makers(run, made_by, fold), *chosen]
    drawn = sampling.synthetic_unit(**sampling.task_of(run, name, fold))
    if name in sampling.BASELINES:
        return [sampling.BASELINES[name].unit(run, fold), drawn]
    of = params.SetName.of(name)
    conditioning, balance = of.conditioning, of.balance
    trained = run.settings.section(f"autoencoder.{conditioning}")["source"] == "train"
    first = [ldm.autoencoder_unit(run, conditioning, fold)] * trained
    latents = ldm.latents_unit(run, conditioning, fold)
    return [*first, latents, ldm.ldm_unit(run, conditioning, fold, balance), drawn]


# ---------------------------------------------------------------- beside the paper


def protocol(run: Run, backbone: str | None = None) -> str:
    """``"yes"``, or what differs from the paper's protocol in the classifiers and images that are compared.

    `backbone` is that whose declared comparison is meant; None is the run's first. The paper has three (Fig. 5B).
    """
    paper, chosen, grid = params.load(params.BASE_PROFILE), run.settings, trial_grid.grid(run.settings)
    differs, cell = ldm.cohort(run), declared(run, grid, **({"backbone": backbone} if backbone else {}))
    if cell["backbone"] not in paper.experiments["fig5b"].backbones:
        differs.append(f"{cell['backbone']} instead of ResNet-50")
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
    return ldm.in_words(differs + ldm.models(run, drawn, sampled=True))


def claims(run: Run, tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers of the sweep beside the paper's; those of the baselines are `frozen_classifier_units.claims`."""
    shown = networks(run, tables)
    rows = [(backbone, row) for backbone in shown for row in _claims_of(run, tables, backbone)]
    if len(shown) == 1:
        return [row for _, row in rows]
    return [{**row, "claim": f"{row['claim']} [{name}]", "key": key_of(row["key"], name)} for name, row in rows]


def _way(run: Run, table: pd.DataFrame) -> str:
    """How the declared comparison's training differs from the paper's main one, in a claim; mostly empty."""
    cell, named = declared(run, table), comparisons.VARIANTS
    other = {name: cell[name] for name, main in comparisons.MAIN.items() if cell.get(name, main) != main}
    return "".join(f", {named.get(item, ' '.join(item))}" for item in other.items())


def _claims_of(run: Run, tables: dict[str, pd.DataFrame], backbone: str) -> list[dict[str, Any]]:
    """Claims of one network; the paper's numbers are of its main way of training and stand beside no other."""
    network, before, after = PAPER_AUC.get(backbone.partition(".")[0], PAPER_AUC["resnet50"])
    same, way = protocol(run, backbone), _way(run, tables["arms"])
    known = (before, after, round(after - before, 3)) if not way else (None, None, None)
    beside = way or f" (paper: {network})"
    compared, rows = {}, []
    for level in comparisons.LEVELS:
        found = at(run, tables["comparisons"], level, backbone=backbone)
        row = compared[level] = found[_at_primary(run, found)].iloc[0]
        arms = at(run, tables["arms"], level, backbone=backbone)
        paper = known[:2] if level == "image" else (None, None)
        cells = (
            ("real", params.REAL, 0.0, "real images alone"),
            ("declared", row.arm, row.rate, f"{row.arm}, r = {row.rate:g}"),
        )
        for (part, arm, rate, text), value in zip(cells, paper, strict=True):
            one = arms[(arms["arm"] == arm) & (arms["rate"] == rate)].iloc[0]
            key, unit = f"sweep.auc.{level}.{part}", f"{level}-level AUC"
            rows.append(of_row(key, f"{text}{beside}", one, same, unit, value, columns=("mean_auc", "n_patients")))
    row = compared["image"]
    over = {"seeds": comparisons.OVER_SEEDS, "patients": comparisons.over_patients(row.n_seeds)}
    for name, n in (("seeds", row.n_seeds), ("patients", row.n_patients)):
        facts = {"interval": (row[f"low_{name}"], row[f"high_{name}"], over[name]), "n": n, "unit": "image-level AUC"}
        text = f"gain by {row.arm} images, r = {row.rate:g}{way}"
        rows.append(claim(f"sweep.gain.{name}", text, row.difference, same, paper=known[2], **facts))
    return rows + _tests_of(run, tables, backbone, "" if way else network, row, same)


def _tests_of(
    run: Run, tables: dict[str, pd.DataFrame], backbone: str, network: str, row: pd.Series, same: str
) -> list[dict[str, Any]]:
    """What else is said of the declared arm: what could be seen, the paper's t, its best seed, measures by patient."""
    unit, rows = "image-level AUC", []
    if np.isfinite(row.smallest_effect):
        over = f"2.8 standard errors over patients{' and seeds' if row.n_seeds > 1 else ''}; no interval"
        text = "smallest gain that these patients could show (80 % power)"
        facts = {"interval": (None, None, over), "n": row.n_patients, "unit": unit}
        rows.append(claim("sweep.smallest_gain", text, row.smallest_effect, "not in the paper", **facts))
    if network == "ResNet-50" and np.isfinite(row.t):
        text = "paired t of the gain over seeds (sensitivity analysis)"
        facts = {"interval": (None, None, comparisons.OVER_SEEDS), "n": row.n_seeds, "unit": "t", "paper": PAPER_T}
        rows.append(claim("sweep.paired_t", text, row.t, same, **facts))
    arms = at(run, tables["arms"], backbone=backbone)
    best = arms[_at_primary(run, arms)].iloc[0]
    quoted = network == PAPER_BEST_SEED[0]
    text = f"best single seed, an optimistic maximum{f' (paper: {network})' * quoted}"
    facts = {"interval": (None, None, "no interval: a maximum"), "n": best.n_seeds, "unit": unit}
    own = same if quoted else "the paper has it for EfficientNet v1"
    paper = PAPER_BEST_SEED[1] if quoted else None
    rows.append(claim("sweep.best_seed", text, best.best_seed_auc, own, paper=paper, **facts))
    found = at(run, tables["measures"], None, backbone=backbone)
    for one in found[_at_primary(run, found)].to_dict("records"):
        key, text = key_of("sweep.measure", one["measure"]), f"{one['measure']}: {one['arm']}, r = {one['rate']:g}"
        rows.append(of_row(key, text, one, "not in the paper", "by patient", columns=("value", "n_patients")))
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
