"""Where work runs: one seam that maps a function over independent units, and one way to show progress.

Contract: a task is a mapping of picklable keyword arguments; the function is importable, skips a unit that is done
and seals its unit itself. The store of finished units is the queue, so a killed worker or driver costs at most the
units in flight.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import math
import os
import queue
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils.artifacts import Unit, work_root
from nafld_utils.params import EngineSettings
from nafld_utils.workers import (
    PROGRESS_FILE,
    compute_threads,
    cores,
    default_workers,
    device,
    open_pool,
    release_workers,
    thread_environment,
    worker_threads,
)

__all__ = [
    "PROGRESS_FILE", "StepMeter", "UnitError", "alone", "announce", "compute_threads", "cores", "default_workers",
    "device", "in_words", "is_headless", "map_units", "notice", "once", "progress", "release_workers",
    "thread_environment", "worker_threads",
]  # fmt: skip

LOOK_EVERY = 5.0  # s between two looks after the workers


class UnitError(RuntimeError):
    """Some units failed; the others are done and kept."""


def announce(text: str) -> None:
    """Show one line of progress in the terminal of a headless run; silent elsewhere."""
    path = os.environ.get(PROGRESS_FILE)
    if path:
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as handle:
            handle.write(text + "\n")


def is_headless() -> bool:
    """Whether this process runs a notebook for a report, with nobody there to move a slider."""
    return bool(os.environ.get(PROGRESS_FILE))


def notice(text: str) -> None:
    """Say what must not go unseen: in the terminal of a headless run, and as a warning where the code runs."""
    announce(text)
    logging.getLogger(__name__).warning(text)


def _in_kernel() -> bool:
    """Whether a Jupyter kernel runs this process: that something imported ipykernel does not say so."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def progress(items: Iterable[Any], label: str, total: int | None = None, every: float = 5.0) -> Iterator[Any]:
    """Iterate with a bar and an estimate: in JupyterLab a widget, headless a line to the runner's terminal.

    Parameters
    ----------
    items : iterable
        What to iterate over.
    label : str
        What is going on.
    total : int, optional
        Number of items, where `items` has no length.
    every : float
        Least seconds between two headless lines.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if not os.environ.get(PROGRESS_FILE):
        if _in_kernel() or sys.stderr.isatty():
            from tqdm.auto import tqdm

            yield from tqdm(items, desc=label, total=total, leave=False)
        else:
            yield from items
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= every or done == total:
            shown = now
            left = "" if not total else f", about {_clock((now - started) / done * (total - done))} left"
            announce(f"{label}: {done}/{total or '?'} in {_clock(now - started)}{left}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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
        Keyword arguments of each call.
    settings : EngineSettings
        ``serial`` runs in this process, ``local`` in one worker a GPU or core, ``cluster`` on a Dask scheduler or in
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
        One row a task in the given order: its plain arguments, ``seconds``, ``error`` (empty when it succeeded).

    Raises
    ------
    UnitError
        Some tasks failed and `raise_failed`; names the first one.
    """
    tasks = list(tasks)
    apart = functools.partial(_apart, function, unit_of, files_of) if unit_of or files_of else None
    waiting = [i for i, task in enumerate(tasks) if unit_of is None or not unit_of(**task).done()]
    results = [(0.0, "")] * len(tasks)
    # First what no other process makes, so that two runs at once share the work; then what is waited for.
    for call in (functools.partial(apart, False), functools.partial(apart, True)) if apart else (function,):
        for i, result in zip(waiting, _run(call, [tasks[i] for i in waiting], settings, label), strict=True):
            results[i] = result
        waiting = [i for i in waiting if results[i][1] == _ELSEWHERE]
    rows = []
    for task, (seconds, error) in zip(tasks, results, strict=True):
        plain = {key: value for key, value in task.items() if isinstance(value, str | int | float | bool)}
        rows.append({**plain, "seconds": seconds, "error": error})
    table = pd.DataFrame(rows)
    failed = table[table["error"] != ""] if len(table) else table
    if len(failed):
        first = failed.iloc[0]
        names = ", ".join(f"{k}={first[k]}" for k in table.columns if k not in ("seconds", "error"))
        text = f"{label}: {len(failed)} of {len(table)} units failed, the first ({names}) with {first['error']}"
        if raise_failed:
            raise UnitError(f"{text}; the others are kept, correct the cause and run again.")
        notice(text)
    return table


