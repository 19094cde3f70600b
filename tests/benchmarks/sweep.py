"""``make bench``, the sweep: trainings an hour here, against the plain loop over whole networks, in one run.

A training is the paper's: 1000 steps of 32 images at 256 pixels with the paper's freezing, extrapolated from the steps
that are timed. On a CPU the plain loop has every core and this project's trainings have a process a core, as in the
sweep; on a GPU there are two plain loops, one with its data on the device and one with a DataLoader. Plain and ours
alternate, since a shared machine drifts, and each round gives a ratio of its own. The plain loop is started as a user
starts it; how fast it is with the memory allocator set as for this project's workers stands beside it. Features are
computed once a sweep: their share of Fig. 5A is stated and counted. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from nafld_utils import artifacts, bench_records, engine, params, sweep, sweep_speed, workers
from nafld_utils.bench_records import peak_gib, reset_peak
from nafld_utils.sweep_speed import Network
from nafld_utils.trial import Options

PLAIN, OURS = "plain loop", "this project"
TUNED = f"{PLAIN}, channels last, allocator as ours"  # shown; no ratio is taken to it
LAYOUTS = {PLAIN: torch.contiguous_format, f"{PLAIN}, channels last": torch.channels_last, TUNED: torch.channels_last}
CPU_BACKBONES = ("tf_efficientnet_lite0", "resnet50")
GPU_BACKBONES = ("resnet50", "tf_efficientnet_b0", "tf_efficientnetv2_s")
GPU_STEPS = 100  # of a plain loop, timed
AT_ONCE = (1, 2, 4)
# Images whose features a sweep of Fig. 5A needs with the paper's cohort: 550 frames with 8 crops of two kinds and one
# resize each, and 2,000 images of two models for each of five folds.
PAPER_IMAGES = 550 * (8 + 8 + 1) + 2 * 5 * 2000


def options_of(batch_size: int | None = None) -> Options:
    """The paper's training."""
    chosen = params.load("paper").sweep
    size = batch_size or chosen.batch_size
    return Options(chosen.steps, size, chosen.learning_rate, chosen.weight_decay, chosen.precision)


# ---------------------------------------------------------------- a CPU


@functools.lru_cache(maxsize=1)
def _network(backbone: str, size: int) -> Network:
    return Network(backbone, "paper", size, torch.device("cpu"))


def measured_training(backbone: str, size: int, batch_size: int, path: str) -> None:
    """Time one training as a worker of the sweep does; leaves ``seconds, prefix_seconds`` as JSON."""
    network = _network(backbone, size)
    seconds = network.seconds_a_training(options_of(batch_size))
    found = {"seconds": seconds, "prefix_seconds": network.prefix_seconds}
    Path(path).write_text(json.dumps(found), encoding="utf-8")


def cpu_rounds(backbone: str, size: int, batch_size: int, n_rounds: int, n_workers: int) -> pd.DataFrame:
    """Plain and ours in turn, ``n_rounds`` times.

    Returns
    -------
    pandas.DataFrame
        ``round, how, seconds`` (of one training), ``at once``, ``prefix_seconds``, ``GiB``: the plain loop's process at
        its peak; of ours the workers and the process that gives them work, together, while they warm up
        (`bench_records.Watched`).
    """
    local = params.load("demo", {"engine.mode": "local", "engine.n_workers": n_workers}).engine
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.json" for i in range(n_workers)]
        tasks = [{"backbone": backbone, "size": size, "batch_size": batch_size, "path": path} for path in paths]
        # workers start, load and compute the prefix once before anything counts; that memory is looked at costs time
        with bench_records.Watched() as held:
            engine.map_units(measured_training, tasks, local, f"{backbone}: warming up")
        for n in range(n_rounds):
            # in a process of its own: the driver of a sweep never holds a whole network
            for ways, changes in (([*LAYOUTS][:2], {}), ([TUNED], workers.KEEP_PAGES)):
                arguments = (_plain_rows, backbone, size, options_of(batch_size), n_workers, ways)
                rows += [{"round": n, **row} for row in _apart(*arguments, changes=changes)]
            engine.map_units(measured_training, tasks, local, f"{backbone}: round {n + 1} of {n_rounds}")
            found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
            seconds = float(np.mean([one["seconds"] for one in found])) / n_workers
            row = {"round": n, "how": OURS, "seconds": seconds, "at once": n_workers, "GiB": held.gib}
            rows.append({**row, "prefix_seconds": float(np.mean([one["prefix_seconds"] for one in found])) / n_workers})
    return pd.DataFrame(rows)


