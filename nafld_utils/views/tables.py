"""Tables and numbers for readers, in notebooks and on pages: words for names, three digits, intervals in one cell.

Contract: a table says in its caption what to read, has no row numbers and repeats no group; one without rows is a
sentence. Everything that comes from data is escaped.
"""

from __future__ import annotations

import functools
import html
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from nafld_utils.views.words import named

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
_LOOK = [
    {"selector": "caption", "props": "text-align: left; caption-side: top; font-weight: bold; padding: 0 0 .4em"},
    {"selector": "th, td", "props": "text-align: left; vertical-align: top; white-space: normal"},
]
_RIGHT = [{"selector": "", "props": "text-align: right"}]


def number(value: Any) -> str:
    """A number for reading: integers whole, others with three or four digits; other text as it is.

    Examples
    --------
    >>> number("0.86123"), number("550.0"), number("0.51 [0.40, 0.62]"), number(float("nan"))
    ('0.861', '550', '0.51 [0.40, 0.62]', '')
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        return str(value or "")
    if math.isnan(found):
        return ""
    if math.isinf(found) or (found.is_integer() and abs(found) < 1e15):
        return str(found) if math.isinf(found) else str(int(found))
    if abs(found) < 10:
        return f"{found:.3g}"
    return f"{found:.1f}" if abs(found) < 1000 else f"{found:.0f}"


def interval(low: Any, high: Any) -> str:
    """Two bounds for reading, e.g. ``[0.75, 0.955]``; empty where there are none.

    A bound that is next to nothing beside the other one, such as a logit scale leaves, is 0.

    Examples
    --------
    >>> interval(7.59e-06, 100.0), interval(0.0002, 0.0009), interval(None, None)
    ('[0, 100]', '[0.0002, 0.0009]', '')
    """
    shown = number(low), number(high)
    values = [abs(float(text)) if text else math.nan for text in shown]
    shown = tuple(
        "0" if a < 1e-3 and b >= 0.01 else text for text, a, b in zip(shown, values, values[::-1], strict=True)
    )
    return f"[{shown[0]}, {shown[1]}]" if any(shown) else ""


class Table:
    """A table that notebooks and pages show as HTML; `data` holds its texts as they are read."""

    def __init__(self, style: Any) -> None:
        self._style, self.data = style, style.data

    def _repr_html_(self) -> str:
        """HTML in which names of rows stand in the line of the columns' names."""
        page, names = self._style.to_html(), r"<tr>\s*(<th class=\"index_name.*?</th>)\s*(?:<th class=\"blank.*?)?</tr>"
        found = re.search(names, page, re.DOTALL)
        if found:
            page = page.replace(found.group(), "", 1)
            page = re.sub(r"(?:<th class=\"blank[^>]*>&nbsp;</th>\s*)+", lambda _: f"{found[1]} ", page, count=1)
        return page


def table(
    data: pd.DataFrame,
    caption: str,
    columns: str | Mapping[Any, str] = "",
    rows: str = "",
    words: Mapping[Any, str] | None = None,
    none: str = "Nothing to show.",
) -> Any:
    """A table for readers, or a sentence where it has no rows.

    Parameters
    ----------
    data : pandas.DataFrame
        Numbers as they are; a named index counts as columns that name the rows.
    caption : str
        What the table shows and what to read in it.
    columns : str or mapping
        What is shown, in this order: names parted by blanks, or names with their headings. ``value|low|high`` and
        ``low|high`` become one cell, e.g. ``0.86 [0.75, 0.95]``. A column that `data` lacks is left out. Without names
        all columns are shown, ``low`` and ``high`` in the cell of the one before them. Headings stand in
        ``templates/headings.yaml``.
    rows : str
        Columns that name the rows, outer first; a repeated name stands once, and one that all rows share stands in the
        caption. Without it the index, else the first column.
    words : mapping, optional
        Words for values, e.g. ``{"gan": "GAN"}``.
    none : str
        The sentence that stands for a table without rows.

    Returns
    -------
    Table or IPython.display.Markdown
        To be shown as a cell's last expression.
    """
    if not len(data):
        from IPython.display import Markdown

        return Markdown(none)
    if data.columns.nlevels > 1:
        data = data.set_axis(
            [", ".join(_heading(str(part)) for part in name if part != "") for name in data.columns], axis=1
        )
    names = rows.split() or [str(name) for name in data.index.names if name]
    if any(data.index.names):
        data = data.reset_index()
    data = data.rename(columns=lambda name: name.replace("|", "/") if isinstance(name, str) else number(name))
    if isinstance(columns, str):
        columns = dict.fromkeys(columns.split() or _all(list(data.columns)), "")
    columns = {**{name: "" for name in names if name not in columns}, **columns}
    shown = {key: text or _heading(key) for key, text in columns.items() if {*key.split("|")} <= {*data.columns}}
    names = [name for name in names or list(shown)[:1] if name in shown]
    same = [name for name in names[:-1] if len(data) > 1 and len({*data[name]}) == 1]
    shared = [f"{shown.pop(name)}: {_cell([data[name].iloc[0]], words or {})}" for name in same]
    names = [name for name in names if name in shown]
    return Table(_styled(data, "; ".join([caption, *shared]), shown, names, words or {}))


