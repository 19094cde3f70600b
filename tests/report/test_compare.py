"""Two runs side by side, and a run's pages in one archive: what goes in, what is refused, what is left behind."""

import re
import shlex
import shutil
import zipfile

import nbformat
import pandas as pd
import pytest
from page_checks import assert_self_contained, executed, open_and_look
from project import run_make

from nafld_utils import artifacts, cli, pipeline, report

SWEEP = "06_classification_sweep"
PATIENT, CURVE = "cGF0aWVudA==", "Y3VydmU="  # two pictures, told apart by their bytes
OVER = "patients within class (bootstrap)"


def finished(name, overrides="", data="", content="ab12", auc=0.7, n=8, stages=pipeline.STAGES):
    """A run as make leaves it, with toy notebooks, one unit a stage and a few claims."""
    run = artifacts.open_run("smoke", overrides, run=name, data=data)
    artifacts.save_json(run.root / "settings" / "run.json", {"profile": "smoke", "overrides": run.overrides})
    pipeline.write_stamps(run)
    cohort = run.unit("cohort", settings={"content": content})
    with cohort.writing(device="cpu") as folder:
        artifacts.save_table(folder / "patients.csv", pd.DataFrame({"patient_id": [1, 2, 3], "label": [0, 1, 1]}))
        artifacts.save_table(folder / "images.csv", pd.DataFrame({"image_id": ["a", "b", "c"]}))
        artifacts.save_json(folder / "provenance.json", {"kind": "simulated", "text": "3", "sha256": content})
    unit = run.unit("toy", settings={"auc": auc})
    with unit.writing(device="cpu") as folder:
        artifacts.save_json(folder / "toy.json", {})
    run.reports.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        run.finish(stage, [cohort, unit] if stage >= SWEEP else [cohort])
        nbformat.write(executed(stage), run.reports / f"{stage}.ipynb")
    rows = [
        {"claim": "real images alone", "this_run": auc, "low": auc - 0.1, "high": auc + 0.1, "n": n, "over": OVER},
        {"claim": "paired t", "this_run": 2.0, "n": run.settings.sweep.n_seeds, "over": "training seeds"},
        {"claim": f"only {name}", "this_run": 1},
    ]
    common = {"unit": "image-level AUC", "same_protocol": "simulated cohort"}
    keys = ("sweep.auc.image.real", "sweep.paired_t", f"toy.{name}")
    run.record_claims(SWEEP, [{"key": key, **row, **common} for key, row in zip(keys, rows, strict=True)])
    patients = {"key": "cohort.patients", "claim": "patients", "this_run": 3, "same_protocol": "yes"}
    run.record_claims(pipeline.STAGES[0], [patients])
    for stage in stages:
        # the page of a notebook is tested elsewhere; here a small one stands for it
        before, after = (f"{pipeline.STAGES[max(0, pipeline.STAGES.index(stage) - 1)]}", "08_turing_test")
        links = f'<a href="{before}.html">← {before}</a><a href="{after}.html">{after} →</a>'
        artifacts.save_text(run.reports / f"{stage}.html", f"<html>{links}</html>")
    report.write_index(run)
    return run


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return tmp_path


def rows_of(page):
    """Claim to the cells of its row, of the comparison's tables."""
    found = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', page)
    return {claim: [re.sub("<br>", " ", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)]
            for claim, cells in found}  # fmt: skip


# ---------------------------------------------------------------- comparison


def test_comparison_shows_both_and_computes_what_may_be_computed(browser):
    finished("one")
    finished("two", "sweep.n_seeds=3", auc=0.75)
    path = report.write_comparison("one", "two")
    open_and_look(browser, path, sheets=2)
    page = path.read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "SIMULATED COHORT" in page
    rows = rows_of(page)
    assert rows["real images alone"] == ["image-level AUC", "0.7 [0.6, 0.8]", "0.75 [0.65, 0.85]", "0.05", "", OVER]
    assert rows["paired t"][3:5] == ["", "n differs: 2 and 3"]
    assert rows["only one"][3:5] == ["", "only in one"]
    assert rows["only two"][3:5] == ["", "only in two"]
    assert (
        '<th scope="row"><code>sweep.n_seeds</code></th><td data-label="one">2</td><td data-label="two">3</td>' in page
    )
    assert "The cohort is the same, pixel by pixel" in page
    assert "stand on the same stored units" in page
    assert "they are alike" in page, "stages that both runs share stand apart"
    assert page.count("<figure>") == 2 * len(pipeline.STAGES)
    assert page.count('alt="one: Figure') == page.count('alt="two: Figure') == len(pipeline.STAGES)


