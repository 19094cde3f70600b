"""One call that maps a function over units, and the locks that keep two processes from the same one.

Contract: a task is a mapping of picklable keyword arguments; the function is importable and seals its unit itself. It
is not called where `unit_of` gives a unit that is done. The store of finished units is the queue, so a killed worker or
driver costs at most the units in flight.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nafld_utils.artifacts import Busy, NotEnoughMemoryError, Unit, locked, work_root
from nafld_utils.engine import cluster, workers
from nafld_utils.engine.devices import use_threads
from nafld_utils.engine.progress_lines import announce, notice, progress
from nafld_utils.params import EngineSettings

_one_unit = threading.RLock()  # a unit has the worker's threads to itself, however many Dask gave it
_HELD = "not begun, since what it reads could not be made"


class UnitError(RuntimeError):
    """Some units failed; the others are done and kept."""


class _Ended(NamedTuple):
    """How the call of a task ended; it made nothing where another process makes the same."""

    seconds: float = 0.0
    error: str = ""
    is_elsewhere: bool = False
    is_killed: bool = False  # with every worker that began it, so that it could note nothing itself
    is_held: bool = False  # it did not begin, since what it needs is not there

    def is_made(self) -> bool:
        return not (self.error or self.is_elsewhere or self.is_held)


@dataclass(frozen=True)
class _Call:
    """What a worker does with each task; see `map_units`."""

    function: Callable[..., Any]
    unit_of: Callable[..., Any] | None = None
    files_of: Callable[..., Sequence[Path]] | None = None
    wait: bool = True  # for another process that makes the same
    root: Path | None = None  # work folder of the driver, for workers elsewhere
    threads: int = 1

    def __call__(self, task: Mapping[str, Any]) -> _Ended:
        """Make one unit; its error is recorded, since it must not take the others down."""
        with _one_unit:
            started, text, is_elsewhere = time.perf_counter(), "", False
            try:
                use_threads(self.threads)  # a cluster's worker was started by somebody else
                self.make(task)
            except Busy:
                is_elsewhere = True
            except Exception as error:
                logging.getLogger(__name__).debug("unit failed\n%s", traceback.format_exc())
                text = in_words(error)
            return _Ended(time.perf_counter() - started, text, is_elsewhere)

    def make(self, task: Mapping[str, Any]) -> None:
        """Call the function while no other process makes the same; not at all where one has made the unit."""
        if self.root:
            _work_in(self.root)
        unit = self.unit_of(**task) if self.unit_of else None
        paths = [*([unit.path] if unit else []), *(self.files_of(**task) if self.files_of else [])]
        with alone(*paths, wait=self.wait):
            if unit is None or not unit.done():
                self.function(**task)


def _work_in(root: Path) -> None:
    """Let a worker elsewhere read and write where the driver does."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"worker on {socket.gethostname()}: expected the work folder {root}, found none;"
            " engine.mode=cluster needs it on a file system that all machines share (NAFLD_ROOT)."
        )
    os.environ["NAFLD_ROOT"] = str(root)


def map_units(
    function: Callable[..., Any],
    tasks: Sequence[Mapping[str, Any]],
    settings: EngineSettings,
    label: str,
    raise_failed: bool = True,
    unit_of: Callable[..., Any] | None = None,
    files_of: Callable[..., Sequence[Path]] | None = None,
) -> pd.DataFrame:
    """Run `function(**task)` for every task; a failed task is recorded and the others go on.

    Parameters
    ----------
    function : callable
        Importable at module level; makes one unit.
    tasks : sequence of mapping
        Keyword arguments of each call. One whose unit reads another's comes after it, and begins when that is there.
    settings : EngineSettings
        ``serial`` runs in this process, ``local`` in one worker per GPU or core, ``cluster`` on a Dask scheduler or in
        Slurm jobs.
    label : str
        What the progress line says.
    raise_failed : bool
        Raise after the last task if any failed; else say so and report in the table.
    unit_of : callable, optional
        The unit of a task, called as `function` is. Tasks whose unit is done are not sent anywhere, so that opening
        finished work starts no workers; what another process makes is waited for and not made twice.
    files_of : callable, optional
        The files that a task makes, called as `function` is, where it makes no unit: they are made by one process at
        a time, and `function` skips those that it finds.

    Returns
    -------
    pandas.DataFrame
        One row per task in the given order: its plain arguments, ``seconds``, ``error`` (empty when it succeeded),
        ``killed`` (its workers died).

    Raises
    ------
    UnitError
        Some tasks failed and `raise_failed`; names the first one.
    """
    tasks, call = list(tasks), _Call(function, unit_of, files_of, threads=settings.threads)
    rows = []
    for task, found in zip(tasks, _ended(call, tasks, settings, label), strict=True):
        plain = {key: value for key, value in task.items() if isinstance(value, str | int | float | bool)}
        error = _HELD if found.is_held else found.error
        rows.append({**plain, "seconds": found.seconds, "error": error, "killed": found.is_killed})
    _tell_failed([row for row in rows if row["error"]], len(rows), label, raise_failed)
    return pd.DataFrame(rows)


