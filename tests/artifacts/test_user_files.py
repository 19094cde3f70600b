"""Files that people make: what they are by their first bytes, litter, and tables of any spreadsheet."""

import gzip
import io
import zipfile
from pathlib import PurePath

import pandas as pd
import pytest

from nafld_utils import artifacts
from nafld_utils.artifacts import user_files

KNOWN = ("image", "label")


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Office document"),
        (zipped("a.mat"), "a zip archive"),
        (zipped(), "a zip archive"),
        (gzip.compress(b"x", mtime=0), "a gzip archive"),
        (b"\r\n<!-- saved -->\n<HTML>", "a web page"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"<headline>", None),
        (b"PKs are many", None),
        (b"image,label\n", None),
        (b"", None),
    ],
)
def test_a_file_is_named_by_its_first_bytes(content, kind):
    found = artifacts.file_kind(content)
    assert found is None if kind is None else found.startswith(f"{kind};")
    if kind:
        with pytest.raises(ValueError, match=f"expected text, found {kind}"):
            artifacts.read_sheet(content, KNOWN)


@pytest.mark.parametrize("name", ["a/.b/c.png", "A~", "x/DESKTOP.INI", "__MACOSX/a.png", ".a", "~$a.csv"])
def test_litter_is_told_from_files(name):
    assert artifacts.is_litter(PurePath(name))
    assert not artifacts.is_litter(PurePath(name.translate(str.maketrans("", "", ".~$_"))))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_pandas_writes_comes_back(encoding, separator, end):
    table = pd.DataFrame(
        {"image": ["a,b", "c;d", 'e "f"', "g\th|i"], "label": ["x", "\u00fc", "\u4e2d", "y"], "n": "1"}
    )
    text = table.to_csv(index=False, sep=separator, lineterminator=end)
    sheet = artifacts.read_sheet(text.encode(encoding), KNOWN)
    assert sheet.header == ["image", "label", "n"]
    assert sheet.rows == [(row, cells) for row, cells in enumerate(table.to_numpy().tolist(), start=2)]
    assert sheet.separator == separator


def test_a_blank_before_a_quoted_cell_is_no_part_of_it():
    sheet = artifacts.read_sheet(b'"image", "label"\n"a, b.png", "x"\n', KNOWN)
    assert sheet.header == ["image", "label"]
    assert sheet.rows == [(2, ["a, b.png", "x"])]


def test_the_separator_is_the_one_that_shows_the_known_columns():
    sheet = artifacts.read_sheet(b"a, b, and c;Image;label\n1;2;3\n", KNOWN)
    assert sheet.header == ["a, b, and c", "Image", "label"]
    assert sheet.places(KNOWN) == {"image": 1, "label": 2}
    assert sheet.column(9) == [""]


@pytest.mark.parametrize(
    ("text", "comma", "semicolon"),
    [("1,5", "1.5", "1.5"), ("1,234", "1,234", "1.234"), ("0,234", "0.234", "0.234"),
     ("1,234,567", "1,234,567", "1,234,567"), ("1.234,5", "1.234,5", "1.234,5"), ("\u22121\u00a0", "-1", "-1"),
     ("12", "12", "12"),
     ("1e5", "1e5", "1e5")],
)  # fmt: skip
def test_a_decimal_comma_is_a_point_where_it_cannot_be_of_thousands(text, comma, semicolon):
    assert user_files.Sheet([], [], ",").number(text) == comma
    assert user_files.Sheet([], [], ";").number(text) == semicolon


@pytest.mark.parametrize(
    "cell", ["#N/A", "#NV", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#\u00a1VALOR!", "#BEZUG!", "#####"]
)
def test_errors_of_a_spreadsheet_are_told_from_names(cell):
    assert artifacts.CELL_ERROR.fullmatch(cell)
    assert not artifacts.CELL_ERROR.fullmatch(cell.strip("#!?") + "7")
    assert not artifacts.CELL_ERROR.fullmatch("#12")
