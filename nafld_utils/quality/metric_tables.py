"""Tables of stage 05: every metric of every set of a fold, intervals over folds, places between floor and ceilings.

Contract: sets of features in, tables out; sets of one class are compared at one size, and what cannot be computed is
NaN with a note that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nafld_utils import statistics
from nafld_utils.networks import FEATURES, METRICS, frechet_distance, inception_score, kernel_distance
from nafld_utils.quality.precision_recall import NAMES as MANIFOLD
from nafld_utils.quality.precision_recall import K, manifold_metrics

REVISION = ("quality_tables", 4)
BOTH = "both"
FLOOR = "real_training"
DIFFERENCE = ("difference", "difference_low", "difference_high")
LEARNT = ("model", "baseline")  # roles of sets that something made to look real
PLAIN = tuple(f"{name}_plain" for name in ("precision", "recall"))
KEYS = ["model", "role", "class", "metric", "features", "sample"]
COLUMNS = [*KEYS, "value", "n_images", "n_reference"]
# Ranges of the metrics; all others lie above 0. The kernel distance is unbiased, so that it may fall below 0.
RANGES = {"kernel": statistics.ANY, "score": (1.0, np.inf)}
RANGES |= dict.fromkeys(("precision", "recall", "coverage", *PLAIN), statistics.SHARE)


@dataclass(frozen=True)
class FeatureSet:
    """Features (n, d) and logits (n, C) of one set of images.

    ``role`` is ``model``, ``baseline`` (GAN, traditional augmentation), ``floor``, ``ceiling`` or ``reference``;
    ``labels`` are 0 or 1, None where images have no class (noise): such a set stands beside every class; ``groups`` say
    where the set is compared: with a class, and with both together (None). ``patients`` are those of the images, of a
    synthetic one that of its map or a number of its own: images of one patient are no neighbours of each other in
    precision and recall; None where images have no patients (noise).
    """

    name: str
    role: str
    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray | None = None
    groups: tuple[int | None, ...] = (0, 1, None)
    patients: np.ndarray | None = None

    def rows(self, label: int | None) -> np.ndarray:
        """Rows of one class, or all of them where `label` is None or the set has no classes."""
        if self.labels is None or label is None:
            return np.arange(len(self.features))
        return np.flatnonzero(self.labels == label)

    def at(self, rows: np.ndarray) -> FeatureSet:
        """Some images of the set."""
        labels, patients = (None if x is None else x[rows] for x in (self.labels, self.patients))
        return replace(self, features=self.features[rows], logits=self.logits[rows], labels=labels, patients=patients)


def common_counts(reference: FeatureSet, sets: Sequence[FeatureSet], label: int | None) -> tuple[int, int]:
    """Numbers of images of label 0 and 1 that every set can give in the reference's own class mix.

    Choice: Frechet distance grows as sets shrink and as class mixes differ, so all sets of a group are compared at one
    size and, for both classes together, at the class shares of the held-out patients.
    """
    wanted = np.array([np.sum(reference.labels == value) * (label in (value, None)) for value in (0, 1)])
    if not wanted.any():
        return 0, 0
    factors = []
    for item in sets:
        if item.labels is None:
            factors.append(len(item.features) / wanted.sum())
        else:
            factors += [np.sum(item.labels == value) / wanted[value] for value in (0, 1) if wanted[value]]
    zeros, ones = np.floor(min(factors) * wanted + 1e-9).astype(int)
    return int(zeros), int(ones)


def draw_rows(labels: np.ndarray | None, n: int, counts: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows drawn without replacement: `counts` of each class, or `sum(counts)` of all `n` without classes."""
    if labels is None:
        return np.sort(rng.choice(n, sum(counts), replace=False))
    picked = [rng.choice(np.flatnonzero(labels == label), counts[label], replace=False) for label in (0, 1)]
    return np.sort(np.concatenate(picked))


