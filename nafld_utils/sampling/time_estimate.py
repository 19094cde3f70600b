"""What stages 03 and 04 will cost on this device, measured before they start. Opens no file but manifests."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, ldm, params, preprocessing
from nafld_utils.artifacts import Run, Unit
from nafld_utils.sampling import sampler_comparison, set_units

torch = engine.Later("torch")

TIMED_STEPS = {"cuda": 20, "cpu": 1}  # choice: of the sampler, scaled to all; a GPU's first steps wait for launches
KINDS = ("training", *params.SET_KINDS.values(), "comparison")  # of units
TRAINING_PASSES = 3  # a backward pass costs about two forward passes
LONG = 1e11  # operations that keep a CPU busy for a second
# What a unit is work for, whose, the unit, and a function that measures the seconds it will take.
Work = tuple[str, str, Unit, Callable[[], float]]


@dataclass
class Model:
    """A denoiser on its device, with what a step of its training or sampling on random latents takes.

    ``shape`` is a latent's, ``settings`` the ``ldm`` section, ``options`` are `denoiser.schedule_options`,
    ``map_size`` is the side of a semantic map, and ``flops`` counts the operations of one image's forward pass.
    """

    denoiser: torch.nn.Module
    shape: tuple[int, int, int]
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    map_size: int
    device: torch.device

    def __post_init__(self) -> None:
        self.flops = ldm.forward_flops(self.denoiser, self.shape, self.map_size)

    def affordable(self) -> int:
        """Images to time a training step on: the batch on a GPU, as many as a CPU does in about a second elsewhere."""
        n = self.settings["batch_size"]
        return n if self.device.type == "cuda" else int(min(n, max(1, 3e10 // self.flops)))

    def latents(self, n: int = 64) -> ldm.LatentPool:
        """Random latents and conditions that the denoiser can be trained on."""
        conditions = torch.arange(n) % 2
        if self.denoiser.conditioning == "semantic":
            side = self.map_size
            conditions = torch.randint(self.denoiser.map_classes, (n, 1, side, side), dtype=torch.uint8)
        return ldm.LatentPool(torch.randn(n, 1, *self.shape), conditions, lambda moments, noise: moments)

    def training_step(self, n_images: int) -> Callable[[], Any]:
        """Function that does one step of the study's training on so many images, without a validation."""
        from diffusers import DDPMScheduler

        settings = {**self.settings, "steps": 10**9, "log_every": 10**9, "batch_size": n_images}
        settings["accumulate"] = min(settings["accumulate"], n_images)
        training = ldm.start_training(self.denoiser, settings)
        loss, noiser = settings[self.denoiser.conditioning]["loss"], DDPMScheduler(**self.options)
        steps = ldm.train(training, self.latents(), None, settings, loss, noiser, 0, self.device)
        return lambda: next(steps)

    def drawing(self, n_images: int, steps: int, **how: Any) -> Callable[[], torch.Tensor]:
        """Function that draws images at once in so many steps; `how` is ``scheduler, eta, guidance, precision``."""
        conditions = self.latents(n_images).conditions
        conditions = conditions[:, 0] if conditions.ndim > 1 else conditions
        given = conditions, list(range(n_images)), self.shape, self.device
        return lambda: ldm.sampler.sample(self.denoiser, self.options, *given, steps=steps, **how)

    def seconds_an_image(self, n_images: int, steps: int, timed_steps: int, **how: Any) -> float:
        """Seconds of one image of those drawn at once; `timed_steps` are walked, and scaled to `steps`."""
        walked = min(timed_steps, steps)
        drawn = sum(len(rows) for rows in ldm.groups(n_images, n_images, self.device))  # a CPU's are whole
        flops = ldm.passes(how.get("guidance", 1.0)) * walked * drawn * self.flops
        # a long first call on a CPU says enough
        warm = int(self.device.type == "cuda" or flops < LONG)
        return engine.timed(self.drawing(n_images, walked, **how), self.device, warm=warm) / drawn * steps / walked


