"""How a run's diffusion models and their images differ from the paper's, in words. Opens no file.

Contract: what is compared is what a model or an image depends on; parts of a batch, checkpoints, logs, previews and the
precision of the arithmetic are not. A function returns what differs, an entry a matter; none is the paper's protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nafld_utils import params
from nafld_utils.artifacts import Run
from nafld_utils.ldm import autoencoder_units

TRAINING = (
    "latents",
    "init_from",
    "prediction",
    "min_snr_gamma",
    "train_timesteps",
    "steps",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "gradient_clip",
    "condition_dropout",
    "ema_decay",
)
SAMPLING = ("n_images", "scheduler", "steps", "eta", "guidance")
FIRST_STAGE = {"semantic": ("vq", 4), "class": ("vq", 8)}  # [paper]


def cohort(run: Run) -> list[str]:
    """What differs in the images that a run begins with."""
    found = ["simulated cohort"] * run.is_simulated + ["another cohort"] * run.is_foreign
    size = run.settings.preprocess.image_size
    return [*found, f"{size} px"] if size != params.load(params.BASE_PROFILE).preprocess.image_size else found


def models(run: Run, conditionings: Iterable[str], sampled: bool) -> list[str]:
    """What differs in models: folds, networks, training, autoencoders, and sampling where `sampled`."""
    paper, mine, found = params.load(params.BASE_PROFILE), run.settings, []
    folds, n_splits = autoencoder_units.folds_of(run), mine.folds.n_splits
    if (len(folds), n_splits) != (paper.folds.n_splits, paper.folds.n_splits):
        found.append(f"{len(folds)} of {n_splits} folds, not {paper.folds.n_splits}")
    for name in conditionings:
        network = paper.section(f"ldm.{name}")
        found += changes(f"another {name} network", mine.section(f"ldm.{name}"), network, network)
        found += _first_stage(mine.section(f"autoencoder.{name}"), paper.section(f"autoencoder.{name}"), name)
    found += changes("other training", mine.section("ldm"), paper.section("ldm"), TRAINING)
    return found + changes("other sampling", mine.section("sampling"), paper.section("sampling"), SAMPLING) * sampled


def changes(what: str, mine: Mapping[str, Any], paper: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """One entry with the values that are not those of the paper's profile, none where all are."""
    values = [f"{key} {mine[key]}" for key in keys if mine[key] != paper[key]]
    return [f"{what} ({', '.join(values)})"] if values else []


def _first_stage(mine: Mapping[str, Any], paper: Mapping[str, Any], name: str) -> list[str]:
    """What differs in an autoencoder; the paper's is a published VQ, from the hub or from its original checkpoint."""
    kind, factor = FIRST_STAGE[name]
    same = mine["kind"] == kind and mine["scale"] == 1.0
    if mine["source"] == "hub":
        same = same and all(mine[key] == paper[key] for key in ("hub_id", "subfolder"))
    else:
        same = same and mine["source"] == "ldm_checkpoint" and mine["factor"] == factor
    text = f"another {name} autoencoder (source {mine['source']}, kind {mine['kind']}, not the published VQ-f{factor})"
    return [] if same else [text]


def in_words(differences: list[str]) -> str:
    """``same_protocol`` of a claim: "yes", or "no: " and what differs."""
    return f"no: {'; '.join(differences)}" if differences else "yes"


_READINGS = {
    "tiny": "keeps structure and draws speckle anew: its speckle looks right and is never the same, so the error is"
    " high wherever there is texture, and PSNR speaks of texture more than of organs",
    "train": "was trained on the fold's training patients, at last to give texture its statistics rather than its"
    " place, so PSNR speaks of texture more than of organs",
    "random": "is untrained, for tests of the machinery: its images mean nothing",
    "ready": "was trained elsewhere to repeat its input place by place; where the error is bright, it loses what these"
    " images hold",
}


def reading(run: Run) -> list[str]:
    """One sentence per distinct autoencoder on what its reconstructions show, by where it comes from."""
    lines = []
    for name, users in autoencoder_units.shared(run).items():
        settings = run.settings.section(f"autoencoder.{name}")
        kind, source = settings["kind"], settings["source"]
        what = "random" if source == "random" else "tiny" if kind == "tiny" else source
        which = "The small autoencoder" if kind == "tiny" else f"The {kind.upper()} autoencoder"
        model = f"{' and '.join(users)} model{'s' * (len(users) > 1)}"
        lines.append(f"{which} of the {model} ({source}) {_READINGS.get(what, _READINGS['ready'])}.")
    return lines
