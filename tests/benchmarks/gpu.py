"""Two runs of five minutes on one GPU: ``python tests/benchmarks/gpu.py --run 1``, then ``--run 2``.

Each part has its seconds, which a clock holds, and yields rows; a row is printed and added to ``results.jsonl`` as soon
as it is there, so that a run that is cut off keeps what it had measured. In the order of their value:

=========== ======= ==================================================================================================
part        seconds what
=========== ======= ==================================================================================================
sweep       90      run 1: trainings per hour of ResNet-50 at 256 px against the two plain loops
networks    150     run 1: training and sampling rate of both paper-size networks, share of the matrix rate, memory
compiled    90      run 2: the same of the semantic network, compiled
sampler     120     run 2: the fast sampler against DDIM of 500 steps at equal distance to held-out patients
semantic    rest    run 2: up to 2,000 steps of the semantic network on the real cohort's crops, curve and grid
=========== ======= ==================================================================================================

Before, on any machine: ``--pack cohort.mat --crops crops.npz`` makes the file that run 2 reads, and says whether the
tree, ``--wheels FOLDER`` and it may be brought together (at most `BRING`). Afterwards: ``--hours A/results.jsonl
B/results.jsonl`` says what the paper profile takes. ``--dry`` is all of it small, on a CPU, with numbers that mean
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ldm as bench
import memory
import numpy as np
import pandas as pd
import psutil
import records
import sweep as bench_sweep
import torch
from PIL import Image

from nafld_utils import artifacts, cohort, engine, ldm, networks, params, preprocessing, sweep
from nafld_utils.artifacts import Run
from nafld_utils.ldm import autoencoder, autoencoder_units
from nafld_utils.sampling import sampler_comparison, time_estimate
from nafld_utils.sweep import prefix_features, simulated_only
from nafld_utils.sweep.timing_units import Network

BUDGET = {"sweep": 90.0, "networks": 150.0, "compiled": 90.0, "sampler": 120.0, "semantic": float("inf")}  # seconds
RUNS = {1: ("sweep", "networks"), 2: ("compiled", "sampler", "semantic")}
WHOLE = 300.0  # seconds of a run, the start of its process counted
BRING, TAKE, N_FILES = 64 * 2**20, 16 * 2**20, 8  # bytes to bring, bytes of each file to take home, their number
MARGIN = 10.0  # seconds kept at the end to write and to close, and the fewest that a part is begun with
FAST = (20, 50)  # steps of the fast sampler
GRID = 6  # images per side

Rows = Iterator[dict[str, Any]]


class OutOfTime(BaseException):
    """A part's seconds are over; no fault, so that nothing on its way takes it for one."""


@dataclass(frozen=True)
class Scale:
    """How large a study is: the networks of a profile, the sweep's network, steps of the training, images drawn."""

    profile: str
    backbone: str
    side: int
    batch: int
    steps: int
    trained: int  # of them before samplers are compared
    every: int  # steps between rows and pictures
    images: int  # per sampler and set of seeds
    slow: int  # steps of DDIM
    fast: tuple[int, ...] = FAST


PAPER = Scale("paper", "resnet50", 256, 32, 2000, 1000, 100, 64, bench.SLOW_STEPS)
DRY = Scale("smoke", "resnet18", 32, 4, 6, 2, 2, 8, 10, (2,))


# ---------------------------------------------------------------- results


@contextlib.contextmanager
def unstopped() -> Iterator[None]:
    """Let what runs within come to its end where a clock rings meanwhile, and raise `OutOfTime` only then.

    The signal is not blocked: a thread blocks it for itself alone, and another thread would take it.
    """
    rung: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
    if rung:
        raise OutOfTime


