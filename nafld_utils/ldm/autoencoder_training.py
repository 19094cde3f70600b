"""Training of autoencoders: a loss that asks for the right structure and for believable speckle.

Speckle has no meaning pixel by pixel, yet a decoder that leaves it out makes smooth images, and an encoder that
writes it down fills the latents with what no denoiser can predict. So structure is compared place by place, texture
only by statistics of a patch, and the latents carry noise while training: what is below it has to be drawn by the
decoder, which takes the noise as its seed. Structure comes first, so that texture is asked of a network that already
reconstructs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nafld_utils import engine, networks
from nafld_utils.ldm.autoencoder import FirstStage, standardise, to_unit

REVISION = ("autoencoder_training", 2)
# Choice: found on simulated frames by the Frechet distance of held-out reconstructions and of a short LDM's samples.
PHASES = {
    "structure": {"pixels": 1.0, "perceptual": 0.2},
    "texture": {"pixels": 1.0, "coarse": 2.0, "perceptual": 0.1, "texture": 1.0, "moments": 0.1},
    "polish": {"pixels": 1.0, "coarse": 2.0, "perceptual": 0.1, "texture": 1.0, "moments": 1.0, "drift": 30.0},
}
# Standard deviations of a channel, the small kind only.
LATENT_NOISE = {"structure": 0.0, "texture": 0.35, "polish": 0.0}
# Side in pixels of the patches a step sees. Choice: a quarter of the image costs a quarter of the time, and the small
# network has no layer that mixes distant pixels. The published ones have: attention over the whole of the smallest
# level and norms over whole channels, which a patch shows another statistic. Their polish sees whole images whatever
# their size, the small network's sees squares of 128 pixels, the images that the shipped one was made of.
PATCH = {"structure": 64, "texture": 64, "polish": 128}
LEARNING_RATE = {"structure": 1e-3, "texture": 1e-3, "polish": 3e-4}  # choice: the polish at 1e-3 goes astray
LOGGED = 20  # steps between rows of the curve, and between looks at the loss on a GPU (choice)
KL_WEIGHT = 1e-6  # [LDM configurations]
COARSE = 4  # pixels a side that a coarse grey level averages
TEXTURE = slice(0, 5)  # feature maps compared by Gram matrices
# Feature maps compared place by place.
PERCEPTUAL = {"structure": slice(0, 6), "texture": slice(2, 6), "polish": slice(2, 6)}


def feature_maps(backbone: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    """A function from images (N, 1, H, W) to all feature maps of a frozen timm EfficientNet, shallow to deep."""
    backbone = backbone.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def maps(images: Tensor) -> list[Tensor]:
        x = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        out = [backbone.bn1(backbone.conv_stem(x))]
        for block in backbone.blocks:
            out.append(block(out[-1]))
        return [*out, backbone.bn2(backbone.conv_head(out[-1]))]

    return maps


class ReconstructionLoss:
    """Terms of a phase between a reconstruction and its image; `images`, (N, 1, H, W) in [-1, 1], set their scale.

    Texture is compared by Gram matrices (Gatys et al. 2015, arXiv 1505.07376) and by each channel's mean and spread
    over the patch; the perceptual term is LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learned weights.
    """

    def __init__(self, phase: str, features: Callable[[Tensor], list[Tensor]], images: Tensor):
        self.phase, self.features = phase, features
        with torch.no_grad():
            spreads = [maps.std((0, 2, 3), keepdim=True) for maps in features(images)]
        # A channel that hardly moves must not decide: the mean spread of its layer is added.
        self.spreads = [spread + 0.3 * spread.mean() for spread in spreads]

    def terms(self, copies: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Unweighted terms of copies (N, 1, H, W) against images, scalar tensors."""
        with torch.no_grad():
            wanted = self.features(images)
        found = self.features(copies)
        pairs = list(zip(found, wanted, self.spreads, strict=True))
        terms = {
            "pixels": F.l1_loss(copies, images),
            "perceptual": sum(_directions(a, b) for a, b, _ in pairs[PERCEPTUAL[self.phase]]),
        }
        if self.phase != "structure":
            terms["coarse"] = F.l1_loss(F.avg_pool2d(copies, COARSE), F.avg_pool2d(images, COARSE))
            terms["texture"] = sum(_texture(a / s, b / s) for a, b, s in pairs[TEXTURE])
            terms["moments"] = sum(_moments(a / s, b / s) for a, b, s in pairs)
        if self.phase == "polish":
            terms["drift"] = sum(_drift(a / s, b / s) for a, b, s in pairs)
        return terms


