"""Stage 05: quality tables of every set, fold by fold, and where they stand. Opens and writes files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, params, sampling, statistics
from nafld_utils.artifacts import UNSTATED, Run, Unit, key_of, of_row, over_folds, remembered, save_table, unit_seed
from nafld_utils.params import SetName
from nafld_utils.quality import metric_tables
from nafld_utils.quality.figures import WORDS, short
from nafld_utils.quality.metric_tables import FeatureSet
from nafld_utils.sampling import NOISE, REAL, TRADITIONAL

REVISION = ("stages.quality", 4)
STAGE = "05_quality_metrics"
REPEATED, VALIDATION = "repeated_image", "real_validation"
CEILINGS = ("untrained_", "gaussian_")  # prefixes of the sets that no model had to learn
# The paper's own numbers: the extremes of its Fig. 4, and those per class of its class-balanced variant.
_PAPER_EXTREMES = {"frechet": 69.45, "score": 1.90}
_PAPER_BALANCED = {
    "frechet": {"semantic": (104.83, 72.95), "class": (104.29, 69.77)},
    "score": {"semantic": (1.79, 1.81), "class": (1.84, 1.89)},
}
# As the paper quotes them: the best GANs of Che et al. 2021, whose networks and values per class are not known here.
_QUOTED_GAN = {"frechet": 100.05, "score": 1.67}


def quoted() -> pd.DataFrame:
    """FID and IS of the published cohort, never this run's: ``source, class`` (the paper's), ``FID, IS``."""
    best = "best of both classes"
    rows = [("LDM, best (paper)", best, *_PAPER_EXTREMES.values())]
    rows += [("GAN, best (Che et al., quoted by the paper)", best, *_QUOTED_GAN.values())]
    for model in ("semantic", "class"):
        values = zip(*(models[model] for models in _PAPER_BALANCED.values()), strict=True)
        rows += [(f"{model} LDM, balanced cohort (paper)", f"class {i}", *pair) for i, pair in enumerate(values)]
    return pd.DataFrame(rows, columns=["source", "class", "FID", "IS"])


def spaces(run: Run) -> list[str]:
    """Feature spaces that the Frechet distance is measured in; the first one carries all metrics."""
    chosen = run.settings.quality
    return [kind for kind in (chosen.features, chosen.second_features) if kind]


def table_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per set that the quality tables need; the ceilings in the first feature space only."""
    first, *others = spaces(run)
    made, shared = sampling.generators(run), (REAL, TRADITIONAL)
    judged = [*made, *sampling.prefixed(run, CEILINGS), NOISE]
    tasks = sampling.feature_units.feature_tasks(run, first, judged, shared)
    return tasks + [task for kind in others for task in sampling.feature_units.feature_tasks(run, kind, made, shared)]


# ---------------------------------------------------------------- the quality table


@remembered
def table_unit(run: Run) -> Unit:
    """Unit of the quality tables."""
    chosen = run.settings.section("quality")
    settings = {key: chosen[key] for key in ("features", "kid_subsets", "kid_subset_size", "neighbours")}
    settings |= {"seed": run.settings.seed, "class_names": run.settings.cohort.class_names}
    inputs = [sampling.features_unit(**task) for task in table_tasks(run)]
    modules = ["quality", "quality_tables", "manifolds", "stages.quality"]
    return run.unit("quality", "table", settings=settings, inputs=inputs, modules=modules)


def fold_sets(run: Run, fold: int, kind: str | None = None, judged: bool = True) -> tuple[FeatureSet, list[FeatureSet]]:
    """A fold's held-out real images, and the generators, floor and ceilings compared with them.

    Without `judged` the ceilings are left out, which are measured in the first feature space only.
    """
    kind, table = kind or run.settings.quality.features, sampling.real_table(run)
    held = table["fold"].to_numpy() == fold

    def real(name: str, role: str, stored: str, rows: np.ndarray) -> FeatureSet:
        found, logits = sampling.load_features(run, kind, stored)
        labels, patients = (table[column].to_numpy()[rows] for column in ("label", "patient_id"))
        return FeatureSet(name, role, found[rows], logits[rows], labels, patients=patients)

    def made(name: str, role: str, labels: np.ndarray | None = None, patients: np.ndarray | None = None) -> FeatureSet:
        return FeatureSet(name, role, *sampling.load_features(run, kind, name, fold), labels, patients=patients)

    floor = real(metric_tables.FLOOR, "floor", REAL, ~held)
    sets = [floor]
    for name in sampling.generators(run):
        drawn = sampling.drawn_table(run, name, fold)
        sets.append(made(name, role_of(name), drawn["label"].to_numpy(), sampling.patients_of(drawn)))
    sets.append(real(TRADITIONAL, "baseline", TRADITIONAL, ~held))
    if judged:
        repeats = max(len(item.features) for item in sets if item.role == "model")
        sets += [made(name, "ceiling", labels_of(run, name, fold)) for name in sampling.prefixed(run, CEILINGS)]
        sets += [_repeated(floor, group, repeats) for group in (0, 1, None)]
        sets.append(made(NOISE, "ceiling"))
    return real(VALIDATION, "reference", REAL, held), sets


