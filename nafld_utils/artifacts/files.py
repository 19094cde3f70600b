"""Files that are whole or absent: text, JSON, tables, arrays and weights.

Contract: a file is written under another name, synced and renamed. No pickle is written or read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils.artifacts import locks

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


_FULL = (errno.ENOSPC, errno.EDQUOT)


_NO_HANDLES = (errno.EMFILE, errno.ENFILE)


class NotEnoughMemoryError(MemoryError):
    """Memory lacks, and the text says what to do."""


def no_space(error: BaseException, path: Path) -> BaseException:
    """The error in words where the disk is full, however the library that met it said so; any other as it is."""
    number = getattr(error, "errno", None)
    words = any(f"{word} {code})" in f"{error})" for word in ("os error", "errno") for code in _FULL)
    # numpy counts what it could not write and keeps the reason to itself
    unsaid = isinstance(error, OSError) and number is None and _is_full(path.parent)
    if not (number in _FULL or words or unsaid):
        return error
    text = f"no space left while writing {path}; free disk space and run again"
    return OSError(number or errno.ENOSPC, text, str(path))


def advised(text: str) -> str:
    """What an error says, and what to do where it says that too many files are open, whichever library said so."""
    advice = "; raise the limit with `ulimit -n 8192`, or lower JOBS and engine.n_workers, and run again"
    return f"{text.rstrip('.')}{advice}" if "too many open files" in text.lower() and advice not in text else text


def _is_full(folder: Path) -> bool:
    return folder.exists() and shutil.disk_usage(folder).free < 2**20


@contextlib.contextmanager
def or_nothing(temporary: Path, path: Path) -> Iterator[None]:
    """Remove a temporary file or folder where an error ends its writing; a full disk is told as that of `path`."""
    try:
        yield
    except BaseException as error:
        told = no_space(error, path)  # asked before room is made
        locks.remove(temporary)
        if told is error:
            raise
        raise told from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it, on error leave nothing.

    Raises
    ------
    OSError
        The disk is full or read-only; the message names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{locks.unique_ending()}.tmp{path.suffix}")
    with or_nothing(temporary, path):
        if path.parent in _filled:  # one that was removed under its writer must not come back with this file alone
            _filled[path.parent].check()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
        _note(path)


@dataclass
class Filling:
    """A new folder that this process fills now: its handle, and the size of each file that was written to it."""

    folder: Path
    handle: int
    sizes: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a folder that another program removed or changed: ValueError in one sentence."""
        found = "the folder gone"
        if locks.is_at(self.handle, self.folder):
            sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
            changed = [name for name, size in self.sizes.items() if sizes.get(name) != size]
            if not changed:
                return
            found = f"{changed[0]} {'changed' if changed[0] in sizes else 'gone'}"
        raise ValueError(
            f"{self.folder}: expected what was just written there, found {found}; let no other program clear or change"
            " this folder, and run again."
        )


_filled: dict[Path, Filling] = {}


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Filling]:
    """Make a folder and note what `replacing`, and all that writes by it, puts there."""
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    _filled[folder] = Filling(folder, handle)
    try:
        yield _filled[folder]
    finally:
        del _filled[folder]
        os.close(handle)


def _note(path: Path) -> None:
    if path.parent in _filled:
        _filled[path.parent].sizes[path.name] = path.stat().st_size


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def save_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically, indented, keys in the given order."""
    return save_text(path, json.dumps(value, indent=1, default=str) + "\n")


def load_record(path: str | Path) -> dict[str, Any] | None:
    """Mapping in a JSON file; None where there is none, or no JSON, or a pipe that may never end."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).is_file() else None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in _NO_HANDLES:  # it says nothing about the file
            raise
        return None
    return value if isinstance(value, dict) else None


def is_formula(text: str) -> bool:
    """Whether a spreadsheet may compute the text: it begins with ``= + - @``, also full width, or a control character.

    Blanks before them are passed over, as some programs do. Source: OWASP, "CSV Injection",
    https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))


def spreadsheet_safe(text: object) -> str:
    """Text from outside as it may stand in a table that is opened in a spreadsheet: an apostrophe before a formula.

    Examples
    --------
    >>> spreadsheet_safe("=1+1"), spreadsheet_safe("scan_1.png")
    ("'=1+1", 'scan_1.png')
    """
    return f"'{text}" if is_formula(str(text)) else str(text)


def save_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table atomically as CSV or Parquet, by the ending of `path`; the index is not kept."""
    with replacing(path) as temporary:
        if Path(path).suffix == ".parquet":
            temporary.write_bytes(table.to_parquet(index=False))  # pyarrow takes every path for UTF-8
        else:
            table.to_csv(temporary, index=False)
    return Path(path)


def load_table(path: str | Path) -> pd.DataFrame:
    """Read a table written by `save_table`; what a process has read and nobody has written since is copied."""
    return read_once(_read_table, Path(path)).copy()


