"""First stages: images to latents and back, behind one interface whatever the network.

Contract: images are ``(N, 1, H, W)`` float32 in [-1, 1]; moments are what an encoder says of an image, stored once;
latents are drawn from moments just in time, with zero mean and unit variance a channel over the training images
(pretrained networks: their published scale). Nothing here opens a file but the loaders, and nothing seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

REVISION = 3
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
