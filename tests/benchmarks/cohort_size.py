"""What a cohort of more patients costs.

Simulated cohorts of several sizes are written as folders, then stages 01 and 02, the features of stage 05 and the
feature cache of stage 06 are made of their real images on the CPU, each in a process of its own, whose peak memory
counts. How cost grows is read from processor seconds, which other work on the machine changes little; a power of 1 of
the images is linear. The full measurement takes ten frames per patient (``--frames 10``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pandas as pd
import records
import torch

from nafld_utils import artifacts, engine
from nafld_utils.artifacts import Run

BACKBONE = "tf_efficientnet_lite0"  # bundled: nothing is downloaded
SEED = 31_000  # far from the seeds of other simulated cohorts
SIMULATOR = "simulating the cohort"
STEPS = {  # what is measured and its stage
    SIMULATOR: "-",
    "reading and checking the cohort": "01",
    "preprocessing": "02",
    "features of the real images": "05",
    "feature cache of the real images": "06",
}
BOUND, BOUND_GIB = ("01", "02"), 2.0  # the stages whose memory is bounded
MOST_EXPONENT = 1.25  # Choice: linear is 1; 1.10 was measured for a step of seconds beside other work
MOST_GROWTH_GIB = 0.25  # Choice: flat, but for a page here and there; 0.08 was measured from 55 patients to 500
COLUMNS = ("step", "patients", "images", "seconds", "cpu_seconds", "peak_gib")


def _call(run: Run, step: str, folder: Path, n_patients: int, n_frames: int) -> Callable[[], Any]:
    """The call of one step; what it imports and the networks that it reads are there before it is timed."""
    stage = STEPS[step]
    if step == SIMULATOR:
        from nafld_utils.cohort import simulation

        return lambda: simulation.write_folder(folder, n_patients, SEED, n_frames)
    if stage in ("01", "02"):
        from nafld_utils import cohort, preprocessing

        return functools.partial(cohort.build_cohort if stage == "01" else preprocessing.build_preprocessed, run)
    blank, device = np.zeros((1, 64, 64), np.uint8), engine.device(run.settings.engine)
    if stage == "06":
        from nafld_utils.sweep import prefix_features, training

        training.prefix_features(prefix_features.network(BACKBONE, "bundled", "paper")[0], blank, BACKBONE, device)
        return lambda: prefix_features.make_features(run, BACKBONE, "real")
    from nafld_utils import networks, sampling
    from nafld_utils.sampling import feature_units

    networks.extract(blank, "lite0", device=device)
    return lambda: feature_units.make_features(run, "lite0", sampling.REAL)


def measure_step(root: str, profile: str, step: str, n_patients: int, n_frames: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory (GiB) of one step in this process, which should be a fresh one."""
    os.environ["NAFLD_ROOT"] = root
    folder = Path(root) / "cohort"
    changes = {"cohort.source": "file", "cohort.path": str(folder), "cohort.frames_per_patient": None}
    changes |= {"engine.mode": "serial", "engine.device": "cpu"}
    changes |= {"sweep.backbones": [BACKBONE], "sweep.weights": "bundled"}
    run = artifacts.open_run(profile, changes)
    engine.use_threads(run.settings.engine.threads)
    call = _call(run, step, folder, n_patients, n_frames)
    started, before = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - before, memory.peak_gib()


def measure_size(profile: str, n_patients: int, n_frames: int) -> Iterator[dict[str, Any]]:
    """Cost of every step for a cohort of one size, dicts of `COLUMNS`."""
    with _scratch() as root:
        for step in STEPS:
            # one process per step: its peak memory is its own
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(measure_step, root, profile, step, n_patients, n_frames).result()
            yield dict(zip(COLUMNS, (step, n_patients, n_patients * n_frames, *found), strict=True))


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A work folder of this process, gone afterwards; what killed ones left goes first, since it may be gigabytes."""
    path = artifacts.work_root() / "artifacts" / "bench-size"
    artifacts.remove_orphans(path.parent, f".{path.name}.*.tmp")
    folder = path.with_name(f".{path.name}.{artifacts.locks.unique_ending()}.tmp")
    folder.mkdir(parents=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cost_row(cost: dict[str, Any]) -> dict[str, Any]:
    """A record's row of one step and size; ``broken`` where the step needs more memory than it may."""
    stage, what, peak = STEPS[cost["step"]], cost["step"], cost["peak_gib"]
    per = f"{cost['patients']} patients, {cost['images']} images; processor {cost['cpu_seconds']:.1f} s"
    row = {"stage": stage, "what": what, "per": per, "seconds": cost["seconds"], "peak_gib": peak}
    if stage in BOUND and peak > BOUND_GIB:
        row["broken"] = f"stage {stage}, {what}: held {peak:.2f} GiB, expected at most {BOUND_GIB:g}."
    return row


def growth(table: pd.DataFrame) -> records.Rows:
    """How each step of a table of `COLUMNS` grows, as rows; ``broken`` where that is beyond linear.

    The exponent is of processor seconds as a power of the number of images, least squares in logarithms; memory is
    compared between the smallest and the largest size.
    """
    for step, part in table.groupby("step", sort=False):
        part, stage = part.sort_values("images"), STEPS[step]
        first, last = part.iloc[0], part.iloc[-1]
        exponent = np.polyfit(np.log(part["images"]), np.log(part["cpu_seconds"]), 1)[0]
        grown = last["peak_gib"] - first["peak_gib"]
        per = f"{first['images']} to {last['images']} images: processor seconds grow as images to the power"
        per += f" {exponent:.2f}, memory by {grown:.2f} GiB"
        broken = []
        if grown > MOST_GROWTH_GIB:
            broken.append(f"held {grown:.2f} GiB more for the largest cohort, expected at most {MOST_GROWTH_GIB:g}")
        if exponent > MOST_EXPONENT:
            again = "expected 1; measure again with nothing beside it"
            broken.append(f"grows as images to the power {exponent:.2f}, {again}")
        row = {"stage": stage, "what": step, "per": per, "seconds": last["seconds"], "peak_gib": last["peak_gib"]}
        sentence = f"stage {stage}, {step}: {'; '.join(broken)}."
        yield {**row, "broken": sentence} if broken and step != SIMULATOR else row


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Rows of every size and step, then how each step grows; `device` is the CPU."""
    costs = []
    for n_patients in sorted(set(options.patients)):
        for cost in measure_size(options.profile, n_patients, options.frames):
            costs.append(cost)
            yield cost_row(cost)
    if len(set(options.patients)) > 1:
        yield from growth(pd.DataFrame(costs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`; returns 1 where a step breaks its bounds."""
    parser = argparse.ArgumentParser(description="Seconds and memory of stages against the size of the cohort.")
    parser.add_argument("--patients", type=int, nargs="+", default=[55, 200, 500], help="sizes of the cohort")
    parser.add_argument("--frames", type=int, default=2, help="frames per patient; the full measurement takes 10")
    parser.add_argument("--profile", default="demo", help="whose preprocessing is measured")
    return records.run("cohort_size", parser, measure, arguments, on_cpu=True)


if __name__ == "__main__":
    raise SystemExit(main())
