"""The generator ``simulated``: images of simulated patients, one per image, cut as the run cuts its own frames.

Contract: no image and no label of the cohort is read. A patient's seed is that of the image (`unit_seed`, 63 bits), so
that none is a patient of a simulated cohort or one that the shipped autoencoder was trained on, whose seeds are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import images, phantom, preprocessing
from nafld_utils.artifacts import LIVERS, Run
from nafld_utils.params import SettingsError

if TYPE_CHECKING:
    import torch

REVISION = ("simulated_images", 1)
MODULES = ("simulated_images", "phantom", "phantom_anatomy", "phantom_variants", "preprocess", "regions")


def require_liver(run: Run) -> None:
    """Refuse a cohort that the simulator does not simulate.

    Raises
    ------
    SettingsError
        It is a folder of other images, and ``simulated.enabled`` asks for simulated ones.
    """
    if run.settings.simulated.enabled and not run.shows_livers:
        raise SettingsError(
            "simulated.enabled: expected a cohort of B-mode ultrasounds of the liver, which the simulator draws,"
            ' found a folder of other images; give SET="simulated.enabled=false", or'
            f' SET="cohort.subject={LIVERS}" where they are such.'
        )


def recipe(run: Run) -> dict[str, Any]:
    """The settings that the images depend on beside their number and the root seed."""
    read = (
        "threshold",
        "closing_radius",
        "region",
        "region_box",
        "crop_size",
        "image_size",
        "crop_scale",
        "crop_ratio",
    )
    chosen = {key: value for key, value in run.settings.section("preprocess").items() if key in read}
    own = run.settings.simulated
    return {"preprocess": chosen, "fit": preprocessing.fits(run), "variant": own.variant, "share": own.share}


def painter(run: Run, fold: int, device: torch.device) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    """Function from labels (n,) and n seeds to images (n, S, S) uint8: a patient each, a random crop of one frame."""
    require_liver(run)
    variant, s = phantom.VARIANTS[run.settings.simulated.variant], run.settings.preprocess

    def paint(labels: np.ndarray, seeds: list[int]) -> np.ndarray:
        drawn = []
        for label, seed in zip(labels, seeds, strict=True):
            rng = np.random.default_rng([seed, 1])
            fat = phantom.draw_fat(int(label), rng, variant)
            frames, _ = phantom.simulate_patient(seed, 0, fat, 1, variant=variant)
            crop = preprocessing.as_held_out(run, frames[0])[0]
            drawn.append(
                images.resize_box(crop, images.random_box(crop.shape, s.crop_scale, s.crop_ratio, rng), s.image_size)
            )
        return np.stack(drawn)

    return paint
