"""Random images for the tests of what is near what."""

import numpy as np
import torch


def smooth(n, side=64, seed=0):
    """Random images with structure of a few pixels, (n, side, side) uint8."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 1, side // 4, side // 4))).float()
    x = torch.nn.functional.interpolate(x, side, mode="bicubic")[:, 0]
    return (x * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
