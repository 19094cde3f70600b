"""Runs that lie on this disk, opened by their name alone.

Contract: a run is opened with the settings it was asked for last (``artifacts/<run>/settings/run.json``); what is not
there, or not finished, ends in one sentence that says how to make it.
"""

from __future__ import annotations

import re
from typing import Any

from nafld_utils import artifacts, graph, overview
from nafld_utils.artifacts import Run
from nafld_utils.params import SettingsError
from nafld_utils.report import notebooks, pages

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def names() -> list[str]:
    """Names of the runs under the work folder, sorted."""
    return sorted(path.parent.parent.name for path in (artifacts.work_root() / "artifacts").glob("*/settings/run.json"))


def open_stored(name: str) -> Run:
    """Open a run by its name.

    Raises
    ------
    ValueError
        The name is none, nothing of the run is stored, or its settings are no longer settings of this code.
    """
    there = f"runs here: {', '.join(names()) or 'none'}"
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected the name of a run, found {name!r}; {there}.")
    given = pages.read_json(artifacts.work_root() / "artifacts" / name / "settings" / "run.json")
    if given is None or not isinstance(given.get("overrides", {}), dict):
        raise ValueError(
            f"run {name!r}: expected it under artifacts/, found none; {there}. Make it with make all RUN={name}."
        )
    try:
        run = artifacts.open_run(str(given.get("profile")), given.get("overrides", {}))
    except SettingsError as error:
        raise ValueError(f"run {name!r} was made with settings that this code does not have: {error}") from None
    if run.name != name:
        raise ValueError(f"run {name!r}: its settings name the run {run.name!r}; the folder was renamed, make it anew.")
    return run


def require_finished(run: Run) -> None:
    """Refuse a run without a whole and current report.

    Raises
    ------
    ValueError
        Names the stages without executed notebook, or a page that is missing or older than what it shows.
    """
    given = pages.read_json(run.root / "settings" / "run.json") or {"profile": run.settings.profile}
    again = f"run {overview.command('all', run.name, given)}"
    missing = [stage for stage in graph.STAGES if not graph.report_path(run, stage).exists()]
    if missing:
        raise ValueError(
            f"run {run.name!r} is not finished: expected {len(graph.STAGES)} executed notebooks, found none of"
            f" {pages.listed(missing)}; {again}."
        )
    index = run.reports / "index.html"
    for stage in graph.STAGES:
        source, page = graph.report_path(run, stage), notebooks.page_path(run, stage)
        older = page.exists() and page.stat().st_mtime_ns < source.stat().st_mtime_ns
        if not page.exists() or older:
            found = "an older one" if older else "none"
            raise ValueError(f"{page}: expected the page of its executed notebook, found {found}; {again}.")
    if not index.exists() or index.stat().st_mtime_ns < max(
        graph.report_path(run, stage).stat().st_mtime_ns for stage in graph.STAGES
    ):
        found = "one older than the notebooks" if index.exists() else "none"
        raise ValueError(f"{index}: expected the front page of the run, found {found}; {again}.")
    stale = graph.stamp_faults(run, files_may_be_gone=True)
    if stale:
        stage, why = next(iter(stale.items()))
        raise ValueError(f"run {run.name!r} is out of date at {stage}: {why}; {again}.")


def recorded_settings(run: Run) -> dict[str, Any]:
    """Settings that the stages were run with, by dotted key, as their stamps keep them."""
    from nafld_utils import params

    merged: dict[str, Any] = {}
    for stage in graph.STAGES:
        stamp = pages.read_json(graph.stamp_path(run, stage)) or {}
        for name, value in stamp.get("settings", {}).items():
            merged.update(params.flat({name: value}))
    return merged
