"""Stage 05: features of every set, quality tables, and whether the condition matters. Opens and writes files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, preprocess, quality, stats
from nafld_utils.artifacts import Run, Unit, file_sha256, save_array, save_table, unit_seed
from nafld_utils.stages import ldm, prepare, samples

REVISION = 1
STAGE = "05_quality_metrics"
REAL, NOISE, REPEATED, VALIDATION = "real", "noise", "repeated_image", "real_validation"
SERIAL_BELOW = 8000  # images; choice: starting workers costs more than a network of this size takes for fewer
SHARED = -1  # fold of a set that every fold shares
# Prefix of a set's name to the kind of stage 04's unit; the models themselves carry their conditioning's name alone.
_KINDS = {
    "": "synthetic",
    "null_": "synthetic_null",
    "untrained_": "synthetic_untrained",
    "gaussian_": "synthetic_gaussian",
}
# The paper's own numbers: the extremes of its Fig. 4, and those per class of its class-balanced variant.
_PAPER_EXTREMES = {"frechet": 69.45, "score": 1.90}
_PAPER_BALANCED = {
    "frechet": {"semantic": (104.83, 72.95), "class": (104.29, 69.77)},
    "score": {"semantic": (1.79, 1.81), "class": (1.84, 1.89)},
}


# ---------------------------------------------------------------- features


def _parts(name: str) -> tuple[str, str]:
    """Kind of stage 04's unit and conditioning of a set's name."""
    prefix, _, conditioning = name.rpartition("_")
    return _KINDS[f"{prefix}_" if prefix else ""], conditioning


def features_unit(run: Run, kind: str, name: str, fold: int = SHARED) -> Unit:
    """Unit of the features of one set.

    Parameters
    ----------
    run : Run
    kind : {"inception", "lite0"}
    name : str
        ``real`` (all real images, `fold` is `SHARED`), ``noise``, or a conditioning, alone or after ``null_``,
        ``untrained_`` or ``gaussian_``.
    fold : int
    """
    settings: dict[str, Any] = {"kind": kind, "set": name}
    inputs: list[Unit | str] = []
    if kind == "inception":
        path = run.settings.quality.weights
        inputs.append(file_sha256(path) if path else quality.INCEPTION_SHA256_PREFIX)
    if name in (REAL, NOISE):
        inputs.append(prepare.preprocess_unit(run))
        if name == NOISE:
            settings |= {"n": run.settings.quality.n_reference, "seed": run.settings.seed, "fold": fold}
    else:
        source, conditioning = _parts(name)
        inputs.append(samples.synthetic_unit(run, conditioning, fold, source))
    keys = (kind, name) if fold == SHARED else (kind, name, f"fold{fold}")
    return run.unit("features", *keys, settings=settings, inputs=inputs, modules=["quality", "backbones"])


def make_features(run: Run, kind: str, name: str, fold: int = SHARED) -> None:
    """Compute and store the features and logits of one set; does nothing when the unit is done."""
    unit = features_unit(run, kind, name, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    batch = 16 if device.type == "cpu" else 64  # small batches stay in a CPU's cache
    with unit.writing(device=str(device)) as folder:
        images = _images(run, name, fold)
        features, logits = quality.extract(images, kind, run.settings.quality.weights, device, batch)
        save_array(folder / "features.npy", features)
        save_array(folder / "logits.npy", logits)


def _images(run: Run, name: str, fold: int) -> np.ndarray:
    if name not in (REAL, NOISE):
        source, conditioning = _parts(name)
        return samples.open_synthetic(run, conditioning, fold, source).images
    data = prepare.open_preprocessed(run)
    if name == REAL:
        return data.resized
    # Choice: the grey levels of the training images without their places, a stricter ceiling than uniform noise.
    training = data.resized[data.images["fold"].to_numpy() != fold]
    levels = np.bincount(training.ravel(), minlength=256)
    rng = np.random.default_rng(unit_seed(run.settings.seed, NOISE, fold))
    shape = (run.settings.quality.n_reference, *training.shape[1:])
    return rng.choice(256, size=shape, p=levels / levels.sum()).astype(np.uint8)


def _tasks(run: Run, kind: str, prefixes: Iterable[str], noise: bool = False) -> list[dict[str, Any]]:
    tasks = [{"run": run, "kind": kind, "name": REAL, "fold": SHARED}]
    for fold in ldm.folds_of(run):
        names = [f"{prefix}{name}" for prefix in prefixes for name in run.settings.ldm.conditionings]
        tasks += [{"run": run, "kind": kind, "name": name, "fold": fold} for name in [*names, *[NOISE] * noise]]
    return tasks


def table_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a set that the quality table needs."""
    return _tasks(run, run.settings.quality.features, ("", "untrained_", "gaussian_"), noise=True)