def test_no_difference_between_cohorts_or_measures():
    a, b, c = finished("one"), finished("two", content="cd34", auc=0.75), finished("three", "folds.seed=5", auc=0.75)
    page = report.comparison_html(a, b)
    assert rows_of(page)["real images alone"][3:5] == ["", "other cohort"]
    assert "no difference is computed" in page
    assert rows_of(report.comparison_html(a, c))["real images alone"][3:5] == ["", "measured otherwise: folds.seed"]


def test_claims_pair_by_key_and_in_old_runs_by_sentence():
    a, b = finished("one"), finished("two", auc=0.75)
    path = b.root / SWEEP / "claims.csv"
    new = pd.read_csv(path)
    new.assign(claim=new["claim"].replace("real images alone", "real images only")).to_csv(path, index=False)
    rows = rows_of(report.comparison_html(a, b))
    assert rows["real images alone / real images only"][3:5] == ["", "of other images, models or units"]
    for stage in (SWEEP, pipeline.STAGES[0]):
        path = b.root / stage / "claims.csv"
        pd.read_csv(path).drop(columns="key").to_csv(path, index=False)
    new.drop(columns="key").to_csv(b.root / SWEEP / "claims.csv", index=False)
    assert "run it again" in report.index_html(b)
    assert rows_of(report.comparison_html(a, b))["real images alone"][3:5] == ["0.05", ""]


def test_numbers_of_simulated_raters_are_not_subtracted():
    stage = "08_turing_test"
    for name, ratings in (("one", "ratings"), ("two", "")):
        run = finished(name, f"turing.ratings={ratings}" if ratings else "")
        row = {"key": "turing.raters.kappa", "claim": "kappa", "this_run": 0.1, "same_protocol": "yes"}
        run.record_claims(stage, [row])
    runs = [
        artifacts.open_run("smoke", given, run=name) for name, given in (("one", "turing.ratings=ratings"), ("two", ""))
    ]
    assert rows_of(report.comparison_html(*runs))["kappa"][3:5] == ["", "simulated raters"]


def test_what_cannot_be_compared_ends_in_one_sentence(root, capsys):
    finished("one")
    finished("half", stages=pipeline.STAGES[:6])
    for a, b, said in (
        ("one", "", r"expected two runs, found A='one' and B=''.*Runs here: half, one"),
        ("one", "one", "found 'one' twice"),
        ("one", "nowhere", r"run 'nowhere': expected it under artifacts/, found none; runs here: half, one"),
        ("one", "../one", r"expected the name of a run, found '\.\./one'"),
        ("one", "half", r"run 'half' is not finished: .* found none of 07_shap and 08_turing_test"),
    ):
        assert cli.main(["compare", "--", a, b]) == cli.USER_ERROR
        error = capsys.readouterr().err
        assert re.search(said, error), error
        assert error.count("\n") == 1
    assert not (root / "reports" / "compare").exists()


def test_make_compares_and_packs(root):
    finished("one")
    finished("two", auc=0.75)
    said = run_make("compare", "A=one", "B=two", root=root, check=0).stdout
    assert (root / "reports" / "compare" / "one-two.html").exists(), said
    said = run_make("report-zip", "RUN=one", root=root, check=0).stdout
    assert "left out: 08_turing_test.html, since it shows which images of the Turing test are real" in said
    assert "With images of patients" in said
    assert (root / "reports" / "one" / "one-report.zip").exists()
    said = run_make("compare", "A=one", root=root, check=2).stderr
    assert "make compare A=<run> B=<run>" in said


# ---------------------------------------------------------------- archive


def test_archive_holds_the_pages_but_not_the_key(root):
    run = finished("one")
    path = report.write_archive(run)
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        names = packed.namelist()
        pages = {name.removeprefix("one-report/"): packed.read(name).decode() for name in names}
    assert names == sorted(names)
    assert set(pages) == {"index.html", *(f"{stage}.html" for stage in pipeline.STAGES[:7])}
    assert "left out here: it shows which images of the Turing test are real" in pages["index.html"]
    for page in pages.values():
        linked = re.findall(r'href="([^"#]+)"', page)
        assert all(link in pages or link == "data:," for link in linked), "a link that leads nowhere"
    assert 'href="08_turing_test.html"' in report.index_html(run), "the page on this disk has it"


