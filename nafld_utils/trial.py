"""One training of a classifier's tail on cached features of its frozen prefix, and its held-out scores.

Contract: features, labels and seeds in; weights, losses and scores out. Every random draw is a function of
``(seed, step)``, so a training does not depend on what ran before it, on its process or on its device's generator.
Nothing is chosen by held-out patients: the prediction is the last step's (paper, Methods, Classification models).

Notes
-----
The prefix is frozen and in eval mode, so its output for an image is the same at every step, for every fold, seed and
mixing rate: it is computed once per stored view. The losses equal those of the plain loop over whole images.
The paper names neither optimiser nor schedule. Choice: AdamW, as for its diffusion models, at a constant learning
rate; the tail's BatchNorm layers train, those of the prefix do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nafld_utils import backbones

REVISION = 1

N_CLASSES = 2
SCHEDULES = ("constant", "cosine")
_CHECK_EVERY = 25  # steps between looks at the loss; each look waits for the device


class DivergedError(ArithmeticError):
    """The training's loss is not a finite number."""


@dataclass(frozen=True)
class Views:
    """Prefix features of a set of n images, one or several stored views (random crops) an image.

    Attributes
    ----------
    features : (N, K, C, h, w) float16 or float32 array, memory map or Tensor
        A store of K views of N images, of which the set takes some; never copied as a whole.
    labels : (n,) int64 array
        0 healthy, 1 fatty.
    rows : (n,) int64 array, optional
        Place of each image of the set in the store; None where the set is the store.
    views : (n,) int64 array, optional
        The one view that the set uses of each image; None where each step draws one of all K.
    """

    features: Any
    labels: np.ndarray
    rows: np.ndarray | None = None
    views: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_views(self) -> int:
        """Views that a step may draw of an image."""
        return self.features.shape[1] if self.views is None else 1

    def take(self, places: np.ndarray, views: np.ndarray, device: torch.device | str) -> Tensor:
        """Features of some images, ``(b, C, h, w)`` float32 on `device`; `views` is read where a step draws them."""
        rows = places if self.rows is None else self.rows[places]
        views = views if self.views is None else self.views[places]
        if isinstance(self.features, Tensor):
            index = [torch.from_numpy(np.asarray(i)).to(self.features.device) for i in (rows, views)]
            return self.features[index[0], index[1]].to(device).float()
        return torch.from_numpy(np.asarray(self.features[rows, views])).to(device).float()


@dataclass(frozen=True)
class Options:
    """How a tail is trained; the fields are the settings of the same names in ``sweep``."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: str = "constant"


# ---------------------------------------------------------------- what a training sees


def prefix_features(
    prefix: nn.Module,
    images: np.ndarray,
    name: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """Output of the frozen prefix for every image.

    Parameters
    ----------
    prefix : torch.nn.Module
        From `backbones.split`; moved to `device` and to channels-last layout.
    images : (N, H, W) uint8
        Grey images.
    name : str
        timm name, which fixes the normalisation.
    device : torch.device or str
        Where to compute.
    batch_size : int, optional
        Images at once; does not change the result beyond rounding. None is `backbones.inference_batch`.
    precision : {"float32", "float16"}
        How the features are kept; half precision changes a loss by 1e-5 (ResNet-50) to 6e-4 (EfficientNet-Lite0).

    Returns
    -------
    (N, C, h, w) float32 or float16

    Raises
    ------
    ValueError
        A feature does not fit the precision.
    """
    prefix.eval().to(device=device, memory_format=torch.channels_last)
    batch_size = batch_size or backbones.inference_batch(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = backbones.to_input(images[start : start + batch_size], name)
            out = prefix(batch.to(device).contiguous(memory_format=torch.channels_last))
            with np.errstate(over="ignore"):  # refused below
                parts.append(out.float().cpu().contiguous().numpy().astype(precision))
            if not np.isfinite(parts[-1]).all():
                raise ValueError(
                    f"features of {name}: expected finite {precision}, found overflow; keep them in float32."
                )
    return np.concatenate(parts)


def draw_synthetic(n_real: int, rate: float, n_available: int, seed: int) -> np.ndarray:
    """Which synthetic images a training mixes in: ``round(rate * n_real)``, without replacement.

    Choice: one order a seed, of which a rate takes the beginning, so the images of a small rate are also used at a
    larger one and the rates differ by what is added.

    Parameters
    ----------
    n_real : int
        Real training images.
    rate : float
        The paper's r, synthetic to real.
    n_available : int
        Images in the fold's synthetic set.
    seed : int
        The training's seed.

    Returns
    -------
    (n,) int64
        Rows of the synthetic set.

    Raises
    ------
    ValueError
        The rate is negative or needs more images than there are.

    Examples
    --------
    >>> len(draw_synthetic(40, 0.5, 100, seed=0))
    20
    """
    if rate < 0:
        raise ValueError(f"mixing rate {rate:g}: expected 0 or more; correct sweep.rates.")
    n = round(rate * n_real)
    if n > n_available:
        raise ValueError(
            f"mixing rate {rate:g}: expected at most {n_available / n_real:.2f}, since it takes {n} synthetic images"
            f" for {n_real} real ones and the set has {n_available}; lower sweep.rates or raise sampling.n_images."
        )
    return np.random.default_rng([seed, 1]).permutation(n_available)[:n]


def draw_batch(
    n_real: int, n_views: int, n_synthetic: int, batch_size: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the union of real and synthetic images that a step sees, and the views of the real ones.

    Every image of the union is equally likely, so the share of synthetic images in a batch is that of the training
    set on average (paper: r is "the proportion of synthetic images to real images in the training set"). No image
    comes twice in a batch where the set is large enough.

    Returns
    -------
    rows : (batch_size,) int64
        Below `n_real`: a real image; from there on: a synthetic one.
    views : (batch_size,) int64
        In [0, n_views).
    """
    rng = np.random.default_rng([seed, 2, step])
    n = n_real + n_synthetic
    rows = rng.choice(n, batch_size, replace=n < batch_size)
    return rows, rng.integers(n_views, size=batch_size)


