"""Where a run is: which stages and which of their units are done, as the notebooks and the start page show it.

Contract: nothing is computed or written. Stages are as `pipeline.status` has them, which imports nothing heavy; what
asks for units imports the stages themselves, as a stage's notebook does anyhow. Texts are Markdown, so that
JupyterLab shows them in its own colours, light or dark.
"""

from __future__ import annotations

import collections
import html
import importlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils import artifacts, engine, params, sweep
from nafld_utils.artifacts import Run, Unit
from nafld_utils.pipeline import staleness

START = "start.ipynb"
# Functions that give the units of a stage, imported when they are asked for: they are heavy.
UNITS: dict[str, tuple[str, ...]] = {
    "01_data_analysis": ("nafld_utils.cohort.unit.cohort_unit", "nafld_utils.cohort.one_person_units.pairs_unit"),
    "02_preprocessing": ("nafld_utils.preprocessing.unit.preprocess_unit",),
    "03_ldm_training": ("nafld_utils.ldm.units",),
    "04_sampling": ("nafld_utils.sampling.units",),
    "05_quality_metrics": ("nafld_utils.quality.units",),
    "06_classification_sweep": ("nafld_utils.sweep.units",),
    "07_shap": ("nafld_utils.explain.check_units.units",),
    "08_turing_test": ("nafld_utils.turing.units.units",),
}
TRAINED = {"autoencoder": "autoencoders", "ldm": "denoisers", "gan": "GANs"}  # units that take hours, by kind


def units_of(run: Run, stage: str) -> list[Unit]:
    """Every unit that a stage of this run stands on, whether it is made or not, in the order of its notebook.

    Raises
    ------
    ValueError
        They cannot be named yet, e.g. because the cohort's file is missing, or `UNITS` lacks the stage; the message
        says why.
    """
    if stage not in UNITS:
        raise ValueError(
            f"stage {stage}: expected an entry in UNITS of nafld_utils/pipeline/overview.py, found none; name there the"
            " functions of its room that give its units."
        )
    units: list[Unit] = []
    for name in UNITS[stage]:
        module, _, function = name.rpartition(".")
        found = getattr(importlib.import_module(module), function)(run)
        units += [found] if isinstance(found, Unit) else found
    return units


def unit_states(run: Run, stage: str) -> pd.DataFrame:
    """How many units of each kind are done: ``what, done, of, next``, one row per kind (a folder below the run's).

    ``next`` says what holds for the first unit that is not done: why, or that it goes on where it was interrupted;
    where all are done, how many were computed with another number of threads than ``engine.threads``.
    """
    kinds: dict[str, list[Unit]] = {}
    for unit in {unit.path: unit for unit in units_of(run, stage)}.values():
        kinds.setdefault(_kind(unit), []).append(unit)
    rows = []
    for kind, units in kinds.items():
        faults = [(unit, fault) for unit in units if (fault := unit.fault())]
        told = _next(*faults[0]) if faults else _rounded(units, run.settings.engine.threads)
        rows.append((kind, len(units) - len(faults), len(units), told))
    if stage == "06_classification_sweep":
        counts = sweep.status(run)["state"].value_counts()
        failed = f"{counts['failed']} failed" if "failed" in counts else ""
        rows.insert(0, ("trainings", int(counts.get("done", 0)), int(counts.sum()), failed))
    return pd.DataFrame(rows, columns=["what", "done", "of", "next"])


def _next(unit: Unit, fault: str) -> str:
    name = unit.recipe["unit"]
    return f"{name}: goes on where it was interrupted" if unit.work.is_dir() else f"{name}: {fault}"


def _rounded(units: list[Unit], threads: int) -> str:
    """Says of finished units that their last digits may differ from those that these settings would give."""
    made = [(artifacts.read_manifest(unit.path) or {}).get("threads") or threads for unit in units]
    others = [n for n in made if n != threads]
    text = f"{len(others)} computed with {' or '.join(map(str, sorted(set(others))))} threads, not {threads}"
    return f"{text}: the last digits may differ" if others else ""


def _kind(unit: Unit) -> str:
    return unit.recipe["unit"].split("/")[0]


