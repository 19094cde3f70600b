"""Stage 03, first half: autoencoders and latents, one unit a (model, fold) or one for all. Opens and writes files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, ldm, networks, preprocessing
from nafld_utils.artifacts import Run, Unit, file_sha256, read_manifest, remembered, save_table, unit_seed

torch, autoencoder = engine.Later("torch"), engine.Later("nafld_utils.ldm.autoencoder")
trainings, pools = engine.Later("nafld_utils.ldm.autoencoder_training"), engine.Later("nafld_utils.ldm.latent_pools")
REVISION = ("stages.first_stages", 1)
SHIPPED = Path(__file__).parent / "weights" / "autoencoder_tiny_f8.safetensors"
# The settings that an autoencoder of each source depends on.
READ = {
    "shipped": (),
    "hub": ("hub_id", "subfolder", "revision", "kind", "scale"),
    "path": ("path", "kind", "scale"),
    "ldm_checkpoint": ("path", "sha256", "kind", "factor", "scale"),
    "train": ("kind", "factor", "base_channels", "train_steps"),
    "random": ("kind", "factor", "base_channels", "scale"),
}


def folds_of(run: Run) -> list[int]:
    """Folds whose models are trained."""
    wanted = run.settings.ldm.folds
    return list(range(run.settings.folds.n_splits)) if wanted is None else list(wanted)


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per (model, fold)."""
    return [{"run": run, "conditioning": c, "fold": k} for c in run.settings.ldm.conditionings for k in folds_of(run)]


def autoencoder_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per autoencoder that is trained here; none where every model's is shipped or pretrained."""
    trained = [task for task in tasks(run) if _trained(run, task["conditioning"])]
    return list({autoencoder_unit(**task).path: task for task in reversed(trained)}.values())[::-1]


def latent_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per distinct set of latents: models and folds that share an autoencoder share them."""
    return list({latents_unit(**task).path: task for task in reversed(tasks(run))}.values())[::-1]


def units(run: Run) -> list[Unit]:
    """Every unit of this half."""
    return [autoencoder_unit(**t) for t in autoencoder_tasks(run)] + [latents_unit(**t) for t in latent_tasks(run)]


# ---------------------------------------------------------------- first stages


def _trained(run: Run, conditioning: str) -> bool:
    return run.settings.section(f"autoencoder.{conditioning}")["source"] == "train"


def owner(run: Run, conditioning: str) -> str:
    """Model whose autoencoder this one uses: two that read the same settings share one."""
    both = run.settings.section("autoencoder")
    mine, other = ([s[key] for key in ("source", *READ[s["source"]])] for s in both.values())
    return "semantic" if mine == other else conditioning


def shared(run: Run) -> dict[str, list[str]]:
    """Distinct autoencoders of a run: the first model that uses one, and all that do."""
    users: dict[str, list[str]] = {}
    for name in run.settings.ldm.conditionings:
        users.setdefault(owner(run, name), []).append(name)
    return {names[0]: names for names in users.values()}


def origins(run: Run) -> pd.DataFrame:
    """Where the weights of every distinct autoencoder come from, once its latents are made.

    Returns
    -------
    pandas.DataFrame
        ``models, source, kind, parameters, origin`` (hub repository or path), ``commit`` (of the hub's repository, as
        it was resolved), ``weights`` (first digits of their SHA-256, with the latent scaling).
    """
    rows = []
    for name, users in shared(run).items():
        settings = run.settings.section(f"autoencoder.{name}")
        made = (read_manifest(latents_unit(run, name, folds_of(run)[0]).require().path) or {})["autoencoder"]
        where = {"hub": ("hub_id", "subfolder"), "path": ("path",), "ldm_checkpoint": ("path",)}
        origin = "/".join(settings[key] for key in where.get(settings["source"], ()) if settings[key])
        row = {"models": " and ".join(users), "source": settings["source"], "kind": made["kind"]}
        row |= {"parameters": made["parameters"], "origin": origin, "commit": made.get("commit") or ""}
        rows.append({**row, "weights": made["fingerprint"][:12]})
    return pd.DataFrame(rows)


def _place(run: Run, conditioning: str, fold: int) -> str:
    """Folder of what depends on the autoencoder: one per fold where it is trained on the fold, else shared."""
    return f"fold{fold}" if _trained(run, conditioning) else "shared"


@remembered
def autoencoder_unit(run: Run, conditioning: str, fold: int) -> Unit:
    """Unit of an autoencoder trained on a fold's training patients (``source: train``)."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    read = {**{key: settings[key] for key in READ["train"]}, "seed": run.settings.seed}
    if settings["kind"] != "tiny":  # whose phases are those of its REVISION: what is trained already stays valid
        read["phases"] = phases(settings["kind"], settings["train_steps"])
    return run.unit(
        "autoencoder",
        owner(run, conditioning),
        f"fold{fold}",
        settings=read,
        inputs=[preprocessing.preprocess_unit(run), file_sha256(SHIPPED)],
        modules=["autoencoder", "autoencoder_training", "backbones"],
    )


