"""Is it current? What make cannot see by itself, and what the start page and the reports say of every stage.

Contract: `status` is the one place that asks, and writes nothing. make compares times, so everything else that can make
a stage stale is turned into the time of one small file per stage, ``artifacts/<run>/settings/<stage>.json``.
`write_stamps` rewrites it only when the settings that the stage reads (`params.STAGE_SECTIONS`) or the files they point
to have changed, and touches it when a unit of the stage is gone, damaged, or was made by an older ``REVISION`` of its
module. Nothing here imports more than the settings need.
"""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, cohort, params
from nafld_utils.artifacts import Run, load_record

# Direct upstream stages; the Makefile states the same, tests/pipeline/test_staleness.py compares them.
UPSTREAM: dict[str, tuple[str, ...]] = {
    "01_data_analysis": (),
    "02_preprocessing": ("01_data_analysis",),
    "03_ldm_training": ("02_preprocessing",),
    "04_sampling": ("03_ldm_training",),
    "05_quality_metrics": ("04_sampling",),
    "06_classification_sweep": ("05_quality_metrics",),  # the filtered set is one of its arms
    "07_shap": ("06_classification_sweep",),
    "08_turing_test": ("05_quality_metrics",),
}
STAGES = tuple(UPSTREAM)

# Settings that name a file of the user: its size and time enter the stamp of the stages that read the setting.
USER_FILES = {
    "cohort": ("cohort.path", "cohort.join"),
    "cohort.external": ("cohort.external",),
    "autoencoder": ("autoencoder.semantic.path", "autoencoder.class.path"),
    "quality": ("quality.weights",),
    "turing": ("turing.ratings",),
}
BELOW_WORK = ("turing.ratings", "cohort.external")
COHORTS = ("cohort.path", "cohort.external")
LONG_AGO = 946_684_800  # s: the year 2000, before every clock this code has seen


class State(enum.StrEnum):
    """State of what a stage has made."""

    DONE = "done"
    STALE = "stale"  # a setting, a file or a unit that it stands on has changed
    FAILED = "failed"
    NOT_RUN = "not run"


class Age(enum.StrEnum):
    """A file beside what it is made from."""

    CURRENT = "current"
    OLDER = "older"
    NONE = "none"


@dataclass(frozen=True)
class Stage:
    """Whether a stage is current.

    Attributes
    ----------
    name : str
        Name of the stage.
    state, why
        State of what it has made, and why it is not done; empty where there is no more to say.
    moved : str
        Why the time of its stamp has to move; empty where it stays.
    due : str
        Why make would run its notebook; empty where it would not.
    report, page
        Its executed notebook beside all that it stands on, and that notebook's page beside the notebook.
    """

    name: str
    state: State
    why: str
    moved: str
    due: str
    report: Age
    page: Age


def status(run: Run, notebooks: Path | None = None, *, files_may_be_gone: bool = False) -> dict[str, Stage]:
    """Whether each stage of a run is current, by name, in order; nothing is written.

    Parameters
    ----------
    run : Run
        The run.
    notebooks : Path, optional
        Folder of the notebooks; without it, it is not asked whether one was edited.
    files_may_be_gone : bool
        Whether files of the user, such as the cohort, may have been moved away since: what was made of them stands.
    """
    found: dict[str, Stage] = {}
    for name, upstream in UPSTREAM.items():
        found[name] = _stage(run, name, [found[other] for other in upstream], notebooks, files_may_be_gone)
    return found


def _stage(run: Run, name: str, upstream: list[Stage], notebooks: Path | None, files_may_be_gone: bool) -> Stage:
    stamp, report = stamp_path(run, name), report_path(run, name)
    changed, fault = _changed(run, name, files_may_be_gone), artifacts.stage_fault(run, name) or ""
    late = "its settings changed after it last ran" if age(report, stamp) is Age.OLDER else ""

    moved = "not run yet" if changed is None else changed or (fault if report.exists() else "")
    absent = "" if report.exists() else "not run yet"
    follows = [f"follows {other.name}" for other in upstream if other.due]
    edited = notebooks and age(report, notebooks / f"{name}.ipynb") is Age.OLDER
    newer = [other.name for other in upstream if age(report, report_path(run, other.name)) is Age.OLDER]
    after = [late, *(f"{other} ran after it" for other in newer)]
    due = _first(moved, absent, *follows, "the notebook was edited" if edited else "", *after)

    if report.with_name(f"{name}.failed.ipynb").exists():
        state, why = State.FAILED, f"its half-run copy is {name}.failed.ipynb beside the reports"
    elif not (run.root / name / "stage.json").exists():
        state, why = State.NOT_RUN, ""
    else:
        behind = [f"follows {other.name}" for other in upstream if other.state is not State.DONE]
        why = _first(changed, fault, late, *behind)
        state = State.STALE if why else State.DONE
    of_report = Age.NONE if absent else Age.OLDER if due else Age.CURRENT
    return Stage(name, state, why, moved, due, of_report, age(report.with_suffix(".html"), report))


