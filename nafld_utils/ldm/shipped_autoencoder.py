"""Makes the autoencoder shipped with the package: ``python -m nafld_utils.ldm.shipped_autoencoder`` (about half an
hour on two cores).

It sees simulated patients of seeds 9000 and above only, which no profile uses, so it stands to every cohort of this
study as the paper's autoencoder, trained on OpenImages, stands to the liver cohort.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nafld_utils import cohort, images, networks, params
from nafld_utils.artifacts import replacing, save_json, unit_seed
from nafld_utils.cohort import simulate
from nafld_utils.ldm import autoencoder, autoencoder_training
from nafld_utils.networks import LITE0, frechet_distance

FIRST_SEED = 9000


def training_images(n_patients: int, image_size: int, crops: int, seed: int = FIRST_SEED) -> np.ndarray:
    """Random resized crops, (n_patients * 2 * crops, S, S) uint8, of simulated frames as in the demo's stage 02."""
    settings = params.load("demo", {"preprocess.image_size": image_size}).preprocess
    cohort = simulate(n_patients, seed, n_frames=2)
    pictures = []
    for i, frame in enumerate(cohort.pixels):
        crop = images.extract_crop(frame, settings.threshold, settings.closing_radius, settings.crop_size)
        rng = np.random.default_rng(unit_seed(seed, i))
        for _ in range(crops):
            box = images.random_box(crop.shape, settings.crop_scale, settings.crop_ratio, rng)
            pictures.append(images.resize_box(crop, box, image_size))
    return np.stack(pictures)


def train(images: np.ndarray, steps: dict[str, int], seed: int = FIRST_SEED) -> autoencoder.FirstStage:
    """Train the small autoencoder through the phases in `steps`; prints its progress every hundred steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = autoencoder.build("tiny")

    def seed_of(phase: str, step: int) -> int:
        return unit_seed(seed, "shipped", phase, step)

    def printing(phase: autoencoder_training.Phase) -> Callable[[int, float], None]:
        started = time.monotonic()

        def report(step: int, loss: float) -> None:
            if step % 100 == 0:
                seconds = time.monotonic() - started
                print(f"{phase.name}: step {step}/{phase.steps}, loss {loss:.4f}, {seconds:.0f} s", flush=True)

        return report

    phases = [autoencoder_training.Phase(name, n) for name, n in steps.items()]
    return autoencoder_training.train_phases(images, model, "tiny", phases, seed_of, torch.device("cpu"), printing)[0]


def patch_pca(training: np.ndarray, images: np.ndarray, side: int = 8, components: int = 4) -> np.ndarray:
    """Images (M, S, S) uint8 rebuilt from the first principal components of the patches of `training` images.

    Four components of 8 x 8 pixels are as many numbers as the latents have.
    """

    def patches(some: np.ndarray) -> np.ndarray:
        n, k = len(some), some.shape[1] // side
        return some.reshape(n, k, side, k, side).transpose(0, 1, 3, 2, 4).reshape(-1, side * side).astype(np.float32)

    known = patches(training[:: max(1, len(training) // 100)])
    mean = known.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(known - mean, rowvar=False))
    axes = vectors[:, np.argsort(values)[-components:]]
    rebuilt = (patches(images) - mean) @ axes @ axes.T + mean
    k = images.shape[1] // side
    tiles = rebuilt.reshape(len(images), k, k, side, side).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(images.shape).round().clip(0, 255).astype(np.uint8)


def measure(stage: autoencoder.FirstStage, image_size: int = 128, n_patients: int = 60) -> pd.DataFrame:
    """What the autoencoder keeps of other simulated patients, beside patch PCA and beside still other patients.

    ``images, psnr`` (dB), ``ssim, frechet`` (EfficientNet-Lite0, to the images they were made from).
    """
    training, held_out, others = (
        training_images(n_patients, image_size, 1, FIRST_SEED + offset) for offset in (0, 3000, 4000)
    )
    network = networks.load(LITE0)
    real = networks.features(network, held_out, LITE0)
    sets = {
        "reconstructions": autoencoder.reconstruct(stage, held_out, torch.device("cpu")),
        "patch PCA": patch_pca(training, held_out),
        "other patients": others,
    }
    rows = []
    for name, group in sets.items():
        found = autoencoder.reconstruction_error(held_out, group) if name != "other patients" else {}
        row = {"images": name, **{key: float(np.mean(value)) for key, value in found.items()}}
        rows.append({**row, "frechet": frechet_distance(networks.features(network, group, LITE0), real)})
    return pd.DataFrame(rows)


def save(stage: autoencoder.FirstStage, path: Path, facts: dict[str, object]) -> None:
    """Write half-precision weights (under 2 MB) and, beside them, how they were made."""
    from safetensors.torch import save_file

    tensors = autoencoder.to_tensors(stage)
    halves = {n: t if n.startswith("latent_") else t.half() for n, t in tensors.items()}
    with replacing(path) as temporary:
        save_file(halves, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner reads
    save_json(path.with_suffix(".json"), facts)


def main() -> None:
    """Command line: simulate, train, save."""
    parser = argparse.ArgumentParser(description="Train the shipped autoencoder on simulated frames.")
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--structure-steps", type=int, default=1800)
    parser.add_argument("--texture-steps", type=int, default=2400)
    parser.add_argument("--polish-steps", type=int, default=500)
    parser.add_argument("--measure", action="store_true", help="train nothing, measure the shipped file on other seeds")
    parser.add_argument("--out", type=Path, default=autoencoder.SHIPPED)
    options = parser.parse_args()
    if options.measure:
        print(measure(autoencoder.load_shipped(options.out), options.image_size).round(3).to_string(index=False))
        return
    images = training_images(options.patients, options.image_size, options.crops)
    steps = {phase: getattr(options, f"{phase}_steps") for phase in autoencoder_training.PHASES}
    stage = train(images, steps)
    facts = {name: value for name, value in vars(options).items() if name not in ("out", "measure")}
    facts |= {"first_seed": FIRST_SEED, "phantom_revision": cohort.version()}
    save(stage, options.out, {"command": "python -m nafld_utils.ldm.shipped_autoencoder", **facts})


if __name__ == "__main__":
    main()