def condition_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a set that the check of the condition needs; always EfficientNet-Lite0, which is installed."""
    return _tasks(run, "lite0", ("", "null_"))


def build_features(run: Run, tasks: list[dict[str, Any]], label: str = "features") -> pd.DataFrame:
    """Make the features that are not there yet: ``kind, name, fold, seconds, error``, one row a set."""
    settings = run.settings.engine
    waiting = sum(not _unit_of(task).done() for task in tasks)
    images = waiting * max(run.settings.sampling.n_images, run.settings.quality.n_reference)
    if settings.mode == "local" and images < SERIAL_BELOW:
        settings = settings.model_copy(update={"mode": "serial"})
    return engine.map_units(make_features, tasks, settings, label)


def _load(run: Run, kind: str, name: str, fold: int = SHARED) -> tuple[np.ndarray, np.ndarray]:
    unit = features_unit(run, kind, name, fold)
    return unit.load_array("features.npy"), unit.load_array("logits.npy")


# ---------------------------------------------------------------- the quality table


def table_unit(run: Run) -> Unit:
    """Unit of the quality table."""
    settings = run.settings.section("quality")
    settings = {key: settings[key] for key in ("features", "kid_subsets", "kid_subset_size")}
    return run.unit(
        "quality",
        "table",
        settings=settings | {"seed": run.settings.seed, "class_names": run.settings.cohort.class_names},
        inputs=[_unit_of(task) for task in table_tasks(run)],
        modules=["quality", "stages.quality"],
    )


def _unit_of(task: dict[str, Any]) -> Unit:
    return features_unit(task["run"], task["kind"], task["name"], task["fold"])


def fold_sets(run: Run, fold: int) -> tuple[quality.FeatureSet, list[quality.FeatureSet]]:
    """A fold's held-out real images, and the models, floor and ceilings compared with them."""
    kind = run.settings.quality.features
    table = prepare.open_preprocessed(run).images
    held, labels = table["fold"].to_numpy() == fold, table["label"].to_numpy()
    features, logits = _load(run, kind, REAL)
    reference = quality.FeatureSet(VALIDATION, "reference", features[held], logits[held], labels[held])
    real = (features[~held], logits[~held], labels[~held])
    sets = [quality.FeatureSet(quality.FLOOR, "floor", *real)]
    for conditioning in run.settings.ldm.conditionings:
        for prefix, role in (("", "model"), ("untrained_", "ceiling"), ("gaussian_", "ceiling")):
            name = f"{prefix}{conditioning}"
            drawn = samples.open_synthetic(run, conditioning, fold, _KINDS[prefix]).table["label"].to_numpy()
            own = None if prefix == "gaussian_" else drawn  # moments of all training images: no class
            sets.append(quality.FeatureSet(name, role, *_load(run, kind, name, fold), own))
    sets.append(_repeated(*real, n=max(len(item.features) for item in sets)))
    sets.append(quality.FeatureSet(NOISE, "ceiling", *_load(run, kind, NOISE, fold)))
    return reference, sets


