"""Who makes what now: a lock file beside a thing, which the system drops where its process dies, on every host.

Contract: ``.<name>.lock`` lies beside the file or folder that is being made, never in it, and goes with its holder. On
a file system without locks nothing is waited for, and nothing of another process is removed.

Choice: not `filelock`. It leaves every lock file behind, one per training of a sweep; it asks again and again instead
of waiting; and without locks it fails, or takes a file for the lock that a killed process leaves shut.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Busy(Exception):
    """Another process makes this now."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a path; yields False where the file system has no locks. Busy, without `wait`, raises `Busy`."""
    lock = _lock_path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "ab") as handle:
            has_locks = _flock(handle, path, wait)
            if not _is_at(handle, lock):  # whoever had it has removed it
                continue
            try:
                yield has_locks
            finally:
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


def _is_at(handle: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_orphans(folder: Path, pattern: str) -> None:
    """Remove the files and folders that match, and that no process holds: killed ones have left them."""
    locks = (lock.with_name(lock.name.removesuffix(".lock")) for lock in folder.glob(f"{pattern}.lock"))
    for path in {*folder.glob(pattern), *locks}:
        with contextlib.suppress(Busy), locked(path, wait=False) as has_locks:
            if has_locks:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