def _all(names: list[str]) -> list[str]:
    """All columns, those of an interval joined to what it is of."""
    text = " ".join(name.replace(" ", "\0") for name in names)
    return [name.replace("\0", " ") for name in re.sub(r"(\S+) low high\b", r"\1|low|high", text).split()]


def settings(shown: pd.DataFrame) -> Any:
    """Settings in force, from `Run.show`."""
    caption = 'Settings in force (to change one: make all SET="key=value" RUN=name); the last column stands where the'
    return table(shown, f"{caption} profile paper has another value")


def claims(recorded: pd.DataFrame) -> Any:
    """The numbers that a stage hands to the front page, from `Run.record_claims`."""
    columns = {"claim": "claim", "this_run|low|high": "this run [95 % interval]", "over": "over what"}
    columns |= {
        "n": "n",
        "unit": "unit",
        "paper": "paper",
        "same_protocol": "same protocol as the paper, or what differs",
    }
    return table(recorded, "Numbers of this stage for the front page; claims.csv holds them in full", columns)


def files(listed: pd.DataFrame) -> Any:
    """The files that a stage stands on, from `Run.finish`."""
    columns = {"file": "file", "size_kib": "size (KiB)", "made_in_s": "its unit was made in (s)"}
    return table(listed, "Files that this stage stands on", columns)


def unit_beside(text: str, unit: str) -> str:
    """The unit of a number, empty where the text beside it says it already, e.g. ``images`` of "images"."""
    return "" if re.search(rf"\b{re.escape(unit)}\b", text, re.IGNORECASE) else unit


def told(rows: Iterable[Mapping[str, Any]], *beginnings: str) -> str:
    """Claims in words, for an answer.

    Parameters
    ----------
    rows : iterable of mapping
        Claims, as `artifacts.claim` makes them.
    *beginnings : str
        Of the keys that are told.

    Returns
    -------
    str
        A line per claim.
    """
    lines = []
    for row in rows:
        if row["key"].startswith(beginnings):
            over = f" over {row['over']}" if row["over"] and row["low"] is not None else ""
            text = named(row["claim"][:1].upper() + row["claim"][1:])
            words = (text, number(row["this_run"]), unit_beside(text, row["unit"]))
            bounds = f" {interval(row['low'], row['high'])}{over}".rstrip()
            lines.append(f"{words[0]}: {words[1]} {words[2]}".rstrip() + f"{bounds}.")
    return "\n".join(lines)


@functools.cache
def _headings() -> dict[str, str]:
    text = resources.files("nafld_utils.views").joinpath("templates", "headings.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _heading(key: str) -> str:
    first, *others = key.split("|")
    return _headings().get(first, first.replace("_", " ")) + (" [95 %]" if len(others) > 1 else "")


def _styled(data: pd.DataFrame, caption: str, shown: Mapping[Any, str], rows: list[str], words: Mapping) -> Any:
    import pandas as pd

    texts, right = {}, []
    taken = [heading for heading in shown.values() if [*shown.values()].count(heading) > 1]
    shown = {key: f"{heading} ({key})" if heading in taken else heading for key, heading in shown.items()}
    for key, heading in shown.items():
        columns = [data[name] for name in key.split("|")]
        texts[heading] = [_cell(values, words) for values in zip(*columns, strict=True)]
        if key not in rows and all(pd.api.types.is_numeric_dtype(one) and one.dtype != bool for one in columns):
            right.append(heading)
    frame = pd.DataFrame(texts).set_index([shown[name] for name in rows])
    name = f"{zlib.crc32(f'{caption}{frame.to_csv()}'.encode()):x}"  # the same table has the same bytes
    style = frame.style.format(escape="html").format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    style = style.format_index_names(escape="html", axis=0)
    style = style.set_uuid(name).set_caption(html.escape(caption)).set_table_styles(_LOOK)
    style.cell_ids = False
    return style.set_table_styles(dict.fromkeys(right, _RIGHT), overwrite=False)


def _cell(values: Sequence[Any], words: Mapping[Any, str]) -> str:
    """One cell: a value in words or digits, with its interval where there is one."""
    *value, low, high = values if len(values) > 1 else (*values, None, None)
    parts = [_text(one, words) for one in value] + [interval(low, high).replace(" ", "\u00a0")] * (len(values) > 1)
    return " ".join(part for part in parts if part) or NOTHING


def _text(value: Any, words: Mapping[Any, str]) -> str:
    import pandas as pd

    if isinstance(value, str):
        return words.get(value, named(value))
    if value is None or value is pd.NA:
        return ""
    if str(value) in ("True", "False"):
        return "yes" if value else "no"
    return number(value)
