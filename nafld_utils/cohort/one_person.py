"""Who is one patient by name: names written in several ways, rounded, taken from files or joined.

Contract: names as the table has them in; groups, problems and sentences out; no file is opened.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils.cohort.problems import Problems, shown

REVISION = ("patient_names", 2)
ORDER = "the order of words"
SETTING = "cohort.alike_names"
CHANCE = 0.01  # that unrounded numbers of 16 digits and more end in so many zeros (choice)
_SHORT = re.compile(r"(\d{1,3})([.,]\d+|(?=e\+))e\+?(\d{1,3})", re.IGNORECASE)  # 4.711E+07, 4E+7; 1E5 is a name
_LONG = re.compile(r"\d{16,300}")  # a spreadsheet and a 64-bit number hold 15 digits for sure
_LETTERS = str.maketrans("АВЕКМНОРСТХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEKMHOPCTXIJSaeopcyxijsABEZHIKMNOPTYX")
_TWINS = {ord(chr(one).casefold()): chr(other).casefold() for one, other in _LETTERS.items()} | _LETTERS
_DASHES = {**dict.fromkeys(map(ord, "‐‑‒–—―−"), "-"), **dict.fromkeys(map(ord, "'\"’‘‚“”„´`="))}
_MARKS = r"\s_.,:;/()\[\]#^\-"
_WORD, _GAP = r"[^\d\s_.,;^\-]+", r"[\s_.,;^\-]+"
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ı": "i", "å": "aa", "ø": "oe", "æ": "ae", "œ": "oe"})
# What nobody sees beside control and format characters: Unicode's default-ignorable ones and a Braille blank.
_UNSEEN = re.compile(
    "[\u034f\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def _visible(text: str) -> str:
    text = _UNSEEN.sub("", text)
    return "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc"))


def _between_digits(text: str, marks: str) -> str:
    """Marks as one blank between two digits, elsewhere as nothing."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", re.sub(rf"[{marks}]+", " ", text))


def _in_order(text: str) -> str:
    """Words without digits that stand side by side, one of them of three letters or more, in the order of letters."""

    def ordered(found: re.Match[str]) -> str:
        words, marks = re.findall(_WORD, found[0]), re.findall(_GAP, found[0])
        words = sorted(words, key=plain) if max(map(len, words)) > 2 else words
        return "".join(itertools.chain(*itertools.zip_longest(words, marks, fillvalue="")))

    return re.sub(rf"{_WORD}(?:{_GAP}{_WORD})+", ordered, text)


def _dated(text: str) -> str:
    """Dates as year, month and day; of those that end with the year the day is first where it can be."""
    text = re.sub(r"(?<!\d)((?:19|20)\d\d)[ ./-]?(0[1-9]|1[0-2])[ ./-]?(0[1-9]|[12]\d|3[01])(?!\d)", r"\1 \2 \3", text)

    def turned(found: re.Match[str]) -> str:
        month, day = found.groups()[:2] if int(found[2]) > 12 else found.groups()[1::-1]
        return f"{found[3]} {month} {day}" if int(day) < 32 and 0 < int(month) < 13 else found[0]

    return re.sub(r"(?<!\d)(\d\d?)[ ./-](\d\d?)[ ./-]((?:19|20)\d\d)(?!\d)", turned, text)


# What two writings of one name may differ by, in the order in which it is taken away.
_STEPS: dict[str, Callable[[str], str]] = {
    "invisible characters": _visible,
    ORDER: _in_order,
    "blanks": lambda text: _between_digits(text, r"\s"),
    "Unicode form": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "the alphabet of a letter": lambda text: text.translate(_TWINS),
    "the script of a digit": lambda text: "".join(str(unicodedata.decimal(letter, letter)) for letter in text),
    "dashes or quotes": lambda text: text.translate(_DASHES),
    ".0 behind a number": lambda text: re.sub(r"^(\d+)[.,]0+$", r"\1", text),
    "the form of a date": _dated,
    "blanks or punctuation": lambda text: _between_digits(text, _MARKS),
    "leading zeros": lambda text: re.sub(r"(?<!\d)0+(?=\d)", "", text),
    "accents": lambda text: text.translate(_UMLAUTS),
}


class People(NamedTuple):
    """Who is a patient, and how patients are told apart and kept unnamed: settings of ``cohort`` in this order.

    They are ``alike_names, join, patient_numbers, burned_in, leave_out``. Where a table need not be `labelled`, each
    image of one without labels has label -1.
    """

    alike: str = "stop"
    join: str | None = None
    numbers: str = "counted"
    burned_in: str = "stop"
    leave_out: Sequence[str] = ()
    labelled: bool = True

    @classmethod
    def of(cls, chosen: Any) -> People:
        """As the settings of the cohort say."""
        return cls(chosen.alike_names, chosen.join, chosen.patient_numbers, chosen.burned_in, chosen.leave_out)


AS_WRITTEN = People()


