"""Workers elsewhere, through Dask: those of a running scheduler, or jobs of Slurm.

Contract: both take orders from this process alone where TLS is on: always with Slurm, and with a running scheduler by
``engine.tls``. Workers make one unit at a time with ``engine.threads`` threads. Nothing here knows what a unit is.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import queue
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nafld_utils.artifacts import work_root
from nafld_utils.engine.devices import THREAD_VARIABLES
from nafld_utils.engine.progress_lines import announce, notice
from nafld_utils.engine.workers import KilledWorker
from nafld_utils.params import EngineSettings

# Dask sets MALLOC_TRIM_THRESHOLD_ low in its workers; torch then spends its time returning pages to the system.
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**30}
CONNECT_SECONDS = 20.0  # for a scheduler that should be running already
LOOPBACK = "127.0.0.1:0"  # Dask serves facts about itself even without its dashboard: to nobody elsewhere
LOOK_EVERY = 5.0  # s between two looks after the workers


def run(
    call: Callable[[Any], Any], tasks: Sequence[Any], settings: EngineSettings, label: str
) -> Iterator[tuple[int, Any]]:
    """Yield number and result of each task as it ends, as `workers.run`; says meanwhile when workers lack.

    ValueError where no scheduler answers at ``engine.address``, or Slurm is absent or refuses ``engine.slurm``.
    """
    with _running_scheduler(settings) if settings.address else _slurm(settings, len(tasks)) as (client, look_after):
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        futures = [client.submit(call, task, pure=False) for task in tasks]
        numbers = {future.key: i for i, future in enumerate(futures)}
        for future in futures:
            future.add_done_callback(finished.put)
        lacking, looked = "", time.monotonic()
        while numbers:
            try:
                future = finished.get(timeout=max(0.0, looked + LOOK_EVERY - time.monotonic()))
            except queue.Empty:
                before, lacking, looked = lacking, look_after(), time.monotonic()
                if lacking != before:
                    announce(f"{label}: {lacking or 'all workers are there'}")
            else:
                yield numbers.pop(future.key), _fetch(future, look_after)
                future.release()  # else the unit is done again where the worker that remembers its result dies


def _fetch(future: Any, look_after: Callable[[], str]) -> Any:
    from distributed import KilledWorker as Killed

    while True:
        try:
            return future.result(timeout=LOOK_EVERY)
        except TimeoutError:  # the worker that remembered it has died in the meantime; it is done again
            look_after()
        except Killed:
            return KilledWorker()
        except Exception as error:
            return error


def _security(folder: str | Path, settings: EngineSettings) -> Any:
    """TLS with the files of ``engine.tls``, or with a key that is made in `folder` and speaks for itself."""
    from distributed import Security

    tls = settings.tls
    ca, cert, key = (str(Path(name or "").expanduser().absolute()) for name in (tls.ca, tls.cert, tls.key))
    if not tls.ca:
        cert, key = (str(Path(folder) / name) for name in ("cert.pem", "key.pem"))
        ca, command = cert, ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-nodes", "-days", "365", "-subj", "/CN=nafld-ldm", "-keyout", key, "-out", cert]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"engine.tls is empty, expected openssl to make a key for Slurm's jobs, found {error}; install openssl"
                " or name the files of engine.tls."
            ) from None
    for name in (ca, cert, key):
        if not Path(name).is_file():
            raise ValueError(f"engine.tls: expected the PEM file {name}, found none; correct its path.")
    roles = ("client", "scheduler", "worker")
    files = {f"tls_{role}_{what}": path for role in roles for what, path in (("cert", cert), ("key", key))}
    return Security(tls_ca_file=ca, require_encryption=True, **files)


@contextlib.contextmanager
def _running_scheduler(settings: EngineSettings) -> Iterator[tuple[Any, Callable[[], str]]]:
    from distributed import Client

    address = settings.address
    if not settings.tls.ca:
        notice(
            f"engine.address {address} without engine.tls: whoever reaches that scheduler can run code as its workers'"
            " user; give it TLS wherever others use the machine or the network."
        )
    security = _security("", settings) if settings.tls.ca else None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, security=security)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"engine.address is {address}, expected a running Dask scheduler, found none ({error});"
            " start one with `dask scheduler` or correct the address."
        ) from None
    with client:
        yield client, lambda: "" if client.nthreads() else f"no worker is connected to {address}"


@contextlib.contextmanager
def _slurm(settings: EngineSettings, n_tasks: int) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A Dask client on ``engine.n_workers`` Slurm jobs, which end with the call so that no node stands idle."""
    jobqueue = _dask_jobqueue()
    from distributed import Client

    if settings.n_workers is None:
        raise ValueError("engine.n_workers is null, expected the number of Slurm jobs for engine.mode=cluster; set it.")
    if shutil.which("sbatch") is None:
        raise ValueError(
            "engine.mode is cluster without engine.address: expected Slurm's sbatch on PATH, found none;"
            " start the run where jobs can be submitted, or set engine.address."
        )
    options = job_options(settings)
    Path(options["log_directory"]).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # a folder that Slurm's jobs share with this process, and nobody else can read
        keys = stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-", dir=options["log_directory"]))
        security = _security(keys, settings)
        try:
            cluster = jobqueue.SLURMCluster(**{"security": security, **options}, job_cls=_job_class())
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise ValueError(f"engine.slurm: {' '.join(str(error).split())}") from None
        stack.enter_context(cluster)
        _ask_slurm(cluster.job_script())
        jobs = SlurmJobs(cluster, min(settings.n_workers, n_tasks), options["log_directory"])
        cluster.scale(jobs=jobs.n)
        yield stack.enter_context(Client(cluster)), jobs.look_after


def _dask_jobqueue() -> ModuleType:
    """The library, which takes Ctrl-C for itself when it is imported: that is given back."""
    before = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError:
        raise ValueError(
            "engine.mode is cluster without engine.address: expected dask-jobqueue, found none;"
            " install the slurm extra."
        ) from None
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
    return dask_jobqueue


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
    jobqueue = _dask_jobqueue()
    from dask_jobqueue.slurm import SLURMJob

    known = {
        name
        for cls in (jobqueue.core.Job, jobqueue.JobQueueCluster, SLURMJob)
        for name in inspect.signature(cls).parameters
    }
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
        "worker_extra_args": [
            "--no-dashboard",
            "--dashboard-address",
            LOOPBACK,
            *given.get("worker_extra_args", []),
            *worker,
        ],
        "scheduler_options": {"dashboard": False, "dashboard_address": LOOPBACK, **given.get("scheduler_options", {})},
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
