"""Faults on purpose: a small run whose stage functions are killed, starved and disturbed, each in a process of its own.

Contract: a *step* is what one cell of a notebook computes. `perform` runs a step in a child of a server that has
imported everything once, so that a kill costs a second and not an import. `fingerprint` says what a run has made,
without what a clock decides. Nothing heavy is imported here: the files of faults are collected by every test run.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import filelock
from project import GUARD, PROJECT

SEED = int(os.environ["NAFLD_FAULT_SEED"])  # given, or drawn by conftest once for all processes of the tests
RUN = "faults"
SETTINGS = {
    "run": RUN,
    "engine.mode": "serial",
    "cohort.frames_per_patient": 2,
    "autoencoder.class": {"source": "train", "kind": "kl", "factor": 8, "base_channels": 32, "train_steps": 2},
    "sampling.n_images": 12,
    "sampling.n_compared": 2,
    "quality.kid_subset_size": 4,
    "quality.n_planted": 2,
    "sweep.arms": ["traditional", "semantic", "gan", "filtered"],
    "sweep.n_seeds": 1,
    "shap.n_samples": 4,
    "shap.n_background": 3,
    "shap.n_per_class": 1,
    "shap.n_held_out": 2,
    "shap.n_compared": 2,
    "shap.n_classifiers": 1,
}
ROOMS = {  # what makes units
    "cohort": ("unit",),
    "preprocessing": ("unit",),
    "ldm": ("autoencoder_units", "denoiser_units", "gan_units"),
    "sampling": ("condition_units", "feature_units", "sampler_comparison", "set_units"),
    "quality": ("copy_units", "filter_units", "metric_units", "patient_distance_units"),
    "sweep": ("frozen_classifier_units", "prefix_features", "training_units", "verdict"),
    "explain": ("check_units",),
    "turing": ("units",),
}
LATE = (  # what stages import when they need it; a child must not pay for it
    "diffusers.models", "diffusers.models.autoencoders", "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition", "diffusers.optimization", "diffusers.schedulers.scheduling_ddpm",
    "diffusers.training_utils", "pyarrow.parquet", "scipy.io", "scipy.stats", "shap",
    "skimage.filters", "skimage.measure", "skimage.metrics", "skimage.morphology", "skimage.transform",
    "sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "sklearn.svm", "statsmodels.api", "timm",
    "torch._dynamo", "torch.utils.tensorboard", "torch_fidelity", "torchmetrics",
)  # fmt: skip
PRELOAD = [*(f"nafld_utils.{room}.{name}" for room, names in ROOMS.items() for name in names), *LATE]


# ---------------------------------------------------------------- the steps of a run

AT_ONCE = "autoencoders to GAN"  # what the notebook does with these four steps


def open_run(**overrides):
    """The small run under ``$NAFLD_ROOT``."""
    from nafld_utils import artifacts

    return artifacts.open_run("smoke", {**SETTINGS, **overrides})


def _units(function, tasks, unit_of):
    from nafld_utils import engine

    engine.map_units(function, tasks, tasks[0]["run"].settings.engine, function.__name__, unit_of=unit_of)


def steps():
    """Every step by name, in order: the notebook it belongs to, and a function of the run."""
    from nafld_utils import cohort, explain, ldm, preprocessing, quality, sampling, sweep, turing

    def conditions(run):
        sampling.build_features(run, sampling.condition_units.feature_tasks(run))
        sampling.condition_units.build(run)

    return {
        "cohort": ("01", cohort.build_cohort),
        "preprocessed": ("02", preprocessing.build_preprocessed),
        "traditional": ("02", lambda run: preprocessing.build_augmented(run, "traditional")),
        "autoencoders": (
            "03",
            lambda run: _units(ldm.train_autoencoder, ldm.autoencoder_tasks(run), ldm.autoencoder_unit),
        ),
        "latents": ("03", lambda run: _units(ldm.make_latents, ldm.latent_tasks(run), ldm.latents_unit)),
        "denoisers": ("03", lambda run: _units(ldm.train_ldm, ldm.denoiser_units.tasks(run), ldm.ldm_unit)),
        "gan": ("03", lambda run: _units(ldm.train_gan, ldm.gan_units.tasks(run), ldm.gan_unit)),
        AT_ONCE: ("03", ldm.train_all),
        "sets": ("04", lambda run: _units(sampling.make_set, sampling.tasks(run), sampling.synthetic_unit)),
        "conditions": ("04", conditions),
        "comparison": ("04", sampling.compare_samplers),
        "features": ("05", lambda run: sampling.build_features(run, quality.table_tasks(run))),
        "quality": ("05", quality.build_table),
        "copies": ("05", quality.audit_copies),
        "patients": ("05", quality.build_patient_distances),
        "filtering": ("05", quality.choose_images),
        "frozen": ("06", sweep.prefix_features.build_features),
        "trainings": ("06", sweep.run_sweep),
        "answer": ("06", lambda run: sweep.build_tables(run, *sweep.build_scores(run))),
        "baselines": ("06", sweep.build_baselines),
        "explain": ("07", lambda run: explain.build_checks(run, explain.explain_all(run))),
        "page": ("08", lambda run: turing.make_page(run, turing.make_set(run))),
        "analysis": ("08", turing.analyse),
    }


STEPS = (
    "cohort", "preprocessed", "traditional", "autoencoders", "latents", "denoisers", "gan", "sets", "conditions",
    "comparison", "features", "quality", "copies", "patients", "filtering", "frozen", "trainings", "answer",
    "baselines", "explain", "page", "analysis",
)  # fmt: skip


# ---------------------------------------------------------------- a step in a process of its own


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (minus the signal), what it said, changes of files it began, seconds."""

    code: int
    said: str
    events: int
    seconds: float


