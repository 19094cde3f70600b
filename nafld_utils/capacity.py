"""Whether the images that a run will draw suffice for its classifiers, told from settings and folds alone.

Contract: pure, and before any model is trained. What a training takes is counted by `trial_draws`, which later draws
it, and what the filter keeps by `quality_filter`; here it is held against what will be there.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import arms, quality_filter, sweep, trial_draws
from nafld_utils.params import Settings

REVISION = ("capacity", 1)
N_IMAGES, CROPS = "sampling.n_images", "preprocess.crops_per_image"
# Labels of semantic images are drawn with their maps. Choice: room for four SDs, one fold in thirty thousand.
MARGIN = 4.0
Offer = tuple[int, np.ndarray]  # images in all, and of each class at least


def shortages(images: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Sets that are too small for a training of the grid.

    Parameters
    ----------
    images : pandas.DataFrame
        A row a real image: ``label`` (0 or 1), ``fold``.
    settings : Settings
        Reads what `sweep.grid` reads, ``sampling.n_images, preprocess.crops_per_image, quality.filter_keep,
        quality.filter_of``.

    Returns
    -------
    pandas.DataFrame
        ``setting`` (that the set's size follows from), ``given``, ``least`` (value that suffices), ``balance, arm,
        rate, fold, generator``, ``n_real`` (training images, counted as often as they are repeated), ``taken`` (images
        of the set that the training takes); no row where all suffice.

    Raises
    ------
    ValueError
        As `sweep.grid`.

    Notes
    -----
    How many copies the filter will leave out cannot be known beforehand; stage 06 refuses what is then missing.
    """
    label, fold, rows = images["label"].to_numpy(), images["fold"].to_numpy(), []
    for trial in sweep.hardest(sweep.grid(settings)).to_dict("records"):
        arm, training = arms.parse(trial["arm"]), np.flatnonzero(fold != trial["fold"])
        real = label[trial_draws.training_rows(training, label, trial["balance"], seed=0)]
        for i, generator in enumerate(arm.generators):
            part = (i, len(arm.generators))
            taken = trial_draws.count_synthetic(len(real), trial["rate"], part)
            by_class = trial_draws.count_matched(real, trial["rate"], part) if arm.matched else (0, 0)
            name, given, offered = _set(generator, label[training], settings)
            least = _least(offered, taken, np.array(by_class), given)
            if least > given:
                facts = {"setting": name, "given": given, "least": least, "generator": generator}
                rows.append({**facts, **trial, "n_real": len(real), "taken": taken})
    columns = ["setting", "given", "least", "balance", "arm", "rate", "fold", "generator", "n_real", "taken"]
    return pd.DataFrame(rows, columns=columns)


def check(images: pd.DataFrame, settings: Settings) -> None:
    """Refuse a run whose sets are too small for its trainings, and say which value of which setting suffices.

    Parameters
    ----------
    images, settings
        As in `shortages`.

    Raises
    ------
    ValueError
        One sentence names the setting, the training that takes most, and what to give.
    """
    found = shortages(images, settings)
    if not len(found):
        return
    most = found.sort_values("least", ascending=False, kind="stable").drop_duplicates("setting").to_dict("records")
    lines = [
        f"{row['setting']} is {row['given']}, expected {row['least']} or more, since arm {row['arm']} at rate"
        f" {row['rate']:g} takes {row['taken']} {row['generator']} images for the {row['n_real']} training images of"
        f" fold {row['fold']}{' with the smaller class repeated' if row['balance'] == 'oversample' else ''}"
        for row in most
    ]
    values = " ".join(f"{row['setting']}={row['least']}" for row in most)
    raise ValueError(f'{"; and ".join(lines)}; give SET="{values}" or lower sweep.rates.')


def _set(generator: str, label: np.ndarray, settings: Settings) -> tuple[str, int, Callable[[int], Offer]]:
    """The setting that a set's size follows from, its value, and what a value offers to these training images."""
    if generator == "traditional":
        counts = np.bincount(label, minlength=2)
        return CROPS, settings.preprocess.crops_per_image, lambda k: (len(label) * k, counts * k)
    source = settings.filtered_generator if generator == "filtered" else generator
    keep = settings.quality.filter_keep if generator == "filtered" else 1.0
    share = np.array([1 - label.mean(), label.mean()]) if source == "semantic" else None

    def offered(n: int) -> Offer:
        by_class = _halves(n) if share is None else _at_least(n, share)
        if generator != "filtered":
            return n, by_class
        # of each class a whole number, whatever the classes' sizes
        sizes = np.arange(n + 1) if share is not None else by_class[:1]
        whole = quality_filter.quota(sizes, keep) + quality_filter.quota(n - sizes, keep)
        return int(whole.min()), quality_filter.quota(by_class, keep)

    return N_IMAGES, settings.sampling.n_images, offered


def _halves(n: int) -> np.ndarray:
    """Images of each class where a generator is asked for both in turn."""
    return np.array([n - n // 2, n // 2])


def _at_least(n: int, share: np.ndarray) -> np.ndarray:
    """Images of each class where n labels are drawn with these shares, but for `MARGIN`."""
    return np.maximum(0, np.floor(n * share - MARGIN * np.sqrt(n * share.prod()))).astype(np.int64)


def _least(offered: Callable[[int], Offer], taken: int, by_class: np.ndarray, given: int) -> int:
    """Smallest value from `given` on that offers enough."""

    def enough(value: Any) -> bool:
        total, classes = offered(int(value))
        return total >= taken and bool((classes >= by_class).all())

    high = given
    while not enough(high):
        high *= 2
    return given + bisect.bisect_left(range(given, high), True, key=enough)
