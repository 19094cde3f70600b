"""Reports: what they say, that they carry all they need, and how a browser sees them."""

import base64
import html
import io
import re
import shlex

import nbformat
import numpy as np
import pandas as pd
import pytest
from page_checks import RANDOM, addresses, assert_self_contained, assert_whole_in_print, executed, open_and_look
from PIL import Image

from nafld_utils import artifacts, report, views
from nafld_utils.report import facts, notebooks, pages, pictures

STAGE = "06_classification_sweep"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a cohort, two executed stages and claims, one of which tries to be HTML."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke", "sweep.n_seeds=3")
    cohort = run.unit("cohort", settings={})
    with cohort.writing(device="cpu", seconds=61.0) as folder:
        patients = pd.DataFrame({"patient_id": [1, 2, 3], "label": [0, 1, 1], "grade": [0, 5, 60]})
        artifacts.save_table(folder / "patients.csv", patients)
        artifacts.save_table(folder / "images.csv", pd.DataFrame({"image_id": ["a", "b", "c", "d"]}))
        artifacts.save_json(folder / "provenance.json", {"kind": "simulated", "text": "3 <patients>", "sha256": "ab12"})
    run.finish("01_data_analysis", [cohort])
    rows = [
        {"claim": "AUC <b>real</b> & semantic", "paper": 0.882, "this_run": 0.87654, "low": 0.75, "high": 0.955,
         "over": "patients", "n": 3, "unit": "AUC", "same_protocol": "simulated cohort"},
        {"claim": "accuracy", "paper": "0.512 [0.406, 0.618]", "this_run": np.nan, "same_protocol": "no raters yet"},
        {"claim": "Frechet distance", "paper": 72.95, "this_run": 312.14, "same_protocol": "other features"},
        {"claim": "patients", "paper": "55.0", "this_run": 3, "same_protocol": "simulated cohort"},
    ]  # fmt: skip
    run.record_claims(STAGE, [{"key": f"toy.{number}", **row} for number, row in enumerate(rows)])
    for stage in ("01_data_analysis", STAGE):
        run.reports.mkdir(parents=True, exist_ok=True)
        nbformat.write(executed(stage), run.reports / f"{stage}.ipynb")
    return run


def test_front_page_says_what_was_found(run):
    page = report.index_html(run)
    assert "SIMULATED COHORT" in page
    cells = re.search(r"real&lt;/b&gt; &amp; semantic</th>(.*?)</tr>", page)[1]  # its unit is said
    cells = cells.replace("\u00a0", " ")
    assert re.findall(r">([^<]+)</td>", cells) == [
        "0.882",
        "0.877 [0.75, 0.955]",
        "patients, n = 3",
        "no: 1",
    ]
    assert re.findall("<li>(.*?)</li>", page.partition('class="legend"')[2])[:3] == [
        "simulated cohort",
        "no raters yet",
        "other features",
    ], "what differs stands once"
    assert (
        page.index('id="answer"') < page.index('id="paper"') < page.index('id="figures"') < page.index('id="methods"')
    )
    assert "0.512 [0.406, 0.618]" in page
    assert ">72.95</td>" in page, "the paper's own digits"
    assert ">55</td>" in page
    assert "3: 1 healthy, 2 fatty" in page
    assert "3 &lt;patients&gt;" in page
    assert "AUC &lt;b&gt;real&lt;/b&gt; &amp; semantic" in page
    assert "1 min 23 s" in page, "how long the notebook took"
    assert "1 min 01 s" in page, "how long its units took"
    assert '<th scope="row"><code>sweep.n_seeds</code></th><td data-label="this run">3</td>' in page
    assert "Do synthetic images help a classifier?" in page
    assert 'href="06_classification_sweep.html"' in page
    assert "not run" in page, "the six other stages"
    assert f"torch {artifacts.environment()['versions']['torch']}" in page