def _first(*reasons: str | None) -> str:
    return next(filter(None, reasons), "")


def age(path: Path, *sources: Path) -> Age:
    """A file beside those that it is made from; sources that are not there make nothing older."""
    if not path.exists():
        return Age.NONE
    made = path.stat().st_mtime_ns
    return Age.OLDER if any(it.exists() and it.stat().st_mtime_ns > made for it in sources) else Age.CURRENT


def _changed(run: Run, stage: str, files_may_be_gone: bool) -> str | None:
    """What differs between the settings and files of a stage and its stamp; None where it has no stamp."""
    before, now = load_record(stamp_path(run, stage)), json.loads(json.dumps(stamp_content(run, stage)))
    if before is None:
        return None
    if files_may_be_gone:
        before["files"] = {path: mark for path, mark in before.get("files", {}).items() if Path(path).exists()}
    return "" if before == now else _difference(before, now)


def has_changed(run: Run, found: Mapping[str, Stage]) -> bool:
    """Whether a setting, a file or a unit is no longer what some stage was begun with."""
    moved = any(stage.moved and stamp_path(run, stage.name).exists() for stage in found.values())
    return moved or any(stage.state is State.STALE for stage in found.values())


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
    files = [user_file(key, run.settings.section(key)) for key in keys if run.settings.section(key)]
    if "cohort" in sections and run.settings.cohort.source == "file" and not run.settings.cohort.path:
        files += cohort.mat_files(run.data)
    cohorts = [user_file(key, run.settings.section(key)) for key in COHORTS if run.settings.section(key)]
    inside = [inner for path in files for inner in _files_of(path, path in cohorts) if inner.exists()]
    marks = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in inside}
    settings = {name: run.settings.section(name) for name in sections}
    settings.get("cohort", {}).pop("external", None)  # which only the stage reads that names it
    return {"settings": settings, "files": marks}


def _files_of(path: Path, is_cohort: bool) -> list[Path]:
    """A file itself; of a folder, whose own time tells nothing, the files that are read of it."""
    if not path.is_dir():
        return [path]
    if is_cohort:
        return cohort.content_files(path)
    inside = sorted(inner for inner in path.rglob("*") if inner.is_file())
    return [inner for inner in inside if not artifacts.is_litter(inner.relative_to(path))]


def user_file(key: str, path: str) -> Path:
    """The file of the user that a setting names; those of `BELOW_WORK` are read relative to the work folder."""
    named = Path(path).expanduser()
    return artifacts.work_root() / named if key in BELOW_WORK else named


def write_stamps(run: Run) -> dict[str, str]:
    """Bring the stamps of all stages up to date; give the reasons why some moved, by stage."""
    reasons = {stage.name: stage.moved for stage in status(run).values() if stage.moved}
    for stage in reasons:
        path, content = stamp_path(run, stage), stamp_content(run, stage)
        if load_record(path) == content:
            os.utime(path)
        else:
            artifacts.save_json(path, content)
    return reasons


def settle_times(run: Run, stale: Collection[str], notebooks: Path) -> None:
    """Make the times that make compares tell the order of events, whatever was done to the clock since.

    Reports of `stale` stages, which must run again, become older than anything, so that one from before the clock was
    set back cannot pass for new. What lies ahead of the clock is brought to now, so that nothing runs again and again
    (unless a notebook itself lies ahead: then its stage does, with the same results, until the clock is there).
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


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (params.flat(value.get("settings", {})) for value in (before, now))
    changed = [f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in new if old.get(key) != new[key]]
    if changed:
        return "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    files = sorted(set(now.get("files", {})) ^ set(before.get("files", {}))) or sorted(now.get("files", {}))
    return f"{', '.join(files[:2])} changed" if files else "its settings are recorded in another form"
