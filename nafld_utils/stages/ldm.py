"""Stage 03: first stages, latents and the denoisers, one unit a (model, fold). Opens and writes files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from nafld_utils import autoencoder, autoencoder_training, diffusion, engine, stats
from nafld_utils.artifacts import Run, Unit, file_sha256, load_table, replacing, save_table, unit_seed
from nafld_utils.stages import prepare

KEEP_CHECKPOINTS = 2
UNSTATED = "not stated in the paper"


def folds_of(run: Run) -> list[int]:
    """Folds whose models are trained."""
    wanted = run.settings.ldm.folds
    return list(range(run.settings.folds.n_splits)) if wanted is None else list(wanted)


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (model, fold)."""
    return [{"run": run, "conditioning": c, "fold": k} for c in run.settings.ldm.conditionings for k in folds_of(run)]


def autoencoder_tasks(run: Run) -> list[dict[str, Any]]:
    """One task an autoencoder that is trained here; none where every model's is shipped or pretrained."""
    trained = [task for task in tasks(run) if _trained(run, task["conditioning"])]
    return list({autoencoder_unit(**task).path: task for task in reversed(trained)}.values())[::-1]


def latent_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a distinct set of latents: models and folds that share an autoencoder share them."""
    return list({latents_unit(**task).path: task for task in reversed(tasks(run))}.values())[::-1]


# ---------------------------------------------------------------- first stages


def _trained(run: Run, conditioning: str) -> bool:
    return run.settings.section(f"autoencoder.{conditioning}")["source"] == "train"


def _owner(run: Run, conditioning: str) -> str:
    """Model whose autoencoder this one uses: two that read the same settings share one."""
    read = {"shipped": (), "train": ("train_steps",), "path": ("path", "kind", "scale")}
    hub = ("hub_id", "subfolder", "revision", "kind", "scale")
    both = run.settings.section("autoencoder")
    mine, other = ([s[key] for key in ("source", *read.get(s["source"], hub))] for s in both.values())
    return "semantic" if mine == other else conditioning


def _place(run: Run, conditioning: str, fold: int) -> str:
    """Folder of what depends on the autoencoder: one a fold where it is trained on the fold, else shared."""
    return f"fold{fold}" if _trained(run, conditioning) else "shared"


def autoencoder_unit(run: Run, conditioning: str, fold: int) -> Unit:
    """Unit of an autoencoder trained on a fold's training patients (``source: train``)."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    return run.unit(
        "autoencoder",
        _owner(run, conditioning),
        f"fold{fold}",
        settings={"train_steps": settings["train_steps"], "seed": run.settings.seed},
        inputs=[prepare.preprocess_unit(run), file_sha256(autoencoder.SHIPPED)],
        modules=["autoencoder", "autoencoder_training", "backbones"],
    )


def _identity(run: Run, conditioning: str, fold: int) -> Unit | str:
    """What the latents of a model depend on: a unit, a file's content, or a hub name with its revision."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "train":
        return autoencoder_unit(run, conditioning, fold)
    if settings["source"] == "shipped":
        return file_sha256(autoencoder.SHIPPED)
    if settings["source"] == "path":
        weights = sorted(Path(settings["path"]).expanduser().rglob("*.safetensors"))
        if not weights:
            raise ValueError(
                f"autoencoder.{conditioning}.path {settings['path']}: expected a diffusers folder with safetensors"
                " weights, found none; correct the path."
            )
        return "-".join(file_sha256(path)[:16] for path in weights)
    return f"{settings['hub_id']}/{settings['subfolder']}@{settings['revision']}"


def first_stage(run: Run, conditioning: str, fold: int) -> autoencoder.FirstStage:
    """The autoencoder of a model: shipped, from the hub, from a folder, or trained on the fold."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "shipped":
        return autoencoder.load_shipped()
    if settings["source"] == "train":
        unit = autoencoder_unit(run, conditioning, fold).require()
        return autoencoder.from_tensors(load_file(unit.file("autoencoder.safetensors")))
    names = ("kind", "scale", "hub_id", "subfolder", "revision")
    path = str(Path(settings["path"]).expanduser()) if settings["source"] == "path" else None
    return autoencoder.load_pretrained(**{name: settings[name] for name in names}, path=path)


