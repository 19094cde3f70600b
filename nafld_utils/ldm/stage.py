"""Stage 03 as its notebook calls it: one call per kind of training, and what the stage stands on."""

from __future__ import annotations

from typing import Any

from nafld_utils import engine
from nafld_utils.artifacts import Run, Unit
from nafld_utils.ldm import autoencoder_units, denoiser_units, gan_units, over_training_units
from nafld_utils.ldm.over_training_units import look as look
from nafld_utils.preprocessing import assert_comparable as assert_comparable
from nafld_utils.preprocessing import open_preprocessed as open_preprocessed


def train_autoencoders(run: Run) -> None:
    """Train the autoencoders that do not come ready-made, and store the latents of all."""
    units, where = autoencoder_units, run.settings.engine
    tasks = units.autoencoder_tasks(run)
    engine.map_units(units.train_autoencoder, tasks, where, "autoencoders", unit_of=units.autoencoder_unit)
    engine.map_units(units.make_latents, units.latent_tasks(run), where, "latents", unit_of=units.latents_unit)


def train_denoisers(run: Run) -> None:
    """Train the denoiser of every model and fold, and its balanced twin where the settings ask for one."""
    tasks = [*autoencoder_units.tasks(run), *denoiser_units.balanced_tasks(run)]
    engine.map_units(
        denoiser_units.train_ldm, tasks, run.settings.engine, "diffusion models", unit_of=denoiser_units.ldm_unit
    )


def train_gans(run: Run) -> None:
    """Train the GAN of every fold; none where ``gan.enabled`` is false."""
    engine.map_units(gan_units.train_gan, gan_units.tasks(run), run.settings.engine, "GANs", unit_of=gan_units.gan_unit)


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of stage 03."""
    return [*denoiser_units.claims(run), *over_training_units.claims(over_training_units.look(run))]


def units(run: Run) -> list[Unit]:
    """Every unit stage 03 stands on."""
    return [*denoiser_units.units(run), *gan_units.units(run), *over_training_units.units(run)]
