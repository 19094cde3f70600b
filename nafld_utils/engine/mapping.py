"""One call that maps a function over independent units, and the locks that keep two processes from the same one.

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


class UnitError(RuntimeError):
    """Some units failed; the others are done and kept."""


class _Ended(NamedTuple):
    """How the call of a task ended; it made nothing where another process makes the same."""

    seconds: float = 0.0
    error: str = ""
    is_elsewhere: bool = False
    is_killed: bool = False  # with every worker that began it, so that it could note nothing itself


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
        Keyword arguments of each call. One whose unit reads another's comes after it, and begins when that has ended.
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
    tasks = list(tasks)
    ended = [_Ended()] * len(tasks)
    waiting = [i for i, task in enumerate(tasks) if unit_of is None or not unit_of(**task).done()]
    # First what no other process makes, so that two runs at once share the work; then what is waited for.
    for wait in (False, True):
        call = _Call(function, unit_of, files_of, wait, threads=settings.threads)
        for i, found in zip(waiting, _run(call, [tasks[i] for i in waiting], settings, label), strict=True):
            ended[i] = found
        waiting = _elsewhere(waiting, ended, _needs(call, tasks))
    rows = []
    for task, found in zip(tasks, ended, strict=True):
        plain = {key: value for key, value in task.items() if isinstance(value, str | int | float | bool)}
        rows.append({**plain, "seconds": found.seconds, "error": found.error, "killed": found.is_killed})
    table = pd.DataFrame(rows)
    _tell_failed(table, label, raise_failed)
    return table


def map_kinds(
    kinds: Mapping[str, tuple[Callable[..., Any], Sequence[Mapping[str, Any]], Callable[..., Unit]]],
    settings: EngineSettings,
    label: str,
) -> pd.DataFrame:
    """Make units of several kinds, each as soon as those that it reads are there; see `map_units`.

    `kinds` are function, tasks and ``unit_of`` by name, which the table holds as ``kind``. A kind comes after those
    that it reads.
    """
    tasks = [
        {"kind": kind, "function": function, "unit_of": unit_of, **task}
        for kind, (function, some, unit_of) in kinds.items()
        for task in some
    ]
    return map_units(_make, tasks, settings, label, unit_of=_unit)


def _make(kind: str, function: Callable[..., Any], unit_of: Callable[..., Unit], **task: Any) -> None:
    function(**task)


def _unit(kind: str, function: Callable[..., Any], unit_of: Callable[..., Unit], **task: Any) -> Unit:
    return unit_of(**task)


def _needs(call: _Call, tasks: Sequence[Mapping[str, Any]]) -> list[set[int]]:
    """Numbers of the tasks whose units each task's unit reads."""
    if not call.unit_of:
        return [set() for _ in tasks]
    units = [call.unit_of(**task) for task in tasks]
    number = {unit.hash: i for i, unit in enumerate(units)}
    return [{number[item] for item in unit.recipe["inputs"] if item in number} for unit in units]


def _elsewhere(waiting: Sequence[int], ended: Sequence[_Ended], needs: Sequence[set[int]]) -> list[int]:
    """Tasks that another process does, and those that failed because it has not ended."""
    found: list[int] = []
    for i in waiting:
        if ended[i].is_elsewhere or (ended[i].error and not needs[i].isdisjoint(found)):
            found.append(i)
    return found


def _tell_failed(table: pd.DataFrame, label: str, raise_failed: bool) -> None:
    failed = table[table["error"] != ""] if len(table) else table
    if not len(failed):
        return
    first = failed.iloc[0]
    facts = first.drop(["seconds", "error", "killed"]).dropna()  # a kind lacks what another is told
    names = ", ".join(f"{name}={value}" for name, value in facts.items())
    text = f"{label}: {len(failed)} of {len(table)} units failed, the first ({names}) with {first['error']}"
    if raise_failed:
        raise UnitError(f"{text}; the others are kept, correct the cause and run again.")
    notice(text)


def _run(call: _Call, tasks: list[Any], settings: EngineSettings, label: str) -> list[_Ended]:
    if not tasks:
        return []
    if settings.mode == "serial" or (settings.mode == "local" and len(tasks) == 1):
        return [call(task) for task in progress(tasks, label)]
    use_threads(settings.threads)  # as the workers inherit it
    if settings.mode == "cluster":  # workers have their own environment, and perhaps no such folder
        root = work_root().resolve()
        root.mkdir(parents=True, exist_ok=True)
        results = cluster.run(replace(call, root=root), tasks, settings, _needs(call, tasks), label)
    else:
        results = workers.run(call, tasks, settings, _needs(call, tasks))
    ended = [_Ended()] * len(tasks)
    with contextlib.closing(results):  # an interrupt ends its workers, wherever it comes
        for i, found in progress(results, label, total=len(tasks)):
            if isinstance(found, BaseException):  # nothing that a unit raises comes here
                text, is_killed = f"{type(found).__name__}: {found}", isinstance(found, workers.KilledWorker)
                found = _Ended(math.nan, text, is_killed=is_killed)
            ended[i] = found
    return ended


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