def _repeated(features: np.ndarray, logits: np.ndarray, labels: np.ndarray, n: int) -> quality.FeatureSet:
    """One training image of each class, `n` times. Choice: at the median distance from its class's mean."""
    rows = []
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        rows += [members[quality.typical(features[members])]] * n
    return quality.FeatureSet(REPEATED, "ceiling", features[rows], logits[rows], labels[rows])


def build_table(run: Run) -> Unit:
    """Measure every set of every fold; writes ``values.csv`` (a row a fold), ``intervals.csv``, ``places.csv``."""
    unit = table_unit(run)
    if unit.done():
        return unit
    chosen = run.settings.quality
    parts = []
    for fold in engine.progress(ldm.folds_of(run), "quality of each fold"):
        rng = np.random.default_rng(unit_seed(run.settings.seed, "quality", fold))
        part = quality.measure(
            *fold_sets(run, fold),
            chosen.features,
            rng,
            chosen.kid_subsets,
            chosen.kid_subset_size,
            run.settings.cohort.class_names,
        )
        parts.append(part.assign(fold=fold))
    values = pd.concat(parts, ignore_index=True)
    intervals = quality.fold_intervals(values)
    with unit.writing() as folder:
        save_table(folder / "values.csv", values)
        save_table(folder / "intervals.csv", intervals)
        save_table(folder / "places.csv", quality.against_references(intervals))
    return unit


def load_intervals(run: Run) -> pd.DataFrame:
    """``intervals.csv`` of the quality table, an empty note as an empty text."""
    return table_unit(run).load_table("intervals.csv").fillna({"note": ""})


def reading(places: pd.DataFrame, class_names: Iterable[str]) -> list[str]:
    """One sentence a model, from `quality.against_references`, on where it stands between floor and ceilings."""
    lines = []
    for model, part in places.groupby("model", sort=False):
        below = dict(zip(part["class"], part["below_every_ceiling"], strict=True))
        yes = [name for name in [*class_names, quality.BOTH] if below[name]]
        no = [name for name in [*class_names, quality.BOTH] if not below[name]]
        text = f"below every ceiling, intervals apart, for {', '.join(yes) or 'no class'}"
        text += f"; not for {', '.join(no)}" if no and yes else ""
        row = part.set_index("class").loc[quality.BOTH]
        share = f"{row['place']:.0%} of the way from the floor to the lowest ceiling"
        if not row["lowest_ceiling"] > row["floor"]:
            share = "the lowest ceiling is no farther than the floor, so this cohort is too small to tell"
        lines.append(f"{model} model: {text}. Both classes together: {share}.")
    return lines


def gallery(run: Run, conditioning: str, n: int = 4) -> pd.DataFrame:
    """The `n` images of a model nearest to and farthest from held-out real images of their fold.

    Returns
    -------
    pandas.DataFrame
        ``kind`` ("near" or "far"), ``distance`` (feature units), ``fold, label``, ``image`` ((S, S) uint8).
    """
    kind, rows = run.settings.quality.features, []
    real, _ = _load(run, kind, REAL)
    folds = prepare.open_preprocessed(run).images["fold"].to_numpy()
    for fold in ldm.folds_of(run):
        features, _ = _load(run, kind, conditioning, fold)
        distance = quality.nearest_distance(features, real[folds == fold])
        rows.append(pd.DataFrame({"distance": distance, "fold": fold, "row": range(len(distance))}))
    table = pd.concat(rows).sort_values("distance", kind="stable", ignore_index=True)
    table = pd.concat([table.head(n).assign(kind="near"), table.tail(n)[::-1].assign(kind="far")], ignore_index=True)
    drawn = {fold: samples.open_synthetic(run, conditioning, fold) for fold in map(int, table["fold"].unique())}
    table["label"] = [int(drawn[f].table["label"].iloc[i]) for f, i in zip(table["fold"], table["row"], strict=True)]
    table["image"] = [np.asarray(drawn[f].images[i]) for f, i in zip(table["fold"], table["row"], strict=True)]
    return table.drop(columns="row")


