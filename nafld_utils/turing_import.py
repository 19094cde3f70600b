"""Read the results files that raters send back.

Contract: the content of files in (bytes by name), tables out; no file is opened here. A *sitting* is one rater's
answers to the whole set. A file that is not exactly what the page wrote is refused by name with a reason, and the
others still count; a rater counts once. Text from outside (file names, rater codes) is data: who shows it escapes it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nafld_utils.turing_answers import FORMULA, RATING_COLUMNS, check_ratings, read_table
from nafld_utils.turing_sitting import RATER_PATTERN, RESULTS_SCHEMA, RESULTS_VERSION

REVISION = ("turing_import", 1)

FILE_COLUMNS = ["file", "rater", "status", "answers", "with_confidence", "minutes", "note"]
COUNTED, REFUSED = "counted", "refused"
MAX_BYTES = 1_000_000  # choice: forty times a results file of 50 images
HASTY_MS = 1000  # choice: a median below one second an image is flagged, not refused

Milliseconds = Annotated[int, Field(ge=0, le=10**9)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Answer(_Strict):
    image_id: Annotated[str, Field(max_length=20)]
    answer: Literal["real", "synthetic"]
    confidence: Literal[50, 60, 70, 80, 90, 100] | None
    ms: Milliseconds
    visits: Annotated[int, Field(ge=1)]


class _Results(_Strict):
    schema_: Annotated[Literal["nafld-turing-results"], Field(alias="schema")]
    version: Literal[1]
    set_id: Annotated[str, Field(max_length=40)]
    rater: Annotated[str, Field(pattern=RATER_PATTERN)]
    sitting: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    started: Moment
    finished: Moment
    language: Annotated[str, Field(max_length=20)]
    window: Annotated[str, Field(max_length=40)]
    answers: list[_Answer]
    checksum: str


@dataclass(frozen=True)
class Sitting:
    """One rater's answers as a file holds them, or why they do not count.

    Attributes
    ----------
    file, rater : str
        Where they come from; the rater is empty where the file does not tell.
    sitting, finished : str
        What tells two sittings apart and orders them; empty for tables made by hand.
    answers : pandas.DataFrame or None
        ``image_id, said_real, confidence`` (per cent or missing), ``seconds``; None when refused.
    note : str
        The reason of a refusal, or what the analyst should look at.
    """

    file: str
    rater: str = ""
    sitting: str = ""
    finished: str = ""
    answers: pd.DataFrame | None = None
    note: str = ""


# ---------------------------------------------------------------- all files


def collect(files: Mapping[str, bytes], items: pd.DataFrame, set_id: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read any number of files of answers to one set.

    Parameters
    ----------
    files : mapping of str to bytes
        Name to content: ``.json`` or ``.txt`` as the page writes them (a pasted copy is a ``.txt``), ``.csv`` with
        ``rater, image_id, said_real`` and optionally ``confidence``.
    items : pandas.DataFrame
        The set: ``image_id``.
    set_id : str
        From `nafld_utils.turing_page.set_id`.

    Returns
    -------
    ratings : pandas.DataFrame
        ``rater, image_id, said_real`` (0 or 1), ``confidence`` (per cent or missing), ``seconds`` (on the screen, or
        missing): every counted rater with every image once.
    report : pandas.DataFrame
        A row a sitting, `FILE_COLUMNS`: what counted, what was refused and why. The text is not escaped.

    Raises
    ------
    ValueError
        There are files, and none of them counts; the sentence names the first and its reason.
    """
    sittings: list[Sitting] = []
    for name in sorted(files):
        sittings += _read(name, files[name], items, set_id)
    sittings = _count_once(sittings)
    counted = [one for one in sittings if one.answers is not None]
    if sittings and not counted:
        first, more = sittings[0], f" ({len(sittings)} files or raters refused)" if len(sittings) > 1 else ""
        raise ValueError(f"{first.file}: {first.note}{more}")
    columns = [*RATING_COLUMNS, "confidence", "seconds"]
    tables = [one.answers.assign(rater=one.rater)[columns] for one in counted if one.answers is not None]
    ratings = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return ratings, pd.DataFrame([_row(one) for one in sittings], columns=FILE_COLUMNS)


def _read(name: str, content: bytes, items: pd.DataFrame, set_id: str) -> list[Sitting]:
    ending = name.lower().rsplit(".", 1)[-1]
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES // 1000} kB, found {len(content) // 1000}; no results file.")
        if ending == "csv":
            return _by_rater(name, read_table(content, items))
        if ending in ("json", "txt"):
            return [read_results(name, content, items, set_id)]
        raise ValueError("expected .json or .txt as the page gives it, or .csv, found another ending; rename it.")
    except ValueError as error:
        return [Sitting(name, _claimed_rater(content), note=str(error))]


def _by_rater(name: str, table: pd.DataFrame) -> list[Sitting]:
    columns = ["image_id", "said_real", "confidence"]
    return [
        Sitting(name, str(rater), answers=own[columns].reset_index(drop=True).assign(seconds=float("nan")))
        for rater, own in table.groupby("rater", sort=False)
    ]


