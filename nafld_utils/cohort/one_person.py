"""Whether two patients of a cohort look like one person: frames far more alike than those of its patients are.

Contract: squares of images and patient numbers in, a table of pairs out; the distance is the copy audit's of pixels.
How near a patient's nearest other patient may come is read from the cohort itself. Around a patient, the distances to
the i-th and to the k-th nearest other have a ratio r for which r to the power D has a beta distribution (i, k - i),
whatever the density there; D, one number, is the dimension in which these patients lie (Facco et al. 2017,
doi 10.1038/s41598-017-11873-y, for i = 1 and k = 2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils.networks import nearest_features, pixels_apart

REVISION = ("one_person", 1)
LEVEL = 0.05  # that a cohort of different persons has any pair that is said to look like one
FRAMES = 4  # images of a patient that are compared, spread over all of them (choice)
MOST = 3000  # images compared in all (choice: half a minute); of larger cohorts fewer per patient
NEAREST = 8  # other patients whose frames are compared with an image at full size, shift and scale (choice)
THIRD, FIFTH = 3, 5  # choice: D is read from the third nearest on, so that a person with three numbers does not move it
FEWEST = 6  # patients; of fewer nothing is said
COARSE = 16  # pixels of the side at which the nearest patients are found
LEAST = 1e-6  # distance below which images are equal but for rounding
PAIRS = ("patient_a", "patient_b")


def look_alikes(squares: np.ndarray, patients: np.ndarray, device: Any = "cpu") -> pd.DataFrame:
    """Each patient's nearest other patient, and whether the two look like one person.

    Parameters
    ----------
    squares : numpy.ndarray, shape (N, S, S), uint8
        Images of several patients, the region of each; S a multiple of 16. `FRAMES` of each patient are enough.
    patients : numpy.ndarray, shape (N,)
        Whose images they are.
    device : torch.device or str

    Returns
    -------
    pandas.DataFrame
        ``patient_a, patient_b`` (a below b), ``correlation`` (-1 to 1, over shifts and scales) of their two most alike
        images, which are ``row_a, row_b`` of `squares`; ``usual``, the correlation with the fifth nearest patient;
        ``p``, the chance (0 to 1) that a patient's nearest other is this near, of the patient who has the smaller;
        ``flagged``: p times the number of patients is below `LEVEL`. Most alike first; empty for fewer than `FEWEST`
        patients.
    """
    if len(np.unique(patients)) < FEWEST:
        return judged(pd.DataFrame(columns=["patient", "other", "distance", "row", "other_row"]))
    n, step = len(squares), squares.shape[1] // COARSE
    small = squares.reshape(n, COARSE, step, COARSE, step).mean(axis=(2, 4), dtype=np.float32).reshape(n, -1)
    small -= small.mean(axis=1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), LEAST)
    nearest = nearest_features(small, small, patients).without_own(patients)
    order = np.argsort(nearest.distance, axis=1, kind="stable")[:, : min(NEAREST, nearest.distance.shape[1] - 1)]
    rows = np.take_along_axis(nearest.row, order, axis=1)
    there = {"row": np.repeat(np.arange(n), rows.shape[1]), "other_row": rows.ravel()}
    there = pd.DataFrame(there).assign(distance=pixels_apart(squares, rows, device).ravel().astype(float))
    back = there.rename(columns={"row": "other_row", "other_row": "row"})
    both = pd.concat([there, back]).sort_values(["distance", "row", "other_row"], kind="stable")
    both = both.assign(patient=patients[both["row"]], other=patients[both["other_row"]])
    return judged(both.drop_duplicates(["patient", "other"]))


def judged(pairs: pd.DataFrame) -> pd.DataFrame:
    """The table of `look_alikes` from ``patient, other, distance, row, other_row``, nearest others of each first."""
    from scipy import stats

    n = pairs["patient"].nunique()
    place = pairs.groupby("patient").cumcount()
    last = min(NEAREST, n - 1)
    at = {k: pairs[place == k - 1].set_index("patient") for k in {1, THIRD, FIFTH, last}}
    table = at[1].copy()
    logs = {k: np.log(found["distance"].reindex(table.index).clip(lower=LEAST)) for k, found in at.items()}
    if n:
        ratio = min((logs[THIRD] - logs[last]).median(), -LEAST)
        dimension = np.log(stats.beta.ppf(0.5, THIRD, last - THIRD)) / ratio
        table["p"] = stats.beta.cdf(np.exp(dimension * (logs[1] - logs[FIFTH])), 1, FIFTH - 1)
    table = table.assign(p=table.get("p", 0.0), usual=1 - at[FIFTH]["distance"], correlation=1 - table["distance"])
    table = table.reset_index().sort_values("p", kind="stable")
    swap = table["patient"] > table["other"]
    for low, high, one, other in ((*PAIRS, "patient", "other"), ("row_a", "row_b", "row", "other_row")):
        table[low], table[high] = table[one].mask(swap, table[other]), table[other].mask(swap, table[one])
    table = table.assign(flagged=table["p"] * n < LEVEL).drop_duplicates(list(PAIRS), ignore_index=True)
    return table[[*PAIRS, "correlation", "usual", "p", "flagged", "row_a", "row_b"]]
