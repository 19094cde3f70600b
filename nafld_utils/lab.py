"""JupyterLab for one run: a start page, and a server whose notebooks open the run that make was asked for.

Contract: settings are validated before a server starts. The server listens on this machine alone and asks for its
token; it fetches nothing: no news, no look for updates, no catalogue of extensions. The start page is made anew each
time, carries its tables already, and is ignored by git.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, execute, overview
from nafld_utils.artifacts import Run

_CONFIG = Path(__file__).parent / "templates"  # its labconfig/ switches off the question whether to fetch news
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")  # else they change every make in a terminal of Lab

_INTRODUCTION = """# Start here

Eight notebooks, from the cohort to the Turing test; each reads what those before it have stored. A link opens one;
*Run > Run All Cells* takes it to its end. What is done is opened and never computed again, so a notebook of a finished
run takes seconds, its cells can be run again in any order, and one that was stopped goes on where it was.

## Where this run is
Run the next cell again to see the present state."""

_OTHERS = """## Other runs
Notebooks open the run that `make lab` was started for. To open another one, stop JupyterLab (*File > Shut Down*) and
start it again with that run's command:"""

_CHOICES = """## Another profile, other settings, another cohort

| to | start JupyterLab with |
|:---|:---|
| try the machinery, a minute | `make lab PROFILE=smoke` |
| see the demonstration on simulated patients | `make lab` |
| use your own images, a folder with `images.csv` | `make lab PROFILE=cpu DATA=/path/to/folder RUN=mine` |
| use the real cohort on a CPU | `make lab PROFILE=cpu DATA=/path/to/cohort.mat` |
| change a setting, beside the run you have | `make lab SET="sweep.n_seeds=5" RUN=five-seeds` |

`params/paper.yaml` explains every setting. A notebook whose first code cell is edited opens what that says instead:
`profile = "cpu"`, `overrides = {"sweep.n_seeds": 5, "run": "five-seeds"}`.

*done*: everything the stage made is there and whole. *stale*: a setting, the notebook or a file that it stands on has
changed; running it again makes what has to be made anew. `make all` with the same words runs what is stale without a
browser and writes the reports. Notebooks keep their outputs when they are saved here; before a commit
`.venv/bin/nbstripout --keep-id notebooks/[0-9]*.ipynb` in a terminal takes them out."""

_STAGES_CELL = """from nafld_utils import overview

run, notebooks = overview.lab_run()
overview.stages(run, notebooks)"""
_RUNS_CELL = "overview.runs(run)"


def start(run: Run, notebooks: Path, options: Sequence[str] = ()) -> int:
    """Write the start page and become JupyterLab for a run; returns only where that fails, may raise OSError.

    The folder above the notebooks is the server's root; `options` are further ones of ``jupyter lab``.
    """
    write_start_page(run, notebooks)
    sys.stdout.flush()
    os.execve(sys.executable, command(notebooks, options), environment(run, notebooks))


def command(notebooks: Path, options: Sequence[str] = ()) -> list[str]:
    """Command line of the server."""
    folder = notebooks.absolute()
    settings = {
        "ServerApp.root_dir": folder.parent,
        "FileContentsManager.preferred_dir": folder.name,
        "LabApp.default_url": f"/lab/tree/{folder.name}/{overview.START}",
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
        "KernelManager.transport_encryption": execute.transport_encryption(),
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in settings.items()), *options]


def environment(run: Run, notebooks: Path) -> dict[str, str]:
    """Environment of the server, which its kernels inherit."""
    given = {
        "profile": run.settings.profile,
        "overrides": run.overrides,
        "notebooks": str(notebooks.absolute()),
    }
    kept = {name: value for name, value in os.environ.items() if name not in _OF_MAKE}
    config = os.pathsep.join([*filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")]), str(_CONFIG)])
    own = {artifacts.LAB: json.dumps(given, default=str), "JUPYTER_CONFIG_PATH": config}
    return {**kept, **execute.kernel_environment(run), **own}


def write_start_page(run: Run, notebooks: Path) -> Path:
    """Write the start page into the folder of the notebooks, its tables as they are now."""
    import nbformat

    page = start_page(run, notebooks)
    nbformat.validate(page)
    return artifacts.save_text(notebooks / overview.START, nbformat.writes(page))


def start_page(run: Run, notebooks: Path) -> Any:
    """The start page of a run, executed: a notebook (nbformat.NotebookNode) whose cells make its tables anew."""
    from nbformat import v4

    def executed(source: str, text: str, count: int) -> Any:
        shown = v4.new_output("execute_result", data={"text/markdown": text}, execution_count=count)
        return v4.new_code_cell(source, outputs=[shown], execution_count=count)

    cells = [
        v4.new_markdown_cell(_INTRODUCTION),
        executed(_STAGES_CELL, overview.stages_text(run, notebooks), 1),
        v4.new_markdown_cell(_OTHERS),
        executed(_RUNS_CELL, overview.runs_text(run), 2),
        v4.new_markdown_cell(_CHOICES),
    ]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
