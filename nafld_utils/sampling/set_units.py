"""Stage 04: synthetic sets, one unit a (model, fold), and the sets they are judged against. Opens and writes files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nafld_utils import artifacts, engine, images, ldm, preprocessing
from nafld_utils.artifacts import Run, Unit, create_array, read_manifest, remembered, unit_seed
from nafld_utils.params import SetName, set_names

KINDS = tuple(set_names.KINDS.values())


@dataclass(frozen=True)
class Baseline:
    """A generator beside the diffusion models, conditioned on the class.

    Attributes
    ----------
    unit : callable
        ``(run, fold)`` to the unit that its images of a fold depend on.
    painter : callable
        ``(run, fold, device)`` to a function from labels (n,) and n seeds to images (n, S, S) uint8, each a function
        of its own seed alone. It must not see patients whom the fold holds out.
    modules : tuple of str
        Modules whose ``REVISION`` its images depend on.
    """

    unit: Callable[[Run, int], Unit]
    painter: Callable[[Run, int, torch.device], Callable[[np.ndarray, list[int]], np.ndarray]]
    modules: tuple[str, ...]


BASELINES = {ldm.NAME: Baseline(ldm.gan_unit, ldm.painter, ("gan",))}


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
    split : str or None
        `preprocessing.digest_of` the split that it was made with; None of sets from before it was noted.
    """

    images: np.ndarray
    table: pd.DataFrame
    conditions: np.ndarray | None
    unit: Unit
    split: str | None


def _count(run: Run, kind: str) -> int:
    sampled = run.settings.sampling
    counts = {"synthetic": sampled.n_images, "synthetic_null": sampled.n_null}
    return counts.get(kind, run.settings.quality.n_reference)


@remembered
def synthetic_unit(run: Run, conditioning: str, fold: int, kind: str = "synthetic", balance: str = "none") -> Unit:
    """Unit of a set; `kind` is one of `KINDS`. Sets of several sizes lie side by side."""
    if kind not in KINDS:
        raise ValueError(f"synthetic set {kind!r}: expected one of {', '.join(KINDS)}.")
    if conditioning in BASELINES:
        return _baseline_set_unit(run, conditioning, fold)
    read = ("scheduler", "steps", "eta", "guidance", "precision")
    settings = {key: run.settings.section("sampling")[key] for key in read} | {"n": _count(run, kind)}
    warp = run.settings.preprocess
    settings |= {"warp": [warp.warp_points, warp.warp_strength], "seed": run.settings.seed, "kind": kind, "fold": fold}
    if kind in ("synthetic_untrained", "synthetic_gaussian"):
        made_by = ldm.latents_unit(run, conditioning, fold)
    else:
        made_by = ldm.ldm_unit(run, conditioning, fold, balance)
    if kind == "synthetic_untrained":
        settings["network"] = run.settings.section(f"ldm.{conditioning}")
    return run.unit(
        kind,
        str(SetName(conditioning, balance)),
        f"fold{fold}",
        f"n{_count(run, kind):05d}",
        settings=settings,
        inputs=[made_by, preprocessing.preprocess_unit(run)],
        modules=["sampling", "diffusion", "autoencoder"],
    )


@remembered
def _baseline_set_unit(run: Run, name: str, fold: int) -> Unit:
    n = run.settings.sampling.n_images
    return run.unit(
        "synthetic",
        name,
        f"fold{fold}",
        f"n{n:05d}",
        settings={"n": n, "seed": run.settings.seed, "fold": fold},
        inputs=[BASELINES[name].unit(run, fold), preprocessing.preprocess_unit(run)],
        modules=BASELINES[name].modules,
    )


def draw_conditions(
    run: Run, conditioning: str, fold: int, n: int, balance: str = "none"
) -> tuple[pd.DataFrame, np.ndarray]:
    """Conditions of n images, each a function of its own seed.

    Semantic: maps of training patients' crops, uniformly over training frames, under a weak piecewise-affine warp;
    class: labels half and half [paper, Synthetic image generation], and so the baselines. A model of the balanced
    cohort draws maps as its cohort holds them: from both classes alike.

    Returns
    -------
    pandas.DataFrame
        As `Synthetic.table`.
    numpy.ndarray
        (n, M, M) uint8 maps, or (n,) int64 labels.
    """
    seeds = [unit_seed(run.settings.seed, "synthetic", conditioning, fold, i) for i in range(n)]
    table = pd.DataFrame({"index": range(n), "seed": seeds}).assign(conditioning=conditioning, fold=fold)
    table["synthetic_id"] = [f"{SetName(conditioning, balance)}_f{fold}_{i:05d}" for i in range(n)]
    if conditioning != "semantic":  # the class model and the baselines
        table = table.assign(label=table["index"] % 2, source_patient=-1, source_image="")
        return table, np.array(table["label"], dtype=np.int64)
    data = preprocessing.open_preprocessed(run)
    training = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    options, label = run.settings.preprocess, data.images["label"].to_numpy()
    by_class = [training[label[training] == value] for value in (0, 1)]
    rows, maps = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        row = int(rng.choice(training if balance == "none" else by_class[rng.integers(2)]))
        crop = int(rng.integers(data.pool_maps.shape[1]))
        rows.append(row)
        maps.append(images.warp_map(data.pool_maps[row, crop], rng, options.warp_points, options.warp_strength))
    source = data.images.iloc[rows]
    table["label"] = source["label"].to_numpy()
    table["source_patient"] = source["patient_id"].to_numpy()
    table["source_image"] = source["image_id"].to_numpy()
    return table, np.stack(maps)