def networks(run: Run) -> pd.DataFrame:
    """What the networks are, one row per model.

    Returns
    -------
    pandas.DataFrame
        ``model, latent, first level`` (channels), ``multipliers, parameters`` (denoiser), ``conditioner`` (parameters),
        ``GFLOP per image and pass`` (forward).
    """
    rows = []
    for name in run.settings.ldm.conditionings:
        section, unit = run.settings.section(f"ldm.{name}"), ldm.ldm_unit(run, name, ldm.folds_of(run)[0])
        facts = (artifacts.read_manifest(unit.path) or {}) if unit.done() else {}
        if "operations" not in facts:  # not trained yet, or before this was noted
            model = _model(run, name)
            facts = {"latent_shape": model.shape, "operations": model.flops}
            facts["parameters"] = ldm.count_parameters(model.denoiser)
        count, shape = facts["parameters"], "x".join(map(str, facts["latent_shape"]))
        row = {"model": name, "latent": shape, "first level": section["model_channels"]}
        row |= {"multipliers": str(tuple(section["channel_mult"])), "parameters": count["denoiser"]}
        row |= {"conditioner": count["conditioner"], "GFLOP per image and pass": facts["operations"] / 1e9}
        rows.append(row)
    return pd.DataFrame(rows)


def _model(run: Run, conditioning: str) -> Model:
    """An untrained denoiser, on the CPU."""
    device, shape = engine.device(run.settings.engine), ldm.shape_of_latents(run, conditioning)
    denoiser, options = ldm.new_denoiser(run, conditioning, 0, shape), ldm.schedule_options(run, conditioning)
    return Model(denoiser, shape, run.settings.section("ldm"), options, run.settings.preprocess.map_size, device)


def estimate(run: Run) -> pd.DataFrame:
    """Time that stages 03 and 04 take on this device: a few steps of each model are run and scaled.

    Returns
    -------
    pandas.DataFrame
        ``work, model, units, done, minutes_a_unit`` (mean), ``minutes_left, minutes_in_all``: the last two with the
        workers of this machine (``engine``) side by side; a last row holds the sums. A unit that is done counts with
        the time it took.

    Notes
    -----
    A model none of whose units is left is not timed. Training holds the validation loss and the previews; checkpoints
    and figures come on top. With ``engine.compile`` the plain network is timed: the compiled one is faster, and minutes
    of compiling come on top.
    """
    rows = []
    for work, model, unit, seconds in _works(run):
        done = unit.done()
        took = unit.seconds() if done else seconds()
        rows.append({"work": work, "model": model, "done": done, "all": took, "left": 0.0 if done else took})
    each = pd.DataFrame(rows).groupby(["work", "model"], sort=False)
    table = each.agg(units=("done", "size"), done=("done", "sum"), minutes_a_unit=("all", "mean"))
    table["minutes_a_unit"] /= 60
    for column, summed in (("minutes_left", "left"), ("minutes_in_all", "all")):
        table[column] = each[summed].sum() / 60 / engine.side_by_side(run.settings.engine)
    total = table.drop(columns="minutes_a_unit").sum()
    table = pd.concat([table.reset_index(), pd.DataFrame([{"work": "all", "model": "all", **total}])])
    return table.reset_index(drop=True).astype({"units": int, "done": int})


def _works(run: Run) -> Iterator[Work]:
    """Every unit of stages 03 and 04 that a network makes; each thing is measured once, and only if it is asked for."""
    trained, encoded = (
        [(ldm.owner(run, task["conditioning"]), unit_of(**task)) for task in tasks]
        for unit_of, tasks in (
            (ldm.autoencoder_unit, ldm.autoencoder_tasks(run)),
            (ldm.latents_unit, ldm.latent_tasks(run)),
        )
    )
    for name, users in ldm.shared(run).items():
        for work, units, measure in (
            ("autoencoder", trained, _seconds_to_train),
            ("latents", encoded, _seconds_to_encode),
        ):
            seconds = functools.cache(functools.partial(measure, run, name))
            yield from ((work, " and ".join(users), unit, seconds) for owner, unit in units if owner == name)
    measured = functools.cache(functools.partial(_measured, run))
    for name in run.settings.ldm.conditionings:
        for work, kind, unit in _units(run, name):
            yield work, name, unit, lambda name=name, kind=kind: measured(name)[kind]
    if run.settings.gan.enabled:
        yield from _gan(run)
    if params.SIMULATED in run.settings.generators:
        unit, n = set_units.synthetic_unit(run, params.SIMULATED, set_units.SHARED), run.settings.sampling.n_images
        yield "sampling", params.SIMULATED, unit, lambda: n * _seconds_to_simulate(run)


