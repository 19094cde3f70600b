"""Stage 03, second half: the denoisers, one unit per (model, fold). Opens and writes files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, preprocessing, statistics
from nafld_utils.artifacts import Run, Unit, load_weights, read_manifest, remembered, save_table, unit_seed
from nafld_utils.ldm import autoencoder_units, protocol
from nafld_utils.ldm.autoencoder_units import tasks
from nafld_utils.params import SetName

torch, resumable = engine.Later("torch"), engine.Later("nafld_utils.ldm.resumable")
autoencoder, denoiser, denoiser_training, sampler = (
    engine.Later(f"nafld_utils.ldm.{name}") for name in ("autoencoder", "denoiser", "denoiser_training", "sampler")
)

PREVIEW = {"scheduler": "dpmsolver++", "steps": 10, "eta": 0.0, "guidance": 2.0}  # choice: a look, not a result
N_PREVIEW = 4
# What does not change a denoiser's weights, or changes them by rounding only.
NOT_READ = (
    "conditionings",
    "folds",
    "semantic",
    "class",
    "balance",
    "init_from",
    "accumulate",
    "checkpoint_every",
    "keep_checkpoints",
    "preview_every",
    "stop",
    "checked",
    "checked_images",
)
# Settings of ldm.<model> without which its weights are of another shape or predict something else.
NETWORK = ("model_channels", "channel_mult", "layers_per_block", "beta_start", "beta_end")
NETWORK_OF = {
    "semantic": (*NETWORK, "attention", "heads"),
    "class": (*NETWORK, "head_channels", "cross_attention_dim", "cross_attention_from"),
}


def balanced_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per (model, fold) that is trained again on batches of both classes alike [paper, balanced cohort]."""
    if "oversample" not in run.settings.ldm.balance:
        return []
    return [{**task, "balance": "oversample"} for task in tasks(run)]


def _trained(run: Run) -> list[tuple[SetName, int, Unit]]:
    """Name, fold and unit of every model that a run trains."""
    tasks_ = [*tasks(run), *balanced_tasks(run)]
    return [(SetName(t["conditioning"], t.get("balance", "none")), t["fold"], ldm_unit(**t)) for t in tasks_]


@remembered
def ldm_unit(run: Run, conditioning: str, fold: int, balance: str = "none") -> Unit:
    """Unit of a trained denoiser."""
    section = run.settings.section("ldm")
    settings = {key: value for key, value in section.items() if key not in NOT_READ}
    settings |= {"network": section[conditioning], "seed": run.settings.seed, "fold": fold}
    if balance != "none":
        settings["balance"] = balance
    origin = _origin(run, conditioning, fold, balance)
    return run.unit(
        "ldm",
        str(SetName(conditioning, balance)),
        f"fold{fold}",
        settings=settings,
        inputs=[
            autoencoder_units.latents_unit(run, conditioning, fold),
            preprocessing.preprocess_unit(run),
            *([artifacts.file_sha256(origin)] if origin else []),
        ],
        modules=["diffusion", "diffusion_training"],
    )


def new_denoiser(run: Run, conditioning: str, fold: int, shape: tuple[int, int, int]) -> torch.nn.Module:
    """An untrained denoiser of a (model, fold), on the CPU."""
    network = run.settings.section(f"ldm.{conditioning}")
    seed = unit_seed(run.settings.seed, "ldm", conditioning, fold)
    return denoiser.build_denoiser(conditioning, network, shape, run.settings.preprocess.map_classes, seed)


def schedule_options(run: Run, conditioning: str) -> dict[str, Any]:
    """Noise schedule of a model, the same in training and sampling."""
    ldm = run.settings.ldm
    return denoiser.schedule_options(run.settings.section(f"ldm.{conditioning}"), ldm.prediction, ldm.train_timesteps)


