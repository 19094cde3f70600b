"""Does the copy audit flag no more patients than it says? Toy patients, none of whom is anybody's copy.

A patient is a point with three images around it, under three measures that agree in part. `n` training patients set
the thresholds; one new patient like them is compared with all of them, as the audit compares held-out patients. Whether
that patient is flagged is counted, by the rule in use and by the interpolated quantile that it replaced. Simulated.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies

from nafld_utils import networks
from nafld_utils.networks import copy_rules as copies

WIDTH = 8  # numbers per image and measure
FRAMES = 3
AGREEMENT = 0.7  # share of the variance between patients that the measures have in common
APART = 0.3  # standard deviation of a patient's images, of the centres 1
CELLS = [{"patients": n} for n in (12, 30, 44, 100)]


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """One set of training patients and one new patient."""
    n = int(cell["patients"])
    own = np.repeat(np.arange(n + 1), FRAMES)
    shared = rng.normal(size=(n + 1, WIDTH))
    found, limits, quantile = {}, {}, {}
    for name in copies.MEASURES:
        centre = AGREEMENT**0.5 * shared + (1 - AGREEMENT) ** 0.5 * rng.normal(size=shared.shape)
        images = centre[own] + APART * rng.normal(size=(len(own), WIDTH))
        known = own < n
        near = networks.nearest_features(images, images[known], own[known])
        apart = networks.Nearest(near.patients, near.distance[known], near.row[known]).without_own(own[known])
        real = copies.statistics(apart)
        found[name] = copies.statistics(networks.Nearest(near.patients, near.distance[~known], near.row[~known]))
        limits[name] = copies.thresholds(real, own[known])
        least = real[list(copies.STATISTICS)].to_numpy().reshape(n, FRAMES, -1).min(axis=1)
        quantile[name] = dict(zip(copies.STATISTICS, np.quantile(least, copies.LEVEL, axis=0), strict=True))
    now, before = copies.flags(found, limits), copies.flags(found, quantile)
    return {
        "flagged by one measure": bool(now["features"].any()),
        "flagged by the verdict": bool(now["copy"].any()),
        "interpolated quantile, one measure": bool(before["features"].any()),
        "interpolated quantile, verdict": bool(before["copy"].any()),
    }


STUDY = studies.Study(
    "copy_study", "Whether the copy audit flags no more new patients than it says", CELLS, once, ["memorization"]
)


main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
