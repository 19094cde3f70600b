"""Every stage killed with SIGKILL at random places and resumed: it ends with what an undisturbed run ends with."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time

import faulty
import psutil
import pytest
from faulty import assert_same, fingerprint, manifests, perform
from project import PROJECT, make_command, run_make
from toy_study import FIRST, SECOND, Study, write_notebook

pytestmark = pytest.mark.faults
N_PLACES, N_MOMENTS = 1, 1  # kills of a step: before a change of a file, and at any time of its work


@pytest.mark.promise("kill")
@pytest.mark.parametrize("step", faulty.STEPS)
def test_a_killed_step_ends_as_an_undisturbed_one(calm, tmp_path, step, record_property):
    root = calm.before(step, tmp_path / "work")
    rng, kills = random.Random(f"{faulty.SEED} {step}"), 0
    note = f"repeat with NAFLD_FAULT_SEED={faulty.SEED}"
    for most in [calm.events[step]] * N_PLACES:
        ended = perform(root, step, ("kill", rng.randint(1, most)))
        kills += ended.code == -signal.SIGKILL
        assert ended.code in (0, -signal.SIGKILL), f"{note}\n{ended.said[-3000:]}"
    assert kills, f"no kill came in time, {note}"
    for _ in range(N_MOMENTS):
        ended = perform(root, step, after=rng.uniform(0, calm.seconds[step] * 0.8))
        kills += ended.code == -signal.SIGKILL
        assert ended.code in (0, -signal.SIGKILL), f"{note}\n{ended.said[-3000:]}"
    kept = manifests(root)
    ended = perform(root, step)
    assert ended.code == 0, f"{note}\n{ended.said[-3000:]}"
    assert_same(fingerprint(root), calm.after(step))
    whole = {path: time for path, time in manifests(root).items() if path in kept}
    assert whole == kept, f"what was finished was made again, {note}"
    left = [path.name.rsplit(".", 2)[1] for path in root.rglob("*.part")]
    sealed = {json.loads(path.read_text()).get("hash") for path in root.rglob("run.json")}
    # a kill between sealing and clearing leaves it, until its stage ends (`run.finish`)
    assert len(left) <= kills, "resumable work outlives its unit"
    assert set(left) <= sealed, "resumable work of no unit"
    record_property("cases", kills)


@pytest.mark.promise("network")
def test_no_step_asked_for_the_network(calm):
    assert not (calm.root.parent / "network.log").exists()


@pytest.mark.promise("kill")
def test_the_steps_make_every_unit_that_the_notebooks_finish_on(calm, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(calm.root))
    run = faulty.open_run()
    from nafld_utils import cohort, preprocessing, sampling
    from nafld_utils.ldm import denoiser_units, gan_units
    from nafld_utils.quality import copy_units, filter_units, metric_units, patient_distance_units
    from nafld_utils.sampling import condition_units, sampler_comparison, set_units
    from nafld_utils.sweep import frozen_classifier_units, verdict  # fmt: skip

    made = [
        cohort.cohort_unit(run),
        preprocessing.preprocess_unit(run),
        preprocessing.augmented_unit(run, "traditional"),
    ]
    for stage in (
        denoiser_units,
        gan_units,
        set_units,
        condition_units,
        sampler_comparison,
        metric_units,
        patient_distance_units,
        copy_units,
        filter_units,
        verdict,
        frozen_classifier_units,
    ):
        made += stage.units(run)
    made += [sampling.features_unit(**task) for task in condition_units.feature_tasks(run)]
    assert [unit.path for unit in made if not unit.done()] == []
    assert {path.name for path in (run.root / "shap").iterdir()} >= {"checks"}
    assert {path.name for path in (run.root / "turing").iterdir()} == {"set", "page", "analysis"}
    assert {*faulty.STEPS, faulty.AT_ONCE} == set(faulty.steps())


@pytest.mark.promise("kill")
def test_a_worker_killed_while_all_networks_are_trained_in_one_call_costs_no_result(calm, tmp_path, record_property):
    root, rng = calm.before("autoencoders", tmp_path / "work"), random.Random(f"{faulty.SEED} workers")
    there, n_kills = len(manifests(root)), 0
    driver = faulty.start(root, [faulty.AT_ONCE], overrides={"engine.mode": "local", "engine.n_workers": 2})
    faulty.begin(driver)
    for n_made in sorted(rng.sample(range(8), 2)):
        while driver.is_alive() and (len(manifests(root)) < there + n_made or not workers_of(driver.pid)):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        for worker in workers_of(driver.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            n_kills += 1
    ended, note = faulty.end(driver), f"repeat with NAFLD_FAULT_SEED={faulty.SEED}"
    assert ended.code == 0, f"{note}\n{ended.said[-3000:]}"
    assert n_kills, f"no kill came in time, {note}"
    found = {name: value for name, value in fingerprint(root).items() if not name.startswith("over_training/")}
    assert_same(found, calm.after("gan"))
    record_property("cases", n_kills)


def workers_of(driver):
    """Processes that make the units of a driver; none where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [one.pid for one in psutil.Process(driver).children() if "spawn_main" in " ".join(one.cmdline())]
    return []


