"""Features of every set of images, one unit per set: real, traditional, synthetic, noise. Opens and writes files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, ldm, networks, preprocessing
from nafld_utils.artifacts import Run, Unit, array_in_parts, file_sha256, remembered, unit_seed
from nafld_utils.params import REAL, SHARED, TRADITIONAL
from nafld_utils.sampling import set_units

NOISE = "noise"
SERIAL_BELOW = 8000  # images; choice: starting workers costs more than a network of this size takes for fewer
CHUNK = 512  # images whose features are held at once; a multiple of every batch


@remembered
def features_unit(run: Run, kind: str, name: str, fold: int = SHARED) -> Unit:
    """Unit of the features of one set.

    Parameters
    ----------
    run : Run
    kind : str
        Key of `networks.FEATURES`.
    name : str
        ``real`` (every stored crop of all real images), ``traditional`` (every rotated crop of them), both with `fold`
        `SHARED`; ``noise``; or a synthetic set as `set_units.task_of` names it.
    fold : int
    """
    settings: dict[str, Any] = {"kind": kind, "set": name}
    inputs: list[Unit | str] = []
    if kind == "inception":
        path = run.settings.quality.weights
        inputs.append(file_sha256(path) if path else networks.INCEPTION_SHA256)
    if name in (REAL, NOISE):
        inputs.append(preprocessing.preprocess_unit(run))
    elif name == TRADITIONAL:
        inputs.append(preprocessing.augmented_unit(run, TRADITIONAL))
    else:
        fold = SHARED if set_units.is_shared(name) else fold
        inputs.append(set_units.synthetic_unit(**set_units.task_of(run, name, fold)))
    if name == NOISE:
        settings |= {"n": run.settings.quality.n_reference, "seed": run.settings.seed, "fold": fold}
    keys = (kind, name) if fold == SHARED else (kind, name, f"fold{fold}")
    modules = ["feature_networks", "backbones"]
    return run.unit("features", *keys, settings=settings, inputs=inputs, modules=modules)


def make_features(run: Run, kind: str, name: str, fold: int = SHARED) -> None:
    """Compute and store the features and logits of one set; does nothing when the unit is done."""
    unit = features_unit(run, kind, name, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    batch = 16 if device.type == "cpu" else 64  # small batches stay in a CPU's cache
    shown = _images(run, name, fold)
    called, weights = name if fold == SHARED else f"{name} of fold {fold}", run.settings.quality.weights
    with unit.writing(device=str(device)) as folder, contextlib.ExitStack() as files:
        paths = [folder / "features.npy", folder / "logits.npy"]
        appends = [files.enter_context(array_in_parts(path, (len(shown),))) for path in paths]
        # the set and its features may be larger than memory
        for start in range(0, len(shown), CHUNK):
            found = networks.extract(shown[start : start + CHUNK], kind, weights, device, batch, called)
            for append, part in zip(appends, found, strict=True):
                append(part)
            images.release(shown)


def _images(run: Run, name: str, fold: int) -> np.ndarray:
    """Images of a set, (n, S, S) uint8."""
    if name not in (REAL, NOISE, TRADITIONAL):
        return set_units.open_set(run, name, fold).images
    data = preprocessing.open_preprocessed(run)
    if name != NOISE:
        pool = data.pool if name == REAL else data.augmented_pool(TRADITIONAL)
        return pool.reshape(-1, *pool.shape[2:])
    # Choice: the grey levels of the training images without their places, a stricter ceiling than uniform noise.
    training = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    levels = np.zeros(256, np.int64)
    for rows in np.array_split(training, -(-len(training) // CHUNK)):
        levels += np.bincount(data.pool[rows].ravel(), minlength=256)
        images.release(data.pool)
    rng = np.random.default_rng(unit_seed(run.settings.seed, NOISE, fold))
    shape = (run.settings.quality.n_reference, *data.pool.shape[2:])
    return rng.choice(256, size=shape, p=levels / levels.sum()).astype(np.uint8)


def feature_tasks(run: Run, kind: str, names: Iterable[str], shared: Iterable[str] = (REAL,)) -> list[dict[str, Any]]:
    """One task per set: those that every fold shares, and for every fold those of `names`."""
    names = list(names)
    own = [name for name in names if not set_units.is_shared(name)]
    sets = [(name, SHARED) for name in (*shared, *(name for name in names if name not in own))]
    sets += [(name, fold) for fold in ldm.folds_of(run) for name in own]
    return [{"run": run, "kind": kind, "name": name, "fold": fold} for name, fold in sets]


def prefixed(run: Run, prefixes: Iterable[str]) -> list[str]:
    """Names of the diffusion models' sets under every prefix."""
    return [f"{prefix}{name}" for prefix in prefixes for name in run.settings.ldm.conditionings]


def build_features(run: Run, tasks: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the features that are not there yet: ``kind, name, fold, seconds, error``, one row per set."""
    settings = run.settings.engine
    waiting = [task for task in tasks if not features_unit(**task).done()]
    if any(task["name"] == TRADITIONAL for task in waiting):
        preprocessing.build_augmented(run, TRADITIONAL)  # before workers could make it twice
    n_images = len(waiting) * max(run.settings.sampling.n_images, run.settings.quality.n_reference)
    if settings.mode == "local" and n_images < SERIAL_BELOW:
        settings = settings.model_copy(update={"mode": "serial"})
    return engine.map_units(make_features, tasks, settings, "features", unit_of=features_unit)


def real_table(run: Run) -> pd.DataFrame:
    """The images table with a row for every stored crop: the rows of the features of ``real`` and ``traditional``.

    Choice: real images stand beside synthetic ones as random resized crops, because the models learnt from such
    crops; whole images differ from them by their field of view more than healthy from fatty.
    """
    data = preprocessing.open_preprocessed(run)
    return data.images.loc[data.images.index.repeat(data.pool.shape[1])].reset_index(drop=True)


def load_features(run: Run, kind: str, name: str, fold: int = SHARED) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and logits (n, C) of one set, which must be there."""
    unit = features_unit(run, kind, name, fold)
    return unit.load_array("features.npy"), unit.load_array("logits.npy")


def patients_of(table: pd.DataFrame) -> np.ndarray:
    """Patient of each synthetic image: that of its map, else a negative number of its own."""
    source = table["source_patient"].to_numpy()
    return np.where(source >= 0, source, -1 - np.arange(len(source)))


def drawn_table(run: Run, name: str, fold: int) -> pd.DataFrame:
    """Table of the synthetic set that a name stands for."""
    return set_units.open_set(run, name, fold).table
