"""Sweeps through Slurm: a real one on the loopback interface, and what is said where jobs do not come to life."""

import collections
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import listeners
import psutil
import pytest
import toy_sweep
import toy_units
from project import PROJECT

from nafld_utils import engine, params

sys.path.append(str(PROJECT / "tests" / "slurm"))
import loopback

JOB = {"cores": 1, "memory": "1GB", "interface": "lo", "walltime": "00:10:00"}


def settings(**changes):
    chosen = {"mode": "cluster", "n_workers": 2, "slurm": JOB, **changes}
    return params.load("smoke", {f"engine.{key}": value for key, value in chosen.items()}).engine


# ---------------------------------------------------------------- a real Slurm


@pytest.fixture(scope="module")
def slurm():
    if loopback.missing():
        pytest.skip(loopback.missing())
    with loopback.loopback(cpus=2) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", running.environment["SLURM_CONF"])
        patch.setenv("PYTHONPATH", str(PROJECT / "tests" / "faults"))  # the workers import the toy sweep
        patch.setattr(engine.cluster, "LOOK_EVERY", 1.0)
        yield running


class Cancel(threading.Thread):
    """Cancels the first running job once some trials are written; knows which one and what came in its place."""

    def __init__(self, slurm, store):
        super().__init__(daemon=True)
        self.slurm, self.store, self.jobs, self.ended = slurm, store, set(), threading.Event()

    def run(self):
        cancelled = False
        while not self.ended.wait(0.2):
            running = self.slurm("squeue", "-h", "-t", "RUNNING", "-o", "%A").split()
            self.jobs |= set(running)
            if running and not cancelled and sum(what == "wrote" for what, _, _ in toy_sweep.diary(self.store)) >= 4:
                self.slurm("scancel", running[0])
                cancelled = True


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_a_sweep_through_slurm_outlives_a_cancelled_job(slurm, tmp_path, monkeypatch):
    store, progress = tmp_path / "sweep", tmp_path / "progress"
    monkeypatch.setenv(engine.PROGRESS_FILE, str(progress))
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    cancel = Cancel(slurm, store)
    cancel.start()
    try:
        toy_sweep.run(store, mode="cluster", n_workers=2, slurm=JOB, seconds=0.4)
    finally:
        cancel.ended.set()
        cancel.join(60)
    assert len(cancel.jobs) == 3, "two jobs, and one in place of the cancelled one"
    assert len({pid for _, _, pid in toy_sweep.diary(store)}) >= 2
    assert not slurm("squeue", "-h", "-t", "PENDING,RUNNING", "-o", "%A").split(), "a job outlives its sweep"
    assert list((tmp_path / "artifacts" / ".slurm").glob("dask-worker-*.err"))
    said = progress.read_text()
    assert "toy trainings: 40/40 in" in said
    assert "toy trainings: 1 of 2 Slurm jobs run" in said
    monkeypatch.delenv(engine.PROGRESS_FILE)
    toy_sweep.check(store, n_killed=1)


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_slurm_refuses_a_job_before_anything_waits_for_it(slurm):
    job = {**JOB, "queue": "nowhere"}
    with pytest.raises(ValueError, match=r"engine\.slurm: expected a job that Slurm accepts, found .*partition"):
        engine.map_units(toy_sweep.train, [{"store": "x"}], settings(slurm=job), "refused")


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_jobs_that_slurm_starts_in_vain_end_the_sweep_with_a_sentence(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    job = {**JOB, "job_script_prologue": ["exit 1"]}
    with pytest.raises(RuntimeError, match=r"Slurm: 3 jobs ended before .* read the jobs' output in .*\.slurm"):
        toy_sweep.run(tmp_path / "sweep", mode="cluster", n_workers=1, slurm=job)


# ---------------------------------------------------------------- without Slurm


def test_a_job_gets_one_unit_at_a_time_and_the_threads_of_the_settings():
    job = {"cores": 4, "memory": "8GB", "job_script_prologue": ["module load cuda"]}
    options = engine.cluster.job_options(settings(threads=2, slurm=job))
    assert options["processes"] == 2
    assert "export OMP_NUM_THREADS=2" in options["job_script_prologue"]
    assert options["job_script_prologue"][-1] == "module load cuda"
    assert options["worker_extra_args"] == [
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--nthreads", "1", "--memory-limit", "0"),
    ]
    from dask_jobqueue.slurm import SLURMJob

    known = {key: value for key, value in options.items() if key != "scheduler_options"}
    script = SLURMJob("tcp://127.0.0.1:1", name="job", **{**known, "log_directory": None}).job_script()
    assert "--nworkers 2" in script
    assert script.rstrip().endswith("--nthreads 1 --memory-limit 0")


def test_a_library_of_clusters_leaves_ctrl_c_to_those_who_use_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.getsignal(signal.SIGINT)
    engine.cluster.job_options(settings())
    assert "dask_jobqueue.runner" in sys.modules
    assert signal.getsignal(signal.SIGINT) is before


def test_a_misspelled_key_of_a_job_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"engine\.slurm: .*found 'walltme'; did you mean 'walltime'\?"):
        engine.cluster.job_options(settings(slurm={**JOB, "walltme": "1:00"}))


