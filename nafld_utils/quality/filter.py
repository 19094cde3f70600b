"""Which synthetic images to keep: those that look real, show their class, and are no copies.

Contract: scores in, a choice out. Everything a score stands on comes from training patients: a filter that saw held-out
patients would leak them into every classifier trained on what it kept. The paper suggests such a filter (Discussion).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

REVISION = ("quality_filter", 1)


def quota(size: np.ndarray, keep: float) -> np.ndarray:
    """Images of a class that the filter keeps at most, before copies are left out.

    Parameters
    ----------
    size : (...) int ndarray
        Images of the class.
    keep : float
        Share to keep, in (0, 1].

    Returns
    -------
    (...) int64 ndarray

    Examples
    --------
    >>> quota(np.array([20, 21]), 0.95).tolist()
    [19, 19]
    """
    return np.floor(keep * np.asarray(size) + 1e-9).astype(np.int64)


def choose(table: pd.DataFrame, keep: float) -> pd.DataFrame:
    """Rank images and keep the best.

    Parameters
    ----------
    table : pandas.DataFrame
        A row an image: ``label``, ``realism`` (`precision_recall.realism`), ``agreement`` (probability that a
        classifier of training patients gives the image's own label, in [0, 1]), ``copy`` (bool, the search for copies).
    keep : float
        Share of all images to keep, in (0, 1].

    Returns
    -------
    pandas.DataFrame
        The rows with ``score``, the mean of the ranks of realism and of agreement within the class, from 0 to 1, and
        ``kept``. Copies are never kept. Choice: ranks within a class, and the same share of each class, so that the
        filter does not change the class mix; both scores weigh alike, as nothing but held-out patients could tell
        which should weigh more.
    """
    out = table.copy()
    by_class = out.groupby("label")
    ranks = [by_class[name].rank(pct=True) for name in ("realism", "agreement")]
    out["score"] = np.mean(ranks, axis=0)
    place = out["score"].where(~out["copy"], -1.0).groupby(out["label"]).rank(ascending=False, method="first")
    size = out.groupby("label")["score"].transform("size")
    out["kept"] = (place <= quota(size, keep)) & ~out["copy"]
    return out
