"""Read what raters send back, check it against the set, and put it beside the truth.

Contract: the content of files in (bytes by name), tables out; no file is opened here. A *sitting* is one rater's
answers to the whole set. A file that is not exactly what the page wrote is refused by name with a reason, and the
others still count; a rater counts once, and only with one answer to every image. Text from outside (file names, rater
codes) is data: who shows it escapes it.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nafld_utils.artifacts import is_formula, spreadsheet_safe
from nafld_utils.turing.sitting import CONFIDENCE_LEVELS, RATER_PATTERN, RESULTS_SCHEMA, RESULTS_VERSION

REVISION = ("turing_import", 1), ("turing_answers", 1)

RATING_COLUMNS = ["rater", "image_id", "said_real"]
FILE_COLUMNS = ["file", "rater", "status", "answers", "with_confidence", "minutes", "note"]
COUNTED, REFUSED = "counted", "refused"
MAX_BYTES = 1_000_000  # choice: forty times a results file of 50 images
HASTY_MS = 1000  # choice: a median below one second per image is flagged, not refused
_RATER_LENGTH = 40  # choice: of a rater's name in a table made by hand

Milliseconds = Annotated[int, Field(ge=0, le=10**9)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(_Strict):
    image_id: Annotated[str, Field(max_length=20)]
    answer: Literal["real", "synthetic"]
    confidence: Literal[50, 60, 70, 80, 90, 100] | None
    ms: Milliseconds
    visits: Annotated[int, Field(ge=1)]


class _Results(_Strict):
    schema_: Annotated[str, Field(alias="schema")]
    version: int
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

    ``rater`` is empty where the file does not tell; ``sitting`` and ``finished`` tell two sittings apart and order
    them, and are empty for tables made by hand. ``answers`` (``image_id, said_real``, ``confidence`` in per cent,
    ``seconds``; both may be missing) is None when refused; ``note`` is then the reason.
    """

    file: str
    rater: str = ""
    sitting: str = ""
    finished: str = ""
    answers: pd.DataFrame | None = None
    note: str = ""


# ---------------------------------------------------------------- all files


def collect(files: Mapping[str, bytes], items: pd.DataFrame, set_id: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read any number of files of answers to one set, name to content.

    They are ``.json`` or ``.txt`` as the page writes them (a pasted copy is a ``.txt``), or ``.csv`` (`read_table`);
    `set_id` is from `nafld_utils.turing.page.set_id`. Gives the ratings, every counted rater with every image once:
    ``rater, image_id, said_real`` (0 or 1), ``confidence`` (per cent or missing), ``seconds`` (on the screen, or
    missing); and a report with one row per sitting, `FILE_COLUMNS`: what counted, what was refused and why, not
    escaped. ValueError where there are files and none of them counts; it names the first and its reason.
    """
    sittings = _count_once([one for name in sorted(files) for one in _read(name, files[name], items, set_id)])
    columns = [*RATING_COLUMNS, "confidence", "seconds"]
    tables = [one.answers.assign(rater=one.rater)[columns] for one in sittings if one.answers is not None]
    if sittings and not tables:
        first, more = sittings[0], f" ({len(sittings)} files or raters refused)" if len(sittings) > 1 else ""
        raise ValueError(f"{first.file}: {first.note}{more}")
    ratings = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return ratings, pd.DataFrame([_row(one) for one in sittings], columns=FILE_COLUMNS)


def _read(name: str, content: bytes, items: pd.DataFrame, set_id: str) -> list[Sitting]:
    ending = name.lower().rsplit(".", 1)[-1]
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES // 1000} kB, found {len(content) // 1000}; no results file.")
        if ending == "csv":
            table = read_table(content, items).assign(seconds=float("nan"))
            return [
                Sitting(name, str(rater), answers=own.drop(columns="rater").reset_index(drop=True))
                for rater, own in table.groupby("rater", sort=False)
            ]
        if ending in ("json", "txt"):
            return [read_results(name, content, items, set_id)]
        raise ValueError("expected .json or .txt as the page gives it, or .csv, found another ending; rename it.")
    except ValueError as error:
        # the rater code in a refused file, however damaged, so that the analyst knows whom to ask
        claimed = re.search(rb'"rater"\s*:\s*"([^"\r\n]{1,60})"', content[:MAX_BYTES])
        return [Sitting(name, claimed[1].decode("utf-8", "replace") if claimed else "", note=str(error))]


def _count_once(sittings: list[Sitting]) -> list[Sitting]:
    """Refuse all but the first finished sitting of a rater, and copies of one sitting under other names."""
    counted: list[Sitting] = []
    out = []
    for one in sorted(sittings, key=lambda one: (one.finished, one.file)):
        repeats = _repeats(one, counted)
        if one.answers is not None and repeats:
            one = replace(one, answers=None, note=repeats)
        elif one.answers is not None:
            counted.append(one)
        out.append(one)
    return sorted(out, key=lambda one: (one.file, one.rater))


def _repeats(one: Sitting, counted: list[Sitting]) -> str:
    """Why a sitting cannot count beside those that do; empty where it can."""
    for other in counted:
        if other.sitting and other.sitting == one.sitting:
            return f"the same sitting as {other.file}; a copy does not count."
    for other in counted:
        if other.rater.casefold() == one.rater.casefold():
            return (
                f"expected each rater once, found {one.rater!r} in {other.file} already; the sitting that was"
                " finished first counts. Give two persons two codes."
            )
    return ""


def _row(one: Sitting) -> tuple[Any, ...]:
    if one.answers is None:
        return spreadsheet_safe(one.file), spreadsheet_safe(one.rater), REFUSED, 0, 0, None, one.note
    said, seconds = one.answers["said_real"], one.answers["seconds"]
    minutes = None if seconds.isna().all() else round(float(seconds.sum()) / 60, 1)
    flags = []
    if (said == said.iloc[0]).all() and len(said) > 1:
        flags.append(f"every answer is {'real' if said.iloc[0] else 'synthetic'}")
    if seconds.median() * 1000 < HASTY_MS:
        flags.append("half of the images were seen for less than a second")
    sure = int(one.answers["confidence"].notna().sum())
    return spreadsheet_safe(one.file), one.rater, COUNTED, len(said), sure, minutes, "; ".join(flags)


# ---------------------------------------------------------------- one results file of the page


def read_results(name: str, content: bytes, items: pd.DataFrame, set_id: str) -> Sitting:
    """Read a results file as the page writes it; a ValueError says what was expected and found, without the name.

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
        raise ValueError(_first(error)) from None
    if results.checksum != checksum({key: entry for key, entry in value.items() if key != "checksum"}):
        raise ValueError("expected the file as the page wrote it, found it edited; ask the rater for the original.")
    if results.set_id != set_id:
        raise ValueError(f"expected answers to set {set_id}, found {_brief(results.set_id)}; these are of another set.")
    rows = [(one.image_id, int(one.answer == "real"), one.confidence, one.ms / 1000) for one in results.answers]
    answers = pd.DataFrame(rows, columns=["image_id", "said_real", "confidence", "seconds"])
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


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(key) for key in fault["loc"])
    what = fault["msg"][0].lower() + fault["msg"][1:]
    found = "nothing" if fault["type"] == "missing" else _brief(fault["input"])
    return f"field {where}: {what}, found {found}; ask the rater for the original file."


