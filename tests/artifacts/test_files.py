"""Tables that a spreadsheet may open: no cell of the user's text is computed."""

import pytest

from nafld_utils import artifacts


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1+1", "＋1", "－1", "＠x"]
)
def test_text_that_a_spreadsheet_would_compute_gets_an_apostrophe(text):
    assert artifacts.spreadsheet_safe(text) == f"'{text}"


@pytest.mark.parametrize("text", ["scan_1.png", "a=b", "3-4", "Müller", "", "'=1"])
def test_other_text_stays(text):
    assert artifacts.spreadsheet_safe(text) == text
