"""What a run has recorded of itself: claims, cohort, durations, settings, code and machine.

Contract: reads what is stored, computes no result, and says "not recorded" where there is nothing.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nafld_utils import artifacts, params, pipeline, views
from nafld_utils.artifacts import Run
from nafld_utils.report import pages
from nafld_utils.report.notebooks import question, title

_UNSTATED = ("yes", artifacts.UNSTATED, "not in the paper")  # say nothing that differs


def claims_table(run: Run) -> pd.DataFrame:
    """The claims of all stages in order, with a column ``stage`` in front; ``key`` is empty in runs of old code."""
    columns, tables = ["stage", *artifacts.CLAIM_COLUMNS], []
    for stage in pipeline.STAGES:
        path = run.root / stage / "claims.csv"
        if path.exists():
            table = pd.read_csv(path, dtype=str, keep_default_na=False).assign(stage=stage)
            tables.append(table.reindex(columns=columns, fill_value=""))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns, dtype=str)


def claims(table: pd.DataFrame, notebooks: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of `claims_table` for reading, per stage ``name, title, rows``, and what differs from the paper's protocol.

    A row names what differs by its numbers in that list, from 1; ``beside_paper`` where the paper has a number.
    """
    rows = [table[table["paper"] != ""], table[table["paper"] == ""]]
    told = dict.fromkeys(part for some in rows for text in some["same_protocol"] for part in _parts(text))
    legend = {part: number for number, part in enumerate((part for part in told if part not in _UNSTATED), 1)}
    out = []
    for stage, part in table.groupby("stage", sort=True):
        entries = []
        for row in part.to_dict("records"):
            # The paper's own digits stay; only the ".0" that a column with gaps gives to whole numbers goes.
            paper, same = row["paper"].removesuffix(".0"), row["same_protocol"]
            numbers = _ranges(sorted(legend[text] for text in _parts(same) if text in legend))
            comparable = "yes" if same == "yes" else f"no: {numbers}" if paper and numbers else numbers
            if same == "yes" and numeric(paper) is not None and numeric(row["this_run"]) is not None:
                comparable = f"yes, differs by {views.number(numeric(row['this_run']) - numeric(paper))}"
            bounds = views.interval(row["low"], row["high"]).replace(" ", "\u00a0")
            shown = {"this_run": views.number(row["this_run"]), "interval": bounds, "n": views.number(row["n"])}
            shown |= {"claim": views.named(row["claim"]), "unit": views.unit_beside(row["claim"], row["unit"])}
            entries.append({**row, **shown, "paper": paper, "beside_paper": bool(paper), "comparable": comparable})
        out.append({"name": stage, "title": title(notebooks.get(stage), stage), "rows": entries})
    return out, list(legend)


def _ranges(numbers: list[int]) -> str:
    """Numbers in words, neighbours together, e.g. ``1, 4 to 8``."""
    parted = itertools.groupby(enumerate(numbers), lambda one: one[1] - one[0])
    runs = [[number for _, number in run] for _, run in parted]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _parts(same_protocol: str) -> list[str]:
    """What differs from the paper's protocol, part by part; a semicolon within brackets does not part."""
    text = same_protocol.removeprefix("no: ")
    return [part.strip() for part in re.split(r";\s+(?![^(]*\))", text) if part.strip()]


@dataclass(frozen=True)
class Claim:
    """One row of a stage's claims, for sentences."""

    key: str
    text: str
    value: float
    low: float | None
    high: float | None
    over: str
    n: str

    @property
    def parts(self) -> list[str]:
        """The parts of the key, e.g. ``copies, share, class``."""
        return self.key.split(".")

    @property
    def bounded(self) -> bool:
        """Whether it has an interval that tells something: one of no width does not."""
        return self.low is not None and self.high is not None and self.low < self.high

    def interval(self) -> str:
        """The interval for reading; empty where there is none."""
        return views.interval(self.low, self.high)

    def bare(self) -> str:
        """The value, with its interval where it has one."""
        return self.shown(over=False) if self.bounded else views.number(self.value)

    def shown(self, over: bool = True, percent: bool = False) -> str:
        """Value and interval in words, e.g. ``0.012 [-0.07, 0.11] (95 % interval over patients)``."""
        factor, unit = (100, " %") if percent else (1, "")
        text = f"{views.number(factor * self.value)}{unit}"
        if not self.bounded:
            return f"{text} ({self.over if self.over.startswith('no interval') else 'no interval'})"
        text += f" {views.interval(factor * self.low, factor * self.high)}"  # type: ignore[operator]
        return f"{text} (95 % interval over {self.over})" if over else text


def find(table: pd.DataFrame, beginning: str) -> list[Claim]:
    """Claims with a number whose key is `beginning` or continues it, in their order."""
    rows = table[(table["key"] + ".").str.startswith(f"{beginning}.")].to_dict("records")
    numbers = [[numeric(row[name]) for name in ("this_run", "low", "high")] for row in rows]
    return [
        Claim(row["key"], views.named(row["claim"]), value, low, high, row["over"], views.number(row["n"]))
        for row, (value, low, high) in zip(rows, numbers, strict=True)
        if value is not None
    ]


