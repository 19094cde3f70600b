"""Stage 03, what a model draws while it is trained: its distances and its copies. Opens and writes files.

Contract: thresholds of copies and the step that ``ldm.stop`` chooses come from training patients, left out in turn, and
never from held-out ones, whose distance is shown beside. Weights are the averages that the training kept on its way.

Sources: Dar et al. 2025, doi 10.1038/s41551-025-01468-8; Bonnaire et al. 2025, arXiv 2505.16959 (copying begins at a
time that grows with the number of training images).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, networks, preprocessing, statistics
from nafld_utils.artifacts import (
    UNSTATED,
    Run,
    Unit,
    claim,
    key_of,
    load_weights,
    remembered,
    save_table,
    unit_seed,
)
from nafld_utils.ldm import autoencoder_units, denoiser_units, gan_units
from nafld_utils.ldm.denoiser_units import autoencoder, sampler, torch
from nafld_utils.ldm.figures import LEVEL
from nafld_utils.networks import copy_rules
from nafld_utils.params import SetName
from nafld_utils.views import named

REVISION = ("over_training", 2)
KIND = "lite0"  # feature space (choice: installed, so that a training needs no download)
_OVER = (
    "The nominal rate is that of the training patients' own images: each patient is left out in turn and compared by"
    " the rule of the others, and one more counts as called a copy throughout. The test, one-sided and exact, is over"
    " images that these weights draw, given these training patients (5 %); it says nothing of others."
)


# ---------------------------------------------------------------- what is near


class Frames:
    """Training frames of a fold under every measure of an autoencoder `owner`, and what comes near them."""

    def __init__(self, run: Run, owner: str, fold: int, kind: str, features: np.ndarray | None = None):
        """`features` (N * K, d) of all stored crops are in the space `kind`; else those of training crops are made."""
        self.kind, self.weights = kind, run.settings.quality.weights
        self.device = engine.device(run.settings.engine)
        self.data = preprocessing.open_preprocessed(run)
        held = self.data.images["fold"].to_numpy() == fold
        self.training, self.held_out = np.flatnonzero(~held), np.flatnonzero(held)
        self.ids, self.patients = (self.data.images[name].to_numpy() for name in ("image_id", "patient_id"))
        self.n_crops = self.data.pool.shape[1]
        self.crop_patients = np.repeat(self.patients[self.training], self.n_crops)
        self.stage = autoencoder_units.first_stage(run, owner, fold).to(self.device)
        self.moments = autoencoder_units.latents_unit(run, owner, fold).load_array("moments.npy", mmap=True)
        shape = (len(self.patients), self.n_crops, -1)
        if features is None:
            pool = np.asarray(self.data.pool[self.training])
            found = self.features_of(pool.reshape(-1, *pool.shape[2:]))
            features = np.full((*shape[:2], found.shape[1]), np.nan, np.float32)
            features[self.training] = found.reshape(len(self.training), *shape[1:])
        self.features = features.reshape(shape)
        latents = self._latents(self.moments[self.training].reshape(-1, *self.moments.shape[2:]))
        shape = (len(self.crop_patients), -1)
        self.known = {"latents": latents.reshape(shape), "features": self.features[self.training].reshape(shape)}

    def _latents(self, moments: np.ndarray) -> np.ndarray:
        return self.stage.draw(torch.from_numpy(np.array(moments)).to(self.device)).cpu().numpy()

    def features_of(self, images: np.ndarray) -> np.ndarray:
        """Features (n, d) of images (n, S, S) uint8."""
        return networks.extract(images, self.kind, self.weights, self.device, 16)[0]

    def nearest_real(self, rows: np.ndarray, pixels: networks.Nearest | None = None) -> dict[str, networks.Nearest]:
        """Distances, by measure, of the first stored crop of real images to every training patient.

        `pixels` are those that need not be searched for again, here as below.
        """
        latents, features = self._latents(self.moments[rows, 0]), self.features[rows, 0]
        return self._nearest(self.data.pool[rows, 0], latents, features, pixels)

    def near_real(
        self, rows: np.ndarray, own: np.ndarray | None = None, pixels: networks.Nearest | None = None
    ) -> dict[str, pd.DataFrame]:
        """`near` of the first stored crop of real images, without their `own` patients where these are given."""
        found = self.nearest_real(rows, pixels)
        return {
            name: copy_rules.statistics(one if own is None else one.without_own(own)) for name, one in found.items()
        }

    def near(
        self, images: np.ndarray, features: np.ndarray | None = None, pixels: networks.Nearest | None = None
    ) -> dict[str, pd.DataFrame]:
        """`copy_rules.statistics`, by measure, of images (n, S, S) uint8, whose features may be known already."""
        if features is None:
            features = self.features_of(images)
        parts = [np.asarray(images[start : start + 256]) for start in range(0, len(images), 256)]
        latents = np.concatenate([self._latents(autoencoder.encode_images(self.stage, x, self.device)) for x in parts])
        found = self._nearest(images, latents, features, pixels)
        return {name: copy_rules.statistics(one) for name, one in found.items()}

    def _nearest(
        self, images: np.ndarray, latents: np.ndarray, features: np.ndarray, pixels: networks.Nearest | None
    ) -> dict[str, networks.Nearest]:
        if pixels is None:
            frames, patients = np.asarray(self.data.resized[self.training]), self.patients[self.training]
            pixels = networks.nearest_pixels(images, frames, patients, self.device)
        found = {"pixels": pixels}
        for name, queries in (("latents", latents), ("features", features)):
            flat = queries.reshape(len(queries), -1)
            found[name] = networks.nearest_features(flat, self.known[name], self.crop_patients, self.device)
        return found

    def table(
        self, found: dict[str, pd.DataFrame], limits: dict[str, dict[str, float]], rows: np.ndarray | None = None
    ) -> pd.DataFrame:
        """Statistics and flags side by side, with the image and patient of `rows` where these are real images."""
        columns = {} if rows is None else {"image_id": self.ids[rows], "patient_id": self.patients[rows]}
        for name, one in found.items():
            place = one["row"].to_numpy() // (1 if name == "pixels" else self.n_crops)
            columns |= {f"{name}_patient": one["patient"], f"{name}_image": self.ids[self.training][place]}
            columns |= {f"{name}_{statistic}": one[statistic] for statistic in copy_rules.STATISTICS}
        flags = copy_rules.flags(found, limits).rename(columns={name: f"{name}_near" for name in copy_rules.MEASURES})
        return pd.concat([pd.DataFrame(columns), flags], axis=1)


# ---------------------------------------------------------------- units


def tasks(run: Run, ahead: bool = False) -> list[dict[str, Any]]:
    """One task per model and fold whose training kept checkpoints: the first fold, or all that ``ldm.stop`` needs.

    `ahead` counts trainings that are not done and will keep some.
    """
    folds, twins = autoencoder_units.folds_of(run), denoiser_units.balanced_tasks(run)
    every = run.settings.ldm.stop == "before_copies"
    names = [*run.settings.ldm.conditionings, *(str(SetName(t["conditioning"], t["balance"])) for t in twins if every)]
    found = [(name, fold) for name in dict.fromkeys(names) for fold in (folds if every else folds[:1])]
    found += [(gan_units.NAME, task["fold"]) for task in gan_units.tasks(run)[:1]]
    will = ahead and run.settings.ldm.checked > 0
    chosen = [(n, k) for n, k in found if checkpoints(run, n, k) or (will and not training_unit(run, n, k).done())]
    return [{"run": run, "name": name, "fold": fold} for name, fold in chosen]


def training_unit(run: Run, name: str, fold: int) -> Unit:
    """Unit of a training, a model's, its balanced twin's or the GAN's."""
    if name == gan_units.NAME:
        return gan_units.gan_unit(run, fold)
    known = SetName.of(name)
    return denoiser_units.ldm_unit(run, known.conditioning, fold, known.balance)


