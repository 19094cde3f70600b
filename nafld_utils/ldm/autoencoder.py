"""First stages: images to latents and back, behind one interface whatever the network.

Contract: images are ``(N, 1, H, W)`` float32 in [-1, 1]; moments are what an encoder says of an image, stored once;
latents are drawn from moments just in time, with zero mean and unit variance a channel over the training images
(pretrained networks: their published scale). Nothing here opens a file but the loaders, and nothing seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nafld_utils import engine
from nafld_utils.artifacts import load_weights
from nafld_utils.engine import in_full
from nafld_utils.ldm.autoencoder_units import SHIPPED as SHIPPED

REVISION = ("autoencoder", 3)
CPU_GROUP = 8  # images a pass of a denoiser or decoder on a CPU (choice)
CPU_ENCODED = 2  # images a pass of an encoder on a CPU, whose caches hold their activations: half the time of 32
# (kind, factor): channel multipliers, attention on the smallest level, the rest [LDM configurations]
PUBLISHED: dict[tuple[str, int], tuple[tuple[int, ...], bool, dict[str, int]]] = {
    ("vq", 4): ((1, 2, 4), False, {"latent_channels": 3, "num_vq_embeddings": 8192}),
    ("vq", 8): ((1, 2, 2, 4), True, {"latent_channels": 4, "num_vq_embeddings": 16384}),
    ("kl", 8): ((1, 2, 4, 4), False, {"latent_channels": 4}),
}
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
    """An autoencoder with its latent scaling: frozen, in eval mode, of the class of `kind`.

    Latents are ``(z - shift) * scale``, both (C,): VQ-f4 and VQ-f8 as published are used unscaled, KL-f8 at 0.18215
    [LDM configurations], one that was trained here is standardised over its training images.
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

    def drawing_on_cpu(self) -> FirstStage:
        """The same with its scaling on the CPU, where latents are drawn; the network stays where it is."""
        return dataclasses.replace(self, shift=self.shift.cpu(), scale=self.scale.cpu())

    @torch.no_grad()
    @in_full
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Moments of images (N, 1, H, W) in [-1, 1], unscaled: (N, C, h, w), KL (N, 2C, h, w) mean, log-variance."""
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
    @in_full
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images from scaled latents, (N, 1, H, W) float32 in [-1, 1]; VQ quantises inside."""
        z = latents / self.scale[:, None, None] + self.shift[:, None, None]
        return self.model.decode(z).sample.mean(dim=1, keepdim=True).clamp(-1, 1)


