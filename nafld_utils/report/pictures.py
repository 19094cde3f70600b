"""Figures of executed notebooks on pages: as light as they can be without a loss that is seen.

Contract: see `nafld_utils.report`. A figure that the notebook drew as vectors stays so; pixels become a lossless WebP
of the size at which a page shows them.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nafld_utils.report import pages

KEY_FIGURE = "key-figure"  # tag of the notebook cells whose figures sum up a stage
ANSWER_FIGURE = "answer-figure"  # tag of those, where there are more than two, that the answer rests on
SHOWS_IMAGES = "shows-images"  # tag of those whose figures show images of patients, real or synthetic
CARD = "card-"  # beginning of the tag of those whose figure stands in a card of the front page, before the answer's key
MIMES = ("image/svg+xml", "image/png", "image/jpeg")
_PER_STAGE = 2  # figures of one notebook on the front page
_WIDTH, _FRONT = 1136, 560  # pixels across a page, and a column of the front page, in a window of 1280
_SHOWN = 0.5  # size on a page of a figure drawn at 200 dots per inch


def without_images(notebook: Any) -> Any:
    """The notebook, in place, with a sentence where a figure shows images of patients."""
    import nbformat

    for cell in notebook.cells:
        if SHOWS_IMAGES in cell.metadata.get("tags", []):
            note = nbformat.v4.new_output("display_data", {"text/markdown": "Images of patients are left out here."})
            cell.outputs = [output for output in cell.outputs if not {*MIMES} & {*output.get("data", {})}] + [note]
    return notebook


def weight(notebook: Any, size: float) -> int:
    """Characters of a notebook's figures, fit for a page, which has at least as many."""
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(len(figure["data"]) for figure in (light(data, size=size) for data in shown) if figure)


def light(data: Mapping[str, Any], width: int = _WIDTH, size: float = 1.0) -> dict[str, str] | None:
    """``mime, data`` (base64) of the figure among the forms of one output, fit for a page; None where there is none."""
    mime = next((name for name in MIMES if name in data), None)
    if mime is None:
        return None
    text = "".join(data[mime])
    if mime == "image/svg+xml":
        return {"mime": mime, "data": base64.b64encode(text.encode()).decode()}
    return _of_pixels(mime, text, width, size)


@functools.lru_cache(maxsize=64)
def _of_pixels(mime: str, text: str, width: int, size: float) -> dict[str, str]:
    """`light` of a figure that is pixels."""
    from PIL import Image, UnidentifiedImageError

    pixels, buffer = base64.b64decode(text), io.BytesIO()
    try:
        found = Image.open(io.BytesIO(pixels))
    except UnidentifiedImageError:
        return {"mime": mime, "data": base64.b64encode(pixels).decode()}
    with found:
        share = size * min(_SHOWN, width / found.width)
        shape = tuple(max(1, round(share * length)) for length in found.size)
        image = found.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", lossless=True, method=2, quality=30)  # how hard to look for a smaller file
    return {"mime": "image/webp", "data": base64.b64encode(buffer.getvalue()).decode()}


def key_figures(stage: str, notebook: Any, name: str) -> list[dict[str, str]]:
    """Figures for the front page: those of cells tagged ``answer-figure``, else two of ``key-figure``, else the first.

    Returns
    -------
    list of dict
        ``stage, mime, data`` (base64), ``alt, caption``; the caption is `name`, the notebook's title, the heading above
        the figure and the text that follows it.
    """
    found: dict[str, list[tuple[Any, str, str]]] = {ANSWER_FIGURE: [], KEY_FIGURE: [], "": []}
    for cell, heading, after in cells(notebook):
        tags = cell.metadata.get("tags", [])
        kind = next((tag for tag in (ANSWER_FIGURE, KEY_FIGURE) if tag in tags), "")
        if not any(tag.startswith(CARD) for tag in tags):
            texts = _caption(name, heading, after)
            for count, data in enumerate(_of_cell(cell), 1):
                found[kind].append((data, alternative(heading, after, count), texts))
    chosen = found[ANSWER_FIGURE] or found[KEY_FIGURE][:_PER_STAGE] or found[""][:1]
    return [
        {"stage": stage, **(light(data, _FRONT) or {}), "alt": alt, "caption": caption} for data, alt, caption in chosen
    ]


def cards(notebooks: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The figure of each answer's card, by the answer's key: ``mime, data, alt``."""
    out = {}
    for cell, heading, after in (part for notebook in notebooks.values() for part in cells(notebook)):
        for key in (tag.removeprefix(CARD) for tag in cell.metadata.get("tags", []) if tag.startswith(CARD)):
            for data in _of_cell(cell)[:1]:
                out[key] = {**(light(data, _FRONT) or {}), "alt": alternative(heading, after, 1)}
    return out


def _of_cell(cell: Any) -> list[Any]:
    """The outputs of a cell that are figures, each with all its forms."""
    found = (output.get("data", {}) for output in cell.get("outputs", []))
    return [data for data in found if {*MIMES} & {*data}]


def cells(notebook: Any) -> Iterator[tuple[Any, str, str]]:
    """Each cell with the heading above it and the text that follows it."""
    heading = ""
    for cell, after in itertools.zip_longest(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "markdown":
            heading = next(reversed(headings(cell.source)), heading)
        yield cell, heading, _after(after)


def headings(source: str) -> list[str]:
    """Headings of a Markdown cell, as plain text."""
    return [pages.plain(text) for text in re.findall(r"^#+\s+(.+)$", source, re.MULTILINE)]


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


def alternative(heading: str, after: str, count: int) -> str:
    """Text that stands for a figure: its heading, its place where a cell shows several, what is said of it."""
    which = f" ({count})" if count > 1 else ""
    sentence = re.split(r"(?<=[.?!]) ", after)[0] if after else ""
    return f"Figure: {heading or 'untitled'}{which}" + (f". {sentence}" if sentence else "")