def checkpoints(run: Run, name: str, fold: int) -> list[int]:
    """Steps whose averaged weights a training kept; none where ``ldm.checked`` was 0 when it was trained."""
    unit = training_unit(run, name, fold)
    return denoiser_units.kept_steps(unit.require().path) if unit.done() else []


def owner_of(run: Run, name: str) -> str:
    """Model whose first stage a training has."""
    return autoencoder_units.owner(
        run, gan_units.reference(run) if name == gan_units.NAME else SetName.of(name).conditioning
    )


@remembered
def unit_of(run: Run, name: str, fold: int) -> Unit:
    """Unit of what a training drew on its way."""
    settings = {"n": run.settings.ldm.checked_images, "kind": KIND, "options": denoiser_units.PREVIEW}
    settings |= {"seed": run.settings.seed, "fold": fold, "checked": run.settings.ldm.checked}
    inputs = [training_unit(run, name, fold), preprocessing.preprocess_unit(run)]
    inputs.append(autoencoder_units.latents_unit(run, owner_of(run, name), fold))
    modules = ["over_training", "sampling", "memorization", "feature_networks", "quality"]
    return run.unit("over_training", name, f"fold{fold}", settings=settings, inputs=inputs, modules=modules)


def measure(run: Run, name: str, fold: int) -> None:
    """Draw from every checkpoint and measure.

    Writes ``table.csv``: ``step, passes`` (over the training images), ``n, copies, share, patients`` (of training),
    ``nominal`` (`copy_rules.nominal`: rate of copies among their images, each patient left out in turn), ``p`` (exact,
    one-sided, binomial over images, that the share is no larger), and the Frechet distance ``to_training`` and
    ``to_held_out`` patients, equally many.
    """
    unit = unit_of(run, name, fold)
    training_unit(run, name, fold).require()
    frames = Frames(run, owner_of(run, name), fold, KIND)
    own, n = frames.patients[frames.training], run.settings.ldm.checked_images
    real, rows = frames.nearest_real(frames.training), []
    limits = {key: copy_rules.thresholds(copy_rules.statistics(one.without_own(own)), own) for key, one in real.items()}
    nominal = copy_rules.nominal(copy_rules.left_out(real, own), own)
    held = frames.patients[frames.held_out]
    same = np.unique(own)[: len(np.unique(held))]
    groups = {"to_training": frames.features[frames.training][np.isin(own, same), 0]}
    if len(held) > 1:
        groups["to_held_out"] = frames.features_of(np.asarray(frames.data.pool[frames.held_out, 0]))
    for step in checkpoints(run, name, fold):
        drawn = draw(run, name, fold, step, frames)
        features = frames.features_of(drawn)
        found = int(copy_rules.flags(frames.near(drawn, features), limits)["copy"].sum())
        row = {"step": step, "passes": step * batch_size(run, name) / len(own), "n": n, "copies": found}
        row |= {"share": found / n, "patients": len(np.unique(own)), "nominal": nominal}
        row |= {"p": at_least(found, n, nominal)}
        rows.append(row | {key: networks.frechet_distance(features, one) for key, one in groups.items()})
        engine.announce(f"{name} fold {fold}: step {step}, {found} of {n} images are copies")
    with unit.writing(device=str(frames.device)) as folder:
        save_table(folder / "table.csv", pd.DataFrame(rows))


