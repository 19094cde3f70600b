"""Settings of stages 03 and 04: first stages, denoisers, sampling, the GAN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nafld_utils.params.fields import Count, Name, NonNegative, Positive, Precision, Section, Share

NETWORKS = {("vq", 4), ("vq", 8), ("kl", 8), ("tiny", 8)}
_EFFECTS = ("echogenicity", "attenuation", "border_blur", "vessel_loss", "diaphragm_loss", "capsule_loss")
# Of the simulator (`phantom.VARIANTS`).
Variant = Literal[
    "full", "no_effects", "half", "double", *(f"only_{name}" for name in _EFFECTS), "wide", "no_frames", "literature"
]


class AutoencoderSettings(Section):
    """The first stage of one model."""

    source: Literal["shipped", "hub", "path", "ldm_checkpoint", "train", "random"]
    kind: Literal["vq", "kl", "tiny"]
    factor: Literal[4, 8]
    base_channels: Annotated[int, Field(ge=32, multiple_of=32)]
    hub_id: str | None
    subfolder: str | None
    revision: str | None
    path: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None
    scale: Positive
    train_steps: Annotated[int, Field(ge=2)]

    @property
    def pixels_per_latent(self) -> int:
        """Pixels of a side that one latent pixel stands for; the shipped autoencoder's are its own."""
        return 8 if self.source == "shipped" else self.factor

    @model_validator(mode="after")
    def _origin(self) -> AutoencoderSettings:
        if self.source == "hub" and not self.hub_id:
            raise ValueError("hub_id must name a hub repository when source is hub")
        if self.source == "path" and not self.path:
            raise ValueError("path must name a diffusers folder when source is path")
        if self.source == "ldm_checkpoint" and not (self.path and self.sha256):
            raise ValueError("path and sha256 must name a checkpoint and its SHA-256 when source is ldm_checkpoint")
        if self.source in ("ldm_checkpoint", "train", "random") and (self.kind, self.factor) not in NETWORKS:
            raise ValueError(f"kind and factor must be one of {sorted(NETWORKS)}, got ({self.kind!r}, {self.factor})")
        if self.kind == "vq" and self.source in ("hub", "path", "ldm_checkpoint") and self.scale != 1.0:
            raise ValueError(f"scale must be 1.0 with kind vq, whose latents are used unscaled, got {self.scale:g}")
        return self


class AutoencodersSettings(Section):
    """One first stage a model."""

    semantic: AutoencoderSettings
    class_: AutoencoderSettings = Field(alias="class")


class DenoiserSettings(Section):
    """The network of one model and its noise schedule."""

    model_channels: Annotated[int, Field(ge=32, multiple_of=32)]
    channel_mult: Annotated[tuple[Count, ...], Field(min_length=1)]
    layers_per_block: Count
    attention: bool
    heads: Count
    head_channels: Count
    loss: Literal["l1", "l2"]
    beta_start: Positive
    beta_end: Positive
    cross_attention_dim: Count
    cross_attention_from: Annotated[int, Field(ge=0)]


Conditioning = Literal["semantic", "class"]
Guidance = Annotated[float, Field(ge=1.0, le=20.0)]
Balance = Literal["none", "oversample"]


class LdmSettings(Section):
    """Training of the diffusion models."""

    conditionings: Annotated[tuple[Conditioning, ...], Field(min_length=1)]
    folds: tuple[NonNegative, ...] | None
    semantic: DenoiserSettings
    class_: DenoiserSettings = Field(alias="class")
    balance: Annotated[tuple[Balance, ...], Field(min_length=1)]
    latents: Literal["pool", "on_the_fly"]
    init_from: Name | None
    prediction: Literal["epsilon", "v_prediction"]
    min_snr_gamma: Positive | None
    train_timesteps: Annotated[int, Field(ge=10)]
    steps: Count
    batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: NonNegative
    gradient_clip: Positive
    condition_dropout: Share
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    accumulate: Count
    checkpoint_every: Count
    keep_checkpoints: Count
    preview_every: NonNegative
    log_every: Count
    stop: Literal["last", "before_copies"]
    checked: NonNegative
    checked_images: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _batches(self) -> LdmSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if self.stop == "before_copies" and not 2 <= self.checked <= self.steps:
            raise ValueError(f"checked must be 2 to steps {self.steps} with stop before_copies, got {self.checked}")
        if "none" not in self.balance or len(set(self.balance)) != len(self.balance):
            raise ValueError(f"balance must hold none, and each value once, got {list(self.balance)}")
        return self


class SamplingSettings(Section):
    """Synthetic sets."""

    n_images: Count
    n_null: Count
    scheduler: Literal["ddim", "dpmsolver++", "unipc"]
    steps: Count
    eta: Share
    guidance: Guidance
    precision: Precision
    batch_size: Count
    n_compared: NonNegative
    compared_guidance: tuple[Guidance, ...]
    compared_steps: tuple[Count, ...]

    @model_validator(mode="after")
    def _deterministic(self) -> SamplingSettings:
        if self.scheduler != "ddim" and self.eta > 0:
            raise ValueError(f"eta must be 0 with {self.scheduler}, which draws no noise, got {self.eta:g}")
        return self


def ddim_strides(steps: int, train_timesteps: int) -> bool:
    """Whether so many equal strides of whole timesteps lead from the last of them to the first, as DDIM walks them.

    Notes
    -----
    The stride is ``train_timesteps // steps``. Where what remains is a stride or more, the walk begins below the last
    timestep, at noise that is weaker than what it is given; with strides of one it begins beyond it.
    """
    stride = train_timesteps // steps
    return stride > 1 and train_timesteps - steps * stride < stride


def ddim_steps_near(steps: int, train_timesteps: int) -> str:
    """The numbers of steps nearest to one that DDIM cannot walk, for a message."""
    fit = [n for n in range(1, train_timesteps // 2 + 1) if ddim_strides(n, train_timesteps)]
    below, above = (max((n for n in fit if n < steps), default=None), min((n for n in fit if n > steps), default=None))
    return " or ".join(str(n) for n in (below, above) if n is not None)


def sizes_that_halve(size: int, multiple: int, least: int, most: int) -> str:
    """The sides nearest to one that is no such multiple, smaller first, for a message; "" where there is none."""
    near = [n for n in (size // multiple * multiple, (size // multiple + 1) * multiple) if least <= n <= most]
    return " or ".join(map(str, near))


class SimulatedSettings(Section):
    """Images of simulated patients, made without any image of the cohort."""

    enabled: bool | Literal["auto"]
    variant: Variant
    share: Annotated[float, Field(gt=0, lt=1)]


class GanSettings(Section):
    """The GAN that the diffusion models are compared with."""

    enabled: bool
    steps: Count | None
    base_channels: Annotated[int, Field(ge=4, multiple_of=4)]
    max_channels: Annotated[int, Field(ge=8, multiple_of=8)]
    batch_size: Annotated[int, Field(ge=2, multiple_of=2)]
    learning_rate: Positive
    penalty: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    checkpoint_every: Count
    keep_checkpoints: Count
    log_every: Count
