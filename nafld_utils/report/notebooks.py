"""Executed notebooks as pages, and the figures that the front page takes from them.

Contract: see `nafld_utils.report`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, pipeline
from nafld_utils.artifacts import Run
from nafld_utils.report import pages

KEY_FIGURE = "key-figure"  # tag of the notebook cells whose figures sum up a stage
ANSWER_FIGURE = "answer-figure"  # tag of those, where there are more than two, that the answer rests on
SHOWS_IMAGES = "shows-images"  # tag of those whose figures show images of patients, real or synthetic
_PER_STAGE = 2  # figures of one notebook on the front page
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
    page = notebook_html(run, stage, read_notebook(run, stage))
    return artifacts.save_text(page_path(run, stage), page)


def page_path(run: Run, stage: str) -> Path:
    """The page of a stage."""
    return run.reports / f"{stage}.html"


def read_notebook(run: Run, stage: str) -> Any:
    """The executed notebook of a stage.

    Raises
    ------
    ValueError
        There is none.
    """
    import nbformat

    path = pipeline.report_path(run, stage)
    if not path.exists():
        raise ValueError(f"{path}: expected an executed notebook, found none; run make {stage}.")
    return nbformat.read(os.fspath(path), as_version=4)


def without_images(notebook: Any) -> Any:
    """The notebook, in place, with a sentence where a figure shows images of patients."""
    import nbformat

    for cell in notebook.cells:
        if SHOWS_IMAGES in cell.metadata.get("tags", []):
            note = nbformat.v4.new_output("display_data", {"text/markdown": "Images of patients are left out here."})
            cell.outputs = [output for output in cell.outputs if not {*_IMAGES} & {*output.get("data", {})}] + [note]
    return notebook


def read_notebooks(run: Run) -> dict[str, Any]:
    """Stage to executed notebook, of the stages that have one."""
    return {stage: read_notebook(run, stage) for stage in pipeline.STAGES if pipeline.report_path(run, stage).exists()}


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

    pipeline.redact_notebook(run, notebook)  # one of an older version of the package holds paths
    _prepare(notebook)
    exporter = HTMLExporter(template_name="basic", template_file=str(pages.TEMPLATES / "notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    for address in ("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url", "html_manager_semver_range"):
        if exporter.has_trait(address):
            setattr(exporter, address, "")
    page = {
        "title": f"{title(notebook, stage)} · {run.name}",
        "css": pages.css(),
        "policy": pages.POLICY,
        "simulated": pages.simulated(run),
        "links": _links(stage),
        "foot": f"Run {run.name}, profile {run.settings.profile}. {pages.citation()}",
    }
    html, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    return html


def _links(stage: str) -> list[dict[str, str]]:
    here = pipeline.STAGES.index(stage)
    before, after = pipeline.STAGES[:here][-1:], pipeline.STAGES[here + 1 :][:1]
    links = [
        ("index", "front page"),
        *((name, f"← {name}") for name in before),
        *((name, f"{name} →") for name in after),
    ]
    return [{"href": f"{page}.html", "text": text} for page, text in links]


def _prepare(notebook: Any) -> None:
    """Make outputs fit for a page: images get a text, widgets a note, scripts go, foreign HTML is cleaned."""
    from nbconvert.filters import markdown2html

    notebook.metadata.pop("widgets", None)
    for cell, heading, after in _cells(notebook):
        images = 0
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/javascript", None)
            if _WIDGET in data:
                data.clear()
                data["text/html"] = _NOTE
            elif "text/html" in data:
                data["text/html"] = pages.clean("".join(data["text/html"]), heading)
            elif "text/markdown" in data:
                data["text/html"] = pages.clean(markdown2html("".join(data.pop("text/markdown"))), heading)
            for mime in (name for name in _IMAGES if name in data):
                images += 1
                output.metadata.setdefault(mime, {}).setdefault("alt", _alternative(heading, after, images))
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def key_figures(stage: str, notebook: Any) -> list[dict[str, str]]:
    """Figures for the front page: those of cells tagged ``answer-figure``, else two of ``key-figure``, else the first.

    Returns
    -------
    list of dict
        ``stage, mime, data`` (base64), ``alt, caption``; the caption is the notebook's title, the heading above the
        figure and the text that follows it.
    """
    found: dict[str, list[dict[str, str]]] = {ANSWER_FIGURE: [], KEY_FIGURE: [], "": []}
    name = title(notebook, stage)
    for cell, heading, after in _cells(notebook):
        tags = cell.metadata.get("tags", [])
        kind = next((tag for tag in (ANSWER_FIGURE, KEY_FIGURE) if tag in tags), "")
        for count, data in enumerate(_images_of(cell), 1):
            texts = {"alt": _alternative(heading, after, count), "caption": _caption(name, heading, after)}
            found[kind].append({"stage": stage, **data, **texts})
    return found[ANSWER_FIGURE] or found[KEY_FIGURE][:_PER_STAGE] or found[""][:1]


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


def _cells(notebook: Any) -> Iterator[tuple[Any, str, str]]:
    """Each cell with the heading above it and the text that follows it."""
    heading = ""
    for cell, after in itertools.zip_longest(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "markdown":
            heading = next(reversed(headings(cell.source)), heading)
        yield cell, heading, _after(after)


def _after(after: Any) -> str:
    """First paragraph of the text of a cell, tables and headings apart; empty where there is none."""
    text = after.source.strip() if after is not None and after.cell_type == "markdown" else ""
    first = pages.plain(re.split(r"\n\s*\n", text)[0]) if text and not text.startswith("#") else ""
    # a sentence that ends in a colon speaks of what comes next, not of the figure
    return " ".join(part for part in re.split(r"(?<=[.?!]) ", first) if not part.endswith(":"))


def _caption(*parts: str) -> str:
    """Title, heading and text as sentences; a part that is empty or repeats the one before it is left out."""
    kept = [part for place, part in enumerate(parts) if part and part not in parts[:place]]
    return " ".join(part if part[-1] in ".?!" else f"{part}." for part in kept) or "Figure."


def _alternative(heading: str, after: str, count: int) -> str:
    """Text that stands for a figure: its heading, its place where a cell shows several, what is said of it."""
    which = f" ({count})" if count > 1 else ""
    sentence = re.split(r"(?<=[.?!]) ", after)[0] if after else ""
    return f"Figure: {heading or 'untitled'}{which}" + (f". {sentence}" if sentence else "")


def _markdown(notebook: Any) -> list[str]:
    """Sources of the Markdown cells; none of a notebook that has not run."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"] if notebook else []


def headings(source: str) -> list[str]:
    """Headings of a Markdown cell, as plain text."""
    return [pages.plain(text) for text in re.findall(r"^#+\s+(.+)$", source, re.MULTILINE)]


def title(notebook: Any, stage: str) -> str:
    """First heading of a notebook, the name of its stage where it has not run."""
    return next((text for source in _markdown(notebook) for text in headings(source)), stage)


def question(notebook: Any) -> str:
    """First sentence of the notebook that is neither a heading nor the list of what it reads and writes."""
    for source in _markdown(notebook):
        for block in re.split(r"\n\s*\n", re.sub(r"^#+[^\n]*$", "\n", source, flags=re.MULTILINE)):
            text = pages.plain(block)
            if text and not block.lstrip().startswith(("**Paper", "**Reads", "**Writes")):
                return re.split(r"(?<=[.?!]) ", text)[0]
    return ""


def limits(notebook: Any) -> str:
    """What a notebook says under its heading "Limits", as plain text; empty where it has none."""
    pattern = re.compile(r"^#+\s+Limits\s*$\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
    return next((pages.plain(found.group(1)) for text in _markdown(notebook) if (found := pattern.search(text))), "")
