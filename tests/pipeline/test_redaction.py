"""What an executed notebook says of a patient's name, a file or this machine: nothing."""

import re

import nbformat
import pytest
from toy_study import SECOND, write_notebook

from nafld_utils import artifacts, pipeline

SCRATCH = {"local_directory": "/scratch/mei'er", "job_script_prologue": ["source /home/mei'er/venv/bin/activate"]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose every path-like setting has an apostrophe and a name in it."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    path = tmp_path / "O'Meier's clinic" / "Erika O'Meier.mat"
    path.parent.mkdir()
    path.touch()
    given = {"sweep.weights": "/nets/O'Meier/w.pth", "engine.slurm": SCRATCH, "turing.ratings": "O'Meier/r"}
    given |= {"cohort.join": f"{path.parent}/same.csv", "quality.weights": "/nets/O'Meier/i.safetensors"}
    return artifacts.open_run("smoke", given, run="r", data=str(path))


BODY = r"""
import html, json, pathlib, shlex, warnings
path = run.settings.cohort.path
display(run.show("cohort", "sweep", "quality", "turing", "engine"))
for written in (path, repr(path), json.dumps(path), html.escape(path), shlex.quote(path), path.replace("'", "''")):
    print("read", written, "whole")
print(pathlib.Path(path).name, "and", path + "/" + pathlib.Path(path).stem + ", left.png", "and", run.root.absolute())
print("elsewhere /mnt/m{0}/x.csv, '/mnt/m{0}/y {0}.csv' and ~/m{0}/y.csv".format("ei" + "er"))
print(run.settings.engine.slurm)
warnings.warn("from /opt/mei" + "er/tool.py")
"""
FAILING = """
from pathlib import Path
from nafld_utils.cohort import CohortError
from nafld_utils.cohort.problems import Problem
raise CohortError(Path(run.settings.cohort.path), [Problem(3, "expected one label for patient Erika M" + "ustermann")])
"""


def text_of(path):
    """The file as a reader of its texts sees it: without JSON's escapes and a terminal's colours."""
    notebook = nbformat.read(path, as_version=4)

    def strings(value):
        if isinstance(value, str):
            yield value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from strings(part)

    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(strings(notebook)))


def test_executed_and_failed_notebooks_hold_no_names_files_or_paths(run, tmp_path):
    source = tmp_path / "notebooks" / f"{SECOND}.ipynb"
    write_notebook(source, SECOND, BODY)
    pipeline.run_notebook(run, SECOND, source)
    write_notebook(source, SECOND, BODY + FAILING)
    with pytest.raises(pipeline.StageError, match="for patient Erika Mustermann"):  # the terminal says it
        pipeline.run_notebook(run, SECOND, source)
    for name in (f"{SECOND}.ipynb", f"{SECOND}.failed.ipynb"):
        text = text_of(run.reports / name)
        assert "read (left out) whole" in text
        assert "from …/tool.py" in text, "the name of a module stays"
        for private in ("eier", "clinic", "Mustermann", "/mnt", "/scratch", "/nets", str(tmp_path)):
            assert private not in text, (private, name)
        assert not re.findall(r"(?<![\w.…:/<])~?/\w+/\w+", text)
    assert "CohortError: 1 problem; the terminal says which" in text


def test_what_is_no_path_stays(run):
    for text in ("https://doi.org/10.5281/zenodo.1", "<b>x</b> and/or 3/4", "artifacts/r/cohort/sources.csv", "I/II"):
        assert pipeline.redacted(run, text) == text
    png = "data:image/png;base64,iVBOR/mnt/abc+/abcd/efgh=="
    assert pipeline.redacted(run, png) == png
