"""Reports that can be mailed: each executed notebook as one HTML file, and the front page that sums up a run.

Contract: a page carries all it needs (figures and style embedded, code folded) and fetches no address when opened; what
comes from data is escaped; a page made from simulated patients says so on top. Pages are built from what a run has
stored, nothing is computed again, and a stage that has not run is shown as such.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils import artifacts, graph, overview, params
from nafld_utils.artifacts import Run

KEY_FIGURE = "key-figure"  # tag of the notebook cells whose figures appear on the front page
_PER_STAGE = 2  # figures of one notebook on the front page
_TEMPLATES = Path(__file__).parent / "templates"
_IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NOTE = '<p class="note">Interactive in JupyterLab only; its static twin is on this page.</p>'


def write_notebook(run: Run, stage: str) -> Path:
    """Write the executed notebook of a stage as one HTML file beside it.

    Raises
    ------
    ValueError
        The notebook has not been executed.
    """
    page = notebook_html(run, stage, _read_notebook(run, stage))
    return artifacts.save_text(run.reports / f"{stage}.html", page)


def write_index(run: Run) -> Path:
    """Write ``index.html``, the front page of a run."""
    return artifacts.save_text(run.reports / "index.html", index_html(run))


def notebook_html(run: Run, stage: str, notebook: Any) -> str:
    """One executed notebook as a self-contained page.

    Parameters
    ----------
    run : Run
        The run, for banner and links.
    stage : str
        Name of the stage.
    notebook : nbformat.NotebookNode
        The executed notebook; its outputs are made fit for a page.

    Returns
    -------
    str
        HTML.
    """
    from nbconvert import HTMLExporter

    _prepare(notebook)
    template = str(_TEMPLATES / "notebook.html.j2")
    exporter = HTMLExporter(template_name="basic", template_file=template)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    for address in ("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url", "html_manager_semver_range"):
        if exporter.has_trait(address):
            setattr(exporter, address, "")
    page = {
        "title": f"{_title(notebook, stage)} · {run.name}",
        "css": _css(),
        "simulated": _simulated(run),
        "links": _links(stage),
        "foot": f"Run {run.name}, profile {run.settings.profile}. {_citation()}",
    }
    html, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    return html


def index_html(run: Run) -> str:
    """The front page of a run, from what its stages have stored."""
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    notebooks = {stage: _read_notebook(run, stage) for stage in graph.STAGES if graph.report_path(run, stage).exists()}
    return environment.get_template("index.html.j2").render(
        title=f"{run.name} · synthetic liver ultrasound",
        css=_Safe(_css()),
        run=run.name,
        profile=run.settings.profile,
        finished=_finished(notebooks.values()),
        simulated=_simulated(run),
        claims=_claims(run, notebooks),
        figures=[figure for stage, notebook in notebooks.items() for figure in key_figures(stage, notebook)],
        cohort=_cohort(run),
        stages=_stages(run, notebooks),
        settings=_settings(run),
        command=_command(run),
        environment=_environment(run),
        foot=_citation(),
    )


class _Safe(str):
    """Text of ours that a template takes as it is."""

    def __html__(self) -> str:
        return self


# ---------------------------------------------------------------- parts of the front page


def claims_table(run: Run) -> pd.DataFrame:
    """The claims of all stages in order, with a column ``stage`` in front."""
    tables = []
    for stage in graph.STAGES:
        path = run.root / stage / "claims.csv"
        if path.exists():
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            table.insert(0, "stage", stage)
            tables.append(table)
    columns = ["stage", *artifacts.CLAIM_COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def key_figures(stage: str, notebook: Any) -> list[dict[str, str]]:
    """Figures for the front page: the first two tagged ``key-figure``, else the first of the notebook.

    Returns
    -------
    list of dict
        ``stage, mime, data`` (base64), ``alt, caption``; the caption is the heading above the figure and the text
        that follows it.
    """
    found, tagged, heading = [], [], ""
    cells = notebook.cells
    for index, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            heading = next(reversed(_headings(cell.source)), heading)
            continue
        for data in _images_of(cell):
            caption = _caption(heading, cells[index + 1] if index + 1 < len(cells) else None)
            figure = {"stage": stage, **data, "alt": f"Figure: {heading or stage}", "caption": caption}
            (tagged if KEY_FIGURE in cell.metadata.get("tags", []) else found).append(figure)
    return tagged[:_PER_STAGE] or found[:1]


def _images_of(cell: Any) -> list[dict[str, str]]:
    import base64

    out = []
    for output in cell.get("outputs", []):
        mime = next((name for name in _IMAGES if name in output.get("data", {})), None)
        if mime:
            text = "".join(output.data[mime])
            data = base64.b64encode(text.encode()).decode() if mime == "image/svg+xml" else text.replace("\n", "")
            out.append({"mime": mime, "data": data})
    return out


def _caption(heading: str, after: Any) -> str:
    text = after.source.strip() if after is not None and after.cell_type == "markdown" else ""
    first = re.split(r"\n\s*\n", text)[0] if text and not text.startswith("#") else ""
    sentence = _plain(first)
    return f"{heading}. {sentence}".strip(". ") + "." if heading else sentence or "Figure."


def _claims(run: Run, notebooks: Mapping[str, Any]) -> list[dict[str, Any]]:
    table = claims_table(run)
    out = []
    for stage, rows in table.groupby("stage", sort=True):
        entries = []
        for row in rows.to_dict("records"):
            low, high = number(row["low"]), number(row["high"])
            interval = f"[{low}, {high}]" if low or high else ""
            # The paper's own digits stay; only the ".0" that a column with gaps gives to whole numbers goes.
            numbers = {
                "paper": row["paper"].removesuffix(".0"),
                **{name: number(row[name]) for name in ("this_run", "n")},
            }
            entries.append({**row, **numbers, "interval": interval})
        title = _title(notebooks[stage], stage) if stage in notebooks else stage
        out.append({"name": stage, "title": title, "rows": entries})
    return out


def number(text: Any) -> str:
    """A stored number for reading: integers whole, others with three or four digits; other text as it is.

    Examples
    --------
    >>> number("0.86123"), number("550.0"), number("0.51 [0.40, 0.62]"), number(float("nan"))
    ('0.861', '550', '0.51 [0.40, 0.62]', '')
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        return str(text or "")
    if math.isnan(value):
        return ""
    if math.isinf(value) or (value.is_integer() and abs(value) < 1e15):
        return str(value) if math.isinf(value) else str(int(value))
    if abs(value) < 10:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _cohort(run: Run) -> list[tuple[str, str]]:
    folder = run.root / "cohort"
    facts = []
    provenance = _json(folder / "provenance.json")
    if provenance:
        facts += [
            ("provenance", f"{provenance.get('kind', 'unknown')}: {provenance.get('text', '')}".strip(": ")),
            ("content", f"sha256 {provenance.get('sha256', 'unknown')} of the decoded pixels"),
        ]
    else:
        facts.append(("provenance", "not loaded yet"))
    if (folder / "patients.csv").exists():
        patients = pd.read_csv(folder / "patients.csv")
        names = run.settings.cohort.class_names
        counts = ", ".join(f"{int((patients['label'] == label).sum())} {name}" for label, name in enumerate(names))
        facts.append(("patients", f"{len(patients)}: {counts}"))
    if (folder / "images.csv").exists():
        facts.append(("images", str(len(pd.read_csv(folder / "images.csv")))))
    return facts


