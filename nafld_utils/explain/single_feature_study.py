"""Does SHAP find the one feature that a label depends on? Small classifiers on simulated cohorts made for the question.

Contract: settings and seeds in, tables and arrays out; the same settings give the same numbers on the same machine.
Three cohorts show the same simulated patients. In each the label shows in one feature alone, so it is known what the
classifier must have used, and the *twin* of an image (the same patient, the same speckle, without the feature or with
it) shows to the pixel where that is.

Notes
-----
Choice: EfficientNet-Lite0 with its bundled weights, 128 pixels, the first half of the network frozen as in the sweep;
half of the patients are held out. Attributions of a classifier that has not learnt the feature say nothing about SHAP,
so they are read only where the held-out AUC's lower bound lies above 0.7 (`map_measures.readable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import cohort, images, networks, phantom, preprocessing, statistics, sweep
from nafld_utils.explain import explainers, map_measures
from nafld_utils.images import random_box, resize_box
from nafld_utils.phantom import TISSUES

REVISION = ("feature_study", 2)

NETWORK = "tf_efficientnet_lite0"
SIZE, CROP = 128, 320  # pixels, as shown to the network and as cut out of a frame
N_FRAMES, N_VIEWS = 2, 4  # frames per patient, random crops per training frame
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 5.0e-4, 0.01  # Choice: the sweep's, with a step for short runs
# What a map must point at where the label shows in this alone.
TARGETS = {
    "echogenicity": ("liver", "kidney cortex"),
    "vessel_blur": ("vessel border",),
    "diaphragm_blur": ("diaphragm border",),
}


class Cohort(NamedTuple):
    """Images of one cohort; row i of everything belongs to image i.

    ``images`` holds ``patient_id, label, grade, fold, sha256, image_id``, fold 0 being held out; ``resized`` (N, S, S)
    uint8 whole crops, ``pool`` (N, K, S, S) uint8 random crops, ``tissue`` (N, S, S) uint8 the codes of ``resized``.
    """

    images: pd.DataFrame
    resized: np.ndarray
    pool: np.ndarray
    tissue: np.ndarray


@dataclass(frozen=True)
class Options:
    """How the study is made; see section ``shap`` of the settings."""

    n_patients: int
    steps: int
    n_explained: int
    n_background: int
    n_samples: int
    smoothing: float
    border: float
    seed: int
    n_jobs: int = 1
    network_weights: str = "bundled"


# ---------------------------------------------------------------- images


def crop_of(frame: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre crops of a frame and of its tissue mask, (320, 320) uint8 each, as the study's preprocessing cuts them."""
    region = images.region_mask(frame)
    corner = images.crop_corner(region, CROP)
    return images.cut(np.where(region, frame, 0).astype(np.uint8), corner, CROP), images.cut(mask, corner, CROP)


def _whole(crop: np.ndarray, labels: bool = False) -> np.ndarray:
    return images.resize_box(crop, images.whole_box(crop), SIZE, labels=labels)


def make_cohort(feature: str, n_patients: int, seed: int, n_jobs: int = 1) -> Cohort:
    """Simulate a cohort about one of `phantom.FEATURES` and cut it as the study does; `n_jobs` processes simulate."""
    found = cohort.simulate(n_patients, seed, N_FRAMES, min(n_jobs, n_patients), feature)
    assigned = preprocessing.make_folds(found.patients, 2, seed)
    images = found.images.merge(assigned, on="patient_id", how="left", validate="many_to_one")
    preprocessing.split(images, 0)
    resized, tissue = (np.empty((len(images), SIZE, SIZE), np.uint8) for _ in range(2))
    pool = np.empty((len(images), N_VIEWS, SIZE, SIZE), np.uint8)
    for i, (frame, mask) in enumerate(zip(found.pixels, found.masks, strict=True)):
        crop, codes = crop_of(frame, mask)
        resized[i], tissue[i] = _whole(crop), _whole(codes, labels=True)
        rng = np.random.default_rng([seed, 21, i])
        for j in range(N_VIEWS):
            box = random_box(crop.shape, (0.64, 1.0), (0.9, 1.1), rng)
            pool[i, j] = resize_box(crop, box, SIZE)
    return Cohort(images, resized, pool, tissue)


