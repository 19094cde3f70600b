"""Two runs side by side: what differs in settings, cohort and code, and their claims with intervals.

Contract: reads what both runs have stored. A difference between two numbers is computed only where both were measured
on the same patients in the same way; everywhere else the reason stands in its place. No difference has an
interval, since claims do not keep the pairing of patients that one would need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nafld_utils import artifacts, params, pipeline, views
from nafld_utils.artifacts import Run
from nafld_utils.report import facts, notebooks, pages, stored

# Settings that say what a stage's numbers measure, and on whom; the rest is what one wants to compare. Of a stage that
# is not here, all settings that it and the stages before it read.
_MEASURE: dict[str, tuple[str, ...]] = {
    "01_data_analysis": ("cohort",),
    "02_preprocessing": ("cohort", "folds"),
    "03_ldm_training": ("cohort", "folds", "preprocess"),
    "04_sampling": ("cohort", "folds", "preprocess", "ldm.folds"),
    "05_quality_metrics": ("cohort", "folds", "preprocess", "ldm.folds", "quality", "sampling.n_images"),
    "06_classification_sweep": ("cohort", "folds", "sweep.specificity", "sweep.baseline_backbone"),
    "07_shap": ("cohort", "folds", "preprocess", "shap"),
    "08_turing_test": ("cohort", "preprocess", "turing"),
}
_RATED = "08_turing_test"  # whose numbers come from raters, people or simulated ones
_Row = dict[str, str]  # a claim as a run recorded it
_NO_MEASURE = ("cohort.path", "cohort.doi", "quality.filter_of", "quality.filter_keep", "turing.ratings")


def write_comparison(a: str, b: str) -> Path:
    """Write ``reports/compare/<A>-<B>.html``.

    Parameters
    ----------
    a, b : str
        Names of two finished runs under the work folder.

    Raises
    ------
    ValueError
        A name is missing, both are the same, or a run is not there or not finished.
    """
    if not a or not b:
        there = ", ".join(artifacts.stored_runs()) or "none"
        raise ValueError(
            f"expected two runs, found A={a!r} and B={b!r}; make compare A=<run> B=<run>. Runs here: {there}."
        )
    if a == b:
        raise ValueError(f"expected two runs, found {a!r} twice; name another one.")
    runs = artifacts.open_run(run=a), artifacts.open_run(run=b)
    for run in runs:
        stored.require_finished(run)
    path = artifacts.work_root() / "reports" / "compare" / f"{a}-{b}.html"
    return artifacts.save_text(path, comparison_html(*runs))


def comparison_html(a: Run, b: Run) -> str:
    """The comparison as a self-contained page."""
    read = [notebooks.read_notebooks(run) for run in (a, b)]
    settings = _settings(a, b)
    claims = _claims(a, b, {row["name"] for row in settings}, read[0])
    rows = [row for stage in claims for row in stage["rows"]]
    page = pages.render(
        "compare.html.j2",
        title=f"{a.name} beside {b.name}",
        names=(a.name, b.name),
        simulated=pages.simulated(a, b),
        short=_short(a, b, settings, rows),
        settings=settings,
        provenance=_side_by_side(a, b, read),
        claims=claims,
        figures=_figures(read),
    )
    return pipeline.redacted(b, pipeline.redacted(a, page))


def _short(a: Run, b: Run, settings: list[dict[str, str]], rows: list[dict[str, Any]]) -> list[str]:
    """The comparison in sentences."""
    same = _content(a) == _content(b) and _content(a) != ""
    computed = sum(bool(row["difference"]) for row in rows)
    both = sum(not row["why"].startswith("only in") for row in rows)
    commits = [dict(facts.environment(run))["commit"] for run in (a, b)]
    shared = [stage for stage in pipeline.STAGES if _units(a, stage) and _units(a, stage) == _units(b, stage)]
    standing = params.listed(shared) if shared else "No stage"
    return [
        f"The cohort is {'the same, pixel by pixel' if same else 'not the same, so no difference is computed'}.",
        f"Settings of the stages that differ: {len(settings) or 'none'}.",
        f"Both were made by {'the same code' if commits[0] == commits[1] else 'different states of the code'}.",
        f"{standing} {'stands' if len(shared) < 2 else 'stand'} on the same stored units in both runs.",
        f"Of {len(rows)} claims, both runs make {both}; for {computed} of them a difference is computed.",
        "Differences are plain ones, without interval: the runs share patients and more, so two intervals side by side"
        " do not tell whether a difference is one.",
    ]  # fmt: skip


def _content(run: Run) -> str:
    return str(facts.provenance(run).get("sha256", ""))


def _units(run: Run, stage: str) -> set[tuple[str, str]]:
    record = artifacts.load_record(run.root / stage / "stage.json") or {}
    return {(entry["unit"], entry["hash"]) for entry in record.get("units", [])}


def _settings(a: Run, b: Run) -> list[dict[str, str]]:
    one, two, absent = stored.recorded_settings(a), stored.recorded_settings(b), "not a setting then"
    return [
        {
            "name": key,
            **{
                side: artifacts.LEFT_OUT if artifacts.is_private(key, found.get(key)) else str(found.get(key, absent))
                for side, found in (("a", one), ("b", two))
            },
        }
        for key in {**one, **two}
        if one.get(key) != two.get(key) or (key in one) != (key in two)
    ]


def _side_by_side(a: Run, b: Run, read: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cohort, code, machine and durations of both runs, a row each."""
    columns = []
    for run, found in zip((a, b), read, strict=True):
        durations = [(f"duration of {one['name']}", one["duration"]) for one in facts.stages(run, found)]
        facts_of = {"profile": run.settings.profile, "finished": facts.finished(found.values())}
        columns.append({**facts_of, **dict(facts.cohort(run)), **dict(facts.environment(run)), **dict(durations)})
    one, two = columns
    return [
        {"name": key, "a": one.get(key, ""), "b": two.get(key, ""), "same": one.get(key) == two.get(key)}
        for key in {**one, **two}
    ]


