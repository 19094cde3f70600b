"""What a run on a cohort of the user's will do, before any of it: what was found, what is needed, time and disk.

Contract: reads the cohort's table or file, decodes no image, loads no network, and takes a few seconds. Time and disk
are scaled from the demo's and the cpu profile's runs on two CPU cores (reports/README.md), not measured: right to
a factor of about three.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nafld_utils import artifacts, cohort, preprocessing, sweep
from nafld_utils.artifacts import Run
from nafld_utils.params import Settings

if TYPE_CHECKING:
    import pandas as pd

TRAINED = 1.05e-8  # seconds per image, step and unit of `_work`, of a denoiser's training
PASS = (6e-3, 6e-9)  # seconds per image and pass of a sampler: fixed, and per unit of `_work`
AUTOENCODED = 0.02  # seconds per image and step at 128 pixels
CLASSIFIED = {True: 3e-3, False: 2.4e-2}  # seconds per image and step at 128 pixels: Lite0 and B0, larger ones
PREFIX_BYTES = {True: 1.0, False: 8.0}  # of the frozen prefix, per pixel of a view
OVERHEAD = 100.0  # seconds of the eight notebooks' kernels
PER_IMAGE = 0.25  # seconds per image: read, crop, texture, features, audit
SIMULATED = 0.12  # seconds per image of a simulated patient
WEIGHT_BYTES = 1300.0  # of a denoiser's stored weights, per squared channel


def plan_text(run: Run) -> str:
    """What was found and what will be needed, a line each.

    Raises
    ------
    ValueError
        The cohort cannot be split as asked for.
    """
    s = run.settings
    try:
        found = cohort.outlined(run)
    except ValueError as error:  # not there yet, or gone away since; a table that is wrong has been refused before
        return f"cohort   cannot be read now: {error}"
    images = folded(run, found.images)
    patients = images.drop_duplicates("patient_id")
    per_class = patients["label"].value_counts()
    classes = ", ".join(f"{per_class.get(i, 0)} {name}" for i, name in enumerate(s.cohort.class_names))
    per_fold = patients["fold"].value_counts()
    given = "given by the cohort's column fold" if "fold" in found.images else "stratified by class"
    least, asked = sweep.trial_grid.least_images(images, s), s.sampling.n_images
    enough = "enough" if asked >= least else f'too few: give SET="sampling.n_images={least}" or lower sweep.rates'
    seconds, disk = _seconds(s, images), _bytes(s, images, found.pixels)
    first_stages = {} if run.shows_livers else s.section("autoencoder")
    shipped = [name for name in s.ldm.conditionings if first_stages.get(name, {}).get("source") == "shipped"]
    remedy = " ".join(f"autoencoder.{name}.source=train" for name in shipped)
    return "\n".join(
        [
            f"cohort   {len(patients)} patients ({classes}; {s.cohort.class_names[1]} is to be detected),"
            f" {len(images)} images, {_range(images['patient_id'].value_counts())} per patient",
            f"folds    {s.folds.n_splits}, {given}; {_range(per_fold)} patients held out of each",
            f"dropped  {'; '.join(found.dropped) or 'nothing'}",
            f"needed   {least} synthetic images per model and fold; sampling.n_images is {asked}, {enough}",
            f"cost     about {_duration(seconds)} of processor time without a GPU and {disk / 2**30:.1f} GiB of disk,"
            " if nothing is done yet; scaled from other runs, right to a factor of three (notebook 03 and make dry-run"
            " measure it)",
            *[f'advice   the shipped autoencoder knows liver ultrasounds alone: give SET="{remedy}"'] * bool(shipped),
        ]
    )


def images_for_smoke(run: Run, settled: bool = False) -> int | None:
    """The ``sampling.n_images`` that a smoke run on a cohort of the user's needs where it has less, else None.

    The smoke profile only shows that every stage runs, so that a cohort must not stop it for want of images. A number
    that the user has given stays, and what is wrong with the cohort is said by whom it concerns. `settled`: the number
    that ``resolve`` has stored for the same settings is taken, without a look at the cohort.
    """
    s, key = run.settings, "sampling.n_images"
    if key in run.overrides:
        return None
    stored = (artifacts.load_record(run.root / "settings" / "run.json") or {}).get("overrides", {}) if settled else {}
    if stored and stored in (run.overrides, {**run.overrides, key: stored.get(key)}):
        return stored.get(key)
    with contextlib.suppress(ValueError, OSError):
        least = sweep.trial_grid.least_images(folded(run, cohort.outlined(run).images), s)
        return least if least > s.sampling.n_images else None
    return None


def folded(run: Run, images: pd.DataFrame) -> pd.DataFrame:
    """Images with the folds that the run gives them, as `preprocessing.folded_images` will."""
    if "fold" in images:
        return images.astype({"fold": int})
    s = run.settings.folds
    folds = preprocessing.make_folds(images[["patient_id", "label"]].drop_duplicates(), s.n_splits, s.seed)
    return images.merge(folds, on="patient_id")


def _work(s: Settings, name: str) -> float:
    """Work of a denoiser's pass per image: latent pixels times squared channels, summed over its levels."""
    net, factor = s.section(f"ldm.{name}"), s.section(f"autoencoder.{name}")["factor"]
    levels = sum(mult**2 / 4**level for level, mult in enumerate(net["channel_mult"]))
    return (s.preprocess.image_size / factor) ** 2 * net["model_channels"] ** 2 * levels


