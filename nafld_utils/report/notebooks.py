"""Executed notebooks as pages, and the figures that the front page takes from them.

Contract: see `nafld_utils.report`.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, pipeline
from nafld_utils.artifacts import Run
from nafld_utils.report import pages, pictures

FOLDED = "jp-MarkdownHeadingCollapsed"  # JupyterLab's mark of a heading whose section is folded, there and on pages
FOLDED_ON_PAGE = "fold"  # tag of one that is folded on pages alone, at their end
_SIZES, _HEAVY = (1.0, 0.8, 0.6), 2.9e6  # of figures, as long as a page has so many characters
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NOTE = '<p class="note">Interactive in JupyterLab only; its static twin is on this page.</p>'


def write_notebook(run: Run, stage: str) -> Path:
    """Write the executed notebook of a stage as one HTML file beside it.

    Raises
    ------
    ValueError
        The notebook has not been executed.
    """
    for size in _SIZES:
        notebook = read_notebook(run, stage)
        if size > _SIZES[-1] and pictures.weight(notebook, size) + len(pages.css()) > _HEAVY:  # whatever else it holds
            continue
        page = notebook_html(run, stage, notebook, size)
        if len(page) < _HEAVY:
            break
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


def read_notebooks(run: Run) -> dict[str, Any]:
    """Stage to executed notebook, of the stages that have one."""
    return {stage: read_notebook(run, stage) for stage in pipeline.STAGES if pipeline.report_path(run, stage).exists()}


def notebook_html(run: Run, stage: str, notebook: Any, size: float = 1.0) -> str:
    """One executed notebook as a self-contained page.

    Parameters
    ----------
    run : Run
        The run, for banner and links.
    stage : str
        Name of the stage.
    notebook : nbformat.NotebookNode
        The executed notebook; its outputs are made fit for a page.
    size : float
        Of the figures that are pixels, 0 to 1.

    Returns
    -------
    str
        HTML.
    """
    from nbconvert import HTMLExporter

    pipeline.redact_notebook(run, notebook)  # one of an older version of the package holds paths
    _prepare(notebook, size)
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
        "foot": f"Run {run.name}, profile {run.settings.profile}. {pages.FOOT}",
    }
    return exporter.from_notebook_node(notebook, resources={"page": page})[0]


def _links(stage: str) -> list[dict[str, str]]:
    here = pipeline.STAGES.index(stage)
    before, after = pipeline.STAGES[:here][-1:], pipeline.STAGES[here + 1 :][:1]
    links = [
        ("index", "front page"),
        *((name, f"← {name}") for name in before),
        *((name, f"{name} →") for name in after),
    ]
    return [{"href": f"{page}.html", "text": text} for page, text in links]


def _prepare(notebook: Any, size: float) -> None:
    """Make outputs fit for a page: figures are light and have a text, widgets a note, foreign HTML is cleaned."""
    from nbconvert.filters import markdown2html

    notebook.metadata.pop("widgets", None)
    for cell, heading, after in pictures.cells(notebook):
        images = 0
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/javascript", None)
            if found := pictures.light(data, size=size):
                images += 1
                alt = html.escape(pictures.alternative(heading, after, images))
                data.clear()
                data["text/html"] = (
                    f'<div class="picture"><img alt="{alt}" src="data:{found["mime"]};base64,{found["data"]}"></div>'
                )
            elif _WIDGET in data:
                data.clear()
                data["text/html"] = _NOTE
            elif "text/html" in data:
                data["text/html"] = pages.clean("".join(data["text/html"]), heading)
            elif "text/markdown" in data:
                data["text/html"] = pages.clean(markdown2html("".join(data.pop("text/markdown"))), heading)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    notebook.cells = _folded_last(_answer_first(_without_silent(notebook.cells)))


def _without_silent(cells: list[Any]) -> list[Any]:
    """The cells without those that show nothing; their code stands before that of the next one that shows something."""
    kept, held = [], []
    for cell in cells:
        if cell.cell_type != "code":
            kept.append(cell)
        elif cell.outputs:
            cell.source = "\n\n".join([*held, cell.source])
            kept, held = [*kept, cell], []
        else:
            held.append(cell.source)
    shown = [cell for cell in kept if cell.cell_type == "code"]
    if shown and held:
        shown[-1].source = "\n\n".join([shown[-1].source, *held])
    return kept


def _answer_first(cells: list[Any]) -> list[Any]:
    """The cells with the first one's paragraph on paper, inputs and outputs in a folded section at the end."""
    from nbformat.v4 import new_markdown_cell

    found = re.search(r"^\*\*Paper\*\* .*?(?=\n\s*\n|\Z)", cells[0].source, re.MULTILINE | re.DOTALL) if cells else None
    if not found:
        return cells
    cells[0].source = cells[0].source.replace(found.group(), "")
    text = f"## The paper's part, what is read and what is written\n\n{found.group()}"
    return [*cells, new_markdown_cell(text, metadata={FOLDED: True})]


def _folded_last(cells: list[Any]) -> list[Any]:
    """The cells with those of sections that are folded at the end, each section in an element that opens and closes."""
    from nbformat.v4 import new_raw_cell

    shown, folded, inside = [], [], False
    for cell in cells:
        begins = re.match(r"##? (.+)", cell.source) if cell.cell_type == "markdown" else None
        if begins and inside:
            folded.append(new_raw_cell("</details>", metadata={"fold": True}))
        if begins:
            inside = bool(cell.metadata.get(FOLDED) or FOLDED_ON_PAGE in cell.metadata.get("tags", []))
        if begins and inside:
            start = f'<details class="fold"><summary><h2>{html.escape(pages.plain(begins[1]))}</h2></summary>'
            folded.append(new_raw_cell(start, metadata={"fold": True}))
            cell.source = cell.source[begins.end() :].strip()
        (folded if inside else shown).append(cell)
    return shown + folded + [new_raw_cell("</details>", metadata={"fold": True})] * inside


def key_figures(stage: str, notebook: Any) -> list[dict[str, str]]:
    """Figures of a notebook for the front page (`pictures.key_figures`)."""
    return pictures.key_figures(stage, notebook, title(notebook, stage))


def _markdown(notebook: Any) -> list[str]:
    """Sources of the Markdown cells; none of a notebook that has not run."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"] if notebook else []


def title(notebook: Any, stage: str) -> str:
    """First heading of a notebook, the name of its stage where it has not run."""
    return next((text for source in _markdown(notebook) for text in pictures.headings(source)), stage)


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