# ---------------------------------------------------------------- training


def fresh_tail(tail: nn.Sequential, seed: int) -> nn.Sequential:
    """Copy of a pretrained tail with a new two-class linear layer, drawn from the seed (torch's default)."""
    tail = copy.deepcopy(tail)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tail[-1] = nn.Linear(tail[-1].in_features, N_CLASSES)
    return tail


def train_tail(
    tail: nn.Sequential,
    real: Views,
    synthetic: Views | None,
    options: Options,
    seed: int,
    device: torch.device | str = "cpu",
    report: Callable[[int, float], None] | None = None,
) -> tuple[nn.Sequential, np.ndarray]:
    """Train a tail with cross-entropy for a set number of steps.

    Parameters
    ----------
    tail : torch.nn.Sequential
        From `fresh_tail`; trained in place.
    real : Views
        The fold's training images.
    synthetic : Views or None
        The images mixed in, already drawn; None for real images alone.
    options : Options
        Steps, batch size, AdamW's learning rate and weight decay, schedule.
    seed : int
        The training's seed.
    device : torch.device or str
        Where to compute.
    report : callable, optional
        Called as ``report(step, loss)`` now and then.

    Returns
    -------
    tail : torch.nn.Sequential
        In eval mode, on `device`.
    losses : (steps,) float32
        Cross-entropy of every step in nats, before the step.

    Raises
    ------
    ValueError
        The training images hold one class; unknown schedule.
    DivergedError
        The loss is not finite.
    """
    _check(real, options)
    tail.to(device=device, memory_format=torch.channels_last).train()
    optimizer, schedule = _optimizer(tail, options, device)
    n_synthetic = 0 if synthetic is None else len(synthetic)
    losses: list[Tensor] = []
    for step in range(options.steps):
        rows, views = draw_batch(len(real), real.n_views, n_synthetic, options.batch_size, seed, step)
        inputs, labels = gather(real, synthetic, rows, views, device)
        loss = nn.functional.cross_entropy(tail(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == options.steps:
            _require_finite(losses, step, options)
            if report:
                report(step + 1, float(losses[-1]))
    return tail.eval(), torch.stack(losses).float().cpu().numpy()


def gather(
    real: Views, synthetic: Views | None, rows: np.ndarray, views: np.ndarray, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features ``(b, C, h, w)`` float32 and labels ``(b,)`` int64 of a batch from `draw_batch`, real images first."""
    is_real = rows < len(real)
    parts = [real.take(rows[is_real], views[is_real], device)]
    labels = [real.labels[rows[is_real]]]
    if synthetic is not None and not is_real.all():
        place = rows[~is_real] - len(real)
        parts.append(synthetic.take(place, views[~is_real] % synthetic.n_views, device))
        labels.append(synthetic.labels[place])
    inputs = torch.cat(parts).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(np.concatenate(labels).astype(np.int64)).to(device)


def _check(real: Views, options: Options) -> None:
    classes = np.unique(real.labels)
    if not np.array_equal(classes, [0, 1]):
        raise ValueError(
            f"training images: expected both classes (0 and 1), found {classes.tolist()};"
            " use fewer folds or more patients of the other class."
        )
    if options.schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, found {options.schedule!r}.")


def _optimizer(tail: nn.Module, options: Options, device: torch.device | str) -> tuple[Any, Any]:
    """AdamW as one fused kernel: the same update, and the tail has many small tensors."""
    optimizer = torch.optim.AdamW(
        [p for p in tail.parameters() if p.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if options.schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _require_finite(losses: list[Tensor], step: int, options: Options) -> None:
    recent = torch.stack(losses[-_CHECK_EVERY:])
    if not bool(torch.isfinite(recent).all()):
        first = step + 1 - len(recent) + int(torch.nonzero(~torch.isfinite(recent))[0])
        raise DivergedError(
            f"loss at step {first}: expected a finite number, found {float(losses[first])};"
            f" lower sweep.learning_rate (now {options.learning_rate:g})."
        )


def predict(tail: nn.Module, images: Views, device: torch.device | str = "cpu", batch_size: int = 128) -> np.ndarray:
    """Probability of the second class (fatty).

    Parameters
    ----------
    tail : torch.nn.Module
        Set to eval mode.
    images : Views
        One view an image: its deterministic resize.
    device : torch.device or str
        Where to compute.
    batch_size : int
        Images at once; does not change the scores beyond rounding.

    Returns
    -------
    (n,) float64 in [0, 1]
        Softmax in double precision, so that confident scores of different images do not tie at 1.
    """
    tail.eval().to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            places = np.arange(start, min(start + batch_size, len(images)))
            inputs = images.take(places, np.zeros_like(places), device)
            parts.append(tail(inputs.contiguous(memory_format=torch.channels_last)).double().cpu())
    return torch.softmax(torch.cat(parts), dim=1)[:, 1].numpy()
