"""What stages 03 and 04 will cost on this device, measured before they start. Opens no file but manifests."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nafld_utils import autoencoder, diffusion, engine, speed
from nafld_utils.artifacts import Run
from nafld_utils.stages import first_stages, ldm, samples

TIMED_STEPS = 1  # choice: of the sampler, scaled to all


def networks(run: Run) -> pd.DataFrame:
    """What the networks are: ``model, channels, latent, parameters, conditioner, gflop`` (forward, one image)."""
    rows = []
    for name in run.settings.ldm.conditionings:
        denoiser, shape = _denoiser(run, name)
        section, count = run.settings.section(f"ldm.{name}"), diffusion.count_parameters(denoiser)
        flops = diffusion.forward_flops(denoiser, shape, run.settings.preprocess.map_size)
        row = {"model": name, "latent": "x".join(map(str, shape)), "first level": section["model_channels"]}
        row |= {"multipliers": str(tuple(section["channel_mult"])), "parameters": count["denoiser"]}
        rows.append({**row, "conditioner": count["conditioner"], "GFLOP an image and pass": flops / 1e9})
    return pd.DataFrame(rows)


def _denoiser(run: Run, conditioning: str) -> tuple[Any, tuple[int, int, int]]:
    """An untrained denoiser and its latents' shape, which an autoencoder that is not trained yet tells as well."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "train":
        network = {key: settings[key] for key in ("kind", "factor", "base_channels")}
        stage = autoencoder.untrained(**network, scale=1.0)
    else:
        stage = first_stages.first_stage(run, conditioning, first_stages.folds_of(run)[0])
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    return ldm.new_denoiser(run, conditioning, 0, shape), shape


def estimate(run: Run) -> pd.DataFrame:
    """Time that training and sampling take on this device: a few steps of each model are run and scaled.

    Returns
    -------
    pandas.DataFrame
        ``work, model, units, done, minutes_a_unit, minutes_left, minutes_in_all``: the last two with the workers of
        this machine (``engine``) side by side; a last row holds the sums. Autoencoders and figures come on top.

    Notes
    -----
    A model none of whose units is left is not timed: what its units took is read from their manifests.
    """
    rows = []
    for name in run.settings.ldm.conditionings:
        mine = [t for t in [*ldm.tasks(run), *ldm.balanced_tasks(run)] if t["conditioning"] == name]
        training = [ldm.ldm_unit(**task) for task in mine]
        drawn = [samples.synthetic_unit(**task) for task in mine]
        pending = not all(unit.done() for unit in training + drawn)
        seconds = _measured(run, name) if pending else None
        for work, units, i in (("training", training, 0), ("sampling", drawn, 1)):
            done = sum(unit.done() for unit in units)
            each = seconds[i] if seconds else sum(unit.seconds() for unit in units) / len(units)
            rows.append({"work": work, "model": name, "units": len(units), "done": done, "minutes_a_unit": each / 60})
    table = pd.DataFrame(rows)
    side_by_side = _workers(run)
    table["minutes_left"] = table["minutes_a_unit"] * (table["units"] - table["done"]) / side_by_side
    table["minutes_in_all"] = table["minutes_a_unit"] * table["units"] / side_by_side
    total = table[["units", "done", "minutes_left", "minutes_in_all"]].sum()
    table = pd.concat([table, pd.DataFrame([{"work": "both", "model": "all", **total}])], ignore_index=True)
    return table.astype({"units": int, "done": int})


def _workers(run: Run) -> int:
    settings = run.settings.engine
    if settings.mode == "serial":
        return 1
    return settings.n_workers or engine.default_workers()


def _measured(run: Run, conditioning: str) -> tuple[float, float]:
    """Seconds of one unit of training and of one set of images."""
    device, s = engine.device(run.settings.engine), run.settings
    denoiser, shape = _denoiser(run, conditioning)
    denoiser = ldm.placed(denoiser, device)
    side, options = s.preprocess.map_size, ldm.schedule_options(run, conditioning)
    section = s.section("ldm")
    n = speed.affordable(denoiser, shape, side, section["batch_size"], device)
    with engine.worker_threads(s.engine):
        how = {"scheduler": s.sampling.scheduler, "eta": s.sampling.eta, "guidance": s.sampling.guidance}
        at_once = s.sampling.batch_size if device.type == "cuda" else 1
        image = speed.time_sampling(
            denoiser, shape, options, device, side, at_once, s.sampling.steps, TIMED_STEPS, **how,
            precision=s.sampling.precision,
        )  # fmt: skip
        long = device.type == "cpu" and n == 1
        step = speed.time_training(
            denoiser, shape, section, options, device, side, 1 if long else 2, 0 if long else 1, n
        )
    return step.seconds / n * section["batch_size"] * section["steps"], image.seconds * s.sampling.n_images