class Results:
    """A run's folder: ``results.jsonl``, a line as it is measured, and few small files beside it."""

    def __init__(self, folder: Path):
        self.folder, self.lines = folder, folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    @unstopped()
    def add(self, **row: Any) -> None:
        """Write a row so that nothing that happens afterwards can take it away, and print it."""
        text = json.dumps({key: _plain(value) for key, value in row.items()})
        # after a kill in the middle of a line the next one must not hang on to it
        torn = self.lines.exists() and not self.lines.read_bytes().endswith(b"\n")
        with self.lines.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + text + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(text, flush=True)

    @unstopped()
    def keep(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file to be taken home; ValueError where it is too large or one too many, and it is not kept."""
        path = self.folder / name
        part = path.with_name(f".{name}")
        write(part)
        n, size = len({*self.folder.glob("[!.]*"), path, self.lines}), part.stat().st_size
        if n > N_FILES or size > TAKE:
            part.unlink()
            raise ValueError(f"{name}: expected at most {N_FILES} files of {TAKE} bytes, found {n} and {size} bytes.")
        part.replace(path)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read(*paths: Path) -> list[dict[str, Any]]:
    """Rows of result files; a line that was torn by a kill is left out."""
    rows = []
    for line in (line for path in paths for line in path.read_text(encoding="utf-8").splitlines()):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


# ---------------------------------------------------------------- the clock


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in what runs within, once so many seconds are over."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def perform(parts: dict[str, Callable[[], Rows]], results: Results, end: float) -> None:
    """Run parts in order, each within its `BUDGET`, and all until `MARGIN` before `end` (`time.time`).

    One that fails stops no other.
    """
    for name, rows in parts.items():
        left, started = min(BUDGET[name], end - MARGIN - time.time()), time.perf_counter()
        if left < MARGIN:
            results.add(part=name, state="not begun", seconds=0.0)
            continue
        state = "whole"
        try:
            with at_most(left):
                for row in rows():
                    results.add(part=name, **row)
        except OutOfTime:
            state = "cut off"
        except Exception as error:  # the next part must have its turn
            state = f"failed: {type(error).__name__}: {error}"
        results.add(part=name, state=state, seconds=time.perf_counter() - started)


# ---------------------------------------------------------------- sweep and networks


def sweep_rows(scale: Scale, device: torch.device) -> Rows:
    """Trainings per hour of one network: the plain loops first, then ours with its ratio to the faster of them."""
    network, plain = Network(scale.backbone, "paper", scale.side, device), []
    yield {"what": "frozen prefix", "seconds_an_image": network.prefix_seconds}
    for way in bench_sweep.gpu_ways(network, bench_sweep.options_of(scale.batch)):
        ours = way["how"].startswith(bench_sweep.OURS)
        plain += [] if ours else [way["seconds"]]
        row = {"what": f"{scale.backbone}, {way['how']}", **way, "an_hour": 3600 / way["seconds"]}
        yield row | ({"ratio": min(plain) / way["seconds"]} if ours else {})


def network_rows(names: Sequence[str], scale: Scale, device: torch.device, compiled: bool = False) -> Rows:
    """Training per step and sampling per image of a profile's networks, with the share of the matrix rate."""
    on_gpu, best = device.type == "cuda", bench.matrix_rate(device, None if device.type == "cuda" else 256)
    yield {"what": "matrix rate", "rate": best}
    for name in names:
        model = bench.model(scale.profile, name, device)
        model.denoiser = ldm.placed(model.denoiser, device)
        if compiled and on_gpu:
            ldm.compile_network(model.denoiser)
        n, walked = model.affordable(), 20 if on_gpu else 2
        given = {"network": name, "compiled": compiled, "matrix_rate": best}
        memory.reset_peak(device)
        seconds = engine.timed(model.training_step(n), device, 40 if on_gpu else 1, warm=5 if on_gpu else 1)
        yield _rated(given, bench.OURS, seconds, n, time_estimate.TRAINING_PASSES * n * model.flops, device)
        eta = params.load(scale.profile).sampling.eta
        for how, scheduler, noise, steps in (
            (f"{bench.OURS}: DDIM, {bench.SLOW_STEPS} steps", "ddim", eta, bench.SLOW_STEPS),
            (f"{bench.OURS}: DPM-Solver++, {scale.fast[0]} steps", "dpmsolver++", 0.0, scale.fast[0]),
        ):
            drawing = {"scheduler": scheduler, "eta": noise, "guidance": bench.GUIDANCE}
            n = bench.AT_ONCE if on_gpu else 1
            memory.reset_peak(device)
            seconds = model.seconds_an_image(n, steps, walked, **drawing, precision=model.settings["precision"])
            yield _rated(given, how, seconds, n, 2 * steps * model.flops, device)
        model.denoiser.to("cpu")


def _rated(given: dict[str, Any], how: str, seconds: float, images: int, flops: float, device: torch.device) -> dict:
    rate = flops / seconds
    row = {
        **given,
        "how": how,
        "seconds": seconds,
        "images": images,
        "rate": rate,
        "share": rate / given["matrix_rate"],
    }
    return {**row, "a_second": 1 / seconds, "peak_gib": memory.peak_gib(device, since_reset=True)}


# ---------------------------------------------------------------- the semantic network on crops


def pack(data: str, path: Path, wheels: Path | None = None) -> None:
    """Write what run 2 needs of a cohort: a crop per frame, its semantic map, and whether its patient is held out.

    ValueError where it may not be brought beside the tree and a folder of wheels.
    """
    run = artifacts.open_run("paper", {"run": "gpu-study", "cohort.path": data, "preprocess.crops_per_image": 1})
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    made = preprocessing.open_preprocessed(run)
    arrays = {"images": made.pool[:, 0], "maps": made.pool_maps[:, 0]}
    np.savez_compressed(path, held_out=made.images["fold"].to_numpy() == 0, **arrays)
    parts = to_bring(path, wheels)
    found = ", ".join(f"{name} {size:,}" for name, size in parts.items())
    said = f"{sum(parts.values()):,} ({found})"
    if sum(parts.values()) > BRING:
        raise ValueError(f"{path}: expected at most {BRING:,} bytes to bring, found {said}; bring fewer wheels.")
    print(f"{path}: of {BRING:,} bytes that may be brought {said}")


def to_bring(crops: Path, wheels: Path | None) -> dict[str, int]:
    """Bytes of the crops, of the files that git tracks in the tree (none where it is no checkout), and of wheels."""
    root, listed = artifacts.PROJECT_ROOT, ""
    with contextlib.suppress(OSError):  # no git here
        listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, encoding="utf-8").stdout
    tracked = [root / name for name in listed.split("\0") if name]
    tree = "tree" if tracked else "tree (no git checkout, not counted)"
    parts = {"crops": [crops], tree: tracked, "wheels": wheels.rglob("*") if wheels else []}
    return {name: sum(path.stat().st_size for path in paths if path.is_file()) for name, paths in parts.items()}


