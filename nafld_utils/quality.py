"""How far synthetic images are from held-out real ones.

Contract: features and labels in, numbers and tables out. Only Inception-v3's features earn the names FID, KID
and IS; the same formulas on other features are named for what they are. The formulas for the kernel distance and the
score are torch-fidelity's; the Frechet distance has a faster, equal one.

Sources: paper, Methods (quantitative evaluation); Heusel et al. 2017, arXiv 1706.08500 (FID); Binkowski et al. 2018,
arXiv 1801.01401 (KID); Salimans et al. 2016, arXiv 1606.03498 (IS).
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REVISION = 1
LITE0 = "tf_efficientnet_lite0"
INCEPTION_SHA256_PREFIX = "6726825d"  # part of the published file's name
BOTH = "both"
FLOOR = "real_training"


@dataclass(frozen=True)
class FeatureKind:
    """A frozen ImageNet network and the names its metrics may carry.

    Attributes
    ----------
    network : str
        Name of the network in text.
    width : int
        Number of features an image.
    metrics : dict
        ``frechet, kernel, score`` to the name of each in tables and on axes.
    """

    network: str
    width: int
    metrics: Mapping[str, str]


FEATURES: dict[str, FeatureKind] = {
    "inception": FeatureKind(
        "Inception-v3",
        2048,
        {"frechet": "FID (Inception-v3)", "kernel": "KID (Inception-v3)", "score": "IS (Inception-v3)"},
    ),
    "lite0": FeatureKind(
        "EfficientNet-Lite0",
        1280,
        {
            "frechet": "Frechet distance (EfficientNet-Lite0)",
            "kernel": "Kernel distance (EfficientNet-Lite0)",
            "score": "Classifier score (EfficientNet-Lite0)",
        },
    ),
    "random": FeatureKind(  # for tests of the machinery at full size: no metric of it means anything
        "untrained Inception-v3",
        2048,
        {
            "frechet": "Frechet distance (untrained Inception-v3)",
            "kernel": "Kernel distance (untrained Inception-v3)",
            "score": "Classifier score (untrained Inception-v3)",
        },
    ),
}


# ---------------------------------------------------------------- features


def extract(
    images: np.ndarray, kind: str, weights: str | None = None, device: Any = "cpu", batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and class logits of images from a frozen ImageNet network.

    Parameters
    ----------
    images : numpy.ndarray, shape (N, S, S), uint8
        Grey images; the channel is repeated.
    kind : {"inception", "lite0", "random"}
        Key of `FEATURES`. Inception-v3 is the TensorFlow network of the published FID with its own bilinear resize to
        299 pixels and without its bias (torchmetrics' ``antialias=False``); Lite0 sees the images at their own size.
    weights : str, optional
        Path of Inception-v3's weight file; None downloads it once. Lite0's weights are installed with the package.
    device : torch.device or str
        Where to compute.
    batch_size : int
        Images at once; does not change the result beyond rounding.

    Returns
    -------
    features : numpy.ndarray, shape (N, d), float32
    logits : numpy.ndarray, shape (N, C), float32
        C is 1008 (Inception-v3) or 1000 (Lite0).

    Raises
    ------
    ValueError
        Unknown `kind`, images of another shape or type, or a weight file of other content.
    """
    import torch

    images = np.asarray(images)
    if kind not in FEATURES:
        raise ValueError(f"quality.features: expected one of {', '.join(FEATURES)}, found {kind!r}.")
    if images.ndim != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"images: expected (N, S, S) uint8 with N > 0, found {images.shape} {images.dtype}.")
    network = _network(kind, weights, str(device))
    if kind == "lite0":
        from nafld_utils import backbones

        features = np.asarray(backbones.features(network, images, LITE0, device, batch_size=batch_size))
        with torch.no_grad():  # the head alone: one pass over the images gives both
            logits = network.get_classifier()(torch.from_numpy(features).to(device)).cpu().numpy()
        return features, logits
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            x = x.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            parts.append([part.float().cpu().numpy() for part in network(x)])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@functools.lru_cache(maxsize=2)
def _network(kind: str, weights: str | None, device: str) -> Any:
    import torch

    if kind == "lite0":
        from nafld_utils import backbones

        return backbones.load(LITE0, weights="bundled").to(device)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        """Without the reading of weights at construction, which would open a pickle whole."""

        def load_state_dict(self, state: Any, **options: Any) -> Any:
            return super().load_state_dict(state, **options) if state else None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = ["2048", "logits_unbiased"]
        network = Bare("inception-v3-compat", outputs, feature_extractor_weights_path=nothing)
    if kind == "inception":
        network.load_state_dict(torch.load(inception_file(weights), map_location="cpu", weights_only=True))
    return network.to(device, memory_format=torch.channels_last)