def train_autoencoder(run: Run, conditioning: str, fold: int) -> None:
    """Fine-tune the shipped small autoencoder on the fold's training patients; does nothing when the unit is done.

    Choice: it starts from the shipped weights, which saw simulated frames only, so no held-out patient enters.
    """
    settings = run.settings.section(f"autoencoder.{conditioning}")
    unit = autoencoder_unit(run, conditioning, fold)
    if unit.done():
        return
    from nafld_utils import backbones

    device = engine.device(run.settings.engine)
    data = prepare.open_preprocessed(run)
    images = data.pool[data.images["fold"].to_numpy() != fold]
    images = np.ascontiguousarray(images.reshape(-1, *images.shape[2:]))
    features = autoencoder_training.feature_maps(backbones.load("tf_efficientnet_lite2", "bundled").to(device))
    model = autoencoder.build_tiny()
    model.load_state_dict(autoencoder.load_shipped().model.state_dict())
    steps, label = settings["train_steps"], f"autoencoder fold {fold}"
    seeds = (unit_seed(run.settings.seed, "autoencoder", fold, step) for step in range(steps))
    meter = engine.StepMeter(label, steps)
    with unit.writing(device=str(device)) as folder:
        stage, curve = autoencoder_training.train_tiny(
            images, model, features, seeds, steps, device, learning_rate=5e-4, report=meter
        )
        save_file(autoencoder.to_tensors(stage), folder / "autoencoder.safetensors")
        save_table(folder / "curve.csv", pd.DataFrame(curve))


# ---------------------------------------------------------------- latents


def latents_unit(run: Run, conditioning: str, fold: int) -> Unit:
    """Unit of the encoder moments of the stored crops."""
    owner = _owner(run, conditioning)
    return run.unit(
        "latents",
        owner,
        _place(run, owner, fold),
        settings={"kind": run.settings.section(f"autoencoder.{owner}")["kind"]},
        inputs=[prepare.preprocess_unit(run), _identity(run, owner, fold)],
        modules=["autoencoder"],
    )