def train_ldm(run: Run, conditioning: str, fold: int, balance: str = "none") -> None:
    """Train one denoiser, with checkpoints to resume from; does nothing when the unit is done."""
    from diffusers import DDPMScheduler
    from torch.utils.tensorboard import SummaryWriter

    unit = ldm_unit(run, conditioning, fold, balance)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    settings, name = run.settings.section("ldm"), str(SetName(conditioning, balance))
    stage = autoencoder_units.first_stage(run, conditioning, fold).to(device)
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    pool, held_out = autoencoder_units.latent_pools(run, conditioning, fold, stage, balance)
    network = new_denoiser(run, conditioning, fold, shape)
    facts = {"parameters": denoiser.count_parameters(network), "latent_shape": shape}
    if fold == autoencoder_units.folds_of(run)[0]:  # which notebook 03 asks
        facts["operations"] = denoiser.forward_flops(network, shape, run.settings.preprocess.map_size)
    origin = _origin(run, conditioning, fold, balance)
    if origin:
        network.load_state_dict(load_weights(origin)[0])
    training = denoiser_training.start_training(placed(network, device), settings)
    resumable.resume(training, unit)
    if run.settings.engine.compile:
        denoiser.compile_network(network)
    seed = unit_seed(run.settings.seed, "ldm training", conditioning, fold)
    noiser, loss = DDPMScheduler(**schedule_options(run, conditioning)), settings[conditioning]["loss"]
    steps = denoiser_training.train(training, pool, held_out, settings, loss, noiser, seed, device)
    try:
        board = run.root / "tensorboard" / name / f"fold{fold}"
        with SummaryWriter(str(board), purge_step=training.step + 1) as writer:
            for state in resumable.followed(steps, training, unit, f"{name} fold {fold}", settings["steps"], settings):
                _write(writer, state)
                keep_weights(run, unit, fold, state.step, settings["steps"], state.averaged)
                if _due(state.step, settings["preview_every"], settings["steps"]):
                    look = _preview(run, conditioning, fold, state, stage)
                    artifacts.checkpoints.save_array(unit.work / f"preview-{state.step:08d}.safetensors", look)
    except FloatingPointError:  # that step's update was not applied
        resumable.checkpoint(training, unit, settings["keep_checkpoints"])
        raise
    metadata = {"fold": str(fold), "model": name, "autoencoder": autoencoder.fingerprint(stage)}
    facts |= {"seconds": training.seconds, "trained_with": training.versions}
    with unit.writing(device=str(device), **facts) as folder:
        artifacts.save_weights(folder / "averaged.safetensors", training.averaged(), metadata)
        artifacts.save_weights(folder / "last.safetensors", resumable.on_cpu(network.state_dict()), metadata)
        save_table(folder / "curve.csv", pd.DataFrame(training.curve))
        _keep_previews(unit, folder)
        move_weights(unit, folder)


def _keep_previews(unit: Unit, folder: Path) -> None:
    """Copy the previews of a training into its unit."""
    for name in sorted({path.stem for path in unit.work.glob("preview-*")}):
        path = unit.work / f"{name}.safetensors"
        look = artifacts.checkpoints.load_array(path)
        if look is None:
            engine.notice(f"{path}: a damaged preview; it is left out.")
        else:
            artifacts.files.save_array(folder / f"{name}.npy", look)


def keep_weights(run: Run, unit: Unit, fold: int, step: int, last: int, averaged: Callable[[], Any]) -> None:
    """Keep averaged weights beside a training at ``ldm.checked`` steps, of the first fold or all that need them."""
    n, every = run.settings.ldm.checked, run.settings.ldm.stop == "before_copies"
    due = {round(last * i / n) for i in range(1, n + 1)} if every or fold == autoencoder_units.folds_of(run)[0] else ()
    if step in due:
        artifacts.save_weights(unit.work / kept_name(step), averaged(), {"step": str(step)})


def move_weights(unit: Unit, folder: Path) -> None:
    """Move what `keep_weights` kept into the unit's folder."""
    for path in sorted(unit.work.glob(kept_name("*"))):
        shutil.move(path, folder / path.name)


def kept_name(step: int | str) -> str:
    """File of the averaged weights of a step."""
    return f"at-{step:08d}.safetensors" if isinstance(step, int) else f"at-{step}.safetensors"


def kept_steps(folder: Path) -> list[int]:
    """Steps of the averaged weights in a unit's folder."""
    return sorted(int(path.stem.removeprefix("at-")) for path in folder.glob(kept_name("*")))


def load_denoiser(
    run: Run, conditioning: str, fold: int, balance: str = "none", step: int | None = None
) -> torch.nn.Module:
    """The trained denoiser with averaged weights, of the last step or of one that was kept, on the CPU, in eval mode.

    Raises
    ------
    ValueError
        It is not trained, its weights are no safetensors, or it was trained on latents of another autoencoder.
    """
    unit = ldm_unit(run, conditioning, fold, balance).require()
    path = unit.file("averaged.safetensors")
    facts = artifacts.load_weight_facts(path)
    stage = autoencoder_units.first_stage(run, conditioning, fold)
    if facts.get("autoencoder") != autoencoder.fingerprint(stage):
        raise ValueError(
            f"{path}: expected a denoiser of the autoencoder in force, found one of another"
            f" ({str(facts.get('autoencoder'))[:12]}); run stage 03 again."
        )
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    network = new_denoiser(run, conditioning, fold, shape)
    network.load_state_dict(load_weights(path if step is None else unit.file(kept_name(step)))[0])
    return network.eval().requires_grad_(False)