def read_once(read: Any, path: Path, *rest: Any) -> Any:
    """What a cached `read` gives for a file, `rest` and the file's mark; a file of the last seconds is read anew."""
    mark = mark_of(path)
    young = mark is None or time.time_ns() - mark[0] < 2 * 10**9  # some file systems tell no shorter times
    return (read.__wrapped__ if young else read)(path, *rest, mark)


def mark_of(path: str | Path) -> tuple[int, int, int] | None:
    """Time, size and inode of a file, by which a change is noticed; None where it cannot be asked."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


@functools.lru_cache(maxsize=256)
def _read_table(path: Path, _mark: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def save_array(path: str | Path, array: np.ndarray) -> Path:
    """Write an array atomically as .npy, without pickle."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.asarray(array), allow_pickle=False)
    return Path(path)


@contextlib.contextmanager
def array_in_parts(path: str | Path, leading: Sequence[int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an array atomically as .npy, part after part, so that it may be larger than memory.

    Parameters
    ----------
    path : path
        Where it goes.
    leading : sequence of int
        First axes of the array; their product is the number of rows that the parts have together.

    Yields
    ------
    callable
        Takes the next rows, ``(m, ...)``, all of one dtype and shape but for m.

    Raises
    ------
    ValueError
        There is no part, they do not have that many rows, or differ in dtype or shape; nothing is left behind.
    """
    import numpy as np

    rows, kind = 0, None
    with replacing(path) as temporary:
        with open(temporary, "wb") as handle:

            def append(part: np.ndarray) -> None:
                nonlocal rows, kind
                found = part.dtype.str, part.shape[1:]
                if kind is None:
                    kind = found
                    header = {"descr": found[0], "fortran_order": False, "shape": (*leading, *found[1])}
                    np.lib.format.write_array_header_1_0(handle, header)
                if found != kind:
                    raise ValueError(f"{path}: expected rows {kind}, found {found}; make all parts alike.")
                handle.write(np.ascontiguousarray(part).data)
                rows += len(part)

            yield append
        if kind is None or rows != math.prod(leading):
            raise ValueError(f"{path}: expected {math.prod(leading)} rows, found {rows}; append every part once.")


def load_array(path: str | Path, mmap: bool = False) -> np.ndarray:
    """Read an array written by `save_array`, memory-mapped read-only when `mmap`.

    Raises
    ------
    ValueError
        The file is no array: an archive, a pickle, or damaged.
    NotEnoughMemoryError
        The system gives no memory for it.
    """
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        pickled = re.search("pickle|Python objects", str(error))
        reason = "a pickle, which is never opened" if pickled else " ".join(str(error).split())
        raise ValueError(f"{path}: expected an array, found {reason}; remove it and run its stage again.") from None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise NotEnoughMemoryError(
            f"not enough memory to open {path}; free memory, or lower JOBS or engine.n_workers, and run again"
        ) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"{path}: expected an array, found an archive; remove it and run its stage again.")
    return found


def create_array(path: str | Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of uint8 that is filled piece by piece, for arrays larger than memory.

    Its room on the disk is taken now, which raises OSError where the disk is too small: else the process would be
    killed at a later write.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", "uint8", shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    _note(Path(path))
    return array


def save_weights(path: str | Path, tensors: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> None:
    """Write tensors on the CPU as safetensors with their metadata in order, which safetensors leaves to chance."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(facts) if facts else None)
        if not facts:
            return
        with open(temporary, "r+b") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            handle.seek(8)
            handle.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of one of our own weight files, which are safetensors and never anything else.

    Raises
    ------
    ValueError
        The file is missing, damaged, or a pickle.
    """
    with _open_weights(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118


def load_weight_facts(path: str | Path) -> dict[str, str]:
    """Metadata of one of our own weight files, whose tensors are not read; raises what `load_weights` does."""
    with _open_weights(path) as handle:
        return handle.metadata() or {}


@contextlib.contextmanager
def _open_weights(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        if advised(f"{error}") != f"{error}":  # it says nothing about the file
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from None
        found = _kind(Path(path)) or str(error)
        raise ValueError(
            f"{path}: expected safetensors weights, found {found}; remove it and run its stage again."
        ) from None


def _kind(path: Path) -> str | None:
    """What a file that is not safetensors is, where that is easily told."""
    if not path.is_file():
        return "no file"
    with open(path, "rb") as handle:
        start = handle.read(4)
    # torch.save writes a zip archive of a pickle, older versions the pickle itself
    return "a pickle, which is never opened" if start.startswith((b"PK", b"\x80")) else None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex; ValueError of a pipe or device, which may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: expected a file, found a folder, a pipe or a device; put a file there.")
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def existing(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above it that does."""
    return next(place for place in (path, *path.parents) if place.exists())
