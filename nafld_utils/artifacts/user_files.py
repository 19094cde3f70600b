"""Files that people make and send: what a file is by its first bytes, what is litter, and tables of any spreadsheet.

Contract: bytes in, text out; no file is opened here, and text of the user stays text. A fault raises ValueError with a
phrase that says what was expected, what was found and what to do; the caller names the file.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath

SHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
# What a spreadsheet writes into a cell that it cannot compute or show: #N/A, #REF!, #VALUE!, #NV, #####.
CELL_ERROR = re.compile(r"#(?:N/?[ADV]|¡?[\w/]{2,12}[!?]|#+)")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "icon\r")  # of file managers
# How files begin that are taken for text, tables or MATLAB files; "." stands for any byte.
_KINDS = {
    "an Office document; export it as CSV UTF-8 or plain text": (
        rb"PK\x03\x04.{26}(?:\[Content_Types\]|_rels|docProps|xl/|word/|mimetypeapplication/vnd\.oasis)",
        rb"\xd0\xcf\x11\xe0\xa1\xb1",
    ),
    "a zip archive; unpack it and name the file that is in it": (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)",),
    "a gzip archive; unpack it": (rb"\x1f\x8b",),
    "a 7z archive; unpack it and name the file that is in it": (rb"7z\xbc\xaf\x27\x1c",),
    "a RAR archive; unpack it and name the file that is in it": (rb"Rar!\x1a\x07",),
    "a tar archive; unpack it and name the file that is in it": (rb".{257}ustar",),
    "an archive of bzip2, xz or zstd; unpack it": (rb"BZh[1-9]", rb"\xfd7zXZ\0", rb"\x28\xb5\x2f\xfd"),
    "a web page; download the file itself": (
        rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^<>]*>\s*)?(?:<!--.{0,300}?-->\s*)*"
        rb"<(?i:!doctype\s+html|html|head|body|script)\b",
        rb"\xff\xfe<\0(?i:h\0t\0m\0l|!\0d)",
    ),
    "a NumPy array; see the README for a folder of one": (rb"\x93NUMPY",),
    "a picture; see the README for a folder of images": (rb"\x89PNG\r\n", rb"\xff\xd8\xff", rb"II\x2a\0|MM\0\x2a"),
    "a pointer of Git LFS; get the file with git lfs pull": (rb"version https://git-lfs",),
    "a PDF document; ask for the original": (rb"%PDF-",),
}
# A first line that Excel obeys and does not show.
_STATED = re.compile(r'"?sep=([,;\t|])"?[,;\t|]*(?:\r\n?|\n|$)', re.IGNORECASE)
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def is_litter(path: PurePath) -> bool:
    """Whether a relative path is what file managers, editors, spreadsheets or Jupyter leave in a folder.

    Examples
    --------
    >>> [is_litter(PurePath(name)) for name in (".git/index", "a/Thumbs.db", "~$b.xlsx", "images.csv", "scan.png")]
    [True, True, True, False, False]
    """
    return any(part.startswith((".", "~$")) or part.endswith("~") or part.lower() in _LITTER for part in path.parts)


def file_kind(start: bytes) -> str | None:
    """What a file that is no text, table or MATLAB file is by its first bytes, and what to do; None: not known."""
    kinds = (kind for kind, starts in _KINDS.items() if any(re.match(one, start, re.DOTALL) for one in starts))
    return next(kinds, None)


def plain(text: str) -> str:
    r"""Text without characters that nobody sees, composed, with single blanks between its words.

    Examples
    --------
    >>> plain("\ufeff Image\u00a0\u00a0ID\u200b ")
    'Image ID'
    """
    return " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", text)).split())


def column_name(text: str) -> str:
    r"""Name of a column as it is compared: small letters, ``_`` for blanks and hyphens.

    Examples
    --------
    >>> column_name(" Image\u00a0ID"), column_name("said-real")
    ('image_id', 'said_real')
    """
    return re.sub("[ -]+", "_", plain(text).casefold())


def decoded(content: bytes) -> str:
    """Text of a file in UTF-8, or in UTF-16 or UTF-32 as its mark, or every second byte, tells."""
    kind = file_kind(content[:512])
    if kind:
        raise ValueError(f"expected text, found {kind}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None) or _unmarked(content[:512])
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} in line {line}"
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise ValueError(f"expected {name} text, found {found}; save it as CSV UTF-8") from None
    if "\0" in text:
        raise ValueError("expected text, found NUL characters; save it as CSV UTF-8")
    return text.removeprefix("\ufeff")


def _unmarked(start: bytes) -> str:
    """Encoding of text without a mark: UTF-16 where most bytes at odd or at even places are zero."""
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if (
            len(start) > 3
            and start[first::2].count(0) > 0.8 * len(start[first::2])
            and start[1 - first :: 2].count(0) == 0
        ):
            return name
    return "utf-8-sig"


@dataclass(frozen=True)
class Sheet:
    """A table as text: ``header`` as it is written, and ``rows``, each with its number as a spreadsheet counts.

    Cells are stripped; rows that hold nothing but blanks are left out. ``separator`` is what stands between cells.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    separator: str

    def places(self, names: Collection[str]) -> dict[str, int]:
        """Place of each column of `names` that there is; ValueError where there are two of one name."""
        found = [column_name(cell) for cell in self.header]
        for name in names:
            if found.count(name) > 1:
                raise ValueError(f"expected one column {name}, found {found.count(name)}; remove the others")
        return {name: found.index(name) for name in names if name in found}

    def overlong(self) -> Mapping[int, int]:
        """Number of cells of each row that has more than the header, by the row's number."""
        n = len(self.header)
        return {row: len(cells) for row, cells in self.rows if any(plain(cell) for cell in cells[n:])}

    def column(self, place: int) -> list[str]:
        """Cells of a column; rows that end before it have nothing there."""
        return [cells[place] if place < len(cells) else "" for _, cells in self.rows]

    def number(self, text: str) -> str:
        """A number's text with a decimal point for its decimal comma, but ``1,234`` among commas, which may be 1234."""
        text = plain(text).replace("\u2212", "-")
        thousands = self.separator == "," and re.fullmatch(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+", text)
        return text if thousands or text.count(",") != 1 or "." in text else text.replace(",", ".")


def read_sheet(content: bytes, known: Collection[str]) -> Sheet:
    """Header and rows of a table as any spreadsheet saves it, or as it is pasted.

    Parameters
    ----------
    content : bytes
        UTF-8, or UTF-16 or UTF-32; separated by comma, semicolon, tab or bar, or as a first line ``sep=;`` says.
    known : collection of str
        Names of columns, as `column_name` has them: the separator is the one that shows most of them.

    Raises
    ------
    ValueError
        It is no text or no table, or is empty.
    """
    return _sheet(decoded(content), known)


def _sheet(text: str, known: Collection[str], unwrap: bool = True) -> Sheet:
    stated = _STATED.match(text)
    text = text[stated.end() :] if stated else text
    first = next((line for line in text.splitlines() if plain(line.strip(",;\t|"))), "")
    marks = {mark: {column_name(cell.strip().strip('"')) for cell in first.split(mark)} for mark in ",;\t|"}
    separator = stated[1] if stated else max(marks, key=lambda mark: (len(marks[mark] & {*known}), first.count(mark)))
    try:
        file = io.StringIO(text, newline="")
        lines = list(csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"expected a CSV table, found {error}; correct it") from None
    filled = [(row, [cell.strip() for cell in cells]) for row, cells in enumerate(lines, 1) if any(map(plain, cells))]
    if not filled:
        raise ValueError("expected a header line and rows, found an empty file")
    header, rows = filled[0][1], filled[1:]
    wrapped = len(header) == 1 and any(mark in header[0] for mark in ",;\t|")
    if unwrap and wrapped and not any(cell for _, cells in rows for cell in cells[1:]):  # each line in quotes
        whole = dict(filled)
        return _sheet("\n".join(whole.get(row, [""])[0] for row in range(1, filled[-1][0] + 1)), known, unwrap=False)
    return Sheet(header, rows, separator)