def _run(
    function: Callable[..., Any], tasks: list[Any], settings: EngineSettings, label: str
) -> list[tuple[float, str]]:
    if not tasks:
        return []
    if settings.mode == "serial":
        return [_guarded(function, task) for task in progress(tasks, label)]
    if settings.mode == "local" and len(tasks) == 1:
        with compute_threads(cores()):  # alone it may have every core
            return [_guarded(function, task) for task in progress(tasks, label)]
    with open_pool(settings, len(tasks)) as (client, look_after):
        if settings.mode == "cluster":  # workers have their own environment, and perhaps no such folder
            root = work_root().resolve()
            root.mkdir(parents=True, exist_ok=True)
            function = functools.partial(_in_folder, function, root)
        return _gather(client, look_after, function, tasks, label)


_ELSEWHERE = "another process makes it"


class _Elsewhere(Exception):
    """Another process makes this unit now."""


_one_unit = threading.RLock()  # a unit may have every thread of its worker, however many Dask gave it


def _guarded(function: Callable[..., Any], task: Mapping[str, Any]) -> tuple[float, str]:
    with _one_unit:
        started = time.perf_counter()
        try:
            function(**task)
        except _Elsewhere:
            return time.perf_counter() - started, _ELSEWHERE
        except Exception as error:  # a unit must not take the others down
            logging.getLogger(__name__).debug("unit failed\n%s", traceback.format_exc())
            return time.perf_counter() - started, in_words(error)
        return time.perf_counter() - started, ""


# How libraries say that an allocator gave nothing: C, C++, torch, oneDNN, which torch calls, and CUDA.
_NO_MEMORY = r"can(?:'t|not) allocate memory|bad_alloc|DefaultCPUAllocator|could not create a primitive"
_NO_MEMORY += r"|OutOfMemoryError|(?:out of|not enough) memory"


def lacked_memory(error: BaseException) -> bool:
    """Whether an allocator of any library gave nothing, whatever kind of error says so."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or bool(re.search(_NO_MEMORY, text, re.IGNORECASE))


def in_words(error: BaseException) -> str:
    """Kind and text of an error; where memory lacked, what to do, since libraries name an allocator instead."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) and "lower" in text:
        return text  # it says itself what to do
    if lacked_memory(error):
        reason = " ".join(str(error).split())[:160] or "the system gave no more"
        return (
            f"MemoryError: not enough memory ({reason}); free memory, or lower JOBS, engine.n_workers or the stage's"
            " batch_size, and run again"
        )
    return text


def _apart(
    function: Callable[..., Any],
    unit_of: Callable[..., Any] | None,
    files_of: Callable[..., Sequence[Path]] | None,
    wait: bool = True,
    /,
    **task: Any,
) -> None:
    """Call `function` while no other process makes the same; not at all where one has."""
    unit = unit_of(**task) if unit_of else None
    with alone(*([unit.path] if unit else []), *(files_of(**task) if files_of else []), wait=wait):
        if unit is None or not unit.done():
            function(**task)


