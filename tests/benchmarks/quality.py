"""What stage 05 costs here: features and nearest training frames, with the memory they take.

Images are random and read from a memory map, as the study reads its sets, so that memory tells whether anything grows
with their number.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import memory
import numpy as np
import records
import torch

from nafld_utils import engine, networks

N_FRAMES, N_PATIENTS = 440, 44  # training frames and patients of a fold of the published cohort


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Seconds and memory of every part, for `options.images` of `options.side` pixels against 440 training frames."""
    rng, n, side = np.random.default_rng(0), options.images, options.side
    patients = np.arange(N_FRAMES) * N_PATIENTS // N_FRAMES
    frames = rng.integers(0, 256, (N_FRAMES, side, side)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, side, side))
        for start in range(0, n, 500):
            images[start : start + 500] = rng.integers(0, 256, images[start : start + 500].shape)
        images.flush()
        images = np.load(path, mmap_mode="r")
        extract = functools.partial(networks.extract, kind="lite0", device=device, batch_size=16)
        found, _ = extract(images[:16])  # loads the network
        known = rng.normal(size=(N_FRAMES, found.shape[1])).astype(np.float32)
        made = rng.normal(size=(n, found.shape[1])).astype(np.float32)
        parts: dict[str, Callable[[], Any]] = {
            "EfficientNet-Lite0 features": lambda: extract(images),
            "nearest frames by features": lambda: networks.nearest_features(made, known, patients, device),
            "nearest frames by pixels": lambda: networks.nearest_pixels(images, frames, patients, device),
        }
        for name, work in parts.items():
            before = memory.peak_gib()
            seconds = engine.timed(work, device, warm=0)
            peak = memory.peak_gib()
            per = f"{n} images of {side} px; memory grown by {peak - before:.2f} GiB"
            row = {"stage": "05", "what": name, "per": per, "seconds": seconds, "a_second": n / seconds}
            yield {**row, "peak_gib": peak}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="Measure stage 05 on this device.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256, help="pixels per side")
    return records.run("quality", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