def placed(denoiser: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A denoiser on the device, in the layout that its convolutions run fastest in."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return denoiser.to(device, memory_format=layout)


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _origin(run: Run, conditioning: str, fold: int, balance: str) -> Path | None:
    """Weights that a model starts from (``ldm.init_from``), None for random ones.

    Raises
    ------
    ValueError
        The other run has no such model, it is another network or one of other latents, it was trained on images that
        are held out here, or which images trained it cannot be told.
    """
    other = run.settings.ldm.init_from
    if other is None:
        return None
    root = artifacts.work_root() / "artifacts" / other
    path = root / "ldm" / str(SetName(conditioning, balance)) / f"fold{fold}" / "averaged.safetensors"
    trained_on = root / "preprocess" / "images.csv"
    manifest, split = read_manifest(path.parent), read_manifest(trained_on.parent)
    if not (path.is_file() and trained_on.is_file() and manifest):
        raise ValueError(
            f"ldm.init_from is {other}: expected {path} with its manifest and {trained_on.name} of that run, found one"
            " of them missing; run its stage 03, or name another run."
        )
    inputs = manifest["inputs"]  # latents, split, and where it began with weights, those
    reason = ""
    if len(inputs) != 2:
        reason = "began with the weights of a third run"
    elif split is None or split["hash"] not in inputs:
        reason = "is of another split than is there now"
    if reason:
        raise ValueError(
            f"ldm.init_from is {other}: expected a model whose training images that run still lists, found that"
            f" {path.parent.relative_to(root)} {reason}; run stages 02 and 03 of {other} from random weights again, or"
            " name another run."
        )
    _check_network(run, conditioning, path, root)
    _check_latents(run, conditioning, fold, path, root)
    theirs, mine = artifacts.load_table(trained_on), preprocessing.open_preprocessed(run).images
    leaked = set(theirs.loc[theirs["fold"] != fold, "sha256"]) & set(mine.loc[mine["fold"] == fold, "sha256"])
    if leaked:
        raise ValueError(
            f"ldm.init_from is {other}: {len(leaked)} images that are held out in fold {fold} trained its model;"
            " start from a run on another cohort, or on the same folds."
        )
    return path


def _check_network(run: Run, conditioning: str, path: Path, root: Path) -> None:
    """Refuse weights of a network of another shape, prediction or noise schedule, from what made them."""
    theirs, mine = read_manifest(path.parent)["settings"], run.settings.section("ldm")
    pairs = {f"ldm.{key}": (theirs.get(key), mine[key]) for key in ("prediction", "train_timesteps")}
    for key in NETWORK_OF[conditioning]:
        pairs[f"ldm.{conditioning}.{key}"] = theirs["network"].get(key), mine[conditioning][key]
    if conditioning == "semantic":
        drawn = (read_manifest(root / "preprocess") or {}).get("settings", {}).get("preprocess", {})
        pairs["preprocess.map_classes"] = drawn.get("map_classes"), run.settings.preprocess.map_classes
    differing = [f"{key} {a} instead of {b}" for key, (a, b) in pairs.items() if a != b]
    if differing:
        raise ValueError(
            f"ldm.init_from is {root.name}: expected a {conditioning} model of these settings, found one of"
            f" {', '.join(differing)}; give both runs the same, or name another run."
        )


def _check_latents(run: Run, conditioning: str, fold: int, path: Path, root: Path) -> None:
    """Refuse weights that were trained on latents of another autoencoder, before this run trains one if possible."""
    theirs = str(artifacts.load_weight_facts(path).get("autoencoder"))
    mine = autoencoder_units.fingerprint(run, conditioning, fold)
    same = mine == theirs
    if mine is None:  # the same recipe on the same images may make the same again, which is asked once it is made
        unit = autoencoder_units.autoencoder_unit(run, conditioning, fold)
        made = read_manifest(root / unit.path.relative_to(run.root)) or {}
        same = made.get("hash") == unit.hash
    if not same:
        raise ValueError(
            f"ldm.init_from is {root.name}: expected a model of the autoencoder in force"
            f" ({mine[:12] if mine else 'still to be trained on this cohort'}), found one of another ({theirs[:12]}),"
            " whose latents mean something else; give both runs one first stage that no cohort trains"
            f" (autoencoder.{conditioning}.source shipped, hub, path or ldm_checkpoint) and run stage 03 of {root.name}"
            " again."
        )


def _preview(
    run: Run, conditioning: str, fold: int, training: denoiser_training.Training, stage: autoencoder.FirstStage
) -> np.ndarray:
    """Four samples of the averaged weights, the same seeds and conditions at every call, (4, S, S) uint8.

    Drawn in the run's precision, and without compiling graphs for a batch that nothing else has.
    """
    images = preprocessing.open_preprocessed(run)
    rows = np.flatnonzero(images.images["fold"].to_numpy() != fold)
    rows = rows[np.linspace(0, len(rows) - 1, N_PREVIEW).astype(int)]
    conditions = torch.arange(N_PREVIEW) % 2
    if conditioning == "semantic":
        conditions = torch.from_numpy(np.array(images.pool_maps[rows, 0]))
    device = next(training.denoiser.parameters()).device
    seeds = [unit_seed(run.settings.seed, "preview", conditioning, fold, i) for i in range(N_PREVIEW)]
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    options = {**PREVIEW, "precision": run.settings.ldm.precision}
    with training.with_average() as network, denoiser.eager(network):
        schedule = schedule_options(run, conditioning)
        latents = sampler.sample(network, schedule, conditions, seeds, shape, device=device, **options)
    return autoencoder.decode_latents(stage, latents, device)


def _write(writer: Any, training: denoiser_training.Training) -> None:
    """Write a step's row of the curve, if it has one, where TensorBoard reads it."""
    row = training.curve[-1] if training.curve else {}
    if row.get("step") == training.step:
        for key in set(row) - {"step"}:
            writer.add_scalar(key, row[key], row["step"])


# ---------------------------------------------------------------- tables


def network_table(run: Run) -> pd.DataFrame:
    """Parameters, latent shape and training time of every model trained so far, one row per (model, fold)."""
    rows = []
    for name, fold, unit in _trained(run):
        made = read_manifest(unit.require().path)
        row = {
            "model": str(name),
            "fold": fold,
            "latent": "x".join(map(str, made["latent_shape"])),
            **made["parameters"],
        }
        rows.append({**row, "minutes": made["seconds"] / 60, "device": made["device"]})
    return pd.DataFrame(rows)


def curves(run: Run) -> pd.DataFrame:
    """Loss curves: ``model, fold, step, loss, validation, learning_rate, gradient_norm``."""
    parts = [unit.load_table("curve.csv").assign(model=str(name), fold=fold) for name, fold, unit in _trained(run)]
    return pd.concat(parts, ignore_index=True)


def previews(run: Run, conditioning: str, fold: int) -> dict[int, np.ndarray]:
    """Samples drawn while a model was trained.

    Parameters
    ----------
    run : Run
    conditioning : {"semantic", "class"}
    fold : int
        Fold whose patients were held out.

    Returns
    -------
    dict of int to numpy.ndarray
        Step to (4, S, S) uint8 images of the same seeds and conditions.
    """
    unit = ldm_unit(run, conditioning, fold).require()
    paths = sorted(unit.path.glob("preview-*.npy"))
    return {int(path.stem.removeprefix("preview-")): unit.load_array(path.name) for path in paths}


def units(run: Run) -> list[Unit]:
    """Every unit stage 03 stands on."""
    return autoencoder_units.units(run) + [unit for _, _, unit in _trained(run)]


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of stage 03, beside the paper's where it states one."""
    networks, table = network_table(run), curves(run)
    rows = []
    for name in run.settings.ldm.conditionings:
        n = len(networks[networks["model"] == name])
        same = protocol.in_words(protocol.cohort(run) + protocol.models(run, [name], sampled=False))
        steps, key = run.settings.ldm.steps, artifacts.key_of("ldm.steps", name)
        text = f"training steps, {name} model"
        rows.append(artifacts.claim(key, text, steps, same, n=n, unit="steps", paper=20000))
        last = table[table["model"] == name].groupby("fold")[["loss"]].agg(["first", "last"])["loss"]
        psnr = autoencoder_units.reconstruction_table(run, name).groupby("fold")["psnr"].mean()
        lost = autoencoder_units.reconstruction_distance(run, name)["frechet"]
        for part, text, values, unit in (
            ("loss", "diffusion loss, last over first", last["last"] / last["first"], "ratio"),
            ("psnr", "reconstruction of held-out images", psnr, "dB PSNR"),
            ("frechet", "reconstructions against their held-out images", lost, "Frechet distance (EfficientNet-Lite0)"),
        ):
            key = artifacts.key_of(f"ldm.{part}", name)
            rows.append(artifacts.over_folds(key, f"{text}, {name} model", values, unit, statistics.POSITIVE))
    return rows
