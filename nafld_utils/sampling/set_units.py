"""Stage 04: synthetic sets, one unit per model and fold, and the sets they are judged against. Opens and writes files.

Contract: a set has a name, ``[prefix_]generator``: its generator's, after the prefix of `SET_KINDS` where it is one
of the sets that the others are judged against, e.g. ``class_balanced``, ``null_class``. `open_set` opens it by that
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, images, ldm, preprocessing
from nafld_utils.artifacts import Run, Unit, checkpoints, remembered, unit_seed
from nafld_utils.params import SET_KINDS, SHARED, SIMULATED, SetName
from nafld_utils.sampling import simulated

if TYPE_CHECKING:
    import torch

Painter = Callable[[pd.DataFrame, np.ndarray], np.ndarray]
Drawer = Callable[[pd.DataFrame, np.ndarray], Any]  # a tensor


@dataclass(frozen=True)
class Baseline:
    """A generator beside the diffusion models, conditioned on the class.

    ``unit`` gives, from ``(run, fold)``, the unit that its images of a fold depend on; ``painter``, from ``(run, fold,
    device)``, a function from labels (n,) and n seeds to images (n, S, S) uint8, each a function of its own seed alone.
    It must not see patients whom the fold holds out. ``modules`` are those whose ``REVISION`` its images depend on. One
    that sees no patient at all has no unit: its one set serves every fold.
    """

    unit: Callable[[Run, int], Unit] | None
    painter: Callable[[Run, int, torch.device], Callable[[np.ndarray, list[int]], np.ndarray]]
    modules: tuple[str, ...]


BASELINES = {
    ldm.NAME: Baseline(ldm.gan_unit, ldm.painter, ("gan",)),
    SIMULATED: Baseline(None, simulated.painter, simulated.MODULES),
}


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


# ---------------------------------------------------------------- names and units


def generators(run: Run) -> list[str]:
    """Names of what draws synthetic sets: models, their balanced twins, the baselines."""
    balanced = [str(SetName(task["conditioning"], task["balance"])) for task in ldm.balanced_tasks(run)]
    models = run.settings.ldm.conditionings
    return [*models, *dict.fromkeys(balanced), *(name for name in run.settings.generators if name in BASELINES)]


def is_shared(name: str) -> bool:
    """Whether a set serves every fold, since what made it saw no patient."""
    return name in BASELINES and BASELINES[name].unit is None


def task_of(run: Run, name: str, fold: int) -> dict[str, Any]:
    """Keyword arguments that stand for the set of a name in the functions of this module."""
    return {"run": run, "fold": fold, **asdict(SetName.of(name))}


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per set and fold; a Gaussian set is independent of the network and made once per model as well."""
    folds = ldm.folds_of(run)
    found = [task_of(run, name, fold) for name in generators(run) for fold in (folds[:1] if is_shared(name) else folds)]
    return found + [
        {**task, "kind": kind} for kind in list(SET_KINDS.values())[1:] for task in ldm.autoencoder_units.tasks(run)
    ]


def units(run: Run) -> list[Unit]:
    """Every unit stage 04 stands on."""
    return [synthetic_unit(**task) for task in tasks(run)]


def _count(run: Run, kind: str) -> int:
    sampled = run.settings.sampling
    counts = {"synthetic": sampled.n_images, "synthetic_null": sampled.n_null}
    return counts.get(kind, run.settings.quality.n_reference)


@remembered
def synthetic_unit(run: Run, conditioning: str, fold: int, kind: str = "synthetic", balance: str = "none") -> Unit:
    """Unit of a set; `kind` is a value of `SET_KINDS`. Sets of several sizes lie side by side."""
    if kind not in SET_KINDS.values():
        raise ValueError(f"synthetic set {kind!r}: expected one of {', '.join(SET_KINDS.values())}.")
    if is_shared(conditioning):
        settings = {"n": run.settings.sampling.n_images, "seed": run.settings.seed, **simulated.recipe(run)}
        return run.unit(
            "synthetic", conditioning, f"n{settings['n']:05d}", settings=settings, modules=simulated.MODULES
        )
    kind = "synthetic" if conditioning in BASELINES else kind
    n, warp = _count(run, kind), run.settings.preprocess
    settings = {"n": n, "seed": run.settings.seed, "fold": fold}
    modules = ["sampling", "diffusion", "autoencoder"]
    if conditioning in BASELINES:
        made_by, modules = BASELINES[conditioning].unit(run, fold), BASELINES[conditioning].modules
    else:
        read = ("scheduler", "steps", "eta", "guidance", "precision")
        settings |= {key: run.settings.section("sampling")[key] for key in read}
        settings |= {"warp": [warp.warp_points, warp.warp_strength], "kind": kind}
        if kind in ("synthetic_untrained", "synthetic_gaussian"):
            made_by = ldm.latents_unit(run, conditioning, fold)
        else:
            made_by = ldm.weights_unit(run, conditioning, fold, balance)
        if kind == "synthetic_untrained":
            settings["network"] = run.settings.section(f"ldm.{conditioning}")
    keys = str(SetName(conditioning, balance)), f"fold{fold}", f"n{n:05d}"
    inputs = [made_by, preprocessing.preprocess_unit(run)]
    return run.unit(kind, *keys, settings=settings, inputs=inputs, modules=modules)