def first(table: pd.DataFrame, beginning: str) -> Claim | None:
    """The first of `find`, or None."""
    return next(iter(find(table, beginning)), None)


def numeric(text: Any) -> float | None:
    """A stored number, or None where the text is none or not finite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def provenance(run: Run) -> dict[str, Any]:
    """What stage 01 could prove about the cohort's origin; empty where it has not run."""
    return artifacts.load_record(run.root / "cohort" / "provenance.json") or {}


def _stored(run: Run, name: str) -> pd.DataFrame | None:
    """A table of the cohort; None where the cohort has not been loaded."""
    path = run.root / "cohort" / name
    return pd.read_csv(path) if path.exists() else None


def cohort(run: Run) -> list[tuple[str, str]]:
    """Origin, content and sizes of the cohort, for reading."""
    found = provenance(run)
    if not found:
        return [("provenance", "not loaded yet")]
    facts = [
        ("provenance", f"{found.get('kind', 'unknown')}: {found.get('text', '')}".strip(": ")),
        ("content", f"sha256 {found.get('sha256', 'unknown')} of the decoded pixels"),
    ]
    patients, images = _stored(run, "patients.csv"), _stored(run, "images.csv")
    if patients is not None:
        named = zip(patients_by_class(run), run.settings.cohort.class_names, strict=True)
        facts.append(("patients", f"{len(patients)}: {', '.join(f'{n} {name}' for n, name in named)}"))
    if images is not None:
        facts.append(("images", str(len(images))))
    return facts + left_out(run)


def left_out(run: Run) -> list[tuple[str, str]]:
    """What the settings leave out of the cohort, counted where the cohort was stored with its counts."""
    found, s = provenance(run), run.settings.cohort
    if not found.get("used"):
        return []
    counted = found.get("format") != "folder" or "of_other_classes" in found
    frames, others = int(found["images"]) - int(found["used"]), int(found.get("of_other_classes", 0))
    facts = []
    if s.frames_per_patient:
        text = f"{frames} of {found['images']} images" if counted else "not counted by the code that read this cohort"
        facts.append(("left out", f"{text}, by cohort.frames_per_patient {s.frames_per_patient}"))
    if others:
        facts.append(("other classes", f"{others} images of {', '.join(s.leave_out)}, by cohort.leave_out"))
    return facts


def patients_by_class(run: Run) -> list[int]:
    """Numbers of patients with label 0 and label 1; empty where the cohort has not been loaded."""
    patients = _stored(run, "patients.csv")
    return [] if patients is None else [int((patients["label"] == value).sum()) for value in (0, 1)]


def missing_grades(run: Run) -> list[int]:
    """Numbers of patients with label 0 and label 1 whose grade is not known; empty where no cohort has been loaded."""
    patients = _stored(run, "patients.csv")
    if patients is None:
        return []
    missing = patients.reindex(columns=["grade"])["grade"].isna()
    return [int((missing & (patients["label"] == value)).sum()) for value in (0, 1)]


def turing_images(run: Run) -> tuple[int, int]:
    """Real and synthetic images of the Turing test: those of its set, or those asked for where there is no set yet."""
    path = run.root / "turing" / "set" / "items.csv"
    if path.exists():
        is_real = pd.read_csv(path)["is_real"]
        return int((is_real == 1).sum()), int((is_real == 0).sum())
    s = run.settings.turing
    return s.n_real_unhealthy + s.n_real_healthy, s.n_synthetic_unhealthy + s.n_synthetic_healthy


def stages(run: Run, notebooks: Mapping[str, Any], left_out: Iterable[str] = ()) -> list[dict[str, Any]]:
    """One entry per stage for the table of reports, with durations; pages in `left_out` are named and not linked."""
    out, counted, left_out = [], set(), set(left_out)
    for stage in pipeline.STAGES:
        notebook = notebooks.get(stage)
        seconds = 0.0
        for entry in (artifacts.load_record(run.root / stage / "stage.json") or {}).get("units", []):
            if entry["unit"] not in counted:
                counted.add(entry["unit"])
                seconds += (artifacts.read_manifest(run.root / entry["unit"]) or {}).get("seconds", 0.0)
        duration = notebook.metadata.get("papermill", {}).get("duration") if notebook else None
        out.append(
            {
                "name": stage,
                "title": title(notebook, stage),
                "question": question(notebook),
                "executed": notebook is not None,
                "left_out": stage in left_out,
                "duration": pages.clock(duration),
                "computing": pages.clock(seconds) if notebook else "",
            }
        )
    return out


