"""Which synthetic images to keep: those that look real, show their class, and are no copies.

Contract: scores in, a choice out. Everything a score stands on comes from training patients: a filter that saw held-out
patients would leak them into every classifier trained on what it kept. The paper suggests such a filter (Discussion).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

REVISION = ("quality_filter", 1)


def quota(size: np.ndarray, keep: float) -> np.ndarray:
    """Images that the filter keeps at most, int64, of classes of so many, before copies are left out.

    Examples
    --------
    >>> quota(np.array([20, 21]), 0.95).tolist()
    [19, 19]
    """
    return np.floor(keep * np.asarray(size) + 1e-9).astype(np.int64)


def choose(table: pd.DataFrame, keep: float) -> pd.DataFrame:
    """The rows, one per image, with ``score``, in (0, 1], and ``kept``: a share `keep` in (0, 1] of all, never copies.

    `table` holds ``label, realism`` (`precision_recall.realism`), ``agreement`` (probability that a classifier of
    training patients gives the image's own label), ``copy`` (bool, of the copy audit). Choice: the score is the mean of
    the ranks of realism and agreement within a class, and the same share of each class is kept, so that the filter does
    not change the class mix; both weigh alike, as nothing but held-out patients could tell which should weigh more.
    """
    out = table.copy()
    by_class = out.groupby("label")
    ranks = [by_class[name].rank(pct=True) for name in ("realism", "agreement")]
    out["score"] = np.mean(ranks, axis=0)
    place = out["score"].where(~out["copy"], -1.0).groupby(out["label"]).rank(ascending=False, method="first")
    size = out.groupby("label")["score"].transform("size")
    out["kept"] = (place <= quota(size, keep)) & ~out["copy"]
    return out