def role_of(generator: str) -> str:
    """Role of a generator's images in the tables."""
    return "baseline" if generator in sampling.BASELINES else "model"


def labels_of(run: Run, name: str, fold: int) -> np.ndarray | None:
    """Labels of a set; none of noise, nor of Gaussian latents, which have the moments of all training images."""
    if name == NOISE or not SetName.of(name).has_labels:
        return None
    return sampling.drawn_table(run, name, fold)["label"].to_numpy()


def _repeated(floor: FeatureSet, group: int | None, n: int) -> FeatureSet:
    """One training crop `n` times, for a class or for both together.

    Choice: the crop at the median distance from the mean of its group.
    """
    members = floor.rows(group)
    rows = [members[networks.typical(floor.features[members])]] * n
    return FeatureSet(REPEATED, "ceiling", floor.features[rows], floor.logits[rows], None, (group,))


def build_table(run: Run) -> Unit:
    """Measure every set of every fold; does nothing when the unit is done.

    Writes ``values.csv`` (a row per fold), ``intervals.csv``, ``places.csv``, and ``second.csv``: intervals of the
    Frechet distance in the second feature space, empty where there is none.
    """
    unit = table_unit(run)
    if unit.done():
        return unit
    parts: dict[str, list[pd.DataFrame]] = {kind: [] for kind in spaces(run)}
    chosen = run.settings.quality
    how = chosen.kid_subsets, chosen.kid_subset_size, run.settings.cohort.class_names, chosen.neighbours
    for fold in engine.progress(ldm.folds_of(run), "quality of each fold"):
        for i, (kind, found) in enumerate(parts.items()):
            rng = np.random.default_rng(unit_seed(run.settings.seed, "quality", *[kind] * i, fold))
            sets = fold_sets(run, fold, kind, judged=i == 0)
            found.append(metric_tables.measure(*sets, kind, rng, *how).assign(fold=fold))
    values, *others = (pd.concat(found, ignore_index=True) for found in parts.values())
    intervals = metric_tables.fold_intervals(values)
    second = [metric_tables.fold_intervals(other[other["metric"] == "frechet"]) for other in others]
    with unit.writing() as folder:
        save_table(folder / "values.csv", values)
        save_table(folder / "intervals.csv", intervals)
        save_table(folder / "places.csv", metric_tables.against_references(values))
        save_table(folder / "second.csv", second[0] if second else intervals.iloc[:0])
    return unit


def load_intervals(run: Run, name: str = "intervals.csv") -> pd.DataFrame:
    """Means and intervals over folds of the quality tables.

    Parameters
    ----------
    run : Run
    name : {"intervals.csv", "second.csv"}
        The second are in the other network's features.

    Returns
    -------
    pandas.DataFrame
        ``metric, sample, class, model, role, mean, low, high, over, note`` and counts; no note is an empty text.
    """
    return table_unit(run).load_table(name).astype({"note": object}).fillna({"note": ""})


def reading(places: pd.DataFrame, class_names: Iterable[str]) -> list[str]:
    """Where each model stands between floor and ceilings, in words, from `metric_tables.against_references`."""
    lines, groups = [], [*class_names, metric_tables.BOTH]
    for model, part in places.groupby("model", sort=False):
        found = part.set_index("class")
        yes = [name for name in groups if found.loc[name, "below_every_ceiling"]]
        no = [name for name in groups if name not in yes]
        text = "for no class shown to lie below every ceiling"
        if yes:
            text = f"shown to lie below every ceiling for {params.listed(yes)}"
            text += f", not for {params.listed(no)}" * bool(no)
        lines.append(f"{WORDS.get(model, model)}: {text}. {_both_in_words(found.loc[metric_tables.BOTH])}")
    return lines


