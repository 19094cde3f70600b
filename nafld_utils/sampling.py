"""Drawing latents from a trained denoiser: DDIM with classifier-free guidance, every image its own seed.

Contract: image i is a function of its own seed and condition. Noise is drawn an image at a time on the CPU, so
neither the batch size nor the number of workers enters (floating-point kernels may still round differently).

Sources: Song et al. 2021, arXiv 2010.02502 (DDIM); Ho & Salimans 2022, arXiv 2207.12598 (guidance); paper, Methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

REVISION = 1


def build_sampler(options: Mapping[str, Any]) -> Any:
    """DDIM as the original latent diffusion code walks it: timesteps 999, 997, ... 1 at 500 steps.

    Parameters
    ----------
    options : mapping
        From `diffusion.schedule_options`.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **options, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance in the paper's parametrisation: 1 is the conditional prediction, 0 the unconditional."""
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def predict(
    denoiser: nn.Module, z: torch.Tensor, t: torch.Tensor, conditions: torch.Tensor, guidance: float, null: bool
) -> torch.Tensor:
    """Guided prediction; both passes in one batch, only one pass when guidance is 1 or the condition is dropped."""
    n = len(z)
    keep = torch.full((n,), not null, device=z.device)
    if null or guidance == 1.0:
        return denoiser(z, t.expand(n), denoiser.condition(conditions, keep))
    both = torch.cat([denoiser.condition(conditions, keep), denoiser.condition(conditions, ~keep)])
    conditional, unconditional = denoiser(torch.cat([z, z]), t.expand(2 * n), both).chunk(2)
    return guided(conditional, unconditional, guidance)


def sample(
    denoiser: nn.Module,
    options: Mapping[str, Any],
    conditions: torch.Tensor,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    steps: int,
    eta: float,
    guidance: float,
    device: torch.device,
    null: bool = False,
) -> torch.Tensor:
    """Draw one latent for every seed.

    Parameters
    ----------
    denoiser : torch.nn.Module
        Semantic or class denoiser.
    options : mapping
        From `diffusion.schedule_options`; the same as in training.
    conditions : torch.Tensor
        (N, M, M) maps or (N,) labels.
    seeds : sequence of int, length N
        One seed an image.
    latent_shape : tuple of int
        C, h, w.
    steps : int
        DDIM steps.
    eta : float
        0 is deterministic, 1 adds the noise of the ancestral sampler.
    guidance : float
        At least 1; 1.2 in the paper.
    device : torch.device
        Where to compute.
    null : bool
        Drop every condition, to show what the condition does.

    Returns
    -------
    torch.Tensor, shape (N, C, h, w)
        Scaled latents, float32, on `device`.

    Raises
    ------
    ValueError
        Numbers of seeds and conditions differ, or more steps than the schedule has.
    """
    if len(seeds) != len(conditions):
        raise ValueError(f"sample: expected one condition a seed, found {len(conditions)} and {len(seeds)}.")
    sampler = build_sampler(options)
    if steps > sampler.config.num_train_timesteps:
        raise ValueError(f"sampling.steps must not exceed {sampler.config.num_train_timesteps}, got {steps}.")
    sampler.set_timesteps(steps, device=device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    z = _noise(generators, latent_shape, device) * sampler.init_noise_sigma
    conditions = conditions.to(device)
    denoiser.eval()
    for t in sampler.timesteps:
        predicted = predict(denoiser, z, t, conditions, guidance, null)
        noise = _noise(generators, latent_shape, device) if eta > 0 else None
        z = sampler.step(predicted.float(), t, z, eta=eta, variance_noise=noise).prev_sample
    return z


def _noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


def gaussian_latents(latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Independent Gaussian latents with the mean and standard deviation of each latent element; a ceiling, not a model.

    Parameters
    ----------
    latents : torch.Tensor, shape (N, C, h, w)
        Scaled latents of training images.
    seeds : sequence of int
        One seed an image.
    """
    mean, std = latents.mean(dim=0), latents.std(dim=0)
    return torch.stack(
        [mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