def _in_folder(function: Callable[..., Any], root: Path, /, **task: Any) -> None:
    """Call `function` in a worker elsewhere, which is to read and write where the driver does."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"worker on {socket.gethostname()}: expected the work folder {root}, found none;"
            " engine.mode=cluster needs it on a file system that all machines share (NAFLD_ROOT)."
        )
    os.environ["NAFLD_ROOT"] = str(root)
    function(**task)


def _gather(
    client: Any, look_after: Callable[[], str], function: Callable[..., Any], tasks: list[Any], label: str
) -> list[tuple[float, str]]:
    """Results in the order of the tasks; a worker that dies has its unit done by another one."""
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    futures = [client.submit(_guarded, function, task, pure=False) for task in tasks]
    place = {future.key: i for i, future in enumerate(futures)}
    for future in futures:
        future.add_done_callback(finished.put)
    results: list[tuple[float, str]] = [(float("nan"), "not run")] * len(tasks)
    for future in progress(_each(finished, len(tasks), look_after, label), label, total=len(tasks)):
        results[place[future.key]] = _fetch(future, look_after)
        future.release()  # else the unit is done again where the worker that remembers its result dies
    return results


def _each(finished: queue.SimpleQueue[Any], n: int, look_after: Callable[[], str], label: str) -> Iterator[Any]:
    """Yield `n` futures as they finish; look after the workers meanwhile and say when they lack."""
    lacking = ""
    looked = time.monotonic()
    for _ in range(n):
        while True:
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=max(0.0, looked + LOOK_EVERY - time.monotonic()))
                break
            before, lacking = lacking, look_after()
            looked = time.monotonic()
            if lacking != before:
                announce(f"{label}: {lacking or 'all workers are there'}")
        yield future


def _fetch(future: Any, look_after: Callable[[], str]) -> tuple[float, str]:
    from distributed import KilledWorker

    while True:
        try:
            return future.result(timeout=LOOK_EVERY)
        except TimeoutError:  # the worker that remembered it has died in the meantime; it is done again
            look_after()
        except KilledWorker:
            text = "every worker that began it died, out of memory or killed by hand; give a worker more memory"
            return float("nan"), f"KilledWorker: {text}"
        except Exception as error:  # nothing that a unit raises comes here
            return float("nan"), f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def alone(*paths: str | Path, wait: bool = True) -> Iterator[None]:
    """Make these things in one process at a time: runs at once share the work instead of doing it twice.

    Parameters
    ----------
    *paths : path
        What is made. A lock file lies beside each meanwhile; the system drops the lock of a process that dies.
    wait : bool
        Wait for another process that makes one of them; else `map_units` hears of it and goes on with other tasks.

    Notes
    -----
    Look whether the things are there after entering, not before. On a file system without locks nothing is waited for:
    whole files are renamed into place, so that work is done twice there and never damaged.
    """
    with contextlib.ExitStack() as held:
        for path in sorted(map(Path, set(paths))):  # in one order everywhere, or two processes wait for each other
            held.enter_context(_locked(path, wait))
        yield


def once(unit: Unit, make: Callable[[], Any]) -> Unit:
    """Make a unit in one process at a time, and not at all where it is done."""
    if not unit.done():
        with alone(unit.path):
            if not unit.done():
                make()
    return unit


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "ab") as handle:
            _lock(handle, path, wait)
            if not _is_at(handle, lock):  # whoever had it has removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _lock(handle: Any, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        announce(f"{path.name}: {_ELSEWHERE}, {'waiting for that' if wait else 'going on with the others'}")
        if not wait:
            raise _Elsewhere from None
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        logging.getLogger(__name__).debug("%s cannot be locked: %s", path, error)


def _is_at(handle: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


class StepMeter:
    """Says how far a long unit is, with an estimate, in the terminal of a headless run.

    Parameters
    ----------
    label : str
        What is going on.
    total : int
        Steps in all.
    first : int
        Step it resumed from.
    every : float
        Least seconds between two lines.
    """

    def __init__(self, label: str, total: int, first: int = 0, every: float = 5.0):
        self.label, self.total, self.first, self.every = label, total, first, every
        self.started = self.shown = time.monotonic()

    def __call__(self, step: int, loss: float = float("nan")) -> None:
        """Report a step and its loss, if it has one."""
        now = time.monotonic()
        done = step - self.first
        if now - self.shown < self.every or done < 1:
            return
        self.shown = now
        left = _clock((now - self.started) / done * (self.total - step))
        value = "" if math.isnan(loss) else f", loss {loss:.4f}"
        announce(f"{self.label}: step {step}/{self.total}{value}, about {left} left")

    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self.started
