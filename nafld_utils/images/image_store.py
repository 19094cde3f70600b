"""Images of many patients on disk instead of in memory: written one at a time, resumable, read through a memory map.

Contract: a store is a folder of .npy files that are written row after row with plain writes, so that memory stays flat
however many images there are, and a ``progress.json`` that says how many rows are safely on disk. A killed writer goes
on behind the last row that was committed; the bytes do not depend on how often it was interrupted.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils import artifacts

REVISION = ("pixel_store", 1)
PROGRESS = "progress.json"
COMMIT_EVERY = 64  # rows; a killed writer loses at most so many


class Ragged(Sequence):
    """Images of several sizes in one flat array; indexed like an ``(N, H, W)`` array by its first axis.

    `flat`, (P,) uint8, holds the grey levels of all images one after the other, rows first, and may be memory-mapped;
    `shapes` is (N, 2), height and width of each; `rows` the images of this view, in order, all by default.
    """

    def __init__(self, flat: np.ndarray, shapes: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.flat, self.all_shapes = flat, np.asarray(shapes, dtype=np.int64)
        self._ends = np.cumsum(self.all_shapes.prod(axis=1))
        self._rows = np.arange(len(self.all_shapes)) if rows is None else np.asarray(rows)

    @property
    def shapes(self) -> np.ndarray:
        """(M, 2) int: height and width of each image of this view."""
        return self.all_shapes[self._rows]

    @property
    def dtype(self) -> np.dtype:
        """Type of a grey level."""
        return self.flat.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if not isinstance(place, int | np.integer):
            return Ragged(self.flat, self.all_shapes, self._rows[place])
        row = self._rows[place]
        height, width = self.all_shapes[row]
        end = self._ends[row]
        return self.flat[end - height * width : end].reshape(height, width)


class Store:
    """Arrays that are filled row by row in a folder; what an earlier writer of the same folder committed is kept.

    `arrays` is name to ``(shape, dtype)``, the first axis being the row. A folder that holds a store of other arrays is
    written over, or an error (ValueError) where `refuse_other`.
    """

    def __init__(
        self, folder: Path, arrays: Mapping[str, tuple[tuple[int, ...], Any]], refuse_other: bool = False
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = {}
        wanted = {name: [list(map(int, shape)), np.dtype(dtype).str] for name, (shape, dtype) in arrays.items()}
        found = artifacts.load_record(folder / PROGRESS) or {}
        known = artifacts.is_whole(found) and found.get("arrays") == wanted
        known = known and all((folder / f"{name}.npy").is_file() for name in wanted)
        if refuse_other and not known and any((folder / f"{name}.npy").exists() for name in wanted):
            raise ValueError(f"{folder}: expected no other arrays, found some; name another folder or remove it.")
        if not known:  # before the arrays begin anew: what it says is of others, some of which may have been moved away
            (folder / PROGRESS).unlink(missing_ok=True)
        self.done = int(found["done"]) if known else 0
        self.facts = dict(found["facts"]) if known else {}
        self._wanted = wanted
        self._files: dict[str, Any] = {}
        for name, (shape, dtype) in wanted.items():
            self._files[name] = self._open(folder / f"{name}.npy", shape, np.dtype(dtype), known)

    @staticmethod
    def _open(path: Path, shape: list[int], dtype: np.dtype, keep: bool) -> tuple[Any, int, int]:
        """Open file, position of the first row in bytes, and length of a row in bytes."""
        handle = open(path, "r+b" if keep else "w+b")  # noqa: SIM115 - closed by `close`
        try:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(handle, header)
            start, row = handle.tell(), math.prod(shape[1:]) * dtype.itemsize
            if not keep:
                handle.truncate(start + shape[0] * row)  # sparse until written: the reader's map is always whole
        except BaseException:
            handle.close()
            raise
        return handle, start, row

    def put(self, name: str, row: int, values: np.ndarray) -> None:
        """Write one row of an array, or for a flat array the values from `row` on, cast to the array's type."""
        handle, start, length = self._files[name]
        content = np.ascontiguousarray(values, dtype=np.dtype(self._wanted[name][1]))
        with self._named(name):
            handle.seek(start + row * length)
            handle.write(content.tobytes())

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = artifacts.no_space(error, self.folder / f"{name}.npy")
            if told is error:
                raise
            raise told from error

    def commit(self, done: int) -> None:
        """Put everything written so far safely on disk, and note that the next writer may skip `done` rows."""
        for name, (handle, _, _) in self._files.items():
            with self._named(name):
                handle.flush()
                os.fsync(handle.fileno())
        self.done = done
        record = {"arrays": self._wanted, "done": done, "facts": self.facts}
        artifacts.save_json(self.folder / PROGRESS, artifacts.sealed(record))

    def remaining(self, n: int) -> Iterator[int]:
        """Rows that are still to be written, committed every `COMMIT_EVERY` rows and at the end."""
        for row in range(self.done, n):
            yield row
            if (row + 1) % COMMIT_EVERY == 0 or row + 1 == n:
                self.commit(row + 1)

    def read(self, name: str) -> np.ndarray:
        """The array, memory-mapped."""
        self._files[name][0].flush()
        return artifacts.files.load_array(self.folder / f"{name}.npy", mmap=True)

    def close(self) -> None:
        """Close the files; what a full disk keeps from being written is not committed and so not missed."""
        for handle, _, _ in self._files.values():
            with contextlib.suppress(OSError):
                handle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def move(source: Path, target: Path, names: Sequence[str]) -> None:
    """Move arrays, named without ``.npy``, of a finished store into a unit's folder on the same file system."""
    for name in names:
        os.replace(source / f"{name}.npy", target / f"{name}.npy")


def stream(pixels: Any) -> Iterator[np.ndarray]:
    """Images (H, W) uint8 one at a time; pages of a memory map that were read are given back: memory stays flat."""
    for row in range(len(pixels)):
        yield pixels[row]
        if (row + 1) % COMMIT_EVERY == 0:
            release(pixels)


def release(pixels: Any) -> None:
    """Give back the pages of a memory map that were read (the next access reads them again); else do nothing."""
    array = pixels.flat if isinstance(pixels, Ragged) else pixels
    while array is not None and not isinstance(array, mmap.mmap):
        found = getattr(array, "_mmap", None)
        array = found if found is not None else getattr(array, "base", None)
    if array is not None and hasattr(array, "madvise"):
        with contextlib.suppress(OSError, ValueError):
            array.madvise(mmap.MADV_DONTNEED)
