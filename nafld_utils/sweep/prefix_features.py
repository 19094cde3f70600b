"""Stage 06, what trainings read: features of frozen prefixes as units, stored views of them. Opens and writes files.

Contract: a set's features are computed once for every fold, seed and rate that uses them. Where nothing is frozen
there are none, and a training reads the images themselves.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils import engine, networks, params, preprocessing, quality, sampling
from nafld_utils.artifacts import Run, Unit, array_in_parts, file_sha256, load_array, remembered
from nafld_utils.images import release
from nafld_utils.params import SHARED
from nafld_utils.sweep import trial_grid

REVISION = ("stages.sweep_features", 1)

CHUNK = 512  # images whose features are held at once; a multiple of every batch
NOTHING_FROZEN = "none"


def is_shared(kind: str) -> bool:
    """Whether a set serves every fold: real images, changed or not, and what saw no patient."""
    return kind in (params.REAL, *params.AUGMENTED) or sampling.is_shared(kind)


def source_unit(run: Run, kind: str, fold: int = SHARED) -> Unit:
    """Unit of a set's images: ``real`` (stored crops and deterministic resize), changed crops or a generator's name.

    `fold` is the generator's; the real sets are shared by all folds.
    """
    if kind == params.REAL:
        return preprocessing.preprocess_unit(run)
    if kind in params.AUGMENTED:
        return preprocessing.augmented_unit(run, kind)
    return quality.set_unit(run, kind, fold)


def source_images(run: Run, kind: str, fold: int = SHARED) -> dict[str, np.ndarray]:
    """Images of a set, ``(N, K, S, S)`` uint8: ``pool``, K views per image, and of real ones ``resized``, one view."""
    if kind == params.REAL:
        data = preprocessing.open_preprocessed(run)
        return {"pool": data.pool, "resized": data.resized[:, None]}
    if kind in params.AUGMENTED:
        return {"pool": preprocessing.open_preprocessed(run).augmented_pool(kind)}
    return {"pool": quality.open_set(run, kind, fold).images[:, None]}


# ---------------------------------------------------------------- features of the frozen prefix


@remembered
def features_unit(run: Run, backbone: str, kind: str, fold: int = SHARED, freeze: str = "paper") -> Unit:
    """Unit of a set's prefix features (`source_unit`, `networks.split`); the prefix is never trained."""
    weights = run.settings.sweep.weights
    settings = {"backbone": backbone, "weights": identity(backbone, weights), "freeze": freeze}
    settings |= {"kept_in": run.settings.sweep.features, "set": kind}
    keys = (kind,) if is_shared(kind) else (kind, f"fold{fold}")
    inputs, modules = [source_unit(run, kind, fold)], ["backbones", "trial", "stages.sweep_features"]
    return run.unit("features_prefix", backbone, freeze, *keys, settings=settings, inputs=inputs, modules=modules)


def read_unit(run: Run, backbone: str, freeze: str, kind: str, fold: int) -> Unit:
    """Unit of what a training of a fold reads of a set: prefix features, or images where nothing is frozen."""
    fold = SHARED if is_shared(kind) else fold
    if freeze == NOTHING_FROZEN:
        return source_unit(run, kind, fold)
    return features_unit(run, backbone, kind, fold, freeze)


def identity(backbone: str, weights: str) -> str:
    """What tells weights apart: their origin's name, or the content of a local file."""
    if weights in networks.WEIGHTS:
        return weights
    file = networks.local_file(backbone, weights)
    return _sha256(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, _mtime: int) -> str:
    return file_sha256(path)


