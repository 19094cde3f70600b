"""The processes that make units: this machine's, those of a running Dask scheduler, or jobs of Slurm.

Contract: a *pool* is a Dask client and a function that looks after its workers; whoever waits for results calls it
every few seconds. Workers make one unit at a time with ``engine.threads`` threads. Nothing here knows what a unit is.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import inspect
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from nafld_utils.artifacts import work_root
from nafld_utils.engine.devices import KEEP_PAGES, THREAD_VARIABLES, default_workers, own_environment
from nafld_utils.engine.progress_lines import PROGRESS_FILE
from nafld_utils.params import EngineSettings

CLOSE_SECONDS = 15.0
CONNECT_SECONDS = 20.0  # for a scheduler that should be running already


@contextlib.contextmanager
def open_pool(settings: EngineSettings, n_tasks: int) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A Dask client with at most `n_tasks` workers, and a function that looks after them.

    That function replaces workers that are gone for good and returns a sentence on what is lacking, or nothing.
    ValueError where no scheduler answers at ``engine.address``, or Slurm is absent or refuses ``engine.slurm``.
    """
    _configure_dask()
    if settings.mode == "cluster":
        with _running_scheduler(settings.address) if settings.address else _slurm(settings, n_tasks) as pool:
            yield pool
        return
    try:
        yield _local_client(settings, n_tasks), str  # its nannies restart a worker that dies
    except BaseException:  # an interrupted cell must not leave workers computing
        release_workers()
        raise


_workers: dict[tuple[Any, ...], Any] = {}  # the Dask client that is kept


def _local_client(settings: EngineSettings, n_tasks: int) -> Any:
    """A Dask client on local processes; they stay for the next call, because starting them costs seconds."""
    from distributed import Client, LocalCluster

    n_workers = min(settings.n_workers or default_workers(), n_tasks)
    inherited = tuple(os.environ.get(name) for name in (PROGRESS_FILE, "NAFLD_ROOT"))
    key = (os.getpid(), settings.threads, os.getcwd(), *inherited)
    if key not in _workers:
        release_workers()
        with own_environment():
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                host="127.0.0.1",
                silence_logs=logging.ERROR,
                memory_limit=0,
            )
        _workers[key] = Client(cluster)
    client = _workers[key]
    if len(client.cluster.workers) < n_workers:
        with own_environment():
            client.cluster.scale(n_workers)
            client.wait_for_workers(n_workers)
    return client


@atexit.register
def release_workers() -> None:
    """Stop the local worker processes that earlier calls left running."""
    while _workers:
        key, client = _workers.popitem()
        if key[0] != os.getpid():  # a forked child does not own them
            continue
        client.close()
        # Dask waits for ever where a worker has just died, and its processes end with this one
        with contextlib.suppress(TimeoutError):
            client.cluster.close(timeout=CLOSE_SECONDS)


def _configure_dask() -> None:
    import dask

    keep_pages = dict(KEEP_PAGES)  # a copy, because Dask writes its defaults into it
    dask.config.set({"distributed.comm.timeouts.connect": "60s", "distributed.nanny.pre-spawn-environ": keep_pages})


@contextlib.contextmanager
def _running_scheduler(address: str) -> Iterator[tuple[Any, Callable[[], str]]]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"engine.address is {address}, expected a running Dask scheduler, found none ({error});"
            " start one with `dask scheduler` or correct the address."
        ) from None
    with client:
        yield client, lambda: "" if client.nthreads() else f"no worker is connected to {address}"


@contextlib.contextmanager
def _slurm(settings: EngineSettings, n_tasks: int) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A Dask client on ``engine.n_workers`` Slurm jobs, which end with the call so that no node stands idle."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ValueError(
            "engine.mode is cluster without engine.address: expected dask-jobqueue, found none;"
            " install the slurm extra."
        ) from None
    from distributed import Client

    if settings.n_workers is None:
        raise ValueError("engine.n_workers is null, expected the number of Slurm jobs for engine.mode=cluster; set it.")
    if shutil.which("sbatch") is None:
        raise ValueError(
            "engine.mode is cluster without engine.address: expected Slurm's sbatch on PATH, found none;"
            " start the run where jobs can be submitted, or set engine.address."
        )
    options = job_options(settings)
    try:
        cluster = SLURMCluster(**options, job_cls=_job_class())
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise ValueError(f"engine.slurm: {' '.join(str(error).split())}") from None
    with cluster:
        _ask_slurm(cluster.job_script())
        jobs = SlurmJobs(cluster, min(settings.n_workers, n_tasks), options["log_directory"])
        cluster.scale(jobs=jobs.n)
        with Client(cluster) as client:
            yield client, jobs.look_after