def plain(name: str, *without: str) -> str:
    """A name as it is compared: composed, one case, words in order, no marks but a blank between digits, no ``.0``.

    Examples
    --------
    >>> plain(" P\u00a0007"), plain("7.0"), plain("site 1 12"), plain("Müller, Jo 5.1.1970"), plain("p7", "case")
    ('p7', '7', 'site1 12', 'jomueller1970 1 5', 'p7')
    """
    for what, step in _STEPS.items():
        name = name if what in without else step(name)
    return name


def differ_by(one: str, other: str) -> str:
    """What two names differ by that are one in plain writing."""
    without = [] if plain(one) == plain(other) else [ORDER]  # John Doe and JohnDoe
    steps = {what: step for what, step in _STEPS.items() if what not in without}
    needed = [what for what in steps if plain(one, what, *without) != plain(other, what, *without)]
    for what, step in steps.items():
        one, other = step(one), step(other)
        if one == other:
            return " and ".join(needed or [what])
    return "accents" if re.search(r"[^\W\d]", one) else "marks between thousands"


def rounded(names: Iterable[str]) -> list[str]:
    """Names that are numbers which a spreadsheet or a 64-bit number has rounded, so that several may have become one.

    Choice: those with an exponent above their decimals; those of more than 15 digits with ``.0`` behind, or where more
    of them end in zeros than unrounded numbers would (Poisson, below `CHANCE`); and those above 2 to the power 53 where
    each is a 64-bit number, which so many unrounded ones would be with a chance below `CHANCE`.
    """
    names = list(names)
    found = [name for name in names if _kept(name) or re.fullmatch(r"\d{16,}[.,]0+", name)]
    long = [name for name in names if _LONG.fullmatch(name)]
    cut = [name for name in long if not name[15:].strip("0")]
    binary = [name for name in long if int(name) > 2**53]
    exact = all(int(name) == int(float(name)) for name in binary)
    if exact and math.prod(1 / math.ulp(float(name)) for name in binary) < CHANCE:
        return found + list(dict.fromkeys(cut + binary))
    if not cut:
        return found
    from scipy import stats

    expected = sum(10.0 ** (15 - len(name)) for name in long)
    return found + (cut if stats.poisson.sf(len(cut) - 1, expected) < CHANCE else [])


def _kept(name: str) -> int:
    """Digits that a number with an exponent has kept; 0 where it is none or has no digit less than the whole number."""
    match = _SHORT.fullmatch(name)
    whole, decimals, power = match.groups() if match else ("", "", "0")
    return len(whole.lstrip("0") + decimals[1:]) if int(power) >= max(1, len(decimals)) else 0


def may_be(names: Iterable[str], short: Iterable[str]) -> dict[str, list[str]]:
    """Of each rounded number of `short`, the whole numbers among `names` that it may have been."""
    short = list(short)
    whole = [name for name in names if name.isascii() and name.isdigit() and name not in short]
    became: dict[tuple[str, object], list[str]] = {}
    for name in whole:
        became.setdefault(("long", (len(name), name[:15])), []).append(name)
        for kept in {6, *map(_kept, short)} - {0}:
            became.setdefault(("short", float(f"{float(name):.{kept - 1}e}")), []).append(name)
    keys = {name: ("long", (len(re.sub("[.,].*", "", name)), name[:15])) for name in short}
    keys |= {name: ("short", float(name.replace(",", "."))) for name in short if _kept(name)}
    return {name: list(dict.fromkeys(became.get(key, ()))) for name, key in keys.items()}


def alike(names: Iterable[str]) -> dict[str, str]:
    """Of each name, the first that may be another writing of it: itself where there is none before it."""
    names = list(dict.fromkeys(names))
    first: dict[str, str] = {}
    forms = [(name, {plain(name), plain(name, ORDER), plain(_ungrouped(name)), plain(_bare(name))}) for name in names]
    return joined(names, [(name, first.setdefault(form, name)) for name, both in forms for form in sorted(both)])


def _ungrouped(name: str) -> str:
    """A whole number without blanks or commas between its thousands; another name as it is."""
    text = " ".join(_STEPS["invisible characters"](name).split())
    return re.sub("[ ,]", "", text) if re.fullmatch(r"\d{1,3}([ ,]\d{3})+([.,]0+)?", text) else name


def _bare(name: str) -> str:
    """A name without the accents of its letters, which another writing may have left out."""
    letters = unicodedata.normalize("NFD", name).translate(str.maketrans("øØłŁđĐ", "oOlLdD"))
    return unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", letters))