def make_features(run: Run, backbone: str, kind: str, fold: int = SHARED, freeze: str = "paper") -> None:
    """Compute the prefix features of one set; does nothing when they are there.

    Writes ``pool.npy`` (n, K, C, h, w), K views per image, and of real images ``resized.npy`` (n, 1, C, h, w).
    """
    unit = features_unit(run, backbone, kind, fold, freeze)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    with unit.writing(device=str(device), **networks.hub_facts(backbone, run.settings.sweep.weights)) as folder:
        for name, images in source_images(run, kind, fold).items():
            flat = images.reshape(-1, *images.shape[2:])
            # the paper's largest set takes 2.3 GB
            with array_in_parts(folder / f"{name}.npy", images.shape[:2]) as append:
                for start in range(0, len(flat), CHUNK):
                    append(computed(run, backbone, freeze, flat[start : start + CHUNK]))
                    release(flat)


def feature_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per set whose prefix features the grid needs."""
    tasks = []
    for (backbone, freeze), part in trial_grid.grid(run.settings).groupby(["backbone", "freeze"], sort=False):
        if freeze == NOTHING_FROZEN:
            continue
        for kind in kinds_of(part["arm"].unique()):
            for fold in [SHARED] if is_shared(kind) else trial_grid.folds_of(run.settings):
                tasks.append({"run": run, "backbone": backbone, "kind": kind, "fold": fold, "freeze": freeze})
    return tasks


def kinds_of(names: Any) -> list[str]:
    """Sets that some arms are made of, real images first: held-out images are real in every arm."""
    generators = (generator for name in names for generator in params.parse(name).generators)
    return list(dict.fromkeys([params.REAL, *generators]))


def build_features(run: Run) -> None:
    """Make the prefix features that are not there yet, and the crops that no training may make beside others."""
    for kind in set(params.AUGMENTED) & set(kinds_of(trial_grid.grid(run.settings)["arm"].unique())):
        preprocessing.build_augmented(run, kind)
    tasks = [task for task in feature_tasks(run) if not features_unit(**task).done()]
    if tasks:
        engine.map_units(make_features, tasks, run.settings.engine, "frozen prefix", unit_of=features_unit)


def computed(run: Run, backbone: str, freeze: str, images: np.ndarray) -> np.ndarray:
    """What a tail reads of images (n, S, S) uint8: prefix features (n, ...), or the images where nothing is frozen."""
    from nafld_utils.sweep import training

    chosen, device = run.settings.sweep, engine.device(run.settings.engine)
    if freeze == NOTHING_FROZEN:
        return images
    prefix, _ = network(backbone, chosen.weights, freeze)
    return training.prefix_features(prefix, images, backbone, device, precision=chosen.features)


@functools.lru_cache(maxsize=2)
def network(backbone: str, weights: str, freeze: str) -> tuple[Any, Any]:
    """Frozen prefix and pretrained tail, read once per process; a training copies the tail."""
    return networks.split(networks.load(backbone, weights), backbone, freeze)


# ---------------------------------------------------------------- what a training reads of them


def stored(run: Run, backbone: str, freeze: str, kind: str, fold: int = SHARED, name: str = "pool") -> Any:
    """A set's views (N, K, ...) as trainings read them: features of the frozen prefix, or uint8 images.

    Memory-mapped for a CPU, whose processes share them; a Tensor kept on a GPU.
    """
    device, unit = engine.device(run.settings.engine), read_unit(run, backbone, freeze, kind, fold)
    if freeze == NOTHING_FROZEN:
        read = lambda: source_images(run, kind, fold)[name]  # noqa: E731
    else:
        read = functools.partial(load_array, unit.require().file(f"{name}.npy"), mmap=True)
    return read() if device.type != "cuda" else _resident((unit.hash, name, str(device)), read)


_RESIDENT: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
_MOST = 12  # sets on a GPU: the paper's largest take 2.3 GB each


def _resident(key: tuple[str, str, str], read: Callable[[], np.ndarray]) -> Any:
    """A set on a GPU, read once and kept while it is among the latest."""
    import torch

    if key not in _RESIDENT:
        while len(_RESIDENT) >= _MOST:
            _RESIDENT.popitem(last=False)
        _RESIDENT[key] = torch.from_numpy(np.array(read())).to(key[2])
    _RESIDENT.move_to_end(key)
    return _RESIDENT[key]