def at_least(found: int, n: int, rate: float) -> float:
    """Chance of at least so many of `n` at a rate, exact.

    Examples
    --------
    >>> round(at_least(2, 3, 0.5), 3)
    0.5
    """
    from scipy import stats

    return float(stats.binomtest(found, n, rate, "greater").pvalue)


def batch_size(run: Run, name: str) -> int:
    """Images of a training step."""
    return run.settings.gan.batch_size if name == gan_units.NAME else run.settings.ldm.batch_size


def draw(run: Run, name: str, fold: int, step: int, frames: Frames) -> np.ndarray:
    """Images (n, S, S) uint8 of a checkpoint, seeds and conditions as at every other; maps are training patients'."""
    n, data, known = run.settings.ldm.checked_images, frames.data, SetName.of(name)
    seeds = [unit_seed(run.settings.seed, "over training", name, fold, i) for i in range(n)]
    weights, _ = load_weights(training_unit(run, name, fold).file(denoiser_units.kept_name(step)))
    conditions = torch.arange(n) % 2
    if name == gan_units.NAME:
        return gan_units.painter(run, fold, frames.device, weights)(conditions.numpy(), seeds)
    if known.conditioning == "semantic":
        rows = frames.training[np.linspace(0, len(frames.training) - 1, n).astype(int)]
        warp = run.settings.preprocess.warp_points, run.settings.preprocess.warp_strength
        maps = [
            images.warp_map(data.pool_maps[row, 0], np.random.default_rng(seed), *warp)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        conditions = torch.from_numpy(np.stack(maps))
    shape = autoencoder.latent_shape(frames.stage, run.settings.preprocess.image_size)
    network = denoiser_units.new_denoiser(run, known.conditioning, fold, shape)
    network.load_state_dict(weights)
    network = denoiser_units.placed(network.eval().requires_grad_(False), frames.device)
    schedule, options = denoiser_units.schedule_options(run, known.conditioning), denoiser_units.PREVIEW
    options = {**options, "precision": run.settings.ldm.precision, "device": frames.device}
    latents = [
        sampler.sample(network, schedule, conditions[i : i + 64], seeds[i : i + 64], shape, **options)
        for i in range(0, n, 64)
    ]
    return autoencoder.decode_latents(frames.stage, torch.cat(latents), frames.device)


# ---------------------------------------------------------------- the step that is used


def begins(table: pd.DataFrame) -> int | None:
    """Row of the first checkpoint whose share of copies a test finds above the nominal rate; None where none is."""
    above = np.flatnonzero(table["p"] < LEVEL)
    return int(above[0]) if len(above) else None


def before_copies(table: pd.DataFrame) -> int:
    """Step of the last checkpoint before `begins`; the first one where that copies already.

    Examples
    --------
    >>> before_copies(pd.DataFrame({"step": [10, 20, 30], "p": [0.9, 0.2, 0.001]}))
    20
    """
    first = begins(table)
    return int(table["step"].iloc[-1 if first is None else max(first - 1, 0)])


def weights_unit(run: Run, conditioning: str, fold: int, balance: str = "none") -> Unit:
    """Unit that the weights in force depend on, by ``ldm.stop``: the training's, or that of what it drew on its way."""
    if run.settings.ldm.stop == "last":
        return denoiser_units.ldm_unit(run, conditioning, fold, balance)
    return unit_of(run, str(SetName(conditioning, balance)), fold)


def load_denoiser(run: Run, conditioning: str, fold: int, balance: str = "none") -> torch.nn.Module:
    """The trained denoiser with averaged weights of the step that ``ldm.stop`` says, on the CPU, in eval mode.

    Raises
    ------
    ValueError
        As `denoiser_units.load_denoiser`; or its checkpoints have not been measured.
    """
    step = None
    if run.settings.ldm.stop != "last":
        step = before_copies(weights_unit(run, conditioning, fold, balance).require().load_table("table.csv"))
    return denoiser_units.load_denoiser(run, conditioning, fold, balance, step)


# ---------------------------------------------------------------- what is read from it


def look(run: Run) -> pd.DataFrame:
    """`measure`'s rows of every task, made where they are missing, with ``model, fold``; empty where none was kept."""
    todo = tasks(run)
    engine.map_units(measure, todo, run.settings.engine, "copies over training", unit_of=unit_of)
    parts = [unit_of(**t).load_table("table.csv").assign(model=t["name"], fold=t["fold"]) for t in todo]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def reading(table: pd.DataFrame) -> list[str]:
    """When each model starts to copy, a sentence for each model and fold.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `ldm.look`.

    Returns
    -------
    list of str
        The last line says what rate and test are over.
    """
    lines = []
    for (model, fold), part in table.groupby(["model", "fold"], sort=False):
        first, last = begins(part), part.iloc[-1]
        rate = f"the nominal {100 * last['nominal']:.3g} % of {last['patients']:.0f} training patients"
        if first is None:
            text = f"at none of {len(part)} checkpoints is the share of copies shown to exceed {rate}"
            text += (
                f" (last step {last['step']:.0f}, {last['passes']:.0f} passes: {last['copies']:.0f} of {last['n']:.0f})"
            )
        else:
            row, before = part.iloc[first], part.iloc[first - 1]["step"] if first else 0
            text = f"copies exceed {rate} first at step {row['step']:.0f} ({row['passes']:.0f} passes over the training"
            text += f" images; {row['copies']:.0f} of {row['n']:.0f}, p {row['p']:.2g}), not yet at {before:.0f};"
            text += f" distance there {row['to_training']:.0f} to training patients"
            text += f", {row['to_held_out']:.0f} to held-out ones" * ("to_held_out" in row)
        lines.append(f"{named(model)}, fold {fold}: {text}.")
    return [*lines, _OVER] if lines else lines


def claims(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Share of copies at the end of training, and the step at which they first exceed the nominal rate."""
    rows = []
    for (model, fold), part in table.groupby(["model", "fold"], sort=False):
        last, first = part.iloc[-1], begins(part)
        low, high = statistics.exact_interval(int(last["copies"]), int(last["n"]))
        what, n = f"{model} model, fold {fold}", int(last["n"])
        interval = (low, high, "images (binomial); these weights")
        key = key_of("ldm.over_training.share", model, f"fold_{fold}")
        text = f"copies of training patients at the end of training, {what}"
        rows.append(claim(key, text, last["share"], UNSTATED, interval=interval, n=n, unit="share of images"))
        if first is not None:
            text = f"first step whose copies exceed the audit's nominal rate, {what}"
            key = key_of("ldm.over_training.begins", model, f"fold_{fold}")
            rows.append(claim(key, text, int(part["step"].iloc[first]), UNSTATED, n=n, unit="steps"))
    return rows


def units(run: Run) -> list[Unit]:
    """Every unit of what was drawn over training."""
    return [unit_of(**task) for task in tasks(run)]
