"""How fast a device trains and samples a denoiser: seconds, memory, and the share of its matrix rate.

Contract: what is timed is the loop that the study runs (`diffusion_training.train`, `sampling.sample`) on random
latents; weights are random too, since time does not depend on them. Operations are counted, never assumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from nafld_utils import bench_records, diffusion, sampling
from nafld_utils.autoencoder import groups
from nafld_utils.diffusion_training import LatentPool, Training, start_training, train

TRAINING_PASSES = 3  # a backward pass costs about two forward passes
LONG = 1e11  # operations that keep a CPU busy for a second


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes
    ----------
    seconds : float
        Of one training step at the batch asked for, or of one image.
    flops : float
        Floating-point operations in that time, two a multiply-add.
    memory_gib : float
        Peak memory: of the tensors on a GPU, of the whole process on a CPU; NaN where a system does not tell.
    """

    seconds: float
    flops: float
    memory_gib: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.flops / self.seconds


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16, side: int | None = None) -> float:
    """Operations a second of a large square matrix product: what the device can do at best, measured.

    Parameters
    ----------
    device : torch.device
        Where.
    dtype : torch.dtype
        Of the matrices.
    side : int, optional
        Their side; 8192 on a GPU, 1024 on a CPU.
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: a @ b, device, 10 if device.type == "cuda" else 3) for _ in range(3))
    return 2 * side**3 / best


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 1, warm: bool = True) -> float:
    """Seconds of one `call`, after a first one that is not counted where `warm`."""
    if warm:
        call()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given; a CPU is done when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let `peak_gib` count from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        bench_records.reset_peak()


def peak_gib(device: torch.device) -> float:
    """Most memory since `reset_peak`, GiB: of the tensors on a GPU, of the process on a CPU; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return bench_records.peak_gib() if bench_records.PEAK_RESET.exists() else float("nan")


def latents_for(denoiser: nn.Module, shape: tuple[int, int, int], map_size: int, n: int = 64) -> LatentPool:
    """Random latents and conditions that a denoiser can be trained on."""
    conditions = torch.arange(n) % 2
    if denoiser.conditioning == "semantic":
        conditions = torch.randint(denoiser.map_classes, (n, 1, map_size, map_size), dtype=torch.uint8)
    return LatentPool(torch.randn(n, 1, *shape), conditions, lambda moments, noise: moments)