def _ended(call: _Call, tasks: Sequence[Mapping[str, Any]], settings: EngineSettings, label: str) -> list[_Ended]:
    """Make what is not there: first what no other process makes, so that two runs share the work; then what is left."""
    ended = [_Ended()] * len(tasks)
    waiting = [i for i, task in enumerate(tasks) if call.unit_of is None or not call.unit_of(**task).done()]
    needs = _needs(tasks, call.unit_of) if waiting else []

    def run(numbers: list[int], wait: bool) -> None:
        place = {i: k for k, i in enumerate(numbers)}
        own = [{place[j] for j in needs[i] if j in place} for i in numbers]
        found = _run(replace(call, wait=wait), [tasks[i] for i in numbers], settings, label, own)
        for i, one in zip(numbers, found, strict=True):
            ended[i] = one

    while waiting:
        run(waiting, wait=False)
        busy = [i for i in waiting if ended[i].is_elsewhere]
        held = [i for i in waiting if ended[i].is_held]
        awaited = [i for i in busy if any(i in needs[j] for j in held)] or busy
        if awaited:
            run(awaited, wait=True)
        left = {*busy, *held} - {*awaited}
        waiting = [i for i in waiting if i in left and not any(ended[j].error for j in needs[i])]
    return ended


def map_kinds(
    kinds: Mapping[str, tuple[Callable[..., Any], Sequence[Mapping[str, Any]], Callable[..., Unit]]],
    settings: EngineSettings,
    label: str,
) -> None:
    """Make units of several kinds, each as soon as those that it reads are there; see `map_units`.

    `kinds` are function, tasks and ``unit_of`` by name; one comes after those that it reads. On a cluster each kind is
    made after the other, with as many workers as it has tasks, so that no node stands idle.
    """
    if settings.mode == "cluster":
        for kind, (function, some, unit_of) in kinds.items():
            map_units(function, some, settings, f"{label}, {kind}", unit_of=unit_of)
        return
    tasks = [
        {"kind": kind, "function": function, "unit_of": unit_of, **task}
        for kind, (function, some, unit_of) in kinds.items()
        for task in some
    ]
    map_units(_make, tasks, settings, label, unit_of=_unit)


def _make(kind: str, function: Callable[..., Any], unit_of: Callable[..., Unit], **task: Any) -> None:
    function(**task)


def _unit(kind: str, function: Callable[..., Any], unit_of: Callable[..., Unit], **task: Any) -> Unit:
    return unit_of(**task)


def _needs(tasks: Sequence[Mapping[str, Any]], unit_of: Callable[..., Any] | None) -> list[set[int]]:
    """Numbers of the tasks whose units each task's unit reads, itself or by way of others."""
    needs: list[set[int]] = [set() for _ in tasks]
    number: dict[str, int] = {}
    for i, task in enumerate(tasks if unit_of else ()):
        unit = unit_of(**task)
        direct = {number[item] for item in unit.recipe["inputs"] if item in number}
        needs[i] = direct.union(*(needs[j] for j in direct))
        number[unit.hash] = i
    return needs


