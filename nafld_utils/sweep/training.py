"""One training of a classifier's tail on cached features of its frozen prefix, and its held-out scores.

Contract: features, labels and seeds in; weights, losses and scores out. Every random draw is a function of
``(seed, step)``, so a training does not depend on what ran before it, on its process or on its device's generator.
Nothing is chosen by held-out patients: the prediction is the last step's (paper, Methods, Classification models).

Notes
-----
The prefix is frozen and in eval mode, so its output for an image is the same at every step, for every fold, seed and
mixing rate: it is computed once per stored view. The losses equal those of the plain loop over whole images. Where
nothing is frozen the stored views are the images themselves, normalised on the device.
The paper names neither optimiser nor schedule. Choice: AdamW, as for its diffusion models, at a constant learning
rate; the tail's BatchNorm layers train, those of the prefix do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nafld_utils import engine, networks
from nafld_utils.engine import arithmetic, autocast
from nafld_utils.sweep.draws import draw_batch

REVISION = ("trial", 2)

N_CLASSES = 2
CHECK_EVERY = 25  # steps between looks at the loss; each look waits for the device


class DivergedError(ArithmeticError):
    """The training's loss is not a finite number."""


@dataclass(frozen=True)
class Views:
    """Prefix features or images of a set of n images, one or several stored views (random crops) per image.

    Attributes
    ----------
    features : (N, K, C, h, w) or (N, K, C) float16 or float32, or (N, K, S, S) uint8: array, memory map or Tensor
        A store of K views of N images, of which the set takes some; never copied as a whole. uint8 are grey images.
    labels : (n,) int64 array
        0 and 1, of which 1 is the class to detect.
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

    def address(self, places: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and views of the store for some images of the set; `views` counts where a step draws them."""
        rows = places if self.rows is None else self.rows[places]
        return rows, views % self.n_views if self.views is None else self.views[places]

    def take(self, places: np.ndarray, views: np.ndarray, device: torch.device | str) -> Tensor:
        """Some images as they are stored, ``(b, ...)`` on `device`."""
        index = self.address(places, views)
        if isinstance(self.features, Tensor):
            rows, views = (engine.sent(torch.from_numpy(np.asarray(i)), self.features.device) for i in index)
            return self.features[rows, views].to(device)
        return engine.sent(torch.from_numpy(np.asarray(self.features[index])), torch.device(device))


@dataclass(frozen=True)
class Options:
    """How a tail is trained; the fields but the last three are the settings of the same names in ``sweep``."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: str = "fp32"
    first: int = 0  # steps, before all others, on the images added to the real ones alone; the others on real ones
    norm: str = "train"  # BatchNorm layers of the tail: train | frozen, as pretrained and in eval mode
    quick: bool = True  # on a CPU: gradients by `networks.quicken`; False repeats a training from before them


# ---------------------------------------------------------------- what a training sees


def prefix_features(
    prefix: nn.Module,
    images: np.ndarray,
    name: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """Output of the frozen prefix (`networks.split`) for grey images (N, H, W) uint8.

    ``(N, C, h, w)``, or ``(N, C)`` where only the last linear layer is trained, in `precision`: "float32", or
    "float16", which changes a loss by 1e-5 (ResNet-50) to 6e-4 (EfficientNet-Lite0). The timm `name` fixes the
    normalisation; `batch_size` (None: `networks.inference_batch`) changes nothing beyond rounding. ValueError where a
    feature does not fit the precision.
    """
    device = torch.device(device)
    prefix.eval().to(device=device, memory_format=torch.channels_last)
    batch_size = batch_size or networks.inference_batch(device)
    parts, kept = [], getattr(torch, precision)
    with torch.inference_mode(), arithmetic("fp32", device):
        for start in range(0, len(images), batch_size):
            batch = networks.to_input(images[start : start + batch_size], name)
            out = prefix(networks.channels_last(engine.sent(batch, device)))
            parts.append(out.float().to(kept).contiguous())
    found = torch.cat(parts).cpu().numpy()
    if not np.isfinite(found).all():
        raise ValueError(
            f"features of {name}: expected finite {precision}, found overflow; keep them in float32 (sweep.features)."
        )
    return found


def check_classes(parts: Sequence[Views], options: Options) -> None:
    """Refuse a training set, or what is seen before the real images (``options.first``), of one class or no image."""
    for seen in (parts[:1], parts[1:]) if options.first else (parts,):
        classes = sorted({int(label) for part in seen for label in np.unique(part.labels)})
        if classes != [0, 1]:
            raise ValueError(
                f"training images: expected both classes (0 and 1), found {classes};"
                " use fewer folds or more patients of the other class."
            )


def batch_of(parts: Sequence[Views], options: Options, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the union of the parts, and the views, that a step sees (`draws.draw_batch`).

    With ``options.first`` a step sees the first part (the real images) or all others, never both.
    """
    n_views, n_all = max(part.n_views for part in parts), sum(map(len, parts))
    low, high = 0, n_all
    if options.first:
        low, high = (len(parts[0]), n_all) if step < options.first else (0, len(parts[0]))
    rows, views = draw_batch(high - low, n_views, options.batch_size, seed, step)
    return low + rows, views


