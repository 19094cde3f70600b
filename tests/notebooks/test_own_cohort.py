"""A cohort of the user's own through all eight stages: the README's worked example, word by word.

One run serves all tests of this file; it takes about as long as the small run of simulated patients.
"""

import html
import re
import shlex
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
from page_checks import assert_self_contained
from project import PROJECT, run_make

from nafld_utils import artifacts, pipeline, release
from nafld_utils.release import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Work folder and command of the example, run as the README's "Your own cohort" says."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    writing, making = (line for line in text.splitlines() if re.search(r"(cohort\.example|all .*) .*data/chest", line))
    root = tmp_path_factory.mktemp("own")
    _, *module = shlex.split(writing, comments=True)
    subprocess.run([sys.executable, *module], cwd=root, env={"PYTHONPATH": str(PROJECT)}, check=True)
    words = [
        word.replace("data/chest", str(root / "data" / "chest")) for word in shlex.split(making.partition("#")[0])[1:]
    ]
    done = run_make(*words, root=root, timeout=1200)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return root, words


def visible(page):
    """Text of a page as its reader sees it."""
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script|svg)\b.*?</\1>", "", page, flags=re.DOTALL)))


def test_every_page_is_there_and_says_whose_images_they_are(example):
    root, _ = example
    for name in ("index", *pipeline.STAGES):
        page = (root / "reports" / "chest" / f"{name}.html").read_text(encoding="utf-8")
        assert_self_contained(page)
        assert "chest radiographs" in page, name
        assert "SIMULATED COHORT" in page, name
        assert "OTHER COHORT" in page, name


def test_the_front_page_speaks_of_the_users_classes(example):
    root, _ = example
    text = " ".join(visible((root / "reports" / "chest" / "index.html").read_text(encoding="utf-8")).split())
    assert "to tell clear from effusion" in text
    assert "Not answered" not in text
    answers = text[: text.index("Limits")]
    assert not re.search(r"steatosis|biopsy", answers)
    assert text.count("No verdict") == 8, "in the cards and in detail: the smoke profile's numbers mean nothing"
    assert "The paper beside this run" not in text
    assert "Numbers of this run" in text
    assert re.search(r"left out [1-9]\d* of \d+ images, by cohort.frames_per_patient 3", text)


def test_no_page_speaks_of_another_organ(example):
    root, _ = example
    for name in ("index", *pipeline.STAGES):
        text = visible((root / "reports" / "chest" / f"{name}.html").read_text(encoding="utf-8"))
        assert "SMOKE PROFILE" in text, name
        shown = text.replace("['healthy', 'fatty']", "").replace("[healthy, fatty]", "")  # the paper profile's value
        organs = r"livers?|fat|fatty|ECG|kidneys?|upper to lower half|upper / lower half"
        found = re.search(rf".{{60}}\b({organs})\b.{{60}}", " ".join(shown.split()))
        assert not found, f"{name}: {found[0]}"


def test_claims_name_the_users_classes_and_no_number_of_the_paper(example):
    root, _ = example
    for stage in pipeline.STAGES:
        table = pd.read_csv(root / "artifacts" / "chest" / stage / "claims.csv")
        assert len(table), stage
        assert table["paper"].isna().all(), stage
        assert not table["claim"].str.contains("fatty|healthy|steatosis|liver").any(), stage


def test_a_second_make_runs_nothing_and_the_report_can_be_mailed(example):
    root, words = example
    said = run_make(*words, root=root, check=0).stdout
    assert not re.search(r"\d:\d\d  ", said), said
    run_make("report-zip", "RUN=chest", root=root, check=0)
    (archive,) = (root / "reports" / "chest").glob("*.zip")
    assert f"{pipeline.STAGES[0]}.html" in "".join(zipfile.ZipFile(archive).namelist())


def test_an_export_names_no_patient_and_no_file_of_the_user(example, monkeypatch):
    root, _ = example
    folder = root / "reports" / "chest" / "chest-export"
    assert "its release list proves nothing" in run_make("export", "RUN=chest", root=root, check=2).stderr
    assert not folder.exists(), "so few planted copies of so small pictures are not found"
    monkeypatch.setenv("NAFLD_ROOT", str(root))
    monkeypatch.setattr(export, "LEAST_FOUND", 0.0)
    assert release.write_export(artifacts.open_run(run="chest")) == folder
    sources = pd.read_csv(root / "artifacts" / "chest" / "cohort" / "sources.csv", dtype=str)
    table = pd.read_csv(folder / "images.csv")
    assert set(table["label"]) == {"clear", "effusion"}
    assert not {*table["patient"]} & {*sources["patient"]}
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".md", ".cff", ".json", ".py"):
            text = path.read_text(encoding="utf-8")
            private = [*sources["file"], *(name for name in sources["patient"] if not name.isdigit()), str(root)]
            assert not [name for name in private if name in text], path.name
