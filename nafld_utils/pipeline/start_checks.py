"""What is asked before a run begins, so that nothing fails an hour later that could have been known now."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nafld_utils import artifacts, cohort, engine
from nafld_utils.artifacts import Run
from nafld_utils.params import SettingsError
from nafld_utils.pipeline.staleness import STAGES, USER_FILES, report_path, stamp_path, user_file


def check_same_cohort(run: Run) -> None:
    """Refuse to make a run of another cohort under the name of one that is there.

    Raises
    ------
    SettingsError
        Names both cohorts. A cohort that is no longer where it was may have been moved: that is let through.
    """
    before = (artifacts.load_record(stamp_path(run, STAGES[0])) or {}).get("settings", {}).get("cohort", {})
    now = run.settings.section("cohort")
    was, asked = (_cohort(of.get("source"), of.get("path")) for of in (before, now))
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
        One sentence that says what is missing and what to do; of a folder of images one line per problem.
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
        if used and path and not (user_file(key, path).is_file() or user_file(key, path).is_dir()):
            raise SettingsError(f"setting {key}: expected a file or a folder, found none at {path}; correct it.")
    check_folder(run)
    if run.settings.engine.device.startswith("cuda"):
        engine.device(run.settings.engine)


def check_folder(run: Run) -> None:
    """Check the table of a folder cohort, before any kernel starts; its images too where the table is wrong.

    The images of a folder whose table is right are read by notebook 01.

    Raises
    ------
    ValueError
        Everything that is wrong, one line per row (`cohort.CohortError`).
    """
    s = run.settings
    path = Path(s.cohort.path).expanduser() if s.cohort.source == "file" and s.cohort.path else None
    if path is not None and path.is_dir():
        scratch = artifacts.existing(run.root)
        try:
            people = cohort.one_person.People.of(s.cohort)
            cohort.check(path, s.cohort.class_names, s.folds.n_splits, s.cohort.frames_per_patient, scratch, people)
        except cohort.CohortError as error:
            raise error.written(run.root / cohort.WHOLE_LIST) from None
