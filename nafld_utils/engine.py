"""Where work runs: one seam that maps a function over independent units, and one way to show progress.

Contract: a task is a mapping of picklable keyword arguments; the function is importable, skips a unit that is done
and seals its unit itself. The store of finished units is the queue, so a killed worker or driver costs at most the
units in flight.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from nafld_utils.params import EngineSettings

PROGRESS_FILE = "NAFLD_PROGRESS"  # set by the headless runner: lines written there are shown in its terminal


class UnitError(RuntimeError):
    """Some units failed; the others are done and kept."""


def device(settings: EngineSettings) -> Any:
    """The torch device of these settings.

    Raises
    ------
    ValueError
        ``engine.device`` asks for a GPU that is not there.
    """
    import torch

    if settings.device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", _own_gpu(torch.cuda.device_count()))
    wanted = torch.device(settings.device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"engine.device is {settings.device}, expected that GPU, found {torch.cuda.device_count()} GPUs;"
            " set engine.device=auto or check the driver with `make doctor`."
        )
    return wanted


def _own_gpu(n: int) -> int:
    """GPU of this process: its worker's place among the workers of a machine, so that units do not share one."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # not a Dask worker
        return 0
    # local workers are numbered; a cluster's jobs see the GPUs that Slurm gave them, the first is theirs
    return int(name) % n if isinstance(name, int) else 0