def make_latents(run: Run, conditioning: str, fold: int) -> None:
    """Encode every stored crop, and reconstruct held-out images to measure what the autoencoder loses.

    An autoencoder that was trained on a fold reconstructs that fold's held-out images, a shared one every image.
    """
    unit = latents_unit(run, conditioning, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    data = prepare.open_preprocessed(run)
    stage = first_stage(run, conditioning, fold)
    n, k, size, _ = data.pool.shape
    table = data.images[["image_id", "patient_id", "label", "fold"]].copy()
    rows = np.flatnonzero(table["fold"] == fold) if _trained(run, conditioning) else np.arange(n)
    with unit.writing(device=str(device), autoencoder=autoencoder.describe(stage)) as folder:
        moments = autoencoder.encode_images(stage, data.pool.reshape(n * k, size, size), device)
        originals = np.asarray(data.resized[rows])
        copies = autoencoder.reconstruct(stage, originals, device)
        table = table.iloc[rows].assign(row=rows, **autoencoder.reconstruction_error(originals, copies))
        np.save(folder / "moments.npy", moments.reshape(n, k, *moments.shape[1:]))
        np.save(folder / "reconstructions.npy", copies)
        table.to_csv(folder / "reconstruction.csv", index=False)


def reconstruction_table(run: Run, conditioning: str) -> pd.DataFrame:
    """PSNR and SSIM of every image under an autoencoder that did not see its patient.

    Returns
    -------
    pandas.DataFrame
        ``image_id, patient_id, label, fold, row, psnr, ssim``, each image once; `row` is its row of the images table.
    """
    parts = []
    for fold in folds_of(run):
        table = load_table(latents_unit(run, conditioning, fold).require().file("reconstruction.csv"))
        parts.append(table[table["fold"] == fold])
    return pd.concat(parts, ignore_index=True)


def reconstructions(run: Run, conditioning: str, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of a fold's held-out images in the images table, and their reconstructions (n, S, S) uint8."""
    unit = latents_unit(run, conditioning, fold).require()
    table = unit.load_table("reconstruction.csv")
    held_out = np.flatnonzero(table["fold"] == fold)
    return table["row"].to_numpy()[held_out], unit.load_array("reconstructions.npy", mmap=True)[held_out]


def latent_pools(
    run: Run, conditioning: str, fold: int, stage: autoencoder.FirstStage
) -> tuple[diffusion.LatentPool, diffusion.LatentPool]:
    """Training and held-out latents of a fold with their conditions."""
    data = prepare.open_preprocessed(run)
    moments = torch.from_numpy(np.asarray(latents_unit(run, conditioning, fold).load_array("moments.npy")))
    if conditioning == "semantic":
        conditions = torch.from_numpy(np.array(data.pool_maps))
    else:
        conditions = torch.from_numpy(np.array(data.images["label"], dtype=np.int64))
    train = torch.from_numpy(data.images["fold"].to_numpy() != fold)
    return tuple(diffusion.LatentPool(moments[rows], conditions[rows], stage.draw) for rows in (train, ~train))


# ---------------------------------------------------------------- denoisers


def ldm_unit(run: Run, conditioning: str, fold: int) -> Unit:
    """Unit of a trained denoiser."""
    section = run.settings.section("ldm")
    where = ("conditionings", "folds", "semantic", "class", "checkpoint_every")
    common = {key: value for key, value in section.items() if key not in where}
    return run.unit(
        "ldm",
        conditioning,
        f"fold{fold}",
        settings={**common, "network": section[conditioning], "seed": run.settings.seed, "fold": fold},
        inputs=[latents_unit(run, conditioning, fold), prepare.preprocess_unit(run)],
        modules=["diffusion"],
    )


def new_denoiser(run: Run, conditioning: str, fold: int, shape: tuple[int, int, int]) -> torch.nn.Module:
    """An untrained denoiser of a (model, fold), on the CPU."""
    network = run.settings.section(f"ldm.{conditioning}")
    seed = unit_seed(run.settings.seed, "ldm", conditioning, fold)
    return diffusion.build_denoiser(conditioning, network, shape, run.settings.preprocess.map_classes, seed)


def schedule_options(run: Run, conditioning: str) -> dict[str, Any]:
    """Noise schedule of a model, the same in training and sampling."""
    ldm = run.settings.ldm
    return diffusion.schedule_options(run.settings.section(f"ldm.{conditioning}"), ldm.prediction, ldm.train_timesteps)


def train_ldm(run: Run, conditioning: str, fold: int) -> None:
    """Train one denoiser, with checkpoints to resume from; does nothing when the unit is done."""
    from diffusers import DDPMScheduler

    unit = ldm_unit(run, conditioning, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    settings = run.settings.section("ldm")
    stage = first_stage(run, conditioning, fold).to(device)
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    pool, held_out = latent_pools(run, conditioning, fold, stage.to("cpu"))
    denoiser = new_denoiser(run, conditioning, fold, shape).to(device)
    training = diffusion.start_training(denoiser, settings)
    training.ema.to(device)
    resume(training, unit.work)
    seed = unit_seed(run.settings.seed, "ldm training", conditioning, fold)
    noiser = DDPMScheduler(**schedule_options(run, conditioning))
    loss = settings[conditioning]["loss"]
    meter = engine.StepMeter(f"{conditioning} fold {fold}", settings["steps"], training.step)
    for state in diffusion.train(training, pool, held_out, settings, loss, noiser, seed, device):
        meter(state.step, state.curve[-1]["loss"] if state.curve else float("nan"))
        if state.step % settings["checkpoint_every"] == 0 and state.step < settings["steps"]:
            checkpoint(state, unit.work)
    counts = diffusion.count_parameters(denoiser)
    with unit.writing(device=str(device), parameters=counts, latent_shape=shape, seconds=meter.seconds()) as folder:
        save_file(training.averaged(), folder / "averaged.safetensors")
        raw = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
        save_file(raw, folder / "last.safetensors")
        save_table(folder / "curve.csv", pd.DataFrame(training.curve))


def checkpoint(training: diffusion.Training, work: Path) -> None:
    """Write a resumable state atomically and keep the last two."""
    path = work / f"step-{training.step:08d}.safetensors"
    with replacing(path) as temporary:
        save_file(training.tensors(), temporary, metadata={"facts": diffusion.facts_json(training)})
    for old in sorted(work.glob("step-*.safetensors"))[:-KEEP_CHECKPOINTS]:
        old.unlink()


def resume(training: diffusion.Training, work: Path) -> bool:
    """Restore the newest whole checkpoint; a damaged one is set aside and the one before it is used."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(work.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt") as handle:
                facts = json.loads(handle.metadata()["facts"])
            training.restore(load_file(path), facts)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            engine.announce(f"{path}: not a whole checkpoint ({error}); the one before it is used.")
            path.unlink(missing_ok=True)
            continue
        return True
    shutil.rmtree(work, ignore_errors=True)
    return False


def load_denoiser(run: Run, conditioning: str, fold: int) -> torch.nn.Module:
    """The trained denoiser with averaged weights, on the CPU, in eval mode."""
    unit = ldm_unit(run, conditioning, fold).require()
    stage = first_stage(run, conditioning, fold)
    denoiser = new_denoiser(
        run, conditioning, fold, autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    )
    denoiser.load_state_dict(load_file(unit.file("averaged.safetensors")))
    return denoiser.eval().requires_grad_(False)


def network_table(run: Run) -> pd.DataFrame:
    """Parameters, latent shape and training time of every model trained so far, one row a (model, fold)."""
    rows = []
    for task in tasks(run):
        manifest = json.loads(ldm_unit(**task).require().file("run.json").read_text(encoding="utf-8"))
        count, shape = manifest["parameters"], "x".join(map(str, manifest["latent_shape"]))
        row = {"model": task["conditioning"], "fold": task["fold"], "latent": shape, **count}
        rows.append({**row, "minutes": manifest["seconds"] / 60, "device": manifest["device"]})
    return pd.DataFrame(rows)


def curves(run: Run) -> pd.DataFrame:
    """Loss curves: ``conditioning, fold, step, loss, validation, learning_rate, gradient_norm``."""
    parts = []
    for task in tasks(run):
        table = load_table(ldm_unit(**task).require().file("curve.csv"))
        parts.append(table.assign(conditioning=task["conditioning"], fold=task["fold"]))
    return pd.concat(parts, ignore_index=True)


def units(run: Run) -> list[Unit]:
    """Every unit stage 03 stands on."""
    found = [autoencoder_unit(**task) for task in autoencoder_tasks(run)]
    found += [latents_unit(**task) for task in latent_tasks(run)]
    return found + [ldm_unit(**task) for task in tasks(run)]


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of stage 03, beside the paper's where it states one."""
    networks, table = network_table(run), curves(run)
    rows = []
    for name in run.settings.ldm.conditionings:
        mine = networks[networks["model"] == name]
        same = "yes" if run.settings.profile == "paper" else "no: smaller network, fewer steps"
        row = {"claim": f"training steps, {name} model", "paper": 20000, "this_run": run.settings.ldm.steps}
        rows.append({**row, "over": "", "n": len(mine), "unit": "steps", "same_protocol": same})
        last = table[table["conditioning"] == name].groupby("fold")[["loss"]].agg(["first", "last"])["loss"]
        ratio = last["last"] / last["first"]
        mean, low, high = stats.student_t_interval(ratio)[:3]
        row = {"claim": f"diffusion loss, last over first, {name} model", "this_run": mean, "low": low, "high": high}
        rows.append({**row, "over": "folds", "n": len(ratio), "unit": "ratio", "same_protocol": UNSTATED})
        psnr = reconstruction_table(run, name).groupby("fold")["psnr"].mean()
        mean, low, high = stats.student_t_interval(psnr)[:3]
        row = {"claim": f"reconstruction of held-out images, {name} model", "this_run": mean, "low": low, "high": high}
        rows.append({**row, "over": "folds", "n": len(psnr), "unit": "dB PSNR", "same_protocol": UNSTATED})
    return rows
