"""Stage 03, the baseline: one GAN per fold, for as many operations as its diffusion model. Opens and writes files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, preprocessing
from nafld_utils.artifacts import Run, Unit, load_weights, read_manifest, remembered, save_table, unit_seed
from nafld_utils.ldm import autoencoder_units, denoiser_units
from nafld_utils.ldm.denoiser_units import autoencoder, denoiser, resumable, torch

gan = engine.Later("nafld_utils.ldm.gan")

NAME = "gan"
# What does not change a GAN's weights.
NOT_READ = ("enabled", "checkpoint_every", "keep_checkpoints")


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per fold; none where ``gan.enabled`` is false."""
    return [{"run": run, "fold": fold} for fold in autoencoder_units.folds_of(run)] if run.settings.gan.enabled else []


def reference(run: Run) -> str:
    """Diffusion model whose budget the GAN gets: the class model, conditioned as the GAN is, where trained."""
    models = run.settings.ldm.conditionings
    return "class" if "class" in models else models[0]


@remembered
def gan_unit(run: Run, fold: int) -> Unit:
    """Unit of a trained GAN; without ``gan.steps`` it depends on the diffusion model whose budget it is given."""
    settings = {key: value for key, value in run.settings.section("gan").items() if key not in NOT_READ}
    inputs = [preprocessing.preprocess_unit(run), autoencoder_units.latents_unit(run, reference(run), fold)]
    modules = ["gan", "autoencoder"]
    if settings["steps"] is None:
        inputs.append(denoiser_units.ldm_unit(run, reference(run), fold))
        modules.append("operations")
        if run.settings.section(f"autoencoder.{reference(run)}")["source"] == "train":
            settings["budget"] = "denoiser"  # of older runs the autoencoder's as well
    return run.unit(
        NAME,
        f"fold{fold}",
        settings={**settings, "seed": run.settings.seed, "fold": fold},
        inputs=inputs,
        modules=modules,
    )


def budget(run: Run) -> int:
    """Operations of training a fold's diffusion model in the latents that it shares with the GAN."""
    conditioning, ldm, data = reference(run), run.settings.ldm, run.settings.preprocess
    shape = autoencoder_units.shape_of_latents(run, conditioning)
    with torch.device("meta"):
        network = denoiser_units.new_denoiser(run, conditioning, 0, shape)
    return denoiser.training_operations(network, shape, data.map_size) * ldm.batch_size * ldm.steps


def _operations(run: Run, steps: int) -> int:
    """Operations of a GAN's first `steps`."""
    each = gan.step_operations(autoencoder_units.shape_of_latents(run, reference(run)), run.settings.section("gan"))
    whole, rest = divmod(steps, len(each))
    return whole * sum(each) + sum(each[:rest])


def steps(run: Run) -> int:
    """Steps of a GAN's training: as set, else those whose operations are nearest to the budget, at least one."""
    cycle = gan.PENALTY_EVERY
    return run.settings.gan.steps or max(1, round(budget(run) / _operations(run, cycle) * cycle))


def train_gan(run: Run, fold: int) -> None:
    """Train one GAN, with checkpoints to resume from; does nothing when the unit is done."""
    unit = gan_unit(run, fold)
    if unit.done():
        return
    device, settings = engine.device(run.settings.engine), run.settings.section("gan")
    stage = autoencoder_units.first_stage(run, reference(run), fold)
    pool, _ = autoencoder_units.stored_pools(run, reference(run), fold, stage)
    latents = pool.draw(pool.moments.flatten(0, 1), None)
    table = preprocessing.open_preprocessed(run).images
    labels = np.repeat(table.loc[table["fold"] != fold, "label"].to_numpy(), pool.moments.shape[1])
    seed, until = unit_seed(run.settings.seed, "gan", fold), steps(run)
    training = gan.start_training(tuple(latents.shape[1:]), settings, seed, device)
    resumable.resume(training, unit)
    train = gan.train(training, latents, labels, settings, until, seed, device)
    for state in resumable.followed(train, training, unit, f"GAN fold {fold}", until, settings):
        denoiser_units.keep_weights(
            run, unit, fold, state.step, until, lambda: resumable.on_cpu(training.average.state_dict())
        )
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("generator", training.generator), ("discriminator", training.discriminator))
    }
    given = budget(run) if settings["steps"] is None else None
    facts = {"steps": until, "parameters": counts, "operations_given": given, "seconds": training.seconds}
    facts |= {"trained_with": training.versions, "operations": _operations(run, until)}
    with unit.writing(device=str(device), **facts) as folder:
        artifacts.save_weights(
            folder / "averaged.safetensors", resumable.on_cpu(training.average.state_dict()), {"fold": str(fold)}
        )
        save_table(folder / "curve.csv", pd.DataFrame(training.curve))
        denoiser_units.move_weights(unit, folder)


def painter(
    run: Run, fold: int, device: torch.device, weights: dict[str, torch.Tensor] | None = None
) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    """Function from labels (n,) and one seed per image to images (n, S, S) uint8 of a fold's GAN, averaged at last."""
    if weights is None:
        weights, _ = load_weights(gan_unit(run, fold).require().file("averaged.safetensors"))
    shape, settings = autoencoder_units.shape_of_latents(run, reference(run)), run.settings.gan
    network = gan.Generator(shape, settings.base_channels, settings.max_channels)
    network.load_state_dict(weights)
    network = network.eval().requires_grad_(False).to(device)
    stage = autoencoder_units.first_stage(run, reference(run), fold)

    def paint(labels: np.ndarray, seeds: list[int]) -> np.ndarray:
        return autoencoder.decode_latents(stage, gan.sample(network, labels, seeds, device), device)

    return paint


def table(run: Run) -> pd.DataFrame:
    """What every fold's GAN is, and what its training cost beside that of its diffusion model.

    ``fold, steps, generator, discriminator`` (parameters), ``gflop, gflop_given`` (operations of the training and of
    the diffusion model's, NaN where ``gan.steps`` is set), ``seconds, seconds_beside`` (the diffusion model's),
    ``device``.
    """
    rows = []
    for task in tasks(run):
        made = read_manifest(gan_unit(**task).require().path)
        beside = denoiser_units.ldm_unit(run, reference(run), task["fold"]).seconds()
        row = {"fold": task["fold"], "steps": made["steps"], **made["parameters"]}
        given = made.get("operations_given") or float("nan")
        own = made.get("operations") or _operations(run, made["steps"])
        row |= {"gflop": own / 1e9, "gflop_given": given / 1e9}
        rows.append({**row, "seconds": made["seconds"], "seconds_beside": beside, "device": made["device"]})
    return pd.DataFrame(rows)


def curves(run: Run) -> pd.DataFrame:
    """Losses of every fold: ``fold, step, discriminator, generator``."""
    parts = [gan_unit(**task).load_table("curve.csv").assign(fold=task["fold"]) for task in tasks(run)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def units(run: Run) -> list[Unit]:
    """Every unit of the baseline."""
    return [gan_unit(**task) for task in tasks(run)]
