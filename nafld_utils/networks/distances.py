"""How far two sets of images are from each other, by their features.

Contract: features and class logits in, numbers out. The formulas for the kernel distance and the score are
torch-fidelity's; the Frechet distance has a faster, equal one.

Sources: paper, Methods (quantitative evaluation); Heusel et al. 2017, arXiv 1706.08500 (FID); Binkowski et al. 2018,
arXiv 1801.01401 (KID); Salimans et al. 2016, arXiv 1606.03498 (IS).
"""

from __future__ import annotations

from typing import Any

import numpy as np

REVISION = ("quality", 1)


def frechet_distance(a: Any, b: Any, names: tuple[str, str] = ("the first set", "the second set")) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features (Eq. 6 of Heusel et al.).

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

    `subset_size` images per subset, drawn without replacement; the smaller set's size where that is less, which changes
    the spread of the estimate and not its expectation. May be slightly negative for like sets. Refuses what
    `frechet_distance` refuses.
    """
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    a, b = (torch.from_numpy(x) for x in checked_pair(a, b, names))
    size = min(subset_size, len(a), len(b))
    result = kid_features_to_metric(
        a, b, kid_subsets=n_subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
    )
    return result[KEY_METRIC_KID_MEAN]


def inception_score(logits: Any, name: str = "the set") -> float:
    """Score exp(E KL(p(y|x) || p(y))) of class logits (n, C) from `extract`, 1 to C.

    Only Inception-v3's logits give the Inception Score. Choice: one split, since the folds already repeat the
    measurement and every split sees fewer images.
    """
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = torch.from_numpy(_checked(logits, name))
    return isc_features_to_metric(logits, splits=1, shuffle=True, rng_seed=0)[KEY_METRIC_ISC_MEAN]


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
