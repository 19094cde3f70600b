"""One GPU, half an hour: ``python tests/benchmarks/gpu.py --part 1`` (then 2, then 3), each call within ten minutes.

Part 1 measures both networks of the paper's profile, eager and compiled, names the kernels that take the time of their
training and of their sampling, says the hours of the paper's stages 03 and 04 with their floor, and prepares the cohort
of ``--data``. Part 2 runs one fold of the semantic model on the cohort whole: a VQ-f4 first stage trained on the fold's
training patients, 20,000 steps, the synthetic set, its distances to held-out patients, stage 05's copy audit,
and the fast sampler beside DDIM of 500 steps. Part 3 does the same for the class model with a KL-f8 first stage and
8,000 steps, since 20,000 take 13 minutes. Units resume where an earlier call stopped, so a part that ran out of time is
called again. What is worth keeping is written to ``--out``: tables, curves, features, a grid of samples and one of how
they came about in training.

Notes
-----
Expected, not measured, in seconds, for a GPU of 700 TFLOP/s (bf16 matrix product) that trains at 40 % of it (280) and
draws eagerly at 25 % (175), with 65.7 GFLOP a semantic pass and 114.1 a class pass; fp32 at 30 and tf32 at 60 TFLOP/s.

Part 1: start 30; cohort and maps 75; twice the plain loops, (42 steps x 32 x 3 + 2 x 20 steps x 2 x 50) x 179.8 GFLOP
/ 30 = 48; this project's, eager and compiled, 20; compiling four graphs 4 x 45, and again for the profiler 4 x 20; sum
481.

Part 2: start 15; first stage 82, of which 63 are 200 steps of eight whole images at (0.35 + 3 x 0.67) TFLOP an image
and 60 TFLOP/s; latents (3,520 x 0.35 + 440 x 1.0 TFLOP) / 60 = 28; compiling 30; training 20,000 x 32 x 3 x 65.7 GFLOP
/ 280 = 451; validation 200 x 32 x 65.7 GFLOP / 175 = 2; 330 images 330 x 40 x 65.7 GFLOP / 175 = 5; samplers 64 x
(1,000 + 40) x 65.7 GFLOP / 175 = 25; sum 638 without checkpoints, the copy audit and, on a machine that has not
run part 1, the cohort: it is called twice, and the first call's end costs `CHECKPOINT` steps at most.

Part 3: start 15; first stage 75; latents (3,520 x 0.27 + 440 x 0.9 TFLOP) / 60 = 22; compiling 40; training 8,000 x 32
x 3 x 114.1 GFLOP / 280 = 313; 330 images 9; samplers 43; sum 517.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ldm as bench
import numpy as np
import pandas as pd
import records
import torch
from PIL import Image

from nafld_utils import artifacts, cohort, engine, ldm, networks, params, preprocessing, quality, sampling
from nafld_utils.artifacts import Run, save_array, save_table
from nafld_utils.ldm import autoencoder_units, denoiser_units
from nafld_utils.quality import copy_units
from nafld_utils.sampling import feature_units, sampler_comparison, time_estimate

MODELS = {2: ("semantic", "vq", 4, 20_000), 3: ("class", "kl", 8, 8_000)}  # first stage and training steps
N_DRAWN, FAST_STEPS = 32, 20  # images per sampler and set of seeds, steps of the fast sampler
CHECKPOINT = {2: 2500, 3: 4000}  # steps between checkpoints; one of the class model is 6.3 GB
GRID = 6  # images per side


def study(part: int, data: str | None, changes: dict[str, Any]) -> Run:
    """The run of part 2 or 3: the paper's profile, first fold, one model, a first stage trained on the fold."""
    name, kind, factor, steps = MODELS[part]
    chosen = {
        "run": "gpu-study",
        "cohort.path": data,
        "ldm.folds": [0],
        "ldm.balance": ["none"],
        "ldm.conditionings": [name],
        "ldm.steps": steps,
        "ldm.checkpoint_every": CHECKPOINT[part],
        "ldm.keep_checkpoints": 1,
        "ldm.preview_every": steps // 4,
        "ldm.log_every": 100,
        "quality.features": "lite0",  # needs no download
        "gan.enabled": False,
        "simulated.enabled": False,
        "sampling.n_images": 330,
        "sampling.scheduler": "dpmsolver++",
        "sampling.steps": FAST_STEPS,
        "sampling.eta": 0.0,
        f"autoencoder.{name}.source": "train",
        f"autoencoder.{name}.kind": kind,
        f"autoencoder.{name}.factor": factor,
        f"autoencoder.{name}.train_steps": 1000,
        "engine.compile": True,
    }
    return artifacts.open_run("paper", {**chosen, **changes})


