"""Stage 05: features of every set, quality tables, and whether the condition matters. Opens and writes files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, quality
from nafld_utils.artifacts import Run, Unit, file_sha256, save_array, save_table, unit_seed
from nafld_utils.stages import ldm, prepare, samples

REVISION = 3
STAGE = "05_quality_metrics"
REAL, NOISE, REPEATED, VALIDATION = "real", "noise", "repeated_image", "real_validation"
SERIAL_BELOW = 8000  # images; choice: starting workers costs more than a network of this size takes for fewer
SHARED = -1  # fold of a set that every fold shares
# Prefix of a set's name to the kind of stage 04's unit; the models themselves carry their conditioning's name alone.
KINDS = {
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
    return KINDS[f"{prefix}_" if prefix else ""], conditioning


def features_unit(run: Run, kind: str, name: str, fold: int = SHARED) -> Unit:
    """Unit of the features of one set.

    Parameters
    ----------
    run : Run
    kind : {"inception", "lite0", "random"}
    name : str
        ``real`` (every stored crop of all real images, `fold` is `SHARED`), ``noise``, or a conditioning, alone or
        after ``null_``, ``untrained_`` or ``gaussian_``.
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
        return data.pool.reshape(-1, *data.pool.shape[2:])
    # Choice: the grey levels of the training images without their places, a stricter ceiling than uniform noise.
    training = data.pool[data.images["fold"].to_numpy() != fold]
    levels = np.bincount(training.ravel(), minlength=256)
    rng = np.random.default_rng(unit_seed(run.settings.seed, NOISE, fold))
    shape = (run.settings.quality.n_reference, *training.shape[2:])
    return rng.choice(256, size=shape, p=levels / levels.sum()).astype(np.uint8)


def feature_tasks(run: Run, kind: str, prefixes: Iterable[str], noise: bool = False) -> list[dict[str, Any]]:
    """One task a set: the real images, and for every fold and model one set a prefix of `KINDS`, and noise."""
    tasks = [{"run": run, "kind": kind, "name": REAL, "fold": SHARED}]
    for fold in ldm.folds_of(run):
        names = [f"{prefix}{name}" for prefix in prefixes for name in run.settings.ldm.conditionings]
        tasks += [{"run": run, "kind": kind, "name": name, "fold": fold} for name in [*names, *[NOISE] * noise]]
    return tasks


def table_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a set that the quality table needs."""
    return feature_tasks(run, run.settings.quality.features, ("", "untrained_", "gaussian_"), noise=True)


def build_features(run: Run, tasks: list[dict[str, Any]], label: str = "features") -> pd.DataFrame:
    """Make the features that are not there yet: ``kind, name, fold, seconds, error``, one row a set."""
    settings = run.settings.engine
    waiting = sum(not features_unit(**task).done() for task in tasks)
    images = waiting * max(run.settings.sampling.n_images, run.settings.quality.n_reference)
    if settings.mode == "local" and images < SERIAL_BELOW:
        settings = settings.model_copy(update={"mode": "serial"})
    return engine.map_units(make_features, tasks, settings, label, unit_of=features_unit)


def real_table(run: Run) -> pd.DataFrame:
    """The images table with a row for every stored crop: the rows of the features of ``real``.

    Choice: real images stand beside synthetic ones as random resized crops, because the models learnt from such
    crops; whole images differ from them by their field of view more than healthy from fatty.
    """
    data = prepare.open_preprocessed(run)
    return data.images.loc[data.images.index.repeat(data.pool.shape[1])].reset_index(drop=True)


def load_features(run: Run, kind: str, name: str, fold: int = SHARED) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and logits (n, C) of one set, which must be there."""
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
        inputs=[features_unit(**task) for task in table_tasks(run)],
        modules=["quality", "stages.quality"],
    )


