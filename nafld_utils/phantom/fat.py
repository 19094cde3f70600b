"""How much fat simulated patients have."""

from __future__ import annotations

import numpy as np

from nafld_utils.phantom.provenance import Draws
from nafld_utils.phantom.variants import FULL, Variant


def fat_of_55(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fat (percent) of 17 healthy and of 38 fatty patients, each in random order, spread as in the real cohort."""
    c = Draws(rng)
    healthy = rng.permutation(np.repeat(np.arange(5), c["fat_healthy"]))
    bands = [rng.integers(*c[f"fat_{name}"]) * 5 for name in ("mild", "moderate", "severe")]
    return healthy, rng.permutation(np.concatenate(bands))


def draw_fat(label: int, rng: np.random.Generator, variant: Variant = FULL) -> int:
    """Draw the fat of one patient of a class.

    Parameters
    ----------
    label : {0, 1}
    rng : numpy.random.Generator
    variant : Variant

    Returns
    -------
    int
        Percent of hepatocytes: 0..4 for label 0, from 5 on for label 1; spread as in the real cohort, or evenly (0..4;
        5..100) where the variant's constants are "literature".
    """
    even = Draws(rng, variant)["fat_even"]
    if even:
        return int(rng.integers(*(even[1:] if label else even[:2])))
    return int(rng.choice(fat_of_55(rng)[int(bool(label))]))
