"""First stages of the original latent diffusion code, read into diffusers networks.

Contract: a checkpoint is a third party's pickle. It is opened only after its SHA-256 matched, and then only its
tensors are read (`weight_files`). Weights keep their values; only names and the shape of the 1x1 convolutions of an
attention, which diffusers writes as linear layers, change.

Source: the published VQ-f8 and its configuration, Rombach et al. 2022, arXiv 2112.10752. No diffusers copy is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from nafld_utils import networks
from nafld_utils.ldm import autoencoder

# A training checkpoint names this class as a key beside its weights; a stand-in lets its tensors be read.
_CALLBACKS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
_WHOLE = "first_stage_model."  # before the first stage's names in a checkpoint of a whole latent diffusion model
_RESNET = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


class _StandIn:
    """Takes the place of a class that a checkpoint names and nobody reads."""


def load(path: str | Path, sha256: str | None, kind: str, factor: int, scale: float) -> autoencoder.FirstStage:
    """An original first stage, alone or in a latent diffusion model (unpacked ``model.ckpt``), as a `FirstStage`.

    Raises
    ------
    ValueError
        No file, another content than `sha256`, objects besides tensors, or tensors of another network.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: expected a latent diffusion checkpoint, found no file; correct autoencoder.*.path.")
    advice = "compare it with the file's source before you trust it, then correct the setting or fetch the file again"
    with torch.serialization.safe_globals([(_StandIn, name) for name in _CALLBACKS]):
        stored = networks.read(path, sha256, "autoencoder.*.sha256", advice)
    model = autoencoder.build(kind, factor)
    try:
        model.load_state_dict(convert(stored.get("state_dict", stored)))
    except (RuntimeError, AttributeError, IndexError, ValueError) as error:  # the last two from names of other networks
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected the weights of {kind}-f{factor}, found others ({reason}).") from None
    return autoencoder.published(model, kind, scale)


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under diffusers' names from weights under the original ones.

    Left out are the training's loss network and, of a whole latent diffusion model, all but its first stage.
    """
    whole = {name.removeprefix(_WHOLE): value for name, value in state.items() if name.startswith(_WHOLE)}
    kept = {name: v for name, v in (whole or state).items() if not name.startswith(("loss.", "model_ema."))}
    up = [int(match[1]) for match in (re.match(r"decoder\.up\.(\d+)\.", name) for name in kept) if match]
    levels = 1 + max(up, default=0)
    out = {}
    for name, value in kept.items():
        new = _rename(name, levels)
        # attention as 1x1 convolutions there, as linear layers here
        linear = ".attentions." in new and value.ndim == 4
        out[new] = value[:, :, 0, 0].contiguous() if linear else value
    return out


def _rename(name: str, levels: int) -> str:
    parts = name.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return name  # quantize.embedding, quant_conv, post_quant_conv
    side, place, *rest = parts
    if place == "mid":
        block, *leaf = rest
        if block == "attn_1":
            return f"{side}.mid_block.attentions.0.{_leaf(leaf, _ATTENTION)}"
        return f"{side}.mid_block.resnets.{int(block[-1]) - 1}.{_leaf(leaf, _RESNET)}"
    if place in ("down", "up"):
        level, what, *leaf = rest
        # the original counts its decoder's levels from the largest image, diffusers from the first that is computed
        level = int(level) if place == "down" else levels - 1 - int(level)
        base = f"{side}.{place}_blocks.{level}"
        if what in ("downsample", "upsample"):
            return f"{base}.{what.removesuffix('e')}ers.0.{'.'.join(leaf)}"
        index, *leaf = leaf
        if what == "attn":
            return f"{base}.attentions.{index}.{_leaf(leaf, _ATTENTION)}"
        return f"{base}.resnets.{index}.{_leaf(leaf, _RESNET)}"
    return ".".join([side, "conv_norm_out" if place == "norm_out" else place, *rest])


def _leaf(parts: list[str], names: Mapping[str, str]) -> str:
    return ".".join([names.get(parts[0], parts[0]), *parts[1:]])
