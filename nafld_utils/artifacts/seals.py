"""Digests: of a value, of a sealed record, and of the files that it lists."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nafld_utils.artifacts.files import file_sha256

MANIFEST = "run.json"


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON-able value, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON gives it back, with the digest of its content as ``seal``."""
    plain = json.loads(json.dumps(record, default=str))
    plain.pop("seal", None)
    return {**plain, "seal": digest(plain)}


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is as it was when it was sealed; those of earlier versions have no seal."""
    return "seal" not in record or record["seal"] == sealed(record)["seal"]


def unsealed(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A record without its seal; None where it has none, or is not as it was sealed."""
    whole = "seal" in record and is_whole(record)
    return {key: value for key, value in record.items() if key != "seal"} if whole else None


def damage_of(folder: Path, record: Mapping[str, Any], name: str = MANIFEST) -> str | None:
    """What differs from a sealed record, the file `name`, and the files that it lists; None where nothing does."""
    if not is_whole(record):
        return f"its file {name} has other content than when it was written"
    for name, (size, sha256) in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size or _content(path, path.stat().st_mtime_ns) != sha256:
            return f"its file {name} has other content than when it was written"
    return None


@functools.lru_cache(maxsize=4096)
def _content(path: Path, _mtime: int) -> str:
    return file_sha256(path)