def test_front_page_says_which_trainings_had_two_versions_of_torch_and_where_weights_are_from(run):
    page = report.index_html(run)
    assert "<dt>torch of each training</dt><dd>not recorded</dd>" in " ".join(page.split())
    for name, made in {
        "one": {"trained_with": ["2.3.0"]},
        "two": {"trained_with": ["2.3.0", "2.4.0"], "hub": "timm/resnet50 at commit 0123"},
        "three": {"autoencoder": {"commit": None}},
    }.items():
        with run.unit("ldm", name, settings={}).writing(**made):
            pass
    page = " ".join(report.index_html(run).split())
    assert "<dt>torch of each training</dt><dd>ldm/two: 2.3.0, then 2.4.0</dd>" in page
    assert "autoencoder at commit not known, timm/resnet50 at commit 0123" in page


def test_front_page_shows_the_tagged_figure_else_the_first(run):
    notebook = executed(STAGE)
    (figure,) = notebooks.key_figures(STAGE, notebook)
    title = "06 · Does it help?"
    assert figure["caption"] == f"{title} Image-level AUC over the mixing rate. Boxes are over seeds, not patients."
    assert figure["alt"] == "Figure: Image-level AUC over the mixing rate. Boxes are over seeds, not patients."
    assert base64.b64decode(figure["data"]).startswith(b"RIFF"), "a lossless WebP"
    del notebook.cells[3].metadata["tags"]
    assert len(notebooks.key_figures(STAGE, notebook)) == 1
    notebook.cells[3].outputs = notebook.cells[5].outputs = []
    assert notebooks.key_figures(STAGE, notebook) == []


def test_figures_tagged_for_the_answer_come_before_key_figures():
    notebook = executed(STAGE)
    notebook.cells[5].metadata["tags"] = [pictures.KEY_FIGURE, pictures.ANSWER_FIGURE]
    notebook.cells[5].outputs = notebook.cells[5].outputs * 3
    found = notebooks.key_figures(STAGE, notebook)
    assert [figure["alt"] for figure in found] == [
        "Figure: Image-level AUC over the mixing rate",
        "Figure: Image-level AUC over the mixing rate (2)",
        "Figure: Image-level AUC over the mixing rate (3)",
    ]


def test_real_cohort_has_no_banner(run, tmp_path):
    real = artifacts.open_run("cpu", run="another")
    assert "SIMULATED" not in report.index_html(real)
    assert "SIMULATED" not in notebooks.notebook_html(real, STAGE, executed(STAGE))


def test_pages_carry_all_they_need(run):
    for page in (report.index_html(run), notebooks.notebook_html(run, STAGE, executed(STAGE))):
        assert_self_contained(page)
        assert "alert(1)" not in page
    linked = addresses(report.index_html(run)).linked
    assert all(re.fullmatch(r"#?[\w.-]+", link) for link in linked), linked


def test_notebook_page_folds_code_and_names_its_figures(run):
    page = notebooks.notebook_html(run, STAGE, executed(STAGE))
    assert page.count('<details class="code"><summary>code</summary>') == 3
    assert "SIMULATED COHORT" in page
    assert 'alt="Figure: Image-level AUC over the mixing rate. Boxes are over seeds, not patients."' in page
    assert "Interactive in JupyterLab only" in page
    assert "interactive()" not in page
    assert 'href="05_quality_metrics.html"' in page
    assert 'href="07_shap.html"' in page
    assert "&lt;" in page, "code is escaped"


def test_a_cell_that_shows_nothing_leaves_its_code_and_no_trace(run):
    code, text = nbformat.v4.new_code_cell, [nbformat.v4.new_output("stream", name="stdout", text="seen")]
    cells = [code("quiet = 1"), code("print('seen')", outputs=text), code("last = 2")]
    page = notebooks.notebook_html(run, STAGE, executed(STAGE, cells))
    assert page.count('<details class="code">') == 4, "the widget's note, two figures, one text"
    block = html.unescape(re.sub("<[^>]*>", "", page[page.rindex('<details class="code">') :]))
    assert re.search(r"quiet = 1\s+print\('seen'\)\s+last = 2\s+seen", block)


