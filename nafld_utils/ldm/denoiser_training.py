"""Training of the denoisers: the latents they see, the state that a checkpoint holds, the loop.

Contract: one path serves both models and every size. Whatever is random in a step is a function of (seed, step) alone,
so a run that was killed and resumed ends with the weights of one that was not. Latents come as moments and are drawn
just in time. No held-out image ever chooses a step or a weight.

Sources: Hardy et al. 2023, Methods (AdamW, cosine schedule, warm-up); Rombach et al. 2022, arXiv 2112.10752.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from nafld_utils import engine
from nafld_utils.artifacts import unit_seed
from nafld_utils.engine import arithmetic, autocast
from nafld_utils.ldm.denoiser import diffusion_loss, eager
from nafld_utils.ldm.latent_pools import LatentPool
from nafld_utils.ldm.resumable import State, on_cpu

REVISION = ("diffusion_training", 1)
CPU = torch.device("cpu")
VALIDATED = 32  # held-out latents of the validation loss (choice)


# ---------------------------------------------------------------- batches


class Batch(NamedTuple):
    """All that a step reads."""

    latents: torch.Tensor
    conditions: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    keep: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to a device without waiting for it."""
        return Batch(*(engine.sent(item, device) for item in self))


def draw_batch(pool: LatentPool, settings: Mapping[str, Any], timesteps: int, seed: int, step: int) -> Batch:
    """The batch of a step, a function of (seed, step) alone, on the CPU."""
    generator = torch.Generator().manual_seed(unit_seed(seed, "step", step))
    latents, conditions = pool.batch(settings["batch_size"], generator)
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(timesteps, (len(latents),), generator=generator)
    keep = torch.rand(len(latents), generator=generator) >= settings["condition_dropout"]
    return Batch(latents, conditions, noise, t, keep)


# ---------------------------------------------------------------- state