def _brief(value: Any) -> str:
    """A value from outside for a message: quoted, on one line, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- a table made by hand


def read_table(content: bytes, items: pd.DataFrame) -> pd.DataFrame:
    """Read a CSV of answers, for a sitting that was held without the page; every rater with every image once.

    The file is UTF-8 with a header: ``rater, image_id, said_real`` (1 real, 0 synthetic) and, where there is one,
    ``confidence`` (per cent, may be empty); further columns are dropped. A ValueError names the line or the rater.
    """
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"expected a CSV of ratings in UTF-8, found {reason}; export it again.") from None
    missing = [name for name in RATING_COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"expected columns {', '.join(RATING_COLUMNS)}, found no {', '.join(missing)}; add a header line."
        )
    if "confidence" not in table:
        table["confidence"] = ""
    table = table[[*RATING_COLUMNS, "confidence"]].apply(lambda column: column.str.strip())
    levels = [str(level) for level in CONFIDENCE_LEVELS]
    for line, row in enumerate(table.to_dict("records"), start=2):
        rater = row["rater"]
        named = 0 < len(rater) <= _RATER_LENGTH and rater.isprintable() and not is_formula(rater)
        if not named or row["said_real"] not in ("0", "1") or row["confidence"] not in ("", *levels):
            raise ValueError(
                f"line {line}: expected a rater of at most {_RATER_LENGTH} characters that begins with none of"
                f" =+-@, said_real 0 or 1 and a confidence empty or of {', '.join(levels)},"
                f" found {row}; correct that line."
            )
    table = table.assign(said_real=table["said_real"].astype(int), confidence=pd.to_numeric(table["confidence"]))
    check_ratings(table, items)
    return table.astype({"confidence": float})


# ---------------------------------------------------------------- answers against the set


def check_ratings(ratings: pd.DataFrame, items: pd.DataFrame) -> None:
    """Refuse ratings (``rater, image_id``) that do not answer every image of the set once; names the first fault."""
    if not len(ratings):
        raise ValueError("expected one row per answer, found none; collect ratings first.")
    unknown = ratings[~ratings["image_id"].isin(items["image_id"])]
    if len(unknown):
        row = unknown.iloc[0]
        raise ValueError(
            f"expected images of this set, found {row.image_id!r} by rater {row.rater!r}"
            f" ({len(unknown)} such answers); these are answers to another set."
        )
    refuse_repeats(ratings)
    answered = ratings.groupby("rater")["image_id"].nunique()
    short = answered[answered < len(items)]
    if len(short):
        rater = short.index[0]
        absent = items.loc[~items["image_id"].isin(ratings.loc[ratings["rater"] == rater, "image_id"]), "image_id"]
        raise ValueError(
            f"expected {len(items)} answers from each rater, found {short.iloc[0]} from {rater!r}"
            f" ({absent.iloc[0]!r} is missing); complete them or leave this rater out."
        )


def refuse_repeats(ratings: pd.DataFrame) -> None:
    """Refuse two answers of one rater to one image, with a ValueError that names the first."""
    twice = ratings[ratings.duplicated(["rater", "image_id"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"expected one answer per image, found a second for {row.image_id!r} by rater {row.rater!r};"
            " keep one of them."
        )


def attach_key(ratings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Put the answers beside the truth, the form that `turing.summarize` takes, sorted by rater and order.

    Columns ``rater, image_id, order, kind, label, is_real, said_real, confidence, seconds, simulated``; the last three
    are missing, or False, where `ratings` lack them. Refuses what `check_ratings` refuses.
    """
    check_ratings(ratings, items)
    key = items[["image_id", "order", "kind", "label", "is_real"]]
    given = {"confidence": float("nan"), "seconds": float("nan"), "simulated": False}
    answers = ratings[RATING_COLUMNS].assign(**{name: ratings.get(name, other) for name, other in given.items()})
    table = answers.merge(key, on="image_id", validate="many_to_one")
    columns = ["rater", "image_id", "order", "kind", "label", "is_real", "said_real", *given]
    return table[columns].sort_values(["rater", "order"], kind="stable").reset_index(drop=True)
