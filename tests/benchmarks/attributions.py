"""What SHAP of four images costs here, and how far it is from adding up.

The study's bound: four images within two minutes on two cores with EfficientNet-Lite0 at 256 pixels and the settings
of ``params/paper.yaml``, in less than 4 GiB. The weights of the tail are fresh, which changes no cost; the images are
simulated frames. Seconds of a shared machine say little, so the seconds of plain evaluations stand beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import memory
import numpy as np
import records
import torch

from nafld_utils import engine, explain, images, networks, params, phantom, sweep
from nafld_utils.explain import explainers

MOST_SECONDS, MOST_GIB = 120.0, 4.0
NETWORK = "tf_efficientnet_lite0"


def pictures(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Simulated frames as the study crops them, one per patient: ``(n, size, size)`` uint8."""
    frames = [phantom.simulate_patient(seed, i, 40.0 * (i % 2), 1)[0][0] for i in range(n)]
    crops = [images.extract_crop(frame) for frame in frames]
    return np.stack([images.resize_box(crop, images.whole_box(crop), size) for crop in crops])


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """One row: seconds of the attributions without imports and warm-up, memory, and what does not add up."""
    n_images, size = options.images, options.size
    chosen = params.load("paper").shap
    n_samples, n_background = options.samples or chosen.n_samples, options.background or chosen.n_background
    prefix, tail = networks.split(networks.load(NETWORK, "bundled"), NETWORK)
    classifier = networks.GreyClassifier(prefix, sweep.fresh_tail(tail, 0), NETWORK)
    images, background = np.split(pictures(n_images + n_background, size), [n_images])
    engine.use_threads(params.load("paper").engine.threads)
    explainers.attributions(classifier, background, images[:1], 2, 0, device)  # imports and warm-up
    values: list[np.ndarray] = []
    seconds = engine.timed(
        lambda: values.append(explainers.attributions(classifier, background, images, n_samples, 0, device)),
        device,
        warm=0,
    )
    repeated = images[np.arange(n_images * n_samples) % n_images]
    plain = engine.timed(lambda: explainers.log_odds(classifier, repeated, device), device, warm=0)
    outputs = explainers.log_odds(classifier, images, device)
    base = explainers.base_value(classifier, background, device)
    error = explain.missing_share(explainers.additivity(values[0], outputs, base))
    peak = memory.peak_gib(device)
    bound = f"{MOST_SECONDS:.0f} s and {MOST_GIB:.0f} GiB"
    per = f"{n_images} images of {size} px, {n_samples} draws; {seconds / plain:.1f} times as many evaluations alone;"
    per += f" additivity error {100 * error:.0f} %, bound {bound}"
    row = {"stage": "07", "what": f"SHAP of {NETWORK}", "per": per, "seconds": seconds, "peak_gib": peak}
    within = seconds <= MOST_SECONDS and peak < MOST_GIB
    yield row if within else {**row, "broken": f"expected at most {bound}, found {seconds:.0f} s and {peak:.2f} GiB."}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`; returns 1 where the study's bound is broken."""
    parser = argparse.ArgumentParser(description="Measure SHAP with the paper's settings on this device.")
    parser.add_argument("--images", type=int, default=4, help="images explained")
    parser.add_argument("--size", type=int, default=256, help="pixels per side")
    parser.add_argument("--samples", type=int, help="draws per image; default: the paper profile's")
    parser.add_argument("--background", type=int, help="background images; default: the paper profile's")
    return records.run("attributions", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