def _directions(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(F.normalize(a, dim=1), F.normalize(b, dim=1)) * a.shape[1]


def _texture(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(2), b.flatten(2)
    return ((a @ a.transpose(1, 2) - b @ b.transpose(1, 2)) / a.shape[2]).square().mean().sqrt()


def _moments(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(2), b.flatten(2)
    # Choice: 10 puts the term beside the others; statistics of a patch move about a third as far as its pixels.
    return 10 * (F.mse_loss(a.mean(2), b.mean(2)) + F.mse_loss(_deviation(a), _deviation(b)))


def _drift(a: Tensor, b: Tensor) -> Tensor:
    """How far the batch's mean feature moved: what all copies share is what a Frechet distance counts first."""
    return (a.mean((2, 3)) - b.mean((2, 3))).mean(0).square().mean()


def _deviation(flat: Tensor) -> Tensor:
    return (flat.var(2, correction=0) + 1e-4).sqrt()  # the root has no slope at zero, where a map is one pixel


@dataclass(frozen=True)
class Phase:
    """One phase of a training: ``name`` of `PHASES`, optimiser ``steps``, and what may differ from the phase's own.

    Choice: 8 images per step, as far as two CPU cores go in half an hour.
    """

    name: str
    steps: int
    batch_size: int = 8
    learning_rate: float | None = None  # None is `LEARNING_RATE`'s

    def side(self, kind: str, images: np.ndarray) -> int:
        """Side in pixels of the patches that a step sees, see `PATCH`."""
        whole = self.name == "polish" and kind != "tiny"
        return min(max(images.shape[1:]) if whole else PATCH[self.name], *images.shape[1:])


def train(
    images: np.ndarray,
    model: nn.Module,
    kind: str,
    features: Callable[[Tensor], list[Tensor]],
    seeds: Iterable[int],
    phase: Phase,
    device: torch.device,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[FirstStage, list[dict[str, float]]]:
    """Train an autoencoder of a kind in place through one phase; its polish trains the decoder alone.

    `images`, (N, H, W) uint8, are never of held-out patients; `features` is from `feature_maps`; one seed per step, so
    that a step's batch depends on nothing else; `report` takes step and loss, on a GPU of every `LOGGED`-th step.
    Returns the first stage, standardised over `images`, and rows of ``step, loss`` and the unweighted terms. A loss
    that is not finite is a FloatingPointError.
    """
    optimizer, schedule = _optimizer(model.to(device, memory_format=torch.channels_last), phase)
    patch = phase.side(kind, images)
    sample = to_unit(images[np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int)])
    loss_of = ReconstructionLoss(phase.name, features, _middle(sample[:96], patch).to(device))
    curve, unseen = [], []
    for step, seed in zip(range(phase.steps), seeds, strict=False):
        generator = torch.Generator().manual_seed(seed)
        x = engine.sent(_patches(images, phase.batch_size, patch, generator), device)
        loss, terms = _loss(model, kind, x, loss_of, generator)
        logs = step % LOGGED == 0 or step == phase.steps - 1
        unseen.append(loss.detach())
        if logs or device.type == "cpu":
            latest = _look(unseen, step)
            report(step, latest)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if logs:
            curve.append({"step": step, "loss": latest, **{name: term.item() for name, term in terms.items()}})
    return standardise(model, sample.to(device), kind), curve


def _look(unseen: list[Tensor], step: int) -> float:
    """Read the losses of the steps up to this one that were not looked at, which waits for the device; the last one."""
    losses = torch.stack(unseen).cpu().tolist()
    unseen.clear()
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            at = step + 1 - len(losses) + i
            raise FloatingPointError(f"autoencoder: the loss is {loss} at step {at}; lower the learning rate.")
    return losses[-1]


def _loss(
    model: nn.Module, kind: str, x: Tensor, loss_of: ReconstructionLoss, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a step on images (N, 1, H, W), and its unweighted terms."""
    copies, penalty = _reconstruct(model, kind, x, LATENT_NOISE[loss_of.phase], generator)
    terms = loss_of.terms(copies, x)
    return penalty + sum(PHASES[loss_of.phase][name] * term for name, term in terms.items()), terms


def train_phases(
    images: np.ndarray,
    model: nn.Module,
    kind: str,
    phases: Iterable[Phase],
    seed_of: Callable[[str, int], int],
    device: torch.device,
    report_of: Callable[[Phase], Callable[[int, float], None]],
) -> tuple[FirstStage, list[dict[str, Any]]]:
    """Train through phases of some steps, as `train`; `seed_of` takes the phase's name and the step."""
    features = feature_maps(networks.load("tf_efficientnet_lite2", "bundled").to(device))
    curve: list[dict[str, Any]] = []
    for phase in phases:
        seeds = (seed_of(phase.name, step) for step in range(phase.steps))
        stage, rows = train(images, model, kind, features, seeds, phase, device, report_of(phase))
        curve += [{**row, "phase": phase.name} for row in rows]
    return stage, curve


def _optimizer(model: nn.Module, phase: Phase) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW and its one-cycle rate for what a phase trains of a network."""
    model.train().requires_grad_(True)
    if phase.name == "polish":
        for name, part in model.named_children():
            part.requires_grad_(name in ("decoder", "post_quant_conv"))
    rate = phase.learning_rate or LEARNING_RATE[phase.name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=phase.steps + 1, pct_start=0.05)
    return optimizer, schedule


def _reconstruct(
    model: nn.Module, kind: str, images: Tensor, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Grey copies (N, 1, H, W) through noisy latents, and what the latents themselves cost, a scalar tensor."""
    x = images.expand(-1, int(model.config.in_channels), -1, -1)
    if kind == "kl":
        posterior = model.encode(x).latent_dist
        draw = engine.sent(torch.randn(posterior.mean.shape, generator=generator), x.device)
        copies, penalty = model.decode(posterior.mean + posterior.std * draw).sample, KL_WEIGHT * posterior.kl().mean()
    elif kind == "vq":
        codes, penalty, _ = model.quantize(model.encode(x).latents)
        # not model.decode: it brings zeros from the host, which waits for a GPU
        copies = model.decoder(model.post_quant_conv(codes))
    else:
        # not model(x): AutoencoderTiny.forward rounds the latents to bytes, which stops the encoder's gradient
        latents = model.encode(x).latents
        deviation = latents.detach().std((0, 2, 3), keepdim=True) + 1e-6
        draw = engine.sent(torch.randn(latents.shape, generator=generator), x.device)
        copies, penalty = model.decode(latents + noise * deviation * draw).sample, latents.new_zeros(())
    return copies.mean(1, keepdim=True), penalty


def _middle(images: Tensor, side: int) -> Tensor:
    """The middle square of (N, 1, H, W) images; a corner would be black, and set every scale wrong."""
    top, left = ((extent - side) // 2 for extent in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def _patches(images: np.ndarray, n: int, side: int, generator: torch.Generator) -> Tensor:
    """One random square of `side` pixels from each of n random images, (n, 1, side, side) in [-1, 1]."""
    rows = torch.randint(len(images), (n,), generator=generator).numpy()
    top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in images.shape[1:])
    return to_unit(images[rows, top : top + side, left : left + side])