def finished(notebooks: Iterable[Any]) -> str:
    """When the last notebook ended, to the minute."""
    ends = [note.metadata.get("papermill", {}).get("end_time") or "" for note in notebooks]
    return max(ends, default="")[:16].replace("T", " ") + " UTC" if any(ends) else "not yet"


def settings(run: Run) -> list[dict[str, str]]:
    """Settings in force, each with the paper profile's value where it differs; no folder of this machine."""
    shown = run.show(*(name for name in type(run.settings).model_fields if name != "profile"))
    return [{"name": key, "value": value, "paper": paper} for key, value, paper in shown.itertuples(index=False)]


def declared(run: Run) -> dict[str, Any]:
    """``sentence, units, decisions, settings``: texts for the head of the page, rows for its section on settings."""
    protocol = params.protocol()
    differs = {item.key: item.here for item in params.differences(run.settings)}
    settings = [
        {"name": key, "declared": params.as_yaml(entry.value), "here": differs.get(key, ""), "why": entry.why}
        for key, entry in protocol.settings.items()
    ]
    decisions = [(name, f"{item.decision} Why: {item.why}") for name, item in protocol.decisions.items()]
    return {
        "sentence": params.agreement(run.settings, rest="the last list of this section holds them, with reasons"),
        "units": _declared_of_units(run),
        "decisions": decisions,
        "settings": settings,
    }


def _declared_of_units(run: Run) -> str:
    """Hash of today's declared analysis, and how many units were made under another one or before any was recorded."""
    today = artifacts.declared_hash()
    made = Counter(str(item.get("declared", "")) for item in manifests(run))
    text = [f"The declared analysis has the hash {today}."]
    for found, count in sorted(made.items()):
        units = f"{count} of {made.total()} units {'was' if count == 1 else 'were'} made"
        if not found:
            text.append(f"{units} before the hash was recorded.")
        elif found != today:
            text.append(f"{units} under another declared analysis ({found}): it was changed after that.")
    return " ".join(text)


def command(run: Run) -> str:
    """How to ask for this run again; empty where the run was not made by make."""
    given = artifacts.load_record(run.root / "settings" / "run.json")
    if not given:
        return ""
    overrides = {
        key: artifacts.LEFT_OUT if artifacts.is_private(key, value) else value
        for key, value in given.get("overrides", {}).items()
    }
    return pipeline.command("all", run.name, given | {"overrides": overrides})


def manifests(run: Run) -> list[dict[str, Any]]:
    """Manifests of all units of a run; what make keeps in ``settings`` is none."""
    found = (artifacts.read_manifest(path.parent) for path in sorted(run.root.rglob(artifacts.MANIFEST)))
    return [manifest for manifest in found if manifest and "hash" in manifest]


def environment(run: Run) -> list[tuple[str, str]]:
    """Code, devices, machines and versions that the run's units were made with, and the hash of its settings."""
    made = manifests(run)
    commits = Counter(str(item.get("commit", "")) for item in made)
    versions = [f"{name} {version}" for item in made for name, version in item.get("versions", {}).items()]
    named = "device", "threads", "machine", "Python"
    facts = {
        "commit": [_commit(name, count, len(commits)) for name, count in sorted(commits.items()) if name],
        **{name: [str(item.get(name.lower()) or "") for item in made] for name in named},
        "libraries": versions,
        "torch of each training": _trained_with(made),
        "weights from the hub": _from_hub(made),
        "settings": [f"digest {artifacts.digest(run.settings.model_dump(mode='json', by_alias=True))} of all settings"],
        "units": [f"{len(made)}, each with its manifest of settings, inputs and file hashes (run.json)"],
    }
    return [(name, ", ".join(sorted(set(values) - {""})) or "not recorded") for name, values in facts.items()]


def _trained_with(made: list[dict[str, Any]]) -> list[str]:
    """Trainings that were begun with one version of torch and ended with another, one by one."""
    trained = {item["unit"]: item["trained_with"] for item in made if "trained_with" in item}
    mixed = [f"{unit}: {', then '.join(versions)}" for unit, versions in trained.items() if len(versions) > 1]
    return mixed or ["one alone"] * bool(trained)


def _from_hub(made: list[dict[str, Any]]) -> list[str]:
    """Repositories of the Hugging Face hub that weights were taken from, with their commits."""
    stages = [item["autoencoder"] for item in made if item.get("autoencoder")]
    found = [f"autoencoder at commit {stage['commit'] or 'not known'}" for stage in stages if "commit" in stage]
    return [*found, *(item["hub"] for item in made if "hub" in item)] or ["none"]


def _commit(name: str, units: int, of: int) -> str:
    """A recorded commit in words, with how many units it made where there are several."""
    share = f" ({units} units)" if of > 1 else ""
    if name == "unknown":
        return f"not known: the code was in no git checkout that git could read{share}"
    if name.endswith("-dirty"):
        return f"{name.removesuffix('-dirty')} with uncommitted changes{share}"
    return f"{name}, nothing uncommitted{share}"