def _identity(run: Run, conditioning: str, fold: int) -> Unit | str:
    """What the latents of a model depend on: a unit, a file's content, or a hub name with its revision."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "train":
        return autoencoder_unit(run, conditioning, fold)
    if settings["source"] == "shipped":
        return file_sha256(SHIPPED)
    if settings["source"] == "path":
        folder = Path(settings["path"]).expanduser()
        weights = [
            path for path in sorted(folder.rglob("*.safetensors")) if not artifacts.is_litter(path.relative_to(folder))
        ]
        if not weights:
            raise ValueError(
                f"autoencoder.{conditioning}.path {settings['path']}: expected a diffusers folder with safetensors"
                " weights, found none; correct the path."
            )
        return "-".join(file_sha256(path)[:16] for path in weights)
    seed = [run.settings.seed] if settings["source"] == "random" else []
    return "/".join(map(str, [*(settings[key] for key in ("source", *READ[settings["source"]])), *seed]))


def _network(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("kind", "factor", "base_channels")}


def first_stage(run: Run, conditioning: str, fold: int) -> autoencoder.FirstStage:
    """The autoencoder of a model, from where ``autoencoder.<model>.source`` says."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    source = settings["source"]
    if source == "shipped":
        return autoencoder.load_shipped()
    if source == "train":
        weights, _ = artifacts.load_weights(
            autoencoder_unit(run, conditioning, fold).require().file("autoencoder.safetensors")
        )
        return autoencoder.from_tensors(weights, **_network(settings))
    if source == "random":
        return autoencoder.untrained(**_network(settings), scale=settings["scale"], seed=run.settings.seed)
    load = ldm.compvis_checkpoint.load if source == "ldm_checkpoint" else autoencoder.load_pretrained
    return load(**{key: settings[key] for key in READ[source]})


def shape_of_latents(run: Run, conditioning: str) -> tuple[int, int, int]:
    """Channels, height and width of a model's latents; an autoencoder that is not trained yet tells it as well."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "train":
        stage = autoencoder.untrained(**_network(settings), scale=1.0)
    else:
        stage = first_stage(run, conditioning, folds_of(run)[0])
    return autoencoder.latent_shape(stage, run.settings.preprocess.image_size)


def fingerprint(run: Run, conditioning: str, fold: int) -> str | None:
    """`autoencoder.fingerprint` of a model's autoencoder, None for one that is still to be trained."""
    unit = latents_unit(run, conditioning, fold)
    manifest = read_manifest(unit.path) or {}
    if manifest.get("hash") == unit.hash:
        return manifest["autoencoder"]["fingerprint"]
    if _trained(run, conditioning) and not autoencoder_unit(run, conditioning, fold).done():
        return None
    return autoencoder.fingerprint(first_stage(run, conditioning, fold))


def phases(kind: str, steps: int) -> dict[str, int]:
    """Steps of each phase of an autoencoder's training.

    Choice: a fifth of the steps for the polish, whose steps see four times the pixels or more. The small kind starts
    from the shipped weights, which know structure; the published architectures share the rest evenly.
    """
    polish = steps // 5
    if kind == "tiny":
        return {"texture": steps - polish, "polish": polish}
    structure = (steps - polish) // 2
    return {"structure": structure, "texture": steps - polish - structure, "polish": polish}