def context():
    """Children of a server that has imported every stage once; all files of faults share it."""
    shared = multiprocessing.get_context("forkserver")
    shared.set_forkserver_preload(PRELOAD)
    return shared


def perform(root, names, fault=(), after=None, timeout=300, overrides=None):
    """Run steps of the run under `root` in a child.

    Parameters
    ----------
    root : Path
        Work folder.
    names : str or sequence of str
        Steps.
    fault : tuple
        ``("kill", n)``: SIGKILL at the n-th change of a file; ``("full", n)``: no space from the n-th on;
        ``("memory", MiB)``: so much address space more than now; ``("locale", name)``; ``("threads", n)``, which it
        computes with at first; empty for none.
    after : float, optional
        SIGKILL after so many seconds of work.
    """
    names = [names] if isinstance(names, str) else list(names)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    begin(process := start(root, names, fault, overrides))
    return end(process, after, timeout)


def start(root, names, fault=(), overrides=None):
    """The child of `perform`, not yet begun; its words go to a file beside `root`."""
    said = root.with_name(f"{root.name}.{time.monotonic_ns()}.said")
    said.touch()
    process = context().Process(target=_child, args=(str(root), names, fault, str(said), overrides or {}))
    process.said = said
    return process


def begin(process):
    """Start a child."""
    process.begun = time.monotonic()
    process.start()


def end(process, after=None, timeout=300):
    """Wait for a child, or kill it `after` seconds of work, and say how it ended."""
    if after is not None:
        while process.is_alive() and not process.said.read_text():
            time.sleep(0.01)
        process.join(after)
        process.kill()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still running after {timeout} s: {process.said.read_text()[-2000:]}")
    said = process.said.read_text(encoding="utf-8", errors="replace")
    counts = [int(line.split()[1]) for line in said.splitlines() if line.startswith("events ")]
    return Ended(process.exitcode, said, counts[-1] if counts else 0, time.monotonic() - process.begun)