def _tell_failed(failed: Sequence[Mapping[str, Any]], n: int, label: str, raise_failed: bool) -> None:
    if not failed:
        return
    names = ", ".join(f"{k}={v}" for k, v in failed[0].items() if k not in ("seconds", "error", "killed"))
    text = f"{label}: {len(failed)} of {n} units failed, the first ({names}) with {failed[0]['error']}"
    if raise_failed:
        raise UnitError(f"{text}; the others are kept, correct the cause and run again.")
    notice(text)


def _run(
    call: _Call, tasks: list[Any], settings: EngineSettings, label: str, needs: Sequence[set[int]]
) -> list[_Ended]:
    ended, waiting = [_Ended(is_held=True)] * len(tasks), workers.Waiting(needs)
    if settings.mode == "serial" or (settings.mode == "local" and len(tasks) == 1):
        results = _here(call, tasks, waiting)
    else:
        use_threads(settings.threads)  # as the workers inherit it
        if settings.mode == "cluster":  # workers have their own environment, and perhaps no such folder
            root = work_root().resolve()
            root.mkdir(parents=True, exist_ok=True)
            results = cluster.run(replace(call, root=root), tasks, settings, label)
        else:
            results = workers.run(call, tasks, settings, waiting)
    with contextlib.closing(results):  # an interrupt ends its workers, wherever it comes
        for i, found in progress(results, label, total=len(tasks)):
            if isinstance(found, BaseException):  # nothing that a unit raises comes here
                text, is_killed = f"{type(found).__name__}: {found}", isinstance(found, workers.KilledWorker)
                found = _Ended(math.nan, text, is_killed=is_killed)
            ended[i] = found
            if found.is_made():
                waiting.made(i)
    return ended


def _here(call: _Call, tasks: Sequence[Any], waiting: workers.Waiting) -> Iterator[tuple[int, _Ended]]:
    """As `workers.run`, in this process."""
    while (i := waiting.next()) is not None:
        yield i, call(tasks[i])


@contextlib.contextmanager
def alone(*paths: str | Path, wait: bool = True) -> Iterator[None]:
    """Make these things in one process at a time: runs at once share the work instead of doing it twice.

    Parameters
    ----------
    *paths : path
        What is made.
    wait : bool
        Wait for another process that makes one of them; else `artifacts.Busy` is raised, and `map_units` goes on
        with other tasks.

    Notes
    -----
    Look whether the things are there after entering, not before. On a file system without locks nothing is waited for:
    whole files are renamed into place, so that work is done twice there and never damaged.
    """
    with contextlib.ExitStack() as held:
        for path in sorted(map(Path, set(paths))):  # in one order everywhere, or two processes wait for each other
            try:
                held.enter_context(locked(path, wait=False))
            except Busy:
                then = "waiting for that" if wait else "going on with the others"
                announce(f"{path.name}: another process makes it, {then}")
                if not wait:
                    raise
                held.enter_context(locked(path))
        yield


def once(unit: Unit, make: Callable[[], Any]) -> Unit:
    """Make a unit in one process at a time, and not at all where it is done."""
    if not unit.done():
        with alone(unit.path):
            if not unit.done():
                make()
    return unit


# How libraries say that an allocator gave nothing: C, C++, torch, oneDNN, which torch calls, and CUDA. Most raise a
# plain RuntimeError, so that there is no kind of error to ask for.
_NO_MEMORY = re.compile(
    r"can(?:'t|not) allocate memory|bad_alloc|DefaultCPUAllocator|could not create a primitive"
    r"|OutOfMemoryError|(?:out of|not enough) memory",
    re.IGNORECASE,
)


def lacked_memory(error: BaseException) -> bool:
    """Whether an allocator of any library gave nothing, whatever kind of error says so."""
    said = _NO_MEMORY.search(f"{type(error).__name__}: {error}")
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or said is not None


def in_words(error: BaseException) -> str:
    """Kind and text of an error; where memory lacked, what to do, since libraries name an allocator instead."""
    if lacked_memory(error) and not isinstance(error, NotEnoughMemoryError):
        reason = " ".join(str(error).split())[:160] or "the system gave no more"
        return (
            f"MemoryError: not enough memory ({reason}); free memory, or lower JOBS, engine.n_workers or the stage's"
            " batch_size, and run again"
        )
    return f"{type(error).__name__}: {error}"