def train_autoencoder(run: Run, conditioning: str, fold: int) -> None:
    """Train an autoencoder on the fold's training patients; does nothing when the unit is done.

    Choice: the small kind starts from the shipped weights, which saw simulated frames only, so no held-out patient
    enters; the published architectures start from nothing.
    """
    settings = run.settings.section(f"autoencoder.{conditioning}")
    unit = autoencoder_unit(run, conditioning, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    data = preprocessing.open_preprocessed(run)
    images = data.pool[data.images["fold"].to_numpy() != fold]
    images = np.ascontiguousarray(images.reshape(-1, *images.shape[2:]))
    model, planned = before_training(run, conditioning, fold), phases(settings["kind"], settings["train_steps"])
    with unit.writing(device=str(device)) as folder:
        stage, curve = train_phases(run, model, settings["kind"], images, planned, fold, device)
        artifacts.save_weights(folder / "autoencoder.safetensors", autoencoder.to_tensors(stage))
        save_table(folder / "curve.csv", curve)


def before_training(run: Run, conditioning: str, fold: int) -> torch.nn.Module:
    """The network that `train_autoencoder` starts from."""
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["kind"] == "tiny":
        return autoencoder.load_shipped().model
    seed = unit_seed(run.settings.seed, "autoencoder", fold)
    return autoencoder.untrained(**_network(settings), scale=1.0, seed=seed).model


def train_phases(
    run: Run,
    model: torch.nn.Module,
    kind: str,
    images: np.ndarray,
    planned: dict[str, int],
    fold: int,
    device: torch.device,
    report: Callable[[int, float], None] | None = None,
) -> tuple[autoencoder.FirstStage, pd.DataFrame]:
    """Train a network of a kind in place, through phases of so many steps; the first stage and its loss curve.

    `run` gives seed and name, `images` are training patients' crops, (N, S, S) uint8, `planned` is from `phases`.
    `report` takes every step and its loss; None shows them with an estimate of the time left.
    """
    rates = {name: min(5e-4, rate) for name, rate in trainings.LEARNING_RATE.items()}
    chosen = [trainings.Phase(name, n, learning_rate=rates[name]) for name, n in planned.items() if n]

    def seed_of(phase: str, step: int) -> int:
        return unit_seed(run.settings.seed, "autoencoder", fold, phase, step)

    def meter(phase: trainings.Phase) -> Callable[[int, float], None]:
        return report or engine.StepMeter(f"autoencoder fold {fold}, {phase.name}", phase.steps)

    stage, curve = trainings.train_phases(images, model, kind, chosen, seed_of, device, meter)
    return stage, pd.DataFrame(curve)


# ---------------------------------------------------------------- latents


@remembered
def latents_unit(run: Run, conditioning: str, fold: int) -> Unit:
    """Unit of the encoder moments of the stored crops."""
    model = owner(run, conditioning)
    return run.unit(
        "latents",
        model,
        _place(run, model, fold),
        settings={"kind": run.settings.section(f"autoencoder.{model}")["kind"]},
        inputs=[preprocessing.preprocess_unit(run), _identity(run, model, fold)],
        modules=["autoencoder", "backbones", "stages.first_stages"],
    )


def make_latents(run: Run, conditioning: str, fold: int) -> None:
    """Encode every stored crop, and reconstruct held-out images to measure what the autoencoder loses.

    An autoencoder that was trained on a fold reconstructs that fold's held-out images, a shared one every image.
    """
    unit = latents_unit(run, conditioning, fold)
    if unit.done():
        return
    device = engine.device(run.settings.engine)
    data = preprocessing.open_preprocessed(run)
    stage = first_stage(run, conditioning, fold)
    n, k, size, _ = data.pool.shape
    table = data.images[["image_id", "patient_id", "label", "fold"]].copy()
    rows = np.flatnonzero(table["fold"] == fold) if _trained(run, conditioning) else np.arange(n)
    facts = {**autoencoder.describe(stage), "fingerprint": autoencoder.fingerprint(stage)}
    settings = run.settings.section(f"autoencoder.{conditioning}")
    if settings["source"] == "hub":
        file = str(Path(settings["subfolder"] or "") / "config.json")
        facts["commit"] = networks.hub_commit(settings["hub_id"], file, settings["revision"])
    with unit.writing(device=str(device), autoencoder=facts) as folder:
        moments = autoencoder.encode_images(stage, data.pool.reshape(n * k, size, size), device)
        originals = np.asarray(data.resized[rows])
        copies = autoencoder.reconstruct(stage, originals, device)
        table = table.iloc[rows].assign(row=rows, **autoencoder.reconstruction_error(originals, copies))
        artifacts.save_array(folder / "moments.npy", moments.reshape(n, k, *moments.shape[1:]))
        artifacts.save_array(folder / "reconstructions.npy", copies)
        save_table(folder / "reconstruction.csv", table)
        save_table(folder / "distance.csv", _distances(originals, copies, table["fold"].to_numpy(), str(device)))


def _distances(originals: np.ndarray, copies: np.ndarray, fold: np.ndarray, device: str) -> pd.DataFrame:
    """Lite0 Frechet distance of each fold's reconstructions to the images they are made of: ``fold, frechet, n``."""
    network = networks.load(networks.LITE0)
    real, made = (networks.features(network, images, networks.LITE0, device) for images in (originals, copies))
    rows = []
    for k in np.unique(fold):
        mine = fold == k
        distance = networks.frechet_distance(made[mine], real[mine]) if mine.sum() > 1 else float("nan")
        rows.append({"fold": int(k), "frechet": distance, "n": int(mine.sum())})
    return pd.DataFrame(rows)


def reconstruction_distance(run: Run, conditioning: str) -> pd.DataFrame:
    """What the autoencoder alone costs: ``fold, frechet, n``, held-out images against their reconstructions.

    EfficientNet-Lite0 features, equal numbers in a fold; no sample can be expected to come nearer to real images.
    """
    return _held_out(run, conditioning, "distance.csv")


def reconstruction_table(run: Run, conditioning: str) -> pd.DataFrame:
    """PSNR and SSIM of every image under an autoencoder that did not see its patient, each image once.

    ``image_id, patient_id, label, fold, row, psnr, ssim``; `row` is its row of the images table.
    """
    return _held_out(run, conditioning, "reconstruction.csv")


def _held_out(run: Run, conditioning: str, name: str) -> pd.DataFrame:
    """Rows of a table of the latents' units that belong to each unit's own held-out patients."""
    tables = {fold: latents_unit(run, conditioning, fold).load_table(name) for fold in folds_of(run)}
    return pd.concat([table[table["fold"] == fold] for fold, table in tables.items()], ignore_index=True)


def reconstructions(run: Run, conditioning: str, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of a fold's held-out images in the images table, and their reconstructions (n, S, S) uint8."""
    unit = latents_unit(run, conditioning, fold).require()
    table = unit.load_table("reconstruction.csv")
    held_out = np.flatnonzero(table["fold"] == fold)
    return table["row"].to_numpy()[held_out], unit.load_array("reconstructions.npy", mmap=True)[held_out]


def stored_pools(
    run: Run, conditioning: str, fold: int, stage: autoencoder.FirstStage, balance: str = "none"
) -> tuple[pools.LatentPool, pools.LatentPool]:
    """Training and held-out latents of a fold's stored crops with their conditions, whatever ``ldm.latents`` is.

    Raises
    ------
    ValueError
        The stored latents come from another autoencoder than `stage`.
    """
    data = preprocessing.open_preprocessed(run)
    unit = latents_unit(run, conditioning, fold).require()
    stored = (read_manifest(unit.path) or {}).get("autoencoder", {}).get("fingerprint")
    if stored != autoencoder.fingerprint(stage):
        raise ValueError(
            f"{unit.path}: expected latents of the autoencoder in force, found those of another one"
            f" ({str(stored)[:12]}); remove that folder and run stage 03 again."
        )
    moments = torch.from_numpy(np.asarray(unit.load_array("moments.npy")))
    labels = torch.from_numpy(np.array(data.images["label"], dtype=np.int64))
    conditions = torch.from_numpy(np.array(data.pool_maps)) if conditioning == "semantic" else labels
    train = torch.from_numpy(data.images["fold"].to_numpy() != fold)
    draw = stage.drawing_on_cpu().draw
    oversampled = labels[train] if balance == "oversample" else None
    training = pools.LatentPool(moments[train], conditions[train], draw, oversampled)
    return training, pools.LatentPool(moments[~train], conditions[~train], draw)


def latent_pools(
    run: Run, conditioning: str, fold: int, stage: autoencoder.FirstStage, balance: str = "none"
) -> tuple[pools.LatentPool | pools.FreshCrops, pools.LatentPool]:
    """What a model is trained on, as ``ldm.latents`` says, and the held-out latents of its fold (`stored_pools`).

    `stage` is on the CPU; on the training device where ``ldm.latents`` is ``on_the_fly``.
    """
    training, held_out = stored_pools(run, conditioning, fold, stage, balance)
    if run.settings.ldm.latents == "pool":
        return training, held_out
    data, own = preprocessing.open_preprocessed(run), (conditioning, run.settings.preprocess, stage, training.labels)
    rows = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    labels = torch.from_numpy(np.array(data.images["label"], dtype=np.int64))
    return pools.FreshCrops(data.crops, rows, labels, *own), held_out
