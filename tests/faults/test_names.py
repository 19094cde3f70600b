"""A clinic's names in folders, files, tables and settings: what a run writes for readers says none of them."""

import html
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from dicom_files import write as dicom
from PIL import Image
from toy_frames import smooth
from toy_study import SECOND, write_notebook

from nafld_utils import artifacts, cohort, pipeline, preprocessing, report

pytestmark = [pytest.mark.faults, pytest.mark.promise("names")]
KEPT = {"cohort/sources.csv"}  # who is who, for the owner of the cohort alone
NAMES = (
    "Erika O'Mustermann",
    'Müller, "Jo"',
    "Žofie Nováková",
    "D'Angelo & Söhne",
    "Meier\tB",
    "SCHULZ;B",
    "李 雷",
    "=A1+1",
)


def clinic(folder, names):
    """Eight patients with two images each, whose files have their names; gives what must stand nowhere."""
    folder.mkdir(parents=True)
    pictures = smooth(16)
    files = [re.sub(r'[\t"]', "_", f"{name} scan {place}.png") for name in names for place in range(2)]
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture).save(folder / file)
    patient, label = np.repeat(names, 2), np.repeat(["no", "yes"] * 4, 2)
    pd.DataFrame({"image": files, "patient": patient, "label": label}).to_csv(folder / "images.csv", index=False)
    return [*names, *files]


def written(text):
    """A text as files may hold it."""
    forms = {text, html.escape(text), json.dumps(text)[1:-1], repr(text)[1:-1], text.replace('"', '""')}
    return [form.encode(coding) for form in forms for coding in ("utf-8", "utf-16-le", "utf-32-le")]


def content(path):
    """Bytes of a file, of a packed table its cells."""
    return pd.read_parquet(path).to_csv().encode() if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.parametrize("names", [NAMES, [str(7300461 + 37 * place) for place in range(8)]], ids=["names", "numbers"])
def test_the_table_of_sources_alone_says_who_is_who(tmp_path, monkeypatch, names, record_property):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    private = [*clinic(tmp_path / "O'Meier's clinic", names), "O'Meier's clinic"]
    given = {"cohort.class_names": ["no", "yes"], "folds.n_splits": 2}
    run = artifacts.open_run("smoke", given, run="r", data=str(tmp_path / "O'Meier's clinic"))
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    preprocessing.build_augmented(run, "traditional")
    report.write_index(run)
    files = {path.relative_to(run.root).as_posix(): path for path in run.root.rglob("*") if path.is_file()}
    files |= {path.name: path for path in run.reports.iterdir()}
    assert {"cohort/sources.csv", "cohort/images.csv", "preprocess/images.csv", "index.html"} <= set(files)
    needles = {form: text for text in private for form in written(text)}
    found = {name: {needles[form] for form in needles if form in content(path)} for name, path in files.items()}
    assert {name: texts for name, texts in found.items() if texts and name not in KEPT} == {}
    assert len(found["cohort/sources.csv"]) >= 2 * len(names), "the search finds what is there"
    assert cohort.open_cohort(run).patients["patient_id"].tolist() == list(range(1, 9))
    record_property("cases", len(private))


def test_text_burned_into_pixels_stops_a_run_before_anything_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    names = list("abcdefgh")
    clinic(tmp_path / "clinic", names)
    table = pd.read_csv(tmp_path / "clinic" / "images.csv")
    for file, picture in zip(table["image"], smooth(16), strict=True):
        said = "YES" if file.startswith("h") else "NO"
        dicom(tmp_path / "clinic" / f"{file}.dcm", picture, BurnedInAnnotation=said, PatientName="Mustermann^Erika")
    table.assign(image=table["image"] + ".dcm").to_csv(tmp_path / "clinic" / "images.csv", index=False)
    given = {"cohort.class_names": ["no", "yes"], "folds.n_splits": 2}
    run = artifacts.open_run("smoke", given, run="r", data=str(tmp_path / "clinic"))
    with pytest.raises(cohort.CohortError, match=r"h scan 0\.png\.dcm: .* found BurnedInAnnotation YES"):
        cohort.build_cohort(run)
    assert not (run.root / "cohort" / "run.json").exists()
    run = artifacts.open_run("smoke", {**given, "cohort.burned_in": "allow"}, run="r", data=str(tmp_path / "clinic"))
    cohort.build_cohort(run)
    assert not [path for path in run.root.rglob("*") if path.is_file() and b"Mustermann" in content(path)], "tags"


# ---------------------------------------------------------------- notebooks


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


def test_executed_and_failed_notebooks_hold_no_names_files_or_paths(run, tmp_path, record_property):
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
    record_property("cases", 2 * 7)
