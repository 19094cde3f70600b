"""Latent diffusion: the two denoisers, their conditioners, the noise schedule and the training loop.

Contract: one training path serves both models and every size. Whatever is random in a step is a function of
(seed, step) alone, so a run that was killed and resumed ends with the weights of one that was not. Latents come as
stored moments and are drawn just in time. The null condition is the same in training and in sampling: a map of zeros
in every channel for the semantic model, a third embedding for the class model.

Sources: Hardy et al. 2023, Methods; Rombach et al. 2022, arXiv 2112.10752; Ho & Salimans 2022, arXiv 2207.12598.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nafld_utils.artifacts import unit_seed

REVISION = 1
NULL_LABEL = 2


# ---------------------------------------------------------------- networks


def build_unet(
    conditioning: str,
    model_channels: int | None = None,
    channel_mult: tuple[int, ...] = (1, 2, 4),
    layers_per_block: int = 2,
    latent_channels: int | None = None,
    sample_size: int | None = None,
    attention: bool = True,
    heads: int = 8,
    head_channels: int = 32,
    cross_attention_dim: int = 512,
    cross_attention_from: int = 0,
) -> nn.Module:
    """The denoiser of one model, without its conditioner.

    Parameters
    ----------
    conditioning : {"semantic", "class"}
        Semantic synthesis (map concatenated to the latent) or class-to-image (label by cross-attention).
    model_channels : int, optional
        Base channels: 128 for semantic, 256 for class [LDM configurations].
    channel_mult : tuple of int
        Multipliers a level; (1, 2, 4), or (1, 4, 8) for the larger semantic network.
    layers_per_block : int
        Residual blocks a level.
    latent_channels, sample_size : int, optional
        Of the latent: 3 and 64 for semantic, 4 and 32 for class [paper].
    attention : bool
        Semantic: attention in the middle block; class: always on.
    heads : int
        Attention heads of the semantic model's middle block.
    head_channels : int
        Channels an attention head of the class model.
    cross_attention_dim : int
        Width of the class embedding [paper: 512].
    cross_attention_from : int
        First level of the class model with cross-attention, counted from the largest [LDM configurations: 0, every
        level]. Choice: a small network on a CPU spends half its time on the largest level's attention.

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
    from diffusers import UNet2DConditionModel, UNet2DModel

    levels = len(channel_mult)
    if conditioning == "semantic":
        width = tuple((model_channels or 128) * m for m in channel_mult)
        channels = latent_channels or 3
        return UNet2DModel(
            sample_size=sample_size or 64,
            in_channels=2 * channels,
            out_channels=channels,
            layers_per_block=layers_per_block,
            block_out_channels=width,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            add_attention=attention,
            attention_head_dim=width[-1] // heads,
            norm_eps=1e-5,
            downsample_padding=1,
            flip_sin_to_cos=True,
            freq_shift=0,
        )
    if conditioning == "class":
        width = tuple((model_channels or 256) * m for m in channel_mult)
        attends = [level >= cross_attention_from for level in range(levels)]
        channels = latent_channels or 4
        return UNet2DConditionModel(
            sample_size=sample_size or 32,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers_per_block,
            block_out_channels=width,
            down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in attends[::-1]),
            cross_attention_dim=cross_attention_dim,
            # diffusers means the NUMBER of heads a level by this name
            attention_head_dim=tuple(w // head_channels for w in width),
            use_linear_projection=False,
        )
    raise ValueError(f"conditioning must be 'semantic' or 'class', got {conditioning!r}.")


