"""The table of a folder cohort: read a CSV that a person wrote, and say everything that is wrong with it at once.

Contract: text of the user stays text. Problems are collected row by row, counted as a spreadsheet counts (the header
is row 1), and raised together as one `CohortError`; no image is decoded here.
"""

from __future__ import annotations

import difflib
import itertools
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml

from nafld_utils import artifacts, params
from nafld_utils.cohort import one_person
from nafld_utils.cohort.folder_files import MAX_TABLE_BYTES, OPTIONAL, REQUIRED
from nafld_utils.cohort.one_person import AS_WRITTEN, People
from nafld_utils.cohort.problems import CohortError, Problem, Problems, shown

if TYPE_CHECKING:
    from nafld_utils.artifacts import Sheet

REVISION = ("cohort_table", 1)
SYNONYMS = {  # what other tables call the columns, likeliest first, without blanks and underscores
    "image": ("filename", "file", "path", "filepath", "imagepath", "imagename", "imagefile", "imageid"),
    "patient": ("patientid", "subject", "subjectid", "case", "caseid", "participantid", "id"),
    "label": ("class", "classname", "diagnosis", "target", "category"),
}
PAIRS = 6  # commands in a message (choice): those of four labels
# Names of a class that has not what is looked for, so that no suggestion makes it the one to detect.
_WITHOUT = re.compile(r"\b(normal|healthy|controls?|benign|negative|none|no|clear|absent)\b", re.IGNORECASE)
_NOTHING = ("na", "n/a", "nan", "none", "null", "unknown", "?", "-")  # words that programs and people write for it
_NUMBERS = {"0": 0, "1": 1}  # labels of any table whose classes have other names


def read_table(
    source: Path, class_names: Sequence[str], need_images: bool = True, people: People = AS_WRITTEN
) -> tuple[pd.DataFrame, Problems]:
    """Read and check the table of a folder cohort; the problems are to be raised with those of the images.

    `source` is a CSV file: UTF-8, or UTF-16 with its mark; separated by comma, semicolon, tab or bar, or as a first
    line ``sep=;`` says; with the columns of the README, others are not read. ``image`` is not needed where the pixels
    lie in one array, and rows whose label is in ``people.leave_out`` are left out. A `CohortError` is raised where no
    row can be told.

    `people` says which names are one patient. Returns one row per image, in the order of the file: ``row``
    (spreadsheet's count), ``image`` str, ``patient`` str (one name per patient), ``written`` str (as the file has it),
    ``label`` int, ``class_name`` str (what messages call the label), ``is_number`` bool (the label is written as 0 or
    1), ``grade`` float (NaN where not known), ``fold`` Int64 from 0 (missing where there is no such column); where
    there are problems, labels and folds may be missing.
    """
    table, problems = _cells(source, need_images, people.labelled)
    table = _without_others(source, table, people.leave_out, problems)
    parsed = table[["row", "image", "patient"]].assign(written=table["patient"])
    parsed["patient"] = parsed["patient"].mask(_is_one_of(table["patient"], _NOTHING), "")
    joins = read_joins(Path(people.join).expanduser()) if people.join else None
    parsed["patient"] = one_person.one_each(parsed, people.alike, joins, problems)
    parsed["label"], names, all_known = -1, (), False
    if people.labelled or (table["label"] != "").any():
        parsed["label"], names, all_known = _labels(table, class_names, problems, source.parent)
    parsed["class_name"] = parsed["label"].map(dict(enumerate(names)))
    parsed["is_number"] = table["label"].map(_label_text).isin(_NUMBERS)
    parsed["grade"] = _grades(table, problems)
    parsed["fold"] = _folds(table, parsed["label"], all_known, problems)
    _check_names(table, need_images, problems)
    _check_patients(parsed, all_known, problems)
    parsed["grade"] = parsed.groupby("patient")["grade"].transform("max")  # known from one row of the patient
    return (parsed if problems else parsed.astype({"label": np.int64})), problems