def fold_sets(run: Run, fold: int) -> tuple[quality.FeatureSet, list[quality.FeatureSet]]:
    """A fold's held-out real images, and the models, floor and ceilings compared with them."""
    kind, table = run.settings.quality.features, real_table(run)
    held, labels = table["fold"].to_numpy() == fold, table["label"].to_numpy()
    features, logits = load_features(run, kind, REAL)
    reference = quality.FeatureSet(VALIDATION, "reference", features[held], logits[held], labels[held])
    real = (features[~held], logits[~held], labels[~held])
    sets = [quality.FeatureSet(quality.FLOOR, "floor", *real)]
    for conditioning in run.settings.ldm.conditionings:
        for prefix, role in (("", "model"), ("untrained_", "ceiling"), ("gaussian_", "ceiling")):
            name = f"{prefix}{conditioning}"
            drawn = samples.open_synthetic(run, conditioning, fold, KINDS[prefix]).table["label"].to_numpy()
            own = None if prefix == "gaussian_" else drawn  # moments of all training images: no class
            sets.append(quality.FeatureSet(name, role, *load_features(run, kind, name, fold), own))
    sets += _repeated(*real, n=max(len(item.features) for item in sets))
    sets.append(quality.FeatureSet(NOISE, "ceiling", *load_features(run, kind, NOISE, fold)))
    return reference, sets


def _repeated(features: np.ndarray, logits: np.ndarray, labels: np.ndarray, n: int) -> list[quality.FeatureSet]:
    """One training crop `n` times, one for each class and one for both together.

    Choice: the crop at the median distance from the mean of its group.
    """
    sets: list[quality.FeatureSet] = []
    for group in (0, 1, None):
        members = np.arange(len(labels)) if group is None else np.flatnonzero(labels == group)
        rows = [members[quality.typical(features[members])]] * n
        sets.append(quality.FeatureSet(REPEATED, "ceiling", features[rows], logits[rows], None, (group,)))
    return sets


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
    real, _ = load_features(run, kind, REAL)
    folds = real_table(run)["fold"].to_numpy()
    for fold in ldm.folds_of(run):
        features, _ = load_features(run, kind, conditioning, fold)
        distance = quality.nearest_distance(features, real[folds == fold])
        rows.append(pd.DataFrame({"distance": distance, "fold": fold, "row": range(len(distance))}))
    table = pd.concat(rows).sort_values("distance", kind="stable", ignore_index=True)
    table = pd.concat([table.head(n).assign(kind="near"), table.tail(n)[::-1].assign(kind="far")], ignore_index=True)
    drawn = {fold: samples.open_synthetic(run, conditioning, fold) for fold in map(int, table["fold"].unique())}
    table["label"] = [int(drawn[f].table["label"].iloc[i]) for f, i in zip(table["fold"], table["row"], strict=True)]
    table["image"] = [np.asarray(drawn[f].images[i]) for f, i in zip(table["fold"], table["row"], strict=True)]
    return table.drop(columns="row")


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
        rows.append(claim(text, _PAPER_EXTREMES[metric], best, protocol_difference(run, best["model"])))
        for row in part.to_dict("records"):
            paper = _PAPER_BALANCED[metric][row["model"]][run.settings.cohort.class_names.index(row["class"])]
            same = protocol_difference(run, row["model"]).removeprefix("no: ").removeprefix("yes")
            same = "no: the paper's value is of its class-balanced variant" + (f", {same}" if same else "")
            rows.append(claim(f"{names[metric]}, {row['model']} model, {row['class']}", paper, row, same))
    floor = intervals[(intervals["role"] == "floor") & (intervals["metric"] == "frechet")]
    for row in floor[floor["class"] == quality.BOTH].to_dict("records"):
        text = f"{names['frechet']}, real training against held-out images (floor)"
        rows.append(claim(text, None, row, "not stated in the paper"))
    return rows


def claim(text: str, paper: float | None, row: Any, same: str, unit: str = "") -> dict[str, Any]:
    """One row of ``claims.csv`` from a row with ``mean, low, high, over, n``."""
    numbers = {"this_run": row["mean"], "low": row["low"], "high": row["high"], "over": row["over"], "n": row["n"]}
    return {"claim": text, "paper": paper, **numbers, "unit": unit, "same_protocol": same}


def units(run: Run) -> list[Unit]:
    """Every unit stage 05 stands on."""
    return [*(features_unit(**task) for task in table_tasks(run)), table_unit(run)]
