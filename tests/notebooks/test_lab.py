"""JupyterLab as its user meets it, in headless Chromium: the start page, a notebook run to its end, every explorer.

`make lab` is started on a copy of the small run and of the notebooks, with the network shut; the copies take what
JupyterLab saves.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import notebook_names
import pytest
from page_checks import serious
from project import GUARD, PROJECT, make_command

from nafld_utils import pipeline
from nafld_utils.pipeline import overview
from nafld_utils.views import widgets

pytestmark = pytest.mark.slow
WAIT = 120_000  # ms; a kernel's imports on a loaded machine
TOKEN = "of-this-test"
# An old configuration of the user that would open the server to everybody.
OPEN_TO_ALL = """
c.ServerApp.ip = c.LabApp.ip = c.NotebookApp.ip = "0.0.0.0"
c.ServerApp.token = c.NotebookApp.token = c.IdentityProvider.token = ""
c.ServerApp.allow_origin, c.ServerApp.allow_remote_access, c.ServerApp.disable_check_xsrf = "*", True, True
c.ServerApp.allow_unauthenticated_access = True
"""
# Every cell is in the page, whether it is in sight or not, so that a test can ask for it.
SETTINGS = {"@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"}}
OPENED = ("01_data_analysis", "05_quality_metrics")  # opened themselves
EXPLORERS = {  # other notebooks: the cell of the explorer
    "02_preprocessing": "explorer.crops(",
    "06_classification_sweep": "explorer.results(",
    "07_shap": "explorer.maps(",
}


def free_port():
    """A port that nobody has, and that the system gives to nobody who asks for any: below those that it hands out."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("expected a free port, found none")


def explorers_alone(path):
    """A notebook of the explorers of `EXPLORERS`, each after the cells that it needs."""
    cells = []
    for stage, mark in EXPLORERS.items():
        sources = notebook_names.code_cells(PROJECT / "notebooks" / f"{stage}.ipynb")
        (wanted,) = [key for key, source in sources.items() if mark in source]
        cells += [nbformat.v4.new_code_cell(sources[key]) for key in notebook_names.needed(sources, wanted)]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def study(smoke, tmp_path_factory):
    """The small run, linked, beside copies of the notebooks."""
    root = tmp_path_factory.mktemp("lab")
    for name in ("artifacts", "reports"):
        shutil.copytree(smoke.root / name, root / name, copy_function=os.link)
    (root / "notebooks").mkdir()
    for stage in pipeline.STAGES:
        shutil.copy2(PROJECT / "notebooks" / f"{stage}.ipynb", root / "notebooks")
    explorers_alone(root / "notebooks" / "explorers.ipynb")
    return root


@pytest.fixture(scope="module")
def lab(study):
    """JupyterLab by `make lab`; when it is stopped, neither it nor a kernel is left, and no machine was asked."""
    home, port, log = study / "home", free_port(), study / "network.log"
    for name, value in SETTINGS.items():
        path = home / "settings" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces", "IPYTHONDIR": "ipython"}
    (home / "config").mkdir()
    for name in ("jupyter_config", "jupyter_server_config", "jupyter_lab_config", "jupyter_notebook_config"):
        (home / "config" / f"{name}.py").write_text(OPEN_TO_ALL)
    environment = {name: str(home / folder) for name, folder in places.items()}
    environment |= {"JUPYTER_TOKEN": TOKEN, "PYTHONPATH": str(GUARD), "NAFLD_NETWORK_LOG": str(log)}
    options = f"LAB=--no-browser --allow-root --ServerApp.port={port} --ServerApp.port_retries=0"
    words = ("lab", "PROFILE=smoke", f"NOTEBOOKS={study / 'notebooks'}", options)
    command, env = make_command(*words, root=study, **environment)
    with open(home / "out.txt", "w") as out:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(process, f"http://127.0.0.1:{port}/api/status?token={TOKEN}", home / "out.txt")
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", notebooks=study / "notebooks", port=port)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert not [path.name for path in (home / "runtime").glob("kernel-*.json")], "a kernel is left"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)
    assert not log.exists(), log.read_text(encoding="utf-8")