@dataclass
class Training(State):
    """State of a training, with the losses since the last row of its curve."""

    denoiser: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Any
    ema: Any
    recent: list[float] = field(default_factory=list)

    told = (
        "diffusion training: the loss is {loss} and its gradient {gradient} at step {step}; lower ldm.learning_rate or"
        " set ldm.precision=fp32; the weights before this step are kept."
    )

    def networks(self) -> dict[str, nn.Module]:
        """The denoiser."""
        return {"model": self.denoiser}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """The denoiser's."""
        return {"optimizer": (self.optimizer, self.denoiser)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, running average and optimiser moments under flat names, on the CPU."""
        return super().tensors() | on_cpu({f"ema.{i}": value for i, value in enumerate(self.ema.shadow_params)})

    def facts(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {**super().facts(), "recent": self.recent}

    def seen(self, found: Mapping[str, float]) -> None:
        """Keep a step's loss for the curve."""
        self.recent.append(found["loss"])

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from `tensors` and `facts`; the average takes the memory layout of the parameters, as moments do."""
        super().restore(tensors, facts)
        self.recent = list(facts["recent"])
        self.ema.shadow_params = [
            torch.empty_like(p).copy_(tensors[f"ema.{i}"]) for i, p in enumerate(self.denoiser.parameters())
        ]
        self.ema.optimization_step = self.rate.last_epoch = self.step
        rates = [base * at(self.step) for base, at in zip(self.rate.base_lrs, self.rate.lr_lambdas, strict=True)]
        self.rate._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def averaged(self) -> dict[str, torch.Tensor]:
        """State of the denoiser with its parameters replaced by their running average, on the CPU."""
        names = [name for name, _ in self.denoiser.named_parameters()]
        average = dict(zip(names, self.ema.shadow_params, strict=True))
        return on_cpu(self.denoiser.state_dict() | average)

    @contextlib.contextmanager
    def with_average(self) -> Iterator[nn.Module]:
        """The denoiser with averaged weights in eval mode, for a look at what it draws; afterwards it is as before."""
        parameters = list(self.denoiser.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield self.denoiser.eval()
        finally:
            self.ema.restore(parameters)


def start_training(denoiser: nn.Module, settings: Mapping[str, Any]) -> Training:
    """Optimiser, cosine schedule with warm-up and running average for a denoiser, from the ``ldm`` section."""
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.AdamW(
        denoiser.parameters(),
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        fused=True,  # one kernel a device instead of ten a tensor
    )
    rate = get_cosine_schedule_with_warmup(optimizer, settings["warmup_steps"], settings["steps"])
    average = EMAModel(denoiser.parameters(), decay=settings["ema_decay"], foreach=True)
    return Training(denoiser, optimizer, rate, average)


# ---------------------------------------------------------------- loop


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
    noiser : diffusers.DDPMScheduler
    seed, device

    Raises
    ------
    FloatingPointError
        The loss or its gradient is not finite; no update of weights or moments is applied from that step on, also where
        a GPU is looked at some steps later (`State.note`).
    """
    denoiser, total = training.denoiser, int(noiser.config.num_train_timesteps)
    if training.step >= settings["steps"]:
        return
    fixed = validation_batch(held_out, total, seed, device)
    batch = draw_batch(pool, settings, total, seed, training.step)
    broken = torch.zeros((), device=device)
    while training.step < settings["steps"]:
        denoiser.train()
        training.optimizer.zero_grad(set_to_none=True)
        value = _gradient(denoiser, noiser, batch.to(device), settings, loss)
        norm = nn.utils.clip_grad_norm_(denoiser.parameters(), settings["gradient_clip"])
        if training.step + 1 < settings["steps"]:  # drawn on the CPU while a GPU still works on this one
            batch = draw_batch(pool, settings, total, seed, training.step + 1)
        logs = _logs(training.step + 1, settings)
        training.note({"loss": value, "gradient": norm}, logs, device)
        training.optimizer.found_inf = broken = _broken(value, norm, broken)  # torch's fused AdamW skips such a step
        training.optimizer.step()
        training.rate.step()
        training.ema.step(denoiser.parameters())
        training.step += 1
        if logs:
            with eager(denoiser):
                validation = validation_loss(denoiser, noiser, fixed, settings, loss)
            _log(training, validation)
        yield training


def _logs(step: int, settings: Mapping[str, Any]) -> bool:
    """Whether the curve has a row after so many steps."""
    return step % settings["log_every"] == 0 or step == settings["steps"]


def _broken(value: torch.Tensor, norm: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """1 where a step or one before it is not finite, else 0, on the device; nothing waits for it."""
    return torch.maximum(before, 1.0 - torch.isfinite(value + norm).float())


def _gradient(denoiser: nn.Module, noiser: Any, batch: Batch, settings: Mapping[str, Any], loss: str) -> torch.Tensor:
    """Accumulate the gradient of a batch in `accumulate` parts; the loss as a scalar tensor on the device."""
    device, n = batch.latents.device, len(batch.latents)
    value = torch.zeros((), device=device)
    with arithmetic(settings["precision"], device):
        for part in zip(*(item.chunk(settings["accumulate"]) for item in batch), strict=True):
            with autocast(settings["precision"], device):
                part_loss = _loss(denoiser, noiser, Batch(*part), settings, loss)
            part_loss = part_loss * (len(part[0]) / n)
            part_loss.backward()
            value += part_loss.detach()
    return value


def _loss(denoiser: nn.Module, noiser: Any, batch: Batch, settings: Mapping[str, Any], loss: str) -> torch.Tensor:
    condition = denoiser.condition(batch.conditions, batch.keep)
    weigh = settings["min_snr_gamma"]
    return diffusion_loss(denoiser, noiser, batch.latents, condition, batch.noise, batch.timesteps, loss, weigh)


def _log(training: Training, validation: float) -> None:
    """Append a row to the curve, with the mean loss of the steps since the row before it."""
    row = {"step": training.step, "loss": sum(training.recent) / len(training.recent)}
    row["gradient_norm"] = training.latest["gradient"]
    training.recent.clear()
    training.curve.append({**row, "learning_rate": float(training.rate.get_last_lr()[0]), "validation": validation})


def validation_batch(
    held_out: LatentPool | None, timesteps: int, seed: int, device: torch.device = CPU
) -> Batch | None:
    """`VALIDATED` held-out latents with their noise and timesteps, the same in every call; None without such images."""
    if held_out is None or not len(held_out):
        return None
    generator = torch.Generator().manual_seed(unit_seed(seed, "validation"))
    latents, conditions = held_out.batch(VALIDATED, generator)
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.linspace(0, timesteps - 1, len(latents)).long()
    return Batch(latents, conditions, noise, t, torch.ones(len(latents), dtype=torch.bool)).to(device)


@torch.no_grad()
def validation_loss(
    denoiser: nn.Module, noiser: Any, batch: Batch | None, settings: Mapping[str, Any], loss: str
) -> float:
    """Loss, weighed as in training, on a batch of `validation_batch` that is on the denoiser's device; NaN without."""
    if batch is None:
        return float("nan")
    device = batch.latents.device
    denoiser.eval()
    with arithmetic(settings["precision"], device), autocast(settings["precision"], device):
        return _loss(denoiser, noiser, batch, settings, loss).item()