def _apart(function: Callable[..., Any], *args: Any, changes: Mapping[str, Any]) -> Any:
    """A function's result from a process that ends with it and starts in this environment with these changes."""
    before = dict(os.environ)
    try:
        os.environ.update({name: str(value) for name, value in changes.items()})
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _plain_rows(backbone: str, size: int, options: Options, threads: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """The plain loop in some of its ways."""
    torch.set_num_threads(threads)
    network, rows = Network(backbone, "paper", size, torch.device("cpu")), []
    for how in ways:
        reset_peak()
        seconds = _plain_seconds(network, options, LAYOUTS[how])
        rows.append({"how": how, "seconds": seconds, "at once": 1, "GiB": peak_gib()})
    return rows


def _plain_seconds(network: Network, options: Options, layout: torch.memory_format, steps: int = 2) -> float:
    step = sweep_speed.plain_loop(network, options, layout)
    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps * options.steps


# ---------------------------------------------------------------- a GPU


class _Frames(Dataset):
    def __init__(self, network: Network):
        self.images, self.labels = network.images, network.labels

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        i %= len(self.images)
        return torch.from_numpy(self.images[i]), int(self.labels[i])


def with_loader(network: Network, options: Options) -> Any:
    """The plain loop with a DataLoader: worker processes, pinned memory, a copy to the GPU at each step."""
    n_workers = min(8, engine.cores())
    loader = DataLoader(
        _Frames(network), options.batch_size, shuffle=True, num_workers=n_workers, pin_memory=True, drop_last=True
    )
    batches = iter(loader)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = next(batches)
        return images.to(network.device, non_blocking=True), labels.to(network.device, non_blocking=True)

    return sweep_speed.plain_loop(network, options, torch.channels_last, draw)


def gpu_rounds(backbone: str, size: int, batch_size: int, n_rounds: int, device: torch.device) -> pd.DataFrame:
    """As `cpu_rounds`; the GPU's peak memory of each way."""
    network, options, rows = Network(backbone, "paper", size, device), options_of(batch_size), []
    torch.backends.cudnn.benchmark = True
    for n in range(n_rounds):
        plain = {
            f"{PLAIN}, data on the device": sweep_speed.plain_loop(network, options, torch.channels_last),
            f"{PLAIN}, DataLoader": with_loader(network, options),
        }
        calls = {how: functools.partial(_gpu_seconds, step, options, device) for how, step in plain.items()}
        for at_once in AT_ONCE:
            calls[f"{OURS}, {at_once} at once"] = functools.partial(network.seconds_a_training, options, at_once)
        for how, call in calls.items():
            torch.cuda.reset_peak_memory_stats(device)
            seconds = call()
            held = torch.cuda.max_memory_allocated(device) / 2**30
            at_once = int(how.split()[-3]) if how.startswith(OURS) else 1
            rows.append({"round": n, "how": how, "seconds": seconds, "at once": at_once, "GiB": held})
    return pd.DataFrame(rows).assign(prefix_seconds=network.prefix_seconds)


def _gpu_seconds(step: Any, options: Options, device: torch.device) -> float:
    for _ in range(10):
        step()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(GPU_STEPS):
        step()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / GPU_STEPS * options.steps


# ---------------------------------------------------------------- the table


def table(
    device: torch.device,
    names: tuple[str, ...] | None = None,
    size: int = 256,
    batch_size: int | None = None,
    n_rounds: int = 2,
) -> pd.DataFrame:
    """Trainings an hour of every way, and how many times as many as the faster plain loop gives.

    Parameters
    ----------
    device : torch.device
    names : tuple of str, optional
        timm names; `CPU_BACKBONES` or `GPU_BACKBONES`.
    size : int
        Pixels a side.
    batch_size : int, optional
        The paper's 32.
    n_rounds : int
        Plain and ours in turn, so many times.

    Returns
    -------
    pandas.DataFrame
        ``backbone, how, seconds a training, trainings an hour, at once, times as many`` (median over rounds of the
        ratio to the faster plain loop of the same round), ``least, most`` (of the rounds), ``peak GiB``,
        ``features, minutes a sweep``, ``times as many, features counted`` (over the trainings of Fig. 5A).
    """
    on_gpu = device.type == "cuda"
    size_of_batch = batch_size or options_of().batch_size
    rows = []
    for backbone in names or (GPU_BACKBONES if on_gpu else CPU_BACKBONES):
        if on_gpu:
            rounds = gpu_rounds(backbone, size, size_of_batch, n_rounds, device)
        else:
            rounds = cpu_rounds(backbone, size, size_of_batch, n_rounds, engine.cores())
        started = rounds["how"].str.startswith(PLAIN) & (rounds["how"] != TUNED)
        plain = rounds[started].groupby("round")["seconds"].min()
        n_trainings = len(sweep.experiment_grid(params.load("paper"), "fig5a"))
        for how, part in rounds.groupby("how", sort=False):
            ratio = part["round"].map(plain) / part["seconds"]
            each = float(part["seconds"].median())
            row = {"backbone": backbone, "how": how, "seconds a training": each, "trainings an hour": 3600 / each}
            row |= {"at once": part["at once"].iloc[0], "times as many": ratio.median(), "least": ratio.min()}
            row |= {"most": ratio.max(), "peak GiB": part["GiB"].max()}
            features = float(part["prefix_seconds"].mean()) * PAPER_IMAGES if how.startswith(OURS) else 0.0
            counted = float(plain.median()) / (each + features / n_trainings)
            rows.append({**row, "features, minutes a sweep": features / 60, "times as many, features counted": counted})
        engine.announce(f"{backbone}: measured")
    return pd.DataFrame(rows)


def figure_5_hours(found: pd.DataFrame) -> float:
    """Hours that all trainings of Fig. 5A and 5B take, by the fastest way that was measured of each network.

    Returns
    -------
    float
        NaN where a network of Fig. 5B was not measured.
    """
    ours = found[found["how"].str.startswith(OURS)].groupby("backbone")["seconds a training"].min()
    settings = params.load("paper", {"sweep.experiments": ["fig5a", "fig5b"]})
    counts = sweep.grid(settings)["backbone"].str.partition(".")[0].value_counts()
    return float((counts * ours.reindex(counts.index)).sum(skipna=False) / 3600)


def record(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the benchmark's record; the ratio is to the faster plain loop, median over rounds."""
    rows = []
    for row in found.to_dict("records"):
        per = f"one training of 1000 steps, {row['at once']} at once, {row['trainings an hour']:.1f} an hour"
        line = {"stage": "06", "what": f"{row['backbone']}, {row['how']}", "per": per}
        line |= {"seconds": row["seconds a training"], "peak_gib": row["peak GiB"]}
        if row["how"].startswith(OURS):
            line |= {"ratio": row["times as many"], "against": "the faster plain loop, whole networks"}
        rows.append(line)
    return rows


def report(device: torch.device, folder: Path, **how: Any) -> pd.DataFrame:
    """Measure, print and save ``bench_sweep.csv`` and the record."""
    started = time.perf_counter()
    found = table(device, **how)
    artifacts.save_table(folder / "bench_sweep.csv", found)
    bench_records.save(folder, "sweep", record(found), device, time.perf_counter() - started, threads=engine.cores())
    print(found.round(3).to_string(index=False))
    hours = figure_5_hours(found)
    if np.isfinite(hours):
        print(f"Fig. 5A and 5B, all 2,125 trainings: {hours:.2f} hours on this device, features and evaluation on top")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Trainings an hour against the plain loop.")
    parser.add_argument("--backbones", nargs="*", help="timm names")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = tuple(options.backbones) if options.backbones else None
    report(device, options.out, names=names, size=options.size, n_rounds=options.rounds)


if __name__ == "__main__":
    main()