def wait_for(process, url, out, seconds=90):
    """Wait until the server answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, out.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer in {seconds} s: {out.read_text(encoding='utf-8')}")


@pytest.fixture
def page(lab, browser):
    """A window; afterwards it has asked nobody but the server."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(WAIT)
    requests = []
    context.on("request", lambda request: requests.append(request.url))
    yield context.new_page()
    context.close()
    assert not [url for url in requests if not url.startswith((lab.url, "data:", "blob:"))]


def run_all(page, name):
    """*Run > Run All Cells*, once the notebook of this name is in front and its kernel is there."""
    page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def made(lab):
    """When each unit was made."""
    return {path: path.stat().st_mtime_ns for path in (lab.notebooks.parent / "artifacts").rglob("run.json")}


def picture(explorer, which=-1):
    """What an explorer shows: its last picture, as the browser has it."""
    return explorer.locator("img").nth(which).get_attribute("src")


def assert_sliders_can_be_dragged(explorer, n):
    """Every slider has a track to move along."""
    tracks = explorer.locator(".noUi-target").all()
    assert len(tracks) == n
    assert all(track.bounding_box()["width"] > 150 for track in tracks)


def changes(page, explorer, act):
    """Do something to an explorer and wait until its picture is another one, which the eye can tell apart."""
    shown = explorer.locator("img").last
    before, seen = picture(explorer), shown.screenshot()
    act()
    page.wait_for_function(
        "([box, before]) => (image => image.src !== before && image.complete && image.naturalWidth > 0)"
        "([...box.querySelectorAll('img')].at(-1))",
        arg=[explorer.element_handle(), before],
    )
    assert shown.screenshot() != seen
    assert picture(explorer) != before


def choose(page, explorer, name, label):
    """Choose an entry of a list, which has to change the picture."""
    changes(page, explorer, lambda: explorer.get_by_label(name, exact=True).select_option(label=label))


def saved_with_outputs(path, seconds=30):
    """The notebook once JupyterLab has saved it whole, with outputs."""
    until = time.monotonic() + seconds
    while True:
        try:
            saved = nbformat.read(path, as_version=4)
        except ValueError:  # read while it was being written
            saved = None
        if time.monotonic() > until or (saved and any(cell.get("outputs") for cell in saved.cells)):
            return saved
        time.sleep(0.2)


