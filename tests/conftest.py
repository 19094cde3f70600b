"""What all tests share: no window, one thread, no skip unseen in CI, and a small study made of toy notebooks."""

import atexit
import contextlib
import gc
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import lazy_loader
import pytest
from project import GUARD, PROJECT, WHOLE, make_command, run_make

pytest.register_assert_rewrite("faulty", "page_checks", "toy_sweep")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # to compile shap's loops takes seconds; kernels do
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
# As `nafld_utils.pipeline.execute` sets them for kernels; what this process starts inherits them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(64 * 2**20))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(256 * 2**20))
gc.set_threshold(100_000, *gc.get_threshold()[1:])  # as `engine.collect_seldom`, before anything is imported
atexit.register(gc.freeze)
sys.modules.setdefault("rfc3987_syntax", None)  # as `cli.main`: two seconds
# What these processes write need not outlive a power cut; processes that they start still wait for the disk.
os.fsync = lambda _: None

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"


def _looking_anew(room, *given, **named):
    """A room's face keeps what it has looked up; that of a test looks again, since a test may patch a room's module."""
    look_up, *others = _ATTACH(room, *given, **named)

    def look_anew(name):
        found = look_up(name)
        if not isinstance(found, types.ModuleType):
            vars(sys.modules[room]).pop(name, None)
        return found

    return look_anew, *others


_ATTACH, lazy_loader.attach = lazy_loader.attach, _looking_anew


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


@pytest.fixture(scope="session")
def real_patients(real_cohort):
    """The real cohort, read once; no test writes into it."""
    from nafld_utils import cohort

    return cohort.load(real_cohort)


# ---------------------------------------------------------------- promises under fault


def pytest_addoption(parser):
    parser.addoption(
        "--write-promises", action="store_true", help="write the counts of the tests of faults into reports/README.md"
    )


def pytest_runtest_logreport(report):
    """Count the tests of every promise, with the faults that they say they caused."""
    promise = dict(report.user_properties).get("promise")
    if promise and (report.when == "call" or report.outcome != "passed"):
        import faulty

        found, known = faulty.COUNTS.setdefault(promise, faulty.Count()), dict(report.user_properties)
        found.tests += 1
        found.cases += int(known.get("cases", 1))
        found.failed += report.outcome != "passed"
        found.notes |= {known["how"]} if "how" in known else set()


@pytest.fixture(autouse=True)
def _promise(request):
    """A test of faults says which promise it holds."""
    if request.node.get_closest_marker("faults"):
        mark = request.node.get_closest_marker("promise")
        if mark:
            request.node.user_properties.append(("promise", mark.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    """Show what was promised and what held."""
    faulty = sys.modules.get("faulty")
    if faulty and faulty.COUNTS:
        terminalreporter.section(f"promises under fault, NAFLD_FAULT_SEED={faulty.SEED}")
        terminalreporter.write(faulty.table(faulty.COUNTS))
        if config.getoption("--write-promises"):
            faulty.write_table(faulty.COUNTS)


# ---------------------------------------------------------------- one small run for all


class Smoke:
    """All eight notebooks on the smoke profile, with the network shut, in a temporary folder; one run serves all tests.

    It starts when the tests start and is waited for by the first test that needs it. Where pytest-xdist runs tests in
    several processes, the first of them that needs it starts it for all.
    """

    def __init__(self, root):
        self.root, self.log = root, root / "network.log"
        self.reports, self.artifacts = root / "reports" / "smoke", root / "artifacts" / "smoke"
        self.process, self.done = None, None  # the process where this one started it

    def start(self):
        """Start the run, unless another process of these tests has."""
        try:
            (self.root / "started").touch(exist_ok=False)
        except FileExistsError:
            return
        command, env = make_command("all", "PROFILE=smoke", root=self.root, **self._guarded())
        script = '"$@"; echo $? > "$0.part"; times > "$0.times"; mv "$0.part" "$0"'
        command = ["sh", "-c", script, str(self.root / "status"), *command]
        with open(self.root / "out.txt", "w") as out, open(self.root / "err.txt", "w") as err:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, env=env, stdout=out, stderr=err, start_new_session=True
            )
        (self.root / "group").write_text(str(self.process.pid), encoding="utf-8")

    def wait(self):
        """Wait for the run; sets `done` and `seconds`, those of processors, whatever else this machine does."""
        patience = time.monotonic() + 1200
        while not (self.root / "status").exists():
            assert time.monotonic() < patience, "expected the small run to end within 20 minutes"
            time.sleep(0.1)
        status = int((self.root / "status").read_text(encoding="utf-8"))
        out, err = ((self.root / name).read_text(encoding="utf-8") for name in ("out.txt", "err.txt"))
        self.done = subprocess.CompletedProcess([], status, out, err)
        assert status == 0, f"{out[-6000:]}\n{err[-6000:]}"
        parts = re.findall(r"(\d+)m([\d.]+)s", (self.root / "status.times").read_text(encoding="utf-8"))
        self.seconds = sum(60 * int(minutes) + float(rest) for minutes, rest in parts)
        return self

    def remove(self):
        """Stop the run if it still goes, and remove it."""
        if (self.root / "group").exists() and not (self.root / "status").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((self.root / "group").read_text(encoding="utf-8")), signal.SIGTERM)
        shutil.rmtree(self.root, ignore_errors=True)

    def make(self, *arguments, **options):
        """Another make of the same run."""
        return run_make(*arguments, "PROFILE=smoke", root=self.root, **self._guarded(), **options)

    def _guarded(self):
        return {"PYTHONPATH": str(GUARD), "NAFLD_NETWORK_LOG": str(self.log)}