def read_joins(source: Path) -> pd.DataFrame:
    """Pairs of names of one person, ``row, patient, same_as``, of the CSV file ``cohort.join``; others are not read."""
    names, problems = ("patient", "same_as"), Problems()
    try:
        if not source.is_file():
            raise ValueError("expected the CSV file of cohort.join, found none; correct the path")
        sheet = artifacts.read_sheet(source.read_bytes(), names)
        folded = [artifacts.column_name(name) for name in sheet.header]
        if not set(names) <= set(folded):
            found = ", ".join(shown(name, 30) for name in sheet.header[:12])
            raise ValueError(f"expected the columns patient and same_as of cohort.join, found {found}; rename them")
    except ValueError as error:
        raise CohortError(source, [Problem(None, str(error))]) from None
    table = pd.DataFrame({"row": [row for row, _ in sheet.rows]})
    for name in names:
        table[name] = sheet.column(folded.index(name))
    problems.each(table[(table[list(names)] == "").any(axis=1)], "expected two names, found one; add it")
    if problems:
        raise CohortError(source, problems)
    return table


def of_others(source: Path, leave_out: Sequence[str]) -> tuple[pd.Series, pd.Series]:
    """Labels, as written, and patients of the table's rows that `leave_out` leaves out."""
    table = _cells(source, need_images=False)[0] if leave_out else pd.DataFrame({"label": [], "patient": []}, dtype=str)
    rows = table[_is_one_of(table["label"], leave_out)]
    return rows["label"], rows["patient"]


# ---------------------------------------------------------------- the file


def _cells(source: Path, need_images: bool, need_labels: bool = True) -> tuple[pd.DataFrame, Problems]:
    """Text of every column, stripped, and rows that are too long; of columns not there, only ``fold`` is left out.

    ``failed`` names the columns of a row that a spreadsheet could not compute, each of which is a problem already.
    """
    size, problems = source.stat().st_size, Problems()
    try:
        if size > MAX_TABLE_BYTES:
            raise ValueError(f"expected a table of at most {MAX_TABLE_BYTES >> 20} MiB, found {size >> 20} MiB")
        sheet = artifacts.read_sheet(source.read_bytes(), (*REQUIRED, *OPTIONAL))
        places = _columns(source, sheet, {"image": need_images, "label": need_labels})
        if not sheet.rows:
            raise ValueError("expected one row per image, found none; add them")
    except CohortError:
        raise
    except ValueError as error:
        raise CohortError(source, [Problem(None, str(error))]) from None
    for row, found in sheet.overlong().items():
        text = f"expected {len(sheet.header)} cells, found {found}; quote a text that holds a separator"
        problems.add(row, text)
    table = pd.DataFrame({"row": [row for row, _ in sheet.rows], "failed": ""})
    for name, place in {**dict.fromkeys((*REQUIRED, "grade"), len(sheet.header)), **places}.items():
        table[name] = sheet.column(place)
        failed = table[name].str.fullmatch(artifacts.CELL_ERROR)
        text = f"expected {name}, found {{{name}}}, an error of the spreadsheet; write what is meant"
        problems.each(table[failed], text)
        table[name], table["failed"] = table[name].mask(failed, ""), table["failed"] + np.where(failed, name, "")
    for name in {"grade", "fold"} & {*table}:
        table[name] = table[name].map(sheet.number)
    return table, problems


def _computed(table: pd.DataFrame, name: str) -> pd.Series:
    """Whether each row's cell of a column is none that a spreadsheet could not compute."""
    return ~table["failed"].str.contains(name)


def _columns(source: Path, sheet: Sheet, needed: Mapping[str, bool]) -> dict[str, int]:
    """Place of each column that is read; `needed` says which of the required ones may be missing."""
    problems, places, header = Problems(), {}, sheet.header
    if len(header) == 1:
        text = "expected columns between commas, semicolons, tabs or bars, named in the first line, found one column"
        raise CohortError(source, [Problem(None, f"{text}, {shown(header[0], 40)}; save the table as CSV UTF-8")])
    folded = [artifacts.column_name(name) for name in header]
    others = {key: name for key, name in zip(folded, header, strict=True) if key not in (*REQUIRED, *OPTIONAL)}
    for name in (*REQUIRED, *OPTIONAL):
        if folded.count(name) > 1:
            problems.add(None, f"expected one column {name}, found {folded.count(name)}; remove the others")
        if name in folded:
            places[name] = folded.index(name)
        elif name in OPTIONAL:
            for close in difflib.get_close_matches(name, others, n=1, cutoff=0.8):
                problems.add(None, f"column {shown(close)} is not read; rename it to {name}, or to something else")
        elif needed.get(name, True):
            found = ", ".join(shown(other, 30) for other in header[:12]) or "nothing"
            problems.add(None, f"expected a column {name}, found {found}; {_rename(name, others)}")
    if problems:
        raise CohortError(source, problems)
    return places


