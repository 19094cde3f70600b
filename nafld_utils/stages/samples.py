"""Stage 04: synthetic sets, one unit a (model, fold), and the sets they are judged against. Opens and writes files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from nafld_utils import autoencoder, engine, preprocess, sampling
from nafld_utils.artifacts import Run, Unit, load_array, save_array, unit_seed
from nafld_utils.stages import ldm, prepare

KINDS = ("synthetic", "synthetic_null", "synthetic_untrained", "synthetic_gaussian")


@dataclass(frozen=True)
class Synthetic:
    """A synthetic set of one model and fold.

    Attributes
    ----------
    images : numpy.ndarray, shape (n, S, S), uint8
    table : pandas.DataFrame
        ``synthetic_id, conditioning, fold, index, label, source_patient, source_image, seed``; a semantic image
        inherits patient and label from its map, a class image has no source (-1 and "").
    conditions : numpy.ndarray or None
        Semantic: (n, M, M) uint8 maps as used.
    unit : Unit
        Where it lies.
    """

    images: np.ndarray
    table: pd.DataFrame
    conditions: np.ndarray | None
    unit: Unit


def _count(run: Run, kind: str) -> int:
    sampled = run.settings.sampling
    counts = {"synthetic": sampled.n_images, "synthetic_null": sampled.n_null}
    return counts.get(kind, run.settings.quality.n_reference)


def synthetic_unit(run: Run, conditioning: str, fold: int, kind: str = "synthetic") -> Unit:
    """Unit of a set; `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"synthetic set {kind!r}: expected one of {', '.join(KINDS)}.")
    settings = {key: value for key, value in run.settings.section("sampling").items() if key != "batch_size"}
    counts = ("n_images", "n_null")
    settings = {key: value for key, value in settings.items() if key not in counts} | {"n": _count(run, kind)}
    warp = run.settings.preprocess
    settings |= {"warp": [warp.warp_points, warp.warp_strength], "seed": run.settings.seed, "kind": kind, "fold": fold}
    made_by = ldm.latents_unit if kind in ("synthetic_untrained", "synthetic_gaussian") else ldm.ldm_unit
    if kind == "synthetic_untrained":
        settings["network"] = run.settings.section(f"ldm.{conditioning}")
    return run.unit(
        kind,
        conditioning,
        f"fold{fold}",
        settings=settings,
        inputs=[made_by(run, conditioning, fold), prepare.preprocess_unit(run)],
        modules=["sampling", "diffusion", "autoencoder"],
    )


def draw_conditions(run: Run, conditioning: str, fold: int, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Conditions of n images, each a function of its own seed.

    Semantic: maps of training patients' crops, uniformly over training frames, under a weak piecewise-affine warp;
    class: labels half and half [paper, Synthetic image generation].

    Returns
    -------
    pandas.DataFrame
        As `Synthetic.table`.
    numpy.ndarray
        (n, M, M) uint8 maps, or (n,) int64 labels.
    """
    seeds = [unit_seed(run.settings.seed, "synthetic", conditioning, fold, i) for i in range(n)]
    table = pd.DataFrame({"index": range(n), "seed": seeds}).assign(conditioning=conditioning, fold=fold)
    table["synthetic_id"] = [f"{conditioning}_f{fold}_{i:05d}" for i in range(n)]
    if conditioning == "class":
        table = table.assign(label=table["index"] % 2, source_patient=-1, source_image="")
        return table, np.array(table["label"], dtype=np.int64)
    data = prepare.open_preprocessed(run)
    training = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    options = run.settings.preprocess
    rows, maps = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        row = int(rng.choice(training))
        crop = int(rng.integers(data.pool_maps.shape[1]))
        rows.append(row)
        maps.append(preprocess.warp_map(data.pool_maps[row, crop], rng, options.warp_points, options.warp_strength))
    source = data.images.iloc[rows]
    table["label"] = source["label"].to_numpy()
    table["source_patient"] = source["patient_id"].to_numpy()
    table["source_image"] = source["image_id"].to_numpy()
    return table, np.stack(maps)


def make_set(run: Run, conditioning: str, fold: int, kind: str = "synthetic") -> None:
    """Draw one set, in shards that a killed run resumes from; does nothing when the unit is done."""
    unit = synthetic_unit(run, conditioning, fold, kind)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    table, conditions = draw_conditions(run, conditioning, fold, _count(run, kind))
    stage = ldm.first_stage(run, conditioning, fold).to(device)
    draw = _drawer(run, conditioning, fold, kind, stage, device)
    size = run.settings.sampling.batch_size
    meter = engine.StepMeter(f"{kind} {conditioning} fold {fold}", len(table))
    shards = []
    for start in range(0, len(table), size):
        path = unit.work / f"shard-{start:06d}.npy"
        part = table.iloc[start : start + size]
        shard = _whole_shard(path, len(part))
        if shard is None:
            latents = draw(torch.from_numpy(conditions[start : start + size]), part["seed"].tolist())
            shard = autoencoder.decode_latents(stage, latents, device)
            save_array(path, shard)
        shards.append(shard)
        meter(start + len(part))
    with unit.writing(device=str(device), seconds=meter.seconds()) as folder:
        np.save(folder / "images.npy", np.concatenate(shards))
        table.to_csv(folder / "table.csv", index=False)
        if conditioning == "semantic":
            np.save(folder / "conditions.npy", conditions)


def _whole_shard(path: Any, n: int) -> np.ndarray | None:
    try:
        shard = load_array(path)
    except (OSError, ValueError, EOFError):
        return None
    return shard if len(shard) == n else None


def _drawer(
    run: Run, conditioning: str, fold: int, kind: str, stage: autoencoder.FirstStage, device: torch.device
) -> Any:
    """Function from conditions and seeds to scaled latents."""
    if kind == "synthetic_gaussian":
        pool, _ = ldm.latent_pools(run, conditioning, fold, stage.to("cpu"))
        latents = pool.draw(pool.moments.flatten(0, 1), None)
        stage.to(device)
        return lambda conditions, seeds: sampling.gaussian_latents(latents, seeds).to(device)
    shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
    if kind == "synthetic_untrained":
        denoiser = ldm.new_denoiser(run, conditioning, fold, shape).to(device)
    else:
        denoiser = ldm.load_denoiser(run, conditioning, fold).to(device)
    options, s = ldm.schedule_options(run, conditioning), run.settings.sampling
    null = kind == "synthetic_null"
    return lambda conditions, seeds: sampling.sample(
        denoiser, options, conditions, seeds, shape, s.steps, s.eta, s.guidance, device, null
    )


def open_synthetic(run: Run, conditioning: str, fold: int, kind: str = "synthetic") -> Synthetic:
    """Open a set of one model and fold.

    Raises
    ------
    ValueError
        The set is not made, was made with another split or other settings, belongs to another fold, or has a source
        patient who is held out in this fold.
    """
    unit = synthetic_unit(run, conditioning, fold, kind).require()
    table = unit.load_table("table.csv").astype({"source_image": object}).fillna({"source_image": ""})
    if set(table["fold"]) != {fold}:
        raise ValueError(f"{unit.path}: expected images of fold {fold}, found folds {sorted(set(table['fold']))}.")
    images = prepare.open_preprocessed(run).images
    held_out = set(images.loc[images["fold"] == fold, "patient_id"])
    leaked = held_out & set(table["source_patient"])
    if leaked:
        raise ValueError(
            f"{unit.path}: source patients {sorted(leaked)} are held out in fold {fold}; make the set again."
        )
    maps = unit.load_array("conditions.npy", mmap=True) if conditioning == "semantic" else None
    return Synthetic(unit.load_array("images.npy", mmap=True), table, maps, unit)


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (set, model, fold); a Gaussian set is independent of the network and made once a model as well."""
    return [{**task, "kind": kind} for kind in KINDS for task in ldm.tasks(run)]


def units(run: Run) -> list[Unit]:
    """Every unit stage 04 stands on."""
    return [synthetic_unit(**task) for task in tasks(run)]


def class_mix(run: Run) -> pd.DataFrame:
    """Images a class in every synthetic set: ``model, fold, healthy, fatty`` under the cohort's class names."""
    names = dict(enumerate(run.settings.cohort.class_names))
    rows = []
    for task in ldm.tasks(run):
        table = open_synthetic(**task).table
        counts = table["label"].map(names).value_counts().reindex(list(names.values()), fill_value=0)
        rows.append({"model": task["conditioning"], "fold": task["fold"], **counts.to_dict()})
    return pd.DataFrame(rows)