def _stages(run: Run, notebooks: Mapping[str, Any]) -> list[dict[str, Any]]:
    out, counted = [], set()
    for stage in graph.STAGES:
        notebook = notebooks.get(stage)
        seconds = 0.0
        for entry in (_json(run.root / stage / "stage.json") or {}).get("units", []):
            if entry["unit"] not in counted:
                counted.add(entry["unit"])
                seconds += (artifacts.read_manifest(run.root / entry["unit"]) or {}).get("seconds", 0.0)
        duration = notebook.metadata.get("papermill", {}).get("duration") if notebook else None
        out.append(
            {
                "name": stage,
                "title": _title(notebook, stage) if notebook else stage,
                "question": _question(notebook) if notebook else "",
                "executed": notebook is not None,
                "html": notebook is not None,
                "duration": _clock(duration),
                "computing": _clock(seconds) if notebook else "",
            }
        )
    return out


def _settings(run: Run) -> list[dict[str, str]]:
    paper = params.flat(params.load(params.BASE_PROFILE).model_dump(mode="json", by_alias=True))
    mine = params.flat(run.settings.model_dump(mode="json", by_alias=True))
    return [
        {"name": key, "value": str(value), "paper": str(paper[key]) if value != paper[key] else ""}
        for key, value in mine.items()
        if key != "profile"
    ]


