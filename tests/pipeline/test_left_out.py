"""Ways to write a path or an error from which redaction once kept a name."""

import time

import nbformat
import pytest

from nafld_utils import artifacts, pipeline

PATHS = (
    "/mnt/Erika Mustermann/x y.csv: expected a table", "(/mnt/Erika (alt) Mustermann/a.png)", "a,/home/mustermann/x",
    "[Errno 2] No such file: \"/mnt/O'Brien x/Mustermann.csv\"", "'/mnt/it''s/Mustermann/x'", "“/home/mustermann/x”",
    r"'/mnt/a\'b/Mustermann/x.png'", "/mnt/a&b/Mustermann.csv", "/mnt/a#b/Mustermann.csv", "/mnt/$x/Mustermann.csv",
    "file:///home/mustermann/x.csv", "~mustermann/x/y.png", "//server/share/mustermann/x", "/mnt//mustermann//x.csv",
    "x|/home/mustermann/y", "{/home/mustermann/y}", "@/home/mustermann/y", "<b>/home/mustermann/y</b>",
)  # fmt: skip


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A run of the given settings."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return lambda **given: artifacts.open_run("smoke", {key.replace("__", "."): value for key, value in given.items()})


@pytest.mark.parametrize("text", PATHS)
def test_paths_of_any_characters_are_left_out(opened, text):
    found = pipeline.redacted(opened(), text)
    assert artifacts.LEFT_OUT in found
    assert "usterm" not in found


def test_a_setting_is_left_out_as_papermill_writes_it(opened):
    run = opened(sweep__weights="/nets/O'Müller Klinik/w.pth")
    for text in ('"sweep.weights": "/nets/O\'M\\xfcller Klinik/w.pth"', "/nets/O'M\\u00fcller Klinik/w.pth"):
        found = pipeline.redacted(run, text)
        assert "Klinik" not in found
        assert "w.pth" not in found


def test_a_folder_named_by_a_plain_word_is_left_out_where_it_is_named(opened):
    run, other = opened(turing__ratings="Mustermann", sweep__weights="bundled"), opened(turing__ratings="Müller")
    for text in ("{'turing.ratings': 'Mustermann'}", "turing.ratings=Mustermann", "Mustermann/anna.csv: expected"):
        found = pipeline.redacted(run, text)
        assert "Muster" not in found
        assert "anna" not in found
    assert "ller" not in pipeline.redacted(other, '"turing.ratings": "M\\xfcller", "turing.ratings": "Müller"')
    assert "Mustermann" not in run.show("turing").to_string()
    assert "bundled" in run.show("sweep").to_string()
    assert pipeline.redacted(run, "a Mustermann, sweep.weights=bundled") == "a Mustermann, sweep.weights=bundled"


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_key_files_are_private(name):
    assert artifacts.is_private(f"engine.tls.{name}", "/keys/O'Meier Klinik/a b.pem")
    assert not artifacts.is_private(f"engine.tls.{name}", None)


def test_an_error_that_follows_a_cohort_error_does_not_repeat_it(opened):
    traceback = ["CohortError: /x: 2 problems", "row 3: found Erika Mustermann", "During handling ...", "ValueError: x"]
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=traceback)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[error])])
    pipeline.redact_notebook(opened(), notebook)
    text = nbformat.writes(notebook)
    assert "usterm" not in text
    assert "2 problems; the terminal says which" in text


@pytest.mark.parametrize(
    "line", ['"/' + "a/" * 50_000, "'/" + "a''/" * 30_000, "/" + "a b/" * 20_000 + "c", "~" * 50_000, "/a b" * 20_000]
)
def test_long_lines_are_redacted_in_little_time(opened, line):
    began = time.process_time()
    pipeline.redacted(opened(), line)
    assert time.process_time() - began < 2


def test_quotients_addresses_and_pictures_stay(opened):
    jpeg = '<img src="data:image/jpeg;base64,/9j/4AAQ/abc+/abcd/efgh==">'
    for text in ("r = (a + b)/c/d", "$\\frac{a}/b/c$", "https://a.org/b/c", "a/b/c", "half of 3/4/5", "x[0]/2/y", jpeg):
        assert pipeline.redacted(opened(), text) == text