def announce(text: str) -> None:
    """Show one line of progress in the terminal of a headless run; silent elsewhere."""
    path = os.environ.get(PROGRESS_FILE)
    if path:
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as handle:
            handle.write(text + "\n")


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
        if "ipykernel" in sys.modules or sys.stderr.isatty():
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
) -> pd.DataFrame:
    """Run `function(**task)` for every task; a failed task is recorded and the others go on.

    Parameters
    ----------
    function : callable
        Importable at module level; makes one unit.
    tasks : sequence of mapping
        Keyword arguments of each call.
    settings : EngineSettings
        ``serial`` runs in this process, ``local`` in one worker a GPU or core, ``cluster`` on a Dask scheduler.
    label : str
        What the progress line says.
    raise_failed : bool
        Raise after the last task if any failed; else only report in the table.
    unit_of : callable, optional
        The unit of a task, called as `function` is. Tasks whose unit is done are not sent anywhere, so that opening
        finished work starts no workers.

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
    waiting = [i for i, task in enumerate(tasks) if unit_of is None or not unit_of(**task).done()]
    results = [(0.0, "")] * len(tasks)
    for i, result in zip(waiting, _run(function, [tasks[i] for i in waiting], settings, label), strict=True):
        results[i] = result
    rows = []
    for task, (seconds, error) in zip(tasks, results, strict=True):
        plain = {key: value for key, value in task.items() if isinstance(value, str | int | float | bool)}
        rows.append({**plain, "seconds": seconds, "error": error})
    table = pd.DataFrame(rows)
    failed = table[table["error"] != ""] if len(table) else table
    if raise_failed and len(failed):
        first = failed.iloc[0]
        names = ", ".join(f"{k}={first[k]}" for k in table.columns if k not in ("seconds", "error"))
        raise UnitError(
            f"{label}: {len(failed)} of {len(table)} units failed, the first ({names}) with {first['error']};"
            " the others are kept, correct the cause and run again."
        )
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
    if settings.mode == "local":
        try:
            return _gather(_local_client(settings, len(tasks)), function, tasks, label)
        except BaseException:  # an interrupted cell must not leave workers computing
            release_workers()
            raise
    with _cluster_client(settings, len(tasks)) as client:
        return _gather(client, function, tasks, label)


def _guarded(function: Callable[..., Any], task: Mapping[str, Any]) -> tuple[float, str]:
    started = time.perf_counter()
    try:
        function(**task)
    except Exception as error:  # a unit must not take the others down
        logging.getLogger(__name__).debug("unit failed\n%s", traceback.format_exc())
        return time.perf_counter() - started, f"{type(error).__name__}: {error}"
    return time.perf_counter() - started, ""


_workers: dict[tuple[Any, ...], tuple[contextlib.ExitStack, Any]] = {}


def _local_client(settings: EngineSettings, n_tasks: int) -> Any:
    """A Dask client on local processes; they stay for the next call, because starting them costs seconds."""
    from distributed import Client, LocalCluster

    _configure_dask()
    n_workers = min(settings.n_workers or default_workers(), n_tasks)
    inherited = tuple(os.environ.get(name) for name in (PROGRESS_FILE, "NAFLD_ROOT"))
    key = (os.getpid(), settings.threads, os.getcwd(), *inherited)
    if key in _workers:
        client = _workers[key][1]
        if len(client.cluster.workers) < n_workers:
            with thread_environment(settings.threads):
                client.cluster.scale(n_workers)
                client.wait_for_workers(n_workers)
        return client
    release_workers()
    with contextlib.ExitStack() as stack:
        stack.enter_context(thread_environment(settings.threads))
        cluster = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            host="127.0.0.1",
            silence_logs=logging.ERROR,
            memory_limit=0,
        )
    kept = contextlib.ExitStack()
    client = kept.enter_context(Client(kept.enter_context(cluster)))
    _workers[key] = kept, client
    return client


@atexit.register
def release_workers() -> None:
    """Stop the local worker processes that earlier calls left running."""
    while _workers:
        key, (kept, _) = _workers.popitem()
        if key[0] == os.getpid():  # a forked child does not own them
            kept.close()


def _configure_dask() -> None:
    import dask

    # Dask sets MALLOC_TRIM_THRESHOLD_ low in its workers; torch then spends its time returning pages to the system.
    keep_pages = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**30}
    dask.config.set({"distributed.comm.timeouts.connect": "60s", "distributed.nanny.pre-spawn-environ": keep_pages})


@contextlib.contextmanager
def _cluster_client(settings: EngineSettings, n_tasks: int) -> Iterator[Any]:
    """A Dask client on a running scheduler or a Slurm cluster."""
    from distributed import Client

    _configure_dask()
    if settings.address:
        with Client(settings.address) as client:
            yield client
        return
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ValueError(
            "engine.mode is cluster without engine.address: expected dask-jobqueue, found none;"
            " install the slurm extra."
        ) from None
    with SLURMCluster(**settings.slurm) as cluster, Client(cluster) as client:
        cluster.scale(jobs=settings.n_workers or n_tasks)
        yield client


def _gather(client: Any, function: Callable[..., Any], tasks: list[Any], label: str) -> list[tuple[float, str]]:
    from distributed import as_completed

    futures = [client.submit(_guarded, function, task, pure=False) for task in tasks]
    place = {future.key: i for i, future in enumerate(futures)}
    results: list[tuple[float, str]] = [(float("nan"), "not run")] * len(tasks)
    for future in progress(as_completed(futures), label, total=len(futures)):
        try:
            results[place[future.key]] = future.result()
        except Exception as error:  # the worker died more often than Dask allows
            results[place[future.key]] = (float("nan"), f"{type(error).__name__}: {error}")
    return results


def default_workers() -> int:
    """One worker a GPU, else one a core this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return cores()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextlib.contextmanager
def thread_environment(threads: int) -> Iterator[None]:
    """Set the thread counts that child processes inherit; worker processes and OpenMP fight over cores otherwise."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def compute_threads(n: int) -> Iterator[None]:
    """Let torch compute with `n` threads in this process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_threads(settings: EngineSettings) -> contextlib.AbstractContextManager[None]:
    """Compute here with as many threads as a worker has, so that sums round as there; serial changes nothing."""
    return contextlib.nullcontext() if settings.mode == "serial" else compute_threads(settings.threads)


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
