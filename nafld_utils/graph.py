"""What make cannot see by itself: which settings a stage stands on, and whether the units it recorded are still whole.

Contract: make compares times, so everything else that can make a stage stale is turned into the time of one small file
a stage, ``artifacts/<run>/settings/<stage>.json``. `write_stamps` rewrites it only when the settings that the stage
reads (`params.STAGE_SECTIONS`) or the files they point to have changed, and touches it when a unit of the stage is
gone, damaged, or was made by an older ``REVISION`` of its module. Nothing here imports more than the settings need.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from nafld_utils import artifacts, engine, params
from nafld_utils.artifacts import Run
from nafld_utils.params import SettingsError

# Direct upstream stages; the Makefile states the same, tests/test_graph.py compares them.
UPSTREAM: dict[str, tuple[str, ...]] = {
    "01_data_analysis": (),
    "02_preprocessing": ("01_data_analysis",),
    "03_ldm_training": ("02_preprocessing",),
    "04_sampling": ("03_ldm_training",),
    "05_quality_metrics": ("04_sampling",),
    "06_classification_sweep": ("05_quality_metrics",),  # the filtered set is one of its arms
    "07_shap": ("06_classification_sweep",),
    "08_turing_test": ("04_sampling",),
}
STAGES = tuple(UPSTREAM)

# Settings that name a file of the user: its size and time enter the stamp of the stages that read the setting.
USER_FILES = {
    "cohort": ("cohort.path",),
    "autoencoder": ("autoencoder.semantic.path", "autoencoder.class.path"),
    "quality": ("quality.weights",),
    "turing": ("turing.ratings",),
}
LONG_AGO = 946_684_800  # s: the year 2000, before every clock this code has seen
_KEY = r"[A-Za-z_][\w.]*\s*="
_OVERRIDE = re.compile(
    rf"""\s*(?P<key>[A-Za-z_][\w.]*)\s*=\s*
    (?P<value>"(?:\\.|[^"\\])*" | '(?:''|[^'])*' | .*?)
    (?= \s+{_KEY} | \s*$ )""",
    re.VERBOSE | re.DOTALL,
)


def parse_overrides(text: str) -> dict[str, Any]:
    """Read ``SET``: ``key=value`` pairs apart from each other by blanks, values in YAML, so they may hold blanks too.

    Parameters
    ----------
    text : str
        For example ``sweep.rates=[0.5, 1.0] cohort.path="my file.mat"``.

    Returns
    -------
    dict
        Dotted key to value, in the order given.

    Raises
    ------
    SettingsError
        Something is not ``key=value``, or a value is not YAML.

    Examples
    --------
    >>> parse_overrides("ldm.folds=[0, 1] turing.ratings='a b.csv'")
    {'ldm.folds': [0, 1], 'turing.ratings': 'a b.csv'}
    """
    pairs: dict[str, Any] = {}
    position = 0
    while text[position:].strip():
        found = _OVERRIDE.match(text, position)
        if not found:
            raise SettingsError(f'SET: expected pairs such as "sweep.n_seeds=5", found {text[position:].strip()!r}.')
        try:
            pairs[found["key"]] = yaml.safe_load(found["value"])
        except yaml.YAMLError:
            message = f"SET: the value of {found['key']} is not YAML, found {found['value']!r}; quote it."
            raise SettingsError(message) from None
        position = found.end()
    return pairs


def open_run(profile: str, run: str = "", overrides: str = "", data: str = "") -> tuple[Run, dict[str, Any]]:
    """Validate what make was given (``PROFILE``, ``RUN``, ``SET``, ``DATA``) and open the run.

    Parameters
    ----------
    profile, run, overrides, data : str
        Empty means not given; `run` falls back to the profile; `data` is the path of a cohort and stands for
        ``cohort.source=file cohort.path=<its absolute path>`` in any profile, the simulated ones included.

    Returns
    -------
    tuple of Run and dict
        The run, and the overrides to hand to a notebook.

    Raises
    ------
    SettingsError
        One sentence that names the setting.
    """
    values = parse_overrides(overrides)
    if "run" in values:
        raise SettingsError("SET: expected settings, found run; name the run with RUN=<name>.")
    if data:
        clash = sorted({"cohort.source", "cohort.path"} & set(values))
        if clash:
            raise SettingsError(f"DATA and SET both say where the cohort is ({', '.join(clash)}); give one of them.")
        path = Path(data).expanduser().absolute()
        if not path.exists():
            raise SettingsError(f"DATA={data}: expected the path of a cohort, found nothing there; correct the path.")
        values |= {"cohort.source": "file", "cohort.path": str(path)}
    if run and run != profile:
        values["run"] = run
    return Run(params.load(profile, values)), values  # never the run that JupyterLab has open


def check_same_cohort(run: Run) -> None:
    """Refuse to make a run of another cohort under the name of one that is there.

    Raises
    ------
    SettingsError
        Names both cohorts. A cohort that is no longer where it was may have been moved: that is let through.
    """
    before = (_read(stamp_path(run, STAGES[0])) or {}).get("settings", {}).get("cohort", {})
    now = run.settings.section("cohort")
    was, asked = (_cohort(cohort.get("source"), cohort.get("path")) for cohort in (before, now))
    moved = before.get("path") and not Path(before["path"]).expanduser().exists()
    if before and was != asked and not moved and report_path(run, STAGES[0]).exists():
        raise SettingsError(
            f"run {run.name} was made of {was}, found {asked} asked for; give the same cohort again, name another run"
            f" with RUN=<name>, or remove this one with make clean RUN={run.name}."
        )


def _cohort(source: str | None, path: str | None) -> str:
    if source == "simulated":
        return "simulated patients"
    return f"the cohort at {Path(path).expanduser()}" if path else "the published cohort"


def preflight(run: Run) -> None:
    """Refuse what would fail an hour later: a full or read-only disk, a GPU that is not there, a missing file.

    Raises
    ------
    ValueError, OSError
        One sentence that says what is missing and what to do; of a folder of images a line a problem.
    """
    artifacts.check_disk(run)
    for folder in (run.root, run.reports):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno, f"{folder} cannot be made ({os.strerror(error.errno or errno.EIO)}); set NAFLD_ROOT"
            ) from error
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, f"{folder} is not writable; change its permissions or set NAFLD_ROOT")
    for key in (key for keys in USER_FILES.values() for key in keys):
        path = run.settings.section(key)
        used = key != "cohort.path" or run.settings.cohort.source == "file"
        if used and path and not _named(key, path).exists():
            raise SettingsError(f"setting {key}: expected an existing path, found none at {path}; correct it.")
    check_folder(run)
    if run.settings.engine.device.startswith("cuda"):
        engine.device(run.settings.engine)


def check_folder(run: Run) -> None:
    """Check the table of a folder cohort, before any kernel starts; its images too where the table is wrong.

    The images of a folder whose table is right are read by notebook 01.

    Raises
    ------
    ValueError
        Everything that is wrong, a line a row (`cohort_problems.CohortError`).
    """
    s = run.settings
    path = Path(s.cohort.path).expanduser() if s.cohort.source == "file" and s.cohort.path else None
    if path is not None and path.is_dir():
        from nafld_utils import cohort_folder
        from nafld_utils.cohort_problems import WHOLE_LIST, CohortError

        scratch = artifacts.existing(run.root)
        try:
            cohort_folder.check(path, s.cohort.class_names, s.folds.n_splits, s.cohort.frames_per_patient, scratch)
        except CohortError as error:
            raise error.written(run.root / WHOLE_LIST) from None


def stamp_path(run: Run, stage: str) -> Path:
    """The file whose time tells make when the settings of a stage last changed."""
    return run.root / "settings" / f"{stage}.json"


def report_path(run: Run, stage: str) -> Path:
    """The executed notebook of a stage."""
    return run.reports / f"{stage}.ipynb"


def stamp_content(run: Run, stage: str) -> dict[str, Any]:
    """Settings that a stage reads itself, and size and time of the files they name."""
    sections = params.STAGE_SECTIONS[stage]
    keys = [key for name in sections for key in USER_FILES.get(name, ())]
    files = [_named(key, run.settings.section(key)) for key in keys if run.settings.section(key)]
    if "cohort" in sections and run.settings.cohort.source == "file" and not run.settings.cohort.path:
        files += sorted(run.data.glob("*.mat"))
    # a folder's own time does not tell that a file in it was edited
    inside = [inner for path in files if path.is_dir() for inner in sorted(path.rglob("*")) if inner.is_file()]
    files += [inner for inner in inside if not inner.name.startswith(".")]  # hidden: of file managers
    marks = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()}
    return {"settings": {name: run.settings.section(name) for name in sections}, "files": marks}


def _named(key: str, path: str) -> Path:
    """The file of the user that a setting names; the stage of the Turing test reads relative to the work folder."""
    named = Path(path).expanduser()
    return artifacts.work_root() / named if key == "turing.ratings" else named


def write_stamps(run: Run) -> dict[str, str]:
    """Bring the stamps of all stages up to date; see the module's contract.

    Returns
    -------
    dict
        Stage to the reason why its stamp moved; stages whose stamp stays are left out.
    """
    reasons = stamp_faults(run)
    for stage in reasons:
        path, content = stamp_path(run, stage), stamp_content(run, stage)
        if _read(path) == content:
            os.utime(path)
        else:
            artifacts.save_json(path, content)
    return reasons


def settle_times(run: Run, stale: Collection[str], notebooks: Path) -> None:
    """Make the times that make compares tell the order of events, whatever was done to the clock since.

    Reports of stages that must run again become older than anything, so that a report from before the clock was set
    back cannot pass for new; what lies ahead of the clock is brought to now, so that nothing runs again and again
    (unless a notebook itself lies ahead: then its stage does, with the same results, until the clock is there).

    Parameters
    ----------
    run : Run
        The run.
    stale : collection of str
        Stages that must run again, from `plan`.
    notebooks : Path
        Folder of the notebooks.
    """
    front, now = run.reports / "index.html", time.time()
    for stage in STAGES:
        report, notebook = report_path(run, stage), notebooks / f"{stage}.ipynb"
        ahead = notebook.exists() and notebook.stat().st_mtime > now
        for path in (stamp_path(run, stage), report, report.with_suffix(".html")):
            if not path.exists():
                continue
            if stage in stale and path.parent == run.reports:
                os.utime(path, (LONG_AGO, LONG_AGO))
            elif path.stat().st_mtime > now and not ahead:
                os.utime(path)
    if stale and front.exists():
        os.utime(front, (LONG_AGO, LONG_AGO))


def stamp_faults(run: Run, *, files_may_be_gone: bool = False) -> dict[str, str]:
    """Why the stamp of a stage has to move, for the stages where it has to; nothing is written.

    Parameters
    ----------
    run : Run
        The run.
    files_may_be_gone : bool
        Whether files of the user, such as the cohort, may have been moved away since: what was made of them stands.
    """
    reasons = {}
    for stage in STAGES:
        before, content = _read(stamp_path(run, stage)), json.loads(json.dumps(stamp_content(run, stage)))
        if before and files_may_be_gone:
            before["files"] = {path: mark for path, mark in before.get("files", {}).items() if Path(path).exists()}
        if before is None:
            reasons[stage] = "not run yet"
        elif before != content:
            reasons[stage] = _difference(before, content)
        elif report_path(run, stage).exists():
            fault = artifacts.stage_fault(run, stage) or _outdated(run, stage)
            if fault:
                reasons[stage] = fault
    return reasons


def plan(run: Run, notebooks: Path) -> dict[str, str]:
    """Stages that make would run now, each with its reason, in order; nothing is written.

    Parameters
    ----------
    run : Run
        The run.
    notebooks : Path
        Folder of the notebooks.
    """
    reasons, moved = {}, stamp_faults(run)
    for stage, upstream in UPSTREAM.items():
        report = report_path(run, stage)
        first = next((name for name in upstream if name in reasons), None)
        newer = [
            (notebooks / f"{stage}.ipynb", "the notebook was edited"),
            (stamp_path(run, stage), "its settings changed after it last ran"),
            *((report_path(run, name), f"{name} ran after it") for name in upstream),
        ]
        if stage in moved:
            reasons[stage] = moved[stage]
        elif not report.exists():
            reasons[stage] = "not run yet"
        elif first:
            reasons[stage] = f"follows {first}"
        else:
            age = report.stat().st_mtime_ns
            late = [reason for path, reason in newer if path.exists() and path.stat().st_mtime_ns > age]
            if late:
                reasons[stage] = late[0]
    return reasons


def needs_hub(run: Run) -> bool:
    """Whether any stage of the run loads weights from the Hugging Face hub."""
    first_stages = run.settings.autoencoder.semantic, run.settings.autoencoder.class_
    sweep = run.settings.sweep
    return "hub" in (*(item.source for item in first_stages), sweep.weights, sweep.baseline_weights)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (params.flat(value.get("settings", {})) for value in (before, now))
    changed = [f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in new if old.get(key) != new[key]]
    if changed:
        return "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    files = sorted(set(now.get("files", {})) ^ set(before.get("files", {}))) or sorted(now.get("files", {}))
    return f"{', '.join(files[:2])} changed" if files else "its settings are recorded in another form"


def _outdated(run: Run, stage: str) -> str | None:
    """Name a unit of the stage that was made by another revision of its module than today's."""
    record = _read(run.root / stage / "stage.json") or {}
    for entry in record.get("units", []):
        manifest = artifacts.read_manifest(run.root / entry["unit"]) or {}
        for module, made_by in manifest.get("revisions", {}).items():
            try:
                today = artifacts.revision(module)
            except (OSError, ValueError):
                today = None
            if today != made_by:
                return f"{entry['unit']} was made by revision {made_by} of {module}, today's is {today}"
    return None
