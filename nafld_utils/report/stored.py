"""Whether a run that lies on this disk is finished, and what it was made with."""

from __future__ import annotations

from typing import Any

from nafld_utils import params, pipeline
from nafld_utils.artifacts import Run, load_record
from nafld_utils.pipeline import Age


def require_finished(run: Run) -> None:
    """Refuse a run without a whole and current report.

    Raises
    ------
    ValueError
        Names the stages without executed notebook, or a page that is missing or older than what it shows.
    """
    given = load_record(run.root / "settings" / "run.json") or {"profile": run.settings.profile}
    again = f"run {pipeline.command('all', run.name, given)}"
    found = pipeline.status(run, files_may_be_gone=True)
    missing = [name for name, stage in found.items() if stage.report is Age.NONE]
    if missing:
        raise ValueError(
            f"run {run.name!r} is not finished: expected {len(found)} executed notebooks, found none of"
            f" {params.listed(missing)}; {again}."
        )
    for name, stage in found.items():
        if stage.page is not Age.CURRENT:
            page, there = run.reports / f"{name}.html", "none" if stage.page is Age.NONE else "an older one"
            raise ValueError(f"{page}: expected the page of its executed notebook, found {there}; {again}.")
    index = run.reports / "index.html"
    front = pipeline.age(index, *(pipeline.report_path(run, name) for name in found))
    if front is not Age.CURRENT:
        there = "none" if front is Age.NONE else "one older than the notebooks"
        raise ValueError(f"{index}: expected the front page of the run, found {there}; {again}.")
    for name, stage in found.items():
        if stage.moved:
            raise ValueError(f"run {run.name!r} is out of date at {name}: {stage.moved}; {again}.")


def recorded_settings(run: Run) -> dict[str, Any]:
    """Settings that the stages were run with, by dotted key, as their stamps keep them."""
    stamps = [load_record(pipeline.stamp_path(run, stage)) or {} for stage in pipeline.STAGES]
    return {key: value for stamp in stamps for key, value in params.flat(stamp.get("settings", {})).items()}
