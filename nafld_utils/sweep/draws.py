"""What a training draws: which images are mixed in, which crop, which batch.

Contract: every draw is a function of its arguments and of ``(seed, step)`` alone, never of what ran before it, of its
process or of a device's generator. Where several sets share r, ``part = (i, n)`` says that a set is the i-th of n with
equal parts; the first ones take what is left over. Functions refuse, with a ValueError, what there are too few images
for.
"""

from __future__ import annotations

import numpy as np

REVISION = ("trial_draws", 1)


def draw_synthetic(n_real: int, rate: float, n_available: int, seed: int, part: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Which of a fold's synthetic images a training mixes in, (n,) int64: ``round(rate * n_real)``, each at most once.

    Choice: one order per seed, of which a rate takes the beginning, so the images of a small rate are also used at a
    larger one and the rates differ by what is added.

    Examples
    --------
    >>> len(draw_synthetic(40, 0.5, 100, seed=0))
    20
    """
    n = count_synthetic(n_real, rate, part)
    if n > n_available:
        _refuse(rate, n, n_real, f"the set has {n_available}", n_available * part[1] / n_real)
    return np.random.default_rng([seed, 1]).permutation(n_available)[:n]


def draw_matched(
    real_labels: np.ndarray, rate: float, labels: np.ndarray, seed: int, part: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """As `draw_synthetic`, in the class mix of the real training images: of each class the beginning of that order.

    `real_labels` (n_real,) and `labels` (n_available,) of the synthetic set are 0 and 1.
    """
    counts, order = count_matched(real_labels, rate, part), np.random.default_rng([seed, 1]).permutation(len(labels))
    drawn = []
    for label, wanted in enumerate(counts):
        mine = order[labels[order] == label]
        if wanted > len(mine):
            share = wanted / sum(counts)
            most = len(mine) / share * part[1] / len(real_labels)
            _refuse(rate, wanted, len(real_labels), f"the set has {len(mine)} of class {label}", most)
        drawn.append(mine[:wanted])
    return np.concatenate(drawn)


def count_synthetic(n_real: int, rate: float, part: tuple[int, int] = (0, 1)) -> int:
    """Images that one of several sets adds at a rate.

    Examples
    --------
    >>> [count_synthetic(10, 1.5, (i, 2)) for i in (0, 1)]
    [8, 7]
    """
    place, n_sets = part
    whole = round(rate * n_real)
    return whole // n_sets + (place < whole % n_sets)


def count_matched(real_labels: np.ndarray, rate: float, part: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Images of class 0 and of class 1 that `draw_matched` takes; arguments as there.

    Examples
    --------
    >>> count_matched(np.array([0, 1, 1, 1]), 2.0)
    (2, 6)
    """
    n = count_synthetic(len(real_labels), rate, part)
    second = round(n * float(real_labels.mean()))
    return n - second, second


def _refuse(rate: float, n: int, n_real: int, found: str, most: float) -> None:
    raise ValueError(
        f"mixing rate {rate:g}: expected at most {most:.2f}, since it takes {n} synthetic images"
        f" for {n_real} real ones and {found}; lower sweep.rates or raise sampling.n_images."
    )


def oversample(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of a set, (2 * larger class,) int64, in which the smaller class is repeated until both are alike.

    Every row comes at least once, those of the smaller class as evenly repeated as the numbers allow; the seed draws
    those that come once more than the others.

    Examples
    --------
    >>> np.bincount(oversample(np.array([0, 1, 1, 1]), seed=0)).tolist()
    [3, 1, 1, 1]
    """
    counts = np.bincount(labels, minlength=2)
    if not counts.all():
        raise ValueError(f"training images: expected both classes to oversample one, found {counts.tolist()} of each.")
    small = np.flatnonzero(labels == counts.argmin())
    whole, rest = divmod(int(counts.max()), len(small))
    extra = np.random.default_rng([seed, 4]).permutation(small)[:rest]
    return np.concatenate([np.arange(len(labels)), np.tile(small, whole - 1), extra])


def training_rows(rows: np.ndarray, labels: np.ndarray, balance: str, seed: int) -> np.ndarray:
    """A fold's real training images `rows` as a training counts them, some repeated where `balance` is ``oversample``.

    `labels` (N,) are those of all images; the paper's r is a share of the rows returned, (m,) int64.
    """
    return rows[oversample(labels[rows], seed)] if balance == "oversample" else rows


def fixed_crops(n: int, n_views: int, seed: int) -> np.ndarray:
    """The one stored crop that a training uses of each image, ``(n,)`` int64 in [0, n_views)."""
    return np.random.default_rng([seed, 3]).integers(n_views, size=n)


def draw_batch(n: int, n_views: int, batch_size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training set that a step sees, (batch_size,) int64 in [0, n), and views of them in [0, n_views).

    Every image of the union of real and synthetic images is equally likely, so the share of synthetic images in a
    batch is that of the training set on average (paper: r is "the proportion of synthetic images to real images in the
    training set"). No row comes twice in a batch where the set is large enough.
    """
    rng = np.random.default_rng([seed, 2, step])
    rows = rng.choice(n, batch_size, replace=n < batch_size)
    return rows, rng.integers(n_views, size=batch_size)