def latent_shape(stage: FirstStage, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a square image of `image_size` pixels."""
    device = stage.shift.device
    moments = stage.encode(torch.zeros(1, 1, image_size, image_size, device=device))
    return tuple(stage.draw(moments).shape[1:])


def build(kind: str, factor: int = 8, base_channels: int = 128) -> nn.Module:
    """An untrained autoencoder: VQ-f4, VQ-f8, KL-f8 [LDM configurations], or the small one of this project (tiny-f8).

    `base_channels`, 128 in the published networks, is not read by the small one. Initial weights follow torch's global
    generator.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     net = build("vq", 4)
    >>> sum(p.numel() for p in net.parameters())
    55322782
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

    if (kind, factor) == ("tiny", 8):
        return AutoencoderTiny(**TINY_OPTIONS)
    if (kind, factor) not in PUBLISHED:
        names = ", ".join(f"{name}-f{f}" for name, f in (*PUBLISHED, ("tiny", 8)))
        raise ValueError(f"autoencoder {kind}-f{factor}: expected one of {names}.")
    mult, attends, own = PUBLISHED[kind, factor]
    down = ["DownEncoderBlock2D"] * len(mult)
    up = ["UpDecoderBlock2D"] * len(mult)
    if attends:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    return {"vq": VQModel, "kl": AutoencoderKL}[kind](
        block_out_channels=tuple(base_channels * m for m in mult),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=2,
        sample_size=256,
        **own,
    )


def fingerprint(stage: FirstStage) -> str:
    """SHA-256 over weights and latent scaling, in hex: latents of another autoencoder are told apart by it."""
    digest = hashlib.sha256()
    for name, value in sorted(to_tensors(stage).items()):
        digest.update(name.encode())
        digest.update(value.cpu().float().numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- where they come from


def load_shipped(path: Path = SHIPPED) -> FirstStage:
    """The autoencoder shipped with the package, trained on simulated frames only (`shipped_autoencoder`)."""
    if not path.is_file():
        raise ValueError(f"{path}: expected the shipped autoencoder, found no file; reinstall the package.")
    return from_tensors({name: tensor.float() for name, tensor in load_weights(path)[0].items()})


def from_tensors(
    tensors: dict[str, torch.Tensor], kind: str = "tiny", factor: int = 8, base_channels: int = 128
) -> FirstStage:
    """Rebuild an autoencoder that was trained here from `to_tensors` and the arguments of its `build`."""
    tensors = dict(tensors)
    shift, scale = tensors.pop("latent_shift"), tensors.pop("latent_scale")
    model = build(kind, factor, base_channels)
    model.load_state_dict(tensors)
    return FirstStage(model.eval().requires_grad_(False), kind, shift, scale)


def to_tensors(stage: FirstStage) -> dict[str, torch.Tensor]:
    """Weights and latent scaling of an autoencoder, for safetensors."""
    weights = {name: value.detach().cpu().contiguous() for name, value in stage.model.state_dict().items()}
    return {**weights, "latent_shift": stage.shift.cpu(), "latent_scale": stage.scale.cpu()}


def untrained(kind: str, factor: int, base_channels: int, scale: float, seed: int = 0) -> FirstStage:
    """An autoencoder with random weights: for tests of the machinery at full size, its images mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return published(build(kind, factor, base_channels), kind, scale)


def published(model: nn.Module, kind: str, scale: float) -> FirstStage:
    """Wrap a network whose latents have one published scale and no shift (VQ: 1.0; KL-f8: 0.18215)."""
    channels = int(model.config.latent_channels)
    zeros, scales = torch.zeros(channels), torch.full((channels,), float(scale))
    return FirstStage(model.eval().requires_grad_(False), kind, zeros, scales)


def load_pretrained(
    kind: str,
    scale: float,
    hub_id: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    path: str | None = None,
) -> FirstStage:
    """A diffusers autoencoder with its published latent scale, from a local folder or from a commit of the hub.

    Raises
    ------
    ValueError
        The folder or repository cannot be read; says what to do without network.
    """
    import diffusers

    cls = {"vq": diffusers.VQModel, "kl": diffusers.AutoencoderKL, "tiny": diffusers.AutoencoderTiny}[kind]
    source = str(Path(path).expanduser()) if path else hub_id
    try:
        # safetensors only: a pickle from the hub comes without a checksum to hold it against
        model = cls.from_pretrained(source, subfolder=subfolder, revision=revision, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"autoencoder {source}: expected diffusers weights of kind {kind}, found {reason};"
            " without network set autoencoder.*.source=path and autoencoder.*.path to a local copy."
        ) from None
    return published(model, kind, scale)


def standardise(model: nn.Module, images: torch.Tensor, kind: str = "tiny") -> FirstStage:
    """Wrap an autoencoder with the shift and scale that standardise its latents over training `images`.

    `images` are (N, 1, H, W) float32 in [-1, 1].
    """
    stage = published(model, kind, 1.0).to(images.device)
    latents = torch.cat([stage.draw(stage.encode(part)) for part in images.split(_encoded_at_once(images.device))])
    stage.shift = latents.mean(dim=(0, 2, 3))
    stage.scale = 1.0 / latents.std(dim=(0, 2, 3)).clamp_min(1e-3)
    return stage


# ---------------------------------------------------------------- arrays


def to_unit(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) uint8 to (N, 1, H, W) float32 in [-1, 1] [paper, preprocessing]."""
    return torch.from_numpy(np.array(images)).unsqueeze(1).float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) float in [-1, 1] to (N, H, W) uint8."""
    return ((images.squeeze(1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def encode_images(
    stage: FirstStage, images: np.ndarray, device: torch.device, batch_size: int | None = None
) -> np.ndarray:
    """Moments of (N, H, W) uint8 images as (N, C or 2C, h, w) float32; `batch_size` changes nothing beyond rounding."""
    stage.to(device)
    at_once = batch_size or _encoded_at_once(device)
    parts = [images[i : i + at_once] for i in range(0, len(images), at_once)]
    return torch.cat([stage.encode(engine.sent(to_unit(part), device)) for part in parts]).cpu().numpy()


def _encoded_at_once(device: torch.device) -> int:
    return CPU_ENCODED if device.type == "cpu" else 32


def groups(n: int, size: int, device: torch.device) -> Iterator[list[int]]:
    """Rows of n images, group by group, so that an image does not depend on those beside it.

    On a GPU a group has `size` rows, where a neighbour moves a result by rounding only. On a CPU it has `CPU_GROUP`
    rows, since kernels are chosen by shape and one shape makes one result; the last is filled up with its own last
    row, which the caller leaves out.
    """
    on_cpu = device.type == "cpu"
    size = CPU_GROUP if on_cpu else max(size, 1)
    for start in range(0, n, size):
        yield [min(row, n - 1) for row in range(start, start + size if on_cpu else min(start + size, n))]


def decode_latents(stage: FirstStage, latents: torch.Tensor, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """(N, C, h, w) scaled latents as (N, H, W) uint8 images, each a function of its own latent, see `groups`."""
    stage.to(device)
    latents = latents.cpu()  # rows are picked there; a GPU would be asked for each group
    grouped = groups(len(latents), batch_size, device)
    decoded = [to_uint8(stage.decode(engine.sent(latents[rows], device))) for rows in grouped]
    return torch.cat(decoded)[: len(latents)].cpu().numpy()


def reconstruct(stage: FirstStage, images: np.ndarray, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """(N, H, W) uint8 images through the autoencoder, without noise."""
    moments = torch.from_numpy(encode_images(stage, images, device)).to(device)
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
    return {"kind": stage.kind, "parameters": count, "scale": stage.scale.tolist()}