def _units(run: Run, conditioning: str) -> Iterator[tuple[str, str, Unit]]:
    """Units of one model: what each is work for, and its kind, one of `KINDS`."""
    first, balanced, compared = (
        [task for task in tasks if task["conditioning"] == conditioning]
        for tasks in (ldm.autoencoder_units.tasks(run), ldm.balanced_tasks(run), sampler_comparison.tasks(run))
    )
    both, (own, *judged) = [*first, *balanced], params.SET_KINDS.values()
    yield from (("training", "training", ldm.ldm_unit(**task)) for task in both)
    yield from (("sampling", own, set_units.synthetic_unit(**task)) for task in both)
    yield from (("reference sets", k, set_units.synthetic_unit(**task, kind=k)) for k in judged for task in first)
    yield from (("comparison of samplers", "comparison", sampler_comparison.unit_of(**task)) for task in compared)


def _gan(run: Run) -> Iterator[Work]:
    """Training and set of every fold's GAN."""
    measured = functools.cache(functools.partial(_gan_measured, run))
    folds = [task["fold"] for task in ldm.gan_units.tasks(run)]
    for fold in folds:
        yield "training", ldm.NAME, ldm.gan_unit(run, fold), lambda: measured()[0]
    n = run.settings.sampling.n_images
    for fold in folds:
        yield "sampling", ldm.NAME, set_units.synthetic_unit(run, ldm.NAME, fold), lambda: measured()[1] * n


# ---------------------------------------------------------------- what is measured


def _seconds_to_train(run: Run, conditioning: str) -> float:
    """Seconds that an autoencoder takes to train here, from a few steps of every phase on empty images."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    device, images, seconds = engine.device(run.settings.engine), _empty(run), 0.0
    for phase, steps in ldm.phases(settings["kind"], settings["train_steps"]).items():
        if not steps:  # of fewer than five in all
            continue
        ends: list[tuple[int, float]] = []
        model = ldm.before_training(run, conditioning, 0)
        end = functools.partial(_note_time, ends)
        ldm.train_phases(run, model, settings["kind"], images, {phase: min(steps, 3)}, 0, device, end)
        (first, began), (last, ended) = ends[0], ends[-1]
        seconds += steps * (ended - began) / (last - first) if last > first else 0.0
    return seconds


def _note_time(ends: list[tuple[int, float]], step: int, loss: float) -> None:
    ends.append((step, time.monotonic()))


def _stage(run: Run, conditioning: str) -> ldm.FirstStage:
    """A first stage of the run's first fold, as it is before its training where it is trained there."""
    settings, fold = run.settings.section(f"autoencoder.{conditioning}"), ldm.folds_of(run)[0]
    if settings["source"] == "train":
        return ldm.published(ldm.before_training(run, conditioning, fold), settings["kind"], 1.0)
    return ldm.first_stage(run, conditioning, fold)


def _seconds_to_encode(run: Run, conditioning: str) -> float:
    """Seconds that a set of latents takes here, from eight images there and back; untrained weights do as well."""
    settings, fold = run.settings.section(f"autoencoder.{conditioning}"), ldm.folds_of(run)[0]
    data, images, device = preprocessing.open_preprocessed(run), _empty(run), engine.device(run.settings.engine)
    n, k = data.pool.shape[:2]
    stage, copies = _stage(run, conditioning), n
    if settings["source"] == "train":
        copies = int((data.images["fold"] == fold).sum())
    warm, encoded = int(device.type == "cuda"), []  # the first work there loads libraries and weights
    there = engine.timed(lambda: encoded.append(ldm.encode_images(stage, images, device)), device, warm=warm)
    latents = stage.draw(torch.from_numpy(encoded[-1]).to(device))
    back = engine.timed(lambda: ldm.decode_latents(stage, latents, device), device, warm=warm)
    return (there * (n * k + copies) + back * copies) / len(images)


