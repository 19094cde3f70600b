"""How often the test of a gain rejects where there is none, and its interval holds the gain where there is one.

Simulated scores of patients with three images each, read by training seeds in two arms: the model of Roe and Metz 1997
(doi:10.1016/S1076-6332(97)80210-3), with several images of a patient and seeds that learn more or less well. The true
gain is known. `SPREADS` are variances of a score, "as seen" those that give the spread of five trainings on the real
cohort (notebook 06 with ``sweep.n_seeds=5``: standard deviation of a gain 0.05 over seeds).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies
from scipy import stats

from nafld_utils import statistics

AUC, IMAGES = 0.78, 3
COHORTS = {"17+38": (17, 38), "8+7": (8, 7)}  # patients of class 0 and class 1
# a patient; in one arm; for one seed; for one seed and arm; an image; in one training; a seed's skill; in one arm
NAMES = ("patient", "arm", "seed", "training", "image", "noise", "skill", "luck")
SPREADS = {
    "as seen": dict(zip(NAMES, (0.5, 0.03, 0.08, 0.04, 0.15, 0.1, 0.03, 0.015), strict=True)),
    "seeds agree": dict(zip(NAMES, (0.5, 0.03, 0.02, 0.01, 0.15, 0.1, 0.0, 0.0), strict=True)),
    "patients agree": dict(zip(NAMES, (0.5, 0.0, 0.08, 0.04, 0.15, 0.1, 0.03, 0.015), strict=True)),
}


def scores(
    rng: np.random.Generator, sizes: tuple[int, int], n_seeds: int, gain: float, spread: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Label (n,), scores (n_seeds, n) with and without other images, patient (n,); mean AUCs `AUC` + gain and `AUC`."""
    sd = {name: np.sqrt(value) for name, value in SPREADS[spread].items()}
    n, label = sum(sizes), np.repeat([0, 1], sizes)
    skills = SPREADS[spread]["skill"] + SPREADS[spread]["luck"]
    apart = np.sqrt(2 * (sum(SPREADS[spread].values()) - skills) + skills)  # of one image of each class
    means = apart * stats.norm.ppf([AUC + gain, AUC])[:, None, None]
    skill = sd["skill"] * rng.normal(size=(n_seeds, 1)) + sd["luck"] * rng.normal(size=(2, n_seeds, 1))
    shapes = {"patient": n, "arm": (2, 1, n), "seed": (n_seeds, n), "training": (2, n_seeds, n)}
    by_patient = sum(sd[name] * rng.normal(size=shape) for name, shape in shapes.items()) + (means + skill) * label
    by_image = sd["image"] * rng.normal(size=n * IMAGES) + sd["noise"] * rng.normal(size=(2, n_seeds, n * IMAGES))
    new, base = np.repeat(by_patient, IMAGES, axis=-1) + by_image
    return np.repeat(label, IMAGES), new, base, np.repeat(np.arange(n), IMAGES)


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float]:
    """Whether the interval holds the gain, whether it shows one, and its variance beside its squared miss."""
    label, new, base, patient = scores(rng, COHORTS[cell["patients"]], cell["seeds"], cell["gain"], cell["spread"])
    found = statistics.gain(label, new, base, patient)
    miss = found.difference - cell["gain"]
    return {
        "holds": found.low <= cell["gain"] <= found.high,
        "rejects": found.low > 0 or found.high < 0,
        "variance": found.error**2,
        "squared_miss": miss**2,
    }


CELLS = [
    {"patients": patients, "seeds": seeds, "gain": gain, "spread": spread}
    for patients in COHORTS
    for spread in SPREADS
    for seeds in (3, 5, 25)
    for gain in (0.0, 0.05)
]
STUDY = studies.Study(
    "gain_study",
    "Simulated: size and coverage of the test of a gain over patients and seeds",
    CELLS,
    once,
    ["readers", "stats"],
    repetitions=4000,
    block=200,
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
