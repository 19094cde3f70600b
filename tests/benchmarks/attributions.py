"""``python -m nafld_utils.explain_benchmark``: what SHAP of four images costs here, and how far it is from adding up.

The study's bound: four images within two minutes on two cores with EfficientNet-Lite0 at 256 pixels and the settings
of ``params/paper.yaml``, in less than 4 GiB. The weights of the tail are fresh, which changes no cost; the images are
simulated frames. Seconds of a shared machine say little, so the seconds of plain evaluations stand beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nafld_utils import backbones, bench_records, engine, explain, params, phantom, preprocess, trial

MOST_SECONDS, MOST_GIB = 120.0, 4.0
NETWORK = "tf_efficientnet_lite0"


def pictures(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Simulated frames as the study crops them, one a patient: ``(n, size, size)`` uint8."""
    frames = [phantom.simulate_patient(seed, i, 40.0 * (i % 2), 1)[0][0] for i in range(n)]
    crops = [preprocess.extract_crop(frame) for frame in frames]
    return np.stack([preprocess.resize_box(crop, preprocess.whole_box(crop), size) for crop in crops])


def measure(size: int, n_images: int, n_background: int, n_samples: int, device: Any = "cpu") -> dict[str, Any]:
    """Cost of one explanation.

    Parameters
    ----------
    size : int
        Pixels a side.
    n_images, n_background, n_samples : int
        As in section ``shap`` of the settings.
    device : torch.device or str

    Returns
    -------
    dict
        ``seconds`` of the attributions, library imports excluded; ``evaluations`` (as many forward passes alone, for
        comparison); ``peak_gib`` (largest memory of this process so far, of the GPU where there is one);
        ``additivity_error`` (share of the log-odds to be explained).
    """
    prefix, tail = backbones.split(backbones.load(NETWORK, "bundled"), NETWORK)
    classifier = explain.GreyClassifier(prefix, trial.fresh_tail(tail, 0), NETWORK)
    images = pictures(n_images + n_background, size)
    images, background = images[:n_images], images[n_images:]
    explain.attributions(classifier, background, images[:1], 2, 0, device)  # imports and warm-up
    started = time.perf_counter()
    values = explain.halves(classifier, background, images, n_samples, 0, device).mean(axis=0)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    explain.log_odds(classifier, images[np.arange(n_images * n_samples) % n_images], device)
    plain = time.perf_counter() - started
    outputs, base = (
        explain.log_odds(classifier, images, device),
        explain.base_value(classifier, background, device),
    )
    error = explain.missing_share(explain.additivity(values, outputs, base))
    return {"seconds": seconds, "evaluations": plain, "peak_gib": peak_gib(device), "additivity_error": error}


def peak_gib(device: Any = "cpu") -> float:
    """Largest memory so far, in GiB: of the GPU that computes, else of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return bench_records.peak_gib()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the paper's settings, print and record, and return 1 where the study's bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.explain_benchmark", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--samples", type=int, default=None, help="draws an image; default: the paper profile's")
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    settings = params.load("paper")
    chosen, device = settings.shap, engine.device(settings.engine)
    n_samples = options.samples or chosen.n_samples
    with engine.compute_threads(engine.cores()):
        found = measure(options.size, 4, chosen.n_background, n_samples, device)
    print(
        f"SHAP of 4 images, {NETWORK}, {options.size} px, {n_samples} draws, {device}, {engine.cores()} cores:"
        f" {found['seconds']:.1f} s ({found['seconds'] / found['evaluations']:.1f} times as many evaluations),"
        f" peak {found['peak_gib']:.2f} GiB, additivity error {100 * found['additivity_error']:.0f} %"
    )
    error = (
        f"additivity error {100 * found['additivity_error']:.0f} %, bound {MOST_SECONDS:.0f} s and {MOST_GIB:.0f} GiB"
    )
    per = f"four images of {options.size} px, {n_samples} draws; {error}"
    row = {"stage": "07", "what": "SHAP", "per": per, "seconds": found["seconds"], "peak_gib": found["peak_gib"]}
    bench_records.save(options.out, "shap", [row], device, time.perf_counter() - started, arguments, engine.cores())
    within = found["seconds"] <= MOST_SECONDS and found["peak_gib"] < MOST_GIB
    print(f"bound: {MOST_SECONDS:.0f} s, {MOST_GIB:.0f} GiB: {'kept' if within else 'BROKEN'}")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
