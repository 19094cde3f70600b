"""Stage 03 as its notebook calls it: one call that trains everything, and what the stage stands on."""

from __future__ import annotations

from typing import Any

from nafld_utils import engine
from nafld_utils.artifacts import Run, Unit
from nafld_utils.ldm import autoencoder_units, denoiser_units, gan_units, over_training_units
from nafld_utils.ldm.over_training_units import look as look
from nafld_utils.preprocessing import assert_comparable as assert_comparable
from nafld_utils.preprocessing import open_preprocessed as open_preprocessed


def train_all(run: Run) -> None:
    """Train what is not there yet: autoencoders that do not come ready-made, latents, denoisers and GANs.

    The denoisers are those of every model and fold, and their balanced twins where the settings ask for them. What
    trainings drew on their way is measured too (`look`).
    """
    first, denoisers, gans, looks = autoencoder_units, denoiser_units, gan_units, over_training_units
    both = [*first.tasks(run), *denoisers.balanced_tasks(run)]
    kinds = {
        "autoencoder": (first.train_autoencoder, first.autoencoder_tasks(run), first.autoencoder_unit),
        "latents": (first.make_latents, first.latent_tasks(run), first.latents_unit),
        "denoiser": (denoisers.train_ldm, both, denoisers.ldm_unit),
        "GAN": (gans.train_gan, gans.tasks(run), gans.gan_unit),
        "copies over training": (looks.measure, looks.tasks(run, ahead=True), looks.unit_of),
    }
    engine.map_kinds(kinds, run.settings.engine, "training")


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of stage 03."""
    return [*denoiser_units.claims(run), *over_training_units.claims(over_training_units.look(run))]


def units(run: Run) -> list[Unit]:
    """Every unit stage 03 stands on."""
    return [*denoiser_units.units(run), *gan_units.units(run), *over_training_units.units(run)]