def test_the_number_of_jobs_and_slurm_itself_are_asked_for(monkeypatch):
    with pytest.raises(ValueError, match=r"engine\.n_workers is null, expected the number of Slurm jobs"):
        engine.map_units(toy_sweep.train, [{}], settings(n_workers=None), "x")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"expected Slurm's sbatch on PATH, found none"):
        engine.map_units(toy_sweep.train, [{}], settings(), "x")


class Cluster:
    """What `engine.cluster.SlurmJobs` asks of a cluster; `jobs` maps a name to a job's number."""

    def __init__(self, jobs, connected):
        self.workers = {name: SimpleNamespace(job_id=number) for name, number in jobs.items()}
        self.scheduler_info = {"workers": {f"tcp://{name}": {"name": name} for name in connected}}
        self.removed, self.wanted = [], []

    def sync(self, function, names):
        function(names)

    def scale_down(self, names):
        self.removed += names
        self.workers = {name: job for name, job in self.workers.items() if name not in names}

    def scale(self, jobs):
        self.wanted.append(jobs)


def queue_holds(monkeypatch, *numbers):
    answer = SimpleNamespace(stdout="\n".join(numbers))
    monkeypatch.setattr(engine.cluster.subprocess, "run", lambda *args, **kwargs: answer)


def test_jobs_that_are_gone_are_replaced_and_waiting_ones_are_not(monkeypatch):
    queue_holds(monkeypatch, "11", "12")
    cluster = Cluster({"job-1": "11", "job-2": "12", "job-3": "13"}, connected=["job-1-0", "job-1-1"])
    jobs = engine.cluster.SlurmJobs(cluster, 3, "logs")
    assert jobs.look_after() == "1 of 3 Slurm jobs run"
    assert (cluster.removed, cluster.wanted) == (["job-3"], [3])


def test_nothing_is_replaced_while_all_jobs_run_or_slurm_does_not_answer(monkeypatch):
    cluster = Cluster({"job-1": "11"}, connected=["job-1"])
    jobs = engine.cluster.SlurmJobs(cluster, 1, "logs")
    queue_holds(monkeypatch, "11")
    assert jobs.look_after() == ""

    def silent(*args, **kwargs):
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr(engine.cluster.subprocess, "run", silent)
    cluster.scheduler_info["workers"].clear()
    assert jobs.look_after() == "Slurm does not answer"
    assert not cluster.wanted


def test_jobs_that_never_come_to_life_end_the_sweep_with_a_sentence(monkeypatch):
    queue_holds(monkeypatch)
    cluster = Cluster({}, connected=[])
    jobs = engine.cluster.SlurmJobs(cluster, 1, "logs")
    for number in range(2):
        cluster.workers = {f"job-{number}": SimpleNamespace(job_id=str(number))}
        jobs.look_after()
    cluster.workers = {"job-2": SimpleNamespace(job_id=None)}  # it could not even be submitted
    with pytest.raises(RuntimeError, match=r"Slurm: 3 jobs ended before .* read the jobs' output in logs"):
        jobs.look_after()