def _gan_folds(run: Run) -> tuple[pd.DataFrame, pd.Series, str] | None:
    """What `gan_in_words` is told of both classes together, images in equal numbers; None where no GAN was trained."""
    if ldm.NAME not in sampling.generators(run):
        return None
    values = table_unit(run).load_table("values.csv")
    used = (values["metric"] == "frechet") & (values["sample"] == "equal") & (values["class"] == metric_tables.BOTH)
    folds, role = values[used].pivot_table("value", "fold", "model"), values[used].groupby("model")["role"].first()
    return folds, role, ldm.reference(run)


def gan_reading(run: Run) -> list[str]:
    """Where the GAN stands, in a sentence: its difference to the models only where it lies below its own ceilings.

    Its ceilings are those of the model whose latents it draws.
    """
    told = _gan_folds(run)
    return [] if told is None else [gan_in_words(*told)]


def untrained(run: Run) -> list[str]:
    """Generators not trained enough to compare: the GAN, where it is not shown to lie below every ceiling."""
    told = _gan_folds(run)
    return [] if told is None or _upper(gan_gap(*told)[1]) < 0 else [ldm.NAME]


def _ceilings(folds: pd.DataFrame, role: pd.Series, reference: str) -> list[str]:
    others = tuple(f"_{name}" for name in role.index[role == "model"] if name != reference)
    return [name for name in folds if role[name] == "ceiling" and not name.endswith(others)]


def gan_gap(folds: pd.DataFrame, role: pd.Series, reference: str) -> tuple[str, pd.Series]:
    """Ceiling of its own that the GAN is least clear of, and its distance minus that ceiling's, by fold."""
    gaps = {name: (folds[ldm.NAME] - folds[name]).dropna() for name in _ceilings(folds, role, reference)}
    least = max(gaps, key=lambda name: _upper(gaps[name]))
    return least, gaps[least]


def _upper(gap: pd.Series) -> float:
    """Upper end of a difference over folds; the difference itself where it has none."""
    mean, _, high = statistics.over_folds(gap)
    return mean if np.isnan(high) else high


def gan_in_words(folds: pd.DataFrame, role: pd.Series, reference: str) -> str:
    """`gan_reading` of distances (folds, sets), the sets' roles, and the model whose latents the GAN draws."""
    gan, least = folds[ldm.NAME], folds[_ceilings(folds, role, reference)].mean().idxmin()
    text = f"{WORDS[ldm.NAME]}, both classes, mean of the folds: {short(gan.mean())}, lowest ceiling"
    text += f" {short(folds[least].mean())} ({WORDS.get(least, least)})"
    if not _upper(gan_gap(folds, role, reference)[1]) < 0:
        return f"{text}; not shown to lie below every ceiling: not trained enough to compare."
    parts = []
    for name in role.index[role == "model"]:
        mean, low, high = statistics.over_folds((folds[name] - gan).dropna())
        over = "(one fold, no interval)" if np.isnan(low) else f"[{short(low)}, {short(high)}] (95 % over folds)"
        parts.append(f"{WORDS.get(name, name)} minus GAN {short(mean)} {over}")
    return f"{text}; below every ceiling. {'; '.join(parts)}."


def _both_in_words(row: pd.Series) -> str:
    """Both classes together between floor and ceilings, in a sentence."""
    ceiling, beyond = (WORDS.get(row[name], row[name]) for name in ("ceiling", "beyond"))
    text = f"Both classes, mean of the folds: {short(row['mean'])}, floor {short(row['floor'])}"
    text += f", lowest ceiling {short(row['lowest_ceiling'])} ({ceiling})"
    if not row["lowest_ceiling"] > row["floor"]:
        return f"{text}. That ceiling is no farther than the floor, so this cohort is too small to tell."
    of = "that ceiling" if beyond == ceiling else f"the ceiling that it is least clear of ({beyond})"
    over = "(one fold, no interval)"
    if np.isfinite(row["difference_low"]):
        over = f"[{short(row['difference_low'])}, {short(row['difference_high'])}] (95 % over folds)"
    side = f"farther than {of}, by" if row["difference"] >= 0 else f"nearer than {of}:"
    return f"{text}; {side} {short(row['difference'])} {over}."