def measure(
    reference: FeatureSet,
    sets: Sequence[FeatureSet],
    kind: str,
    rng: np.random.Generator,
    n_subsets: int = 50,
    subset_size: int = 50,
    class_names: Sequence[str] = ("healthy", "fatty"),
    neighbours: int = K,
) -> pd.DataFrame:
    """Every metric of every set against one fold's held-out real images, which are scored too, by class and for both.

    `kind` is a key of `FEATURES`; `n_subsets` and `subset_size` are those of the kernel distance.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`; ``sample`` is ``equal`` (every set of a class has the same number of images) or ``all`` (models and
        baselines: all their images, as in the paper). Metrics: ``frechet, kernel, score``, those of
        `precision_recall.NAMES`, and `PLAIN`, in which frames of one patient count as neighbours. A value is NaN where
        a set has fewer than two images of a class, and where images of too few patients are there to be neighbours.
    """
    rows = []
    for label, group in [*enumerate(class_names), (None, BOTH)]:
        real, present = reference.at(reference.rows(label)), [item for item in sets if label in item.groups]
        n_real = len(real.features)
        counts = common_counts(reference, present, label)
        measured = []
        for item in present:
            draws = {"equal": item.rows(label)[:0]}
            if sum(counts) >= 2:
                draws["equal"] = draw_rows(item.labels, len(item.features), counts, rng)
            if item.role in LEARNT:
                draws["all"] = item.rows(label)
            for sample, picked in draws.items():
                values = _values(item.at(picked), real, (n_subsets, subset_size), rng)
                if sample == "equal":
                    values |= _manifold(item.at(picked), real, neighbours)
                measured.append((item, sample, len(picked), values))
        score = inception_score(real.logits) if n_real >= 2 else float("nan")
        for item, sample, n, values in [*measured, (real, "all", n_real, {"score": score})]:
            facts = {"model": item.name, "role": item.role, "class": group, "features": FEATURES[kind].network}
            facts |= {"sample": sample, "n_images": n, "n_reference": n_real}
            rows += [{**facts, "metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows)[COLUMNS]


def _values(item: FeatureSet, real: FeatureSet, subsets: tuple[int, int], rng: np.random.Generator) -> dict[str, float]:
    """Distances and score of a set; NaN from fewer than two images."""
    a, b, names = item.features, real.features, (item.name, real.name)
    if min(len(a), len(b)) < 2:
        return dict.fromkeys(METRICS, float("nan"))
    return {
        "frechet": frechet_distance(a, b, names),
        "kernel": kernel_distance(a, b, *subsets, seed=int(rng.integers(2**32)), names=names),
        "score": inception_score(item.logits, name=item.name),
    }


def _manifold(item: FeatureSet, real: FeatureSet, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage, and the plain forms; NaN from fewer than two images."""
    a, b, names = real.features, item.features, (real.name, item.name)
    if min(len(a), len(b)) < 2:
        return dict.fromkeys((*MANIFOLD, *PLAIN), float("nan"))
    plain = manifold_metrics(a, b, None, None, k, names)
    found = manifold_metrics(a, b, real.patients, item.patients, k, names)
    return found | {name: plain[name.removesuffix("_plain")] for name in PLAIN}


def fold_intervals(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % Student t interval over folds of every metric, from `measure`'s rows with a column ``fold``.

    The intervals stay in `RANGES`. Columns `KEYS` and ``mean, low, high, over, n, n_images, n_reference, note``; n is
    the number of folds, n_images and n_reference the least images in one, note says which folds are missing.
    """
    rows = []
    for key, part in values.groupby(KEYS, sort=False):
        known = part.dropna(subset="value")
        n, (mean, low, high) = len(known), _over_folds(known["value"], part["metric"].iloc[0])
        missing = sorted(set(part["fold"]) - set(known["fold"]))
        notes = [f"fold {', '.join(map(str, missing))}: fewer than two images"] if missing else []
        notes += ["one fold, no interval"] if n == 1 else []
        notes += ["equal folds, no interval"] if n > 1 and np.isnan(low) else []
        row = {"mean": mean, "low": low, "high": high, "over": "folds", "n": n}
        row |= {name: int(part[name].min()) for name in ("n_images", "n_reference")}
        rows.append({**dict(zip(KEYS, key, strict=True)), **row, "note": "; ".join(notes)})
    return pd.DataFrame(rows)


def _over_folds(values: pd.Series, metric: str) -> statistics.MeanInterval:
    return statistics.over_folds(values, RANGES.get(metric, statistics.POSITIVE))


def against_references(values: pd.DataFrame) -> pd.DataFrame:
    """Where each model stands between the floor and its ceilings, images in equal numbers.

    Columns ``model, class, mean, low, high, floor, lowest_ceiling, ceiling, place, beyond, difference, difference_low,
    difference_high, below_every_ceiling``, of the Frechet distance, from `measure`'s rows with a column ``fold``.
    ``place`` is 0 at the floor and 1 at the lowest ceiling. ``difference`` is model minus ceiling with a Student t
    interval over folds, of the ceiling named by ``beyond``: the one whose interval reaches highest. The last column
    says whether every ceiling's interval ends below 0; it is False where one fold was trained, which has no interval.
    Ceilings named ``..._<conditioning>`` count for that conditioning only. Choice: differences are taken fold by fold,
    since a model and its ceilings are measured against the same held-out images, and folds differ more in those than in
    anything else.
    """
    table = values[(values["metric"] == "frechet") & (values["sample"] == "equal")]
    role = table.drop_duplicates("model").set_index("model")["role"]
    models, rows = role.index[role == "model"], []
    for group, part in table.groupby("class", sort=False):
        folds = part.pivot_table("value", "fold", "model", dropna=False).reindex(columns=role.index)
        known = folds.columns[folds.notna().any()]
        for model in models:
            others = tuple(f"_{name}" for name in models if name != model)
            ceilings = [name for name in known if role[name] == "ceiling" and not name.endswith(others)]
            lowest = folds[ceilings].mean().idxmin() if ceilings else ""
            least, floor = folds[ceilings].mean().min(), folds[FLOOR].mean()
            mean, low, high = _over_folds(folds[model].dropna(), "frechet")
            row = {"model": model, "class": group, "mean": mean, "low": low, "high": high}
            place = (mean - floor) / (least - floor) if least != floor else float("nan")
            row |= {"floor": floor, "lowest_ceiling": least, "ceiling": lowest, "place": place}
            found = {c: statistics.over_folds((folds[model] - folds[c]).dropna()) for c in ceilings}
            # the farthest-reaching interval; without intervals the largest mean
            ends = {c: np.nan_to_num([high, mean], nan=-np.inf).tolist() for c, (mean, _, high) in found.items()}
            beyond = max(ends, key=ends.get, default="")
            row |= {"beyond": beyond, **dict(zip(DIFFERENCE, found.get(beyond, [float("nan")] * 3), strict=True))}
            rows.append({**row, "below_every_ceiling": bool(found) and all(high < 0 for *_, high in found.values())})
    return pd.DataFrame(rows)
