"""One GPU, half an hour: ``python -m nafld_utils.gpu_study --part 1`` (then 2, then 3), each within ten minutes.

Part 1 measures both networks of the paper's profile. Part 2 runs one fold of the semantic model on the cohort whole:
a VQ-f4 first stage trained on the fold's training patients, 20,000 steps, the synthetic set, its distances to held-out
patients and its nearest training images. Part 3 does the same for the class model with a KL-f8 first stage. Units
resume where an earlier call stopped, so a part that ran out of time is called again. What is worth keeping is written
to ``--out``: tables, curves, features and a grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nafld_utils import artifacts, backbones, benchmarks, engine, feature_networks, graph, quality
from nafld_utils.artifacts import Run, save_array, save_table
from nafld_utils.stages import comparison, cost, first_stages, ldm, prepare, samples

KINDS = {2: ("semantic", "vq", 4), 3: ("class", "kl", 8)}


def study(part: int, data: str | None, changes: dict[str, Any]) -> Run:
    """The run of part 2 or 3: the paper's profile, first fold, one model, a first stage trained on the fold."""
    name, kind, factor = KINDS[part]
    chosen = {
        "run": "gpu-study",
        "cohort.path": data,
        "ldm.folds": [0],
        "ldm.balance": ["none"],
        "ldm.conditionings": [name],
        "sampling.n_images": 330,
        "sampling.scheduler": "dpmsolver++",
        "sampling.steps": 50,
        "sampling.eta": 0.0,
        f"autoencoder.{name}.source": "train",
        f"autoencoder.{name}.kind": kind,
        f"autoencoder.{name}.factor": factor,
        f"autoencoder.{name}.train_steps": 3000,
        "engine.compile": True,
    }
    return artifacts.open_run("paper", {**chosen, **changes})


def fold(run: Run, out: Path) -> None:
    """Train, draw and judge one model on the first fold."""
    prepare.build_cohort(run)
    prepare.build_preprocessed(run)
    (task,) = ldm.tasks(run)
    for step, act in (
        ("first stage", first_stages.train_autoencoder),
        ("latents", first_stages.make_latents),
        ("denoiser", ldm.train_ldm),
        ("synthetic set", samples.make_set),
    ):
        print(f"{task['conditioning']}: {step}", flush=True)
        act(**task)
    name = task["conditioning"]
    lost = first_stages.reconstruction_table(run, name)
    save_table(out / f"{name}_reconstruction.csv", lost)
    save_table(out / f"{name}_curve.csv", ldm.curves(run))
    save_table(out / f"{name}_cost.csv", cost.estimate(run))
    benchmarks.show(f"{name}_distances", distances(run, out), out)
    comparison.compare(run, name)
    benchmarks.show(f"{name}_samplers", comparison.build(run), out)
    made = samples.open_synthetic(**task)
    save_array(out / f"{name}_grid.npy", made.images[:36])


def distances(run: Run, out: Path) -> pd.DataFrame:
    """Frechet and kernel distance of Lite0 features to held-out patients, and how near samples come to training images.

    Returns
    -------
    pandas.DataFrame
        ``set, frechet, kernel, nearest`` (median distance to the nearest training image, in features), for the samples,
        for reconstructions of held-out images against those images (the first stage's bound; nearest of the held-out
        images themselves) and for real training images (the floor; nearest image of another patient).
    """
    (task,) = ldm.tasks(run)
    data, device = prepare.open_preprocessed(run), str(engine.device(run.settings.engine))
    network = backbones.load(feature_networks.LITE0)

    def features(images: np.ndarray) -> np.ndarray:
        return backbones.features(network, np.ascontiguousarray(images), feature_networks.LITE0, device)

    held = data.images["fold"].to_numpy() == task["fold"]
    rows, copies = first_stages.reconstructions(**task)
    real, whole = features(data.pool[:, 0]), features(data.resized[rows])
    made = features(samples.open_synthetic(**task).images)
    save_array(out / f"{task['conditioning']}_features.npy", made.astype(np.float16))
    patients = data.images["patient_id"].to_numpy()[~held]
    apart = torch.cdist(torch.from_numpy(real[~held]), torch.from_numpy(real[~held])).numpy()
    apart[patients[:, None] == patients[None]] = np.inf
    within = quality.nearest_distance(whole, real[~held], 1)
    sets = {
        "synthetic": (made, real[held], quality.nearest_distance(made, real[~held], 1)),
        "reconstructions of held-out images": (features(copies), whole, within),
        "real training images": (real[~held], real[held], apart.min(1)),
    }
    found = []
    for label, (a, b, nearest) in sets.items():
        kernel = quality.kernel_distance(a, b, subset_size=min(50, len(a), len(b)))
        row = {"set": label, "frechet": quality.frechet_distance(a, b), "kernel": kernel}
        found.append({**row, "nearest": float(np.median(nearest))})
    return pd.DataFrame(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Benchmarks and one whole fold of each model on one GPU.")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--data", help="the real cohort's .mat file")
    parser.add_argument("--set", default="", help='settings changed, e.g. "ldm.steps=100"')
    parser.add_argument("--out", type=Path, default=artifacts.work_root() / "reports" / "gpu-study")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == 1:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for compiled in (False, True):
            profile = "paper" if device.type == "cuda" else "demo"
            found = benchmarks.table(profile, device, compiled=compiled)
            print(f"matrix rate {found.attrs['matrix rate'] / 1e12:.1f} TFLOP/s, compiled: {compiled}", flush=True)
            benchmarks.show("bench_compiled" if compiled else "bench_eager", found, options.out)
        return
    fold(study(options.part, options.data, graph.parse_overrides(options.set)), options.out)


if __name__ == "__main__":
    main()