def make_set(run: Run, conditioning: str, fold: int, kind: str = "synthetic", balance: str = "none") -> None:
    """Draw one set, in shards that a killed run resumes from; does nothing when the unit is done."""
    unit = synthetic_unit(run, conditioning, fold, kind, balance)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    table, conditions = draw_conditions(run, conditioning, fold, _count(run, kind), balance)
    paint = _painter(run, conditioning, fold, kind, device, balance)
    size, image_size = run.settings.sampling.batch_size, run.settings.preprocess.image_size
    meter = engine.StepMeter(f"{unit.recipe['unit']}", len(table))
    for start in range(0, len(table), size):
        path, part = _shard(unit, start), table.iloc[start : start + size]
        if _whole_shard(path, len(part)) is None:
            artifacts.checkpoints.save_array(path, paint(part, conditions[start : start + size]))
        meter(start + len(part))
    facts = {
        "split": preprocessing.digest_of(preprocessing.open_preprocessed(run).images),
        "class_mix": _mix(run, table),
    }
    with unit.writing(device=str(device), seconds=meter.seconds(), **facts) as folder:
        # the set may be larger than memory: it goes from shard to file
        images = create_array(folder / "images.npy", (len(table), image_size, image_size))
        for start in range(0, len(table), size):
            images[start : start + size] = artifacts.checkpoints.load_array(_shard(unit, start))
        images.flush()
        del images
        table.to_csv(folder / "table.csv", index=False)
        if conditioning == "semantic":
            np.save(folder / "conditions.npy", conditions)


def _shard(unit: Unit, start: int) -> Path:
    return unit.work / f"shard-{start:06d}.safetensors"


def _whole_shard(path: Path, n: int) -> np.ndarray | None:
    shard = artifacts.checkpoints.load_array(path)
    return shard if shard is not None and len(shard) == n else None


def check_sources(run: Run, fold: int, table: pd.DataFrame, origin: str) -> None:
    """Refuse conditions from patients whom a fold holds out: its model must never meet them.

    Raises
    ------
    ValueError
        Names `origin` and the patients.
    """
    images = preprocessing.open_preprocessed(run).images
    leaked = set(images.loc[images["fold"] == fold, "patient_id"]) & set(table["source_patient"])
    if leaked:
        raise ValueError(
            f"{origin}: source patients {sorted(leaked)} are held out in fold {fold}; draw conditions from that fold's"
            " training patients, and make the set again."
        )


def _check_fold(conditioning: str, fold: int, rows: pd.DataFrame) -> None:
    """Refuse conditions that were drawn for another fold, whoever their patients are."""
    others = sorted(set(rows["fold"]) - {fold})
    if others:
        raise ValueError(
            f"conditions of the {conditioning} model: expected those of its own fold {fold}, found some drawn for fold"
            f" {', '.join(map(str, others))}; draw them from that fold's training patients."
        )


Drawer = Callable[[pd.DataFrame, np.ndarray], torch.Tensor]


def _painter(
    run: Run, conditioning: str, fold: int, kind: str, device: torch.device, balance: str
) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """Function from rows of the table and their conditions to images (n, S, S) uint8."""
    if conditioning in BASELINES:
        paint = BASELINES[conditioning].painter(run, fold, device)
        return lambda rows, labels: paint(labels, rows["seed"].tolist())
    stage = ldm.first_stage(run, conditioning, fold).to(device)
    draw = _drawer(run, conditioning, fold, kind, stage, device, balance)
    return lambda rows, conditions: ldm.decode_latents(stage, draw(rows, conditions), device)


def _drawer(
    run: Run,
    conditioning: str,
    fold: int,
    kind: str,
    stage: ldm.FirstStage,
    device: torch.device,
    balance: str = "none",
) -> Drawer:
    """Function from rows of the table and their conditions to scaled latents."""
    if kind == "synthetic_gaussian":
        pool, _ = ldm.stored_pools(run, conditioning, fold, stage)
        latents = pool.draw(pool.moments.flatten(0, 1), None)
        return lambda rows, conditions: ldm.gaussian_latents(latents, rows["seed"].tolist()).to(device)
    if kind == "synthetic_untrained":
        shape = ldm.latent_shape(stage, run.settings.preprocess.image_size)
        denoiser = ldm.new_denoiser(run, conditioning, fold, shape)
    else:
        denoiser = ldm.load_denoiser(run, conditioning, fold, balance)
    s = run.settings.sampling
    options = {"scheduler": s.scheduler, "steps": s.steps, "eta": s.eta, "guidance": s.guidance}
    return sampler(run, conditioning, fold, denoiser, stage, device, options, null=kind == "synthetic_null")


