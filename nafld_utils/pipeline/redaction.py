"""What names a patient or this machine, taken out of what a run writes for readers.

Contract: text in, text out, before it becomes HTML. Taken out are the values of the settings that name files or
machines, in every way in which a shell, YAML, Python or HTML writes them; any other absolute path; and what the error
of a cohort says, whose lines hold the user's names of patients and files.
"""

from __future__ import annotations

import html
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nafld_utils import artifacts
from nafld_utils.artifacts import LEFT_OUT, Run

_COLOUR = r"\x1b\[[0-9;]*m"  # of a terminal, around the paths of a traceback
# Nothing that it may begin behind stands in the base64 of a picture.
_PATH = re.compile(rf"(?P<before>{_COLOUR}|(?<![^\s\"'(=>\[;:`])|(?<=\*))~?/(?:[\w.+@%,~=-]+/)+(?P<last>[\w.+@%,~=-]*)")
_QUOTED = re.compile(r"(?P<before>(?P<quote>[\"'`]))~?/(?:[^\n\"'`/]+/)+(?P<last>[^\n\"'`/]*)(?=(?P=quote))")
_REST = r"(?:[^\n\"'<>:]|(?<=\w)'(?=\w))*"  # of a path; apostrophes in names
_BINARY = {"image/png", "image/jpeg"}


def redacted(run: Run, text: str) -> str:
    """`text` without the user's files and folders; the names of modules stay."""
    return _redactor(run)(text)


def _redactor(run: Run) -> Callable[[str], str]:
    user = _any_of(_writings(run))
    root = _any_of([str(artifacts.work_root().absolute()), str(artifacts.PROJECT_ROOT), sys.prefix])
    ours = re.compile(rf"{user}(?:/{_REST})?|{root}/data/{_REST}")

    def redact(text: str) -> str:
        text = re.sub(rf"{root}/", "…/", ours.sub(LEFT_OUT, text))
        return _PATH.sub(_only_modules, _QUOTED.sub(_only_modules, text))

    return redact


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
        plain = {value, str(Path(value).expanduser()), str(Path(value).absolute())} if "/" in value else {value}
        name = Path(value).name
        plain |= {name} if Path(name).suffix else set()
        for text in plain:
            quoted = {text, text.replace("'", "''"), text.replace("'", "\\'"), text.replace("'", "'\"'\"'")}
            quoted |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
            quoted |= {shlex.quote(text).strip("'")}
            out |= quoted | {json.dumps(one)[1:-1] for one in quoted}
    out |= {str(run.settings.engine.slurm)} if run.settings.engine.slurm else set()
    return out | {form for one in out for form in (html.escape(one), html.escape(one).replace("&#x27;", "&#39;"))}


def _values(run: Run) -> Iterator[str]:
    for key, value in run.settings.by_key().items():
        if artifacts.is_private(key, value):
            yield from (leaf for leaf in _leaves(value) if isinstance(value, str) or "/" in leaf)


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
            if output.get("output_type") == "error" and output.ename == "CohortError":
                count = re.search(r": (\d+ problems?)", output.evalue)
                output.evalue = f"{count[1] if count else 'problems'}; the terminal says which, by row and file"
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