def joined(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of each of different `names`, the first one that `pairs` connect it with."""
    names, pairs = list(names), [(a, b) for a, b in pairs if a != b]
    if not pairs:
        return {name: name for name in names}
    from scipy import sparse

    place = {name: i for i, name in enumerate(names)}
    edges = np.array([(place[a], place[b]) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(edges)), tuple(edges.T)), shape=(len(names), len(names)))
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    first: dict[int, str] = {}
    return {name: first.setdefault(int(number), name) for name, number in zip(names, group, strict=True)}


def one_each(table: pd.DataFrame, alike_names: str, joins: pd.DataFrame | None, problems: Problems) -> pd.Series:
    """Names of the patients, one per patient; what is wrong with them is added to `problems`.

    `table` has ``row, patient``, one row per image; `joins` is `folder_table.read_joins` of ``cohort.join``. Joined
    names are compared with the others too: one that looks like a joined name is not in the join.
    """
    names = table.loc[table["patient"] != "", ["patient", "row"]].drop_duplicates("patient").set_index("patient")["row"]
    known, same = [] if joins is None else _known(joins, names, problems), alike(names.index)
    chosen = joined(names.index, known + (list(same.items()) if alike_names == "same" else []))
    short = rounded(names.index)
    if alike_names == "stop":
        _tell_alike(names, {a: b for a, b in same.items() if chosen[a] != chosen[b]}, short, problems)
    _tell_rounded(names, short, problems)
    return table["patient"].map(lambda name: chosen.get(name, name)).astype(object)


def _tell_alike(names: pd.Series, same: dict[str, str], short: Sequence[str], problems: Problems) -> None:
    """Add names that look alike, of which no join says that they are one, to the problems."""
    either = f'give SET="{SETTING}=same" or SET="{SETTING}=different"'
    for name, first in same.items():
        if name in short or first in short:
            continue
        text = f"expected one way to write a patient, found {shown(name)} here and {shown(first)} in row {names[first]}"
        what = differ_by(name, first)
        problems.add(int(names[name]), f"{text}, which differ by {what}; correct the table, or {either}")


def _tell_rounded(names: pd.Series, short: Sequence[str], problems: Problems) -> None:
    """Add rounded numbers to the problems, whatever the settings say: nothing tells which patients they were."""
    for name, whole in may_be(names.index, short).items():
        others = [f"{shown(other)} in row {names[other]}" for other in whole[:3]]
        also = f", which may be {' or '.join(others)}" if others else ""
        problems.add(
            int(names[name]),
            f"expected a patient's name, found {shown(name)}, a number that a spreadsheet has rounded, so that several"
            f" patients may have become one{also}; format the column as text and enter the numbers again, or, if this"
            " is the name, write a letter before it",
        )


def _known(joins: pd.DataFrame, names: pd.Series, problems: Problems) -> list[tuple[str, str]]:
    """Pairs of names that the cohort's table has."""
    import difflib

    pairs = []
    for row, *pair in joins.itertuples(index=False):
        # a mark that the package writes before what a spreadsheet would take for a formula
        pair = [name[1:] if name not in names.index and name[1:] in names.index else name for name in pair]
        unknown = [name for name in pair if name not in names.index]
        for name in unknown:
            close = difflib.get_close_matches(name, list(names.index)[:2000], n=1)
            nearest = f"; the nearest is {shown(close[0])}" if close else ""
            problems.add(None, f"cohort.join, row {row}: expected patients of this table, found {shown(name)}{nearest}")
        pairs += [] if unknown else [tuple(pair)]
    return pairs


def told(table: pd.DataFrame, people: People) -> str:
    """Which names were taken as one patient, and whether they are names of files, for reports."""
    names = table.drop_duplicates("written")
    fewer = len(names) - names["patient"].nunique()
    ways = ["cohort.join"] * bool(people.join) + [f"{SETTING} same"] * (people.alike == "same")
    became = f"{len(names)} names were joined to {len(names) - fewer} patients as {' and '.join(ways)} say"
    notes = [became if fewer else "", of_files(table["image"], table["patient"])]
    return "; ".join(filter(None, notes))


def of_files(image: pd.Series, patient: pd.Series) -> str:
    """A warning where names of files stand as patients, a note where each image has its own patient, else nothing.

    `image` and `patient` have one text per image; choice: from four images on, for more than half of them.

    Examples
    --------
    >>> of_files(pd.Series(["a.png", "b.png", "c.png", "d.png"]), pd.Series(["a", "b", "c", "D.PNG"]))[:71]
    'Warning: 4 of 4 images are a patient of their own, named as their files'
    """
    if len(patient) < 4:
        return ""
    files = sum(plain(name) in _forms(text) for text, name in zip(image, patient, strict=True))
    remedy = "if a person has several images, name the person in column patient, or they are on both sides of a split"
    if files * 2 > len(patient):
        return f"Warning: {files} of {len(patient)} images are a patient of their own, named as their files; {remedy}"
    return f"every image is its own patient; {remedy}" if patient.nunique() == len(patient) else ""


def _forms(image: str) -> set[str]:
    """What a patient would be called after an image file."""
    path = PurePosixPath(image.replace("\\", "/"))
    texts = (str(path), path.name, path.stem, str(path.parent / path.stem))
    return {plain(text) for text in texts} if path.name else set()