def test_folded_sections_stand_closed_at_the_end_of_a_page_in_their_order(run):
    def section(name, **metadata):
        return [
            nbformat.v4.new_markdown_cell(f"## {name}\nWords of {name}.", metadata=metadata),
            nbformat.v4.new_code_cell(
                name, outputs=[nbformat.v4.new_output("stream", name="stdout", text=f"is {name}")]
            ),
        ]

    cells = [
        *section("Cost", tags=[notebooks.FOLDED_ON_PAGE]),
        *section("Answer"),
        *section("Checks <b>", **{notebooks.FOLDED: True}),
    ]
    page = notebooks.notebook_html(run, STAGE, executed(STAGE, cells))
    places = [
        page.index(text) for text in ("is Answer", "<h2>Cost</h2>", "is Cost", "<h2>Checks &lt;b&gt;</h2>", "</main>")
    ]
    assert places == sorted(places)
    assert page.count('<details class="fold">') == page.count('<details class="fold"><summary><h2>') == 2
    assert page.count("<details") == page.count("</details>")
    assert "Words of Cost." in page


def test_figures_are_vectors_where_the_notebook_has_them_else_small_and_lossless(run):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (80, 4000), dtype=np.uint8)).save(buffer, "PNG")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    with Image.open(io.BytesIO(base64.b64decode(pictures.light(data)["data"]))) as wide:
        assert wide.size == (1136, 23), "no wider than a page"
    drawn = pictures.light(data | {"image/svg+xml": "<svg/>"})
    assert (drawn["mime"], base64.b64decode(drawn["data"])) == ("image/svg+xml", b"<svg/>")
    assert pictures.light({"text/plain": "x"}) is None


def test_each_answer_has_a_card_with_its_figure(run):
    notebook = executed(STAGE)
    notebook.cells[3].metadata["tags"] = ["card-help"]
    nbformat.write(notebook, run.reports / f"{STAGE}.ipynb")
    page = report.index_html(run)
    cards = re.findall(r'<section class="card" aria-labelledby="card-(\w+)">(.*?)</section>', page, re.DOTALL)
    assert [key for key, _ in cards] == ["help", "quality", "copies", "people"]
    assert "<img" in dict(cards)["help"]
    assert "Not answered" in dict(cards)["quality"]
    notebook.cells[3].metadata["tags"] = ["card-help", pictures.SHOWS_IMAGES]
    nbformat.write(notebook, run.reports / f"{STAGE}.ipynb")
    assert "<img" not in re.search(r'id="card-help".*?</section>', report.index_html(run, images=False), re.DOTALL)[0]


