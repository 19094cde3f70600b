"""What training and sampling cost here, against a plain loop and DDIM-500, in one run.

A ratio is taken between neighbours in time, since a shared machine drifts; every rate stands beside the device's own
matrix rate, measured in the same run. Speed of a sampler means nothing without what it draws: with ``--run`` the
denoisers of a finished run are drawn from, and both samplers' distances to held-out patients stand beside the seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import memory
import numpy as np
import pandas as pd
import records
import torch

from nafld_utils import artifacts, engine, ldm, params
from nafld_utils.engine import arithmetic
from nafld_utils.ldm.sampler import build_sampler, guided
from nafld_utils.sampling.time_estimate import TRAINING_PASSES, Model

PLAIN, OURS = "plain loop", "this project"
SLOW_STEPS, AT_ONCE = 500, 50  # of DDIM [paper]; images that a GPU draws at once
GUIDANCE = 1.2
SHAPES = {"semantic": (3, 64, 64), "class": (4, 32, 32)}  # of the paper's latents
DEMO_SHAPE = (4, 16, 16)
NETWORKS = ("auto", "demo", "cpu", "paper")  # whose networks are measured; auto: paper on a GPU, demo elsewhere


def model(profile: str, conditioning: str, device: torch.device) -> Model:
    """A denoiser of a profile on a device, with random weights, and what its steps take."""
    shape = SHAPES[conditioning] if profile == "paper" else DEMO_SHAPE
    chosen = params.load(profile)
    settings = chosen.section("ldm")
    denoiser = ldm.denoiser.build_denoiser(conditioning, settings[conditioning], shape, 5, 0).to(device)
    options = ldm.denoiser.schedule_options(settings[conditioning], settings["prediction"], settings["train_timesteps"])
    return Model(denoiser, shape, settings, options, chosen.preprocess.map_size, device)


def matrix_rate(device: torch.device, side: int | None = None) -> float:
    """Operations per second of a large square matrix product: what the device can do at best, measured.

    In bfloat16 with a side of 8192 on a GPU, in float32 with 1024 on a CPU.
    """
    on_gpu = device.type == "cuda"
    side = side or (8192 if on_gpu else 1024)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(engine.timed(lambda: a @ b, device, 10 if on_gpu else 3) for _ in range(3))


def plain_training(denoiser: torch.nn.Module, batch: Any, settings: Any, options: Mapping[str, Any]) -> Any:
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
    denoiser: torch.nn.Module,
    options: Mapping[str, Any],
    conditions: torch.Tensor,
    z: torch.Tensor,
    steps: int,
    guidance: float,
    walked: int | None = None,
) -> torch.Tensor:
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
def alone(resting: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a network that waits for its turn out of a GPU's memory, so that the peak, counted anew, is of the other."""
    resting.zero_grad(set_to_none=True)
    resting.to("cpu")
    memory.reset_peak(device)
    yield
    resting.to(device)


def training_rows(plain: Model, ours: Model, profile: str) -> records.Rows:
    """A training step, plain and ours, one after the other."""
    device, n = plain.device, plain.affordable()
    on_gpu, pool, generator = device.type == "cuda", plain.latents(), torch.Generator().manual_seed(0)
    repeats = 20 if on_gpu else 6
    work = {
        "stage": "03",
        "network": plain.denoiser.conditioning,
        "images": n,
        "flops": TRAINING_PASSES * n * plain.flops,
    }
    work["per"] = f"a step of {n} images, networks of {profile}"
    step = plain_training(plain.denoiser, lambda: pool.batch(n, generator), plain.settings, plain.options)
    with alone(ours.denoiser, device), arithmetic("fp32", device):
        seconds = min(engine.timed(step, device, repeats) for _ in range(2))
        row = _row(work, PLAIN, seconds, device)
    yield row
    del step  # its optimiser's state must not count in what follows
    with alone(plain.denoiser, device):
        warm = 5 if on_gpu else 2
        best = min(engine.timed(ours.training_step(n), device, repeats, warm) for _ in range(2))
        row = _row(work, OURS, best, device, seconds)
    yield row