def test_an_archive_without_images_has_none_and_says_so(root):
    run = finished("one")
    cells = [
        nbformat.v4.new_code_cell(
            "show()",
            outputs=[nbformat.v4.new_output("display_data", {"image/png": png})],
            metadata={"tags": ["key-figure", *tags]},
        )
        for png, tags in ((PATIENT, ["shows-images"]), (CURVE, []))
    ]
    notebook = executed(SWEEP, cells)
    del notebook.cells[3]  # its figure would be on the front page instead
    nbformat.write(notebook, run.reports / f"{SWEEP}.ipynb")
    report.write_notebook(run, SWEEP)
    report.write_index(run)
    for images, name in ((True, "one-report"), (False, "one-report-no-images")):
        path = report.write_archive(run, images)
        assert path.name == f"{name}.zip"
        with zipfile.ZipFile(path) as packed:
            pages = {entry: packed.read(entry).decode() for entry in packed.namelist()}
        assert all(entry.startswith(f"{name}/") for entry in pages)
        shown = "".join(pages.values())
        assert (PATIENT in shown) == images
        assert CURVE in shown, "a figure without images stays"
        said = "These pages were made without images of patients, real or synthetic."
        assert (said in pages[f"{name}/index.html"]) == (not images)
        assert ("Images of patients are left out here." in pages[f"{name}/{SWEEP}.html"]) == (not images)
    said = run_make("report-zip", "RUN=one", "IMAGES=no", root=root, check=0).stdout
    assert "one-report-no-images.zip" in said
    assert "Without images of patients, real or synthetic" in said


def test_the_key_goes_along_once_people_have_rated(root):
    (root / "ratings").mkdir()
    run = finished("one", "turing.ratings=ratings")
    with zipfile.ZipFile(report.write_archive(run)) as packed:
        assert "one-report/08_turing_test.html" in packed.namelist()


def test_the_same_pages_give_the_same_bytes(root):
    run = finished("one")
    first = report.write_archive(run).read_bytes()
    assert report.write_archive(run).read_bytes() == first


def test_an_archive_is_whole_or_absent(root, monkeypatch):
    run = finished("one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="no space left while writing"):
        report.write_archive(run)
    assert not [path for path in run.reports.iterdir() if path.suffix == ".zip"]


def test_an_archive_of_an_unfinished_or_stale_report_is_refused(root):
    run = finished("one")
    index = run.reports / "index.html"
    index.rename(run.reports / "moved.html")
    with pytest.raises(ValueError, match=r"index\.html: expected the front page of the run, found none; run make all"):
        report.write_archive(run)
    (run.reports / "moved.html").rename(index)
    nbformat.write(executed(SWEEP), run.reports / f"{SWEEP}.ipynb")
    with pytest.raises(ValueError, match=r"expected the page of its executed notebook, found an older one"):
        report.write_archive(run)
    report.write_notebook(run, SWEEP)
    report.write_index(run)
    assert report.write_archive(run).exists()
    (run.root / "toy" / "toy.json").write_text("damaged", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"run 'one' is out of date at 06_classification_sweep: toy: its file toy\.json"
    ):
        report.write_archive(run)
    assert report.left_out(run) == ["08_turing_test"]


def test_a_run_is_packed_after_its_cohort_was_moved_away_and_asked_for_again_with_all_that_it_was(root):
    cohort = root / "cohort's folder"
    cohort.mkdir()
    (cohort / "images.csv").write_text("image,patient,label\n", encoding="utf-8")
    run = finished("one", "sweep.n_seeds=3", data=str(cohort))
    shutil.rmtree(cohort)
    assert report.write_archive(run).exists()
    (run.reports / f"{SWEEP}.html").unlink()
    words = f"""found none; run make all PROFILE=smoke RUN=one DATA={shlex.quote(str(cohort))} SET='sweep.n_seeds=3'."""
    with pytest.raises(ValueError, match=re.escape(words)):
        report.write_archive(run)
