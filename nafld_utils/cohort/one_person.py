"""Who is one patient: names written in several ways, rounded, taken from files or joined; and frames of one person.

Contract: names as the table has them, or squares of images with their patients, in; groups, problems, sentences and a
table of pairs out; no file is opened. Frames are judged by the copy audit's distance of pixels. How near a patient's
nearest other patient may come is read from the cohort itself. Around a patient, the distances to the i-th and to the
k-th nearest other have a ratio r for which r to the power D has a beta distribution (i, k - i), whatever the density
there; D, one number, is the dimension in which these patients lie (Facco et al. 2017, doi 10.1038/s41598-017-11873-y,
for i = 1 and k = 2).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import networks
from nafld_utils.cohort.problems import Problems, shown

REVISION = ("patient_names", 1), ("one_person", 1)
SETTING = "cohort.alike_names"
CHANCE = 0.01  # that unrounded numbers of 16 digits and more end in so many zeros (choice)
_SHORT = re.compile(r"(\d{1,3})([.,]\d+|(?=e\+))e\+?(\d{1,3})", re.IGNORECASE)  # 4.711E+07, 4E+7; 1E5 is a name
_LONG = re.compile(r"\d{16,300}")  # a spreadsheet and a 64-bit number hold 15 digits for sure
_LETTERS = str.maketrans("АВЕКМНОРСТХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEKMHOPCTXIJSaeopcyxijsABEZHIKMNOPTYX")
_TWINS = {ord(chr(one).casefold()): chr(other).casefold() for one, other in _LETTERS.items()} | _LETTERS
_DASHES = {**dict.fromkeys(map(ord, "‐‑‒–—―−"), "-"), **dict.fromkeys(map(ord, "'\"’‘‚“”„´`="))}
# What nobody sees beside control and format characters: Unicode's default-ignorable ones and a Braille blank.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def _visible(text: str) -> str:
    text = _UNSEEN.sub("", text)
    return "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc"))


def _between_digits(text: str, marks: str) -> str:
    """Marks as one blank between two digits, elsewhere as nothing."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", re.sub(rf"[{marks}]+", " ", text))