def trained_again(run: Run) -> dict[str, list[float]]:
    """Finished trainings of this run that would be made again, with these settings: kind to seconds that each took.

    Raises
    ------
    ValueError
        They cannot be named yet, as in `units_of`.
    """
    seconds: dict[str, list[float]] = {}
    for unit in {unit.path: unit for unit in units_of(run, "03_ldm_training")}.values():
        # one that was never made, or whose record is gone, has no time
        if _kind(unit) in TRAINED and unit.fault() and unit.seconds() >= 0:
            seconds.setdefault(TRAINED[_kind(unit)], []).append(unit.seconds())
    before = sweep.finished_before(sweep.store(run))
    if before:
        missing = sweep.to_train(sweep.status(run), run.settings.sweep.retry_failed)
        names = missing[list(sweep.TRIAL_COLUMNS)].itertuples(index=False, name=None)
        found = [before[name] for name in names if name in before]
        seconds |= {"classifiers": found} if found else {}
    return seconds


def trained_again_text(run: Run) -> str:
    """A line on the finished trainings that would be made again and their hours; empty where there are none."""
    try:
        again = trained_again(run)
    except ValueError as error:
        return f"Which finished trainings would be made again cannot be told: {error}"
    parts = []
    for kind, seconds in again.items():
        name = kind if len(seconds) > 1 else kind.removesuffix("s")
        parts.append(f"{len(seconds)} {name} ({_duration(sum(seconds))})")
    return f"would be made again: {', '.join(parts)}" if parts else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"


def begin(run: Run, stage: str) -> Any:
    """Check what a notebook needs before it computes anything, set its number of threads, and tell where it stands.

    Parameters
    ----------
    run : Run
        The run.
    stage : str
        Name of the stage.

    Returns
    -------
    IPython.display.Markdown
        Run, profile, stage, and, where somebody looks on, which of the stage's units are done.

    Raises
    ------
    OSError
        The disk is nearly full (``engine.min_free_gib``).
    ValueError
        Before any model is trained, in stages 02 and 03: the classifiers of the sweep will take more images than the
        models will draw; or the cohort is not stored.
    """
    engine.collect_seldom()
    engine.keep_strings()
    artifacts.check_disk(run)
    engine.use_threads(run.settings.engine.threads)
    if stage in ("02_preprocessing", "03_ldm_training"):
        sweep.require_capacity(run)
    return here(run, stage)


def here(run: Run, stage: str) -> Any:
    """Where a notebook stands, as `IPython.display.Markdown`: run, profile, stage, and which of its units are done.

    A headless run shows the first line alone: what is done before a report is made is no part of the report.
    """
    from IPython.display import Markdown

    number = staleness.STAGES.index(stage) + 1
    line = f"**Run {run.name}** · profile {run.settings.profile} · stage {number} of {len(staleness.STAGES)}, {stage}"
    if engine.is_headless():
        return Markdown(line)
    if artifacts.given_to_lab():
        line += f" · [start page]({START})"
    try:
        table = unit_states(run, stage)
    except ValueError as error:
        return Markdown(f"{line}\n\nNothing is done yet: {escape(error)}")
    done, of = table["done"].sum(), table["of"].sum()
    word = "all done: this notebook opens what is stored" if done == of else "what is missing is made below"
    return Markdown(f"{line} · **{done} of {of} done**, {word}\n\n{markdown_table(table)}")


def markdown_table(table: pd.DataFrame) -> str:
    """A table as Markdown; its texts are shown as they are, except in a column that ends in ``_md``."""
    raw = [name for name in table if name.endswith("_md")]
    head = [name.removesuffix("_md").replace("_", " ") for name in table]
    align = ["---:" if pd.api.types.is_numeric_dtype(table[name]) else ":---" for name in table]
    lines = [head, align]
    for item in table.to_dict("records"):
        lines.append([str(value) if name in raw else escape(value) for name, value in item.items()])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(value: Any) -> str:
    """A text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|~$" else letter for letter in text)


def lab_run() -> tuple[Run, Path]:
    """The run that ``make lab`` was started for, by default the default profile's, and the folder of its notebooks."""
    notebooks = (artifacts.given_to_lab() or {}).get("notebooks", artifacts.PROJECT_ROOT / "notebooks")
    return artifacts.open_run(params.DEFAULT_PROFILE), Path(notebooks)


