"""Tables that a spreadsheet may open: no cell of the user's text is computed."""

import os

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


def test_a_pipe_or_device_is_not_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="expected a file, found a folder, a pipe or a device"):
            artifacts.file_sha256(path)