def test_an_unfinished_run_has_a_front_page(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    empty = artifacts.open_run("demo")
    path = report.write_index(empty)
    assert "No stage has recorded a claim yet" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected an executed notebook, found none; run make 07_shap\."):
        report.write_notebook(empty, "07_shap")


@pytest.mark.parametrize(
    ("stored", "shown"),
    [("0.86123", "0.861"), ("550", "550"), ("550.0", "550"), ("72.95", "73.0"), ("312.14", "312.1"), ("1234.5", "1234"),
     ("-12.39", "-12.4"), ("6.43e-12", "6.43e-12"), ("", ""), (float("nan"), ""), ("inf", "inf"),
     ("0.5 [0.4, 0.6]", "0.5 [0.4, 0.6]")],
)  # fmt: skip
def test_numbers_are_read_not_stored(stored, shown):
    assert views.number(stored) == shown


def test_command_on_the_page_gives_the_same_run(run, tmp_path):
    cohort = tmp_path / "a b'.mat"
    cohort.touch()
    asked = artifacts.open_run("smoke", "sweep.n_seeds=3", run="x", data=str(cohort))
    artifacts.save_json(asked.root / "settings" / "run.json", {"profile": "smoke", "overrides": asked.overrides})
    shown = re.search(r'This run: <code class="command">(.*?)</code>', report.index_html(asked))[1]
    words = dict(word.split("=", 1) for word in shlex.split(html.unescape(shown))[2:])
    assert words.pop("DATA") == "(left out)", "the file is the user's own"
    again = artifacts.open_run(words["PROFILE"], words["SET"], run=words["RUN"], data=str(cohort))
    assert again == asked


HOSTILE = "<img src=x onerror=alert(1)>\"'></td><script>alert(2)</script><b>bold</b>"


@pytest.fixture
def hostile(run):
    """The run with HTML in everything a user names: classes, patients, images, the cohort's text, a claim."""
    names = [f"{HOSTILE}0", f"{HOSTILE}1"]
    settings = run.settings.model_copy(
        update={"cohort": run.settings.cohort.model_copy(update={"class_names": tuple(names)})}
    )
    run = artifacts.Run(settings)
    cohort = run.root / "cohort"
    patients = pd.DataFrame({"patient_id": [HOSTILE, "b", "c"], "label": [0, 1, 1]})
    artifacts.save_table(cohort / "patients.csv", patients)
    provenance = {"kind": "simulated", "text": HOSTILE, "sha256": HOSTILE}
    artifacts.save_json(cohort / "provenance.json", provenance)
    row = {"claim": f"gain by {HOSTILE} images, r = 1", "this_run": 0.1, "low": 0.05, "high": 0.2, "over": "patients"}
    row |= {"unit": f"image-level {HOSTILE}", "same_protocol": HOSTILE, "key": "sweep.gain.patients"}
    run.record_claims(STAGE, [row])
    return run


def hostile_notebook():
    """Outputs as notebooks make them: a table that escapes, one that does not, and Markdown."""
    table = pd.DataFrame({"patient": [HOSTILE]})
    styled = table.style.set_caption(HOSTILE).to_html()
    assert "<script>" in styled, "pandas escapes nothing in a styled table"
    outputs = [
        nbformat.v4.new_output("execute_result", {"text/html": table.to_html()}),
        nbformat.v4.new_output("execute_result", {"text/html": styled}),
        nbformat.v4.new_output("display_data", {"text/markdown": f"**{HOSTILE}**"}),
        nbformat.v4.new_output("stream", name="stdout", text=HOSTILE),
    ]
    return executed(STAGE, [nbformat.v4.new_code_cell("table", outputs=outputs)])


def test_what_users_name_is_text_on_every_page(hostile):
    pages = [
        report.index_html(hostile),
        notebooks.notebook_html(hostile, STAGE, hostile_notebook()),
        report.comparison_html(hostile, hostile),
    ]
    for page in pages:
        assert_self_contained(page)
        assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
        assert "<img src=x" not in page


def test_a_browser_runs_nothing_that_users_name(hostile, tmp_path, browser):
    # the policy alone has to hold, should a name ever come through as it is
    raw = report.index_html(hostile).replace("<main", f"{HOSTILE}<main")
    pages = {
        "front": report.index_html(hostile),
        "notebook": notebooks.notebook_html(hostile, STAGE, hostile_notebook()),
        "raw": raw,
    }
    for name, text in pages.items():
        file, dialogs = tmp_path / f"{name}.html", []
        file.write_text(text, encoding="utf-8")
        page = browser.new_page()
        page.on("dialog", lambda dialog, dialogs=dialogs: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri(), wait_until="networkidle")
        assert not dialogs, name
        assert page.evaluate("document.querySelectorAll('main script, main img[src=x]').length") == 0
        page.close()


def test_pages_do_not_tell_where_the_users_files_lie(run, tmp_path):
    folder = tmp_path / "home" / "somebody"
    folder.mkdir(parents=True)
    (folder / "ours.mat").write_bytes(b"")
    ours = artifacts.open_run("demo", data=str(folder / "ours.mat"))
    note = executed(STAGE, [nbformat.v4.new_code_cell(f"overrides = {{'cohort.path': '{folder}/ours.mat'}}")])
    for page in (report.index_html(ours), notebooks.notebook_html(ours, STAGE, note)):
        assert str(folder) not in page
        assert "ours.mat" not in page
        assert "(left out)" in page


def test_a_browser_fetches_nothing_shows_the_pages_and_prints_them(run, browser):
    for path in (report.write_index(run), report.write_notebook(run, STAGE)):
        open_and_look(browser, path, sheets=1 + (path.name == "index.html"))


@pytest.mark.parametrize(
    ("look", "cell"),
    [("", "min-width: 90px"), ("table-layout: fixed; width: 100%", "white-space: nowrap")],
    ids=["a table", "the text of the last column"],
)
def test_what_print_cuts_off_is_found(tmp_path, browser, look, cell):
    cells = "".join(f"<td style='{cell}'>column {i}, {'0' * 20}</td>" for i in range(12))
    (tmp_path / "a.html").write_text(f"<title>a</title><table style='{look}'><tr>{cells}</tr></table>", "utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    page.emulate_media(media="print")
    with pytest.raises(AssertionError, match="cut off in print"):
        assert_whole_in_print(page)
    page.close()


@pytest.mark.parametrize("settings", RANDOM)
def test_pages_of_a_run_with_random_weights_say_what_is_untrained(settings):
    assert "RANDOM WEIGHTS" not in pages.simulated(artifacts.open_run("paper"))
    mine = artifacts.open_run("paper", settings, run="machinery")
    said = pages.simulated(mine)
    assert said.startswith(
        "RANDOM WEIGHTS in run machinery: untrained, for tests of the machinery, " + RANDOM[settings]
    )
    scratch = artifacts.open_run("paper", "sweep.weights=random sweep.freeze=none", run="scratch")
    assert pages.simulated(scratch) == "", "classifiers that are trained whole begin so"


def test_style_is_a_context_or_stays():
    import matplotlib as mpl

    before = mpl.rcParams["axes.grid"]
    with views.style({"font.size": 12}):
        assert mpl.rcParams["axes.grid"]
        assert mpl.rcParams["font.size"] == 12
    assert mpl.rcParams["axes.grid"] == before
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    with views.style():
        assert all(mpl.rcParams[name] >= 9 for name in sizes)


@pytest.mark.parametrize("layout", ["constrained", "none"])
def test_figures_of_simulated_patients_say_so(run, layout):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout=layout)
    axes.set_xlabel("r")
    mark = views.mark_simulated(figure, run)
    figure.canvas.draw()
    assert mark.get_text() == "simulated cohort"
    assert not mark.get_window_extent().overlaps(axes.xaxis.label.get_window_extent())
    assert views.mark_simulated(figure, artifacts.open_run("cpu")) is None
    plt.close(figure)


def test_numbers_of_the_list_of_differences_are_joined():
    names = ["a", "b", "c (x; y)", "d", "e"]
    table = [(names, "1"), ([names[0], *names[2:]], "1"), (names[3:], "1"), (["yes"], "1"), (["not in the paper"], "")]
    rows = [{"stage": "01", "same_protocol": "; ".join(told), "paper": paper, "this_run": "1"} for told, paper in table]
    found, legend = facts.claims(pd.DataFrame([dict.fromkeys(artifacts.CLAIM_COLUMNS, "") | row for row in rows]), {})
    assert legend == names
    shown = [row["comparable"] for row in found[0]["rows"]]
    assert shown == ["no: 1 to 5", "no: 1, 3 to 5", "no: 4, 5", "yes, differs by 0", ""]


def test_a_heavy_page_takes_smaller_pictures(run, monkeypatch):
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (600, 2000), dtype=np.uint8)).save(buffer, "PNG")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    cell = nbformat.v4.new_code_cell("plot()", outputs=[nbformat.v4.new_output("display_data", data)])
    nbformat.write(executed(STAGE, [cell]), run.reports / f"{STAGE}.ipynb")
    large = report.write_notebook(run, STAGE).stat().st_size
    monkeypatch.setattr(notebooks, "_HEAVY", large // 2)
    assert report.write_notebook(run, STAGE).stat().st_size < 0.9 * large