class SemanticDenoiser(nn.Module):
    """Noise prediction from a latent and a label map.

    The one-hot map is averaged down to the latent's size, projected by a trained 1x1 convolution without bias and
    concatenated to the latent. (At the paper's 128 to 64 pixels averaging equals the bilinear x0.5 of the original.)
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

    The initial weights are a function of `seed`; the global generator is left as it was.
    """
    names = ("model_channels", "channel_mult", "layers_per_block", "attention", "heads", "head_channels")
    options = {name: network[name] for name in (*names, "cross_attention_dim", "cross_attention_from")}
    options["channel_mult"] = tuple(options["channel_mult"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build_unet(conditioning, latent_channels=latent_shape[0], sample_size=latent_shape[1], **options)
        return SemanticDenoiser(unet, map_classes) if conditioning == "semantic" else ClassDenoiser(unet)


def schedule_options(network: Mapping[str, Any], prediction: str, train_timesteps: int) -> dict[str, Any]:
    """Options that every diffusers scheduler of one model shares ("linear" of LDM is diffusers' ``scaled_linear``)."""
    return {
        "num_train_timesteps": train_timesteps,
        "beta_start": network["beta_start"],
        "beta_end": network["beta_end"],
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }


# ---------------------------------------------------------------- training data


@dataclass
class LatentPool:
    """Training or held-out latents of one fold.

    Attributes
    ----------
    moments : torch.Tensor, shape (N, K, C or 2C, h, w), float32
        Encoder moments of K random crops of N images.
    conditions : torch.Tensor
        Semantic: (N, K, M, M) uint8 maps of the same crops; class: (N,) int64 labels.
    draw : callable
        ``FirstStage.draw``: scaled latents from moments and noise.
    """

    moments: torch.Tensor
    conditions: torch.Tensor
    draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (size, C, h, w) and conditions of images and crops drawn uniformly."""
        rows = torch.randint(self.moments.shape[0], (size,), generator=generator)
        crops = torch.randint(self.moments.shape[1], (size,), generator=generator)
        moments = self.moments[rows, crops]
        noise = torch.randn(moments.shape, generator=generator)[:, : self.channels]
        conditions = self.conditions[rows, crops] if self.conditions.ndim > 1 else self.conditions[rows]
        return self.draw(moments, noise), conditions

    @property
    def channels(self) -> int:
        """Channels of a drawn latent."""
        return self.draw(self.moments[:1, 0], torch.zeros(())).shape[1]


# ---------------------------------------------------------------- training


@dataclass
class Training:
    """State of a training: what a checkpoint holds."""

    denoiser: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Any
    ema: Any
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, running average and optimiser moments under flat names, on the CPU."""
        out = {f"model.{name}": value for name, value in self.denoiser.state_dict().items()}
        out |= {f"ema.{i}": value for i, value in enumerate(self.ema.shadow_params)}
        for i, state in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return {name: value.detach().cpu().contiguous().clone() for name, value in out.items()}

    def facts(self) -> dict[str, Any]:
        """What is not a tensor: step, loss curve and the losses since its last row."""
        return {"step": self.step, "curve": self.curve, "recent": self.recent}

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from `tensors` and `facts`."""
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.denoiser.load_state_dict(model)
        device = next(self.denoiser.parameters()).device
        self.ema.shadow_params = [tensors[f"ema.{i}"].to(device) for i in range(len(self.ema.shadow_params))]
        self.ema.optimization_step = int(facts["step"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.recent = int(facts["step"]), list(facts["recent"])
        self.curve = [dict(row) for row in facts["curve"]]
        self.rate.last_epoch = self.step
        rates = [base * at(self.step) for base, at in zip(self.rate.base_lrs, self.rate.lr_lambdas, strict=True)]
        self.rate._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def averaged(self) -> dict[str, torch.Tensor]:
        """State of the denoiser with its parameters replaced by their running average, on the CPU."""
        names = [name for name, _ in self.denoiser.named_parameters()]
        average = dict(zip(names, self.ema.shadow_params, strict=True))
        state = self.denoiser.state_dict() | average
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def start_training(denoiser: nn.Module, settings: Mapping[str, Any]) -> Training:
    """Optimiser, cosine schedule with warm-up and running average for a denoiser, from the ``ldm`` section."""
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    rate = get_cosine_schedule_with_warmup(optimizer, settings["warmup_steps"], settings["steps"])
    return Training(denoiser, optimizer, rate, EMAModel(denoiser.parameters(), decay=settings["ema_decay"]))


def diffusion_loss(
    denoiser: nn.Module,
    noiser: Any,
    latents: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    loss: str,
) -> torch.Tensor:
    """Mean L1 or L2 error of the prediction of noise or velocity, a scalar tensor.

    Parameters
    ----------
    denoiser : torch.nn.Module
        Semantic or class denoiser.
    noiser : diffusers.DDPMScheduler
        Forward process; its ``prediction_type`` says what is predicted.
    latents, noise : torch.Tensor, shape (N, C, h, w)
        Clean latents and standard normal noise.
    condition : torch.Tensor
        From ``denoiser.condition``.
    timesteps : torch.Tensor, shape (N,), int64
        In [0, train timesteps).
    loss : {"l1", "l2"}
        Norm.
    """
    noisy = noiser.add_noise(latents, noise, timesteps)
    target = noise
    if noiser.config.prediction_type == "v_prediction":
        target = noiser.get_velocity(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, condition).float()
    return F.l1_loss(predicted, target) if loss == "l1" else F.mse_loss(predicted, target)


def train(
    training: Training,
    pool: LatentPool,
    held_out: LatentPool | None,
    settings: Mapping[str, Any],
    loss: str,
    noiser: Any,
    seed: int,
    device: torch.device,
) -> Iterator[Training]:
    """Train to ``settings["steps"]``, yielding the state after every step; resumes from ``training.step``.

    Parameters
    ----------
    training : Training
        From `start_training`, possibly restored.
    pool, held_out : LatentPool
        Training patients' latents; held-out patients' only for a validation loss at fixed noise, which is shown and
        never used to choose a step or weights.
    settings : mapping
        The ``ldm`` section.
    loss : {"l1", "l2"}
        Norm of this model's loss.
    noiser : diffusers.DDPMScheduler
        Forward process.
    seed : int
        Root of all randomness.
    device : torch.device
        Where to train.

    Raises
    ------
    FloatingPointError
        The loss is not finite; the step's update is not applied.

    Notes
    -----
    A row of ``training.curve`` holds the mean loss of the steps since the row before it.
    """
    denoiser, total = training.denoiser, int(noiser.config.num_train_timesteps)
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=settings["precision"] == "bf16" and device.type != "cpu"
    )
    while training.step < settings["steps"]:
        generator = torch.Generator().manual_seed(unit_seed(seed, "step", training.step))
        latents, conditions = pool.batch(settings["batch_size"], generator)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.randint(total, (len(latents),), generator=generator).to(device)
        keep = (torch.rand(len(latents), generator=generator) >= settings["condition_dropout"]).to(device)
        denoiser.train()
        with autocast:
            condition = denoiser.condition(conditions.to(device), keep)
            value = diffusion_loss(denoiser, noiser, latents.to(device), condition, noise, timesteps, loss)
        if not math.isfinite(value.item()):
            raise FloatingPointError(
                f"diffusion training: the loss is {value.item()} at step {training.step};"
                " lower ldm.learning_rate or set ldm.precision=fp32, the last checkpoint is kept."
            )
        training.optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(denoiser.parameters(), settings["gradient_clip"])
        training.optimizer.step()
        training.rate.step()
        training.ema.step(denoiser.parameters())
        training.step += 1
        training.recent.append(value.item())
        if training.step % settings["log_every"] == 0 or training.step == settings["steps"]:
            mean_loss = sum(training.recent) / len(training.recent)
            training.recent.clear()
            row = {"step": training.step, "loss": mean_loss, "gradient_norm": float(norm)}
            row["learning_rate"] = float(training.rate.get_last_lr()[0])
            row["validation"] = validation_loss(denoiser, noiser, held_out, loss, seed, device)
            training.curve.append(row)
        yield training


@torch.no_grad()
def validation_loss(
    denoiser: nn.Module, noiser: Any, held_out: LatentPool | None, loss: str, seed: int, device: torch.device
) -> float:
    """Loss on 32 held-out latents at the same noise and timesteps in every call; NaN without held-out images."""
    if held_out is None or not len(held_out.moments):
        return float("nan")
    generator = torch.Generator().manual_seed(unit_seed(seed, "validation"))
    latents, conditions = held_out.batch(32, generator)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    timesteps = torch.linspace(0, noiser.config.num_train_timesteps - 1, len(latents)).long().to(device)
    denoiser.eval()
    condition = denoiser.condition(conditions.to(device))
    return diffusion_loss(denoiser, noiser, latents.to(device), condition, noise, timesteps, loss).item()


def count_parameters(denoiser: nn.Module) -> dict[str, int]:
    """Parameters of the network and of its conditioner."""
    network = sum(p.numel() for p in denoiser.unet.parameters())
    return {"denoiser": network, "conditioner": sum(p.numel() for p in denoiser.parameters()) - network}


def facts_json(training: Training) -> str:
    """`Training.facts` as JSON text."""
    return json.dumps(training.facts())
