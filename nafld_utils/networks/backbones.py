"""Classifier networks: their input, where they are cut into a frozen prefix and a trained tail, and their features.

Contract: a network takes ``(N, 3, H, W)`` float32 normalised by `to_input` with that network's own mean and standard
deviation. No file is opened here; `load` is `nafld_utils.networks.backbone_weights`'.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nafld_utils import engine
from nafld_utils.engine import arithmetic
from nafld_utils.networks.backbone_weights import unknown_name

REVISION = ("backbones", 1)

# What the paper freezes: everything up to and including this stage (its Methods and Results), of each network family.
PAPER_FREEZE = ("layer3", "blocks.4")


# ---------------------------------------------------------------- input


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a network's input, per colour channel, for grey levels in [0, 1]."""
    import timm

    configuration = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return tuple(configuration.mean), tuple(configuration.std)


def to_input(images: np.ndarray | Tensor, name: str) -> Tensor:
    """Grey images (N, H, W), uint8 or float in [-1, 1], as (N, 3, H, W) float32 normalised for a timm network.

    Raises
    ------
    ValueError
        Another shape, or a float outside [-1, 1] or not finite.
    """
    # copied: torch warns about sharing a read-only memory map
    tensor = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    if tensor.ndim != 3:
        raise ValueError(f"images: expected shape (N, H, W), found {tuple(tensor.shape)}; pass grey images.")
    if tensor.dtype == torch.uint8:
        grey = tensor.float() / 255.0
    else:
        grey = (tensor.float() + 1.0) / 2.0
        # written so that NaN fails as well
        if not bool(((grey > -1e-3) & (grey < 1.001)).all()):
            raise ValueError("images: expected float in [-1, 1], found values outside or NaN; rescale the images.")
    mean, std = (torch.tensor(v, device=grey.device).view(1, 3, 1, 1) for v in normalisation(name))
    return (grey[:, None] - mean) / std


class Decoder(nn.Module):
    """Input of a trained part from a batch as it is stored: features as float32, grey pixels as `to_input` has them.

    `name` is timm's and fixes the normalisation; its constants are moved to the device once, so a batch causes no copy
    from the host.
    """

    def __init__(self, name: str):
        super().__init__()
        mean, std = normalisation(name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, stored: Tensor) -> Tensor:
        """``(b, H, W)`` uint8 as ``(b, 3, H, W)``; ``(b, C, h, w)`` or ``(b, C)`` of any float type as float32."""
        if stored.dtype == torch.uint8:
            stored = (stored[:, None].float() / 255.0 - self.mean) / self.std
        return channels_last(stored.float())


class GreyClassifier(nn.Module):
    """Log-odds of the second class (fatty) as a function of grey pixels.

    `prefix` and `tail` are the frozen prefix and the trained tail of one network; its timm `name` fixes the
    normalisation.
    """

    def __init__(self, prefix: nn.Module, tail: nn.Module, name: str):
        super().__init__()
        self.prefix, self.tail = prefix, tail
        mean, std = normalisation(name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        # Gradients are wanted for pixels alone: half the time.
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Log-odds ``(N, 1)`` of images ``(N, 1, S, S)`` float32 in [-1, 1]."""
        inputs = ((images + 1.0) / 2.0 - self.mean) / self.std
        out = self.tail(self.prefix(inputs.contiguous(memory_format=torch.channels_last)))
        return out[:, 1:] - out[:, :1]


def channels_last(batch: Tensor) -> Tensor:
    """A batch of images or maps in channels-last layout; pooled features as they are."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


# ---------------------------------------------------------------- prefix and tail


def stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of a ResNet or EfficientNet in order of computation, by stage; the last one is ``head``."""
    if hasattr(model, "layer4"):
        parts = {"stem": [model.conv1, model.bn1, model.act1, model.maxpool]}
        parts |= {f"layer{i}": [getattr(model, f"layer{i}")] for i in range(1, 5)}
    elif hasattr(model, "conv_stem") and hasattr(model, "bn2"):
        parts = {"stem": [model.conv_stem, model.bn1]}
        parts |= {f"blocks.{i}": [block] for i, block in enumerate(model.blocks)}
        parts |= {"neck": [model.conv_head, model.bn2]}
    else:
        raise ValueError(f"network {type(model).__name__}: expected a ResNet or an EfficientNet; choose one of these.")
    return {**parts, "head": [model.global_pool, nn.Dropout(model.drop_rate), model.get_classifier()]}


def split(model: nn.Module, name: str, freeze: str = "paper") -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a network into its frozen prefix and its trained tail; ``tail(prefix(x))`` is ``model(x)``.

    Parameters
    ----------
    model : torch.nn.Module
        From `load`; its modules are shared, not copied.
    name : str
        timm name, for messages.
    freeze : str
        ``"paper"`` (ResNet: stem and layer1-3; EfficientNet: stem and the first five stages of blocks), ``"all"``
        (only the last linear layer is trained, on pooled features), ``"none"``, or the last frozen stage, e.g.
        ``"layer2"``.

    Returns
    -------
    prefix : torch.nn.Sequential
        Without gradients and in eval mode, BatchNorm included (choice: the paper is silent).
    tail : torch.nn.Sequential
        Trainable, in eval mode; ends with the linear layer.

    Raises
    ------
    ValueError
        `freeze` is no stage of the network.
    """
    parts = stages(model)
    names = list(parts)[:-1]
    paper = next(stage for stage in PAPER_FREEZE if stage in names)
    last = {"paper": paper, "all": names[-1], "none": None}.get(freeze, freeze)
    if last is not None and last not in names:
        known = ["paper", "all", "none", *names]
        raise ValueError(unknown_name(freeze, known, "frozen stage", f"a stage of {name} ({', '.join(known)})"))
    cut = 0 if last is None else sum(len(parts[group]) for group in names[: names.index(last) + 1])
    if last == names[-1]:
        cut += 1  # the pooling, so that a feature is a vector
    modules = [module for group in parts.values() for module in group]
    prefix, tail = nn.Sequential(*modules[:cut]).eval(), nn.Sequential(*modules[cut:]).eval()
    return prefix.requires_grad_(False), tail.requires_grad_(True)


# ---------------------------------------------------------------- inference


def inference_batch(device: torch.device | str) -> int:
    """Images at once: few on a CPU, whose caches hold the activations of 16 but not of 64 (half the time per image)."""
    return 256 if torch.device(device).type == "cuda" else 16


def features(
    model: nn.Module,
    images: np.ndarray | Tensor,
    name: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Features (N, d) float32 of the layer before the head: d is 1280 for EfficientNet-Lite and 2048 for ResNet-50.

    Parameters
    ----------
    model : torch.nn.Module
        From `load`; moved to `device` and to channels-last layout (faster, the same numbers).
    images : (N, H, W) uint8, or float in [-1, 1]
    name : str
        timm name, which fixes the normalisation.
    device : torch.device or str
    batch_size : int, optional
        Images at once; does not change the features beyond rounding. None is `inference_batch`.

    Raises
    ------
    ValueError
        There is no image.
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one, found none; check the set that was asked for.")
    model.eval().to(device=device, memory_format=torch.channels_last)
    batch_size = batch_size or inference_batch(device)
    with torch.inference_mode(), arithmetic("fp32", device):
        parts = []
        for start in range(0, len(images), batch_size):
            batch = engine.sent(channels_last(to_input(images[start : start + batch_size], name)), torch.device(device))
            found = model.forward_head(model.forward_features(batch), pre_logits=True)
            parts.append(found.float())
    return torch.cat(parts).cpu().numpy()