def inception_file(path: str | None = None, sha256_prefix: str = INCEPTION_SHA256_PREFIX) -> Path:
    """Weight file of the published FID's Inception-v3: the given one, or torch-fidelity's download, checksum compared.

    Parameters
    ----------
    path : str, optional
        A local copy.
    sha256_prefix : str
        First hex digits of the file's SHA-256.

    Raises
    ------
    ValueError
        No file there and no network, or other content.
    """
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    hint = "set quality.weights to a copy of weights-inception-2015-12-05-6726825d.pth, or quality.features=lite0"
    if not file.is_file():
        if path:
            raise ValueError(f"{file}: expected Inception-v3's weights, found no file; {hint}.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=sha256_prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file.name}: expected a download, found {error}; {hint}.") from None
    with open(file, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if not found.startswith(sha256_prefix):
        raise ValueError(f"{file}: expected a SHA-256 beginning with {sha256_prefix}, found {found[:8]}; {hint}.")
    return file


# ---------------------------------------------------------------- distances and the score


def frechet_distance(a: Any, b: Any, names: tuple[str, str] = ("the first set", "the second set")) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

    Parameters
    ----------
    a, b : array, shapes (n, d) and (m, d)
        Features; n, m >= 2.
    names : tuple of str
        What the sets are called in an error.

    Returns
    -------
    float
        In squared feature units; 0 for identical sets up to rounding. Biased upward in small sets: compare only
        sets of equal size against the same reference.

    Raises
    ------
    ValueError
        A set is not a matrix, has fewer than two rows or a value that is not finite; or widths differ.

    Notes
    -----
    Eq. 6 of Heusel et al. With centred matrices A and B, the trace of the root of the product of covariances is the
    sum of the singular values of A Bᵀ / sqrt((n - 1)(m - 1)), in float64: no root of a singular d x d matrix.

    Examples
    --------
    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])  # equal spread, means 3 apart
    9.0
    """
    a, b = checked_pair(a, b, names)
    mean = a.mean(axis=0) - b.mean(axis=0)
    a, b = (_centred(x) for x in (a, b))
    trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(mean @ mean + (a * a).sum() + (b * b).sum() - 2.0 * trace)


def _centred(x: np.ndarray) -> np.ndarray:
    """Centred rows over sqrt(n - 1), reduced to at most d rows of the same Gram matrix."""
    x = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x


def kernel_distance(
    a: Any,
    b: Any,
    n_subsets: int = 50,
    subset_size: int = 50,
    seed: int = 0,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> float:
    """Kernel distance: unbiased squared MMD with the kernel (x·y/d + 1)³, mean over random subsets (torch-fidelity).

    Parameters
    ----------
    a, b : array, shapes (n, d) and (m, d)
        Features.
    n_subsets : int
        Subsets averaged over.
    subset_size : int
        Images a subset, drawn without replacement; the smaller set's size where that is less, which changes the
        spread of the estimate and not its expectation.
    seed : int
        Draws the subsets.
    names : tuple of str
        What the sets are called in an error.

    Returns
    -------
    float
        May be slightly negative for like sets.

    Raises
    ------
    ValueError
        As `frechet_distance`.
    """
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    a, b = (torch.from_numpy(x) for x in checked_pair(a, b, names))
    size = min(subset_size, len(a), len(b))
    result = kid_features_to_metric(
        a, b, kid_subsets=n_subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
    )
    return result[KEY_METRIC_KID_MEAN]


def inception_score(logits: Any, splits: int = 1, seed: int = 0, name: str = "the set") -> float:
    """Score exp(E KL(p(y|x) || p(y))) of class logits, mean over equal splits (torch-fidelity).

    Parameters
    ----------
    logits : array, shape (n, C)
        From `extract`; only Inception-v3's give the Inception Score.
    splits : int
        Choice: 1, since the folds already repeat the measurement and every split sees fewer images.
    seed : int
        Shuffles the images before splitting.
    name : str
        What the set is called in an error.

    Returns
    -------
    float
        From 1 (every image alike, or every image ambiguous) to C.

    Raises
    ------
    ValueError
        Not a matrix, not finite, or fewer than two images a split.
    """
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = _checked(logits, name)
    if splits < 1 or len(logits) < 2 * splits:
        raise ValueError(f"{name}: expected at least two images a split, found {len(logits)} for {splits} splits.")
    return isc_features_to_metric(torch.from_numpy(logits), splits, True, seed % 2**32)[KEY_METRIC_ISC_MEAN]


def nearest_distance(features: Any, reference: Any, k: int = 3) -> np.ndarray:
    """Mean Euclidean distance of each image to its `k` nearest reference images, shape (n,); small looks real.

    Choice: three neighbours, so that one odd reference image does not decide.
    """
    from scipy.spatial.distance import cdist

    features, reference = checked_pair(features, reference, ("the images", "the reference"))
    distances = np.sort(cdist(features, reference), axis=1)
    return distances[:, : min(k, len(reference))].mean(axis=1)


def typical(features: Any) -> int:
    """Row at the median distance from the mean of its set: a single image that is neither its best nor an odd one."""
    features = _checked(features, "the set", least=1)
    order = np.argsort(((features - features.mean(axis=0)) ** 2).sum(axis=1), kind="stable")
    return int(order[(len(order) - 1) // 2])


def _checked(x: Any, name: str, least: int = 2) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"{name}: expected features of shape (n, d) with n >= {least}, found {x.shape}; add images.")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name}: expected finite features, found NaN or infinity in {bad.sum()} of {len(x)} rows,"
            f" the first is row {int(bad.argmax())}; check the images and the network."
        )
    return x


def checked_pair(a: Any, b: Any, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Two finite feature tables (n, d) and (m, d) as float64; ValueError names the one that is not."""
    a, b = _checked(a, names[0]), _checked(b, names[1])
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[1]}: expected {a.shape[1]} features an image as in {names[0]}, found {b.shape[1]};"
            " take both sets through the same network."
        )
    return a, b


