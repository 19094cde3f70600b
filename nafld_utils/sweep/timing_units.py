"""What trainings of the sweep take: on this device beforehand, and what each arm cost in the end. Opens units.

Contract: nothing is trained and no file is written. A training is timed by a few steps of the code that the sweep runs,
on noise and with random weights, since time depends on neither.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, params, preprocessing, quality, sampling
from nafld_utils.artifacts import Run, Unit
from nafld_utils.sweep import comparisons, trial_grid, trial_store, verdict
from nafld_utils.sweep.prefix_features import feature_tasks, features_unit, kinds_of
from nafld_utils.sweep.trial_units import held_out_images, options_of, refuse, status

torch, training, gpu_training = map(
    engine.Later, ("torch", "nafld_utils.sweep.training", "nafld_utils.sweep.gpu_training")
)

GPU_STEPS, CPU_STEPS = 200, 3  # timed steps, scaled to all
N_IMAGES = 64


class Network:
    """A network cut in two on a device, with views of noise to train its tail on.

    ``images`` (N_IMAGES, S, S) uint8 and ``labels`` (N_IMAGES,) are what ``views`` holds, one view an image, on a GPU
    as tensors; ``prefix_seconds`` is of one image through the frozen prefix, 0 where nothing is frozen.
    """

    def __init__(self, backbone: str, freeze: str, image_size: int, device: torch.device):
        self.backbone, self.freeze, self.device = backbone, freeze, device
        self.prefix, self.tail = networks.split(networks.load(backbone, "random"), backbone, freeze)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (N_IMAGES, image_size, image_size), dtype=np.uint8)
        self.labels = np.arange(N_IMAGES) % 2
        self.decoder = networks.Decoder(backbone)
        stored, self.prefix_seconds = self.images, 0.0
        if len(self.prefix):
            n = N_IMAGES if device.type == "cuda" else networks.inference_batch(device)  # a CPU takes part of them

            def compute() -> np.ndarray:
                return training.prefix_features(self.prefix, self.images[:n], backbone, device, precision="float16")

            part = compute()  # chooses kernels and fills caches
            self.prefix_seconds = engine.timed(compute, device, warm=0) / n
            stored = np.resize(part, (N_IMAGES, *part.shape[1:]))
        features = torch.from_numpy(stored[:, None]).to(device) if device.type == "cuda" else stored[:, None]
        self.views = training.Views(features, self.labels)

    def seconds_a_training(self, options: training.Options, at_once: int = 1, record: bool = True) -> float:
        """Seconds of one training, its draws included; seeds at once share it."""
        gpu, network = self.device.type == "cuda", (self.backbone, "random", self.freeze)
        at_once, n_steps = (at_once, GPU_STEPS) if gpu else (1, CPU_STEPS)

        def train(steps: int) -> None:
            jobs = [gpu_training.Job(training.fresh_tail(self.tail, i), [self.views], i) for i in range(at_once)]
            short = replace(options, steps=steps)
            for result in gpu_training.train_jobs(jobs, self.decoder, short, self.device, network, record):
                if isinstance(result, Exception):
                    raise result

        train(n_steps if gpu else 1)  # is not counted
        return engine.timed(lambda: train(n_steps), self.device, warm=0) / at_once / n_steps * options.steps

    def seconds_a_score(self) -> float:
        """Seconds of the prediction of one image whose features are stored."""
        tail = training.fresh_tail(self.tail, 0)
        seconds = engine.timed(lambda: training.predict(tail, self.views, self.decoder, self.device), self.device)
        return seconds / N_IMAGES


# ---------------------------------------------------------------- before


def dry_run(run: Run) -> pd.DataFrame:
    """Trainings in all, done, failed and to do, and the time they will take here; trains nothing (see `sweep.plan`).

    Raises
    ------
    ValueError
        As in `refuse`, where trainings are left to do; where none is, only `run_sweep` refuses.
    """
    now, images = status(run), images_without_features(run)
    todo = trial_store.to_train(now, run.settings.sweep.retry_failed)
    if len(todo):
        refuse(run, todo)
    n_scored = len(held_out_images(run)) / len(trial_grid.folds_of(run.settings))
    seconds, features = {}, {}
    for key, part in now.groupby(["backbone", "freeze"], sort=False):
        if images[key] or not (part["state"] == "done").any():
            seconds[key], each = time_training(run, *key, n_scored)
            features[key] = each * images[key]
    return trial_grid.plan(
        now, seconds, engine.side_by_side(run.settings.engine), features, run.settings.sweep.retry_failed
    )


def images_without_features(run: Run) -> Counter[tuple[str, str]]:
    """Images, views counted one by one, whose prefix features are still to be computed, by (backbone, freeze)."""
    data, counts = preprocessing.open_preprocessed(run), Counter()
    n, n_views = data.pool.shape[:2]
    sizes = {params.REAL: n * (n_views + 1), **dict.fromkeys(params.AUGMENTED, n * n_views)}
    sizes[params.SIMULATED] = run.settings.sampling.n_images
    for task in feature_tasks(run):
        if not features_unit(**task).done():
            kind = task["kind"]
            n_images = sizes.get(kind) or len(quality.open_set(run, kind, task["fold"]).table)
            counts[task["backbone"], task["freeze"]] += n_images
    return counts


def time_training(run: Run, backbone: str, freeze: str = "paper", n_scored: float = 0) -> tuple[float, float]:
    """Seconds of one training with the scores of `n_scored` images, and of one image's features, on this device.

    From a few steps on noise; weights are random, time does not ask.
    """
    device, chosen = engine.device(run.settings.engine), run.settings.sweep
    timed = Network(backbone, freeze, run.settings.preprocess.image_size, device)
    seconds = timed.seconds_a_training(options_of(run), chosen.at_once, chosen.cuda_graphs)
    return seconds + n_scored * timed.seconds_a_score(), timed.prefix_seconds


# ---------------------------------------------------------------- after


def costs(run: Run, status: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What each arm cost on this device: its classifiers, and the diffusion models and sets that it mixes in.

    Parameters
    ----------
    run : Run
    status : pandas.DataFrame
        From `sweep.run_sweep`.
    tables : dict
        From `build_tables`.

    Returns
    -------
    pandas.DataFrame
        ``arm, trainings, seconds_each`` (median), ``classifier_minutes, feature_minutes`` (frozen prefixes of the arm's
        sets, real images among them), ``generator_minutes`` (`_makers`; 0 for real and traditional images),
        ``difference`` (image level, main way of training, at the declared rate; NaN where the arm was not trained at
        it). What several arms share is counted with each of them. Left out is what stages 01 and 02 took.
    """
    done, compared = status[status["state"] == "done"], verdict.at(run, tables["comparisons"])
    rows = []
    for arm, part in done.groupby("arm", sort=False):
        gain = compared[comparisons.where(compared, {"arm": arm, "rate": run.settings.sweep.primary_rate})]
        row = {"arm": arm, "trainings": len(part), "seconds_each": part["seconds"].median()}
        read = [features_unit(**task) for task in feature_tasks(run) if task["kind"] in kinds_of([arm])]
        folds, models = trial_grid.folds_of(run.settings), params.parse(arm).models
        made = [unit for name in models for fold in folds for unit in _makers(run, name, fold)]
        row |= {"classifier_minutes": part["seconds"].sum() / 60, "feature_minutes": _minutes(read)}
        row |= {"generator_minutes": _minutes(made)}
        rows.append({**row, "difference": gain["difference"].iloc[0] if len(gain) else float("nan")})
    return pd.DataFrame(rows)