def sampler(
    run: Run,
    conditioning: str,
    fold: int,
    denoiser: torch.nn.Module,
    stage: ldm.FirstStage,
    device: torch.device,
    options: Mapping[str, Any],
    null: bool = False,
) -> Drawer:
    """Function from rows of a table and their conditions to scaled latents of one fold's denoiser.

    Parameters
    ----------
    run, conditioning, fold
        The model.
    denoiser : torch.nn.Module
        Its denoiser, on the CPU.
    stage : FirstStage
        Its autoencoder.
    device : torch.device
        Where to compute.
    options : mapping
        ``scheduler, steps, eta, guidance``.
    null : bool
        Drop every condition.
    """
    shape = ldm.latent_shape(stage, run.settings.preprocess.image_size)
    denoiser = ldm.placed(denoiser, device)
    if run.settings.engine.compile:
        ldm.compile_network(denoiser)
    schedule, precision = ldm.schedule_options(run, conditioning), run.settings.sampling.precision

    def draw(rows: pd.DataFrame, conditions: np.ndarray) -> torch.Tensor:
        _check_fold(conditioning, fold, rows)
        check_sources(run, fold, rows, f"conditions of the {conditioning} model")
        return ldm.sampler.sample(
            denoiser,
            schedule,
            torch.from_numpy(conditions),
            rows["seed"].tolist(),
            shape,
            device=device,
            null=null,
            precision=precision,
            **options,
        )

    return draw


def open_synthetic(run: Run, conditioning: str, fold: int, kind: str = "synthetic", balance: str = "none") -> Synthetic:
    """Open a set of one model and fold.

    Raises
    ------
    ValueError
        The set is not made, was made with another split or other settings, belongs to another fold, or has a source
        patient who is held out in this fold.
    """
    unit = synthetic_unit(run, conditioning, fold, kind, balance)
    split = (read_manifest(unit.path) or {}).get("split")
    preprocessing.assert_same_split(preprocessing.open_preprocessed(run).images, split, str(unit.path))
    table = unit.require().load_table("table.csv").astype({"source_image": object}).fillna({"source_image": ""})
    if set(table["fold"]) != {fold}:
        raise ValueError(f"{unit.path}: expected images of fold {fold}, found folds {sorted(set(table['fold']))}.")
    check_sources(run, fold, table, str(unit.path))
    maps = unit.load_array("conditions.npy", mmap=True) if conditioning == "semantic" else None
    return Synthetic(unit.load_array("images.npy", mmap=True), table, maps, unit, split)


def generators(run: Run) -> list[str]:
    """Names of what draws synthetic sets: models, their balanced twins, the baselines."""
    balanced = [str(SetName(task["conditioning"], task["balance"])) for task in ldm.balanced_tasks(run)]
    models = run.settings.ldm.conditionings
    return [*models, *dict.fromkeys(balanced), *(name for name in run.settings.generators if name in BASELINES)]


def task_of(run: Run, generator: str, fold: int, kind: str = "synthetic") -> dict[str, Any]:
    """Keyword arguments that name one set of a generator, e.g. ``class_balanced``, for the functions of this module."""
    return {"run": run, "fold": fold, **asdict(SetName.of(generator)), "kind": kind}


def synthetic_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (generator, fold): the synthetic sets, without those they are judged against."""
    return [task_of(run, name, fold) for name in generators(run) for fold in ldm.folds_of(run)]


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (set, generator, fold); a Gaussian set is independent of the network and made once a model as well."""
    judged = [{**task, "kind": kind} for kind in KINDS[1:] for task in ldm.autoencoder_units.tasks(run)]
    return synthetic_tasks(run) + judged


def units(run: Run) -> list[Unit]:
    """Every unit stage 04 stands on."""
    return [synthetic_unit(**task) for task in tasks(run)]


def _mix(run: Run, table: pd.DataFrame) -> dict[str, int]:
    """Images a class of a set, by the cohort's class names."""
    return {name: int((table["label"] == label).sum()) for label, name in enumerate(run.settings.cohort.class_names)}


def class_mix(run: Run) -> pd.DataFrame:
    """Images a class in every synthetic set: ``model, fold, healthy, fatty`` under the cohort's class names."""
    rows = []
    for name in generators(run):
        for fold in ldm.folds_of(run):
            made = open_synthetic(**task_of(run, name, fold))
            rows.append({"model": name, "fold": fold, **_mix(run, made.table)})
    return pd.DataFrame(rows)