# ---------------------------------------------------------------- one fold's table


@dataclass(frozen=True)
class FeatureSet:
    """Features of one set of images.

    Attributes
    ----------
    name, role : str
        Role is ``model``, ``floor``, ``ceiling`` or ``reference``.
    features : numpy.ndarray, shape (n, d)
    logits : numpy.ndarray, shape (n, C)
    labels : numpy.ndarray of int, shape (n,), or None
        0 or 1; None where images have no class (noise): such a set stands beside every class.
    groups : tuple of int or None
        Where the set is compared: with a class, and with both together (None).
    """

    name: str
    role: str
    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray | None = None
    groups: tuple[int | None, ...] = (0, 1, None)

    def rows(self, label: int | None) -> np.ndarray:
        """Rows of one class, or all of them where `label` is None or the set has no classes."""
        if self.labels is None or label is None:
            return np.arange(len(self.features))
        return np.flatnonzero(self.labels == label)


def common_counts(reference: FeatureSet, sets: Sequence[FeatureSet], label: int | None) -> tuple[int, int]:
    """Numbers of images of label 0 and 1 that every set can give in the reference's own class mix.

    Choice: Frechet distance grows as sets shrink and as class mixes differ, so all sets of a group are compared at one
    size and, for both classes together, at the class shares of the held-out patients.
    """
    wanted = np.array([np.sum(reference.labels == value) for value in (0, 1)])
    if label is not None:
        wanted[1 - label] = 0
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
) -> pd.DataFrame:
    """Every metric of every set against one fold's held-out real images, for each class and both.

    Parameters
    ----------
    reference : FeatureSet
        Held-out real images with labels; also scored itself.
    sets : sequence of FeatureSet
        Models, floor and ceilings.
    kind : str
        Key of `FEATURES`.
    rng : numpy.random.Generator
        Draws the rows.
    n_subsets, subset_size : int
        Of the kernel distance.
    class_names : sequence of str
        Names of labels 0 and 1.

    Returns
    -------
    pandas.DataFrame
        ``model, role, class, metric, features, sample, value, n_images, n_reference``; `sample` is ``equal`` (every
        set of a class has the same number of images) or ``all`` (models only: all their images, as in the paper).
        A value is NaN where a set has fewer than two images of a class.
    """
    rows = []
    for label, group in [*enumerate(class_names), (None, BOTH)]:
        real = reference.rows(label)
        present = [item for item in sets if label in item.groups]
        counts = common_counts(reference, present, label)
        for item in present:
            draws = {"equal": item.rows(label)[:0]}
            if sum(counts) >= 2:
                draws["equal"] = draw_rows(item.labels, len(item.features), counts, rng)
            if item.role == "model":
                draws["all"] = item.rows(label)
            for sample, picked in draws.items():
                values = _values(item, picked, reference, real, (n_subsets, subset_size), rng)
                facts = {"model": item.name, "role": item.role, "class": group, "sample": sample}
                sizes = {"n_images": len(picked), "n_reference": len(real)}
                rows += [{**facts, "metric": metric, "value": value, **sizes} for metric, value in values.items()]
        score = inception_score(reference.logits[real]) if len(real) >= 2 else float("nan")
        facts = {"model": reference.name, "role": reference.role, "class": group, "sample": "all", "metric": "score"}
        rows.append({**facts, "value": score, "n_images": len(real), "n_reference": len(real)})
    columns = ["model", "role", "class", "metric", "features", "sample", "value", "n_images", "n_reference"]
    return pd.DataFrame(rows).assign(features=FEATURES[kind].network)[columns]


