"""Latent diffusion: the two denoisers, their conditioners, the noise schedule and the loss.

Contract: the null condition is the same in training and in sampling: a map of zeros in every channel for the semantic
model, a third embedding for the class model.

Sources: Hardy et al. 2023, Methods; Rombach et al. 2022, arXiv 2112.10752; Ho & Salimans 2022, arXiv 2207.12598;
Hang et al. 2023, arXiv 2303.09556 (min-SNR).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nafld_utils.ldm.operations import Operations

REVISION = ("diffusion", 1)
NULL_LABEL = 2
GRAPHS = 64  # compiled at most in a process: both models, in training and at every size of a batch


# ---------------------------------------------------------------- networks


@dataclass(frozen=True)
class UNetOptions:
    """What `build_unet` may be told about a denoiser's network.

    Attributes
    ----------
    model_channels : int, optional
        Base channels: 128 for semantic, 256 for class [LDM configurations].
    channel_mult : tuple of int
        Multipliers per level; (1, 2, 4), or (1, 4, 8) for the larger semantic network.
    layers_per_block : int
        Residual blocks per level.
    latent_channels, sample_size : int, optional
        Of the latent: 3 and 64 for semantic, 4 and 32 for class [paper].
    attention, heads : bool, int
        Of the semantic model's middle block; the class model always attends.
    head_channels, cross_attention_dim : int
        Of the class model: channels per attention head, and width of the class embedding [paper: 512].
    cross_attention_from : int
        First level of the class model with cross-attention, counted from the largest [LDM configurations: 0, every
        level]. Choice: a small network on a CPU spends half its time on the largest level's attention.
    """

    model_channels: int | None = None
    channel_mult: tuple[int, ...] = (1, 2, 4)
    layers_per_block: int = 2
    latent_channels: int | None = None
    sample_size: int | None = None
    attention: bool = True
    heads: int = 8
    head_channels: int = 32
    cross_attention_dim: int = 512
    cross_attention_from: int = 0


def build_unet(conditioning: str, **options: Any) -> nn.Module:
    """The denoiser of one model, without its conditioner.

    Parameters
    ----------
    conditioning : {"semantic", "class"}
        Semantic synthesis (map concatenated to the latent) or class-to-image (label by cross-attention).
    **options
        Fields of `UNetOptions`.

    Returns
    -------
    torch.nn.Module
        ``UNet2DModel`` or ``UNet2DConditionModel`` of diffusers; 57,570,435 parameters for the semantic default,
        215,229,315 with (1, 4, 8), 394,984,196 for the class default.

    Raises
    ------
    ValueError
        Unknown conditioning.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     net = build_unet("semantic")
    >>> sum(p.numel() for p in net.parameters())
    57570435
    """
    chosen = UNetOptions(**options)
    if conditioning == "semantic":
        return _semantic_unet(chosen)
    if conditioning == "class":
        return _class_unet(chosen)
    raise ValueError(f"conditioning must be 'semantic' or 'class', got {conditioning!r}.")


def _semantic_unet(chosen: UNetOptions) -> nn.Module:
    from diffusers import UNet2DModel

    levels, width = len(chosen.channel_mult), tuple((chosen.model_channels or 128) * m for m in chosen.channel_mult)
    channels = chosen.latent_channels or 3
    return UNet2DModel(
        sample_size=chosen.sample_size or 64,
        in_channels=2 * channels,
        out_channels=channels,
        layers_per_block=chosen.layers_per_block,
        block_out_channels=width,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        add_attention=chosen.attention,
        attention_head_dim=width[-1] // chosen.heads,
        norm_eps=1e-5,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
    )


def _class_unet(chosen: UNetOptions) -> nn.Module:
    from diffusers import UNet2DConditionModel

    width = tuple((chosen.model_channels or 256) * m for m in chosen.channel_mult)
    attends = [level >= chosen.cross_attention_from for level in range(len(width))]
    channels = chosen.latent_channels or 4
    return UNet2DConditionModel(
        sample_size=chosen.sample_size or 32,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=chosen.layers_per_block,
        block_out_channels=width,
        down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in attends[::-1]),
        cross_attention_dim=chosen.cross_attention_dim,
        # diffusers means the NUMBER of heads per level by this name
        attention_head_dim=tuple(w // chosen.head_channels for w in width),
        use_linear_projection=False,
    )


class SemanticDenoiser(nn.Module):
    """Noise prediction from a latent, with a one-hot label map averaged down and projected beside it.

    At the paper's 128 to 64 pixels averaging equals the bilinear x0.5 of the original.
    """

    conditioning = "semantic"

    def __init__(self, unet: nn.Module, map_classes: int = 5):
        super().__init__()
        self.unet = unet
        self.map_classes = map_classes
        self.project = nn.Conv2d(map_classes, unet.config.in_channels - unet.config.out_channels, 1, bias=False)

    def condition(self, maps: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot planes (N, classes, M, M) float of (N, M, M) integer maps; zeros everywhere where not `keep`."""
        planes = F.one_hot(maps.long(), self.map_classes).permute(0, 3, 1, 2).float()
        return planes if keep is None else planes * keep[:, None, None, None]

    def forward(self, z: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Prediction for latents (N, C, h, w) at timesteps (N,) under planes from `condition`."""
        planes = F.interpolate(condition, size=z.shape[-2:], mode="area")
        return self.unet(torch.cat([z, self.project(planes)], dim=1), t).sample


class ClassDenoiser(nn.Module):
    """Noise prediction from a latent and a class label: 0 healthy, 1 fatty, 2 null, by cross-attention of length 1."""

    conditioning = "class"

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet
        self.embed = nn.Embedding(3, unet.config.cross_attention_dim)

    def condition(self, labels: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Labels (N,) int64, the null label where not `keep`."""
        labels = labels.long()
        return labels if keep is None else torch.where(keep, labels, NULL_LABEL)

    def forward(self, z: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Prediction for latents (N, C, h, w) at timesteps (N,) under labels (N,)."""
        return self.unet(z, t, encoder_hidden_states=self.embed(condition)[:, None]).sample


def build_denoiser(
    conditioning: str, network: Mapping[str, Any], latent_shape: tuple[int, int, int], map_classes: int, seed: int
) -> nn.Module:
    """The denoiser with its conditioner from a settings section (``ldm.semantic`` or ``ldm.class``).

    The initial weights are a function of `seed`; the global generator is left as it was. ValueError where the semantic
    network cannot halve the latents.
    """
    options = {item.name: network[item.name] for item in fields(UNetOptions) if item.name in network}
    options |= {"channel_mult": tuple(network["channel_mult"])}
    side, halved = latent_shape[1], 2 ** (len(network["channel_mult"]) - 1)
    if conditioning == "semantic" and side % halved:  # a first stage of another factor than it was said to be
        raise ValueError(
            f"preprocess.image_size: expected latents of a side that is a multiple of {halved} for the semantic model,"
            f" found {side}; give another size, and the first stage's own factor in autoencoder.semantic."
        )
    options |= {"latent_channels": latent_shape[0], "sample_size": latent_shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build_unet(conditioning, **options)
        return SemanticDenoiser(unet, map_classes) if conditioning == "semantic" else ClassDenoiser(unet)


def compile_network(denoiser: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the network of a denoiser in place, a graph for each shape that it meets.

    torch keeps what it learns of shapes by code, not by network, and every network here runs the same code: left to
    itself it takes the class model's sizes for variable once it has met the semantic model's, and compiles slower
    kernels for any size. By its own limit the ninth graph of a process would not be compiled at all.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    denoiser.unet.compile(dynamic=False, backend=backend)


def eager(denoiser: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Let a compiled network compute as it stands, where a graph would be made for few passes; others do anyway."""
    compiled = getattr(denoiser.unet, "_compiled_call_impl", None) is not None
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def schedule_options(network: Mapping[str, Any], prediction: str, train_timesteps: int) -> dict[str, Any]:
    """Options that every diffusers scheduler of one model shares ("linear" of LDM is diffusers' ``scaled_linear``)."""
    return {
        "num_train_timesteps": train_timesteps,
        "beta_start": network["beta_start"],
        "beta_end": network["beta_end"],
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }


# ---------------------------------------------------------------- loss


def diffusion_loss(
    denoiser: nn.Module,
    noiser: Any,
    latents: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    loss: str,
    min_snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean L1 or L2 error of the prediction of noise or velocity (the noiser's ``prediction_type``), a scalar tensor.

    `condition` is from ``denoiser.condition``, `noise` standard normal of the shape (N, C, h, w) of the clean
    `latents`, `timesteps` (N,) int64. `min_snr_gamma` weighs each timestep as `min_snr_weight`; None weighs all alike.
    """
    noisy = noiser.add_noise(latents, noise, timesteps)
    target = noise
    if noiser.config.prediction_type == "v_prediction":
        target = noiser.get_velocity(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, condition).float()
    error = F.l1_loss if loss == "l1" else F.mse_loss
    if min_snr_gamma is None:
        return error(predicted, target)
    weight = min_snr_weight(noiser, timesteps, min_snr_gamma)
    return (weight * error(predicted, target, reduction="none").flatten(1).mean(1)).mean()


def min_snr_weight(noiser: Any, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight of each timestep in the loss, (N,): min(SNR, gamma) over SNR (noise) or SNR + 1 (velocity) [Hang]."""
    kept = noiser.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = kept / (1 - kept)
    return snr.clamp(max=gamma) / (snr + 1 if noiser.config.prediction_type == "v_prediction" else snr)


# ---------------------------------------------------------------- size and cost


def count_parameters(denoiser: nn.Module) -> dict[str, int]:
    """Parameters of the network and of its conditioner."""
    network = sum(p.numel() for p in denoiser.unet.parameters())
    return {"denoiser": network, "conditioner": sum(p.numel() for p in denoiser.parameters()) - network}


def forward_flops(denoiser: nn.Module, latent_shape: tuple[int, int, int], map_size: int = 128) -> int:
    """Floating-point operations of one forward pass of one image, two a multiply-add; nothing is computed.

    A training step costs about three times that an image, a sampling step with guidance twice.
    """
    with torch.no_grad():
        return _operations(denoiser, latent_shape, map_size)


def training_operations(denoiser: nn.Module, latent_shape: tuple[int, int, int], map_size: int = 128) -> int:
    """Operations of one image of a training step, forward and backward, counted as in `forward_flops`."""
    return _operations(denoiser, latent_shape, map_size)


def _operations(denoiser: nn.Module, latent_shape: tuple[int, int, int], map_size: int) -> int:
    ghost = copy.deepcopy(denoiser).to("meta")
    with torch.device("meta"), Operations() as counted:
        z = torch.empty(1, *latent_shape)
        semantic = denoiser.conditioning == "semantic"
        condition = torch.empty(1, denoiser.map_classes, map_size, map_size) if semantic else torch.zeros(1).long()
        predicted = ghost(z, torch.zeros(1), condition)
        if predicted.requires_grad:
            predicted.sum().backward()
    return counted.total
