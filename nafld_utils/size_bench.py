"""What a cohort of more patients costs: ``python -m nafld_utils.size_bench``, a part of ``make bench``.

Simulated cohorts of several sizes are written as folders, then stages 01 and 02, the features of stage 05 and the
feature cache of stage 06 are made of their real images on the CPU, each in a process of its own, whose peak memory
counts. How cost grows is read from processor seconds, which other work on the machine changes little; a power of 1 of
the images is linear. The full measurement, ten frames a patient::

    python -m nafld_utils.size_bench --frames 10
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, bench_records, engine, locks
from nafld_utils.artifacts import Run
from nafld_utils.figures.bench import BOUND_GIB

BACKBONE = "tf_efficientnet_lite0"  # bundled: nothing is downloaded
SEED = 31_000  # far from the seeds of other simulated cohorts
SIMULATOR, CACHE = "simulator", "06 feature cache"
STEPS = (SIMULATOR, "01", "02", "05 features", CACHE)
BOUND = ("01", "02")  # the stages whose memory is bounded by `BOUND_GIB`
MOST_EXPONENT = 1.25  # Choice: linear is 1; 1.10 was measured for a step of seconds beside other work
MOST_GROWTH_GIB = 0.25  # Choice: flat, but for a page here and there; 0.08 was measured from 55 patients to 500
COLUMNS = ("step", "patients", "images", "seconds", "cpu_seconds", "peak_gib")


def _call(run: Run, step: str, folder: Path, n_patients: int, n_frames: int) -> Callable[[], Any]:
    """The call of one step; what it imports and the networks that it reads are there before it is timed."""
    if step == SIMULATOR:
        from nafld_utils import phantom_folder

        return lambda: phantom_folder.write(folder, n_patients, SEED, n_frames)
    if step in ("01", "02"):
        from nafld_utils.stages import prepare

        return functools.partial(prepare.build_cohort if step == "01" else prepare.build_preprocessed, run)
    blank, device = np.zeros((1, 64, 64), np.uint8), engine.device(run.settings.engine)
    if step == CACHE:
        from nafld_utils import trial
        from nafld_utils.stages import sweep_features

        trial.prefix_features(sweep_features.network(BACKBONE, "bundled", "paper")[0], blank, BACKBONE, device)
        return lambda: sweep_features.make_features(run, BACKBONE, "real")
    from nafld_utils import feature_networks
    from nafld_utils.stages import features

    feature_networks.extract(blank, "lite0", device=device)
    return lambda: features.make_features(run, "lite0", features.REAL)


def measure_step(root: str, profile: str, step: str, n_patients: int, n_frames: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory (GiB) of one step in this process, which should be a fresh one."""
    os.environ["NAFLD_ROOT"] = root
    folder = Path(root) / "cohort"
    changes = {"cohort.source": "file", "cohort.path": str(folder), "cohort.frames_per_patient": None}
    changes |= {
        "engine.mode": "serial",
        "engine.device": "cpu",
        "sweep.backbones": [BACKBONE],
        "sweep.weights": "bundled",
    }
    call = _call(artifacts.open_run(profile, changes), step, folder, n_patients, n_frames)
    with engine.compute_threads(engine.cores()):
        started, before = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - started, time.process_time() - before, bench_records.peak_gib()


