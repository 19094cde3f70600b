"""What stage 05 costs here: features, nearest frames and the search for copies, with the memory they take.

Part of ``make bench``; alone: ``python -m nafld_utils.quality_bench``. Images are random and read from a memory map,
as the study reads its sets, so that memory tells whether anything grows with their number.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, bench_records, feature_networks, memorization

N_FRAMES, N_PATIENTS = 440, 44  # training frames and patients of a fold of the published cohort


def table(n_images: int, side: int, device: Any) -> pd.DataFrame:
    """Seconds and growth of memory of every part, for `n_images` of `side` pixels against 440 training frames.

    Returns
    -------
    pandas.DataFrame
        ``work, images, seconds, images a second, memory grown (GiB), peak GiB``.
    """
    rng = np.random.default_rng(0)
    patients = np.arange(N_FRAMES) * N_PATIENTS // N_FRAMES
    frames = rng.integers(0, 256, (N_FRAMES, side, side)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (n_images, side, side))
        for start in range(0, n_images, 500):
            images[start : start + 500] = rng.integers(0, 256, images[start : start + 500].shape)
        images.flush()
        images = np.load(path, mmap_mode="r")
        found, _ = feature_networks.extract(images[:16], "lite0", device=device, batch_size=16)  # loads the network
        known = rng.normal(size=(N_FRAMES, found.shape[1])).astype(np.float32)
        made = rng.normal(size=(n_images, found.shape[1])).astype(np.float32)
        parts: dict[str, Callable[[], Any]] = {
            "EfficientNet-Lite0 features": lambda: feature_networks.extract(
                images, "lite0", device=device, batch_size=16
            ),
            "nearest frames by features": lambda: memorization.nearest_features(made, known, patients, device),
            "nearest frames by pixels": lambda: memorization.nearest_pixels(images, frames, patients, device),
        }
        return pd.DataFrame([_row(name, work, n_images) for name, work in parts.items()])


def _row(name: str, work: Callable[[], Any], n: int) -> dict[str, Any]:
    before, started = bench_records.peak_gib(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    row = {"work": name, "images": n, "seconds": seconds, "images a second": n / seconds}
    peak = bench_records.peak_gib()
    return {**row, "memory grown (GiB)": peak - before, "peak GiB": peak}


def record(found: pd.DataFrame, side: int) -> list[dict[str, Any]]:
    """Rows of the benchmark's record."""
    return [
        {"stage": "05", "what": row["work"], "per": f"{row['images']} images of {side} px", "seconds": row["seconds"]}
        | {"peak_gib": row["peak GiB"]}
        for row in found.to_dict("records")
    ]


def main() -> None:
    """Command line; writes ``bench_quality.csv`` and the record, and prints the table."""
    import torch

    parser = argparse.ArgumentParser(description="Measure stage 05 on this device.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    found = table(options.images, options.side, device)
    artifacts.save_table(options.out / "bench_quality.csv", found)
    seconds = time.perf_counter() - started
    bench_records.save(options.out, "quality", record(found, options.side), device, seconds)
    print(f"{device}, {torch.get_num_threads()} threads, {options.side} px")
    print(found.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