def _job_class() -> type:
    """Slurm's job of dask-jobqueue, which forgets to say that it is closed; Dask asserts that when a cluster ends."""
    from dask_jobqueue.slurm import SLURMJob
    from distributed import Status

    class ClosedJob(SLURMJob):
        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return ClosedJob


def job_options(settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of `dask_jobqueue.SLURMCluster`: those of ``engine.slurm`` and what a unit needs of a worker.

    ValueError names the nearest key to one that SLURMCluster does not take.
    """
    from dask_jobqueue.core import Job, JobQueueCluster
    from dask_jobqueue.slurm import SLURMJob

    known = {name for cls in (Job, JobQueueCluster, SLURMJob) for name in inspect.signature(cls).parameters}
    for key in settings.slurm:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"engine.slurm: expected keyword arguments of dask_jobqueue.SLURMCluster, found {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else "; remove it.")
            )
    given = dict(settings.slurm)
    exports = {**dict.fromkeys(THREAD_VARIABLES, settings.threads), **KEEP_PAGES}
    prologue = [f"export {name}={value}" for name, value in exports.items()]
    # One unit at a time per process. Slurm watches the memory; Dask would count pages of shared, memory-mapped files.
    worker = ["--nthreads", "1", "--memory-limit", "0"]
    return {
        "processes": max(1, int(given.get("cores") or 1) // settings.threads),
        "log_directory": str(work_root().resolve() / "artifacts" / ".slurm"),
        **given,
        "job_script_prologue": [*prologue, *given.get("job_script_prologue", [])],
        "worker_extra_args": [*given.get("worker_extra_args", []), *worker],
        "scheduler_options": {"dashboard_address": ":0", **given.get("scheduler_options", {})},
    }


def _ask_slurm(script: str) -> None:
    """Let Slurm check a job without submitting it: a wrong partition or account shows here and not in a silent wait."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as handle:
        handle.write(script)
        handle.flush()
        done = subprocess.run(["sbatch", "--test-only", handle.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"engine.slurm: expected a job that Slurm accepts, found {' '.join(done.stderr.split())!r};"
            " correct the key it speaks of."
        )


class SlurmJobs:
    """Keeps `n` jobs of a SLURMCluster alive, through the end of their walltime, scancel and lost nodes."""

    def __init__(self, cluster: Any, n: int, log_directory: str):
        self.cluster, self.n, self.log_directory = cluster, n, log_directory
        self.connected: set[str] = set()  # jobs whose worker has connected at some time
        self.stillborn = 0  # jobs that ended before that, since the last one that did not

    def look_after(self) -> str:
        """Submit jobs anew in place of those that are gone; says how many run where fewer than `n` do.

        RuntimeError where job after job ends before its worker connects.
        """
        # before the queue is asked, so that a new job is never taken for a lost one
        jobs = {name: job.job_id for name, job in self.cluster.workers.items()}
        queued = _queued()
        if queued is None:  # the controller does not answer; it may the next time
            return "Slurm does not answer"
        workers = [str(worker["name"]) for worker in self.cluster.scheduler_info["workers"].values()]
        alive = {name for name in jobs if any(w == name or w.startswith(f"{name}-") for w in workers)}
        gone = {name for name, number in jobs.items() if name not in alive and number not in queued}
        self._count(alive, gone)
        if (gone or len(jobs) < self.n) and self.stillborn < 3 * self.n:
            self.cluster.sync(self.cluster.scale_down, list(gone))
            self.cluster.scale(jobs=self.n)
        return "" if len(alive) >= self.n else f"{len(alive)} of {self.n} Slurm jobs run"

    def _count(self, alive: set[str], gone: set[str]) -> None:
        if alive - self.connected:
            self.stillborn = 0
        self.connected |= alive
        self.stillborn += len(gone - self.connected)
        if self.stillborn >= 3 * self.n and not alive:
            raise RuntimeError(
                f"Slurm: {self.stillborn} jobs ended before their Dask workers connected, expected them to connect;"
                f" read the jobs' output in {self.log_directory}, correct engine.slurm (interface, memory, walltime)"
                " and run again; what is finished is kept."
            )


def _queued() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None where Slurm does not answer."""
    command = ["squeue", "--noheader", "--me", "--format=%A"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(found.stdout.split())