def test_the_server_is_this_machines_alone_and_asks_for_its_token_whatever_an_old_configuration_says(lab):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.url}/api/contents", timeout=10)
    heard = {
        line.split()[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{lab.port:04X}") and line.split()[3] == "0A"
    }
    assert heard == {"0100007F"}, "127.0.0.1 and no other address"


def test_from_the_start_page_through_a_notebook_to_another_picture(page, lab):
    page.goto(f"{lab.url}/?token={TOKEN}")
    page.get_by_text("8 stages: 8 done").wait_for()
    assert page.get_by_role("tab", name=overview.START).is_visible()
    table = page.get_by_role("table").first
    assert table.get_by_role("row").count() == 1 + len(pipeline.STAGES)
    assert table.get_by_role("link", name="current").count() == len(pipeline.STAGES)
    page.get_by_text("make lab PROFILE=smoke", exact=True).first.wait_for()
    assert page.get_by_text("Jupyter news").count() == 0
    assert serious(page, ".jp-RenderedHTMLCommon") == []

    stored = made(lab)
    table.get_by_role("link", name="01_data_analysis").click()
    run_all(page, "01_data_analysis.ipynb")
    page.get_by_text("stage 1 of 8, 01_data_analysis").wait_for()
    page.get_by_text("2 of 2 done").wait_for()
    page.get_by_text("its unit was made in (s)").wait_for(state="attached")  # the last folded cell's table
    assert made(lab) == stored, "a finished notebook resumes from what is stored"
    for folded in ("cohort.n_patients", "its unit was made in (s)"):
        page.get_by_text(folded, exact=True).first.wait_for(state="attached")
        assert not page.get_by_text(folded, exact=True).first.is_visible(), "a section at the end opened"
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0

    explorer = page.locator(".jp-OutputArea-output .widget-vbox").first
    explorer.scroll_into_view_if_needed()
    assert_sliders_can_be_dragged(explorer, 2)
    patient, frame = (explorer.get_by_role("slider").nth(i) for i in (0, 1))
    changes(page, explorer, lambda: frame.press("ArrowRight"))
    changes(page, explorer, lambda: patient.press("ArrowRight"))

    page.keyboard.press("Control+s")
    saved = saved_with_outputs(lab.notebooks / "01_data_analysis.ipynb")
    assert any(cell.get("outputs") for cell in saved.cells), "it was saved"
    assert "widgets" not in saved.metadata, "a widget's state is in the notebook"


def test_the_explorer_of_synthetic_images_follows_each_control_in_its_notebook_run_cell_by_cell(page, lab):
    name = "05_quality_metrics.ipynb"
    page.goto(f"{lab.url}/lab/tree/notebooks/{name}?reset&token={TOKEN}")  # without the tabs of before
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    sources = notebook_names.code_cells(lab.notebooks / name)
    (wanted,) = [key for key, source in sources.items() if "explorer.images(" in source]
    for key in notebook_names.needed(sources, wanted):
        page.locator(".jp-CodeCell").nth(list(sources).index(key)).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
    images = page.locator(".jp-OutputArea-output > .widget-vbox").last
    images.locator("img").wait_for()
    images.scroll_into_view_if_needed()
    assert_sliders_can_be_dragged(images, 1)
    changes(page, images, lambda: images.get_by_role("slider").press("End"))
    choose(page, images, "generator", "class")
    choose(page, images, "fold", "1" if ", fold 0, drawn as" in images.inner_text() else "0")
    choose(page, images, "class", "fatty" if "drawn as healthy" in images.inner_text() else "healthy")
    choose(page, images, "order", "distance to held-out real images, farthest first")
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_every_other_explorer_follows_its_controls(page, lab):
    page.goto(f"{lab.url}/lab/tree/notebooks/explorers.ipynb?reset&token={TOKEN}")  # without the tabs of before
    run_all(page, "explorers.ipynb")
    found = page.locator(".jp-OutputArea-output > .widget-vbox")
    crops, results, maps = (found.nth(i) for i in range(len(EXPLORERS)))
    maps.locator("img").wait_for()
    assert found.count() == len(EXPLORERS)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0

    for explorer, n in ((crops, 4), (results, 0), (maps, 1)):
        assert_sliders_can_be_dragged(explorer, n)
    crops.scroll_into_view_if_needed()
    changes(page, crops, lambda: crops.get_by_role("slider").nth(2).press("ArrowRight"))
    changes(page, crops, lambda: crops.get_by_role("slider").nth(0).press("ArrowRight"))
    results.scroll_into_view_if_needed()
    curve = picture(results, 0)
    choose(page, results, "arm", "semantic")
    assert picture(results, 0) == curve, "the curve is of all arms"
    maps.scroll_into_view_if_needed()
    changes(page, maps, lambda: maps.get_by_label("image", exact=True).select_option(index=1))
    changes(page, maps, lambda: maps.get_by_role("slider").press("ArrowLeft"))
    changes(page, maps, lambda: maps.get_by_role("checkbox").click())


def test_executed_reports_show_the_static_twin_and_hold_no_widget(smoke):
    for stage in (*OPENED, *EXPLORERS):
        notebook = nbformat.read(smoke.reports / f"{stage}.ipynb", as_version=4)
        assert "widgets" not in notebook.metadata, stage
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        (place,) = [i for i, cell in enumerate(cells) if "explorer." in cell.source]
        (output,) = cells[place].outputs
        assert output.data["text/markdown"] == widgets.HEADLESS
        twin = [item for item in cells[place + 1].outputs if "image/png" in item.get("data", {})]
        assert twin, f"{stage}: a figure follows"
        page = (smoke.reports / f"{stage}.html").read_text(encoding="utf-8")
        assert "its static twin" in page
        assert "widget-view" not in page
