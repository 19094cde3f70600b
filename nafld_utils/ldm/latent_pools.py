"""What a denoiser is trained on: latents of stored crops, or of crops that are drawn anew at every step.

Contract: a batch is a function of the generator that is passed in. Latents come as moments and are drawn just in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nafld_utils import engine
from nafld_utils.images import random_box, resize_box, semantic_maps
from nafld_utils.ldm.autoencoder import FirstStage, to_unit

if TYPE_CHECKING:
    from nafld_utils.params import PreprocessSettings


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
    labels : torch.Tensor, shape (N,), int64, optional
        Where given, a batch's images are drawn from both classes alike, whatever their numbers: the smaller class is
        oversampled [paper, the balanced cohort]. Else every image is as likely as every other.
    """

    moments: torch.Tensor
    conditions: torch.Tensor
    draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    labels: torch.Tensor | None = None

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (size, C, h, w) and conditions of images and crops drawn at random."""
        rows = draw_rows(len(self.moments), size, generator, self.labels)
        crops = torch.randint(self.moments.shape[1], (size,), generator=generator)
        moments = self.moments[rows, crops]
        noise = torch.randn(moments.shape, generator=generator)[:, : self.channels]
        conditions = self.conditions[rows, crops] if self.conditions.ndim > 1 else self.conditions[rows]
        return self.draw(moments, noise), conditions

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def channels(self) -> int:
        """Channels of a drawn latent."""
        return self.draw(self.moments[:1, 0], torch.zeros(())).shape[1]


def draw_rows(n: int, size: int, generator: torch.Generator, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Rows (size,) of n images: uniform, or from both classes alike where `labels` (n,) are given."""
    if labels is None:
        return torch.randint(n, (size,), generator=generator)
    classes = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    chosen = torch.randint(len(classes), (size,), generator=generator)
    place = torch.rand(size, generator=generator, dtype=torch.float64)
    drawn = torch.stack([rows[(place * len(rows)).long()] for rows in classes])
    return drawn[chosen, torch.arange(size)]


@dataclass
class FreshCrops:
    """Latents of random crops that are drawn and encoded step by step (``ldm.latents: on_the_fly``).

    No crop is seen twice, at the price of an encoder pass and of a map per image and step; the stored pool is the
    paper's crops as far as `crops_per_image` goes. Takes the place of a `LatentPool` in training.
    """

    crops: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor
    conditioning: str
    settings: PreprocessSettings
    stage: FirstStage
    oversampled: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (size, C, h, w) on the device of the first stage and conditions."""
        s, stage = self.settings, self.stage
        drawn = self.rows[draw_rows(len(self.rows), size, generator, self.oversampled).numpy()]
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        images = np.empty((size, s.image_size, s.image_size), np.uint8)
        for i, row in enumerate(drawn):
            box = random_box(self.crops[row].shape, s.crop_scale, s.crop_ratio, rng)
            images[i] = resize_box(self.crops[row], box, s.image_size)
        moments = stage.encode(engine.sent(to_unit(images), stage.shift.device))
        noise = engine.sent(torch.randn(moments.shape, generator=generator)[:, : len(stage.shift)], moments.device)
        latents = stage.draw(moments, noise)
        if self.conditioning == "class":
            return latents, self.labels[drawn]
        return latents, torch.from_numpy(semantic_maps.semantic_maps(images, s))
