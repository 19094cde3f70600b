"""What names a patient or this machine, taken out of what a run writes for readers.

Contract: text in, text out, before it becomes HTML. Taken out are the values of the settings that name files or
machines, in every way in which a shell, YAML, Python or HTML writes them; any other absolute path; and what the error
of a cohort says, whose lines hold the user's names of patients and files.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import sys
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nafld_utils import artifacts
from nafld_utils.artifacts import LEFT_OUT, Run

_COLOUR = r"\x1b\[[0-9;]*m"  # of a terminal, around the paths of a traceback
# A path begins behind nothing that stands in the base64 of a picture or in a quotient.
_START = r"(?:file:(?://)?(?=/)|~[\w.-]*)?(?<!:)/{1,2}"
_FOLDERS = r"(?:[^\s/\"<>:|;*`]+(?: [^\s/\"<>:|;*`]+){0,3}/+)+"
_NAME = r"[\w.+@%,~=#&$!^-]|(?<=\w)'(?=\w)"
_LAST = rf"(?P<last>[\w.-]+\.py\b|(?:{_NAME})+(?: (?:{_NAME})+){{0,3}}\.[A-Za-z]\w{{1,7}}\b|(?:{_NAME})*)"
_PATH = re.compile(rf"(?P<before>{_COLOUR}|(?<![\w/+.…)\]}}$-])(?<!base64,)|(?<=file:)){_START}{_FOLDERS}{_LAST}")
_SHORT = re.compile(rf"(?P<before>(?<![\w/+.…)\]}}$-]))(?:file:/+|~\w*/|(?:\.\./)+)(?P<last>(?:{_NAME}|/)+)")
_QUOTED = [  # by kind of quote, each with what stands for the quote itself within it
    re.compile(rf"(?P<before>{quote})(?:file://)?~?/(?:(?:{inner})+/+)+(?P<last>(?:{inner})*)(?={quote})")
    for quote, inner in (('"', r'[^"\n\\/]|\\.'), ("'", r"[^'\n\\/]|\\.|''|(?<=\w)'(?=\w)"), ("`", r"[^`\n/]"))
]
_REST = r"(?:[^\n\"'<>:]|(?<=\w)'(?=\w))*"  # of a path; apostrophes in names
_BINARY = {"image/png", "image/jpeg"}


def redacted(run: Run, text: str) -> str:
    """`text` without the user's files and folders; the names of modules stay."""
    return _redactor(run)(text)


def _redactor(run: Run) -> Callable[[str], str]:
    user = _any_of(_writings(run))
    homes = {str(Path.home()), tempfile.gettempdir()} - {"/"}
    root = _any_of([str(artifacts.work_root().absolute()), str(artifacts.PROJECT_ROOT), sys.prefix, *homes])
    ours = re.compile(rf"{user}(?:/{_REST})?|{root}/data/{_REST}")
    keyed = re.compile("|".join(_keyed(run)) or "(?!)")

    def redact(text: str) -> str:
        text = keyed.sub(lambda found: f"{found[found.lastindex or 0]}{LEFT_OUT}", text)
        text = re.sub(rf"{root}/", "…/", ours.sub(LEFT_OUT, text))
        for pattern in (*_QUOTED, _PATH, _SHORT):
            text = pattern.sub(_only_modules, text)
        return text

    return redact


def _keyed(run: Run) -> Iterator[str]:
    """Patterns of values that are words of every day, such as an account or a folder's name, behind their keys."""
    quote = "(?:[\"']|&quot;|&#x?\\d+;)?"
    for key, value in run.settings.by_key().items():
        if artifacts.is_private(key, value):
            for name, one in value.items() if isinstance(value, Mapping) else [(key.rpartition(".")[2], value)]:
                plain = str(one)
                forms = [json.dumps(one), json.dumps(one, ensure_ascii=False), plain, _as_papermill(plain)]
                yield rf"()(?<![\w./]){re.escape(plain)}/{_REST}"
                yield rf"(\b{re.escape(name)}{quote}\s*[:=]\s*{quote}){_any_of(forms)}(?={quote}(?!\w))"


def _as_papermill(text: str) -> str:
    """How papermill writes a text among the parameters of a notebook."""
    return text.encode("unicode_escape").decode()


def _any_of(texts: Iterable[str]) -> str:
    """A pattern of the texts, the longer first, since they may hold the shorter; of none, one that never matches."""
    return f"(?:{'|'.join(map(re.escape, sorted(set(texts) - {''}, key=len, reverse=True))) or '(?!)'})"


def _only_modules(found: re.Match[str]) -> str:
    last = found["last"]
    return found["before"] + (f"…/{last}" if last.endswith(".py") else LEFT_OUT)


def _writings(run: Run) -> set[str]:
    """What is to be taken out, as it may be written."""
    out: set[str] = set()
    for value in _values(run):
        if value.isalnum():
            continue
        plain = {value, str(Path(value).expanduser()), str(Path(value).absolute())} if "/" in value else {value}
        name = Path(value).name
        plain |= {name} if Path(name).suffix else set()
        for text in {unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in plain} | plain:
            quoted = {text, text.replace("'", "''"), text.replace("'", "\\'"), text.replace("'", "'\"'\"'")}
            quoted |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
            quoted |= {
                shlex.quote(text).strip("'"),
                urllib.parse.quote(text),
                repr(os.fsencode(text))[2:-1],
                _as_papermill(text),
            }
            out |= quoted | {json.dumps(one)[1:-1] for one in quoted}
    return out | {form for one in out for form in (html.escape(one), html.escape(one).replace("&#x27;", "&#39;"))}


def _values(run: Run) -> Iterator[str]:
    """Values that are no words of every day; a folder's name that is one may begin a path."""
    for key, value in run.settings.by_key().items():
        if artifacts.is_private(key, value):
            for leaf in _leaves(value):
                if re.search("[/@]", leaf) or (isinstance(value, str) and not leaf.isalnum()):
                    yield leaf
                elif isinstance(value, str):
                    yield str(Path(leaf).absolute())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def redact_notebook(run: Run, notebook: Any) -> None:
    """Redact sources, outputs, errors and metadata of an executed notebook in place; pixels stay as they are."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error" and any("CohortError" in line for line in output.traceback):
                count = re.search(r": (\d+ problems?)", "\n".join([output.evalue, *output.traceback]))
                output.evalue = f"{count[1] if count else 'problems'}; the terminal says which, by row and file"
                output.ename = "CohortError"
                output.traceback = [f"{output.ename}: {output.evalue}"]
    _walk(_redactor(run), notebook)


def _walk(redact: Callable[[str], str], value: Any) -> Any:
    """The value with all its texts redacted; mappings and lists in place."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        if value.get("encoding") != "base64":
            for key in [key for key in value if key not in _BINARY]:
                value[key] = _walk(redact, value[key])
    elif isinstance(value, list):
        value[:] = [_walk(redact, part) for part in value]
    return value
