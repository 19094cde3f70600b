"""All eight notebooks, run by make with the smoke profile and the network shut: what they leave, what is stale then.

One run serves all tests of this file, in a temporary folder; the project's own artifacts and reports are untouched.
"""

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess

import nbformat
import notebook_names
import numpy as np
import pandas as pd
import pytest
import readme_pictures
import scipy.io
import torch
import waiting
from commands import SMALL, words
from page_checks import assert_self_contained, open_and_look
from project import PROJECT

from nafld_utils import artifacts, pipeline, report
from nafld_utils.report import notebooks, pictures

NOTEBOOKS = [PROJECT / "notebooks" / f"{stage}.ipynb" for stage in pipeline.STAGES]
BUDGET = 300.0  # seconds of processor time for the smoke profile; 120, and more on a busy machine
OPENED = 40.0  # and for a notebook of a finished run; 3 to 8, and more on a busy machine
HEAVY = ("torch", "diffusers", "timm", "sklearn")  # a second each that opening a finished run does not wait for

pytestmark = pytest.mark.slow


def test_all_notebooks_run_within_the_budget(smoke):
    assert all((smoke.reports / f"{stage}.ipynb").exists() for stage in pipeline.STAGES)
    assert 20 < smoke.seconds < BUDGET


def test_no_network_was_touched(smoke):
    assert not smoke.log.exists(), smoke.log.read_text(encoding="utf-8")


def test_progress_reached_the_terminal(smoke):
    for stage in pipeline.STAGES:
        assert re.search(rf"^{stage}\s+\d+:\d\d  \[", smoke.done.stdout, re.MULTILINE), stage
    assert "Traceback" not in smoke.done.stderr


def test_every_stage_recorded_units_and_claims(run):
    for stage in pipeline.STAGES:
        assert artifacts.stage_fault(run, stage) is None, stage
        table = pd.read_csv(run.root / stage / "claims.csv")
        assert list(table.columns) == list(artifacts.CLAIM_COLUMNS)
        assert len(table), stage
        assert table["same_protocol"].notna().all(), stage
        bounded = table.dropna(subset=["low", "high"])
        assert (bounded["low"] <= bounded["high"]).all(), stage
        assert bounded["over"].notna().all(), f"{stage}: an interval says what it is over"


