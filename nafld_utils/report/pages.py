"""What all pages share: style, templates, numbers for reading, foreign HTML made harmless, the word for simulated data.

Contract: pure but for reading the templates of this package; see the contract of `nafld_utils.report`.
"""

from __future__ import annotations

import functools
import html
import re
from pathlib import Path
from typing import Any

from nafld_utils import params, views
from nafld_utils.artifacts import Run

TEMPLATES = Path(__file__).parent / "templates"
# No script runs and no address is fetched, whatever a name in the data holds.
FOOT = "nafld-ldm, MIT licence. Pages are self-contained: nothing is fetched from the network."  # of every page
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEADINGS, _BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6"), ("div", "p", "pre", "ul", "ol", "li", "dl", "dt", "dd", "hr")
_INLINE = ("a", "b", "br", "code", "em", "i", "small", "span", "strong", "sub", "sup")
_TABLE = ("table", "caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr", "th", "td")
_ATTRIBUTES = {
    "*": ["class", "id", "style", "title"],
    "a": ["href"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan", "scope"],
}
_WIDE, _VERY_WIDE = 8, 12  # columns from which a printed table takes smaller letters


class Safe(str):
    """Text of ours that a template takes as it is."""

    def __html__(self) -> str:
        return self


def render(template: str | Path, **values: Any) -> str:
    """A page from a template, ours by its name; what is not `Safe` is escaped, a missing value is an error."""
    import jinja2

    path = TEMPLATES / template
    loader = jinja2.FileSystemLoader([path.parent, TEMPLATES])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(path.name).render(css=Safe(css()), policy=POLICY, foot=FOOT, **values)


@functools.cache
def css() -> str:
    """Style of every page, with the colours of code for light and dark screens; print is always light."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    own = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return f"{own}\n{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


def simulated(*runs: Run) -> str:
    """The banner of a page: simulated patients, smoke profile, random weights, another cohort than the paper's."""
    marked = [run.name for run in runs if run.is_simulated]
    whose = "" if len(marked) == len(runs) else f" of {' and '.join(marked)}"
    text = (
        f"SIMULATED COHORT: every image and number{whose} below comes from simulated patients and says nothing about"
        " real ones."
    )
    smoke = [run.name for run in runs if run.is_smoke]
    meaning = f"SMOKE PROFILE: the numbers of {params.listed(smoke)} mean nothing; it exists for the tests."
    notes = dict.fromkeys(note for run in runs for note in (untrained(run), views.words_for(run).note))
    return " ".join([text] * bool(marked) + [meaning] * bool(smoke) + [note for note in notes if note])


def untrained(run: Run) -> str:
    """What of a run has random weights where it takes trained ones, in a sentence; empty where nothing has."""
    s = run.settings
    stages = {name: s.section(f"autoencoder.{name}") for name in s.ldm.conditionings}
    parts = [f"the {name} model's autoencoder" for name, stage in stages.items() if stage["source"] == "random"]
    if s.quality.features == "random":
        parts.append("the network of the metrics")
    if s.sweep.weights == "random" and s.sweep.freeze != "none":  # which trains every layer from scratch
        parts.append("the classifiers' frozen layers")
    if not parts:
        return ""
    return (
        f"RANDOM WEIGHTS in run {run.name}: untrained, for tests of the machinery, {'is' if len(parts) == 1 else 'are'}"
        f" {params.listed(parts)}; no number that stands on them means anything."
    )


def clock(seconds: float | None) -> str:
    """A duration for reading.

    Examples
    --------
    >>> clock(83.2), clock(7500), clock(None)
    ('1 min 23 s', '2 h 05 min', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plain(text: str) -> str:
    """Markdown of a sentence as plain text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).split())


def clean(source: str, label: str) -> str:
    """HTML of a notebook's output, fit for a page.

    Parameters
    ----------
    source : str
        As pandas and others wrote it. A sheet of style in front stays, since pandas styles its tables by one; every
        element that tables and texts do not need is shown as text.
    label : str
        What the tables show, for readers who hear the page.

    Returns
    -------
    str
        The same, with each table in a box that scrolls and can be reached by keyboard, and its head cells marked as
        those of columns and rows.
    """
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    sheet, rest = "", re.sub(r"<style scoped>.*?</style>", "", source, flags=re.DOTALL)
    found = re.match(r"\s*<style type=\"text/css\">[^<]*</style>", rest)
    if found:
        sheet, rest = found.group(), rest[found.end() :]
    rest = bleach.clean(
        rest, tags={*_HEADINGS, *_BLOCKS, *_INLINE, *_TABLE}, attributes=_ATTRIBUTES, css_sanitizer=CSSSanitizer()
    )
    return sheet + re.sub(
        r"<table\b.*?</table>", lambda table: _accessible(table.group(), label), rest, flags=re.DOTALL
    )


def _accessible(table: str, label: str) -> str:
    def scoped(part: re.Match[str]) -> str:
        scope = "col" if part.group(1) == "thead" else "row"
        return re.sub(r"<th(?![a-z])(?![^>]*scope=)", f'<th scope="{scope}"', part.group())

    def labelled(cell: re.Match[str]) -> str:
        return f'{cell.group()[:-1]} data-label="{html.escape(html.unescape(heads.get(cell[1], "")))}">'

    table = re.sub(r"<(thead|tbody)\b.*?</\1>", scoped, table, flags=re.DOTALL)
    heads = dict(re.findall(r'<th[^>]*class="col_heading level0 col(\d+)"[^>]*>(.*?)</th>', table, re.DOTALL))
    table = re.sub(r'<td class="data row\d+ col(\d+)"[^>]*>', labelled, table)
    columns = max((len(re.findall(r"<t[hd][\s>]", row)) for row in table.split("</tr>")), default=0)
    size = " stack" * bool(heads)
    size += " very-wide" if columns > _VERY_WIDE else " wide" if columns > _WIDE else ""
    name = html.escape(f"Table: {label}")
    return f'<div class="scroll{size}" tabindex="0" role="region" aria-label="{name}">{table}</div>'