def affordable(denoiser: nn.Module, shape: tuple[int, int, int], map_size: int, n: int, device: torch.device) -> int:
    """Images to time a step on: all n on a GPU, as many as a CPU does in about a second elsewhere."""
    if device.type == "cuda":
        return n
    flops = diffusion.forward_flops(denoiser, shape, map_size)
    return int(min(n, max(1, 3e10 // flops)))


def time_training(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_steps: int = 2,
    warmup: int = 1,
    n_images: int | None = None,
) -> Timing:
    """Time training steps of a denoiser that is on its device already.

    Parameters
    ----------
    denoiser : torch.nn.Module
        Trained in place.
    shape : tuple of int
        Of a latent.
    settings : mapping
        The ``ldm`` section.
    options : mapping
        From `diffusion.schedule_options`.
    device : torch.device
        Where it is.
    map_size : int
        Side of a semantic map.
    n_steps, warmup : int
        Steps that are timed, and steps before them.
    n_images : int, optional
        Images a step, where fewer than the batch are timed and scaled up.
    """
    n = n_images or settings["batch_size"]
    steps = _warm_steps(denoiser, shape, settings, options, device, map_size, n_steps, warmup, n)
    started = time.perf_counter()
    for _ in range(n_steps):
        next(steps)
    wait(device)
    seconds = (time.perf_counter() - started) / n_steps
    flops = TRAINING_PASSES * n * diffusion.forward_flops(denoiser, shape, map_size)
    return Timing(seconds, flops, peak_gib(device))


def _warm_steps(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_steps: int,
    warmup: int,
    n_images: int,
) -> Iterator[Training]:
    """Training steps of `n_images` random latents without a validation, `n_steps` or more after those of `warmup`."""
    from diffusers import DDPMScheduler

    settings = {**settings, "batch_size": n_images, "steps": n_steps + warmup + 1, "log_every": 10**9}
    settings["accumulate"] = min(settings["accumulate"], n_images)
    training, pool = start_training(denoiser, settings), latents_for(denoiser, shape, map_size)
    loss = settings[denoiser.conditioning]["loss"]
    steps = train(training, pool, None, settings, loss, DDPMScheduler(**options), 0, device)
    reset_peak(device)
    for _ in range(warmup):
        next(steps)
    wait(device)
    return steps


def kernels(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_steps: int = 3,
    warmup: int = 2,
    n_images: int | None = None,
    top: int = 15,
) -> pd.DataFrame:
    """What the time of training steps goes to, see `profiled`.

    Parameters
    ----------
    denoiser, shape, settings, options, device, map_size, n_steps, warmup, n_images
        As in `time_training`.
    top : int
        As in `profiled`.
    """
    n = n_images or settings["batch_size"]
    steps = _warm_steps(denoiser, shape, settings, options, device, map_size, n_steps, warmup, n)

    def train_on() -> None:
        for _ in range(n_steps):
            next(steps)

    return profiled(train_on, n_steps, device, top)


def sampling_kernels(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_images: int,
    n_steps: int = 3,
    top: int = 15,
    **how: Any,
) -> pd.DataFrame:
    """What the time of sampler steps goes to, see `profiled`; a first drawing is not counted.

    Parameters
    ----------
    denoiser, shape, options, device, map_size, n_images
        As in `time_sampling`.
    n_steps, top : int
        As in `profiled`.
    **how
        ``scheduler, eta, guidance, precision`` of `sampling.sample`.
    """
    draw = _drawing(denoiser, shape, options, device, map_size, n_images, n_steps, **how)
    draw()
    wait(device)
    return profiled(draw, n_steps, device, top)


def profiled(call: Callable[[], Any], n_steps: int, device: torch.device, top: int = 15) -> pd.DataFrame:
    """What the time of a call goes to, from torch's profiler: kernels of a GPU, operators of a CPU.

    Parameters
    ----------
    call : callable
        Is called once; it must be warm.
    n_steps : int
        Steps that it makes.
    device : torch.device
        Where it computes.
    top : int
        Rows, the longest first.

    Returns
    -------
    pandas.DataFrame
        ``kernel, calls`` and ``milliseconds`` a step, ``share`` of the time of all of them.
    """
    on_gpu, activity = device.type == "cuda", torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * on_gpu]) as profiler:
        call()
        wait(device)
    rows = []
    for event in profiler.key_averages():
        if event.is_user_annotation or (on_gpu and event.device_type == torch.autograd.DeviceType.CPU):
            continue  # an operator's time is that of its kernels, which have rows of their own
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append({"kernel": event.key, "calls": event.count / n_steps, "milliseconds": spent / n_steps / 1000})
    table = pd.DataFrame(rows)
    table["share"] = table["milliseconds"] / table["milliseconds"].sum()
    return table.sort_values("milliseconds", ascending=False, ignore_index=True).head(top)


def time_sampling(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_images: int,
    steps: int,
    timed_steps: int | None = None,
    **how: Any,
) -> Timing:
    """Time the drawing of images by a denoiser that is on its device already, scaled to one image.

    Parameters
    ----------
    denoiser, shape, options, device, map_size
        As in `time_training`.
    n_images : int
        Drawn at once.
    steps : int
        Sampler steps of the image whose time is asked for.
    timed_steps : int, optional
        Steps that are timed, where fewer; the rest is scaled.
    **how
        ``scheduler, eta, guidance, precision`` of `sampling.sample`.
    """
    walked = min(timed_steps or steps, steps)
    draw = _drawing(denoiser, shape, options, device, map_size, n_images, walked, **how)
    drawn = sum(len(rows) for rows in groups(n_images, n_images, device))  # a CPU computes whole groups
    flops = sampling.passes(how.get("guidance", 1.0)) * steps * diffusion.forward_flops(denoiser, shape, map_size)
    reset_peak(device)
    # a long first call says enough
    whole = timed(draw, device, warm=device.type == "cuda" or flops / steps * walked * drawn < LONG)
    return Timing(whole / drawn * steps / walked, flops, peak_gib(device))


def _drawing(
    denoiser: nn.Module,
    shape: tuple[int, int, int],
    options: Mapping[str, Any],
    device: torch.device,
    map_size: int,
    n_images: int,
    steps: int,
    **how: Any,
) -> Callable[[], torch.Tensor]:
    """Function that draws images under random conditions in so many steps."""
    conditions = latents_for(denoiser, shape, map_size, n_images).conditions
    conditions = conditions[:, 0] if conditions.ndim > 1 else conditions
    seeds = list(range(n_images))
    return lambda: sampling.sample(denoiser, options, conditions, seeds, shape, steps, device=device, **how)
