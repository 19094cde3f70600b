"""This machine's workers: out of everybody's reach, ended with their driver, and replaced one by one."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import toy_units
from project import PROJECT

from nafld_utils import engine, params
from nafld_utils.engine import workers

SETTINGS = params.load("smoke", {"engine.mode": "local", "engine.n_workers": 2}).engine
DRIVER = (
    "import sys, toy_units; from nafld_utils import engine, params;"
    "settings = params.load('smoke', {'engine.mode': 'local', 'engine.n_workers': 2}).engine;"
    "tasks = [{'folder': sys.argv[1], 'name': str(i), 'seconds': 300.0} for i in range(2)];"
    "engine.map_units(toy_units.note, tasks, settings, 'toy')"
)
# What another account would try: the ports of a family of processes, what they have open, and to end them.
ATTACK = """
for port in $PORTS; do (exec 3<>/dev/tcp/127.0.0.1/$port) && echo "reached port $port"; done
for pid in $PIDS; do
  for file in /proc/$pid/fd/* /proc/$pid/mem; do (exec 3>>$file) && echo "opened $file"; done
  kill -0 $pid && echo "signalled $pid"
done
"""


def wait_until(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _fresh():
    workers.release_workers()
    yield
    workers.release_workers()


def begin(folder):
    """A driver and the workers of it that are in the midst of their units, as processes."""
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    with open(folder / "said", "wb") as said:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    begun = [folder / f"began-{i}" for i in range(2)]
    wait_until(lambda: driver.poll() is not None or all(path.exists() and path.stat().st_size for path in begun))
    assert driver.poll() is None, (folder / "said").read_text()
    return driver, [psutil.Process(int(path.read_text())) for path in begun]


@pytest.fixture
def family(tmp_path):
    """Driver, workers and whatever else it has begun."""
    driver, _ = begin(tmp_path)
    found = psutil.Process(driver.pid)
    yield [found, *found.children(recursive=True)]
    driver.kill()
    driver.wait(60)


def open_sockets(family):
    return [connection for process in family for connection in process.net_connections("all")]


@pytest.mark.faults
@pytest.mark.promise("others")
def test_local_work_opens_no_port_and_no_socket(family):
    assert len(family) >= 3
    assert open_sockets(family) == []


def as_nobody():
    """What lets a command run as another account; None where this one may not."""
    if os.geteuid() == 0:
        return {"user": 65534, "group": 65534, "extra_groups": []}, []
    is_allowed = (
        subprocess.run(["sudo", "-n", "-u", "nobody", "true"], capture_output=True, check=False).returncode == 0
    )
    return ({}, ["sudo", "-n", "-u", "nobody", "--preserve-env=PORTS,PIDS"]) if is_allowed else None


def attack(family, options, before):
    """What an attack reaches."""
    ports = {str(each.laddr.port) for each in open_sockets(family) if each.status == psutil.CONN_LISTEN}
    targets = {"PORTS": " ".join(ports), "PIDS": " ".join(str(process.pid) for process in family)}
    done = subprocess.run(
        [*before, "bash", "-c", ATTACK],
        env={**os.environ, **targets},
        capture_output=True,
        text=True,
        **options,
        check=False,
    )
    return done.stdout.splitlines()


@pytest.mark.faults
@pytest.mark.promise("others")
def test_another_account_of_this_machine_reaches_nothing_of_a_run(family):
    with contextlib.suppress(FileNotFoundError):
        other = as_nobody()
        if other:
            own = attack(family, {}, [])
            assert {line.split()[0] for line in own} == {"opened", "signalled"}, "the attack itself does not work"
            assert attack(family, *other) == []
            return
    pytest.skip("another account can be tried by root or with sudo alone")


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    driver, made = begin(tmp_path)
    driver.kill()
    driver.wait(60)
    gone, alive = psutil.wait_procs(made, timeout=30)
    assert (len(gone), alive) == (2, [])
    assert not list(tmp_path.glob("half-*")), "something half-written is left"


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_an_interrupt_ends_the_workers_in_the_midst_of_their_units(tmp_path, request):
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Python's own: another test's library may have its own
    tasks = [{"folder": str(tmp_path), "name": str(i), "seconds": 300.0} for i in range(3)]
    begun = [tmp_path / f"began-{i}" for i in range(2)]
    made = []

    def interrupt():
        wait_until(lambda: all(path.exists() and path.stat().st_size for path in begun))
        made.extend(psutil.Process(int(path.read_text())) for path in begun)
        for process in [*made, psutil.Process()]:  # as a terminal does, which the workers are to overhear
            process.send_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine.map_units(toy_units.note, tasks, SETTINGS, "toy")
    assert len(made) == 2
    assert psutil.wait_procs(made, timeout=30)[1] == []
    assert not (tmp_path / "began-2").exists()
    assert not list(tmp_path.glob("half-*")), "something half-written is left"


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_a_worker_that_dies_takes_no_other_with_it_and_its_unit_is_given_up_in_the_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(workers, "DEATHS", 2)
    slow = {"folder": str(tmp_path), "name": "slow", "seconds": 3.0}
    deadly = {"folder": str(tmp_path), "name": "deadly", "deadly": True}
    last = {"folder": str(tmp_path), "name": "last"}
    table = engine.map_units(toy_units.note, [slow, deadly, last], SETTINGS, "toy", raise_failed=False)
    assert table["killed"].tolist() == [False, True, False]
    assert table["error"].tolist()[1].startswith("KilledWorker: every worker that began it died")
    assert "toy: 1 of 3 units failed, the first" in caplog.text
    begun = {name: len((tmp_path / f"began-{name}").read_text().split()) for name in ("slow", "deadly", "last")}
    assert begun == {"slow": 1, "deadly": 2, "last": 1}


@pytest.mark.faults
@pytest.mark.promise("sweep")
def test_workers_that_died_between_two_calls_are_replaced_unnoticed(tmp_path):
    for i in range(2):
        tasks = [{"folder": str(tmp_path), "name": f"{i}-{k}", "seconds": 0.5} for k in range(2)]
        table = engine.map_units(toy_units.note, tasks, SETTINGS, "toy")
        assert table["killed"].tolist() == [False, False]
        pids = [int((tmp_path / f"began-{i}-{k}").read_text()) for k in range(2)]
        assert len(set(pids)) == 2
        for process in map(psutil.Process, pids):
            process.kill()
        wait_until(lambda pids=pids: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_worker_knows_its_number_and_overhears_ctrl_c():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    found = dict(workers.run(toy_units.facts_of, [0.5, 0.5], SETTINGS, workers.Waiting([(), ()])))
    assert sorted(found.values()) == [(0, True), (1, True)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_worker_looks_for_cycles_of_objects_less_often_than_python_does():
    (found,) = (found for _, found in workers.run(toy_units.collects_after, [None], SETTINGS, workers.Waiting([()])))
    assert found == 100_000, "700 in Python's own"
