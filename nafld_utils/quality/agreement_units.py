"""Stage 05, whether feature spaces rank the sets alike: two networks and texture. Opens and writes files.

Contract: every space sees the same images of a set, as many of every set of a fold and class, so that distances differ
by their features alone. Texture is in SDs of the real images.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, ldm, networks, preprocessing, sampling, statistics
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_table
from nafld_utils.quality import metric_units
from nafld_utils.sampling import REAL

REVISION = ("agreement", 1)
TEXTURE = "GLCM texture"
MOST = 50  # images of a set, fold and class (choice: texture takes milliseconds per image)
LEAST_SHOWN = 0.01  # share of pixels that are not black; an image with fewer has no texture


def spaces(run: Run) -> dict[str, str]:
    """Feature spaces by key, with their names: those of the quality tables, and texture."""
    return {kind: networks.FEATURES[kind].network for kind in metric_units.spaces(run)} | {"texture": TEXTURE}


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per fold."""
    return [{"run": run, "fold": fold} for fold in ldm.folds_of(run)]


@remembered
def unit_of(run: Run, fold: int) -> Unit:
    """Unit of a fold's distances in every space."""
    kinds = metric_units.spaces(run)
    inputs = [sampling.features_unit(run, kind, REAL) for kind in kinds]
    inputs += [sampling.features_unit(run, kind, name, fold) for kind in kinds for name in sampling.generators(run)]
    modules = ["agreement", "textures", "quality"]
    settings = {"fold": fold, "kinds": kinds, "threshold": run.settings.preprocess.threshold}
    return run.unit("quality", "agreement", f"fold{fold}", settings=settings, inputs=inputs, modules=modules)


def make(run: Run, fold: int) -> None:
    """Frechet distance of a fold's sets to its held-out images, by class and space.

    Writes ``table.csv``: ``model, label, n, n_reference`` and a column per space, NaN from fewer than two images.
    """
    unit = unit_of(run, fold)
    data = preprocessing.open_preprocessed(run)
    whole = np.arange(len(data.images)) * data.pool.shape[1]  # the first stored crop of every image
    real = _Set(run, data.pool[:, 0], data.images["label"].to_numpy(), REAL, whole)
    drawn = {name: sampling.open_set(run, name, fold) for name in sampling.generators(run)}
    held = data.images["fold"].to_numpy() == fold
    sets = {k: _Set(run, np.asarray(v.images), v.table["label"].to_numpy(), k, fold=fold) for k, v in drawn.items()}
    rows = []
    for label in (0, 1):
        reference = np.flatnonzero(held & (real.labels == label) & real.shown)
        n = min(MOST, *(len(one.of(label)) for one in sets.values()))
        known = real.features(reference)
        for name, one in sets.items():
            members = one.of(label)
            found = one.features(members[np.linspace(0, len(members) - 1, n).astype(int)] if n else members[:0])
            row = {"model": name, "label": label, "n": n, "n_reference": len(reference)}
            rows.append(row | {space: _distance(found[space], known[space]) for space in known})
    with unit.writing() as folder:
        save_table(folder / "table.csv", pd.DataFrame(rows))


class _Set:
    """Images of a set with their features in every space; `rows` are theirs in the stored features."""

    def __init__(
        self, run: Run, shown: np.ndarray, labels: np.ndarray, name: str, rows: np.ndarray | None = None, **where: int
    ):
        limit = run.settings.preprocess.threshold
        self.images, self.labels = np.where(shown > limit, shown, 0), labels
        self.shown = (self.images > 0).mean(axis=(1, 2)) > LEAST_SHOWN
        self.rows = np.arange(len(shown)) if rows is None else rows
        self.known = {k: sampling.load_features(run, k, name, **where)[0] for k in metric_units.spaces(run)}

    def of(self, label: int) -> np.ndarray:
        """Rows of a class."""
        return np.flatnonzero((self.labels == label) & self.shown)

    def features(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Features of some images, by space."""
        found = {kind: features[self.rows[rows]] for kind, features in self.known.items()}
        return found | {"texture": images.texture_features(self.images[rows])}


def _distance(found: np.ndarray, real: np.ndarray) -> float:
    """Frechet distance; of texture, whose numbers have units of their own, in SDs of the real images."""
    if min(len(found), len(real)) < 2:
        return float("nan")
    if found.shape[1] < 100:
        scale = real.std(axis=0, ddof=1)
        used = scale > 1e-9
        found, real = found[:, used] / scale[used], real[:, used] / scale[used]
    return networks.frechet_distance(found, real)


def compare_spaces(run: Run) -> pd.DataFrame:
    """Distances of every generator, class and fold in every space, made where they are missing: `make`'s rows."""
    engine.map_units(make, tasks(run), run.settings.engine, "feature spaces", unit_of=unit_of)
    parts = [unit_of(**task).load_table("table.csv").assign(fold=task["fold"]) for task in tasks(run)]
    return pd.concat(parts, ignore_index=True)


def agreement(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """How alike two feature spaces rank the sets.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.compare_spaces`.

    Returns
    -------
    pandas.DataFrame
        ``a, b`` (keys of `quality.spaces`), ``all`` (Spearman's correlation over generators, classes and folds),
        ``mean, low, high`` (that within a fold, Student t over folds), ``folds, n``.
    """
    rows = []
    for a, b in itertools.combinations(spaces(run), 2):
        known = table.dropna(subset=[a, b])
        folds = known.groupby("fold")[[a, b]].apply(lambda part: part.corr("spearman").iloc[0, 1]).dropna()
        mean, low, high = statistics.over_folds(folds, (-1.0, 1.0))
        row = {"a": a, "b": b, "all": known[[a, b]].corr("spearman").iloc[0, 1], "mean": mean}
        rows.append(row | {"low": low, "high": high, "folds": len(folds), "n": len(known)})
    return pd.DataFrame(rows)


def reading(run: Run, table: pd.DataFrame) -> str:
    """Whether the feature spaces agree, in two sentences.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.compare_spaces`.

    Returns
    -------
    str
    """
    names, found = spaces(run), agreement(run, table)
    parts = [f"{row['all']:.2f} for {names[row['a']]} and {names[row['b']]}" for row in found.to_dict("records")]
    last = table.pivot_table(index=["fold", "label"], columns="model", values=list(names)).dropna()
    farthest = pd.DataFrame({name: last[name].idxmax(axis=1) for name in names})
    same = int(farthest.eq(farthest.iloc[:, 0], axis=0).all(axis=1).sum())
    return (
        f"Over {found['n'].min()} sets (generators, classes and folds) the distances' rank correlation is"
        f" {'; '.join(parts)}. All spaces agree on which generator is farthest from real images in {same} of"
        f" {len(farthest)} folds and classes."
    )


def claims(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rank correlations within a fold, over folds."""
    names, rows = spaces(run), []
    for row in agreement(run, table).to_dict("records"):
        text = f"rank correlation of distances within a fold, {names[row['a']]} and {names[row['b']]}"
        key = key_of("quality.agreement", row["a"], row["b"])
        rows.append(of_row(key, text, row | {"over": "folds"}, unit="Spearman", columns=("mean", "folds")))
    return rows


def units(run: Run) -> list[Unit]:
    """Every unit of the comparison."""
    return [unit_of(**task) for task in tasks(run)]