def twins(images: pd.DataFrame, feature: str, seed: int) -> np.ndarray:
    """First frames (n, 128, 128) uint8 of the same patients with the feature where they lack it, without where not.

    `images` are rows of a `Cohort`, first frames; ``patient_id`` (from 1) and ``label``.
    """
    out = []
    for row in images.itertuples():
        fat = 0.0 if row.label else float(cohort.FEATURE_FAT)
        frames, masks = phantom.simulate_patient(seed, int(row.patient_id) - 1, fat, 1, feature)
        out.append(_whole(crop_of(frames[0], masks[0])[0]))
    return np.stack(out)


# ---------------------------------------------------------------- one feature


def train(cohort: Cohort, options: Options, device: Any = "cpu") -> tuple[networks.GreyClassifier, pd.DataFrame]:
    """Train on the patients of fold 1; also gives the scores ``image_id, patient_id, label, score`` of fold 0."""
    prefix, pretrained = networks.split(networks.load(NETWORK, options.network_weights), NETWORK)
    held_out = cohort.images["fold"].to_numpy() == 0
    label = cohort.images["label"].to_numpy()
    flat = cohort.pool[~held_out].reshape(-1, SIZE, SIZE)
    features = sweep.training.prefix_features(prefix, flat, NETWORK, device)
    views = sweep.Views(features.reshape(-1, N_VIEWS, *features.shape[1:]), label[~held_out])
    how = sweep.Options(options.steps, BATCH, LEARNING_RATE, WEIGHT_DECAY)
    tail, decoder = sweep.fresh_tail(pretrained, options.seed), networks.Decoder(NETWORK)
    tail, _ = sweep.train_tail(tail, [views], how, options.seed, decoder, device)
    judged = sweep.training.prefix_features(prefix, cohort.resized[held_out], NETWORK, device)[:, None]
    score = sweep.predict(tail, sweep.Views(judged, label[held_out]), decoder, device)
    scores = cohort.images.loc[held_out, ["image_id", "patient_id", "label"]].assign(score=score)
    return networks.GreyClassifier(prefix, tail, NETWORK), scores.reset_index(drop=True)


def untrained(seed: int) -> networks.GreyClassifier:
    """The same network with random weights throughout."""
    prefix, tail = networks.split(networks.load(NETWORK, "random", seed=seed), NETWORK)
    return networks.GreyClassifier(prefix, sweep.fresh_tail(tail, seed), NETWORK)


def chosen_rows(images: pd.DataFrame, n: int) -> np.ndarray:
    """Rows of the first frame of `n` held-out patients, classes in turn."""
    held_out = images[(images["fold"] == 0) & ~images["patient_id"].duplicated()]
    return explainers.pick_patients(held_out, n).index.to_numpy()