def _count_once(sittings: list[Sitting]) -> list[Sitting]:
    """Refuse all but the first finished sitting of a rater, and copies of one sitting under other names."""
    counted: list[Sitting] = []
    out = []
    for one in sorted(sittings, key=lambda one: (one.finished, one.file)):
        twin = next((c for c in counted if c.sitting and c.sitting == one.sitting), None)
        same = next((c for c in counted if c.rater.casefold() == one.rater.casefold()), None)
        if one.answers is not None and (twin or same):
            first = twin or same
            assert first is not None
            reason = (
                f"the same sitting as {first.file}; a copy does not count."
                if twin
                else f"expected each rater once, found {one.rater!r} in {first.file} already; the sitting that was"
                " finished first counts. Give two persons two codes."
            )
            one = replace(one, answers=None, note=reason)
        elif one.answers is not None:
            counted.append(one)
        out.append(one)
    return sorted(out, key=lambda one: (one.file, one.rater))


def _row(one: Sitting) -> tuple[Any, ...]:
    if one.answers is None:
        return _inert(one.file), _inert(one.rater), REFUSED, 0, 0, None, one.note
    seconds = one.answers["seconds"]
    minutes = None if seconds.isna().all() else round(float(seconds.sum()) / 60, 1)
    sure = int(one.answers["confidence"].notna().sum())
    return _inert(one.file), one.rater, COUNTED, len(one.answers), sure, minutes, "; ".join(_flags(one.answers))


def _inert(text: str) -> str:
    """Text from outside as a spreadsheet shows it and does not compute it."""
    return f"'{text}" if text.startswith(tuple(FORMULA)) else text


def _flags(answers: pd.DataFrame) -> list[str]:
    flags = []
    if (answers["said_real"] == answers["said_real"].iloc[0]).all() and len(answers) > 1:
        flags.append(f"every answer is {'real' if answers['said_real'].iloc[0] else 'synthetic'}")
    if answers["seconds"].median() * 1000 < HASTY_MS:
        flags.append("half of the images were seen for less than a second")
    return flags


# ---------------------------------------------------------------- one results file of the page


def read_results(name: str, content: bytes, items: pd.DataFrame, set_id: str) -> Sitting:
    """Read a results file as the page writes it.

    Parameters
    ----------
    name : str
        Name of the file.
    content : bytes
        What it holds: UTF-8 JSON.
    items : pandas.DataFrame
        The set: ``image_id``.
    set_id : str
        The set's name.

    Returns
    -------
    Sitting

    Raises
    ------
    ValueError
        Not the page's JSON, truncated, edited, of another version or set, an item missing, unknown or repeated. The
        sentence says what was expected and found; the file's name is the caller's to put in front.

    Notes
    -----
    The checksum (CRC-32 of the compact JSON) tells an edited file from one that is as the page wrote it, whatever
    blanks a mail program put in between. It keeps out slips, not forgers: nothing in a page without a server could.
    """
    value = _parse(content)
    if value.get("schema") != RESULTS_SCHEMA:
        raise ValueError(f"expected a file with schema {RESULTS_SCHEMA}, found {_brief(value.get('schema'))}.")
    if value.get("version") != RESULTS_VERSION:
        found = _brief(value.get("version"))
        raise ValueError(f"expected version {RESULTS_VERSION}, found {found}; the page and this package must match.")
    try:
        results = _Results.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first(error, value)) from None
    body = {key: entry for key, entry in value.items() if key != "checksum"}
    if results.checksum != checksum(body):
        raise ValueError("expected the file as the page wrote it, found it edited; ask the rater for the original.")
    if results.set_id != set_id:
        raise ValueError(f"expected answers to set {set_id}, found {_brief(results.set_id)}; these are of another set.")
    answers = pd.DataFrame(
        {
            "image_id": [answer.image_id for answer in results.answers],
            "said_real": [int(answer.answer == "real") for answer in results.answers],
            "confidence": pd.array([answer.confidence for answer in results.answers], dtype="Float64"),
            "seconds": [answer.ms / 1000 for answer in results.answers],
        }
    )
    check_ratings(answers.assign(rater=results.rater), items)
    return Sitting(name, results.rater, results.sitting, results.finished, answers.astype({"confidence": float}))


def checksum(body: Mapping[str, Any]) -> str:
    """CRC-32 (8 hex digits) of the compact JSON of a results file without its checksum, as the page computes it."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError:
        raise ValueError("expected text in UTF-8, found other bytes; save the original file again.") from None
    except json.JSONDecodeError as error:
        whole = "it is damaged" if content.rstrip().endswith(b"}") else "it is truncated"
        raise ValueError(
            f"expected JSON, found a fault in line {error.lineno} ({error.msg}): {whole}; ask for the original."
        ) from None
    except RecursionError:
        raise ValueError("expected a results file, found JSON nested too deeply.") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}; no results file.")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"expected every field once, found {_brief(twice)} twice: it was edited.")
    return dict(pairs)


def _first(error: ValidationError, value: Any) -> str:
    fault = error.errors(include_url=False)[0]
    for key in fault["loc"]:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
    where = ".".join(str(key) for key in fault["loc"])
    what = fault["msg"][0].lower() + fault["msg"][1:]
    return f"field {where}: {what}, found {_brief(value)}; ask the rater for the original file."


def _brief(value: Any) -> str:
    """A value from outside for a message: quoted, on one line, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _claimed_rater(content: bytes) -> str:
    """The rater code that a refused file holds, however damaged it is, so that the analyst knows whom to ask."""
    found = re.search(rb'"rater"\s*:\s*"([^"\r\n]{1,60})"', content[:MAX_BYTES])
    return found[1].decode("utf-8", "replace") if found else ""
