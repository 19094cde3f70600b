"""Who makes what now: a lock file beside a thing, which the system drops where its process dies.

Contract: ``.<name>.lock`` lies beside the file or folder that is being made, never in it, and goes with its holder.
Temporary names carry `here`: what another host left is judged by its age alone, since many shared file systems keep a
lock to the host that asked for it. On a file system without locks nothing is waited for.

Choice: not `filelock`. It leaves every lock file behind, one per training of a sweep; it asks again and again instead
of waiting; and without locks it fails, or takes a file for the lock that a killed process leaves shut.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORGOTTEN = 7 * 24 * 3600.0  # seconds; Choice: far longer than a unit takes from its first file to its last
_held: dict[tuple[int, int, Path], bool] = {}  # by process, thread and lock file: whether the file system has locks


class Busy(Exception):
    """Another process makes this now."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, again: bool = False) -> Iterator[bool]:
    """Hold the lock of a path; yields False where the file system has no locks. Busy, without `wait`, raises `Busy`.

    `again` lets a thread that holds it already go on.
    """
    lock = _lock_path(path).absolute()
    mine = os.getpid(), threading.get_ident(), lock
    if again and mine in _held:
        yield _held[mine]
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "ab") as handle:
            has_locks = _flock(handle, path, wait)
            if not is_at(handle.fileno(), lock):  # whoever had it has removed it
                continue
            _held[mine] = has_locks
            try:
                yield has_locks
            finally:
                del _held[mine]
                lock.unlink(missing_ok=True)
            return


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name.removeprefix('.')}.lock")


def _flock(handle: Any, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(str(path)) from None
    except OSError as error:
        logging.getLogger(__name__).debug("%s cannot be locked: %s", path, error)
        return False
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def here() -> str:
    """Eight hex digits of this host and its start: processes that share them see each other's locks."""
    boot = ""
    with contextlib.suppress(OSError):  # macOS has none
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:8]


def unique_ending() -> str:
    """`here` and twelve random hex digits, with a dot between: an ending that no other temporary name has."""
    return f"{here()}.{uuid.uuid4().hex[:12]}"


def remove_orphans(folder: Path, pattern: str) -> None:
    """Remove what killed processes left of the files and folders that match.

    Those of this host, as it was last started, are left where no process holds their lock; any other is judged by its
    age (`FORGOTTEN`), and its lock is not touched.
    """
    locks = (lock.with_name(lock.name.removesuffix(".lock")) for lock in folder.glob(f"{pattern}.lock"))
    for path in {*folder.glob(pattern), *locks}:
        if f".{here()}." in path.name:
            with contextlib.suppress(Busy), locked(path, wait=False) as has_locks:
                if has_locks or _is_forgotten(path):
                    _remove_at_once(path)
        elif _is_forgotten(path):
            _remove_at_once(path)
            _lock_path(path).unlink(missing_ok=True)


def _is_forgotten(path: Path) -> bool:
    """Whether a thing, its lock and all that is in it were last changed longer than `FORGOTTEN` ago."""
    times = []
    for part in (path, _lock_path(path), *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(part.lstat().st_mtime)
    return bool(times) and time.time() - max(times) > FORGOTTEN


def _remove_at_once(path: Path) -> None:
    """Remove a thing; a folder under another name, so that a writer who lives after all finds it gone, not in part."""
    aside = path.with_name(f"{path.name.removesuffix('.tmp')}.{unique_ending()}.tmp") if path.is_dir() else path
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
        remove(aside)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
