"""The processes of this machine that make units: the standard library's, over pipes, so that nobody can reach them.

Contract: a worker makes one unit at a time and ends with the process that started it. One that dies is replaced, and
costs the unit that it was making and no other. Nothing here knows what a unit is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from nafld_utils.engine import devices
from nafld_utils.engine.progress_lines import PROGRESS_FILE
from nafld_utils.params import EngineSettings

# Choice: a process begun anew has no lock or thread of this one, and a server that forks would listen on a socket.
_SPAWN = multiprocessing.get_context("spawn")
DEATHS = 4  # workers that a task may take with it, before it is given up (choice)
GRACE = 5.0  # s for an interrupted unit to end (choice)


class KilledWorker(RuntimeError):
    """Every worker that began a task died."""

    def __init__(self) -> None:
        super().__init__("every worker that began it died, out of memory or killed by hand; give a worker more memory")


class Waiting:
    """Numbers of tasks that have not begun; one may begin when those that it needs, by number, have been made.

    `needs` holds for each task all that it needs, also by way of others.
    """

    def __init__(self, needs: Sequence[Collection[int]]):
        self._needs = needs
        self._numbers, self._missing = list(range(len(needs))), set(range(len(needs)))

    def next(self) -> int | None:
        """Take the first that may begin; None where there is none now."""
        found = next((i for i in self._numbers if self._missing.isdisjoint(self._needs[i])), None)
        if found is not None:
            self._numbers.remove(found)
        return found

    def again(self, i: int) -> None:
        """Put back one that was taken."""
        self._numbers.append(i)

    def made(self, i: int) -> None:
        """Let those begin that needed this one."""
        self._missing.discard(i)


def run(
    call: Callable[[Any], Any], tasks: Sequence[Any], settings: EngineSettings, waiting: Waiting
) -> Iterator[tuple[int, Any]]:
    """Yield number and result of each task as it ends; in place of a result the exception that kept it from one.

    Which tasks may begin is looked up after each, so that whoever takes a result says before the next what it made.
    """
    deaths = Counter[int]()
    doing: dict[Future[Any], tuple[_Worker, int]] = {}
    try:
        free = _workers(min(settings.n_workers or devices.default_workers(), len(tasks)))
        while True:
            while free and (i := waiting.next()) is not None:
                worker = free.pop()
                doing[worker.submit(call, tasks[i])] = worker, i
            if not doing:
                return
            for future in wait(doing, return_when=FIRST_COMPLETED).done:
                worker, i = doing.pop(future)
                free.append(worker)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    deaths[i] += 1
                    error = KilledWorker()
                    if deaths[i] < DEATHS:
                        waiting.again(i)
                        continue
                yield i, error or future.result()
    except BaseException:  # an interrupted cell must not leave workers computing
        release_workers()
        raise


class _Worker:
    """One process, in a pool of its own: a pool ends all its processes where one of them dies."""

    def __init__(self, number: int):
        self.number = number
        self.start()

    def start(self) -> None:
        """A fresh pool; its process starts with its first task."""
        reader, self.lifeline = _SPAWN.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, _SPAWN, _begin, (reader, self.number))

    def submit(self, call: Callable[[Any], Any], task: Any) -> Future[Any]:
        """Begin a task, in a fresh process where this one has died."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: Ctrl-C is the driver's alone
        try:
            with contextlib.suppress(BrokenProcessPool):
                return self.pool.submit(_work, call, task)
            self.stop()
            self.start()
            return self.pool.submit(_work, call, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.lifeline.close()
        self.pool.shutdown()


_kept: dict[tuple[Any, ...], list[_Worker]] = {}


def _workers(n: int) -> list[_Worker]:
    """The first `n` workers; they stay for the next call, because starting them costs seconds."""
    key = (os.getpid(), os.getcwd(), *map(os.environ.get, (PROGRESS_FILE, "NAFLD_ROOT")))
    if key not in _kept:
        release_workers()
    kept = _kept.setdefault(key, [])
    kept += [_Worker(number) for number in range(len(kept), n)]
    return kept[:n]


def release_workers() -> None:
    """End the worker processes that earlier calls left running."""
    while _kept:
        (pid, *_), workers = _kept.popitem()
        for worker in workers if pid == os.getpid() else ():  # a forked child does not own them
            worker.stop()


_working = threading.Lock()  # held in a worker while it makes a unit


def _work(call: Callable[[Any], Any], task: Any) -> Any:
    with _working:
        return call(task)


def _begin(lifeline: Connection, number: int) -> None:
    """What a worker does first."""
    devices.be_worker(number)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Thread(target=_end_with_driver, args=(lifeline,), daemon=True).start()


def _end_with_driver(lifeline: Connection) -> None:
    """Wait for the end of a pipe that is never written to: the driver has closed it, or has died.

    A unit in the making is interrupted, so that it removes what is half written.
    """
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    if not _working.acquire(blocking=False):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        _working.acquire(timeout=GRACE)
    os._exit(1)
