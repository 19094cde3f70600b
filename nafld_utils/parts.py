"""Unfinished work that a killed run leaves and the next one goes on with: arrays, training states, plans.

Contract: a sealed unit has its files' checksums in its manifest; a part carries its own. A damaged part is None to
whoever asks for it, and is made again, so that no flipped bit of an interrupted run ends in a finished unit.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils.artifacts import digest, load_weights, replacing, save_json


def save_array(path: str | Path, array: np.ndarray) -> Path:
    """Write an array atomically as .npz, which holds a CRC-32 of its content."""
    with replacing(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, array=np.asarray(array))
    return Path(path)


def load_array(path: str | Path) -> np.ndarray | None:
    """Read an array written by `save_array`; None where there is none, or a damaged one."""
    try:
        with open(path, "rb") as handle, zipfile.ZipFile(handle) as archive, archive.open("array.npy") as stored:
            return np.lib.format.read_array(stored, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError):
        return None
    except (zipfile.BadZipFile, zlib.error, SyntaxError):
        return None


def save_plan(path: str | Path, plan: Mapping[str, Any]) -> Path:
    """Write what was decided once, JSON-able, with its checksum."""
    plan = json.loads(json.dumps(plan))
    return save_json(path, {"plan": plan, "seal": digest(plan)})


def load_plan(path: str | Path) -> dict[str, Any] | None:
    """Read a plan written by `save_plan`; None where there is none, or a damaged one."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return stored["plan"] if digest(stored["plan"]) == stored["seal"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_state(path: str | Path, tensors: Mapping[str, Any], facts: str, unit: str) -> Path:
    """Write the state of a training atomically as safetensors.

    Parameters
    ----------
    path : str or Path
        File to write.
    tensors : mapping of str to torch.Tensor
        Contiguous, on the CPU.
    facts : str
        JSON text of what is not a tensor.
    unit : str
        Hash of the unit that is being made.
    """
    from safetensors.torch import save_file

    metadata = {"facts": facts, "unit": unit}
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={**metadata, "sha256": _sha256(tensors, metadata)})
    return Path(path)


def load_state(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Tensors, facts and unit hash of a state written by `save_state`.

    Raises
    ------
    ValueError
        The file is no safetensors, truncated, or has other content than when it was written.
    """
    tensors, metadata = load_weights(path)
    kept = {name: metadata.get(name, "") for name in ("facts", "unit")}
    if metadata.get("sha256") != _sha256(tensors, kept):
        raise ValueError(f"{path}: expected a training state as it was written, found other content.")
    return tensors, json.loads(kept["facts"]), kept["unit"]


def _sha256(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    import torch

    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
