"""Workers and drivers killed in the midst of a sweep, and two sweeps at once: no row is lost, doubled or changed."""

import collections
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import toy_sweep
from project import PROJECT
from toy_sweep import check, diary

pytestmark = [pytest.mark.faults, pytest.mark.promise("sweep")]


BEGUN = []


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    """A test that fails leaves no sweep behind."""
    yield
    while BEGUN:
        driver = BEGUN.pop()
        driver.kill()
        driver.wait(60)


def start(store, n_workers, **environment):
    """The sweep in a process of its own, with local workers."""
    command = [sys.executable, str(PROJECT / "tests" / "faults" / "toy_sweep.py"), str(store), str(n_workers)]
    with open(store.with_name("said"), "ab") as said:
        BEGUN.append(
            subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **environment}, stdout=said, stderr=said)
        )
    return BEGUN[-1]


def ends_well(driver, store):
    assert driver.wait(300) == 0, store.with_name("said").read_text()[-3000:]


def written(store):
    return sum(what == "wrote" for what, _, _ in diary(store))


def by_worker(store):
    """Trials that each worker has written."""
    return collections.Counter(pid for what, _, pid in diary(store) if what == "wrote")


def wait_until(condition, driver, store):
    until = time.monotonic() + 300
    while not condition():
        assert driver.poll() is None, f"the sweep ended too early: {store.with_name('said').read_text()[-3000:]}"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def busy_worker(store):
    """A worker that has begun a trial and not written it."""
    open_trials = {}
    for what, key, pid in diary(store):
        open_trials[key] = pid if what == "began" else None
    return next((int(pid) for pid in open_trials.values() if pid), None)


def test_killed_workers_and_drivers_cost_one_trial_a_worker(tmp_path):
    store = tmp_path / "sweep"
    driver = start(store, 2)
    wait_until(lambda: written(store) >= 5 and busy_worker(store), driver, store)
    os.kill(busy_worker(store), signal.SIGKILL)
    at_kill = written(store)
    wait_until(lambda: written(store) >= at_kill + 6, driver, store)
    driver.kill()
    driver.wait(60)
    kept = {path: path.stat().st_mtime_ns for path in store.glob("[!.]*.parquet")}
    assert 5 < len(kept) < toy_sweep.N_TRIALS
    again = start(store, 2)
    ends_well(again, store)
    # the driver takes its workers with it: one was killed before, two are now
    check(store, n_killed=1 + 2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_two_sweeps_at_once_share_the_work_and_a_killed_one_leaves_it_to_the_other(tmp_path):
    store = tmp_path / "sweep"
    store.mkdir()
    hold, progress = store / "hold", tmp_path / "progress"
    hold.touch()
    drivers = [start(store, 1, NAFLD_PROGRESS=str(progress)) for _ in range(2)]
    wait_until(lambda: progress.exists() and "another process makes it" in progress.read_text(), drivers[0], store)
    hold.unlink()
    wait_until(lambda: sorted(by_worker(store).values())[-2:-1] >= [3], drivers[0], store)
    drivers[1].kill()
    drivers[1].wait(60)
    assert written(store) < toy_sweep.N_TRIALS, "the kill came too late to show anything"
    ends_well(drivers[0], store)
    check(store, n_killed=1)


def test_a_truncated_file_is_named_and_redone_and_no_other(tmp_path, caplog):
    from nafld_utils import engine
    from nafld_utils.sweep import trial_store

    store = tmp_path / "sweep"
    toy_sweep.run(store)
    path = sorted(store.glob("*.parquet"))[7]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status = trial_store.read_store(store, toy_sweep.trials())[1]
    damaged = status[status["state"] == "damaged"]
    assert damaged["hash"].tolist() == [path.stem]
    engine.notice(damaged["reason"].item())
    assert path.name in caplog.text
    (store / "diary").unlink()
    pd.testing.assert_frame_equal(toy_sweep.run(store), toy_sweep.expected(tmp_path / "other"), check_exact=True)
    assert [key for _, key, _ in diary(store)] == [path.stem] * 2