def _minutes(units: list[Unit]) -> float:
    """Of units together; what folds share counts once."""
    return float(sum(unit.seconds() for unit in {unit.path: unit for unit in units}.values())) / 60


def _makers(run: Run, name: str, fold: int) -> list[Unit]:
    """First stage, latents, the generator's training, the drawing of its set, and what the filter chose by."""
    if name == quality.NAME:
        made_by, kind = run.settings.filtered_generator, run.settings.quality.features
        read = [sampling.features_unit(run, kind, made_by, fold), sampling.features_unit(run, kind, sampling.REAL)]
        chosen = [*read, quality.audit_unit(run, made_by, fold), quality.unit_of(run, fold)]
        return [*_makers(run, made_by, fold), *chosen]
    drawn = sampling.synthetic_unit(**sampling.task_of(run, name, fold))
    if name in sampling.BASELINES:
        trained = sampling.BASELINES[name].unit
        return [trained(run, fold), drawn] if trained else [drawn]
    made = params.SetName.of(name)
    trained = run.settings.section(f"autoencoder.{made.conditioning}")["source"] == "train"
    first = [ldm.autoencoder_unit(run, made.conditioning, fold)] * trained
    latents = ldm.latents_unit(run, made.conditioning, fold)
    return [*first, latents, ldm.ldm_unit(run, made.conditioning, fold, made.balance), drawn]
