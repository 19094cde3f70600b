"""Units of work: hash, manifest, damage, and the folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils import params
from nafld_utils.artifacts import locks
from nafld_utils.artifacts.files import (
    file_sha256,
    filling,
    load_array,
    load_record,
    load_table,
    or_nothing,
    save_json,
    sync,
)
from nafld_utils.artifacts.seals import MANIFEST, damage_of, digest, sealed
from nafld_utils.artifacts.user_files import is_litter

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_LIBRARIES = (
    *("torch", "diffusers", "timm", "numpy", "scikit-image", "scikit-learn", "shap", "torchmetrics"),
    "nafld-ldm",
)


def work_root() -> Path:
    """Folder that holds ``artifacts/``, ``reports/`` and ``data/``: ``$NAFLD_ROOT``, else the project."""
    return Path(os.environ.get("NAFLD_ROOT", PROJECT_ROOT))


def unit_seed(*parts: Any) -> int:
    """Seed in [0, 2**63) from the names of a unit, so that any unit can be rerun alone.

    Examples
    --------
    >>> unit_seed(0, "ldm", "class", 3) == unit_seed(0, "ldm", "class", 3)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def revision(key: str) -> int:
    """Revision that a key stands at in today's code; every unit's hash holds those of what made it.

    A module that makes results says ``REVISION = ("<key>", <int>)``. The key stays when the module moves, so that
    moving costs nobody a trained model; the number is raised by hand when results change.

    Raises
    ------
    ValueError
        No module, or more than one, has the key.
    """
    found = _revisions().get(key, ())
    if len(found) != 1:
        raise ValueError(f"REVISION {key!r}: expected it in one module, found it in {len(found)}; name it in one.")
    return found[0]


@functools.cache
def _revisions() -> dict[str, tuple[int, ...]]:
    """Revisions by key, read from the package's source: importing every module that has one would take seconds."""
    found: dict[str, tuple[int, ...]] = {}
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if is_litter(path.relative_to(root)):  # a checkpoint of JupyterLab is no second module
            continue
        for line in re.findall(r"^REVISION\s*=\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            for key, number in re.findall(r'\("([\w.]+)", (\d+)\)', line):
                found[key] = (*found.get(key, ()), int(number))
    return found


@dataclass(frozen=True)
class Unit:
    """One piece of finished or unfinished work; see the module's contract."""

    path: Path
    hash: str
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of one of the unit's files."""
        return self.path / name

    def done(self) -> bool:
        """Whether the manifest is there, carries this hash, and every listed file has its content."""
        return self.fault() is None

    def fault(self) -> str | None:
        """Why the unit is not done, in words; None when it is."""
        manifest = read_manifest(self.path)
        if manifest is None:
            return "not made yet"
        if manifest.get("hash") != self.hash:
            return "made with other settings, inputs or code revision"
        return damage_of(self.path, manifest)

    def require(self) -> Unit:
        """Return the unit, or raise if it is not done.

        Raises
        ------
        ValueError
            Names the unit, what is wrong with it and what to run.
        """
        fault = self.fault()
        if fault:
            raise ValueError(f"{self.path}: {fault}; run the stage that makes it first.")
        return self

    @property
    def work(self) -> Path:
        """Folder for resumable, unfinished work of exactly this recipe; removed when the unit is sealed."""
        return self.path.with_name(f"{self.path.name}.{self.hash}.part")

    @contextlib.contextmanager
    def writing(self, **facts: Any) -> Iterator[Path]:
        """Yield an empty folder; on success seal it as the unit, on error leave nothing behind.

        One process at a time writes a unit, where the file system has locks.

        Parameters
        ----------
        **facts
            JSON-able entries added to the manifest (device, counts).

        Raises
        ------
        ValueError
            The folder no longer holds what was written to it: another program has cleared or changed it.
        """
        temporary = self._temporary()
        started = time.perf_counter()
        with or_nothing(temporary, self.path), locks.locked(self.path, again=True):
            locks.remove_orphans(self.path.parent, f".{self.path.name}.*.tmp")
            with locks.locked(temporary), filling(temporary) as filled:
                yield temporary
                filled.check()
                facts["seconds"] = round(facts.get("seconds", time.perf_counter() - started), 3)
                save_json(temporary / MANIFEST, self._manifest(temporary, facts))
                for item in (*temporary.iterdir(), temporary):
                    sync(item)
                filled.check()
                self._put_in_place(temporary)

    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{locks.unique_ending()}.tmp")

    def _manifest(self, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        own = [path for path in sorted(folder.iterdir()) if path.is_file() and not is_litter(Path(path.name))]
        files = {path.name: [path.stat().st_size, file_sha256(path)] for path in own}
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {**facts, **environment(), "threads": threads(), "declared": declared_hash()}
        return sealed({"hash": self.hash, **self.recipe, "files": files, "made": made, **facts})

    def _put_in_place(self, temporary: Path) -> None:
        old = []
        while not self.done():  # else another process was faster; whoever reads its files keeps them
            old.append(self._temporary())
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, old[-1])
            try:
                os.replace(temporary, self.path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # one of another host came between
                    continue
                raise
            sync(self.path.parent)
            break
        for left in (self.work, temporary, *old):  # first the work: nobody would look for it any more
            locks.remove(left)

    def load_table(self, name: str) -> pd.DataFrame:
        """Read one of the unit's tables."""
        return load_table(self.require().file(name))

    def load_array(self, name: str, mmap: bool = False) -> np.ndarray:
        """Read one of the unit's arrays."""
        return load_array(self.require().file(name), mmap)

    def seconds(self) -> float:
        """How long the unit took to make, in seconds."""
        return float((read_manifest(self.path) or {}).get("seconds", float("nan")))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Manifest of a folder, or None where there is none or it is no JSON."""
    return load_record(folder / MANIFEST)


def declared_hash() -> str:
    """Hash of the declared analysis (`params.protocol`) without its reasons, 16 hex digits.

    A unit's manifest records it; no unit's own hash holds it, so that declaring another analysis costs no unit. It is
    "unknown" where the file has become unreadable since the run began: no finished work is lost for that.
    """
    try:
        return digest(params.protocol().decided())
    except params.SettingsError:
        return "unknown"


def threads() -> int | None:
    """Threads that this process computes with, on which the last digits of its results depend; None where not set."""
    torch, told = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    return torch.get_num_threads() if torch else int(told) if told.isdigit() else None


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, machine and commit of this process: ``versions``, ``python``, ``machine``, ``commit``."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found = {"versions": versions, "python": platform.python_version(), "machine": machine}
    return {**found, "commit": commit_of(PROJECT_ROOT)}


def commit_of(root: Path) -> str:
    """Commit of a git checkout, ``-dirty`` where it differs from it; "unknown" where the folder is no checkout.

    Its owner may be another user, whose code runs here anyhow; a checkout around the folder is another project's.
    """
    trusted = ["-c", f"safe.directory={root}", "-c", "core.fsmonitor=false"]
    command = ["git", *trusted, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # which hooks of git hand on
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    alone = {**kept, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    try:
        done = subprocess.run(command, env=alone, capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