# ---------------------------------------------------------------- drawing


def draw_conditions(
    run: Run, conditioning: str, fold: int, n: int, balance: str = "none"
) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of `Synthetic.table` for n images and their conditions, each a function of its own seed.

    Semantic: (n, M, M) uint8 maps of training patients' crops, uniformly over training frames, under a weak
    piecewise-affine warp; class: (n,) int64 labels half and half [paper, Synthetic image generation], and so the
    baselines. A model of the balanced cohort draws maps as its cohort holds them: from both classes alike.
    """
    shared = is_shared(conditioning)
    fold, name = SHARED if shared else fold, f"{SetName(conditioning, balance)}" + f"_f{fold}" * (not shared)
    seeds = [unit_seed(run.settings.seed, "synthetic", conditioning, fold, i) for i in range(n)]
    table = pd.DataFrame({"index": range(n), "seed": seeds}).assign(conditioning=conditioning, fold=fold)
    table["synthetic_id"] = [f"{name}_{i:05d}" for i in range(n)]
    if conditioning != "semantic":  # the class model and the baselines
        share = run.settings.simulated.share if shared else 0.5
        label = np.diff(np.floor(share * np.arange(n + 1))).astype(np.int64)  # the classes in turn
        table = table.assign(label=label, source_patient=-1, source_image="")
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
        shard = checkpoints.load_array(path)
        if shard is None or len(shard) != len(part):
            checkpoints.save_array(path, paint(part, conditions[start : start + size]))
        meter(start + len(part))
    facts = {"class_mix": _mix(run, table), "seconds": meter.seconds()}
    if not is_shared(conditioning):
        facts["split"] = preprocessing.digest_of(preprocessing.open_preprocessed(run).images)
    with unit.writing(device=str(device), **facts) as folder:
        # the set may be larger than memory: it goes from shard to file
        drawn = artifacts.create_array(folder / "images.npy", (len(table), image_size, image_size))
        for start in range(0, len(table), size):
            drawn[start : start + size] = checkpoints.load_array(_shard(unit, start))
        drawn.flush()
        del drawn
        artifacts.save_table(folder / "table.csv", table)
        if conditioning == "semantic":
            artifacts.save_array(folder / "conditions.npy", conditions)


def _shard(unit: Unit, start: int) -> Path:
    return unit.work / f"shard-{start:06d}.safetensors"


def check_sources(real: pd.DataFrame, fold: int, table: pd.DataFrame, origin: str) -> None:
    """Refuse conditions from patients whom a fold of the real images holds out, whom its model must never meet."""
    leaked = set(real.loc[real["fold"] == fold, "patient_id"]) & set(table["source_patient"])
    if leaked:
        raise ValueError(
            f"{origin}: source patients {sorted(leaked)} are held out in fold {fold}; draw conditions from that fold's"
            " training patients, and make the set again."
        )


def _painter(run: Run, conditioning: str, fold: int, kind: str, device: torch.device, balance: str) -> Painter:
    """Function from rows of the table and their conditions to images (n, S, S) uint8."""
    if conditioning in BASELINES:
        paint = BASELINES[conditioning].painter(run, fold, device)
        return lambda rows, labels: paint(labels, rows["seed"].tolist())
    stage, s = ldm.first_stage(run, conditioning, fold).to(device), run.settings.sampling
    options = {"scheduler": s.scheduler, "steps": s.steps, "eta": s.eta, "guidance": s.guidance}
    if kind == "synthetic_gaussian":
        pool, _ = ldm.stored_pools(run, conditioning, fold, stage)
        latents = pool.draw(pool.moments.flatten(0, 1), None)

        def draw(rows: pd.DataFrame, conditions: np.ndarray) -> torch.Tensor:
            return ldm.gaussian_latents(latents, rows["seed"].tolist()).to(device)

    else:
        if kind == "synthetic_untrained":
            shape = ldm.latent_shape(stage, run.settings.preprocess.image_size)
            denoiser = ldm.new_denoiser(run, conditioning, fold, shape)
        else:
            denoiser = ldm.load_denoiser(run, conditioning, fold, balance)
        draw = sampler(run, conditioning, fold, denoiser, stage, device, options, null=kind == "synthetic_null")
    return lambda rows, conditions: ldm.decode_latents(stage, draw(rows, conditions), device)


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
    """Function from rows of a table and their conditions to scaled latents of one fold's denoiser, given on the CPU.

    `options` are ``scheduler, steps, eta, guidance``; `null` drops every condition.
    """
    shape = ldm.latent_shape(stage, run.settings.preprocess.image_size)
    denoiser = ldm.placed(denoiser, device)
    if run.settings.engine.compile:
        ldm.compile_network(denoiser)
    how = {**options, "device": device, "null": null, "precision": run.settings.sampling.precision}
    schedule, origin = ldm.schedule_options(run, conditioning), f"conditions of the {conditioning} model"
    real = preprocessing.open_preprocessed(run).images

    def draw(rows: pd.DataFrame, conditions: np.ndarray) -> torch.Tensor:
        others = sorted(set(rows["fold"]) - {fold})
        if others:  # whoever their patients are
            raise ValueError(
                f"{origin}: expected those of its own fold {fold}, found some drawn for fold"
                f" {', '.join(map(str, others))}; draw them from that fold's training patients."
            )
        check_sources(real, fold, rows, origin)
        import torch

        given = torch.from_numpy(conditions), rows["seed"].tolist(), shape
        return ldm.sampler.sample(denoiser, schedule, *given, **how)

    return draw


# ---------------------------------------------------------------- what is there


def open_synthetic(run: Run, conditioning: str, fold: int, kind: str = "synthetic", balance: str = "none") -> Synthetic:
    """Open a set of one model and fold.

    Raises
    ------
    ValueError
        The set is not made, was made with another split or other settings, belongs to another fold, or has a source
        patient who is held out in this fold. A set that serves every fold is taken for the one asked for.
    """
    unit = synthetic_unit(run, conditioning, fold, kind, balance)
    if is_shared(conditioning):
        table = unit.require().load_table("table.csv").assign(source_image="", fold=fold)
        table["synthetic_id"] = [f"{conditioning}_f{fold}_{i:05d}" for i in table["index"]]
        split = preprocessing.digest_of(preprocessing.open_preprocessed(run).images)
        return Synthetic(unit.load_array("images.npy", mmap=True), table, None, unit, split)
    split = (artifacts.read_manifest(unit.path) or {}).get("split")
    real = preprocessing.open_preprocessed(run).images
    preprocessing.assert_same_split(real, split, str(unit.path))
    table = unit.require().load_table("table.csv").astype({"source_image": object}).fillna({"source_image": ""})
    if set(table["fold"]) != {fold}:
        raise ValueError(f"{unit.path}: expected images of fold {fold}, found folds {sorted(set(table['fold']))}.")
    check_sources(real, fold, table, str(unit.path))
    maps = unit.load_array("conditions.npy", mmap=True) if conditioning == "semantic" else None
    return Synthetic(unit.load_array("images.npy", mmap=True), table, maps, unit, split)


def open_set(run: Run, name: str, fold: int) -> Synthetic:
    """Open a fold's set by its name, ``[prefix_]generator``; as `open_synthetic`."""
    return open_synthetic(**task_of(run, name, fold))


def _mix(run: Run, table: pd.DataFrame) -> dict[str, int]:
    """Images per class of a set, by the cohort's class names."""
    return {name: int((table["label"] == label).sum()) for label, name in enumerate(run.settings.cohort.class_names)}


def class_mix(run: Run) -> pd.DataFrame:
    """Images per class in every synthetic set: ``model, fold, healthy, fatty`` under the cohort's class names."""
    sets = [(name, fold) for name in generators(run) for fold in ldm.folds_of(run)]
    return pd.DataFrame([{"model": m, "fold": k, **_mix(run, open_set(run, m, k).table)} for m, k in sets])