def measure(profile: str, n_patients: int, n_frames: int) -> pd.DataFrame:
    """Cost of every step for a cohort of one size, `COLUMNS`.

    Parameters
    ----------
    profile : str
        Whose preprocessing is measured.
    n_patients, n_frames : int
        Patients, and frames of each.
    """
    rows = []
    with _scratch() as root:
        for step in STEPS:
            # one process a step: its peak memory is its own
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                call = functools.partial(measure_step, root, profile, step, n_patients, n_frames)
                seconds, cpu, peak = pool.submit(call).result()
            rows.append((step, n_patients, n_patients * n_frames, seconds, cpu, peak))
            print(f"{n_patients} patients, {step}: {seconds:.1f} s, processor {cpu:.1f} s, {peak:.2f} GiB", flush=True)
    return pd.DataFrame(rows, columns=list(COLUMNS))


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A work folder of this process, gone afterwards; what killed ones left goes first, since it may be gigabytes."""
    beside = artifacts.work_root() / "artifacts"
    locks.remove_orphans(beside, ".bench-size.*.tmp")
    folder = beside / f".bench-size.{os.getpid()}.tmp"
    with locks.locked(folder):
        folder.mkdir()
        try:
            yield str(folder)
        finally:
            locks.remove(folder)


def fit(table: pd.DataFrame) -> pd.DataFrame:
    """How cost grows, a step a row.

    Parameters
    ----------
    table : pandas.DataFrame
        `COLUMNS`.

    Returns
    -------
    pandas.DataFrame
        ``step, exponent`` (of processor seconds as a power of the number of images, least squares in logarithms; 1 is
        linear; NaN where there is one size), ``ms_an_image`` (processor, at the largest size), ``memory_growth`` (GiB,
        from the smallest size to the largest).
    """
    rows = []
    for step, part in table.groupby("step", sort=False):
        part = part.sort_values("images")
        exponent = float("nan")
        if part["images"].iloc[0] < part["images"].iloc[-1]:
            exponent = np.polyfit(np.log(part["images"]), np.log(part["cpu_seconds"]), 1)[0]
        last = part.iloc[-1]
        growth = last["peak_gib"] - part["peak_gib"].iloc[0]
        rows.append((step, float(exponent), 1000 * last["cpu_seconds"] / last["images"], float(growth)))
    return pd.DataFrame(rows, columns=["step", "exponent", "ms_an_image", "memory_growth"])


def beyond(table: pd.DataFrame, fitted: pd.DataFrame) -> list[str]:
    """Sentences on steps that need too much memory, or more of it or of time than linear; empty where all hold.

    Parameters
    ----------
    table : pandas.DataFrame
        `COLUMNS`.
    fitted : pandas.DataFrame
        From `fit`.
    """
    found = []
    for line in fitted[fitted["step"] != SIMULATOR].itertuples():
        peak = table.loc[table["step"] == line.step, "peak_gib"].max()
        if line.step in BOUND and peak > BOUND_GIB:
            found.append(f"stage {line.step} held {peak:.2f} GiB, expected at most {BOUND_GIB:g}.")
        if line.memory_growth > MOST_GROWTH_GIB:
            found.append(
                f"stage {line.step} held {line.memory_growth:.2f} GiB more for the largest cohort, expected at most"
                f" {MOST_GROWTH_GIB:g}."
            )
        if line.exponent > MOST_EXPONENT:
            found.append(
                f"stage {line.step} grows as images to the power {line.exponent:.2f}, expected 1; measure again with"
                " nothing beside it."
            )
    return found


def record(table: pd.DataFrame, fitted: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the record: the largest size of each step, with the exponent in words."""
    rows = []
    for line in fitted.itertuples():
        last = table[table["step"] == line.step].sort_values("images").iloc[-1]
        stage, _, what = line.step.partition(" ")
        named = {SIMULATOR: ("-", "simulating the cohort"), "01": ("01", "reading and checking the cohort")}
        named["02"] = ("02", "preprocessing")
        stage, what = named.get(line.step, (stage, f"{what} of the real images"))
        grows = (
            "" if np.isnan(line.exponent) else f"; processor seconds grow as images to the power {line.exponent:.2f}"
        )
        per = f"{last['patients']} patients, {last['images']} images{grows}"
        rows.append(
            {"stage": stage, "what": what, "per": per, "seconds": last["seconds"], "peak_gib": last["peak_gib"]}
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; writes ``bench_size.csv`` and the record.

    Returns
    -------
    int
        1 where a step breaks its bounds (`beyond`), 2 where a cohort of a size cannot be made.
    """
    parser = argparse.ArgumentParser(description="Seconds and memory of stages against the size of the cohort.")
    parser.add_argument("--patients", type=int, nargs="+", default=[55, 200, 500], help="sizes of the cohort")
    parser.add_argument("--frames", type=int, default=2, help="frames a patient; the full measurement takes 10")
    parser.add_argument("--profile", default="demo", help="whose preprocessing is measured")
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    facts = {"frames": options.frames, "profile": options.profile}
    tables: list[pd.DataFrame] = []
    for n_patients in sorted(set(options.patients)):
        try:
            tables.append(measure(options.profile, n_patients, options.frames))
        except (ValueError, OSError) as error:
            print(f"size_bench, {n_patients} patients: {error}", file=sys.stderr)
            return 2
        # after each size: the largest takes longest, and what is measured must not be lost with it
        table = pd.concat(tables, ignore_index=True)
        fitted, seconds = fit(table), time.perf_counter() - started
        artifacts.save_table(options.out / "bench_size.csv", table)
        facts["curve"] = table.to_dict("records")
        lines = record(table, fitted)
        bench_records.save(options.out, "size", lines, "cpu", seconds, arguments, engine.cores(), **facts)
    print(fitted.round(3).to_string(index=False))
    broken = beyond(table, fitted)
    for sentence in broken:
        print(f"size_bench: {sentence}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