# What two writings of one name may differ by, in the order in which it is taken away.
_STEPS: dict[str, Callable[[str], str]] = {
    "invisible characters": _visible,
    "blanks": lambda text: _between_digits(text, r"\s"),
    "Unicode form": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "the alphabet of a letter": lambda text: text.translate(_TWINS),
    "the script of a digit": lambda text: "".join(str(unicodedata.decimal(letter, letter)) for letter in text),
    "dashes or quotes": lambda text: text.translate(_DASHES),
    ".0 behind a number": lambda text: re.sub(r"^(\d+)[.,]0+$", r"\1", text),
    "blanks, dots, hyphens or underscores": lambda text: _between_digits(text, r"\s_.\-"),
    "leading zeros": lambda text: re.sub(r"(?<!\d)0+(?=\d)", "", text),
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


def plain(name: str, without: str = "") -> str:
    """A name as it is compared: composed, one case, no marks but a blank between digits, no leading zeros, no ``.0``.

    Examples
    --------
    >>> plain(" P\u00a0007"), plain("7.0"), plain("site 1 12"), plain("p7", without="case")
    ('p7', '7', 'site1 12', 'p7')
    """
    for what, step in _STEPS.items():
        name = name if what == without else step(name)
    return name


def differ_by(one: str, other: str) -> str:
    """What two names differ by that are one in plain writing."""
    needed = [what for what in _STEPS if plain(one, what) != plain(other, what)]
    for what, step in _STEPS.items():
        one, other = step(one), step(other)
        if one == other:
            return " and ".join(needed or [what])
    return "marks between thousands"


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
    forms = [(name, {plain(name), plain(_ungrouped(name))}) for name in names]
    return joined(names, [(name, first.setdefault(form, name)) for name, both in forms for form in sorted(both)])


def _ungrouped(name: str) -> str:
    """A whole number without blanks or commas between its thousands; another name as it is."""
    text = " ".join(_STEPS["invisible characters"](name).split())
    return re.sub("[ ,]", "", text) if re.fullmatch(r"\d{1,3}([ ,]\d{3})+([.,]0+)?", text) else name


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


# ---------------------------------------------------------------- frames of one person

LEVEL = 0.05  # that a cohort of different persons has any pair that is said to look like one
FRAMES = 4  # images of a patient that are compared at full size: those nearest to others (choice)
MOST = 3000  # images compared at full size (choice: a minute), yet one of each patient
NEAREST = 17  # other patients whose images are compared with an image at full size, shift and scale (choice)
# Choice: D is read from the third nearest on, so that a person with three numbers does not move it.
THIRD, FIFTH, EIGHTH = 3, 5, 8
BESIDE = (
    FIFTH,
    9,
    NEAREST,
)  # the nearest is judged beside these, so that one person under up to as many numbers is seen
FEWEST = 6  # patients; of fewer nothing is said
COARSE = 16  # pixels of the side at which the nearest patients are found
CHUNK = 1024  # images whose distances to all patients are held at once
LEAST = 1e-6  # distance below which images are equal but for rounding
PAIRS = ("patient_a", "patient_b")


def look_alikes(squares: np.ndarray, patients: np.ndarray, device: Any = "cpu") -> pd.DataFrame:
    """Each patient's nearest other patient, and whether the two look like one person.

    Parameters
    ----------
    squares : numpy.ndarray, shape (N, S, S), uint8
        All images of several patients, the region of each; S a multiple of 16.
    patients : numpy.ndarray, shape (N,)
        Whose images they are.
    device : torch.device or str

    Returns
    -------
    pandas.DataFrame
        ``patient_a, patient_b`` (a below b), ``correlation`` (-1 to 1, over shifts and scales) of their two most alike
        images, which are ``row_a, row_b`` of `squares`; ``usual``, the correlation with the fifth nearest patient;
        ``p``, the chance (0 to 1) that a patient's nearest other is this near beside any of `BESIDE`, of the patient
        who has the smaller;
        ``flagged``: p times the number of patients is below `LEVEL`. Most alike first; empty for fewer than `FEWEST`
        patients.
    """
    if len(np.unique(patients)) < FEWEST:
        return judged(pd.DataFrame(columns=["patient", "other", "distance", "row", "other_row"]))
    place, rows = _nearest(squares, patients, device)
    used, at = np.unique(rows, return_inverse=True)
    frames = np.concatenate([squares[place], squares[used]])
    apart = networks.pixels_apart(frames, at.reshape(rows.shape) + len(place), device)
    there = {"row": np.repeat(place, rows.shape[1]), "other_row": rows.ravel()}
    there = pd.DataFrame(there).assign(distance=apart.ravel().astype(float))
    back = there.rename(columns={"row": "other_row", "other_row": "row"})
    both = pd.concat([there, back]).sort_values(["distance", "row", "other_row"], kind="stable")
    both = both.assign(patient=patients[both["row"]], other=patients[both["other_row"]])
    return judged(both.drop_duplicates(["patient", "other"]))


def _nearest(squares: np.ndarray, patients: np.ndarray, device: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of the images that are nearest to another patient's, and (m, k) of the nearest others' nearest images.

    All images are compared, at 16 pixels a side; of each patient at most `FRAMES` are kept, `MOST` in all.
    """
    n, step, people = len(squares), squares.shape[1] // COARSE, len(np.unique(patients))
    small = np.empty((n, COARSE * COARSE), np.float32)
    for start in range(0, n, CHUNK):
        some = squares[start : start + CHUNK].reshape(-1, COARSE, step, COARSE, step)
        small[start : start + CHUNK] = some.mean(axis=(2, 4), dtype=np.float32).reshape(len(some), -1)
    small -= small.mean(axis=1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), LEAST)
    others = min(NEAREST, people - 1)
    rows, least = np.empty((n, others), np.int64), np.empty(n)
    for start in range(0, n, CHUNK):
        some = slice(start, start + CHUNK)
        found = networks.nearest_features(small[some], small, patients, device).without_own(patients[some])
        order = np.argsort(found.distance, axis=1, kind="stable")[:, :others]
        rows[some] = np.take_along_axis(found.row, order, axis=1)
        least[some] = found.distance.min(axis=1)
    each = max(1, min(FRAMES, MOST // people))
    near = pd.Series(patients[np.argsort(least, kind="stable")], index=np.argsort(least, kind="stable"))
    place = np.sort(near.index[near.groupby(near).cumcount() < each].to_numpy())
    return place, rows[place]


def judged(pairs: pd.DataFrame) -> pd.DataFrame:
    """The table of `look_alikes` from ``patient, other, distance, row, other_row``, nearest others of each first."""
    from scipy import stats

    n = pairs["patient"].nunique()
    place = pairs.groupby("patient").cumcount()
    last, beside = min(EIGHTH, n - 1), [k for k in BESIDE if k < n]
    at = {k: pairs[place == k - 1].set_index("patient") for k in {1, THIRD, FIFTH, last, *beside}}
    table = at[1].copy()
    logs = {k: np.log(found["distance"].reindex(table.index).clip(lower=LEAST)) for k, found in at.items()}
    table["p"] = 1.0
    if n:
        ratio = min((logs[THIRD] - logs[last]).median(), -LEAST)
        dimension = np.log(stats.beta.ppf(0.5, THIRD, last - THIRD)) / ratio
        each = [stats.beta.cdf(np.exp(dimension * (logs[1] - logs[k])), 1, k - 1) for k in beside]
        table["p"] = np.minimum(1.0, len(beside) * np.nanmin([np.ones(len(table)), *each], axis=0))
    table = table.assign(usual=1 - at[FIFTH]["distance"], correlation=1 - table["distance"])
    table = table.reset_index().sort_values("p", kind="stable")
    swap = table["patient"] > table["other"]
    for low, high, one, other in ((*PAIRS, "patient", "other"), ("row_a", "row_b", "row", "other_row")):
        table[low], table[high] = table[one].mask(swap, table[other]), table[other].mask(swap, table[one])
    table = table.assign(flagged=table["p"] * n < LEVEL).drop_duplicates(list(PAIRS), ignore_index=True)
    return table[[*PAIRS, "correlation", "usual", "p", "flagged", "row_a", "row_b"]]