def _child(root, names, fault, said, overrides):
    handle = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1), os.dup2(handle, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    os.environ |= {"NAFLD_ROOT": root, "NAFLD_NETWORK_LOG": str(Path(root).with_name("network.log"))}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    runpy.run_path(str(GUARD / "sitecustomize.py"))  # from here on the network is shut and every attempt written down
    functions, run = steps(), open_run(**overrides)
    print("begun", flush=True)
    counted = _watch(root, *fault)
    code = 0
    try:
        for name in names:
            functions[name][1](run)
    except BaseException as error:
        code = 1
        print(traceback.format_exc())
        print(f"ended by {type(error).__name__}: {error}")
    print(f"events {counted[0]}", flush=True)
    os._exit(code)


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def _watch(root, fault=None, value=None):
    """Count the changes of files under `root` that Python begins, and let the fault happen at its time."""
    counted = [0]
    if fault == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + value * 2**20,) * 2)
    if fault == "locale":
        import locale

        locale.setlocale(locale.LC_ALL, value)
    if fault == "threads":
        from nafld_utils import engine

        engine.use_threads(value)

    def changed(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in _CHANGES) or not str(arguments[0]).startswith(root):
            return
        counted[0] += 1
        if fault == "kill" and counted[0] == value:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full" and counted[0] >= value and (writes or event == "os.mkdir"):
            raise OSError(28, os.strerror(28), str(arguments[0]))

    sys.addaudithook(changed)
    return counted


# ---------------------------------------------------------------- what a run has made

# with `threads`, which a process that has not loaded torch cannot tell
_CLOCKED = {"seal", "seconds", "made", "commit", "machine", "python", "versions", "minutes", "threads"}


def fingerprint(root):
    """Content of every artifact of the run under `root`, without what a clock decides: relative path to a digest."""
    base = root / "artifacts" / RUN
    found = {}
    for path in sorted(base.rglob("*")):
        parts = path.relative_to(base).parts
        if path.is_file() and parts[0] != "tensorboard" and not any(part.startswith(".") for part in parts):
            found["/".join(parts)] = _content(path)
    return found


def _content(path):
    import pandas as pd

    if path.name == "run.json":
        value = {key: item for key, item in json.loads(path.read_text()).items() if key not in _CLOCKED}
        value["files"] = sorted(value["files"])
        return json.dumps(value, sort_keys=True)
    if path.suffix == ".parquet" and path.parent.name == "sweep":
        from nafld_utils import sweep

        scores, facts = sweep.read_trial(path.parent, path.stem)
        kept = {key: value for key, value in facts.items() if key not in _CLOCKED}
        return hashlib.sha256(scores.to_csv().encode()).hexdigest() + json.dumps(kept, sort_keys=True)
    if path.suffix == ".mat":  # its header states when it was written
        return hashlib.sha256(path.read_bytes()[128:]).hexdigest()
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        clocked = _CLOCKED & set(table)
        if clocked:
            return hashlib.sha256(table.drop(columns=list(clocked)).to_csv().encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(found, expected):
    """Two fingerprints are equal; else the files that differ are named."""
    lost, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    other = [name for name in expected if name in found and found[name] != expected[name]]
    kinds = {"lost": lost, "too many": more, "of other content": other}
    differences = [f"{word}: {names[:9]}" for word, names in kinds.items() if names]
    assert not differences, "; ".join(differences)


def manifests(root):
    """Manifests of whole units and files of the trial store with their times: what a resumed run must not touch."""
    base = root / "artifacts" / RUN
    paths = [*base.rglob("run.json"), *(base / "sweep").glob("*.parquet")]
    seen = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(base).parts)]
    return {path: path.stat().st_mtime_ns for path in seen}