def fold(run: Run, out: Path) -> None:
    """Train, draw and judge one model on the first fold."""
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    # drawing takes seconds, less than compiling it
    engine_settings = run.settings.engine.model_copy(update={"compile": False})
    eager = Run(run.settings.model_copy(update={"engine": engine_settings}))
    (task,) = autoencoder_units.tasks(run)
    name = task["conditioning"]

    def make(step: str, act: Callable[..., None], using: Run) -> None:
        print(f"{name}: {step}", flush=True)
        act(**{**task, "run": using})

    # what is done is written before the next begins, which may be stopped
    make("first stage", ldm.train_autoencoder, run)
    make("latents", ldm.make_latents, run)
    save_table(out / f"{name}_reconstruction.csv", ldm.reconstruction_table(run, name))
    make("denoiser", ldm.train_ldm, run)
    save_table(out / f"{name}_curve.csv", denoiser_units.curves(run))
    save_table(out / f"{name}_network.csv", ldm.network_table(run))
    looks = ldm.previews(run, name, task["fold"])
    save_grid(out / f"{name}_training.png", np.concatenate(list(looks.values())), ldm.N_PREVIEW)
    make("synthetic set", sampling.make_set, eager)
    save_grid(out / f"{name}_grid.png", sampling.open_synthetic(**task).images[: GRID**2], GRID)
    show(f"{name}_distances", distances(run, out), out)
    for what, found in copy_audit(eager).items():
        show(f"{name}_{what}", found, out)
    made = bench.drawn(eager, N_DRAWN, FAST_STEPS, plain=False)
    show(f"{name}_samplers", bench.against_spread(made), out)


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Save (n, S, S) uint8 images row by row as one PNG; what is missing in the last row is black."""
    rows = -(-len(images) // columns)
    filled = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    size = images.shape[1]
    tiled = filled.reshape(rows, columns, size, size).transpose(0, 2, 1, 3).reshape(rows * size, columns * size)
    Image.fromarray(tiled).save(path)


def copy_audit(run: Run) -> dict[str, pd.DataFrame]:
    """Stage 05's copy audit: `copies.summary` and, what it finds, `copies.calibration`."""
    sampling.build_features(
        run, feature_units.feature_tasks(run, run.settings.quality.features, sampling.generators(run))
    )
    for task in copy_units.reference_tasks(run):
        copy_units.make_reference(**task)
    for task in copy_units.audit_tasks(run):
        copy_units.audit(**task)
    return {"copies": quality.summary(run), "planted": quality.calibration(run)}


def kernels(profile: str, device: torch.device, compiled: bool) -> pd.DataFrame:
    """What the time of both networks of a profile goes to: `profiled`, ``work`` and ``network``."""
    tables, how = [], {"scheduler": "ddim", "eta": artifacts.open_run(profile).settings.sampling.eta}
    for name in ("semantic", "class"):
        model = bench.model(profile, name, device)
        model.denoiser = ldm.placed(model.denoiser, device)
        if compiled:
            ldm.compile_network(model.denoiser)
        found = profiled(model.training_step(model.affordable()), 3, device, warm=2)
        tables.append(found.assign(work="a training step", network=name))
        n = bench.AT_ONCE if device.type == "cuda" else 1
        draw = model.drawing(n, 3, guidance=bench.GUIDANCE, precision=model.settings["precision"], **how)
        found = profiled(draw, 1, device, warm=1).assign(work="a sampler step", network=name)
        tables.append(found.assign(calls=found["calls"] / 3, milliseconds=found["milliseconds"] / 3))
    return pd.concat(tables, ignore_index=True)


def profiled(call: Callable[[], Any], repeats: int, device: torch.device, warm: int, top: int = 15) -> pd.DataFrame:
    """What the time of a call goes to, from torch's profiler: kernels of a GPU, operators of a CPU, the longest first.

    Columns ``kernel, calls`` and ``milliseconds`` per call, ``share`` of the time of all of them.
    """
    on_gpu, activity = device.type == "cuda", torch.profiler.ProfilerActivity
    for _ in range(warm):
        call()
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * on_gpu]) as profiler:
        engine.timed(call, device, repeats, warm=0)
    rows = []
    for event in profiler.key_averages():
        if event.is_user_annotation or (on_gpu and event.device_type == torch.autograd.DeviceType.CPU):
            continue  # an operator's time is that of its kernels, which have rows of their own
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append({"kernel": event.key, "calls": event.count / repeats, "milliseconds": spent / repeats / 1000})
    table = pd.DataFrame(rows)
    table["share"] = table["milliseconds"] / table["milliseconds"].sum()
    return table.sort_values("milliseconds", ascending=False, ignore_index=True).head(top)