def _rename(name: str, others: dict[str, str]) -> str:
    """What to do about a column that is missing among `others`, the header's names by their small letters."""
    meant = {re.sub(r"[\s_-]", "", folded): other for folded, other in reversed(others.items())}
    for other in SYNONYMS[name]:
        if other in meant:
            return f"if {shown(meant[other], 30)} is meant, rename it to {name}"
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
    return f"the nearest is {shown(close[0])}, rename it" if close else "rename the one that holds it, or add it"


# ---------------------------------------------------------------- the columns


def _is_one_of(label: pd.Series, names: Sequence[str]) -> pd.Series:
    """Whether a text is one of `names`, as labels are compared."""
    return label.map(_label_text).str.casefold().isin([_label_text(name).casefold() for name in names])


def _without_others(source: Path, table: pd.DataFrame, leave_out: Sequence[str], problems: Problems) -> pd.DataFrame:
    """The rows without those of labels that are left out; a patient who has both is a problem."""
    others = _is_one_of(table["label"], leave_out)
    kept = table[~others].reset_index(drop=True)
    both = table[others & table["patient"].isin(kept["patient"]) & ~_is_one_of(table["patient"], ("", *_NOTHING))]
    what = "expected one label per patient, found {label}, which cohort.leave_out leaves out, and another label for"
    problems.each(both, what + " patient {patient}")
    if not len(kept):
        text = "expected rows that cohort.leave_out keeps, found none; correct the setting"
        raise CohortError(source, [Problem(None, text)])
    return kept


def _labels(
    table: pd.DataFrame, class_names: Sequence[str], problems: Problems, folder: Path
) -> tuple[pd.Series, Sequence[str], bool]:
    """Labels as 0 and 1, the names these stand for, and whether every label that is written is a class.

    Where the table's two labels are not the two of the settings, they stand for themselves, so that the other checks go
    on.
    """
    written = table["label"].map(_label_text)
    key, filled = written.str.casefold(), written != ""
    numbered = _numbers_stand_for(class_names)
    missing = f"expected a class name{', 0 or 1' if numbered else ''} as label, found nothing"
    problems.each(table[~filled & _computed(table, "label")], missing)
    codes = {name.casefold(): value for value, name in enumerate(map(_label_text, class_names))}
    if numbered:
        codes |= _NUMBERS
    label = key.map(codes).astype(float)
    unknown = label.isna() & filled
    if not unknown.any():
        return label, class_names, True
    found = table.assign(text=written)[filled].groupby(key[filled], sort=False)
    found = found.agg(text=("text", "first"), n=("text", "size"), row=("row", "first"))
    if len(found) == 2:  # the folder is right and the settings are not: said once
        names = _in_order(found["text"].tolist(), class_names)
        problems.add(None, _class_hint(names, class_names))
        return key.map({name.casefold(): value for value, name in enumerate(names)}).astype(float), names, True
    both = label.nunique() == 2
    if both and (found.loc[~found.index.isin(codes), "n"] == 1).all():  # slips, not a third class
        known = f"{', '.join(class_names)}, 0 or 1" if numbered else " or ".join(class_names)
        problems.each(table[unknown], "expected {known} as label, found {label}", known=known)
        return label, class_names, False
    problems.add(None, _other_than_two(found, both, folder))
    return label, class_names, False


def _numbers_stand_for(class_names: Sequence[str]) -> bool:
    """Whether labels 0 and 1 stand for the classes; where a class is named 0 or 1, the numbers are names."""
    return not {_label_text(name) for name in class_names} & _NUMBERS.keys()