# ---------------------------------------------------------------- through make


def begin_make(study, stage, **environment):
    """make of the toy study in a process group of its own, and what it says."""
    command, env = make_command(
        stage, f"NOTEBOOKS={study.notebooks}", "PROFILE=smoke", "JOBS=1", root=study.root, **environment
    )
    log = study.root.with_name(f"make-{time.monotonic_ns()}.log")
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=PROJECT, env=env, stdout=out, stderr=out, start_new_session=True)
    return process, log


def wait_for(path, process, log):
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


HELD = """
import os, time
(run.root / "pid-{stage}").write_text(str(os.getpid()))
while (run.root / "hold-{stage}").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A toy study whose notebooks wait in their last cell, for as long as the test holds them."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    study = Study(tmp_path)
    for stage in (FIRST, SECOND):
        write_notebook(study.notebooks / f"{stage}.ipynb", stage, HELD.format(stage=stage))
    (study.root / "artifacts" / "smoke").mkdir(parents=True)
    return study


@pytest.mark.promise("kill")
@pytest.mark.parametrize(("whom", "stage"), [("make and all it began", FIRST), ("the kernel alone", SECOND)])
def test_a_notebook_killed_through_make_is_run_again_and_its_units_are_kept(study, whom, stage):
    run = study.root / "artifacts" / "smoke"
    (run / f"hold-{stage}").touch()
    process, log = begin_make(study, SECOND)
    wait_for(run / f"pid-{stage}", process, log)
    units = [run / "toy" / name / "run.json" for name in (FIRST, SECOND)][: 1 + (stage == SECOND)]
    made = [unit.stat().st_mtime_ns for unit in units]
    if whom == "the kernel alone":
        os.kill(int((run / f"pid-{stage}").read_text()), signal.SIGKILL)
        assert process.wait(120) != 0
        assert f"{stage} failed: its kernel died, killed by hand or because memory ran out" in log.read_text()
        assert "Traceback" not in log.read_text()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        os.kill(int((run / f"pid-{stage}").read_text()), signal.SIGKILL)  # kernels have a session of their own
    assert not study.report(stage).exists()
    (run / f"hold-{stage}").unlink()
    study.make(SECOND, check=0)
    assert [unit.stat().st_mtime_ns for unit in units] == made
    assert study.report(SECOND).exists()
    assert not list(study.report(FIRST).parent.glob("*.failed.ipynb"))
    assert not list(study.report(FIRST).parent.glob(".*")), "a half-run notebook is left"
    assert not re.search(r"\d:\d\d  ", study.make(SECOND, check=0).stdout)


@pytest.mark.promise("at once")
def test_two_makes_at_once_in_one_tree_both_succeed(study):
    both = [begin_make(study, SECOND) for _ in range(2)]
    for process, log in both:
        assert process.wait(180) == 0, log.read_text()
    for stage in (FIRST, SECOND):
        assert study.report(stage).exists()
    assert not [path for path in study.root.rglob(".*") if path.is_file()], "something half-written is left"
    assert not re.search(r"\d:\d\d  ", run_make("plan", root=study.root, PROFILE="smoke").stdout)


@pytest.mark.promise("at once")
def test_two_runs_of_every_step_at_once_in_one_tree_end_as_one(calm, tmp_path, record_property):
    both = [faulty.start(tmp_path / "work", faulty.STEPS) for _ in range(2)]
    for process in both:
        faulty.begin(process)
    for process in both:
        ended = faulty.end(process, timeout=400)
        assert ended.code == 0, ended.said[-4000:]
    assert_same(fingerprint(tmp_path / "work"), calm.after("analysis"))
    record_property("cases", len(faulty.STEPS))