def _empty(run: Run) -> np.ndarray:
    size = run.settings.preprocess.image_size
    return np.zeros((ldm.CPU_GROUP, size, size), np.uint8)


def passes(run: Run) -> dict[str, int]:
    """Forward passes of a denoiser, an image each, that a unit of each of `KINDS` costs, from the settings alone.

    Those of ``training`` are of its steps, a backward pass counted as two; ``looks`` are its validation and previews.
    """
    s, sampled = run.settings.ldm, run.settings.sampling
    variants = sampler_comparison.variants(run)
    previews = -(-s.steps // s.preview_every) if s.preview_every else 0
    compared = sum(item["steps"] * ldm.passes(item["guidance"]) for item in [*variants, variants[0]])
    image = sampled.steps * ldm.passes(sampled.guidance)
    return {
        "training": TRAINING_PASSES * s.batch_size * s.steps,
        "looks": ldm.VALIDATED * -(-s.steps // s.log_every)
        + previews * ldm.N_PREVIEW * ldm.PREVIEW["steps"] * ldm.passes(ldm.PREVIEW["guidance"]),
        "synthetic": sampled.n_images * image,
        "synthetic_null": sampled.n_null * sampled.steps,
        "synthetic_untrained": run.settings.quality.n_reference * image,
        "synthetic_gaussian": 0,
        "comparison": sampled.n_compared * compared,
    }


def _measured(run: Run, conditioning: str) -> dict[str, float]:
    """Seconds of a unit of each of `KINDS`."""
    model, drawn = _model(run, conditioning), run.settings.sampling
    model.denoiser, on_gpu = ldm.placed(model.denoiser, model.device), model.device.type == "cuda"
    n = model.affordable()
    how = {"scheduler": drawn.scheduler, "eta": drawn.eta, "guidance": drawn.guidance, "precision": drawn.precision}
    at_once = drawn.batch_size if on_gpu else 1
    image = model.seconds_an_image(at_once, drawn.steps, TIMED_STEPS[model.device.type], **how)
    repeats, warm = (1, 0) if not on_gpu and n == 1 else (2, 1)  # one image is a long step
    step = engine.timed(model.training_step(n), model.device, repeats, warm)
    count, a_pass = passes(run), image / (drawn.steps * ldm.passes(drawn.guidance))
    seconds = {kind: a_pass * count[kind] for kind in KINDS}
    seconds["training"] = step / (TRAINING_PASSES * n) * count["training"] + a_pass * count["looks"]
    return seconds


def _seconds_to_simulate(run: Run) -> float:
    """Seconds of one image of a simulated patient."""
    paint = set_units.BASELINES[params.SIMULATED].painter(run, set_units.SHARED, torch.device("cpu"))
    return engine.timed(lambda: paint(np.ones(1, np.int64), [0]), torch.device("cpu"))


def _gan_measured(run: Run) -> tuple[float, float]:
    """Seconds of a GAN's training, and of one of its images."""
    device, s, n = engine.device(run.settings.engine), run.settings, 8
    settings, labels = s.section("gan"), np.arange(n) % 2
    shape = ldm.autoencoder_units.shape_of_latents(run, ldm.reference(run))
    training = ldm.gan.start_training(shape, settings, 0, device)
    stage = _stage(run, ldm.owner(run, ldm.reference(run))).to(device)

    def draw() -> np.ndarray:
        latents = ldm.gan.sample(training.average, labels, list(range(n)), device)
        return ldm.decode_latents(stage, latents, device)

    drawing = engine.timed(draw, device) / n
    cycle = ldm.gan.PENALTY_EVERY
    steps = ldm.gan.train(training, torch.zeros(n, *shape), labels, settings, 2 * cycle, 0, device)
    return engine.timed(lambda: next(steps), device, cycle, cycle) * ldm.gan_units.steps(run), drawing