def test_a_job_that_ran_is_replaced_as_often_as_its_time_ends(monkeypatch):
    queue_holds(monkeypatch)
    cluster = Cluster({"job-0": "0"}, connected=["job-0"])
    jobs = engine.cluster.SlurmJobs(cluster, 1, "logs")
    for number in range(10):
        cluster.workers = {f"job-{number}": SimpleNamespace(job_id=str(number))}
        cluster.scheduler_info = {"workers": {"tcp://x": {"name": f"job-{number}"}}}
        jobs.look_after()
        cluster.scheduler_info = {"workers": {}}
        jobs.look_after()
    assert cluster.removed == [f"job-{number}" for number in range(10)]


def test_a_scheduler_that_is_not_there_and_one_without_workers(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(engine.cluster, "CONNECT_SECONDS", 1.0)
    with pytest.raises(ValueError, match=r"engine\.address is tcp://127\.0\.0\.1:1, expected a running Dask scheduler"):
        engine.map_units(toy_sweep.train, [{}], settings(address="tcp://127.0.0.1:1"), "x")
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as scheduler:
        monkeypatch.setattr(engine.cluster, "LOOK_EVERY", 0.1)
        monkeypatch.setattr(engine.cluster, "announce", said)
        address = scheduler.scheduler_address
        with pytest.raises(LookupError, match=f"x: no worker is connected to {address}"):
            engine.map_units(toy_sweep.train, [{}], settings(address=address), "x")


def said(text):
    raise LookupError(text)


# ---------------------------------------------------------------- others on the machine


def key(folder):
    """Settings of a key of its own in PEM, which speaks for itself."""
    folder.mkdir()
    made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=toy"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(["openssl", "req", "-x509", *made, *files], check=True, capture_output=True)
    return {"tls.ca": str(folder / "cert"), "tls.cert": str(folder / "cert"), "tls.key": str(folder / "key")}


@pytest.mark.faults
@pytest.mark.promise("others")
def test_a_scheduler_with_tls_takes_orders_from_its_key_alone(tmp_path, monkeypatch, caplog, record_property):
    from distributed import LocalCluster, Security

    own, other = key(tmp_path / "own"), key(tmp_path / "other")
    roles = ("scheduler", "worker", "client")
    files = {f"tls_{role}_{what}": own[f"tls.{what}"] for role in roles for what in ("cert", "key")}
    security = Security(tls_ca_file=own["tls.ca"], require_encryption=True, **files)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    (tmp_path / "units").mkdir()
    tasks = [{"folder": str(tmp_path / "units"), "name": str(i)} for i in range(4)]
    with LocalCluster(security=security, protocol="tls://", host="127.0.0.1", **options) as scheduler:
        address = scheduler.scheduler_address
        assert (
            engine.map_units(toy_units.touch, tasks, settings(address=address, **own), "x")["error"].tolist()
            == [""] * 4
        )
        assert "without engine.tls" not in caplog.text
        monkeypatch.setattr(engine.cluster, "CONNECT_SECONDS", 2.0)
        refused = [(address, {}), (address.replace("tls://", "tcp://"), {}), (address, other)]
        for where, keys in refused:
            with pytest.raises(
                ValueError, match=r"engine\.address is .*, expected a running Dask scheduler, found none"
            ):
                engine.map_units(toy_units.touch, tasks, settings(address=where, **keys), "x")
    assert "without engine.tls: whoever reaches that scheduler can run code" in caplog.text
    record_property("cases", len(refused))


@pytest.mark.faults
@pytest.mark.promise("others")
def test_slurm_jobs_and_their_scheduler_listen_at_their_interface_and_take_no_order_without_the_key(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert listeners.listeners(psutil.Process()) == set()
    tasks = [{"folder": str(tmp_path), "driver": os.getpid()}]
    table = engine.map_units(listeners.note, tasks, settings(n_workers=1), "x")
    assert table["error"].tolist() == [""]
    found = collections.Counter(tuple(line.split()) for line in (tmp_path / "found").read_text().splitlines())
    assert set(found) == {("refused", "127.0.0.1"), ("health", "127.0.0.1")}
    assert found["refused", "127.0.0.1"] >= 3, "scheduler, nanny and worker"
    assert not list((tmp_path / "artifacts" / ".slurm").glob("tls-*")), "a key outlives its call"