def _other_than_two(found: pd.DataFrame, both: bool, folder: Path) -> str:
    """What to do about one label, or three and more; `both`: the two of the settings are among them."""
    counts = [f"{shown(item.text, 30)} ({item.n} rows, first row {item.row})" for item in found.itertuples()]
    listed = ", ".join(counts[:8]) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
    wanted = "expected two labels, class names or 0 and 1, found"
    if len(found) == 1:
        return f"{wanted} {listed} only; add the other class and name both in cohort.class_names"
    naming = "" if both else ", and name the two in cohort.class_names"
    remedy = f"keep the rows of two, or make one table per pair{naming}"
    return f"{wanted} {len(found)}: {listed}; {remedy}{_commands(found['text'].tolist(), folder)}"


def _commands(names: list[str], folder: Path) -> str:
    """The command that runs the study on each pair of several labels, of many pairs the first `PAIRS`."""
    if not all(params.PLAIN_NAME.fullmatch(name) for name in names):
        return ""
    names = sorted(names, key=lambda name: not _WITHOUT.search(name))
    pairs, lines = list(itertools.combinations(names, 2)), []
    for pair in pairs[:PAIRS]:
        others = [name for name in names if name not in pair]
        name = "-".join(re.sub(r"[^A-Za-z0-9]+", "", part) or "x" for part in pair)
        values = f"cohort.class_names={_in_set(pair)} cohort.leave_out={_in_set(others)}"
        lines.append(f'make all RUN={name} DATA={shlex.quote(str(folder))} SET="{values}"')
    more = f"; and likewise the other {len(pairs) - PAIRS} pairs" if len(pairs) > PAIRS else ""
    return f"; or run each pair, its second name being the class to detect: {'; '.join(lines)}{more}"


def _in_set(names: Sequence[str]) -> str:
    """Names as a list in a value of SET, which is YAML, where ``no`` is no text."""
    words = [bool(re.fullmatch(r"\w+( \w+)*", name)) and yaml.safe_load(name) == name for name in names]
    return f"[{', '.join(name if plain else repr(name) for name, plain in zip(names, words, strict=True))}]"


