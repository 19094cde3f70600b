"""Read what raters send back, check it against the set, and put it beside the truth.

Contract: the content of files in (bytes by name), tables out; no file is opened here. A *sitting* is one rater's
answers to the whole set. Results that are not exactly what the page wrote are refused by name with a reason, and the
others still count; a rater counts once, and only with one answer to every image. Text from outside (file names, rater
codes) is data: who shows it escapes it.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nafld_utils import cohort
from nafld_utils.artifacts import SHEETS, is_formula, plain, read_sheet, spreadsheet_safe
from nafld_utils.turing import mailed
from nafld_utils.turing.mailed import brief
from nafld_utils.turing.sitting import CONFIDENCE_LEVELS, RATER_PATTERN, RESULTS_SCHEMA, RESULTS_VERSION

REVISION = ("turing_import", 3), ("turing_answers", 1)

RATING_COLUMNS = ["rater", "image_id", "said_real"]
FILE_COLUMNS = ["file", "rater", "status", "answers", "with_confidence", "minutes", "note"]
COUNTED, REFUSED = "counted", "refused"
MAX_BYTES = 1_000_000  # choice: forty times a results file of 50 images
HASTY_MS = 1000  # choice: a median below one second per image is flagged, not refused
_RATER_LENGTH = 40  # choice: of a rater's name in a table made by hand

TABLES = (".csv", ".tsv")
_SAID = {"1": 1, "real": 1, "true": 1, "yes": 1, "0": 0, "synthetic": 0, "false": 0, "no": 0}
_WHOLE = r"^(\d+)(?:[.,]0+)? ?%?$"  # a whole number as a spreadsheet may write it: 70.0, 70,0 or 70 %

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

    They are ``.json`` as the page writes them, the text of a mail that holds them, or tables (`read_table`);
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
    ending = PurePath(name).suffix.lower()
    text = ""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES // 1000} kB, found {len(content) // 1000}; no results file.")
        if ending in SHEETS:
            raise ValueError("expected a table in CSV, found a spreadsheet; save its sheet as CSV UTF-8.")
        text = mailed.text_of(content)
        of_page = any(RESULTS_SCHEMA in version for version in mailed.versions(text))
        if not of_page and (ending in TABLES or (ending == ".txt" and _is_table(content))):
            table = read_table(content, items).assign(seconds=float("nan"))
            return [
                Sitting(name, str(rater), answers=own.drop(columns="rater").reset_index(drop=True))
                for rater, own in table.groupby("rater", sort=False)
            ]
        if of_page or ending in (".json", ".txt", ""):
            return read_results(name, text, items, set_id)
        raise ValueError(
            "expected .json or .txt as the page gives it, or .csv, found another ending; save the rater's own file, or"
            " the text of the mail as .txt."
        )
    except ValueError as error:
        return [Sitting(name, _claimed(text), note=str(error))]


def _claimed(text: str) -> str:
    """The rater's code in a refused file, however damaged, so that the analyst knows whom to ask."""
    found = (re.search(r'"rater"\s*:\s*"([^"\r\n]{1,60})"', version) for version in mailed.versions(text))
    return next((claimed[1] for claimed in found if claimed), "")


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
        if len(set(cohort.alike([other.rater, one.rater]).values())) == 1:
            return (
                f"expected each rater once, found {one.rater!r} here and {other.rater!r} in {other.file}; the sitting"
                " that was finished first counts. Give two persons codes that differ in more than their writing."
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


def read_results(name: str, text: str, items: pd.DataFrame, set_id: str) -> list[Sitting]:
    """Read the results in a file as the page writes them, or as a mail holds them, also several.

    The checksum (CRC-32 of the compact JSON) tells edited results from those that are as the page wrote them, whatever
    a mail program did to blanks and quotes, or put before and behind. It keeps out slips, not forgers: nothing in a
    page without a server could. A ValueError says what was expected and found, without the name, where none count.
    """
    found: dict[str, Sitting] = {}
    least: list[ValueError] | None = None
    for version in mailed.versions(text):
        faults = []
        for value in mailed.objects(version):
            try:
                one = _sitting(name, value, items, set_id)
                found.setdefault(one.sitting, one)
            except ValueError as error:
                faults.append(error)
        least = faults if least is None or _weight(faults) <= _weight(least) else least
    refused = [Sitting(name, note=str(fault)) for fault in least or ()]
    if not found:
        raise least[0]
    return [*found.values(), *refused]


def _weight(faults: list[ValueError]) -> tuple[int, int]:
    """How much is wrong: first how many results, then how many of them are no JSON."""
    return len(faults), sum(str(fault).startswith(("expected JSON", "expected results as JSON")) for fault in faults)


def _sitting(name: str, value: dict[str, Any] | ValueError, items: pd.DataFrame, set_id: str) -> Sitting:
    if isinstance(value, ValueError):
        raise value
    if value.get("schema") != RESULTS_SCHEMA:
        raise ValueError(f"expected a file with schema {RESULTS_SCHEMA}, found {brief(value.get('schema'))}.")
    if value.get("version") != RESULTS_VERSION:
        found = brief(value.get("version"))
        raise ValueError(f"expected version {RESULTS_VERSION}, found {found}; the page and this package must match.")
    try:
        results = _Results.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    if results.checksum != checksum({key: entry for key, entry in value.items() if key != "checksum"}):
        raise ValueError("expected the file as the page wrote it, found it edited; ask the rater for the original.")
    if results.set_id != set_id:
        raise ValueError(f"expected answers to set {set_id}, found {brief(results.set_id)}; these are of another set.")
    rows = [(one.image_id, int(one.answer == "real"), one.confidence, one.ms / 1000) for one in results.answers]
    answers = pd.DataFrame(rows, columns=["image_id", "said_real", "confidence", "seconds"])
    check_ratings(answers.assign(rater=results.rater), items)
    return Sitting(name, results.rater, results.sitting, results.finished, answers.astype({"confidence": float}))


def checksum(body: Mapping[str, Any]) -> str:
    """CRC-32 (8 hex digits) of the compact JSON of a results file without its checksum, as the page computes it."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(key) for key in fault["loc"])
    what = fault["msg"][0].lower() + fault["msg"][1:]
    found = "nothing" if fault["type"] == "missing" else brief(fault["input"])
    return f"field {where}: {what}, found {found}; ask the rater for the original file."


# ---------------------------------------------------------------- a table made by hand


def read_table(content: bytes, items: pd.DataFrame) -> pd.DataFrame:
    """Ratings made by hand: ``rater, image_id, said_real, confidence``, every image answered once per rater.

    A table as any spreadsheet saves it, with a header: ``rater, image_id, said_real`` (1 or real, 0 or synthetic) and,
    where there is one, ``confidence`` (per cent, may be empty); further columns are dropped. A ValueError names the
    line or the rater.
    """
    names = [*RATING_COLUMNS, "confidence"]
    sheet = read_sheet(content, names)
    places, lines = sheet.places(names), [line for line, _ in sheet.rows]
    missing = [name for name in RATING_COLUMNS if name not in places]
    if missing:
        raise ValueError(
            f"expected columns {', '.join(RATING_COLUMNS)}, found no {', '.join(missing)} in the first line,"
            f" {brief(', '.join(sheet.header))}; add a header line, with commas between the names."
        )
    if not lines:
        raise ValueError("expected one row per answer, found none; collect ratings first.")
    for line, n in sheet.overlong().items():
        raise ValueError(f"line {line}: expected {len(sheet.header)} cells, found {n}; quote a text that holds commas.")
    table = pd.DataFrame({name: sheet.column(places.get(name, len(sheet.header))) for name in names}).map(plain)
    said = table["said_real"].str.casefold().str.replace(_WHOLE, r"\1", regex=True).map(_SAID)
    sure = table["confidence"].str.replace(_WHOLE, r"\1", regex=True)
    levels = [str(level) for level in CONFIDENCE_LEVELS]
    for place, rater in enumerate(table["rater"]):
        named = 0 < len(rater) <= _RATER_LENGTH and rater.isprintable() and not is_formula(rater)
        if not named or pd.isna(said[place]) or sure[place] not in ("", *levels):
            raise ValueError(
                f"line {lines[place]}: expected a rater of at most {_RATER_LENGTH} characters that begins with none of"
                f" =+-@, said_real 0 or 1 and a confidence empty or of {', '.join(levels)},"
                f" found {table.loc[place].to_dict()}; correct that line."
            )
    written = {str(name).casefold(): name for name in items["image_id"]}  # a spreadsheet may begin cells with a capital
    ids = table["image_id"].map(lambda name: written.get(name.casefold(), name))
    table = table.assign(image_id=ids, said_real=said.astype(int), confidence=pd.to_numeric(sure).astype(float))
    check_ratings(table, items)
    return table


def _is_table(content: bytes) -> bool:
    """Whether a text file is a table of ratings."""
    with contextlib.suppress(ValueError):
        return len(read_sheet(content, RATING_COLUMNS).places(RATING_COLUMNS)) == len(RATING_COLUMNS)
    return False


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