def image_rows(plain: Model, ours: Model, profile: str, fast_steps: int) -> records.Rows:
    """An image by plain DDIM, and by DDIM and DPM-Solver++ as this project walks them, one after the other."""
    device, shape, name = plain.device, plain.shape, plain.denoiser.conditioning
    on_gpu = device.type == "cuda"
    n, walked = (AT_ONCE, 20) if on_gpu else (min(8, plain.affordable()), 3)
    work = {"stage": "04", "network": name, "images": n, "per": f"an image, {n} at once, networks of {profile}"}
    conditions = plain.latents().conditions[:n]
    conditions = (conditions if name == "class" else conditions[:, 0]).to(device)
    z = torch.randn(n, *shape, device=device)
    plain.denoiser.eval()
    exact = {**work, "flops": 2 * SLOW_STEPS * plain.flops}
    with alone(ours.denoiser, device), arithmetic("fp32", device):
        drawing = (plain.denoiser, plain.options, conditions, z, SLOW_STEPS, GUIDANCE, walked)
        slow = engine.timed(lambda: plain_sampling(*drawing), device) / walked * SLOW_STEPS / n
        row = _row(exact, f"{PLAIN}: DDIM, {SLOW_STEPS} steps, two passes", slow, device)
    yield row
    noisy = params.load(profile).sampling.eta  # of DDIM, whose noise is drawn on the CPU
    for text, scheduler, eta, steps in (
        ("DDIM", "ddim", noisy, SLOW_STEPS),
        ("DPM-Solver++", "dpmsolver++", 0.0, fast_steps),
    ):
        how = {"scheduler": scheduler, "eta": eta, "guidance": GUIDANCE, "precision": ours.settings["precision"]}
        with alone(plain.denoiser, device):
            seconds = ours.seconds_an_image(n, steps, walked, **how)
            given = {**work, "flops": 2 * steps * plain.flops}
            row = _row(given, f"{OURS}: {text}, {steps} steps", seconds, device, slow)
        yield row


def _row(work: dict[str, Any], how: str, seconds: float, device: torch.device, plain: float | None = None) -> dict:
    """A record's row of one way, with ``how`` and ``rate`` (operations per second) besides."""
    line = {**work, "what": f"{work['network']} model, {how}", "how": how, "rate": work["flops"] / seconds}
    line |= {"seconds": seconds, "a_second": 1 / seconds, "peak_gib": memory.peak_gib(device, since_reset=True)}
    return line | ({"ratio": plain / seconds, "against": "plain diffusers loop, fp32"} if plain else {})


def network_rows(profile: str, device: torch.device, fast_steps: int = 20, compiled: bool = False) -> records.Rows:
    """Both networks of a profile: training per step and sampling per image, with the share of the matrix rate."""
    best = matrix_rate(device)
    for conditioning in ("semantic", "class"):
        plain = model(profile, conditioning, device)
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        ours = dataclasses.replace(plain, denoiser=copy.deepcopy(plain.denoiser).to(memory_format=layout))
        if compiled:
            ldm.compile_network(ours.denoiser)
        for found in (training_rows(plain, ours, profile), image_rows(plain, ours, profile, fast_steps)):
            for row in found:
                yield {**row, "share": row["rate"] / best, "matrix_rate": best}


def _plain_images(denoiser: torch.nn.Module, schedule: dict[str, Any], shape: tuple[int, ...], guidance: float) -> Any:
    """Function from rows and their conditions to latents by `plain_sampling`, `AT_ONCE` images at once."""
    device = next(denoiser.parameters()).device

    def draw(rows: pd.DataFrame, conditions: np.ndarray) -> torch.Tensor:
        z = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in rows["seed"]])
        parts = zip(z.to(device).split(AT_ONCE), torch.from_numpy(conditions).to(device).split(AT_ONCE), strict=True)
        return torch.cat([plain_sampling(denoiser, schedule, c, part, SLOW_STEPS, guidance) for part, c in parts])

    return draw


