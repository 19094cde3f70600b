"""How long one training of the sweep takes on a device, and how long the plain loop over whole networks takes.

Contract: what is timed is the code that the sweep runs, on noise and with random weights: time depends on neither.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from nafld_utils import backbones, trial, trial_resident
from nafld_utils.precision import autocast
from nafld_utils.trial import Options, Views

GPU_STEPS, CPU_STEPS = 200, 3  # timed steps, scaled to all
N_IMAGES = 64


class Network:
    """A network cut in two on a device, with views of noise to train its tail on.

    Parameters
    ----------
    backbone : str
        timm name.
    freeze : str
        As in `backbones.split`.
    image_size : int
        Pixels a side.
    device : torch.device

    Attributes
    ----------
    images : (N_IMAGES, S, S) uint8 array
    views : trial.Views
        One view an image; tensors on a GPU.
    labels : (N_IMAGES,) int64 array
    prefix_seconds : float
        Of one image through the frozen prefix; 0 where nothing is frozen.
    """

    def __init__(self, backbone: str, freeze: str, image_size: int, device: torch.device):
        self.backbone, self.device = backbone, device
        self.prefix, self.tail = backbones.split(backbones.load(backbone, "random"), backbone, freeze)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (N_IMAGES, image_size, image_size), dtype=np.uint8)
        self.labels = np.arange(N_IMAGES) % 2
        self.decoder = backbones.Decoder(backbone)
        stored, self.prefix_seconds = self.images, 0.0
        if len(self.prefix):
            # one pass chooses kernels and fills caches, the second is timed; a CPU takes part of the images
            n = N_IMAGES if device.type == "cuda" else backbones.inference_batch(device)
            trial.prefix_features(self.prefix, self.images[:n], backbone, device, precision="float16")
            started = time.perf_counter()
            part = trial.prefix_features(self.prefix, self.images[:n], backbone, device, precision="float16")
            self.prefix_seconds = (time.perf_counter() - started) / n
            stored = np.resize(part, (N_IMAGES, *part.shape[1:]))
        features = torch.from_numpy(stored[:, None]).to(device) if device.type == "cuda" else stored[:, None]
        self.views = Views(features, self.labels)

    def seconds_a_training(self, options: Options, at_once: int = 1, record: bool = True) -> float:
        """Seconds of one training, its draws included; seeds at once share it."""
        if self.device.type == "cuda":
            return self._on_gpu(options, at_once, record)
        for n in (1, CPU_STEPS):  # the first is not counted
            tail, started = trial.fresh_tail(self.tail, 0), time.perf_counter()
            trial.train_tail(tail, [self.views], replace(options, steps=n), 0, self.decoder)
        return (time.perf_counter() - started) / CPU_STEPS * options.steps

    def seconds_a_score(self) -> float:
        """Seconds of the prediction of one image whose features are stored."""
        tail = trial.fresh_tail(self.tail, 0)
        for _ in range(2):  # the first time is not counted
            started = time.perf_counter()
            trial.predict(tail, self.views, self.decoder, self.device)
        return (time.perf_counter() - started) / N_IMAGES

    def _on_gpu(self, options: Options, at_once: int, record: bool) -> float:
        short, like = replace(options, steps=GPU_STEPS), self.views.features
        trainers = [
            trial_resident.Resident(
                trial.fresh_tail(self.tail, 0), self.decoder, short, self.device, like.shape[2:], like.dtype, record
            )
            for _ in range(at_once)
        ]
        for _ in range(2):  # the first time is not counted
            torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            jobs = [trial_resident.Job(trial.fresh_tail(self.tail, i), [self.views], i) for i in range(at_once)]
            for result in trial_resident.train_side_by_side(trainers, jobs):
                if isinstance(result, Exception):
                    raise result
            torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - started
        return seconds / at_once / GPU_STEPS * options.steps


def plain_loop(
    network: Network,
    options: Options,
    layout: torch.memory_format,
    draw: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Callable[[], torch.Tensor]:
    """A step of the textbook's loop: whole images in memory through the whole network, its frozen part in eval mode.

    Parameters
    ----------
    network : Network
        Its weights are copied.
    options : Options
        Batch size, learning rate, weight decay; on a GPU ``bf16`` autocast.
    layout : torch.memory_format
        Of weights and batches.
    draw : callable, optional
        Gives a batch of grey images ``(b, S, S)`` uint8 and labels; None draws from images that lie on the device.

    Returns
    -------
    callable
        Does one step, draws included, and returns its loss.
    """
    device, model = network.device, nn.Sequential(copy.deepcopy(network.prefix), trial.fresh_tail(network.tail, 0))
    model.to(device=device, memory_format=layout)
    model[0].eval().requires_grad_(False)
    model[1].train()
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    images, labels = (torch.from_numpy(array).to(device) for array in (network.images, network.labels))
    decoder, generator = network.decoder.to(device), torch.Generator().manual_seed(0)

    def from_device() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randperm(len(images), generator=generator)[: options.batch_size].to(device)
        return images[rows], labels[rows]

    def step() -> torch.Tensor:
        batch, wanted = (draw or from_device)()
        inputs = decoder(batch).contiguous(memory_format=layout)
        with autocast(options.precision, device):
            loss = nn.functional.cross_entropy(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