# ---------------------------------------------------------------- does the condition matter?


def conditions_unit(run: Run) -> Unit:
    """Unit of the check that the condition matters."""
    maps = run.settings.section("preprocess")
    settings = {key: maps[key] for key in ("map_classes", "map_size", "map_order", "map_blur", "map_bins")}
    return run.unit(
        "quality",
        "conditions",
        settings=settings | {"seed": run.settings.seed},
        inputs=[_unit_of(task) for task in condition_tasks(run)],
        modules=["quality", "preprocess", "stages.quality"],
    )


def build_conditions(run: Run) -> Unit:
    """Check the condition of every model; writes ``agreement.csv``, ``separation.csv`` (image rows), ``summary.csv``.

    The column ``drawn_with`` says whether images were drawn with their condition ("condition") or without it ("no
    condition"; the word "null" reads back as missing from a CSV). An image without is judged by the condition it would
    have had, so both effects should vanish there.
    """
    unit = conditions_unit(run)
    if unit.done():
        return unit
    agreement, separation = [], []
    for task in engine.progress(ldm.tasks(run), "does the condition matter"):
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
    drawn, chosen = samples.open_synthetic(run, conditioning, fold, _KINDS[prefix]), run.settings.preprocess
    maps = preprocess.semantic_maps(np.asarray(drawn.images), chosen)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "agreement", prefix, fold))
    patients = drawn.table["source_patient"].to_numpy()
    return quality.condition_agreement(maps, np.asarray(drawn.conditions), patients, chosen.map_classes, rng)


def _separation(run: Run, conditioning: str, fold: int, prefix: str) -> pd.DataFrame:
    table = prepare.open_preprocessed(run).images
    training = table["fold"].to_numpy() != fold
    real, _ = _load(run, "lite0", REAL)
    features, _ = _load(run, "lite0", f"{prefix}{conditioning}", fold)
    score = quality.condition_separation(real[training], table["label"].to_numpy()[training], features)
    drawn = samples.open_synthetic(run, conditioning, fold, _KINDS[prefix]).table
    return drawn[["synthetic_id", "label"]].assign(score=score)


def _agreement_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for (conditioning, drawn_with), part in table.groupby(["conditioning", "drawn_with"], sort=False):
        for name in ("accuracy", "dice"):
            gain = part[name] - part[f"{name}_shuffled"]
            mean, low, high = quality.cluster_interval(gain, part["patient"], rng)
            row = {"effect": f"{name} of the map, own minus shuffled condition", "conditioning": conditioning}
            row |= {"drawn_with": drawn_with, "mean": mean, "low": low, "high": high, "expected_without": 0.0}
            rows.append({**row, "over": "source patients", "n": part["patient"].nunique(), "n_images": len(part)})
    return rows


def _separation_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for (conditioning, drawn_with), part in table.groupby(["conditioning", "drawn_with"], sort=False):
        row = {"effect": "AUC of a classifier that saw real images only", "conditioning": conditioning}
        row |= {"drawn_with": drawn_with, "expected_without": 0.5, "n_images": len(part)}
        folds = {fold: rows_of for fold, rows_of in part.groupby("fold") if set(rows_of["label"]) == {0, 1}}
        missing = sorted(set(part["fold"]) - set(folds))
        row["note"] = f"fold {', '.join(map(str, missing))}: images of one class only" if missing else ""
        aucs = [stats.auc(one["label"], one["score"]) for one in folds.values()]
        if len(aucs) > 1:
            mean, low, high = stats.student_t_interval(aucs)
            rows.append({**row, "mean": mean, "low": low, "high": high, "over": "folds", "n": len(aucs)})
        # Semantic images share source patients, so images are no units there.
        if conditioning == "class":
            mean, low, high = quality.separation_interval(part, rng)
            rows.append({**row, "mean": mean, "low": low, "high": high, "over": "images", "n": len(part)})
    return rows


