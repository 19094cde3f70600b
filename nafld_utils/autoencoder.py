"""First stages: images to latents and back, behind one interface whatever the network.

Contract: images are ``(N, 1, H, W)`` float32 in [-1, 1]; moments are what an encoder says of an image, stored once;
latents are drawn from moments just in time, with zero mean and unit variance a channel over the training images
(pretrained networks: their published scale). Nothing here opens a file but the loaders, and nothing seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

REVISION = 1
SHIPPED = Path(__file__).parent / "weights" / "autoencoder_tiny_f8.safetensors"
TINY_OPTIONS = {
    "in_channels": 1,
    "out_channels": 1,
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32, 32),
    "num_encoder_blocks": (1, 1, 2, 3),
    "num_decoder_blocks": (4, 4, 3, 1),
    "latent_channels": 4,
}


@dataclass
class FirstStage:
    """An autoencoder of one of three kinds with its latent scaling.

    Attributes
    ----------
    model : torch.nn.Module
        A diffusers ``AutoencoderTiny``, ``AutoencoderKL`` or ``VQModel``, frozen, in eval mode.
    kind : {"tiny", "kl", "vq"}
        Which of them.
    shift, scale : torch.Tensor, shape (C,)
        Latents are ``(z - shift) * scale``.
    """

    model: nn.Module
    kind: str
    shift: torch.Tensor
    scale: torch.Tensor

    @property
    def in_channels(self) -> int:
        """Channels the network takes: 1, or 3 where the grey image is repeated."""
        return int(self.model.config.in_channels)

    def to(self, device: torch.device | str) -> FirstStage:
        """Move to a device, in the memory layout that convolutions run fastest in."""
        self.model.to(device, memory_format=torch.channels_last)
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Moments of images.

        Parameters
        ----------
        images : torch.Tensor, shape (N, 1, H, W), float32 in [-1, 1]

        Returns
        -------
        torch.Tensor, shape (N, C, h, w), or (N, 2C, h, w) for KL
            Latents before quantisation (VQ, tiny), or mean and log-variance (KL); unscaled, float32.
        """
        x = images.expand(-1, self.in_channels, -1, -1)
        if self.kind == "kl":
            return self.model.encode(x).latent_dist.parameters
        return self.model.encode(x).latents

    def draw(self, moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Scaled latents from moments; `noise` (standard normal, shape (N, C, h, w)) is read by KL only."""
        if self.kind == "kl":
            mean, logvar = moments.chunk(2, dim=1)
            moments = mean if noise is None else mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise
        return (moments - self.shift[:, None, None]) * self.scale[:, None, None]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images from scaled latents, (N, 1, H, W) float32 in [-1, 1]; VQ quantises inside."""
        z = latents / self.scale[:, None, None] + self.shift[:, None, None]
        return self.model.decode(z).sample.mean(dim=1, keepdim=True).clamp(-1, 1)


def latent_shape(stage: FirstStage, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a square image of `image_size` pixels."""
    device = stage.shift.device
    moments = stage.encode(torch.zeros(1, 1, image_size, image_size, device=device))
    return tuple(stage.draw(moments).shape[1:])


def build_tiny() -> nn.Module:
    """The small autoencoder of this project: AutoencoderTiny, factor 8, 4 latent channels, grey in and out."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(**TINY_OPTIONS)


# ---------------------------------------------------------------- where they come from


def load_shipped(path: Path = SHIPPED) -> FirstStage:
    """The autoencoder shipped with the package, trained on simulated frames only (``python -m nafld_utils.shipped``).

    Raises
    ------
    ValueError
        The file is missing or holds other tensors.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"{path}: expected the shipped autoencoder, found no file; reinstall the package.")
    with safe_open(path, "pt") as handle:
        tensors = {name: handle.get_tensor(name).float() for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    return from_tensors(tensors)


def from_tensors(tensors: dict[str, torch.Tensor]) -> FirstStage:
    """Rebuild a small autoencoder from `to_tensors`."""
    tensors = dict(tensors)
    shift, scale = tensors.pop("latent_shift"), tensors.pop("latent_scale")
    model = build_tiny()
    model.load_state_dict(tensors)
    return FirstStage(model.eval().requires_grad_(False), "tiny", shift, scale)


def to_tensors(stage: FirstStage) -> dict[str, torch.Tensor]:
    """Weights and latent scaling of a small autoencoder, for safetensors."""
    weights = {name: value.detach().cpu().contiguous() for name, value in stage.model.state_dict().items()}
    return {**weights, "latent_shift": stage.shift.cpu(), "latent_scale": stage.scale.cpu()}


def load_pretrained(
    kind: str,
    scale: float,
    hub_id: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    path: str | None = None,
) -> FirstStage:
    """A diffusers autoencoder from a local folder or from the hub.

    Parameters
    ----------
    kind : {"vq", "kl", "tiny"}
        Class of the network.
    scale : float
        Its published latent scale (VQ: 1.0; KL-f8: 0.18215).
    hub_id, subfolder, revision : str, optional
        Hub repository, its folder and pinned commit; used when `path` is None.
    path : str, optional
        Local folder with ``config.json`` and safetensors weights.

    Raises
    ------
    ValueError
        The folder or repository cannot be read; says what to do without network.
    """
    import diffusers

    cls = {"vq": diffusers.VQModel, "kl": diffusers.AutoencoderKL, "tiny": diffusers.AutoencoderTiny}[kind]
    source = path or hub_id
    try:
        model = cls.from_pretrained(
            source, subfolder=subfolder, revision=revision, use_safetensors=None if hub_id else True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"autoencoder {source}: expected diffusers weights of kind {kind}, found {reason};"
            " without network set autoencoder.*.source=path and autoencoder.*.path to a local copy."
        ) from None
    channels = int(model.config.latent_channels)
    zeros, scales = torch.zeros(channels), torch.full((channels,), float(scale))
    return FirstStage(model.eval().requires_grad_(False), kind, zeros, scales)


# ---------------------------------------------------------------- training a small one


def standardise(model: nn.Module, images: torch.Tensor, batch_size: int = 32) -> FirstStage:
    """Wrap a small autoencoder with the shift and scale that standardise its latents over `images`.

    Parameters
    ----------
    model : torch.nn.Module
        From `build_tiny`.
    images : torch.Tensor, shape (N, 1, H, W), float32 in [-1, 1]
        Training images only.
    batch_size : int
        Images at once.
    """
    channels = int(model.config.latent_channels)
    device = images.device
    stage = FirstStage(
        model.eval().requires_grad_(False), "tiny", torch.zeros(channels).to(device), torch.ones(channels).to(device)
    )
    latents = torch.cat([stage.encode(part) for part in images.split(batch_size)])
    stage.shift = latents.mean(dim=(0, 2, 3))
    stage.scale = 1.0 / latents.std(dim=(0, 2, 3)).clamp_min(1e-3)
    return stage


def perceptual_features(backbone: nn.Module) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """A function from images (N, 1, H, W) to the unit-normalised feature maps of a frozen timm EfficientNet.

    Choice: differences of normalised feature maps, as LPIPS has them but without its learned weights, keep speckle
    texture that a pixel loss averages away.
    """
    backbone = backbone.eval().requires_grad_(False)

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        x = backbone.bn1(backbone.conv_stem(images.expand(-1, 3, -1, -1)))
        out = [x]
        for block in backbone.blocks[:5]:
            x = block(x)
            out.append(x)
        return [F.normalize(y, dim=1) for y in out]

    return maps


def train_tiny(
    images: np.ndarray,
    model: nn.Module,
    features: Callable[[torch.Tensor], list[torch.Tensor]],
    seeds: Iterable[int],
    steps: int,
    device: torch.device,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    perceptual_weight: float = 0.2,
    patch: int = 64,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[FirstStage, list[dict[str, float]]]:
    """Train a small autoencoder with an L1 and a perceptual loss.

    Parameters
    ----------
    images : numpy.ndarray, shape (N, H, W), uint8
        Training images; never held-out patients.
    model : torch.nn.Module
        From `build_tiny`, trained in place.
    features : callable
        From `perceptual_features`.
    seeds : iterable of int
        One seed a step, so that a step's batch depends on nothing else.
    steps : int
        Optimiser steps.
    device : torch.device
        Where to train.
    batch_size, learning_rate, perceptual_weight : int, float, float
        Choice: found on simulated frames by Frechet distance of held-out reconstructions.
    patch : int
        Side in pixels of the random patches a step sees. Choice: the network has no layer that mixes distant
        pixels, and a quarter of the image costs a quarter of the time.
    report : callable
        Called with step and loss.

    Returns
    -------
    FirstStage
        Standardised over `images`.
    list of dict
        ``step, loss, l1, perceptual``.
    """
    model.to(device).train().requires_grad_(True)
    patch = min(patch, *images.shape[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05)
    curve = []
    for step, seed in zip(range(steps), seeds, strict=False):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(images), (batch_size,), generator=generator).numpy()
        top, left = (int(torch.randint(side - patch + 1, (), generator=generator)) for side in images.shape[1:])
        x = to_unit(images[rows, top : top + patch, left : left + patch]).to(device)
        # not model(x): AutoencoderTiny.forward rounds the latents to bytes, which stops the encoder's gradient
        y = model.decode(model.encode(x).latents).sample
        l1 = F.l1_loss(y, x)
        with torch.no_grad():
            wanted = features(x)
        distance = sum(F.mse_loss(a, b) * a.shape[1] for a, b in zip(features(y), wanted, strict=True))
        loss = l1 + perceptual_weight * distance
        if not torch.isfinite(loss):
            raise FloatingPointError(f"autoencoder: the loss is {loss.item()} at step {step}; lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            row = {"step": step, "loss": loss.item(), "l1": l1.item(), "perceptual": distance.item()}
            curve.append(row)
        report(step, loss.item())
    spread = np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int)
    return standardise(model, to_unit(images[spread]).to(device)), curve


# ---------------------------------------------------------------- arrays


def to_unit(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) uint8 to (N, 1, H, W) float32 in [-1, 1] [paper, preprocessing]."""
    return torch.from_numpy(np.array(images)).unsqueeze(1).float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """(N, 1, H, W) float in [-1, 1] to (N, H, W) uint8."""
    return ((images.squeeze(1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def encode_images(stage: FirstStage, images: np.ndarray, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """Moments of (N, H, W) uint8 images as (N, C or 2C, h, w) float32."""
    stage.to(device)
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return torch.cat([stage.encode(to_unit(part).to(device)).cpu() for part in parts]).numpy()


def decode_latents(stage: FirstStage, latents: torch.Tensor, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """(N, C, h, w) scaled latents as (N, H, W) uint8 images."""
    stage.to(device)
    return np.concatenate([to_uint8(stage.decode(part.to(device))) for part in latents.split(batch_size)])


def reconstruct(stage: FirstStage, images: np.ndarray, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """(N, H, W) uint8 images through the autoencoder, without noise."""
    moments = torch.from_numpy(encode_images(stage, images, device, batch_size)).to(device)
    return decode_latents(stage, stage.draw(moments), device, batch_size)


def reconstruction_error(images: np.ndarray, copies: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR (dB, peak 255) and SSIM an image, as arrays of shape (N,)."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = list(zip(images, copies, strict=True))
    return {
        "psnr": np.array([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]),
        "ssim": np.array([structural_similarity(a, b, data_range=255) for a, b in pairs]),
    }


def describe(stage: FirstStage) -> dict[str, Any]:
    """Kind, number of parameters and latent scaling, JSON-able."""
    count = sum(p.numel() for p in stage.model.parameters())
    return json.loads(json.dumps({"kind": stage.kind, "parameters": count, "scale": stage.scale.tolist()}))