def _label_text(text: str) -> str:
    """A label or a class name as it is compared: plain, and a whole number without the .0 of a spreadsheet."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", artifacts.plain(text))


def _in_order(found: list[str], class_names: Sequence[str]) -> list[str]:
    """Two labels as class 0 and class 1: those of the settings keep their place, numbers ascend, health first."""
    first, second = (name.casefold() for name in class_names)
    if all(text.isdecimal() for text in found):
        return sorted(found, key=int)
    folded = [text.casefold() for text in found]
    if {first, second} & {*folded}:
        return found[::-1] if folded[0] == second or folded[1] == first else found
    return sorted(found, key=lambda name: not _WITHOUT.search(name))


def _class_hint(names: Sequence[str], class_names: Sequence[str]) -> str:
    """What to do about two labels that the settings do not name; a value of SET is YAML, where ``no`` is no text."""
    either = ", or 0 and 1" if _numbers_stand_for(class_names) else ""
    found = (
        f"expected the labels {class_names[0]} and {class_names[1]} (cohort.class_names){either}, found"
        f" {shown(names[0])} and {shown(names[1])}"
    )
    odd = [shown(name) for name in names if not params.PLAIN_NAME.fullmatch(name)]
    if odd:
        return (
            f"{found}; a class needs {params.PLAIN_NAME_RULE}, so rename {' and '.join(odd)} in the table, or write 0"
            " and 1 there, 1 for the class to detect"
        )
    other = f"or, to detect {names[0]}, the same with {_in_set(names[::-1])}"
    return f'{found}; to detect {names[1]}, give SET="cohort.class_names={_in_set(names)}", {other}'


def _grades(table: pd.DataFrame, problems: Problems) -> pd.Series:
    text = table["grade"].mask(_is_one_of(table["grade"], _NOTHING), "")
    grade = pd.to_numeric(text.where(text != ""), errors="coerce").astype(float)
    problems.each(table[(text != "") & ~np.isfinite(grade)], "expected a number or nothing as grade, found {grade}")
    return grade


def _folds(table: pd.DataFrame, label: pd.Series, all_known: bool, problems: Problems) -> pd.Series:
    """Folds from 0, missing where there is no such column; a table that counts from 1 is taken as it is meant."""
    none = pd.Series(pd.NA, index=table.index, dtype="Int64")
    if "fold" not in table:
        return none
    number = pd.to_numeric(table["fold"].where(table["fold"] != ""), errors="coerce").astype(float)
    wrong = table[number.isna() | (number % 1 != 0) | (number < 0) | (number > 1000)]
    problems.each(wrong[_computed(wrong, "fold")], "expected a whole number from 0 as fold, found {fold}")
    if len(wrong):
        return none
    fold = (number - number.min() * (number.min() == 1)).astype("Int64")
    present = sorted(fold.unique())
    if len(present) < 2 or present != list(range(len(present))):
        problems.add(None, f"expected folds numbered 0, 1, 2 and so on without a gap, found {present[:20]}")
    classes = label.groupby(fold).agg(["nunique", "first"])
    for value, only in classes.loc[(classes["nunique"] == 1) & all_known, "first"].items():
        problems.add(None, f"expected both classes in every fold, found label {only:.0f} only in fold {value}")
    return fold


def _check_names(table: pd.DataFrame, need_images: bool, problems: Problems) -> None:
    for name in ("image", "patient") if need_images else ("patient",):
        problems.each(table[(table[name] == "") & _computed(table, name)], f"expected {name}, found nothing")
    for word, rows in table[_is_one_of(table["patient"], _NOTHING)].groupby("patient", sort=False):
        times = f"in {len(rows)} rows, the first of which is this" if len(rows) > 1 else "here"
        text = f"expected patient, found {word} {times}, which stands for nothing; write who it is"
        problems.add(int(rows["row"].iloc[0]), text)
    if need_images:
        turned = table["image"].str.normalize("NFC").str.replace("\\", "/")
        image = turned.map(posixpath.normpath).where(turned != "", "")
        again = table.assign(image=image, first=table["row"].groupby(image).transform("first"))
        again = again[image.duplicated() & (image != "")]
        problems.each(again, "expected each image once, found {image} in row {first} too")


def _check_patients(parsed: pd.DataFrame, all_known: bool, problems: Problems) -> None:
    """One fold, label and grade per patient, those of the patient's first row that has any; both classes."""
    words = {"fold": "fold " + parsed["fold"].astype(str), "label": parsed["class_name"]}
    words["grade"] = parsed["grade"].map("{:g}".format)
    for column, here in words.items():
        rows = parsed.assign(value=parsed[column], here=here)[(parsed["patient"] != "") & parsed[column].notna()]
        first = rows.groupby("patient", sort=False)[["value", "here", "row"]].transform("first")
        odd = rows.assign(there=first["here"], first=first["row"])[rows["value"] != first["value"]]
        what = f"expected one {column} per patient"
        problems.each(odd, what + ", found {here} here and {there} in row {first} for patient {patient}")
    present = parsed["class_name"].dropna().unique()
    if len(present) == 1 and all_known:
        what = f"expected patients of both classes, found {present[0]} only; add the other class"
        problems.add(None, what)


def fold_problems(table: pd.DataFrame, n_splits: int | None) -> list[Problem]:
    """Whether the folds that are asked for are those of column ``fold`` or can be made of the patients."""
    if n_splits is None:
        return []
    if table["fold"].notna().any():
        found = int(table["fold"].max()) + 1
        if found == n_splits:
            return []
        wanted = f"expected as many folds as folds.n_splits {n_splits}, found {found}"
        return [Problem(None, f'{wanted}; give SET="folds.n_splits={found}"')]
    counts = table.drop_duplicates("patient")["class_name"].value_counts()
    wanted = f"expected at least folds.n_splits {n_splits} patients of each class, found"
    remedy = "add patients or give SET"
    return [
        Problem(None, f'{wanted} {count} of {shown(name)}; {remedy}="folds.n_splits={max(2, count)}"')
        for name, count in counts[counts < n_splits].items()
    ]