def _seconds(s: Settings, images: pd.DataFrame) -> float:
    """Seconds of processor time of all stages."""
    folds, size = len(s.ldm.folds or range(s.folds.n_splits)), (s.preprocess.image_size / 128) ** 2
    image_steps, guided = s.ldm.steps * s.ldm.batch_size, 1 + (s.sampling.guidance != 1)
    drawn = (s.sampling.n_images + s.quality.n_reference) * guided + s.sampling.n_null
    passes = drawn * s.sampling.steps + s.sampling.n_compared * guided * sum(s.sampling.compared_steps)
    total = OVERHEAD + PER_IMAGE * len(images) * size
    for name in s.ldm.conditionings:
        work, trainings = _work(s, name), folds * len(s.ldm.balance)
        total += TRAINED * work * image_steps * trainings + (PASS[0] + PASS[1] * work) * passes * trainings
        if s.section(f"autoencoder.{name}")["source"] == "train":
            total += folds * s.section(f"autoencoder.{name}")["train_steps"] * 8 * AUTOENCODED * size
    if s.gan.enabled:  # by default as much work as the class model, one network more
        total += TRAINED * _work(s, s.ldm.conditionings[-1]) * image_steps * folds
    total += SIMULATED * s.sampling.n_images * ("simulated" in s.generators)
    for backbone, trainings in sweep.trial_grid.grid(s)["backbone"].value_counts().items():
        a_step = CLASSIFIED[_is_small(str(backbone))] * s.sweep.batch_size * size
        total += trainings * s.sweep.steps * a_step
    return total + _without_real(s, a_step)


def _without_real(s: Settings, a_step: float) -> float:
    """Seconds of processor time of trainings without a real image and of those with some; `a_step`: of the network."""
    own = s.simulated_only
    if not own.n_cohorts:
        return 0.0
    cohorts = (own.n_cohorts + len(own.variants)) * own.n_patients * own.n_frames * SIMULATED
    alone = own.n_cohorts * (own.n_seeds + 1) + len(own.variants) * own.variant_seeds
    worth = 2 * own.real_seeds * len(own.real_patients) * s.folds.n_splits * s.sweep.steps
    return cohorts + (alone * own.steps + worth) * a_step


def _bytes(s: Settings, images: pd.DataFrame, pixels: int) -> float:
    """Bytes that the finished run takes."""
    folds, area = len(s.ldm.folds or range(s.folds.n_splits)), s.preprocess.image_size**2
    models = len(s.ldm.conditionings) * len(s.ldm.balance) + s.gan.enabled
    crops = len(images) * (s.preprocess.crop_size**2 + s.preprocess.crops_per_image * area * 1.5)
    sets = folds * models * (s.sampling.n_images + s.sampling.n_null + 2 * s.quality.n_reference)
    features = 1280 * 4 * (sets + 2 * len(images))
    views = len(images) * s.preprocess.crops_per_image * (1 + folds) + folds * models * s.sampling.n_images
    prefix = sum(PREFIX_BYTES[_is_small(name)] for name in sweep.planned(s, "backbones")) * views * area
    weights = 0.0
    for name in s.ldm.conditionings:
        net = s.section(f"ldm.{name}")
        squared = sum(mult**2 for mult in net["channel_mult"]) * net["model_channels"] ** 2
        weights += WEIGHT_BYTES * squared * folds * len(s.ldm.balance)
    return pixels + crops + sets * area + features + prefix + weights


def _range(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _is_small(backbone: str) -> bool:
    return backbone.startswith("tf_efficientnet_") and any(part in backbone for part in ("lite", "_b0"))


def _duration(seconds: float) -> str:
    if seconds >= 360_000:
        return f"{round(seconds / 3600, -2):,.0f} h"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"
