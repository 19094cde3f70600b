"""Does the interval of the kernel distance over patients hold the truth, where features outnumber images?

Real patients are points with four images around each; synthetic images come from as many other points, shifted by a
known amount. Centres and images are Gaussian with spreads that fall off along the features, so that the true squared
distance is known in closed form. Simulated.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies

from nafld_utils.quality import patient_distances

WIDTH = 400  # features; the largest cell has 160 real images
FRAMES, MADE = 4, 100
WITHIN = 0.3  # of a patient's variance, between the patient's images
SPREAD = 4.0 * np.arange(1, WIDTH + 1) ** -0.5  # variance of each feature
SHIFTS = {"none": 0.0, "small": 0.25, "large": 0.6}
CELLS = [
    {"patients": n, "made": made, "shift": shift}
    for n in (8, 12, 40)
    for made in ("from maps", "alone")
    for shift in SHIFTS
]


def third_moment(mean_x: np.ndarray, mean_y: np.ndarray) -> float:
    """Expected kernel (x·y/d + 1)³ of independent Gaussian x and y with these means and the variances `SPREAD`."""
    d, s = len(mean_x), SPREAD
    first = mean_x @ mean_y
    both, x, y = s @ s, mean_x @ (s * mean_x), mean_y @ (s * mean_y)
    second = first**2 + x + y + both
    third = first**3 + 3 * first * (x + y + both) + 6 * mean_x @ (s * s * mean_y)
    return float(third / d**3 + 3 * second / d**2 + 3 * first / d + 1)


def truth(shift: str) -> float:
    """The squared distance between the two populations."""
    real, made = means(shift)
    return third_moment(real, real) + third_moment(made, made) - 2 * third_moment(real, made)


def means(shift: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of real and of synthetic images; features of networks are not centred at zero."""
    real = np.full(WIDTH, 0.4)
    return real, real + SHIFTS[shift]


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """One cohort and one synthetic set: from maps of the same patients, or of nobody."""
    n, (real_mean, made_mean) = int(cell["patients"]), means(cell["shift"])
    between, within = ((share * SPREAD) ** 0.5 for share in (1 - WITHIN, WITHIN))
    own = np.repeat(np.arange(n), FRAMES)
    centres = between * rng.normal(size=(n, WIDTH))
    real = real_mean + centres[own] + within * rng.normal(size=(len(own), WIDTH))
    if cell["made"] == "from maps":
        source = np.arange(MADE) % n
        made = made_mean + centres[source]
    else:
        source = -1 - np.arange(MADE)
        made = made_mean + between * rng.normal(size=(MADE, WIDTH))
    made = made + within * rng.normal(size=made.shape)
    found, true = patient_distances.kernel_over_patients(made, real, source, own), truth(cell["shift"])
    return {
        "estimate minus truth": found["kernel"] - true,
        "holds the truth": bool(found["kernel_low"] <= true <= found["kernel_high"]),
        "lies above zero": bool(found["kernel_low"] > 0),
    }


STUDY = studies.Study(
    "kernel_study", "Whether the kernel distance's interval over patients holds it", CELLS, once, ["small_samples"]
)


main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
