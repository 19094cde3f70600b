"""Ctrl-C in every notebook and command: one sentence, no traceback, nothing left running, equal results after."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty
import pytest
from faulty import RUN, assert_same, fingerprint, perform
from project import PROJECT

from nafld_utils import pipeline

pytestmark = [pytest.mark.faults, pytest.mark.promise("interrupt")]
SETTINGS = {**faulty.SETTINGS, "engine.mode": "local"}  # workers too are interrupted


def begin(root, *arguments):
    """The command behind make in a process group of its own, as a terminal gives it; and the file of what it says."""
    pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in SETTINGS.items() if key != "run")
    given = [f"--set={pairs}", "--profile=smoke", f"--run={RUN}"]
    said = root.with_name(f"{root.name}.{time.monotonic_ns()}.said")
    with open(said, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "nafld_utils.cli", *arguments, *given],
            cwd=PROJECT,
            env={**os.environ, "NAFLD_ROOT": str(root)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process, said


def interrupt(process, said, times=1):
    """Ctrl-C, so many times; what the command said."""
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
    process.wait(60)
    return said.read_text(encoding="utf-8", errors="replace")


def running(root):
    """Processes whose work folder is `root`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"NAFLD_ROOT={root}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes())
        except OSError:
            pass
    return found


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_an_interrupted_notebook_says_one_sentence_and_ends_as_an_undisturbed_one(
    calm, tmp_path, stage, record_property
):
    rng = random.Random(f"{faulty.SEED} {stage}")
    steps = [name for name in faulty.STEPS if faulty.steps()[name][0] == stage[:2]]
    root = calm.before(steps[0], tmp_path / "work")
    note = f"repeat with NAFLD_FAULT_SEED={faulty.SEED}"
    process, said = begin(root, "execute", stage)
    until, after = time.monotonic() + 120, rng.uniform(0, 1.2 * sum(calm.seconds[step] for step in steps))
    beyond_the_title = re.compile(r"\[ *(?!1/)\d+/\d+\]")
    while not beyond_the_title.search(said.read_text()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    is_running = process.poll() is None
    told = interrupt(process, said, times=rng.randint(1, 2))
    lines = [line for line in told.splitlines() if not line.startswith(f"{stage} ")]
    if is_running and process.returncode:
        copy = f"nafld: the half-run notebook is {root}/reports/{RUN}/{stage}.failed.ipynb"
        wanted = [f"nafld: {stage} failed: interrupted; units already made are kept", copy]
        if (root / "reports" / RUN / f"{stage}.ipynb").exists():  # all cells had run, and its page was being made
            wanted = ["nafld: interrupted; what is finished is kept, run the same command again to go on."]
        assert lines[-len(wanted) :] == wanted, f"{note}\n{told}"  # after what the cells have printed
        assert "Traceback" not in told, f"{note}\n{told}"
    until = time.monotonic() + 20
    while running(root) and time.monotonic() < until:
        time.sleep(0.1)
    assert running(root) == [], note
    left = [path for path in root.rglob("*.tmp*") if path.is_file() and path.suffix != ".lock"]
    assert not left, f"something half-written is left, {note}"
    ended = perform(root, steps)
    assert ended.code == 0, f"{note}\n{ended.said[-3000:]}"
    expected, found = calm.after(steps[-1]), fingerprint(root)
    assert_same({name: found[name] for name in expected if name in found}, expected)
    record_property("cases", int(is_running))


@pytest.mark.parametrize("arguments", [["resolve"], ["resolve", "--dry-run"], ["dry-run"]], ids=" ".join)
def test_an_interrupted_command_says_one_sentence(calm, tmp_path, arguments, record_property):
    rng, n = random.Random(f"{faulty.SEED} {arguments}"), 0
    root = calm.before("end", tmp_path / "work")
    for after in (0.3, rng.uniform(0, 0.7), rng.uniform(0, 2.5)):
        process, said = begin(root, *arguments)
        maps, until = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
        while process.poll() is None and "pydantic_core" not in maps.read_text():  # until then Python itself is loading
            assert time.monotonic() < until, "the command loads none of its settings"
            time.sleep(0.005)
        time.sleep(after)
        is_running = process.poll() is None
        told = interrupt(process, said)
        assert "Traceback" not in told, f"after {after} s of {arguments}\n{told}"
        assert process.returncode in (0, 130, -signal.SIGINT), told  # the last one while Python itself ends
        if is_running and process.returncode == 130:
            assert told.splitlines()[-1].startswith("nafld: interrupted; what is finished is kept"), told
            n += 1
    record_property("cases", n)