def scored(run: Run, generator: str) -> pd.DataFrame:
    """Distance of a generator's images to the held-out real images of their fold: ``distance, fold, row``.

    ``distance`` is `networks.nearest_distance` in feature units, ``row`` the image's place in its set.
    """
    kind, rows = run.settings.quality.features, []
    real, _ = sampling.load_features(run, kind, REAL)
    folds = sampling.real_table(run)["fold"].to_numpy()
    for fold in ldm.folds_of(run):
        found, _ = sampling.load_features(run, kind, generator, fold)
        distance = networks.nearest_distance(found, real[folds == fold])
        rows.append(pd.DataFrame({"distance": distance, "fold": fold, "row": range(len(distance))}))
    return pd.concat(rows, ignore_index=True)


# ---------------------------------------------------------------- what the report's front page shows


def comparable(run: Run) -> bool:
    """Whether distances and scores are in the paper's units at all: its features, on real livers."""
    return run.settings.quality.features == "inception" and not run.is_simulated and not run.is_foreign


def protocol_difference(run: Run, conditioning: str) -> str:
    """What differs from the paper's protocol in a model's images and their measure: "yes" (the same) or "no: ..."."""
    found, chosen = ldm.cohort(run), run.settings.quality.features
    if chosen != "inception":
        network = networks.FEATURES[chosen].network
        found.append(f"features of {network}, not Inception-v3: other units, so no number of the paper's beside it")
    return ldm.in_words(found + ldm.models(run, [conditioning], sampled=True))


def claims(run: Run, intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Headline numbers of the quality table, of all images of a model as in the paper.

    The paper's numbers stand beside them only where both are in the same units; its values per class are those of its
    balanced cohort, so they stand beside the balanced models alone.
    """
    names, rows = networks.FEATURES[run.settings.quality.features].metrics, []
    models = intervals[(intervals["role"] == "model") & (intervals["sample"] == "all") & intervals["mean"].notna()]
    class_names = run.settings.cohort.class_names
    for metric, word, pick in (("frechet", "lowest", "idxmin"), ("score", "highest", "idxmax")):
        part = models[(models["metric"] == metric) & (models["class"] != metric_tables.BOTH)]
        best = part.loc[getattr(part["mean"], pick)()]
        text = f"{names[metric]}, {word} of all models and classes (here {best['model']}, {best['class']})"
        paper = _PAPER_EXTREMES[metric] if comparable(run) else None
        same = protocol_difference(run, SetName.of(best["model"]).conditioning)
        rows.append(of_row(f"quality.{metric}.{word}", text, best, same, paper=paper))
        for row in part.to_dict("records"):
            name, same, paper = SetName.of(row["model"]), UNSTATED, None
            if name.is_balanced:
                same = protocol_difference(run, name.conditioning)
                if comparable(run):
                    paper = _PAPER_BALANCED[metric][name.conditioning][class_names.index(row["class"])]
            key = key_of(f"quality.{metric}", row["model"], class_part(run, row["class"]))
            rows.append(of_row(key, f"{names[metric]}, {row['model']} model, {row['class']}", row, same, paper=paper))
    others = intervals[(intervals["metric"] == "frechet") & (intervals["class"] == metric_tables.BOTH)]
    for row in others[others["role"].isin(["floor", "baseline"]) & (others["sample"] == "equal")].to_dict("records"):
        what = {"floor": "real training images (floor)", "baseline": f"{WORDS.get(row['model'], row['model'])}"}[
            row["role"]
        ]
        text = f"{names['frechet']}, {what} against held-out images, equal numbers"
        rows.append(of_row(key_of(f"quality.frechet.{row['role']}", row["model"]), text, row))
    if (told := _gan_folds(run)) is not None:
        least, gap = gan_gap(*told)
        text = f"{names['frechet']}, GAN minus the ceiling that it is least clear of ({WORDS.get(least, least)})"
        rows.append(over_folds("quality.frechet.gan_minus_ceiling", text, gap, ""))
    return rows


def class_part(run: Run, name: str) -> str:
    """A class in the key of a claim, whatever the cohort calls it: ``label_0``, ``label_1`` or ``both``."""
    labels = {str(word): f"label_{label}" for label, word in enumerate(run.settings.cohort.class_names)}
    return labels.get(str(name), name)  # what is neither class is both


def units(run: Run) -> list[Unit]:
    """Every unit stage 05 stands on."""
    return [*(sampling.features_unit(**task) for task in table_tasks(run)), table_unit(run)]