def test_executed_notebooks_hold_no_error_and_no_warning(smoke):
    for stage in pipeline.STAGES:
        notebook = nbformat.read(smoke.reports / f"{stage}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs, stage
        assert not [output for output in outputs if output.output_type == "error"], stage
        noise = [output.text for output in outputs if output.get("name") == "stderr"]
        assert not noise, f"{stage}: {noise[0][:500]}"
        tables = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
        assert not [table for table in tables if 'class="dataframe"' in table], f"{stage}: a table is for readers"
        assert all("<caption>" in table for table in tables if "<table" in table), f"{stage}: a table says what to read"


def test_every_page_is_self_contained_and_says_simulated(smoke):
    for name in (*pipeline.STAGES, "index"):
        page = (smoke.reports / f"{name}.html").read_text(encoding="utf-8")
        assert_self_contained(page)
        assert "SIMULATED COHORT" in page, name
        assert str(smoke.root) not in page, f"{name} shows a path of this machine"


def test_front_page_sums_up_all_stages(smoke, run):
    page = (smoke.reports / "index.html").read_text(encoding="utf-8")
    table = report.claims_table(run)
    assert set(table["stage"]) == set(pipeline.STAGES)
    stages = set(re.findall(r'scope="rowgroup" colspan="\d"><a href="(\w+)\.html"', page))
    cards = re.findall(r'<section class="card".*?</section>', page, re.DOTALL)
    assert len(cards) == 4
    assert all(len(re.findall(r"<img alt=.Figure: The answer", card)) == 1 for card in cards), "a card has its figure"
    assert stages == set(pipeline.STAGES)
    assert "Not answered" not in page, "an answer does not find its claims"
    assert all(f'href="{stage}.html"' in page and f'href="{stage}.ipynb"' in page for stage in pipeline.STAGES)
    assert page.count("<figure>") >= 6
    assert "not run" not in page


def test_front_page_says_which_code_device_cohort_and_settings_it_stands_on(smoke, run):
    page = (smoke.reports / "index.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>(.*?)</dd>", page, re.DOTALL))
    patients = scipy.io.loadmat(run.root / "cohort" / "cohort.mat")["data"]["images"].ravel()
    assert facts["content"].split()[:2] == ["sha256", hashlib.sha256(np.stack([*patients]).tobytes()).hexdigest()]
    began = int((smoke.root / "started").stat().st_mtime)  # a commit may have been made since
    asked = ["git", "rev-list", "-1", f"--before={began}", "HEAD"]
    head = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    assert head[:12] in facts["commit"] if head else "not known" in facts["commit"]
    assert (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu") in facts["device"].split(", ")
    assert facts["machine"] == f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    assert facts["Python"] == platform.python_version()
    assert {f"torch {torch.__version__.partition('+')[0]}", f"numpy {np.__version__}"} <= {
        *facts["libraries"].split(", ")
    }
    settings = json.dumps(run.settings.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    assert facts["settings"] == f"digest {hashlib.sha256(settings.encode()).hexdigest()[:16]} of all settings"
    units = [path for path in run.root.rglob("run.json") if path.parent.name != "settings"]  # make's own is no unit
    assert int(facts["units"].partition(",")[0]) == len(units)


def test_a_browser_opens_and_prints_every_page_without_a_request(smoke, run, browser, tmp_path):
    compared = artifacts.save_text(tmp_path / "compared.html", report.comparison_html(run, run))
    for path in (*(smoke.reports / f"{name}.html" for name in ("index", *pipeline.STAGES)), compared):
        open_and_look(browser, path, sheets=2)


def test_pages_are_light_and_the_first_screen_holds_the_four_answers(smoke, run, browser):
    sizes = {name: (smoke.reports / f"{name}.html").stat().st_size / 1e6 for name in ("index", *pipeline.STAGES)}
    assert sizes.pop("index") < 2
    assert {name: size for name, size in sizes.items() if size >= 3} == {}
    assert sum(sizes.values()) < 15
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((smoke.reports / "index.html").as_uri())
    ends = page.evaluate("[...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect().bottom)")
    verdicts = page.evaluate("[...document.querySelectorAll('.card .verdict')].map(part => part.innerText)")
    page.set_viewport_size({"width": 390, "height": 844})
    lefts = page.evaluate("[...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect().left)")
    page.close()
    assert len(ends) == 4
    assert max(ends) <= 800
    assert len({*lefts}) == 1, "cards stack on a phone"
    assert all(len(verdict.split()) <= 3 for verdict in verdicts)


def test_the_pictures_of_the_readme_are_made_and_small(smoke, run, browser, tmp_path):
    readme_pictures.write(browser, run, tmp_path)
    for name in readme_pictures.NAMES:
        committed = readme_pictures.FOLDER / name
        for path in (tmp_path / name, committed):
            assert path.read_bytes().startswith(b"\x89PNG")
            assert 10_000 < path.stat().st_size < readme_pictures.LIMIT
        alt = re.search(rf'alt="([^"]*)" src="pictures/{name}"', (PROJECT / "README.md").read_text(encoding="utf-8"))
        assert "simulated" in alt[1]
    with pytest.raises(ValueError, match="no picture of them is published"):
        readme_pictures.write(browser, artifacts.open_run("cpu"), tmp_path)


def test_figures_are_vectors_but_for_pictures(smoke):
    vectors = 0
    for stage in pipeline.STAGES:
        for cell in nbformat.read(smoke.reports / f"{stage}.ipynb", as_version=4).cells:
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                assert "image/png" in data or "image/svg+xml" not in data, "readers that show no SVG have a PNG"
                drawn = "image/svg+xml" in data
                assert not (drawn and pictures.SHOWS_IMAGES in cell.metadata.get("tags", [])), f"{stage}: {cell.source}"
                vectors += drawn
    assert vectors > 15


def test_a_second_make_runs_nothing(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if path.is_file()}
    said = smoke.make("all", check=0).stdout
    assert not re.search(r"\d:\d\d  ", said), said
    after = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("line", SMALL)
def test_a_command_of_the_pages_without_settings_finds_all_done(smoke, line):
    _, target, *_ = words(line)
    assert "up to date, open" in smoke.make(target, check=0).stdout


def test_pages_are_written_anew_when_the_code_of_their_looks_changes(smoke):
    pages = [str(smoke.reports / f"{name}.html") for name in (*pipeline.STAGES, "index")]
    for changed in ("report/answers.py", "report/templates/report.css"):
        said = smoke.make("-n", "-W", f"nafld_utils/{changed}", *pages, check=0).stdout
        assert said.count("nafld render") == len(pipeline.STAGES), changed
        assert said.count("nafld index") == 1


def planned(overrides=""):
    """Stages that make would run now, with their reasons."""
    found = pipeline.status(artifacts.open_run("smoke", overrides), PROJECT / "notebooks")
    return {name: stage.due for name, stage in found.items() if stage.due}


@pytest.mark.parametrize(
    ("setting", "stale"),
    [
        ("shap.n_samples=11", ["07_shap"]),
        ("turing.seed=5", ["08_turing_test"]),
        ("quality.kid_subsets=6", list(pipeline.STAGES[4:])),
        ("sweep.steps=5", ["06_classification_sweep", "07_shap"]),
        ("sampling.steps=5", list(pipeline.STAGES[3:])),
        ("folds.seed=5", list(pipeline.STAGES[1:])),
        ("cohort.simulation_seed=5", list(pipeline.STAGES)),
        ("engine.threads=2", []),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it(run, setting, stale):
    assert list(planned(setting)) == stale


def finished(root):
    """Every file of every finished unit, with the time of its last change."""
    folders = [manifest.parent for manifest in root.rglob("run.json")]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir() if path.is_file()}


# cells whose texts tell of this moment or of this machine
OF_NOW = ("pipeline.begin(", ".explorer.", "pipeline.estimate(", "sweep.dry_run(")


def texts(notebook):
    """What each cell shows in tables and texts, by cell id: one text per cell, since a kernel sends what is printed in
    pieces of any length; pandas names its styled tables anew each time."""
    found = {}
    for cell in (cell for cell in notebook.cells if not any(mark in cell.source for mark in OF_NOW)):
        outputs = [{"text/html": output.get("text")} | output.get("data", {}) for output in cell.get("outputs", [])]
        shown = [data.get("text/html") or data.get("text/markdown") or "" for data in outputs]
        found[cell.id] = re.sub(r"T_\w{5}", "T_", "".join("".join(text) for text in shown))
    return {key: text for key, text in found.items() if text.strip()}


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_a_notebook_on_a_finished_run_is_there_in_seconds_and_makes_nothing_again_in_any_order(run, stage):
    """As `make lab PROFILE=smoke` opens it: with its parameters as committed, in a kernel of its own; its cells in an
    order drawn from all in which each comes after those whose names it takes, with the tables of the first run.
    No library of networks is loaded for that."""
    folder = PROJECT / "notebooks"
    notebook = nbformat.read(folder / f"{stage}.ipynb", as_version=4)
    sources = notebook_names.code_cells(folder / f"{stage}.ipynb")
    opens = next(key for key in sources if "pipeline.begin(" in sources[key])
    order = notebook_names.shuffled(sources, opens, seed=stage)
    assert order != list(sources)
    cells = {cell.id: cell for cell in notebook.cells}
    loaded = nbformat.v4.new_code_cell(
        f"import sys\nprint({{*{HEAVY[torch.cuda.is_available() :]!r}}} & {{*sys.modules}} or 'nothing heavy')"
    )
    notebook.cells = [*(cells[key] for key in order), loaded]
    before, started = finished(run.root), sum(os.times()[2:4])
    waiting.opened(run, stage, notebook)
    assert 1 < sum(os.times()[2:4]) - started < OPENED, "processor time of the kernel"
    assert before
    assert finished(run.root) == before
    said = notebook.cells.pop().outputs  # a kernel may send a line and its end apart
    assert "".join(part.text for part in said) == "nothing heavy\n"
    again, first = texts(notebook), texts(nbformat.read(run.reports / f"{stage}.ipynb", as_version=4))
    assert len(first) >= 5
    assert again == first


def test_a_deleted_unit_is_made_again_and_the_rest_is_kept(smoke, run):
    (manifest, *_) = sorted((smoke.artifacts / "turing").rglob("run.json"))
    kept = {path: path.stat().st_mtime_ns for path in smoke.artifacts.rglob("run.json") if path != manifest}
    shutil.rmtree(manifest.parent)
    assert list(planned()) == ["08_turing_test"]
    smoke.make("all", check=0, timeout=300)
    assert json.loads(manifest.read_text(encoding="utf-8"))["hash"]
    others = {path: time for path, time in kept.items() if not {"turing", "settings"} & set(path.parts)}
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert planned() == {}


# ---------------------------------------------------------------- the notebooks as they are committed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_projects_shape(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert "parameters" in code[0].metadata.get("tags", [])
    assert ast.literal_eval(re.search(r"^profile = (.*)$", code[0].source, re.MULTILINE)[1]) == "demo"
    assert "run.finish(" in code[-1].source
    folded = [cell.source.split("\n")[0] for cell in notebook.cells if cell.metadata.get(notebooks.FOLDED)]
    assert folded == ["## Settings in force", "## Checks", "## Saved numbers and files"], (
        "at the end, in JupyterLab too"
    )
    assert notebook.cells[-1].source.startswith("## Next"), "JupyterLab opens the section of the last cell that it runs"
    sections = [cell for cell in notebook.cells if cell.source.startswith("## ")]
    shown = [cell.source for cell in sections if notebooks.FOLDED_ON_PAGE not in cell.metadata.get("tags", [])]
    assert shown[0].startswith("## The answer"), "the answer before the evidence"
    assert any(report.KEY_FIGURE in cell.metadata.get("tags", []) for cell in code), "a figure for the front page"
    assert not any(cell.outputs or cell.execution_count for cell in code), "committed without outputs"
    assert any("assert " in cell.source for cell in code), "checks that tell a story"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_machinery(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        widths = re.findall(r"figsize=\(([\d.]+),", cell.source)
        assert all(float(width) <= 10 for width in widths), "inches: on A4 its letters would be below 6 points"
        assert not re.search(r"^\s*[!%]|filterwarnings|simplefilter", cell.source, re.MULTILINE), cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef | ast.While), cell.source
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5, f"{node.name} belongs into the package"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"(/|\.\./|artifacts/|reports/|data/)", node.value), f"a path: {node.value}"