class Calm:
    """The run that nothing disturbs, and copies of it as it was before each step.

    Attributes
    ----------
    root : Path
        Its work folder; never written to again.
    """

    def __init__(self, folder):
        self.root, notes = folder / "calm", folder / "notes.json"
        with filelock.FileLock(folder / "lock"):
            if not notes.exists():
                notes.write_text(json.dumps(self._make()), encoding="utf-8")
        known = json.loads(notes.read_text(encoding="utf-8"))
        self.events, self.seconds, self._prints = (known[key] for key in ("events", "seconds", "prints"))
        self._there = {step: [Path(name) for name in names] for step, names in known["there"].items()}

    def _make(self):
        events, seconds, there = {}, {}, {}
        for name in STEPS:
            there[name] = self._files()
            ended = perform(self.root, name)
            assert ended.code == 0, ended.said[-6000:]
            events[name], seconds[name] = ended.events, ended.seconds
        there["end"] = self._files()
        return {"events": events, "seconds": seconds, "there": there, "prints": fingerprint(self.root)}

    def _files(self):
        return [str(path) for path in self.root.rglob("*") if path.is_file()]

    def before(self, step, target, link=True):
        """A copy of the run as it was before a step ("end": whole); hard links, unless files are to be damaged."""
        for path in self._there[step]:
            copy = target / path.relative_to(self.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy) if link else shutil.copy2(path, copy)
        return target

    def after(self, step):
        """Fingerprint of the run after a step."""
        order = [*STEPS, "end"]
        base = self.root / "artifacts" / RUN
        there = {str(path.relative_to(base)) for path in self._there[order[order.index(step) + 1]]}
        return {name: value for name, value in self._prints.items() if name in there}

    def pages(self, step):
        """Pages of `PAGE` bytes that the files of the run take before a step; folders take none on a tmpfs."""
        return sum(-(-path.stat().st_size // PAGE) for path in self._there[step])


# ---------------------------------------------------------------- disks


PAGE = 4096


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes at `folder`; yields a function that sets its size or makes it read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "faulty", str(folder)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@functools.cache
def can_mount():
    """Whether this process may mount a file system (root of a machine, not of every container)."""
    if os.environ.get("NAFLD_NO_MOUNT") or os.geteuid() != 0 or not shutil.which("mount"):
        return False
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    tried = subprocess.run(["mount", "-t", "tmpfs", "faulty", str(folder)], capture_output=True, check=False)
    if tried.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    return tried.returncode == 0


# ---------------------------------------------------------------- what is promised

# Promise, and how it is tested; `pytest.mark.promise` names one of them, reports/README.md shows the counts.
PROMISES = {
    "kill": (
        "A process killed at any time costs no result: the next run ends with equal content and makes nothing again"
        " that was finished",
        "SIGKILL before random changes of files and at random moments, in every step of all eight stages, and of"
        " workers of stage 03; two notebooks through make, with and without their kernel",
    ),
    "checkpoints": (
        "A training killed in the midst of a checkpoint ends with the weights of one that was not, to the bit",
        "SIGKILL with half a checkpoint written, and between checkpoints",
    ),
    "sweep": (
        "Killed workers, drivers and Slurm jobs cost one training each; two sweeps at once share the work",
        "SIGKILL, SIGINT, scancel and a worker that kills itself, in local processes and a Slurm of this machine",
    ),
    "others": (
        "Others on the machine reach nothing of a run: no local process listens, and Slurm's jobs and a scheduler with"
        " TLS take no order without its key",
        "ports, open files and signals of a run tried from another account; every socket of a run looked at; clients"
        " without a key and with another one",
    ),
    "names": (
        "Names of patients and files stay with the owner of the cohort: patients are numbered from 1, one table says"
        " who is who, and pages and notebooks, also of failed stages, hold no name, file name or path",
        "names and hospital numbers with every sign that CSV, HTML and JSON treat specially, searched for in every file"
        " of a run; settings, output and errors that name them; DICOM files that say who they show",
    ),
    "at once": (
        "Two runs at once in one tree end as one",
        "two `make` of two notebooks, and every step twice at once",
    ),
    "hosts": (
        "Two hosts in one folder: a unit is whole or absent, also where each host sees its own locks alone; what a"
        " living process writes is not removed, and a unit whose folder another program clears is not sealed",
        "another host's name and locks that hold nothing back: units written at once, remains of every age, folders and"
        " files removed and changed before the seal",
    ),
    "interrupt": (
        "Ctrl-C ends every notebook and command in one sentence, without a traceback and with nothing left running; the"
        " next run ends with equal content",
        "SIGINT to all processes of the terminal, once or twice, at random moments of all eight notebooks with their"
        " workers, and of the commands that look ahead",
    ),
    "disk": (
        "A full disk is one sentence that names the file; nothing half-written stays, and the run goes on when there is"
        " room",
        "a tmpfs too small for the step, every way of writing; writes refused where none can be mounted",
    ),
    "read-only": (
        "Read-only data and artifacts are read, never touched, and refused by name where something must be written",
        "bind mounts that root cannot write to either",
    ),
    "memory": (
        "Too little memory is said in words, and the run goes on with more",
        "address space limited in the midst of four steps",
    ),
    "device": ("A GPU that is not there is refused before any kernel starts", "`engine.device=cuda` without one"),
    "network": ("No step asks for the network", "a guard in every process that refuses and records it"),
    "damage": (
        "A damaged artifact is named and made again, or refused; never used",
        "every file of a run truncated, emptied, removed, reversed and with one bit flipped; every byte of unfinished"
        " work and 1,500 of a stored training flipped",
    ),
    "clock": (
        "Results and what is run again do not depend on the clock",
        "files of other years, a clock set back between two runs, stamps from the future",
    ),
    "locale": (
        "Results do not depend on language, character set and time zone",
        "C, German (Latin-1, decimal comma) and Turkish; three time zones",
    ),
    "threads": (
        "Equal settings give equal results to the bit, whatever the cores and however many units are made at once",
        "every step of stages 03 to 05 with two workers, from a process that had three threads, against one process"
        " alone",
    ),
    "malice": (
        "Files that mean harm do none: no pickle is opened, names are shown as text, paths stay in their folder, what"
        " unpacks without end is refused",
        "pickles as every kind of weights and arrays, HTML and formulas in names, paths out of the cohort's folder,"
        " image and archive bombs",
    ),
}

TABLE = PROJECT / "reports" / "README.md"
HEAD = "| promise | how it is tested | tests | faults | result |\n|---|---|---|---|---|\n"


@dataclass
class Count:
    """Tests of a promise, the faults they caused, those that failed, and what else they recorded of themselves."""

    tests: int = 0
    cases: int = 0
    failed: int = 0
    notes: frozenset = frozenset()


COUNTS: dict[str, Count] = {}  # by promise, of this run of the tests


def table(counts):
    """The promises as a Markdown table, from a `Count` a promise."""
    rows = []
    for name, (promise, how) in PROMISES.items():
        found = counts.get(name, Count())
        result = f"{found.failed} failed" if found.failed else "held" if found.tests else "not tested"
        how = "; ".join([how, *(f"here: {note}" for note in sorted(found.notes))])
        rows.append(f"| {promise} | {how} | {found.tests} | {found.cases} | {result} |\n")
    return HEAD + "".join(rows)


def write_table(counts):
    """Put the table in its place in reports/README.md."""
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(HEAD)
    after = rest[len("".join(line for line in rest.splitlines(keepends=True) if line.startswith("| "))) :]
    TABLE.write_text(before + table(counts) + after, encoding="utf-8")


def stored_counts():
    """Number of tests that reports/README.md states, by promise."""
    _, _, rest = TABLE.read_text(encoding="utf-8").partition(HEAD)
    rows = [line.strip("|\n ").split(" | ") for line in rest.splitlines() if line.startswith("| ")]
    names = {promise: name for name, (promise, _) in PROMISES.items()}
    return {names.get(row[0], row[0]): (int(row[2]), row[4]) for row in rows}
