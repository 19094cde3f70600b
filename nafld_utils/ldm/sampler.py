"""Drawing latents from a trained denoiser with classifier-free guidance, every image its own seed.

Contract: image i is a function of its own seed and condition. Noise is drawn an image at a time on the CPU, so
neither the batch size nor the number of workers enters: to the bit on a CPU, where networks always see groups of one
size (`ldm.groups`), to float tolerance on a GPU.

Sources: Song et al. 2021, arXiv 2010.02502 (DDIM); Lu et al. 2022, arXiv 2211.01095 (DPM-Solver++); Zhao et al. 2023,
arXiv 2302.04867 (UniPC); Ho & Salimans 2022, arXiv 2207.12598 (guidance); paper, Methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nafld_utils import engine
from nafld_utils.engine import arithmetic, autocast
from nafld_utils.ldm.autoencoder import groups
from nafld_utils.params import ddim_strides

REVISION = ("sampling", 3)


def build_sampler(options: Mapping[str, Any], scheduler: str = "ddim") -> Any:
    """A diffusers sampler for a schedule (`denoiser.schedule_options`): ddim, dpmsolver++ or unipc.

    DDIM walks as the original latent diffusion code: timesteps 999, 997, ... 1 at 500 steps [paper]. The others are
    multistep solvers of second order, which need 20 to 50 steps. Choice: those start from the last timestep
    ("trailing"), where the noise is that of training.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if scheduler == "ddim":
        return DDIMScheduler(
            **options, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
        )
    fast = {**options, "solver_order": 2, "timestep_spacing": "trailing"}
    if scheduler == "dpmsolver++":
        return DPMSolverMultistepScheduler(**fast, algorithm_type="dpmsolver++")
    if scheduler == "unipc":
        return UniPCMultistepScheduler(**fast)
    raise ValueError(f"scheduler must be ddim, dpmsolver++ or unipc, got {scheduler!r}.")


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance in the paper's parametrisation: 1 is the conditional prediction, 0 the unconditional."""
    return unconditional + guidance * (conditional - unconditional)


def passes(guidance: float) -> int:
    """Passes of a denoiser a sampler step: guidance 1 needs the conditional one alone, any other both."""
    return 1 if guidance == 1.0 else 2


@torch.no_grad()
def predict(
    denoiser: nn.Module, z: torch.Tensor, t: torch.Tensor, conditions: torch.Tensor, guidance: float, null: bool
) -> torch.Tensor:
    """Guided prediction in fp32; both passes in one batch, one pass where guidance is 1 or the condition is dropped."""
    n = len(z)
    keep = torch.full((n,), not null, device=z.device)
    if null or passes(guidance) == 1:
        return denoiser(z, t.expand(n), denoiser.condition(conditions, keep)).float()
    both = torch.cat([denoiser.condition(conditions, keep), denoiser.condition(conditions, ~keep)])
    conditional, unconditional = denoiser(torch.cat([z, z]), t.expand(2 * n), both).float().chunk(2)
    return guided(conditional, unconditional, guidance)


@dataclass(frozen=True)
class Walk:
    """How a latent is drawn.

    Attributes
    ----------
    steps : int
    eta : float
        DDIM only: 0 is deterministic, 1 adds the noise of the ancestral sampler.
    guidance : float
        At least 1; 1.2 in the paper.
    null : bool
        Drop every condition, to show what the condition does.
    scheduler : {"ddim", "dpmsolver++", "unipc"}
    precision : {"fp32", "tf32", "bf16"}
        Of the network on a GPU; the sampler always computes in fp32.
    """

    steps: int
    eta: float
    guidance: float
    null: bool = False
    scheduler: str = "ddim"
    precision: str = "fp32"

    def check(self, timesteps: int) -> None:
        """Refuse steps that a schedule of so many timesteps does not have, or that DDIM cannot walk."""
        is_even = self.scheduler != "ddim" or ddim_strides(self.steps, timesteps)
        if not (1 <= self.steps <= timesteps and is_even):
            raise ValueError(
                f"sampling.steps must be 1 to {timesteps}, and with ddim equal strides through {timesteps} timesteps,"
                f" as 20, 50, 250 and 500 of 1000 are; got {self.steps} with {self.scheduler}."
            )


def sample(
    denoiser: nn.Module,
    schedule: Mapping[str, Any],
    conditions: torch.Tensor,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    device: torch.device,
    **walk: Any,
) -> torch.Tensor:
    """Draw one scaled latent for every seed, (N, C, h, w) float32 on `device`.

    Parameters
    ----------
    denoiser : torch.nn.Module
        Semantic or class denoiser.
    schedule : mapping
        From `denoiser.schedule_options`; the same as in training.
    conditions : torch.Tensor
        (N, M, M) maps or (N,) labels.
    seeds : sequence of int, length N
    latent_shape : tuple of int
        C, h, w.
    device : torch.device
    **walk
        Fields of `Walk`.

    Raises
    ------
    ValueError
        Numbers of seeds and conditions differ, or what `Walk.check` refuses.
    """
    way = Walk(**walk)
    if len(seeds) != len(conditions):
        raise ValueError(f"sample: expected one condition a seed, found {len(conditions)} and {len(seeds)}.")
    way.check(schedule["num_train_timesteps"])
    denoiser.eval()
    drawn = []
    for rows in groups(len(seeds), len(seeds), device):
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        sampler = build_sampler(schedule, way.scheduler)
        sampler.set_timesteps(way.steps)  # its timesteps stay on the host, which asks them at each step
        with arithmetic(way.precision, device), autocast(way.precision, device):
            given = engine.sent(conditions[rows], device)
            drawn.append(_walk(denoiser, sampler, given, generators, latent_shape, way))
    return torch.cat(drawn)[: len(seeds)]


def _walk(
    denoiser: nn.Module,
    sampler: Any,
    conditions: torch.Tensor,
    generators: Sequence[torch.Generator],
    latent_shape: tuple[int, int, int],
    way: Walk,
) -> torch.Tensor:
    """All steps of one group, (n, C, h, w) float32."""
    device = conditions.device
    z = _noise(generators, latent_shape, device) * sampler.init_noise_sigma
    is_ddim = "eta" in inspect.signature(sampler.step).parameters
    for t, there in zip(sampler.timesteps, engine.sent(sampler.timesteps, device), strict=True):
        predicted = predict(denoiser, z, there, conditions, way.guidance, way.null)
        extra = {}
        if is_ddim:
            noise = _noise(generators, latent_shape, device) if way.eta > 0 else None
            extra = {"eta": way.eta, "variance_noise": noise}
        z = sampler.step(predicted, t, z, **extra).prev_sample
    return z


def _noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    return engine.sent(torch.stack([torch.randn(shape, generator=generator) for generator in generators]), device)


def gaussian_latents(latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Gaussian latents (one per seed) with mean and SD of each element of latents (N, C, h, w); a ceiling, no model."""
    mean, std = latents.mean(dim=0), latents.std(dim=0)
    return torch.stack(
        [mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