def _command(run: Run) -> str:
    """How to ask for this run again; empty where the run was not made by make."""
    given = _json(run.root / "settings" / "run.json")
    if not given:
        return ""
    return overview.command("all", run.name, given)


def _environment(run: Run) -> list[tuple[str, str]]:
    """Versions, machine, devices and commits that the run's units were made with."""
    commits, devices, machines, pythons, versions = (set[str]() for _ in range(5))
    for path in run.root.rglob(artifacts.MANIFEST):
        manifest = artifacts.read_manifest(path.parent) or {}
        commits.add(str(manifest.get("commit", "")))
        devices.add(str(manifest.get("device", "")))
        machines.add(str(manifest.get("machine", "")))
        pythons.add(str(manifest.get("python", "")))
        versions.update(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    facts = {
        "commit": commits,
        "device": devices,
        "machine": machines,
        "Python": pythons,
        "libraries": versions,
    }
    return [(name, ", ".join(sorted(values - {""})) or "not recorded") for name, values in facts.items()]


# ---------------------------------------------------------------- texts


def _simulated(run: Run) -> str:
    if not run.is_simulated:
        return ""
    return (
        "SIMULATED COHORT: every image and number below comes from simulated patients and says nothing about real ones."
    )


def _citation() -> str:
    return "nafld-ldm, MIT licence. Pages are self-contained: nothing is fetched from the network."


def _links(stage: str) -> list[dict[str, str]]:
    names = graph.STAGES
    here = names.index(stage)
    links = [{"href": "index.html", "text": "front page"}]
    if here > 0:
        links.append({"href": f"{names[here - 1]}.html", "text": f"← {names[here - 1]}"})
    if here + 1 < len(names):
        links.append({"href": f"{names[here + 1]}.html", "text": f"{names[here + 1]} →"})
    return links


def _headings(source: str) -> list[str]:
    return [_plain(text) for text in re.findall(r"^#+\s+(.+)$", source, re.MULTILINE)]


def _plain(text: str) -> str:
    """Markdown of a sentence as plain text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).split())


def _title(notebook: Any, stage: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and _headings(cell.source):
            return _headings(cell.source)[0]
    return stage


def _question(notebook: Any) -> str:
    """First sentence of the notebook that is neither a heading nor the list of what it reads and writes."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for block in re.split(r"\n\s*\n", re.sub(r"^#+[^\n]*$", "\n", cell.source, flags=re.MULTILINE)):
                text = _plain(block)
                if text and not block.lstrip().startswith(("**Paper", "**Reads", "**Writes")):
                    return re.split(r"(?<=[.?!]) ", text)[0]
    return ""


def _prepare(notebook: Any) -> None:
    """Give images the heading above them as alternative text; a note stands for a widget, nothing for a script."""
    heading = ""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(reversed(_headings(cell.source)), heading)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/javascript", None)
            if _WIDGET in data:
                data.clear()
                data["text/html"] = _NOTE
            for mime in (name for name in _IMAGES if name in data):
                output.metadata.setdefault(mime, {}).setdefault("alt", f"Figure: {heading}")
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def _finished(notebooks: Iterable[Any]) -> str:
    ends = [note.metadata.get("papermill", {}).get("end_time") or "" for note in notebooks]
    return max(ends, default="")[:16].replace("T", " ") + " UTC" if any(ends) else "not yet"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@functools.cache
def _css() -> str:
    from pygments.formatters import HtmlFormatter

    return (_TEMPLATES / "report.css").read_text(encoding="utf-8") + HtmlFormatter(style="default").get_style_defs(
        ".highlight"
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _read_notebook(run: Run, stage: str) -> Any:
    import nbformat

    path = graph.report_path(run, stage)
    if not path.exists():
        raise ValueError(f"{path}: expected an executed notebook, found none; run make {stage}.")
    return nbformat.read(os.fspath(path), as_version=4)
