"""How long one training of the sweep takes on a device, from a few steps of the code that the sweep runs.

Contract: inputs are noise and weights random: time depends on neither.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nafld_utils import engine, networks
from nafld_utils.sweep import gpu_training, training
from nafld_utils.sweep.training import Options, Views

GPU_STEPS, CPU_STEPS = 200, 3  # timed steps, scaled to all
N_IMAGES = 64


class Network:
    """A network cut in two on a device, with views of noise to train its tail on.

    ``images`` (N_IMAGES, S, S) uint8 and ``labels`` (N_IMAGES,) are what ``views`` holds, one view an image, on a GPU
    as tensors; ``prefix_seconds`` is of one image through the frozen prefix, 0 where nothing is frozen.
    """

    def __init__(self, backbone: str, freeze: str, image_size: int, device: torch.device):
        self.backbone, self.device = backbone, device
        self.prefix, self.tail = networks.split(networks.load(backbone, "random"), backbone, freeze)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (N_IMAGES, image_size, image_size), dtype=np.uint8)
        self.labels = np.arange(N_IMAGES) % 2
        self.decoder = networks.Decoder(backbone)
        stored, self.prefix_seconds = self.images, 0.0
        if len(self.prefix):
            n = N_IMAGES if device.type == "cuda" else networks.inference_batch(device)  # a CPU takes part of them

            def compute() -> np.ndarray:
                return training.prefix_features(self.prefix, self.images[:n], backbone, device, precision="float16")

            part = compute()  # chooses kernels and fills caches
            self.prefix_seconds = engine.timed(compute, device, warm=0) / n
            stored = np.resize(part, (N_IMAGES, *part.shape[1:]))
        features = torch.from_numpy(stored[:, None]).to(device) if device.type == "cuda" else stored[:, None]
        self.views = Views(features, self.labels)

    def seconds_a_training(self, options: Options, at_once: int = 1, record: bool = True) -> float:
        """Seconds of one training, its draws included; seeds at once share it."""
        if self.device.type == "cuda":
            return self._on_gpu(options, at_once, record)

        def train(n_steps: int) -> None:
            tail = training.fresh_tail(self.tail, 0)
            training.train_tail(tail, [self.views], replace(options, steps=n_steps), 0, self.decoder)

        train(1)  # is not counted
        return engine.timed(lambda: train(CPU_STEPS), self.device, warm=0) / CPU_STEPS * options.steps

    def seconds_a_score(self) -> float:
        """Seconds of the prediction of one image whose features are stored."""
        tail = training.fresh_tail(self.tail, 0)
        seconds = engine.timed(lambda: training.predict(tail, self.views, self.decoder, self.device), self.device)
        return seconds / N_IMAGES

    def _on_gpu(self, options: Options, at_once: int, record: bool) -> float:
        short, like = replace(options, steps=GPU_STEPS), self.views.features
        trainers = [
            gpu_training.Resident(
                training.fresh_tail(self.tail, 0), self.decoder, short, self.device, like.shape[2:], like.dtype, record
            )
            for _ in range(at_once)
        ]

        def train() -> None:
            jobs = [gpu_training.Job(training.fresh_tail(self.tail, i), [self.views], i) for i in range(at_once)]
            for result in gpu_training.train_side_by_side(trainers, jobs):
                if isinstance(result, Exception):
                    raise result

        return engine.timed(train, self.device) / at_once / GPU_STEPS * options.steps