def _claims(a: Run, b: Run, changed: set[str], read: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of both runs by stage, side by side."""
    tables = [facts.claims_table(run) for run in (a, b)]
    same_cohort = _content(a) == _content(b) and _content(a) != ""
    people = bool(a.settings.turing.ratings and b.settings.turing.ratings)
    out = []
    for stage in pipeline.STAGES:
        why = "" if same_cohort else "other cohort"
        if not why and stage == _RATED and not people:
            why = "simulated raters"
        measure = _MEASURE.get(stage) or tuple(_read_by(stage))
        others = sorted(key for key in changed if key not in _NO_MEASURE and key.startswith(measure))
        if not why and others:
            why = f"measured otherwise: {', '.join(others[:3])}" + (" and more" if len(others) > 3 else "")
        pairs = _pairs([table[table["stage"] == stage].to_dict("records") for table in tables])
        rows = [_side_by_side_row(one, two, (a.name, b.name), why) for one, two in pairs]
        if rows:
            title = notebooks.title(read.get(stage), stage)
            same = _units(a, stage) == _units(b, stage) != set() and all(row["a"] == row["b"] for row in rows)
            out.append({"name": stage, "title": title, "rows": rows, "same": same})
    return out


def _pairs(sides: list[list[_Row]]) -> list[tuple[_Row | None, _Row | None]]:
    """A stage's claims of both runs, matched by key; by sentence and unit where one run is older than the keys."""
    keyed = all(row["key"] for rows in sides for row in rows)
    tables: list[dict[tuple[str, ...], _Row]] = [{}, {}]
    for table, rows in zip(tables, sides, strict=True):
        for row in rows:
            name, place = (row["key"],) if keyed else (row["claim"], row["unit"]), 0
            while (*name, str(place)) in table:  # sentences may be alike; then their order tells
                place += 1
            table[*name, str(place)] = row
    one, two = tables
    return [(one.get(name), two.get(name)) for name in {**one, **two}]


def _side_by_side_row(one: _Row | None, two: _Row | None, names: tuple[str, str], why: str) -> dict[str, Any]:
    """A claim of both runs for the page, with their difference or why there is none; `why` is the stage's reason."""
    made = [side for side in (one, two) if side is not None]
    row: dict[str, Any] = {
        column: " / ".join(dict.fromkeys(side[column] for side in made if side[column]))
        for column in ("claim", "unit", "over")
    }
    row |= {"a": _shown(one), "b": _shown(two), "difference": ""}
    if one is None or two is None:
        return row | {"why": f"only in {names[1] if one is None else names[0]}"}
    values = [facts.numeric(side["this_run"]) for side in made]
    if None in values:
        why = "no number"
    elif not why and (one["claim"], one["unit"]) != (two["claim"], two["unit"]):
        why = "of other images, models or units"
    elif not why and one["n"] != two["n"]:
        why = f"n differs: {views.number(one['n']) or 'none'} and {views.number(two['n']) or 'none'}"
    if not why:
        row["difference"] = views.number(values[1] - values[0])  # type: ignore[operator]
    return row | {"why": why}


def _shown(row: _Row | None) -> tuple[str, str]:
    """Value and interval for reading; both empty where a run does not make the claim."""
    return (views.number(row["this_run"]), views.interval(row["low"], row["high"])) if row else ("", "")


def _read_by(stage: str) -> list[str]:
    """Sections that a stage and all before it read."""
    return [*params.STAGE_SECTIONS[stage], *(key for name in pipeline.UPSTREAM[stage] for key in _read_by(name))]


def _figures(read: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Key figures of both runs, in pairs by stage and place; a figure without a partner stands alone."""
    out = []
    for stage in pipeline.STAGES:
        sides = [notebooks.key_figures(stage, found[stage]) if stage in found else [] for found in read]
        for place in range(max(map(len, sides))):
            pair = [side[place] if place < len(side) else None for side in sides]
            caption = next(figure["caption"] for figure in pair if figure)
            out.append({"stage": stage, "caption": caption, "pair": pair})
    return out