def paper_hours(found: pd.DataFrame, rate: float, run: Run) -> pd.DataFrame:
    """Hours that stages 03 and 04 of a run take on one device of a measured speed, and the least that they could.

    `found` are the rows of `ldm.network_rows` of the run's networks, `rate` the device's matrix rate; the run's
    settings are counted (`cost.passes`), nothing of it needs to be there. Columns ``work, model, PFLOP, hours, floor``:
    drawing holds every set, the comparison of samplers, previews and validation; the floor is all operations at the
    matrix rate. A GAN without ``gan.steps`` takes as many operations as the model it stands beside, here at that
    model's rate, which its own layers may not reach. The last row holds the sums; autoencoders, which are ready-made in
    the paper's profile, and the stages after 04 are not in it.
    """
    count, rows = time_estimate.passes(run), []
    for name in run.settings.ldm.conditionings:
        mine = found[found["network"] == name].set_index("how")
        step, image = mine.loc[bench.OURS], mine.loc[f"{bench.OURS}: DDIM, {bench.SLOW_STEPS} steps"]
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


def distances(run: Run, out: Path) -> pd.DataFrame:
    """Frechet and kernel distance of Lite0 features to held-out patients, and how near samples come to training images.

    Columns ``set, frechet, kernel, nearest`` (median distance to the nearest training image, in features), for the
    samples, for reconstructions of held-out images against those images (the first stage's bound; nearest of the
    held-out images themselves) and for real training images (the floor; nearest image of another patient).
    """
    (task,) = autoencoder_units.tasks(run)
    data, device = preprocessing.open_preprocessed(run), str(engine.device(run.settings.engine))
    network = networks.load(networks.LITE0)

    def measured(images: np.ndarray) -> np.ndarray:
        return networks.features(network, np.ascontiguousarray(images), networks.LITE0, device)

    held = data.images["fold"].to_numpy() == task["fold"]
    rows, back = ldm.reconstructions(**task)
    real, whole = measured(data.pool[:, 0]), measured(data.resized[rows])
    made = measured(sampling.open_synthetic(**task).images)
    for name, values in (("features", made), ("real_features", real)):
        save_array(out / f"{task['conditioning']}_{name}.npy", values.astype(np.float16))
    patients = data.images["patient_id"].to_numpy()[~held]
    apart = torch.cdist(torch.from_numpy(real[~held]), torch.from_numpy(real[~held])).numpy()
    apart[patients[:, None] == patients[None]] = np.inf
    within = networks.nearest_distance(whole, real[~held], 1)
    sets = {
        "synthetic": (made, real[held], networks.nearest_distance(made, real[~held], 1)),
        "reconstructions of held-out images": (measured(back), whole, within),
        "real training images": (real[~held], real[held], apart.min(1)),
    }
    found = []
    for label, (a, b, nearest) in sets.items():
        kernel = networks.kernel_distance(a, b, subset_size=min(50, len(a), len(b)))
        row = {"set": label, "frechet": networks.frechet_distance(a, b), "kernel": kernel}
        found.append({**row, "nearest": float(np.median(nearest))})
    return pd.DataFrame(found)


def speeds(profile: str, device: torch.device, out: Path) -> None:
    """Part 1 but for the cohort: what a profile's networks cost here, eager and compiled, and its hours so."""
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        found = pd.DataFrame(bench.network_rows(profile, device, compiled=compiled))
        show(f"bench_{name}", found, out)
        show(f"hours_{name}", paper_hours(found, found["matrix_rate"].iloc[0], artifacts.open_run(profile)), out)
        show(f"kernels_{name}", kernels(profile, device, compiled), out)


def show(name: str, found: pd.DataFrame, folder: Path) -> None:
    """Save a table and print it."""
    save_table(folder / f"{name}.csv", found)
    print(f"{name}\n{found.round(4).to_string(index=False)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Benchmarks and one whole fold of each model on one GPU.")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--data", help="the real cohort's .mat file")
    parser.add_argument("--set", default="", help='settings changed, e.g. "ldm.steps=100"')
    parser.add_argument("--out", type=Path, default=artifacts.work_root() / "reports" / "gpu-study")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    changes, device = params.parse_overrides(options.set), records.device()
    if options.part > 1:
        fold(study(options.part, options.data, changes), options.out)
        return
    speeds("paper" if device.type == "cuda" else "demo", device, options.out)
    if options.data:
        run = study(2, options.data, changes)
        cohort.build_cohort(run)
        preprocessing.build_preprocessed(run)


if __name__ == "__main__":
    main()