def _values(
    item: FeatureSet,
    picked: np.ndarray,
    reference: FeatureSet,
    real: np.ndarray,
    subsets: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, float]:
    if min(len(picked), len(real)) < 2:
        return dict.fromkeys(("frechet", "kernel", "score"), float("nan"))
    a, b, names = item.features[picked], reference.features[real], (item.name, reference.name)
    return {
        "frechet": frechet_distance(a, b, names),
        "kernel": kernel_distance(a, b, *subsets, seed=int(rng.integers(2**32)), names=names),
        "score": inception_score(item.logits[picked], name=item.name),
    }


def fold_intervals(values: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean and Student t interval over folds of every metric.

    Parameters
    ----------
    values : pandas.DataFrame
        `measure`'s rows of all folds with a column ``fold``.
    level : float
        Coverage. Folds share training patients, so the interval is a description of the folds, not of new patients.

    Returns
    -------
    pandas.DataFrame
        ``model, role, class, metric, features, sample, mean, low, high, over, n, n_images, n_reference, note``; n is
        the number of folds, n_images and n_reference the least images in one, note says which folds are missing.
    """
    from scipy import stats as scipy_stats

    keys = ["model", "role", "class", "metric", "features", "sample"]
    rows = []
    for key, part in values.groupby(keys, sort=False):
        known = part.dropna(subset="value")
        x, n = known["value"].to_numpy(), len(known)
        mean = x.mean() if n else float("nan")
        half = scipy_stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
        missing = sorted(set(part["fold"]) - set(known["fold"]))
        notes = [f"fold {', '.join(map(str, missing))}: fewer than two images" if missing else ""]
        notes += ["one fold, no interval"] if n == 1 else []
        row = {"mean": mean, "low": mean - half, "high": mean + half, "over": "folds", "n": n}
        sizes = {"n_images": int(part["n_images"].min()), "n_reference": int(part["n_reference"].min())}
        rows.append({**dict(zip(keys, key, strict=True)), **row, **sizes, "note": "; ".join(filter(None, notes))})
    return pd.DataFrame(rows)


def against_references(intervals: pd.DataFrame, metric: str = "frechet") -> pd.DataFrame:
    """Where each model stands between the floor and its ceilings, images in equal numbers.

    Parameters
    ----------
    intervals : pandas.DataFrame
        From `fold_intervals`.
    metric : {"frechet", "kernel"}
        A distance.

    Returns
    -------
    pandas.DataFrame
        ``model, class, mean, low, high, floor, lowest_ceiling, ceiling, place, below_every_ceiling``; `place` is 0 at
        the floor and 1 at the lowest ceiling; the last says whether the model's interval ends below the interval of
        every ceiling. Ceilings named ``..._<conditioning>`` count for that conditioning only.
    """
    table = intervals[(intervals["metric"] == metric) & (intervals["sample"] == "equal")]
    models = table.loc[table["role"] == "model", "model"].unique()
    rows = []
    for group, part in table.groupby("class", sort=False):
        part = part.set_index("model")
        for model in models:
            own, floor = part.loc[model], part.loc[FLOOR, "mean"]
            others = tuple(f"_{name}" for name in models if name != model)
            ceilings = part[(part["role"] == "ceiling") & ~part.index.str.endswith(others or ("\0",))]
            lowest = ceilings["mean"].idxmin()
            least = ceilings.loc[lowest, "mean"]
            row = {"model": model, "class": group, "mean": own["mean"], "low": own["low"], "high": own["high"]}
            row |= {"floor": floor, "lowest_ceiling": least, "ceiling": lowest}
            row |= {"place": (own["mean"] - floor) / (least - floor)}
            rows.append({**row, "below_every_ceiling": bool((own["high"] < ceilings["low"]).all())})
    return pd.DataFrame(rows)