def study(feature: str, options: Options, device: Any = "cpu") -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Simulate, train, explain and judge one feature.

    Gives one row per explainer of `explainers.EXPLAINERS`: ``feature, explainer, auc, low, high, n_patients`` (held
    out), ``n_explained, moved`` (mean log-odds by which the classifier follows the feature within a patient, towards
    fatty where it is put in), ``additivity_error`` and what `judge` gives; and, of the explained images (n, 128, 128),
    ``images`` uint8, ``difference`` (image minus its twin, grey levels, float32) and ``maps_<explainer>`` (smoothed
    attributions, float32).
    """
    cohort = make_cohort(feature, options.n_patients, options.seed, options.n_jobs)
    classifier, scores = train(cohort, options, device)
    rows = chosen_rows(cohort.images, options.n_explained)
    images, labels = cohort.resized[rows], cohort.images["label"].to_numpy()[rows]
    training = np.flatnonzero(cohort.images["fold"].to_numpy() != 0)[::N_FRAMES][: options.n_background]
    background = cohort.pool[training, 0]
    other = twins(cohort.images.iloc[rows], feature, options.seed)
    moved = explainers.log_odds(classifier, images, device) - explainers.log_odds(classifier, other, device)
    facts = {
        **map_measures.auc_over_patients(scores),
        "n_explained": len(rows),
        "moved": float((moved * np.where(labels == 1, 1, -1)).mean()),
    }
    difference = images.astype(np.float32) - other
    where = explainers.smooth(np.abs(difference), options.smoothing * SIZE)
    parts = map_measures.regions(cohort.tissue[rows], TISSUES, round(options.border * SIZE))
    networks = {"trained": classifier, "untrained": untrained(options.seed)}
    out, arrays = [], {"images": images, "difference": difference}
    for explainer in explainers.EXPLAINERS:
        maps, error = _explained(networks, background, images, explainer, options, device)
        row = {"feature": feature, "explainer": explainer, **facts, "additivity_error": error}
        out.append({**row, **judge(maps, where, parts, TARGETS[feature])})
        arrays[f"maps_{explainer}"] = maps["trained"].astype(np.float32)
    return out, arrays


def _explained(
    networks: Mapping[str, Any],
    background: np.ndarray,
    images: np.ndarray,
    explainer: str,
    options: Options,
    device: Any,
) -> tuple[dict[str, np.ndarray], float]:
    """Smoothed attributions by every network, and the additivity error of the trained one."""
    values = {
        name: explainers.attributions(net, background, images, options.n_samples, options.seed, device, explainer)
        for name, net in networks.items()
    }
    trained = networks["trained"]
    base = explainers.base_value(trained, background, device, explainer)
    outputs = explainers.log_odds(trained, images, device)
    error = explainers.missing_share(explainers.additivity(values["trained"], outputs, base))
    return {name: explainers.smooth(value, options.smoothing * SIZE) for name, value in values.items()}, error


def judge(
    maps: Mapping[str, np.ndarray], difference: np.ndarray, parts: np.ndarray, targets: tuple[str, ...]
) -> dict[str, Any]:
    """Hold smoothed maps ``trained, untrained`` (N, S, S) against where the feature is.

    `difference` (N, S, S) is the smoothed absolute difference of each image from its twin, `parts` are from
    `map_measures.regions`, and the feature is in the regions `targets`.

    Gives ``target`` (its regions), ``area, share, peaks`` (see `map_measures.shares`), ``ratio`` (share over area),
    ``agreement`` (rank correlation of the absolute map with `difference`), both also as ``untrained_...``, and
    ``gain`` (ratio of the trained less that of the untrained network); the three with ``..._low, ..._high``
    (Student t over images, one per patient; of ratios on the log scale, of agreement by Fisher's z).
    """
    row: dict[str, Any] = {"target": " and ".join(targets)}
    ratios, inside = {}, parts > 0
    for name, values in maps.items():
        prefix = "" if name == "trained" else "untrained_"
        table = map_measures.shares(values, parts)
        aimed = table[table["region"].isin(targets)].groupby("image")[["area", "share", "peak"]].sum()
        ratios[name] = (aimed["share"] / aimed["area"].where(aimed["area"] > 0)).to_numpy()
        if name == "trained":
            row |= {"area": aimed["area"].mean(), "share": aimed["share"].mean(), "peaks": aimed["peak"].mean()}
        row |= _with_bounds(f"{prefix}ratio", ratios[name], statistics.POSITIVE)
        agreed = map_measures.agreement(np.abs(values), difference, inside)
        row |= _with_bounds(f"{prefix}agreement", agreed, statistics.SIGNED)
    return row | _with_bounds("gain", ratios["trained"] - ratios["untrained"], statistics.ANY)


def _with_bounds(name: str, values: np.ndarray, within: tuple[float, float]) -> dict[str, float]:
    """Mean of the finite values under `name`, with its interval in their range."""
    middle, low, high = statistics.over_folds(values[np.isfinite(values)], within)
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


class Finding(StrEnum):
    """What one row of the study shows."""

    NOT_INTERPRETED = "not interpreted"
    FOUND = "found"
    NOT_TOLD_APART = "not told apart from an untrained network"
    NOT_FOUND = "not found"


def finding(row: Mapping[str, Any]) -> Finding:
    """What follows from the numbers of one row of `study`; a bound that is NaN shows nothing."""
    if not map_measures.readable(row["low"]):
        return Finding.NOT_INTERPRETED
    if not row["ratio_low"] > 1:
        return Finding.NOT_FOUND
    return Finding.FOUND if row["gain_low"] > 0 else Finding.NOT_TOLD_APART


def verdict(row: Mapping[str, Any]) -> str:
    """The `finding` of one row in a sentence with its numbers."""
    shown = finding(row)
    if shown is Finding.NOT_INTERPRETED:
        bound = f"a lower bound of {row['low']:.2f}" if np.isfinite(row["low"]) else "no lower bound"
        return (
            f"{shown}: the held-out AUC {row['auc']:.2f} has {bound}, not above {map_measures.READABLE_FROM},"
            " so it is not shown that the classifier uses the feature"
        )
    numbers = f"{row['ratio']:.2f} times its area's share [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
    reason = {
        Finding.FOUND: "more than with an untrained network",
        Finding.NOT_TOLD_APART: "but so it does there",
        Finding.NOT_FOUND: "although the classifier uses nothing else",
    }
    return f"{shown}: the {row['target']} carries {numbers}, {reason[shown]}"
