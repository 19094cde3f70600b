"""What all tests share: no window, one thread, no skip unseen in CI, and a small study made of toy notebooks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

PROJECT = Path(__file__).resolve().parent.parent
GUARD = Path(__file__).resolve().parent / "guard"
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
# What an outer make hands to its children, and what belongs to the machine rather than to a test.
_NOT_INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "RUN", "SET", "DATA", "TESTS")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Turn a skip into a failure where everything is required, unless the test needs a GPU."""
    outcome = yield
    report = outcome.get_result()
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although REQUIRE_ALL=1: {_reason(report.longrepr)}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole file that skips itself."""
    outcome = yield
    report = outcome.get_result()
    if REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped although REQUIRE_ALL=1: {_reason(report.longrepr)}"


def _reason(longrepr):
    return longrepr[2] if isinstance(longrepr, tuple) else longrepr


@pytest.fixture(autouse=True)
def _own_work_root(tmp_path_factory, monkeypatch):
    """No test writes into the project's artifacts and reports; a test may name another folder."""
    if "NAFLD_ROOT" not in os.environ:
        monkeypatch.setenv("NAFLD_ROOT", str(tmp_path_factory.getbasetemp() / "work"))


@pytest.fixture(scope="session")
def real_cohort():
    """Path of the real cohort's .mat file, from the environment variable NAFLD_COHORT."""
    path = os.environ.get("NAFLD_COHORT")
    if not path:
        pytest.skip("NAFLD_COHORT is not set to the real cohort's .mat file")
    return Path(path)


def run_make(*arguments, root, timeout=120, check=None, **environment):
    """Run the project's Makefile for artifacts and reports under `root`, with the environment of these tests.

    `check` is the exit status that is asked for; None takes any.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    command = ["make", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}", *arguments]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**inherited, "NAFLD_ROOT": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check is not None:
        assert done.returncode == check, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Smoke:
    """A finished smoke run, with the network shut, in a temporary folder; one serves all tests."""

    def __init__(self, root):
        self.root, self.log = root, root / "network.log"
        started = time.monotonic()
        self.done = self.make("all", timeout=1200)
        self.seconds = time.monotonic() - started
        self.reports, self.artifacts = root / "reports" / "smoke", root / "artifacts" / "smoke"

    def make(self, *arguments, **options):
        guarded = {"PYTHONPATH": str(GUARD), "NAFLD_NETWORK_LOG": str(self.log)}
        return run_make(*arguments, "PROFILE=smoke", root=self.root, **guarded, **options)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    run = Smoke(tmp_path_factory.mktemp("smoke"))
    assert run.done.returncode == 0, f"{run.done.stdout[-6000:]}\n{run.done.stderr[-6000:]}"
    return run


@pytest.fixture
def run(smoke, monkeypatch):
    """The smoke run as the package sees it."""
    from nafld_utils import artifacts

    monkeypatch.setenv("NAFLD_ROOT", str(smoke.root))
    return artifacts.open_run("smoke")