def drawn(run: artifacts.Run, n: int, fast_steps: int) -> pd.DataFrame:
    """Both samplers on a finished run's first fold: seconds per image and Lite0 Frechet distance to held-out patients.

    `n` images per sampler and set of seeds, of DDIM of 500 steps with eta 0 and of the fast sampler, each with the
    same two sets of seeds: the distance between the two sets of one sampler is the spread that chance makes. DDIM is
    walked as a plain script does, fp32 with two passes per step. Columns ``network, how, seeds, seconds, frechet,
    condition``.
    """
    from nafld_utils import ldm
    from nafld_utils.sampling import sampler_comparison, set_units

    device, fold = engine.device(run.settings.engine), ldm.folds_of(run)[0]
    guidance, rows = run.settings.sampling.guidance, []
    for conditioning in run.settings.ldm.conditionings:
        stage = ldm.first_stage(run, conditioning, fold).to(device)
        shape = ldm.latent_shape(stage, run.settings.preprocess.image_size)
        denoiser = ldm.placed(ldm.load_denoiser(run, conditioning, fold), device)
        judge = sampler_comparison.Judge(run, conditioning, fold, str(device))
        facts, conditions = set_units.draw_conditions(run, conditioning, fold, n)

        model = (run, conditioning, fold, denoiser, stage, device)
        fast = {"scheduler": "dpmsolver++", "steps": fast_steps, "eta": 0.0, "guidance": guidance}
        slow = _plain_images(denoiser, ldm.schedule_options(run, conditioning), shape, guidance)
        ways = {f"{PLAIN}: DDIM, {SLOW_STEPS} steps, two passes": slow}
        ways |= {f"{OURS}: DPM-Solver++, {fast_steps} steps": set_units.sampler(*model, fast)}
        if device.type == "cuda":
            set_units.sampler(*model, {**fast, "steps": 2})(facts, conditions)  # kernels are chosen at their first use
        for seeds in ("first", "second"):
            chosen = facts.assign(seed=[artifacts.unit_seed(seed, seeds) for seed in facts["seed"]])
            for how, draw in ways.items():
                engine.wait(device)
                started = time.perf_counter()
                latents = draw(chosen, conditions)
                engine.wait(device)
                seconds = (time.perf_counter() - started) / n
                found = judge(ldm.decode_latents(stage, latents, device), facts, conditions)
                rows.append({"network": conditioning, "how": how, "seeds": seeds, "seconds": seconds, **found})
    return pd.DataFrame(rows)


def against_spread(made: pd.DataFrame) -> pd.DataFrame:
    """Whether the fast sampler of each network draws what DDIM draws, as far as chance lets one see.

    `made` is from `drawn`: of each network DDIM first, two sets of seeds per sampler. Columns ``network, how, seconds``
    (per image, mean of both sets), ``first, second`` (Frechet distance of each set to held-out patients),
    ``times_faster`` (than DDIM), ``difference`` (of the means, to DDIM), ``spread`` (between two sets of one sampler,
    the wider of DDIM's and its own), ``inside`` (whether the difference is no more).
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


def drawn_rows(made: pd.DataFrame, run: str) -> records.Rows:
    """Rows of a run's trained networks and both samplers, with what `against_spread` says."""
    for row in against_spread(made).to_dict("records"):
        per = f"an image of run {run}; distances to held-out patients {row['first']:.0f}, {row['second']:.0f}"
        line = {"stage": "04", "what": f"trained {row['network']} model, {row['how']}", "per": per}
        line |= {"seconds": row["seconds"], "a_second": 1 / row["seconds"]}
        if not row["how"].startswith(PLAIN):
            verdict = "inside" if row["inside"] else "outside"
            line["per"] += f", {row['difference']:+.0f} on average: {verdict} the {row['spread']:.0f} between seeds"
            line |= {"ratio": row["times_faster"], "against": "plain DDIM of 500 steps"}
        yield line


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Rows of the networks and, with ``--run``, of what a finished run's denoisers draw."""
    usual = "paper" if device.type == "cuda" else "demo"
    yield from network_rows(
        usual if options.networks == "auto" else options.networks, device, options.fast_steps, options.compile
    )
    if options.run:
        yield from drawn_rows(drawn(artifacts.open_run(options.run), options.n, options.fast_steps), options.run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="Measure training and sampling on this device.")
    parser.add_argument("--networks", choices=NETWORKS, default="auto", help="profile of the networks")
    parser.add_argument("--fast-steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile of this project's networks")
    parser.add_argument("--run", help="profile of a finished run whose denoisers are drawn from as well")
    parser.add_argument("--n", type=int, default=64, help="images per sampler and set of seeds with --run")
    return records.run("ldm", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