class Semantic:
    """The semantic network in training on crops of patients that are not held out, over the shipped autoencoder."""

    def __init__(self, crops: Path, scale: Scale, device: torch.device):
        from diffusers import DDPMScheduler

        with np.load(crops) as found:
            self.images, self.maps, self.held_out = (found[key] for key in ("images", "maps", "held_out"))
        self.scale, self.device, seen = scale, device, ~self.held_out
        self.stage = autoencoder.load_shipped()
        moments = torch.from_numpy(autoencoder.encode_images(self.stage, self.images[seen], device))
        self.shape = tuple(self.stage.drawing_on_cpu().draw(moments[:1]).shape[1:])
        pool = ldm.LatentPool(
            moments[:, None], torch.from_numpy(self.maps[seen])[:, None], self.stage.drawing_on_cpu().draw
        )
        section = params.load(scale.profile).section("ldm")
        settings = section | {"steps": scale.steps, "log_every": scale.every, "warmup_steps": scale.steps // 20 + 1}
        network = ldm.denoiser.build_denoiser("semantic", settings["semantic"], self.shape, 5, 0)
        self.options = ldm.denoiser.schedule_options(
            settings["semantic"], settings["prediction"], settings["train_timesteps"]
        )
        self.precision = settings["precision"]
        self.training = ldm.start_training(ldm.placed(network, device), settings)
        given = pool, None, settings, settings["semantic"]["loss"], DDPMScheduler(**self.options), 0, device
        self.steps = lambda: ldm.train(self.training, *given)  # anew after one that was cut off

    def train(self, until: int) -> Rows:
        """Train to so many steps; a row whenever the curve has one."""
        started, begun, steps = time.perf_counter(), self.training.step, self.steps()
        while self.training.step < until:
            next(steps)
            if self.training.step % self.scale.every == 0 or self.training.step == until:
                engine.wait(self.device)
                each = (time.perf_counter() - started) / (self.training.step - begun)
                yield {"what": "training", **self.training.curve[-1], "seconds_a_step": each}

    def draw(self, n: int, seed: int, scheduler: str, steps: int) -> np.ndarray:
        """Images (n, S, S) uint8 of held-out patients' maps with averaged weights."""
        maps = torch.from_numpy(np.resize(self.maps[self.held_out], (n, *self.maps.shape[1:])))
        how = {"steps": steps, "eta": 0.0, "guidance": bench.GUIDANCE, "scheduler": scheduler}
        seeds = [artifacts.unit_seed(seed, "gpu study", i) for i in range(n)]
        with self.training.with_average() as network:
            latents = ldm.sampler.sample(
                network, self.options, maps, seeds, self.shape, self.device, **how, precision=self.precision
            )
        return ldm.decode_latents(self.stage, latents, self.device)

    def distance(self, images: np.ndarray) -> float:
        """Frechet distance of Lite0 features to the held-out patients' crops."""
        network = networks.load(networks.LITE0)
        sides = (images, self.images[self.held_out])
        return networks.frechet_distance(*(networks.features(network, x, networks.LITE0, self.device) for x in sides))


def sampler_rows(of: Callable[[], Semantic]) -> Rows:
    """After some training, seconds per image and distance of DDIM and of the fast sampler, two sets of seeds each."""
    study = of()
    scale, rows = study.scale, []
    yield from study.train(scale.trained)
    ways = [("DDIM", "ddim", scale.slow), *((f"DPM-Solver++, {n} steps", "dpmsolver++", n) for n in scale.fast)]
    study.draw(scale.images, 0, "dpmsolver++", 2)  # kernels are chosen at their first use
    for how, scheduler, steps in ways:
        for seeds in ("first", "second"):
            engine.wait(study.device)
            started = time.perf_counter()
            images = study.draw(scale.images, len(seeds), scheduler, steps)
            seconds = (time.perf_counter() - started) / scale.images
            row = {"network": "semantic", "how": how, "seeds": seeds, "seconds": seconds}
            rows.append({**row, "frechet": study.distance(images)})
            yield {"what": "drawing", "steps": steps, **rows[-1]}
        if how != "DDIM":
            compared = bench.against_spread(pd.DataFrame(rows)).iloc[-1].to_dict()
            yield {"what": "equal distance", "steps": steps, **compared}


def semantic_rows(of: Callable[[], Semantic], results: Results) -> Rows:
    """The rest of the training; its curve and a grid of images anew at each quarter, since any may be the last."""
    study = of()
    steps = study.scale.steps
    for quarter in (1, 2, 3, 4):
        until = steps * quarter // 4
        if until < study.training.step:
            continue
        yield from study.train(until)
        results.keep("curve.csv", lambda path: pd.DataFrame(study.training.curve).to_csv(path, index=False))
        images = study.draw(GRID**2, 0, "dpmsolver++", study.scale.fast[0])
        results.keep("grid.png", lambda path, images=images: save_grid(path, images, GRID))
        yield {"what": "grid", "step": study.training.step, "frechet": study.distance(images)}


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Save (n, S, S) uint8 images row by row as one PNG; what is missing in the last row is black."""
    rows = -(-len(images) // columns)
    filled = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    size = images.shape[1]
    tiled = filled.reshape(rows, columns, size, size).transpose(0, 2, 1, 3).reshape(rows * size, columns * size)
    Image.fromarray(tiled).save(path, format="png")


# ---------------------------------------------------------------- hours of the whole profile


SAMPLERS = {"ddim": f"{bench.OURS}: DDIM", "dpmsolver++": f"{bench.OURS}: DPM-Solver++"}
FRAMES = 550  # of the paper's cohort
KEYS = ("part", "what", "network", "compiled", "how")  # what a measurement is of
NOT_IN = (
    "Not in it, since measured nowhere: stages 01, 02, 05, 07 and 08, autoencoders, simulated patients, and scores and"
    " tables of stage 06."
)


def latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last measurement of each thing, where a run was repeated in one folder."""
    return list({tuple(row.get(key) for key in KEYS): row for row in rows}.values())


def paper_hours(found: pd.DataFrame, rate: float, run: Run) -> pd.DataFrame:
    """Hours that stages 03 and 04 of a run take on one device of a measured speed, and the least that they could.

    `found` are rows of `network_rows`, `rate` the device's matrix rate; the run's settings are counted
    (`time_estimate.passes`), nothing of it needs to be there. Columns ``work, model, PFLOP, hours, floor``, NaN where
    `found` lacks a row: drawing, at the rate of the run's sampler, holds every set, the comparison of samplers,
    previews and validation; the floor is all operations at the matrix rate. A GAN without ``gan.steps`` takes as many
    operations as the model it stands beside, here at that model's rate, which its own layers may not reach. The last
    row holds the sums; autoencoders, which are ready-made in the paper's profile, and the stages after 04 are not in
    it.
    """
    count, rows = time_estimate.passes(run), []
    by = found.assign(how=[how.partition(",")[0] for how in found["how"]]).groupby(["network", "how"]).last()
    for name in run.settings.ldm.conditionings:
        ways = bench.OURS, SAMPLERS[run.settings.sampling.scheduler]
        step, image = (by.reindex([(name, how)]).iloc[0].astype(float) for how in ways)
        a_pass = step["rate"] * step["seconds"] / (time_estimate.TRAINING_PASSES * step["images"])
        folds = sum(task["conditioning"] == name for task in autoencoder_units.tasks(run))
        models = folds + sum(task["conditioning"] == name for task in ldm.balanced_tasks(run))
        drawn = models * (count["synthetic"] + count["looks"]) + count["comparison"] * bool(
            sampler_comparison.tasks(run)
        )
        drawn += folds * (count["synthetic_null"] + count["synthetic_untrained"])
        works = {"training": (models * count["training"], step), "drawing": (drawn, image)}
        for work, (passes, measured) in works.items():
            flops = passes * a_pass
            row = {"work": work, "model": name, "PFLOP": flops / 1e15, "hours": flops / measured["rate"] / 3600}
            rows.append({**row, "floor": flops / rate / 3600})
        if run.settings.gan.enabled and run.settings.gan.steps is None and name == ldm.reference(run):
            share = {key: rows[-2][key] * folds / models for key in ("PFLOP", "hours", "floor")}
            rows.append({"work": "training", "model": ldm.NAME, **share})
    table = pd.DataFrame(rows)
    total = table[["PFLOP", "hours", "floor"]].sum()
    return pd.concat([table, pd.DataFrame([{"work": "all", "model": "all", **total}])], ignore_index=True)


def sweep_hours(rows: Sequence[dict[str, Any]], run: Run) -> dict[str, float]:
    """Hours of a run's trainings and frozen prefixes in stage 06 by rows of `sweep_rows`; NaN where these are missing.

    Every classifier counts as the one that was measured, by its fastest way; in the paper's profile all are of it.
    Images are counted view by view, with the paper's cohort.
    """
    ours = [row for row in rows if row.get("part") == "sweep" and row.get("ratio")]
    a_step = min((row["seconds"] for row in ours), default=np.nan) / bench_sweep.options_of().steps
    an_image = next((row["seconds_an_image"] for row in rows if row.get("what") == "frozen prefix"), np.nan)
    s, own, simulated = run.settings, run.settings.simulated_only, simulated_only.units
    cohorts, alone, worth = simulated.tasks(run) if simulated.is_on(run) else ([], [], [])
    n, twice = len(sweep.grid(s)), 2 * len(worth)  # alone, and after simulated patients
    views = s.preprocess.crops_per_image
    sizes = {params.REAL: FRAMES * (views + 1), **dict.fromkeys(params.AUGMENTED, FRAMES * views)}
    images = sum(sizes.get(task["kind"], s.sampling.n_images) for task in prefix_features.feature_tasks(run))
    images += len(cohorts) * own.n_patients * own.n_frames * own.crops
    images += FRAMES * len(simulated_only.changes.CHANGES) * bool(cohorts)
    seconds = {
        f"{n} classifiers": n * s.sweep.steps * a_step,
        f"{len(alone) + twice} more with simulated patients": (len(alone) * own.steps + twice * s.sweep.steps) * a_step,
        f"frozen prefix of {images} images": images * an_image,
    }
    network = ours[0]["backbone"] if ours else PAPER.backbone
    return {f"stage 06, {what}, as {network}": value / 3600 for what, value in seconds.items()}


def hours(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Hours of the paper's profile, ``work, hours``, by the last rows of both runs; NaN where these lack something.

    The row of all is the sum of what is there. Where the fast sampler draws as near to held-out patients as DDIM, a
    last row holds the sum with the fewest steps that do. Only that number is of part ``sampler``, whose DDIM has eta 0
    and whose latents are the shipped autoencoder's; all seconds are of part ``networks``, at the paper's size.
    """
    rows = latest(rows)
    measured = [row for row in rows if row.get("part") == "networks" and row.get("how") and not row["compiled"]]
    found = pd.DataFrame(measured, columns=["network", "how", "images", "rate", "seconds", "matrix_rate"])

    def of(changes: dict[str, Any]) -> pd.Series:
        run = artifacts.open_run("paper", changes)
        models = paper_hours(found, found["matrix_rate"].max(), run).iloc[:-1]
        made = {f"stages 03 and 04, {row.work}, {row.model}": row.hours for row in models.itertuples()}
        return pd.Series({**made, **sweep_hours(rows, run)}, dtype=float)

    table = of({})
    sums = {"all that was measured" if table.isna().any() else "all": table.sum(min_count=1)}
    near = [row["steps"] for row in rows if row.get("what") == "equal distance" and row["inside"]]
    if near:
        fast = {"sampling.scheduler": "dpmsolver++", "sampling.steps": min(near), "sampling.eta": 0.0}
        sums[f"the same with DPM-Solver++ in {min(near)} steps, judged with the semantic model"] = of(fast)[
            table.notna()
        ].sum(skipna=False, min_count=1)
    return pd.concat([table, pd.Series(sums, dtype=float)]).rename_axis("work").reset_index(name="hours")


# ---------------------------------------------------------------- command line


def parts_of(
    names: Sequence[str], scale: Scale, crops: Path | None, results: Results, device: torch.device
) -> dict[str, Callable[[], Rows]]:
    """Parts by name, not yet begun; the last two share one training."""

    @functools.cache
    def study() -> Semantic:
        if crops is None:
            raise ValueError("--crops: expected the file that --pack writes, found none; give it.")
        return Semantic(crops, scale, device)

    known = {
        "sweep": lambda: sweep_rows(scale, device),
        "networks": lambda: network_rows(("semantic", "class"), scale, device),
        "compiled": lambda: network_rows(("semantic",), scale, device, compiled=True),
        "sampler": lambda: sampler_rows(study),
        "semantic": lambda: semantic_rows(study, results),
    }
    return {name: known[name] for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What a quarter of an hour on one GPU can say.")
    parser.add_argument("--run", type=int, choices=RUNS, help="five minutes: 1, then 2")
    parser.add_argument("--parts", nargs="+", choices=BUDGET, help="some parts instead of a run")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="of all, the start of this process counted")
    parser.add_argument("--crops", type=Path, help="file of crops, written by --pack and read by run 2")
    parser.add_argument("--pack", metavar="MAT", help="write --crops from the cohort's file, and end")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="counted by --pack beside tree and crops")
    parser.add_argument("--hours", nargs="+", type=Path, metavar="JSONL", help="hours of the paper's profile, and end")
    parser.add_argument("--dry", action="store_true", help="small, on a CPU: numbers mean nothing")
    parser.add_argument("--out", type=Path, help="folder of what is taken home; reports/gpu, or gpu-dry with --dry")
    options = parser.parse_args(arguments)
    if options.hours:
        rows = read(*options.hours)
        if any(row.get("dry") for row in rows):
            parser.error("--hours: expected what runs on a GPU measured, found rows of --dry; run without it")
        print(hours(rows).round(2).to_string(index=False, na_rep="not measured"))
        print(NOT_IN)
        return
    if options.pack:
        named = options.crops and options.crops.suffix == ".npz"
        if not named or (options.wheels and not options.wheels.is_dir()):
            found = f"found {options.crops} and {options.wheels}"
            parser.error(f"--pack: expected --crops FILE.npz to write, and --wheels a folder that is there, {found}")
        pack(options.pack, options.crops, options.wheels)
        return
    if not (options.run or options.parts):
        parser.error("expected --run 1, --run 2 or --parts, found none of them")
    folder = options.out or artifacts.work_root() / "reports" / ("gpu-dry" if options.dry else "gpu")
    results, device = Results(folder), torch.device("cpu") if options.dry else records.device()
    known = artifacts.environment()
    where = {"device": records.device_name(device), "dry": options.dry}
    results.add(part="start", **where, commit=known["commit"], torch=torch.__version__)
    names = options.parts or RUNS[options.run]
    parts = parts_of(names, DRY if options.dry else PAPER, options.crops, results, device)
    perform(parts, results, psutil.Process().create_time() + options.seconds)


if __name__ == "__main__":
    main()