_SMOKE, _SMOKE_ROOT, _CALM_ROOT = pytest.StashKey(), "NAFLD_TESTS_SMOKE", "NAFLD_TESTS_CALM"
_FAULT_SEED = "NAFLD_FAULT_SEED"
# Files that take a minute and more, longest first: begun last, one of them would keep a single process at work.
_LONG = (
    "test_own_cohort",
    "test_notebooks",
    "test_frozen_classifiers",
    "test_benchmarks",
    "test_denoiser_training",
)


def pytest_configure(config):
    """Set what all processes of these tests share, since they inherit the environment: the folders of both small runs,
    where the faults are drawn, and whether all files are tested."""
    if not hasattr(config, "workerinput"):
        os.environ[_SMOKE_ROOT] = tempfile.mkdtemp(prefix="nafld-smoke-")
        os.environ[_CALM_ROOT] = tempfile.mkdtemp(prefix="nafld-calm-")
        os.environ[WHOLE] = "" if config.option.keyword or config.option.file_or_dir else "yes"
        os.environ[_FAULT_SEED] = os.environ.get(_FAULT_SEED) or str(random.SystemRandom().randrange(10**6))
    config.stash[_SMOKE] = Smoke(Path(os.environ[_SMOKE_ROOT]))


def pytest_collection_modifyitems(items):
    """Long files first; and strings in tables as notebooks have them."""
    from nafld_utils import engine

    engine.keep_strings()
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


def pytest_collection_finish(session):
    """Start the small run beside the first tests, where a test needs it."""
    if not session.config.option.collectonly and any("smoke" in item.fixturenames for item in session.items):
        session.config.stash[_SMOKE].start()


def pytest_unconfigure(config):
    """Remove the small runs, once no process of these tests needs them."""
    if not hasattr(config, "workerinput"):
        config.stash[_SMOKE].remove()
        shutil.rmtree(os.environ[_CALM_ROOT], ignore_errors=True)


@pytest.fixture(scope="session")
def smoke(pytestconfig):
    return pytestconfig.stash[_SMOKE].wait()


@pytest.fixture(scope="session")
def calm():
    """The small run of the tests of faults, undisturbed; the first process of these tests that needs it makes it."""
    import faulty

    return faulty.Calm(Path(os.environ[_CALM_ROOT]))


@pytest.fixture
def run(smoke, monkeypatch):
    """The smoke run as the package sees it."""
    from nafld_utils import artifacts

    monkeypatch.setenv("NAFLD_ROOT", str(smoke.root))
    return artifacts.open_run("smoke")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of one module of tests; they are skipped with a reason where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on PATH; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
