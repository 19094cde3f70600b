"""Makes the autoencoder shipped with the package: ``python -m nafld_utils.shipped`` (about 40 minutes on two cores).

It sees simulated patients of seeds 9000 and above only, which no profile uses, so it stands to every cohort of this
study as the paper's autoencoder, trained on OpenImages, stands to the liver cohort.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from nafld_utils import autoencoder, backbones, params, phantom, preprocess
from nafld_utils.artifacts import replacing, save_json, unit_seed

FIRST_SEED = 9000


def training_images(n_patients: int, image_size: int, crops: int, seed: int = FIRST_SEED) -> np.ndarray:
    """Random resized crops of simulated frames as the demo's stage 02 makes them.

    Returns
    -------
    numpy.ndarray, shape (n_patients * 2 * crops, image_size, image_size), uint8
    """
    settings = params.load("demo", {"preprocess.image_size": image_size}).preprocess
    cohort = phantom.simulate(n_patients, seed, n_frames=2)
    pictures = []
    for i, frame in enumerate(cohort.pixels):
        crop = preprocess.extract_crop(frame, settings.threshold, settings.closing_radius, settings.crop_size)
        rng = np.random.default_rng(unit_seed(seed, i))
        for _ in range(crops):
            box = preprocess.random_box(crop.shape, settings.crop_scale, settings.crop_ratio, rng)
            pictures.append(preprocess.resize_box(crop, box, image_size))
    return np.stack(pictures)


def train(images: np.ndarray, steps: int, perceptual_weight: float, seed: int = FIRST_SEED) -> autoencoder.FirstStage:
    """Train the small autoencoder; prints its progress."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = autoencoder.build_tiny()
    features = autoencoder.perceptual_features(backbones.load("tf_efficientnet_lite2", "bundled"))
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step}/{steps}, loss {loss:.4f}, {time.monotonic() - started:.0f} s", flush=True)

    stage, _ = autoencoder.train_tiny(
        images,
        model,
        features,
        (unit_seed(seed, "shipped", step) for step in range(steps)),
        steps,
        torch.device("cpu"),
        perceptual_weight=perceptual_weight,
        report=report,
    )
    return stage


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
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--perceptual-weight", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=autoencoder.SHIPPED)
    options = parser.parse_args()
    images = training_images(options.patients, options.image_size, options.crops)
    stage = train(images, options.steps, options.perceptual_weight)
    facts = {name: value for name, value in vars(options).items() if name != "out"}
    save(stage, options.out, {"command": "python -m nafld_utils.shipped", **facts, "first_seed": FIRST_SEED})


if __name__ == "__main__":
    main()