def stages(run: Run, notebooks: Path) -> Any:
    """The start page's table: every stage with its state, and links to its notebook and its report."""
    from IPython.display import Markdown

    found = staleness.status(run, notebooks)
    counts = collections.Counter(stage.state for stage in found.values())
    told = ", ".join(f"{counts[state]} {state}" for state in staleness.State if counts[state])
    simulated = " · simulated cohort" if run.is_simulated else ""
    head = f"**Run {run.name}** · profile {run.settings.profile}{simulated} · {len(found)} stages: {told}"
    rows = []
    for name, stage in found.items():
        page = _link(stage.report, run.reports / f"{name}.html", notebooks)
        since = escape(stage.due) if stage.report is staleness.Age.OLDER else ""
        why = f"**{stage.state}**" + (f": {escape(stage.why)}" if stage.why else "")
        asked = question(notebooks / f"{name}.ipynb")
        rows.append((f"[{name}]({name}.ipynb)", asked, why, ": ".join(filter(None, (page, since))) or "none"))
    columns = ["notebook_md", "question", "state_md", "report_md"]
    front = _link("front page of the reports", run.reports / "index.html", notebooks)
    table = markdown_table(pd.DataFrame(rows, columns=columns))
    return Markdown(f"{head}\n\n{table}\n\n{front or 'No front page yet.'}")


def question(notebook: Path) -> str:
    """The title of a notebook, without its number."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0]
    except (OSError, ValueError, KeyError, IndexError):
        return ""
    return title.lstrip("# ").partition("·")[2].strip() or title.lstrip("# ")


def _link(words: str, path: Path, notebooks: Path) -> str:
    """A link that JupyterLab can follow, or the path where the file lies outside of its root; empty if not there."""
    if not path.exists():
        return ""
    root, path = notebooks.absolute().parent.resolve(), path.absolute().resolve()
    if not path.is_relative_to(root):
        return f"`{path}`"
    return f"[{words}]({os.path.relpath(path, notebooks.resolve())})"


def runs(of: Run) -> Any:
    """The start page's table of `of` and the runs beside it: name, stages that have finished, command that opens it."""
    from IPython.display import Markdown

    rows = []
    for folder in sorted(of.root.parent.glob("[!.]*/")):
        given = artifacts.load_record(folder / "settings" / "run.json")
        finished = sum((folder / stage / "stage.json").exists() for stage in staleness.STAGES)
        if given or finished:
            this = " (open now)" if folder.name == of.name else ""
            opening = command("lab", folder.name, given) if given else ""
            opening = f"`{opening}`" if opening else "not made by make"
            rows.append((f"{escape(folder.name)}{this}", f"{finished} of {len(staleness.STAGES)}", opening))
    if not rows:
        return Markdown("No run has been made by `make` yet.")
    return Markdown(markdown_table(pd.DataFrame(rows, columns=["run_md", "stages finished", "open it with_md"])))


def command(target: str, name: str, given: dict[str, Any]) -> str:
    """The make command for a run, from the ``settings/run.json`` that make left of it: safe to paste into a shell.

    Empty where that file, which may have come by mail, names no profile.
    """
    if not (params.NAME.fullmatch(str(given.get("profile") or "")) and params.NAME.fullmatch(name)):
        return ""
    overrides = {key: value for key, value in given.get("overrides", {}).items() if key != "run"}
    words = ["make", target, f"PROFILE={given['profile']}"]
    if name != given["profile"]:
        words.append(f"RUN={name}")
    if overrides.get("cohort.source") == "file" and overrides.get("cohort.path"):
        del overrides["cohort.source"]
        words.append(f"DATA={shlex.quote(str(overrides.pop('cohort.path')))}")
    if overrides:
        pairs = " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())
        words.append("SET='" + pairs.replace("'", "'\"'\"'") + "'")  # in quotes even where none are needed
    return " ".join(words)