def gather(
    parts: Sequence[Views], rows: np.ndarray, views: np.ndarray, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Images ``(b, ...)`` as stored and labels ``(b,)`` int64 of a batch from `batch_of`, part by part."""
    inputs, labels, first = [], [], 0
    for part in parts:
        mine = (rows >= first) & (rows < first + len(part))
        if mine.any():
            places = rows[mine] - first
            inputs.append(part.take(places, views[mine], device))
            labels.append(part.labels[places])
        first += len(part)
    named = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return torch.cat(inputs), engine.sent(named, torch.device(device))


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
    parts: Sequence[Views],
    options: Options,
    seed: int,
    decoder: nn.Module,
    device: torch.device | str = "cpu",
    watch: Callable[[int, nn.Sequential], None] | None = None,
) -> tuple[nn.Sequential, np.ndarray]:
    """Train a tail from `fresh_tail` in place with cross-entropy for a set number of steps.

    Parameters
    ----------
    tail : torch.nn.Sequential
    parts : sequence of Views
        The training set: the fold's real images and the images mixed in, already drawn.
    options : Options
    seed : int
    decoder : torch.nn.Module
        `networks.Decoder` of the network.
    device : torch.device or str
    watch : callable, optional
        Called with the number of steps done, from 0 on, and the tail, before each step and after the last; whatever it
        does with the tail's mode is undone.

    Returns
    -------
    tail : torch.nn.Sequential
        In eval mode, on `device`.
    losses : (steps,) float32
        Cross-entropy of every step in nats, before the step. DivergedError where one is not finite.
    """
    check_classes(parts, options)
    tail.to(device=device, memory_format=torch.channels_last)
    if options.quick and torch.device(device).type == "cpu":
        networks.quicken(tail)
    decoder, optimizer = decoder.to(device), build_optimizer(tail, options)
    losses: list[Tensor] = []
    in_training(tail, options)
    with arithmetic(options.precision, device):
        for step in range(options.steps):
            if watch is not None:
                watch(step, tail)
                in_training(tail, options)
            stored, labels = gather(parts, *batch_of(parts, options, seed, step), device)
            losses.append(step_on(tail, decoder, optimizer, stored, labels, options))
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == options.steps:
                require_finite(torch.stack(losses[-CHECK_EVERY:]), len(losses), options)
    if watch is not None:
        watch(options.steps, tail)
    return tail.eval(), torch.stack(losses).float().cpu().numpy()


def in_training(tail: nn.Module, options: Options) -> None:
    """Set the mode of every layer as a training wants it."""
    tail.train()
    if options.norm == "frozen":
        for layer in tail.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


def step_on(
    tail: nn.Module, decoder: nn.Module, optimizer: Any, stored: Tensor, labels: Tensor, options: Options
) -> Tensor:
    """One step on a batch as it is stored; returns its loss, without gradient."""
    loss = loss_on(tail, decoder, stored, labels, options)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def loss_on(tail: nn.Module, decoder: nn.Module, stored: Tensor, labels: Tensor, options: Options) -> Tensor:
    """Cross-entropy of a batch as it is stored."""
    with autocast(options.precision, stored.device, cached=False):
        return nn.functional.cross_entropy(tail(decoder(stored)).float(), labels)


def build_optimizer(tail: nn.Module, options: Options, capturable: bool = False) -> torch.optim.AdamW:
    """AdamW as one fused kernel: the same update, and the tail has many small tensors.

    `capturable` keeps its step count on the GPU, where a recorded step needs it.
    """
    weights = [p for p in tail.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        weights, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True, capturable=capturable
    )


def require_finite(recent: Tensor, n_done: int, options: Options) -> None:
    """Stop a training whose latest losses, of steps up to `n_done`, are not all finite; names the first such step."""
    if not bool(torch.isfinite(recent).all()):
        place = int(torch.nonzero(~torch.isfinite(recent))[0])
        raise DivergedError(
            f"loss at step {n_done - len(recent) + place}: expected a finite number, found {float(recent[place])};"
            f" lower sweep.learning_rate (now {options.learning_rate:g})."
        )


def predict(
    tail: nn.Module,
    images: Views,
    decoder: nn.Module,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Probability (n,) float64 in [0, 1] of the second class (fatty), of images of one view each.

    Softmax in double precision, so that confident scores of different images do not tie at 1. `decoder` is the
    network's `networks.Decoder`; `batch_size` (None: `networks.inference_batch`) changes nothing beyond rounding.
    """
    tail.eval().to(device)
    decoder.to(device)
    batch_size = batch_size or networks.inference_batch(device)
    parts = []
    with torch.inference_mode(), arithmetic("fp32", device):
        for start in range(0, len(images), batch_size):
            places = np.arange(start, min(start + batch_size, len(images)))
            inputs = decoder(images.take(places, np.zeros_like(places), device))
            parts.append(tail(inputs).double())
    return torch.softmax(torch.cat(parts).cpu(), dim=1)[:, 1].numpy()
