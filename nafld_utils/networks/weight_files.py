"""Weight files of others, opened in one place: once their SHA-256 matched, and then their tensors alone.

Contract: nothing else of the package calls ``torch.load``; its own weights are safetensors (`artifacts.load_weights`).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from nafld_utils.artifacts import file_sha256


def hub_commit(hub_id: str, file: str, revision: str | None = None) -> str | None:
    """Commit of the Hugging Face hub that a file was taken from, as the hub's cache says; None where it does not."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found).parents[len(Path(file).parts) - 1].name if isinstance(found, str) else None


def read(path: str | Path, sha256: str | None, stated: str, advice: str) -> Any:
    """Tensors of a file in torch's format, by name, on the CPU.

    `sha256` is what its source states, in hex, None where none is known, which is refused. `stated` says where it is
    from, and `advice` what to do about another content.

    Raises
    ------
    ValueError
        Another content than `sha256`, or objects besides tensors, or no file of weights.
    """
    import torch

    found = file_sha256(path)
    if found != (sha256 or "").lower():
        raise ValueError(f"{path}: expected SHA-256 {sha256 or 'given'} ({stated}), found {found}; {advice}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: expected weights, tensors only, found {reason}; {advice}.") from None
