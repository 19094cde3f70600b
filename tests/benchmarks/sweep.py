"""Trainings per hour of the sweep here, against the plain loop over whole networks, in one run.

A training is the paper's: 1000 steps of 32 images at 256 pixels with the paper's freezing, extrapolated from the steps
that are timed. On a CPU the plain loop has every core and this project's trainings have a process per core, as in the
sweep; on a GPU there are two plain loops, one with its data on the device and one with a DataLoader. Plain and ours
alternate, since a shared machine drifts, and each round gives a ratio of its own. The plain loop is started as a user
starts it; how fast it is with the memory allocator set as for this project's workers stands beside it. Features are
computed once per sweep: their share of Fig. 5A is stated and counted. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pandas as pd
import records
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from nafld_utils import engine, params, sweep
from nafld_utils.engine import autocast, cluster
from nafld_utils.sweep import Options, trial_grid
from nafld_utils.sweep.timing_units import Network

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


def plain_loop(
    network: Network,
    options: Options,
    layout: torch.memory_format,
    draw: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Callable[[], torch.Tensor]:
    """A step of the textbook's loop: whole images in memory through the whole network, its frozen part in eval mode.

    `options` gives batch size, learning rate, weight decay and, on a GPU, ``bf16`` autocast; weights and batches have
    the memory `layout`. `draw` gives a batch of grey images ``(b, S, S)`` uint8 and labels; None draws from images that
    lie on the device. The function returned does one step, draws included, and returns its loss.
    """
    device, model = network.device, nn.Sequential(copy.deepcopy(network.prefix), sweep.fresh_tail(network.tail, 0))
    model.to(device=device, memory_format=layout)
    model[0].eval().requires_grad_(False)
    model[1].train()
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    images, labels = (torch.from_numpy(array).to(device) for array in (network.images, network.labels))
    decoder, generator = network.decoder.to(device), torch.Generator().manual_seed(0)

    def from_device() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randperm(len(images), generator=generator)[: options.batch_size].to(device)
        return images[rows], labels[rows]

    def step() -> torch.Tensor:
        batch, wanted = (draw or from_device)()
        inputs = decoder(batch).contiguous(memory_format=layout)
        with autocast(options.precision, device):
            loss = nn.functional.cross_entropy(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


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
    """Plain and ours in turn, ``n_rounds`` times: ``round, how, seconds`` (of one training), ``at once``,
    ``prefix_seconds``, ``GiB``: the plain loop's process at its peak; of ours the workers and the process that gives
    them work, together, while they warm up.
    """
    local = params.load("demo", {"engine.mode": "local", "engine.n_workers": n_workers}).engine
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.json" for i in range(n_workers)]
        tasks = [{"backbone": backbone, "size": size, "batch_size": batch_size, "path": path} for path in paths]
        # workers start, load and compute the prefix once before anything counts; that memory is looked at costs time
        with memory.Watched() as held:
            engine.map_units(measured_training, tasks, local, f"{backbone}: warming up")
        for n in range(n_rounds):
            # in a process of its own: the driver of a sweep never holds a whole network
            for ways, changes in (([*LAYOUTS][:2], {}), ([TUNED], cluster.KEEP_PAGES)):
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
        memory.reset_peak()
        seconds = engine.timed(plain_loop(network, options, LAYOUTS[how]), network.device, 2) * options.steps
        rows.append({"how": how, "seconds": seconds, "at once": 1, "GiB": memory.peak_gib()})
    return rows


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

    return plain_loop(network, options, torch.channels_last, draw)


def gpu_ways(network: Network, options: Options) -> records.Rows:
    """Both plain loops, then this project's trainings: ``how, seconds`` (of one training), ``at once, GiB``.

    On a CPU the plain loop that has its data in memory, and one training.
    """
    device, on_gpu = network.device, network.device.type == "cuda"
    torch.backends.cudnn.benchmark = True

    def plain(step: Any) -> Callable[[], float]:
        return lambda: engine.timed(step, device, *((GPU_STEPS, 10) if on_gpu else (1, 1))) * options.steps

    calls = {f"{PLAIN}, data on the device": (1, lambda: plain(plain_loop(network, options, torch.channels_last))())}
    if on_gpu:
        calls[f"{PLAIN}, DataLoader"] = 1, lambda: plain(with_loader(network, options))()
    for at_once in AT_ONCE if on_gpu else AT_ONCE[:1]:
        ours = functools.partial(network.seconds_a_training, options, at_once)
        calls[f"{OURS}, {at_once} at once"] = at_once, ours
    for how, (at_once, call) in calls.items():
        memory.reset_peak(device)
        seconds = call()
        held = memory.peak_gib(device, since_reset=True)
        yield {"backbone": network.backbone, "how": how, "seconds": seconds, "at once": at_once, "GiB": held}


def gpu_rounds(backbone: str, size: int, batch_size: int, n_rounds: int, device: torch.device) -> pd.DataFrame:
    """As `cpu_rounds`; the GPU's peak memory of each way."""
    network, options = Network(backbone, "paper", size, device), options_of(batch_size)
    rows = [{"round": n, **way} for n in range(n_rounds) for way in gpu_ways(network, options)]
    return pd.DataFrame(rows).assign(prefix_seconds=network.prefix_seconds)


