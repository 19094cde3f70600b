"""Stage 03, the baseline: one GAN per fold, trained as long as the fold's diffusion model. Opens and writes files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from nafld_utils import artifacts, engine, preprocessing, statistics
from nafld_utils.artifacts import Run, Unit, load_weights, over_folds, read_manifest, remembered, save_table, unit_seed
from nafld_utils.ldm import autoencoder_units, denoiser_units, gan
from nafld_utils.ldm.resumable import followed, on_cpu, resume

NAME = "gan"
TIMED_STEPS = 4  # choice: one with gradient penalties in four, as in training
# What does not change a GAN's weights.
NOT_READ = ("enabled", "checkpoint_every", "keep_checkpoints")


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per fold; none where ``gan.enabled`` is false."""
    return [{"run": run, "fold": fold} for fold in autoencoder_units.folds_of(run)] if run.settings.gan.enabled else []


def reference(run: Run) -> str:
    """Diffusion model whose training time the GAN gets: the class model, conditioned as the GAN is, where trained."""
    models = run.settings.ldm.conditionings
    return "class" if "class" in models else models[0]


@remembered
def gan_unit(run: Run, fold: int) -> Unit:
    """Unit of a trained GAN; it depends on the diffusion model whose seconds it is given."""
    settings = {key: value for key, value in run.settings.section("gan").items() if key not in NOT_READ}
    inputs: list[Unit | str] = [preprocessing.preprocess_unit(run)]
    if settings["steps"] is None:
        inputs.append(denoiser_units.ldm_unit(run, reference(run), fold))
    return run.unit(
        NAME,
        f"fold{fold}",
        settings={**settings, "seed": run.settings.seed, "fold": fold},
        inputs=inputs,
        modules=["gan"],
    )


def budget(run: Run, fold: int) -> float:
    """Seconds that the fold's diffusion model took, and its autoencoder where that was trained on the fold too."""
    conditioning = reference(run)
    seconds = denoiser_units.ldm_unit(run, conditioning, fold).require().seconds()
    if run.settings.section(f"autoencoder.{conditioning}")["source"] == "train":
        seconds += autoencoder_units.autoencoder_unit(run, conditioning, fold).require().seconds()
    return seconds


def train_gan(run: Run, fold: int) -> None:
    """Train one GAN, with checkpoints to resume from; does nothing when the unit is done."""
    unit = gan_unit(run, fold)
    if unit.done():
        return
    device, settings = engine.device(run.settings.engine), run.settings.section("gan")
    data = preprocessing.open_preprocessed(run)
    kept = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    images = np.ascontiguousarray(data.pool[kept]).reshape(-1, *data.pool.shape[2:])
    labels = np.repeat(data.images["label"].to_numpy()[kept], data.pool.shape[1])
    size, seed = images.shape[1], unit_seed(run.settings.seed, "gan", fold)
    steps = settings["steps"] or _planned(run, unit, fold, images, labels, device)
    training = gan.start_training(size, settings, seed, device)
    resume(training, unit)
    train = gan.train(training, images, labels, settings, steps, seed, device)
    for _ in followed(train, training, unit, f"GAN fold {fold}", steps, settings):
        pass
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("generator", training.generator), ("discriminator", training.discriminator))
    }
    given = budget(run, fold) if settings["steps"] is None else None
    facts = {"steps": steps, "parameters": counts, "seconds_given": given, "seconds": training.seconds}
    with unit.writing(device=str(device), **facts) as folder:
        tensors = on_cpu(training.average.state_dict())
        save_file(tensors, folder / "averaged.safetensors", metadata={"fold": str(fold)})
        save_table(folder / "curve.csv", pd.DataFrame(training.curve))


def _planned(run: Run, unit: Unit, fold: int, images: np.ndarray, labels: np.ndarray, device: torch.device) -> int:
    """Steps that take the fold's budget, from a few timed ones; planned once, so that a resumed training ends alike."""
    path: Path = unit.work / "plan.json"
    stored = artifacts.load_plan(path)
    if stored is not None:
        return int(stored["steps"])
    each = seconds_a_step(run, images, labels, device)
    planned = max(1, round(budget(run, fold) / each))
    artifacts.save_plan(path, {"steps": planned, "seconds_a_step": each, "budget": budget(run, fold)})
    return planned


def seconds_a_step(run: Run, images: np.ndarray, labels: np.ndarray, device: torch.device) -> float:
    """Seconds of a training step, from a few after as many that are not counted."""
    settings = run.settings.section("gan")
    trial = gan.start_training(images.shape[1], settings, 0, device)
    steps = gan.train(trial, images, labels, settings, 2 * TIMED_STEPS, 0, device)
    for _ in range(TIMED_STEPS):
        next(steps)
    started = time.monotonic()
    for _ in steps:
        pass
    return (time.monotonic() - started) / TIMED_STEPS


def load_generator(run: Run, fold: int) -> gan.Generator:
    """The trained generator with averaged weights, on the CPU, in eval mode."""
    settings = run.settings.gan
    network = gan.Generator(run.settings.preprocess.image_size, settings.base_channels, settings.max_channels)
    network.load_state_dict(load_weights(gan_unit(run, fold).require().file("averaged.safetensors"))[0])
    return network.eval().requires_grad_(False)


def painter(run: Run, fold: int, device: torch.device) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    """Function from labels (n,) and a seed an image to images (n, S, S) uint8 of a fold's GAN."""
    network = load_generator(run, fold).to(device)
    return lambda labels, seeds: gan.sample(network, labels, seeds, device)


def table(run: Run) -> pd.DataFrame:
    """What every fold's GAN is: ``fold, steps, generator, discriminator, seconds, seconds_given, ratio, device``.

    ``ratio`` is its training time over the one it was given: 1 where both models had the same seconds.
    """
    rows = []
    for task in tasks(run):
        made = read_manifest(gan_unit(**task).require().path)
        row = {"fold": task["fold"], "steps": made["steps"], **made["parameters"]}
        row |= {key: made[key] for key in ("seconds", "seconds_given")}
        ratio = made["seconds"] / made["seconds_given"] if made["seconds_given"] else float("nan")
        rows.append({**row, "ratio": ratio, "device": made["device"]})
    return pd.DataFrame(rows)


def curves(run: Run) -> pd.DataFrame:
    """Losses of every fold: ``fold, step, discriminator, generator``."""
    parts = [gan_unit(**task).load_table("curve.csv").assign(fold=task["fold"]) for task in tasks(run)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def units(run: Run) -> list[Unit]:
    """Every unit of the baseline."""
    return [gan_unit(**task) for task in tasks(run)]


def claims(run: Run) -> list[dict[str, Any]]:
    """The GAN's training time beside the diffusion model's; the paper trained no GAN."""
    found = table(run)
    if not len(found) or found["ratio"].isna().all():
        return []
    text = f"training seconds of the GAN over those of the {reference(run)} model"
    return [over_folds("gan.training_time", text, found["ratio"], "ratio", statistics.POSITIVE)]
