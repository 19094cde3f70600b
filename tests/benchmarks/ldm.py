"""``make bench``: what training and sampling cost here, against a plain loop and DDIM-500, in one run.

A ratio is taken between neighbours in time, since a shared machine drifts; every rate stands beside the device's own
matrix rate, measured in the same run. Speed of a sampler means nothing without what it draws: with ``--run`` the
denoisers of a finished run are drawn from, and both samplers' distances to held-out patients stand beside the seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nafld_utils import artifacts, bench_records, diffusion, engine, params, speed
from nafld_utils.precision import arithmetic
from nafld_utils.sampling import build_sampler, guided

PLAIN, OURS = "plain loop", "this project"
SLOW_STEPS, AT_ONCE = 500, 50  # of DDIM [paper]; images that a GPU draws at once
SHAPES = {"semantic": (3, 64, 64), "class": (4, 32, 32)}  # of the paper's latents
DEMO_SHAPE = (4, 16, 16)


def network(profile: str, conditioning: str, device: torch.device) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    """A denoiser of a profile on a device, with the shape of its latents."""
    shape = SHAPES[conditioning] if profile == "paper" else DEMO_SHAPE
    section = params.load(profile).section(f"ldm.{conditioning}")
    return diffusion.build_denoiser(conditioning, section, shape, 5, 0).to(device), shape


def plain_training(denoiser: torch.nn.Module, batch: Any, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """Function that does one step as a plain diffusers script does: fp32, eager, all of it in the order of the text."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    device = next(denoiser.parameters()).device
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=settings["learning_rate"])
    rate = get_cosine_schedule_with_warmup(optimizer, 10, 1000)
    ema, noiser = EMAModel(denoiser.parameters(), decay=0.999), DDPMScheduler(**options)
    loss_of = torch.nn.functional.l1_loss if denoiser.conditioning == "semantic" else torch.nn.functional.mse_loss

    def step() -> None:
        latents, conditions = batch()
        latents, conditions = latents.to(device), conditions.to(device)
        noise = torch.randn_like(latents)
        t = torch.randint(1000, (len(latents),), device=device)
        keep = torch.rand(len(latents), device=device) >= 0.1
        predicted = denoiser(noiser.add_noise(latents, noise, t), t, denoiser.condition(conditions, keep))
        target = noise if options["prediction_type"] == "epsilon" else noiser.get_velocity(latents, noise, t)
        loss = loss_of(predicted, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(denoiser.parameters())
        loss.item()

    return step


@torch.no_grad()
def plain_sampling(
    denoiser: torch.nn.Module, options: dict[str, Any], conditions: torch.Tensor, z: torch.Tensor, steps: int,
    guidance: float, walked: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """DDIM in fp32 with two passes a step, one for the condition and one without."""
    sampler = build_sampler(options)
    sampler.set_timesteps(steps, device=z.device)
    n = len(z)
    keep = torch.ones(n, dtype=torch.bool, device=z.device)
    with_condition, without = denoiser.condition(conditions, keep), denoiser.condition(conditions, ~keep)
    for t in sampler.timesteps[:walked]:
        both = denoiser(z, t.expand(n), with_condition), denoiser(z, t.expand(n), without)
        z = sampler.step(guided(*both, guidance), t, z, eta=0.0).prev_sample
    return z


@contextlib.contextmanager
def resting(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a network that waits for its turn out of a GPU's memory, so that a peak is of the other one alone."""
    module.zero_grad(set_to_none=True)
    module.to("cpu")
    yield
    module.to(device)


def measure(profile: str, conditioning: str, device: torch.device, fast_steps: int, compiled: bool) -> Iterator[dict]:
    """Rows of one network: training a step and sampling an image, plain and ours, one after the other."""
    settings = params.load(profile).section("ldm")
    side = params.load(profile).preprocess.map_size
    options = diffusion.schedule_options(settings[conditioning], settings["prediction"], settings["train_timesteps"])
    denoiser, shape = network(profile, conditioning, device)
    n = speed.affordable(denoiser, shape, side, settings["batch_size"], device)
    on_gpu = device.type == "cuda"
    repeats, flops = (20 if on_gpu else 6), diffusion.forward_flops(denoiser, shape, side)
    pool = speed.latents_for(denoiser, shape, side)
    generator = torch.Generator().manual_seed(0)
    ours = copy.deepcopy(denoiser).to(memory_format=torch.channels_last if on_gpu else torch.contiguous_format)
    if compiled:
        diffusion.compile_network(ours)
    step = plain_training(denoiser, lambda: pool.batch(n, generator), settings, options)
    common = {"network": conditioning, "work": "training step", "images": n}
    with resting(ours, device), arithmetic("fp32", device):
        speed.reset_peak(device)
        seconds = min(speed.timed(step, device, repeats) for _ in range(2))
    yield row(common, PLAIN, speed.Timing(seconds, speed.TRAINING_PASSES * n * flops, speed.peak_gib(device)))
    del step  # its optimiser's state must not count in what follows
    with resting(denoiser, device):
        timings = [
            speed.time_training(ours, shape, settings, options, device, side, repeats, 5 if on_gpu else 2, n)
            for _ in range(2)
        ]
    yield row(common, OURS, min(timings, key=lambda timing: timing.seconds))

    guidance = 1.2
    at_once = AT_ONCE if on_gpu else min(8, max(1, n))
    walked = 20 if on_gpu else 3
    common = {"network": conditioning, "work": "image", "images": at_once}
    conditions = pool.conditions[:at_once] if conditioning == "class" else pool.conditions[:at_once, 0]
    z, conditions = torch.randn(at_once, *shape, device=device), conditions.to(device)
    denoiser.eval()
    with resting(ours, device), arithmetic("fp32", device):
        speed.reset_peak(device)
        seconds = speed.timed(
            lambda: plain_sampling(denoiser, options, conditions, z, SLOW_STEPS, guidance, walked), device
        )
    plain = speed.Timing(seconds / walked * SLOW_STEPS / at_once, 2 * SLOW_STEPS * flops, speed.peak_gib(device))
    yield row(common, f"{PLAIN}: DDIM, {SLOW_STEPS} steps, two passes", plain)
    noisy = params.load(profile).sampling.eta  # of DDIM, whose noise is drawn on the CPU
    for name, scheduler, eta, steps in (
        ("DDIM", "ddim", noisy, SLOW_STEPS),
        ("DPM-Solver++", "dpmsolver++", 0.0, fast_steps),
    ):
        how = {"scheduler": scheduler, "eta": eta, "guidance": guidance, "precision": settings["precision"]}
        with resting(denoiser, device):
            timing = speed.time_sampling(ours, shape, options, device, side, at_once, steps, walked, **how)
        yield row(common, f"{OURS}: {name}, {steps} steps", timing)


def row(common: dict[str, Any], how: str, timing: speed.Timing) -> dict[str, Any]:
    """One line of the table."""
    tflops = timing.rate / 1e12
    return {**common, "how": how, "seconds": timing.seconds, "TFLOP/s": tflops, "peak GiB": timing.memory_gib}


def table(profile: str, device: torch.device, fast_steps: int = 20, compiled: bool = False) -> pd.DataFrame:
    """All rows, with the ratio to the plain loop and the share of the device's bf16 (CPU: fp32) matrix rate.

    Returns
    -------
    pandas.DataFrame
        ``network, work, images, how, seconds, TFLOP/s, peak GiB, times faster than plain, share of matrix rate``.
    """
    best = speed.matrix_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = []
    for conditioning in ("semantic", "class"):
        for item in measure(profile, conditioning, device, fast_steps, compiled):
            engine.announce(f"{item['network']} {item['how']}: {item['seconds']:.4f} s")
            rows.append(item)
    found = pd.DataFrame(rows)
    plain = found[found["how"].str.startswith(PLAIN)].set_index(["network", "work"])["seconds"]
    keys = pd.MultiIndex.from_frame(found[["network", "work"]])
    found["times faster than plain"] = plain.reindex(keys).to_numpy() / found["seconds"].to_numpy()
    found["share of matrix rate"] = found["TFLOP/s"] * 1e12 / best
    found.attrs["matrix rate"] = best
    return found


def _plain_images(denoiser: torch.nn.Module, schedule: dict[str, Any], shape: tuple[int, ...], guidance: float) -> Any:
    """Function from rows and their conditions to latents by `plain_sampling`, `AT_ONCE` images at once."""
    device = next(denoiser.parameters()).device

    def draw(rows: pd.DataFrame, conditions: np.ndarray) -> torch.Tensor:
        z = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in rows["seed"]])
        parts = zip(z.to(device).split(AT_ONCE), torch.from_numpy(conditions).to(device).split(AT_ONCE), strict=True)
        return torch.cat([plain_sampling(denoiser, schedule, c, part, SLOW_STEPS, guidance) for part, c in parts])

    return draw


def drawn(run: artifacts.Run, n: int, fast_steps: int, plain: bool = True) -> pd.DataFrame:
    """Both samplers on a finished run's first fold: seconds an image and Lite0 Frechet distance to held-out patients.

    Parameters
    ----------
    run : Run
    n : int
        Images a sampler and set of seeds.
    fast_steps : int
        Of DPM-Solver++.
    plain : bool
        DDIM as a plain script walks it, fp32 with two passes a step; else as this project does.

    Returns
    -------
    pandas.DataFrame
        ``network, how, seeds, seconds, frechet, condition``, DDIM of 500 steps with eta 0 and the fast sampler, each
        with the same two sets of seeds: the distance between the two sets of one sampler is the spread that chance
        makes.
    """
    from nafld_utils import autoencoder
    from nafld_utils.stages import comparison, first_stages, ldm, samples

    device, fold = engine.device(run.settings.engine), first_stages.folds_of(run)[0]
    guidance, rows = run.settings.sampling.guidance, []
    for conditioning in run.settings.ldm.conditionings:
        stage = first_stages.first_stage(run, conditioning, fold).to(device)
        shape = autoencoder.latent_shape(stage, run.settings.preprocess.image_size)
        denoiser = ldm.placed(ldm.load_denoiser(run, conditioning, fold), device)
        judge = comparison.Judge(run, conditioning, fold, str(device))
        facts, conditions = samples.draw_conditions(run, conditioning, fold, n)

        model = (run, conditioning, fold, denoiser, stage, device)
        fast = {"scheduler": "dpmsolver++", "steps": fast_steps, "eta": 0.0, "guidance": guidance}
        exact = {**fast, "scheduler": "ddim", "steps": SLOW_STEPS}
        slow = f"{OURS}: DDIM, {SLOW_STEPS} steps", samples.sampler(*model, exact)
        if plain:
            schedule = ldm.schedule_options(run, conditioning)
            slow = f"{PLAIN}: DDIM, {SLOW_STEPS} steps, two passes", _plain_images(denoiser, schedule, shape, guidance)
        ways = {slow[0]: slow[1], f"{OURS}: DPM-Solver++, {fast_steps} steps": samples.sampler(*model, fast)}
        if device.type == "cuda":
            samples.sampler(*model, {**fast, "steps": 2})(facts, conditions)  # kernels are chosen at their first use
        for seeds in ("first", "second"):
            chosen = facts.assign(seed=[artifacts.unit_seed(seed, seeds) for seed in facts["seed"]])
            for how, draw in ways.items():
                speed.wait(device)
                started = time.perf_counter()
                latents = draw(chosen, conditions)
                speed.wait(device)
                seconds = (time.perf_counter() - started) / n
                found = judge(autoencoder.decode_latents(stage, latents, device), facts, conditions)
                rows.append({"network": conditioning, "how": how, "seeds": seeds, "seconds": seconds, **found})
    return pd.DataFrame(rows)


def against_spread(made: pd.DataFrame) -> pd.DataFrame:
    """Whether the fast sampler of each network draws what DDIM draws, as far as chance lets one see.

    Parameters
    ----------
    made : pandas.DataFrame
        From `drawn`: a network's DDIM first, two sets of seeds a sampler.

    Returns
    -------
    pandas.DataFrame
        ``network, how, seconds`` (an image, mean of both sets), ``first, second`` (Frechet distance of each set to
        held-out patients), ``times_faster`` (than DDIM), ``difference`` (of the means, to DDIM), ``spread`` (between
        two sets of one sampler, the wider of DDIM's and its own), ``inside`` (whether the difference is no more).
    """
    rows = []
    for network, part in made.groupby("network", sort=False):
        slow: dict[str, Any] = {}
        for how, both in part.groupby("how", sort=False):
            first, second = (
                float(both.loc[both["seeds"] == seeds, "frechet"].iloc[0]) for seeds in ("first", "second")
            )
            row = {"network": network, "how": how, "seconds": both["seconds"].mean(), "first": first, "second": second}
            slow = slow or row
            row["times_faster"] = slow["seconds"] / row["seconds"]
            row["difference"] = (first + second - slow["first"] - slow["second"]) / 2
            row["spread"] = max(abs(first - second), abs(slow["first"] - slow["second"]))
            rows.append({**row, "inside": abs(row["difference"]) <= row["spread"]})
    return pd.DataFrame(rows)


def main() -> None:
    """Command line; writes ``bench_models.csv`` (and ``bench_drawn.csv``) and the record, and prints the tables."""
    parser = argparse.ArgumentParser(description="Measure training and sampling on this device.")
    parser.add_argument("--networks", choices=bench_records.NETWORKS, default="auto")
    parser.add_argument("--fast-steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile of this project's networks")
    parser.add_argument("--run", help="profile of a finished run whose denoisers are drawn from as well")
    parser.add_argument("--n", type=int, default=64, help="images a sampler and set of seeds with --run")
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profile = options.networks
    if profile == "auto":
        profile = "paper" if device.type == "cuda" else "demo"
    started = time.perf_counter()
    found = table(profile, device, options.fast_steps, options.compile)
    rate = found.attrs["matrix rate"] / 1e12
    print(f"{bench_records.device_name(device)}, networks of {profile}, matrix rate {rate:.2f} TFLOP/s")
    show("bench_models", found, options.out)
    rows = record(found, profile)
    if options.run:
        made = drawn(artifacts.open_run(options.run), options.n, options.fast_steps)
        show("bench_drawn", made, options.out)
        rows += record_drawn(made, options.run)
    facts = {"networks": profile, "matrix rate, TFLOP/s": rate}
    bench_records.save(options.out, "models", rows, device, time.perf_counter() - started, **facts)


def record(found: pd.DataFrame, profile: str) -> list[dict[str, Any]]:
    """Rows of the benchmark's record, from `table`."""
    rows = []
    for row in found.to_dict("records"):
        training = row["work"] == "training step"
        per = f"a step of {row['images']} images" if training else f"an image, {row['images']} at once"
        line = {"stage": "03" if training else "04", "what": f"{row['network']} model, {row['how']}"}
        line |= {"per": f"{per}, networks of {profile}", "seconds": row["seconds"], "a_second": 1 / row["seconds"]}
        line |= {"peak_gib": row["peak GiB"], "share": row["share of matrix rate"]}
        if not row["how"].startswith(PLAIN):
            line |= {"ratio": row["times faster than plain"], "against": "plain diffusers loop, fp32"}
        rows.append(line)
    return rows


def record_drawn(made: pd.DataFrame, run: str) -> list[dict[str, Any]]:
    """Rows of the benchmark's record, from `drawn`: each network and sampler, with what `against_spread` says."""
    rows = []
    for row in against_spread(made).to_dict("records"):
        per = f"an image of run {run}; distances to held-out patients {row['first']:.0f}, {row['second']:.0f}"
        line = {"stage": "04", "what": f"trained {row['network']} model, {row['how']}", "per": per}
        line |= {"seconds": row["seconds"], "a_second": 1 / row["seconds"]}
        if not row["how"].startswith(PLAIN):
            verdict = "inside" if row["inside"] else "outside"
            line["per"] += f", {row['difference']:+.0f} on average: {verdict} the {row['spread']:.0f} between seeds"
            line |= {"ratio": row["times_faster"], "against": "plain DDIM of 500 steps"}
        rows.append(line)
    return rows


def show(name: str, found: pd.DataFrame, folder: Path) -> None:
    """Print a table and save it."""
    artifacts.save_table(folder / f"{name}.csv", found)
    print(found.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