# ---------------------------------------------------------------- what the report's front page shows


def protocol_difference(run: Run, conditioning: str | None = None) -> str:
    """What differs from the paper's protocol: "yes" (the same) or "no: ..."."""
    s, found = run.settings, []
    if run.is_simulated:
        found.append("simulated cohort")
    if s.quality.features != "inception":
        found.append(f"features of {quality.FEATURES[s.quality.features].network}, not Inception-v3: other units")
    if s.preprocess.image_size != 256:
        found.append(f"{s.preprocess.image_size} px")
    if s.sampling.n_images != 2000:
        found.append(f"{s.sampling.n_images} images a fold, not 2000")
    if s.ldm.steps != 20000:
        found.append(f"{s.ldm.steps} training steps, not 20000")
    kinds = {"semantic": s.autoencoder.semantic, "class": s.autoencoder.class_}
    names = kinds if conditioning is None else [conditioning]
    if any(kinds[name].kind != "vq" for name in names):
        found.append("another autoencoder")
    return "no: " + ", ".join(found) if found else "yes"


def claims(run: Run, intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Headline numbers of stage 05 beside the paper's, of all images of a model as in the paper."""
    names, rows = quality.FEATURES[run.settings.quality.features].metrics, []
    models = intervals[(intervals["role"] == "model") & (intervals["sample"] == "all") & intervals["mean"].notna()]
    for metric, word, pick in (("frechet", "lowest", "idxmin"), ("score", "highest", "idxmax")):
        part = models[(models["metric"] == metric) & (models["class"] != quality.BOTH)]
        best = part.loc[getattr(part["mean"], pick)()]
        text = f"{names[metric]}, {word} of all models and classes (here {best['model']}, {best['class']})"
        rows.append(_claim(text, _PAPER_EXTREMES[metric], best, protocol_difference(run, best["model"])))
        for row in part.to_dict("records"):
            paper = _PAPER_BALANCED[metric][row["model"]][run.settings.cohort.class_names.index(row["class"])]
            same = protocol_difference(run, row["model"]).removeprefix("no: ").removeprefix("yes")
            same = "no: the paper's value is of its class-balanced variant" + (f", {same}" if same else "")
            rows.append(_claim(f"{names[metric]}, {row['model']} model, {row['class']}", paper, row, same))
    floor = intervals[(intervals["role"] == "floor") & (intervals["metric"] == "frechet")]
    for row in floor[floor["class"] == quality.BOTH].to_dict("records"):
        text = f"{names['frechet']}, real training against held-out images (floor)"
        rows.append(_claim(text, None, row, "not stated in the paper"))
    return rows


def condition_claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of the check that the condition matters; the paper has none."""
    table, rows = build_conditions(run).load_table("summary.csv"), []
    for row in table[~table["effect"].str.startswith("dice")].to_dict("records"):
        how = "with its condition" if row["drawn_with"] == "condition" else "without condition"
        text = f"{row['conditioning']} model drawn {how}: {row['effect']}"
        rows.append(_claim(text, None, row, "not stated in the paper", "AUC" if "AUC" in text else "share of pixels"))
    return rows


def _claim(text: str, paper: float | None, row: Any, same: str, unit: str = "") -> dict[str, Any]:
    numbers = {"this_run": row["mean"], "low": row["low"], "high": row["high"], "over": row["over"], "n": row["n"]}
    return {"claim": text, "paper": paper, **numbers, "unit": unit, "same_protocol": same}


def units(run: Run) -> list[Unit]:
    """Every unit stage 05 stands on."""
    return [*(_unit_of(task) for task in table_tasks(run)), table_unit(run)]


def condition_units(run: Run) -> list[Unit]:
    """Every unit the check of the condition stands on."""
    return [*(_unit_of(task) for task in condition_tasks(run)), conditions_unit(run)]
