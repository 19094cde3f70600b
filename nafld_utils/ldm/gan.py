"""A class-conditional GAN in the latents of a few hundred images: the baseline that a diffusion model has to beat.

Contract: networks, losses and the training loop; scaled latents ``(N, C, h, w)`` float32 of the frozen first stage that
the diffusion model of the same condition has, labels ``(N,)`` int64. Whatever is random in a step is a function of
(seed, step), and a synthetic latent is a function of its own seed alone.

Sources: Huang et al. 2024, arXiv 2501.05441 (relativistic loss with gradient penalties on both sides, no tricks);
Zhao et al. 2020, arXiv 2006.10738 (differentiable augmentation, for training sets of this size); Miyato and Koyama
2018, arXiv 1802.05637 (projection of the class); Karras et al. 2019, arXiv 1812.04948 (noise a pixel). The paper quotes
GANs of another group; this one is ours, trained on the same folds.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nafld_utils import engine
from nafld_utils.artifacts import unit_seed
from nafld_utils.engine import in_full
from nafld_utils.ldm.operations import Operations
from nafld_utils.ldm.resumable import State

REVISION = ("gan", 2)
LATENT = 64  # numbers an image is drawn from (choice)
N_CLASSES = 2
SMALLEST = 4  # latent pixels a side, about, that generation starts from
BETAS = (0.0, 0.99)  # of Adam, as in R3GAN
PENALTY_EVERY = 4  # steps between gradient penalties, weighed up by as much (Karras et al. 2020, lazy regularisation)
# Choice: strengths of DiffAugment in latents; no flips, since anatomy has sides, and no colours, which latents lack.
SHIFT, CUTOUT = 1 / 8, 1 / 4
Shape = tuple[int, int, int]  # channels, height and width of a latent


# ---------------------------------------------------------------- networks


def widths(side: int, base: int, most: int) -> list[tuple[int, int]]:
    """(side in latent pixels, channels) of every level, small to large; channels double towards the small end."""
    n = max(1, int(math.log2(side / SMALLEST)))
    while side % 2**n:
        n -= 1
    return [(side >> i, min(base * 2**i, most)) for i in range(n, -1, -1)]


class GeneratorBlock(nn.Module):
    """Twice the side: convolution, noise a pixel, scale and shift from the image's latent, gated linear unit."""

    def __init__(self, n_in: int, n_out: int, n_style: int):
        super().__init__()
        self.conv = nn.Conv2d(n_in, 2 * n_out, 3, padding=1)
        self.norm = nn.GroupNorm(min(8, n_out), 2 * n_out, affine=False)
        self.style = nn.Linear(n_style, 4 * n_out)
        self.noise = nn.Parameter(torch.full((2 * n_out,), 0.1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Features (N, n_in, s, s), styles (N, n_style) and noise (N, 1, 2s, 2s) to (N, n_out, 2s, 2s)."""
        x = self.norm(self.conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        scale, shift = self.style(style)[..., None, None].chunk(2, dim=1)
        return F.glu(x * (1 + scale) + shift + noise * self.noise[:, None, None], dim=1)


class Generator(nn.Module):
    """Random numbers, labels and noise to latents of `shape`.

    `base_channels` are those of the largest level, `max_channels` the most of any.
    """

    def __init__(self, shape: Shape, base_channels: int = 32, max_channels: int = 256):
        super().__init__()
        levels = widths(shape[-1], base_channels, max_channels)
        self.sides = [side for side, _ in levels]
        n_style = 2 * LATENT
        self.embedding = nn.Embedding(N_CLASSES, LATENT)
        self.mapping = nn.Sequential(nn.Linear(2 * LATENT, n_style), nn.SiLU(), nn.Linear(n_style, n_style), nn.SiLU())
        self.start = nn.Linear(n_style, levels[0][1] * self.sides[0] ** 2)
        self.blocks = nn.ModuleList(GeneratorBlock(a, b, n_style) for (_, a), (_, b) in itertools.pairwise(levels))
        self.out = nn.Conv2d(levels[-1][1], shape[0], 3, padding=1)

    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shapes (1, s, s) of the noise of one latent, a block each."""
        return [(1, side, side) for side in self.sides[1:]]

    def forward(self, z: Tensor, labels: Tensor, noise: list[Tensor]) -> Tensor:
        """Random numbers (N, `LATENT`), labels (N,) and noise, (N, 1, s, s) per block, to latents (N, C, h, w)."""
        style = self.mapping(torch.cat([F.normalize(z, dim=1) * math.sqrt(LATENT), self.embedding(labels)], dim=1))
        x = self.start(style).reshape(len(z), -1, self.sides[0], self.sides[0])
        for block, one in zip(self.blocks, noise, strict=True):
            x = block(x, style, one)
        return self.out(x)


class Discriminator(nn.Module):
    """Latents and labels to logits; the class enters by projection, variety by the spread over the batch."""

    def __init__(self, shape: Shape, base_channels: int = 32, max_channels: int = 256):
        super().__init__()
        levels = widths(shape[-1], base_channels, max_channels)[::-1]
        self.first = nn.Conv2d(shape[0], levels[0][1], 3, padding=1)
        self.blocks = nn.ModuleList()
        for (_, a), (_, b) in itertools.pairwise(levels):
            layers = [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(b, b, 3, padding=1)]
            self.blocks.append(nn.ModuleDict({"main": nn.Sequential(*layers), "skip": nn.Conv2d(a, b, 1)}))
        side, width = levels[-1]
        self.last = nn.Sequential(nn.Conv2d(width + 1, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(width * side**2, LATENT), nn.LeakyReLU(0.2))
        self.logit, self.embedding = nn.Linear(LATENT, 1), nn.Embedding(N_CLASSES, LATENT)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents (N, C, h, w) and labels (N,) to logits (N,), high for real."""
        x = F.leaky_relu(self.first(latents), 0.2)
        for block in self.blocks:
            x = F.avg_pool2d(x, 2)
            x = F.leaky_relu((block["main"](x) + block["skip"](x)) / math.sqrt(2), 0.2)
        spread = (x.var(dim=0, correction=0) + 1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        features = self.head(self.last(torch.cat([x, spread], dim=1)))
        return self.logit(features)[:, 0] + (features * self.embedding(labels)).sum(1) / math.sqrt(LATENT)


def augment(latents: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment: a shift and a blank square, differentiable, each latent its own draw; 0 comes in from outside."""
    n, _, height, width = latents.shape
    device = latents.device

    def uniform(low: float, high: float) -> Tensor:
        return engine.sent(torch.rand(n, generator=generator) * (high - low) + low, device)

    kept = []
    for extent in (height, width):
        axis = torch.arange(extent, device=device)[None]
        moved = axis + (uniform(-SHIFT, SHIFT) * extent).round().long()[:, None]
        blank = (axis - uniform(0, 1)[:, None] * extent).abs() < CUTOUT * extent / 2
        kept.append((moved.clamp(0, extent - 1), (moved >= 0) & (moved < extent), blank))
    (rows, above, top), (columns, beside, left) = kept
    x = latents[torch.arange(n, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    inside = above[:, :, None] & beside[:, None, :] & ~(top[:, :, None] & left[:, None, :])
    return torch.where(inside[:, None], x.permute(0, 3, 1, 2), 0.0)


# ---------------------------------------------------------------- state


@dataclass
class Training(State):
    """State of a training."""

    generator: Generator
    discriminator: Discriminator
    both: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    average: Generator

    separator, shown = "/", "generator"
    told = (
        "GAN training: the losses are {losses} at step {step}; lower gan.learning_rate or raise gan.penalty, the last"
        " checkpoint is kept."
    )

    def networks(self) -> dict[str, nn.Module]:
        """Both networks and the generator's running average."""
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """The generator's and the discriminator's."""
        return {"optimizer0": (self.both[0], self.generator), "optimizer1": (self.both[1], self.discriminator)}


def start_training(shape: Shape, settings: Mapping[str, Any], seed: int, device: torch.device) -> Training:
    """Networks, optimisers and running average from the ``gan`` section; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = (shape, settings["base_channels"], settings["max_channels"])
        networks = Generator(*size).to(device), Discriminator(*size).to(device)
    rate = settings["learning_rate"]
    optimizers = tuple(torch.optim.Adam(net.parameters(), lr=rate, betas=BETAS) for net in networks)
    return Training(*networks, optimizers, copy.deepcopy(networks[0]).eval().requires_grad_(False))


# ---------------------------------------------------------------- loop


def train(
    training: Training,
    latents: Tensor,
    labels: np.ndarray,
    settings: Mapping[str, Any],
    steps: int,
    seed: int,
    device: torch.device,
) -> Iterator[Training]:
    """Train to `steps`, yielding the state after every step; resumes from ``training.step``.

    `latents` are training patients' (n, C, h, w) float32, never held-out ones, `labels` (n,) 0 or 1, `settings` is the
    ``gan`` section. Nothing is chosen by a held-out image.

    Raises
    ------
    FloatingPointError
        A loss is not finite; the last checkpoint is kept.
    """
    by_class = [np.flatnonzero(labels == label) for label in range(N_CLASSES)]
    while training.step < steps:
        generator = torch.Generator().manual_seed(unit_seed(seed, "gan step", training.step))
        y = torch.arange(settings["batch_size"]) % N_CLASSES
        place = torch.rand(len(y), generator=generator, dtype=torch.float64).numpy()
        rows = [by_class[label][int(u * len(by_class[label]))] for label, u in zip(y.tolist(), place, strict=True)]
        logs = (training.step + 1) % settings["log_every"] == 0 or training.step + 1 == steps
        real = engine.sent(latents[rows], device)
        training.note(_step(training, real, engine.sent(y, device), settings, generator), logs, device)
        training.step += 1
        if logs:
            training.curve.append({"step": training.step, **training.latest})
        yield training


def _step(
    training: Training, real: Tensor, y: Tensor, settings: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """One update of the discriminator, one of the generator; the losses, scalar tensors."""
    net, critic = training.generator, training.discriminator
    optimize_net, optimize_critic = training.both

    def draw() -> Tensor:
        return net(drawn(LATENT), y, [drawn(*shape) for shape in net.noise_shapes()])

    def drawn(*shape: int) -> Tensor:
        return engine.sent(torch.randn(len(y), *shape, generator=generator), real.device)

    penalised = training.step % PENALTY_EVERY == 0
    with torch.no_grad():
        made = augment(draw(), generator)
    shown = augment(real, generator)
    if penalised:
        shown, made = shown.requires_grad_(), made.requires_grad_()
    on_real, on_made = critic(shown, y), critic(made, y)
    loss = F.softplus(on_made - on_real).mean()
    penalty = real.new_zeros(())
    if penalised:
        slopes = torch.autograd.grad((on_real.sum(), on_made.sum()), (shown, made), create_graph=True)
        penalty = sum(slope.square().sum((1, 2, 3)).mean() for slope in slopes)
    optimize_critic.zero_grad(set_to_none=True)
    (loss + settings["penalty"] / 2 * PENALTY_EVERY * penalty).backward()
    optimize_critic.step()

    critic.requires_grad_(False)
    on_made = critic(augment(draw(), generator), y)
    with torch.no_grad():
        on_real = critic(augment(real, generator), y)
    wanted = F.softplus(on_real - on_made).mean()
    optimize_net.zero_grad(set_to_none=True)
    wanted.backward()
    optimize_net.step()
    critic.requires_grad_(True)
    with torch.no_grad():
        decay = min(settings["ema_decay"], (1 + training.step) / (10 + training.step))
        for kept, new in zip(training.average.parameters(), net.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
    losses = {"discriminator": loss.detach(), "generator": wanted.detach()}
    return {**losses, "penalty": penalty.detach()} if penalised else losses


def step_operations(shape: Shape, settings: Mapping[str, Any]) -> list[int]:
    """Operations of each of `PENALTY_EVERY` successive steps, both networks', the first with gradient penalties.

    They are counted as those of the denoisers are (`operations`); `settings` is the ``gan`` section.
    """
    penalised, plain = _counted(shape, *(settings[key] for key in ("batch_size", "base_channels", "max_channels")))
    return [penalised, *[plain] * (PENALTY_EVERY - 1)]


@functools.cache
def _counted(shape: Shape, batch_size: int, base_channels: int, max_channels: int) -> tuple[int, int]:
    """Operations of a step with gradient penalties and of one without."""
    device = torch.device("meta")
    size = {"batch_size": batch_size, "base_channels": base_channels, "max_channels": max_channels}
    settings = {**size, "learning_rate": 0.0, "penalty": 1.0, "ema_decay": 0.0}  # which change no count
    training, counts = start_training(shape, settings, 0, device), []
    real, y = torch.empty(batch_size, *shape, device=device), torch.zeros(batch_size, dtype=torch.long, device=device)
    for training.step in range(2):
        with Operations() as counted:
            _step(training, real, y, settings, torch.Generator())
        counts.append(counted.total)
    return counts[0], counts[1]


# ---------------------------------------------------------------- sampling


@torch.no_grad()
@in_full
def sample(network: Generator, labels: np.ndarray, seeds: list[int], device: torch.device) -> Tensor:
    """Latents (n, C, h, w) of a network in eval mode: latent i depends on seed i and label i alone."""
    out = []
    for label, seed in zip(labels, seeds, strict=True):
        generator = torch.Generator().manual_seed(int(seed))
        shapes = (LATENT,), *network.noise_shapes()
        z, *noise = (engine.sent(torch.randn(1, *shape, generator=generator), device) for shape in shapes)
        out.append(network(z, engine.sent(torch.tensor([int(label)]), device), noise))
    return torch.cat(out)
