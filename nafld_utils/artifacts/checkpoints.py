"""Unfinished work that a killed run leaves and the next one goes on with: arrays and training states.

Contract: a sealed unit has its files' SHA-256 in its manifest; a part carries its own. A damaged part is None to
whoever asks for it, and is made again, so that no flipped bit of an interrupted run ends in a finished unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils.artifacts.files import load_weights, replacing


def save_array(path: str | Path, array: np.ndarray) -> Path:
    """Write an array atomically as safetensors."""
    import torch

    return _save(path, {"array": torch.tensor(array)}, {})


def load_array(path: str | Path) -> np.ndarray | None:
    """Read an array written by `save_array`; None where there is none, or a damaged one."""
    try:
        return _load(path)[0]["array"].numpy()
    except ValueError:
        return _load_npz(Path(path).with_suffix(".npz"))


def _load_npz(path: Path) -> np.ndarray | None:
    """Read an array of an earlier version, which zip's own checksum guards."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return archive["array"]
    except Exception:  # what a parser of damaged bytes stumbles over may be anything
        return None


def save_state(path: str | Path, tensors: Mapping[str, Any], facts: Mapping[str, Any], unit: str) -> Path:
    """Write the state of a training atomically as safetensors.

    Parameters
    ----------
    path : str or Path
        File to write.
    tensors : mapping of str to torch.Tensor
        Contiguous, on the CPU.
    facts : mapping
        What is not a tensor, JSON-able.
    unit : str
        Hash of the unit that is being made.
    """
    return _save(path, tensors, {"facts": json.dumps(facts), "unit": unit})


def load_state(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Tensors, facts and unit hash of a state written by `save_state`.

    Raises
    ------
    ValueError
        The file is no safetensors, truncated, or has other content than when it was written.
    """
    tensors, metadata = _load(path)
    return tensors, json.loads(metadata["facts"]), metadata["unit"]


def _save(path: str | Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={**metadata, "sha256": _sha256(tensors, metadata)})
    return Path(path)


def _load(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    tensors, metadata = load_weights(path)
    stated = metadata.pop("sha256", None)
    if stated != _sha256(tensors, metadata):
        raise ValueError(f"{path}: expected unfinished work as it was written, found other content.")
    return tensors, metadata


def _sha256(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    import torch

    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
