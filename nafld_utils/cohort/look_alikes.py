"""Patients whose frames look like one person's.

Contract: squares of images with their patients in, a table of pairs out. Frames are judged by `networks.pixels_apart`.
How near a patient's nearest other patient may come is read from the cohort itself. Around a patient, the
distances to the i-th and to the k-th nearest other have a ratio r for which r to the power D has a beta distribution
(i, k - i), whatever the density there; D, one number, is the dimension in which these patients lie (Facco et al. 2017,
doi 10.1038/s41598-017-11873-y, for i = 1 and k = 2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import networks

REVISION = ("one_person", 2)
LEVEL = 0.05  # that a cohort of different persons has any pair that is said to look like one
FRAMES = 4  # images of a patient that are compared at full size: those nearest to others (choice)
MOST = 3000  # images compared at full size (choice: a minute), yet one of each patient
NEAREST = 17  # other patients whose images are compared with an image at full size, shift and scale (choice)
# Choice: D is read from the third nearest on, so that a person with three numbers does not move it.
THIRD, FIFTH, EIGHTH = 3, 5, 8
# The nearest is judged beside these, so that one person under up to as many numbers is seen.
BESIDE = (FIFTH, 9, NEAREST)
FEWEST = 6  # patients; of fewer nothing is said
COARSE = 16  # pixels of the side at which the nearest patients are found
CHUNK = 1024  # images whose distances to all patients are held at once
LEAST = 1e-6  # distance below which images are equal but for rounding
PAIRS = ("patient_a", "patient_b")
NOBODY = pd.DataFrame(columns=["patient", "other", "distance", "row", "other_row"])


def look_alikes(squares: np.ndarray, patients: np.ndarray, device: Any = "cpu") -> pd.DataFrame:
    """Each patient's nearest other patient, and whether the two look like one person.

    Parameters
    ----------
    squares : numpy.ndarray, shape (N, S, S), uint8
        All images of several patients, the region of each; S a multiple of 16.
    patients : numpy.ndarray, shape (N,)
        Whose images they are.
    device : torch.device or str

    Returns
    -------
    pandas.DataFrame
        ``patient_a, patient_b`` (a below b), ``correlation`` (-1 to 1, over shifts and scales) of their two most alike
        images, which are ``row_a, row_b`` of `squares`; ``usual``, the correlation with the fifth nearest patient;
        ``p``, the chance (0 to 1) that a patient's nearest other is this near beside any of `BESIDE`, of the patient
        who has the smaller; ``left_out``, the share (0 to 1) of pixels without which they are compared: 0, or that
        which a caption may cover, whichever gives the smaller p, which counts twice for it; ``flagged``: p times the
        number of patients is below `LEVEL`. Most alike first; empty for fewer than `FEWEST` patients.
    """
    ways = {0.0: False, networks.LEFT_OUT: True}
    few = len(np.unique(patients)) < FEWEST
    tables = [judged(NOBODY if few else _pairs(squares, patients, device, captions)) for captions in ways.values()]
    table = pd.concat([found.assign(left_out=share) for share, found in zip(ways, tables, strict=True)])
    table["p"] = np.minimum(1.0, len(ways) * table["p"])
    table["flagged"] = table["p"] * len(np.unique(patients)) < LEVEL
    return table.sort_values("p", kind="stable").drop_duplicates(list(PAIRS), ignore_index=True)


def _pairs(squares: np.ndarray, patients: np.ndarray, device: Any, captions: bool) -> pd.DataFrame:
    """``patient, other, distance, row, other_row`` of the nearest images of patients, nearest first."""
    place, rows = _nearest(squares, patients, device, captions)
    used, at = np.unique(rows, return_inverse=True)
    frames = np.concatenate([squares[place], squares[used]])
    apart = networks.pixels_apart(frames, at.reshape(rows.shape) + len(place), device, captions)
    there = {"row": np.repeat(place, rows.shape[1]), "other_row": rows.ravel()}
    there = pd.DataFrame(there).assign(distance=apart.ravel().astype(float))
    back = there.rename(columns={"row": "other_row", "other_row": "row"})
    both = pd.concat([there, back]).sort_values(["distance", "row", "other_row"], kind="stable")
    both = both.assign(patient=patients[both["row"]], other=patients[both["other_row"]])
    return both.drop_duplicates(["patient", "other"])


def _nearest(squares: np.ndarray, patients: np.ndarray, device: Any, captions: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of the images that are nearest to another patient's, and (m, k) of the nearest others' nearest images.

    All images are compared, at 16 pixels a side; of each patient at most `FRAMES` are kept, `MOST` in all. Where they
    may have `captions`, they are so less their local mean and as roots, in which a caption weighs little.
    """
    from scipy import ndimage

    n, step, people = len(squares), squares.shape[1] // COARSE, len(np.unique(patients))
    small = np.empty((n, COARSE * COARSE), np.float32)
    for start in range(0, n, CHUNK):
        some = squares[start : start + CHUNK].reshape(-1, COARSE, step, COARSE, step)
        some = some.mean(axis=(2, 4), dtype=np.float32)
        if captions:
            some -= ndimage.gaussian_filter(some, (0, 2, 2))
            some = np.sign(some) * np.sqrt(np.abs(some))
        small[start : start + CHUNK] = some.reshape(len(some), -1)
    small -= small.mean(axis=1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), LEAST)
    others = min(NEAREST, people - 1)
    rows, least = np.empty((n, others), np.int64), np.empty(n)
    for start in range(0, n, CHUNK):
        some = slice(start, start + CHUNK)
        found = networks.nearest_features(small[some], small, patients, device).without_own(patients[some])
        order = np.argsort(found.distance, axis=1, kind="stable")[:, :others]
        rows[some] = np.take_along_axis(found.row, order, axis=1)
        least[some] = found.distance.min(axis=1)
    each = max(1, min(FRAMES, MOST // people))
    near = pd.Series(patients[np.argsort(least, kind="stable")], index=np.argsort(least, kind="stable"))
    place = np.sort(near.index[near.groupby(near).cumcount() < each].to_numpy())
    return place, rows[place]


def judged(pairs: pd.DataFrame) -> pd.DataFrame:
    """The table of `look_alikes`, of one way to compare, from that of `_pairs`."""
    from scipy import stats

    n = pairs["patient"].nunique()
    place = pairs.groupby("patient").cumcount()
    last, beside = min(EIGHTH, n - 1), [k for k in BESIDE if k < n]
    at = {k: pairs[place == k - 1].set_index("patient") for k in {1, THIRD, FIFTH, last, *beside}}
    table = at[1].copy()
    logs = {k: np.log(found["distance"].reindex(table.index).clip(lower=LEAST)) for k, found in at.items()}
    table["p"] = 1.0
    if n:
        ratio = min((logs[THIRD] - logs[last]).median(), -LEAST)
        dimension = np.log(stats.beta.ppf(0.5, THIRD, last - THIRD)) / ratio
        each = [stats.beta.cdf(np.exp(dimension * (logs[1] - logs[k])), 1, k - 1) for k in beside]
        table["p"] = np.minimum(1.0, len(beside) * np.nanmin([np.ones(len(table)), *each], axis=0))
    table = table.assign(usual=1 - at[FIFTH]["distance"], correlation=1 - table["distance"])
    table = table.reset_index().sort_values("p", kind="stable")
    swap = table["patient"] > table["other"]
    for low, high, one, other in ((*PAIRS, "patient", "other"), ("row_a", "row_b", "row", "other_row")):
        table[low], table[high] = table[one].mask(swap, table[other]), table[other].mask(swap, table[one])
    table = table.assign(flagged=table["p"] * n < LEVEL).drop_duplicates(list(PAIRS), ignore_index=True)
    return table[[*PAIRS, "correlation", "usual", "p", "flagged", "row_a", "row_b"]]