# ---------------------------------------------------------------- the table


def compared(rounds: pd.DataFrame) -> pd.DataFrame:
    """Each way of one network's rounds against the faster plain loop of the same round, a way per row.

    Returns ``how, seconds`` (of a training, median over rounds), ``at once, ratio, least, most`` (over rounds), ``GiB``
    (the most), ``features`` (seconds per sweep of Fig. 5A, of ours) and ``counted`` (the ratio with them).
    """
    started = rounds["how"].str.startswith(PLAIN) & (rounds["how"] != TUNED)
    plain = rounds[started].groupby("round")["seconds"].min()
    n_trainings = len(trial_grid.experiment_grid(params.load("paper"), "fig5a"))
    rows = []
    for how, part in rounds.groupby("how", sort=False):
        ratio, each = part["round"].map(plain) / part["seconds"], float(part["seconds"].median())
        features = float(part["prefix_seconds"].mean()) * PAPER_IMAGES if how.startswith(OURS) else 0.0
        row = {"how": how, "seconds": each, "at once": part["at once"].iloc[0], "ratio": ratio.median()}
        row |= {"least": ratio.min(), "most": ratio.max(), "GiB": part["GiB"].max(), "features": features}
        rows.append({**row, "counted": float(plain.median()) / (each + features / n_trainings)})
    return pd.DataFrame(rows)


def record(backbone: str, found: pd.DataFrame) -> records.Rows:
    """Rows of one network, from `compared`."""
    for way in found.to_dict("records"):
        per = f"one training of 1000 steps, {way['at once']} at once, {3600 / way['seconds']:.1f} per hour"
        line = {"stage": "06", "what": f"{backbone}, {way['how']}", "seconds": way["seconds"], "peak_gib": way["GiB"]}
        if way["how"].startswith(OURS):
            per += (
                f"; rounds {way['least']:.2f} to {way['most']:.2f} times as many, {way['counted']:.2f} with features,"
            )
            per += f" which take {way['features'] / 60:.1f} minutes per sweep"
            line |= {"ratio": way["ratio"], "against": "the faster plain loop, whole networks"}
        elif way["how"] == TUNED:
            per += f"; {way['ratio']:.2f} times as many as the faster of the others"
        yield {**line, "per": per}


def figure_5_seconds(fastest: Mapping[str, float]) -> float:
    """Seconds of all trainings of Fig. 5A and 5B by those of one training per network; NaN where a network lacks."""
    settings = params.load("paper", {"sweep.experiments": ["fig5a", "fig5b"]})
    counts = sweep.grid(settings)["backbone"].str.partition(".")[0].value_counts()
    return float((counts * pd.Series(fastest, dtype=float).reindex(counts.index)).sum(skipna=False))


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Rows of every network and way, and what all of Fig. 5 would take by the fastest way of each."""
    on_gpu, fastest = device.type == "cuda", {}
    how = options.size, options.batch_size, options.rounds
    for backbone in options.backbones or (GPU_BACKBONES if on_gpu else CPU_BACKBONES):
        rounds = gpu_rounds(backbone, *how, device) if on_gpu else cpu_rounds(backbone, *how, engine.cores())
        found = compared(rounds)
        fastest[backbone] = found.loc[found["how"].str.startswith(OURS), "seconds"].min()
        yield from record(backbone, found)
    seconds = figure_5_seconds(fastest)
    if np.isfinite(seconds):
        per = f"2,125 trainings, {seconds / 3600:.2f} hours; features and evaluation on top"
        yield {"stage": "06", "what": "all trainings of Fig. 5A and 5B, estimated", "per": per, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="Trainings per hour against the plain loop.")
    parser.add_argument("--backbones", nargs="*", help="timm names")
    parser.add_argument("--size", type=int, default=256, help="pixels per side")
    parser.add_argument("--batch-size", type=int, default=params.load("paper").sweep.batch_size)
    parser.add_argument("--rounds", type=int, default=2)
    return records.run("sweep", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
