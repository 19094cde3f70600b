"""JupyterLab for one run: a start page, and a server whose notebooks open the run that make was asked for.

Contract: settings are validated before a server starts. The server listens on this machine alone and asks for its
token, whatever a Jupyter configuration of the user or the machine says: none is read, but for the user's own settings
of JupyterLab's windows. It fetches nothing: no news, no look for updates, no catalogue of extensions. The start page is
made anew each time, carries its tables already, and is ignored by git.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nafld_utils import artifacts
from nafld_utils.artifacts import Run
from nafld_utils.pipeline import execute, overview

_TEMPLATES = Path(__file__).parent / "templates"
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")  # else they change every make in a terminal of Lab


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
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.jpserver_extensions": dict.fromkeys(("jupyter_lsp", "jupyter_server_terminals"), True),
        "ServerApp.root_dir": folder.parent,
        "FileContentsManager.preferred_dir": folder.name,
        "LabApp.default_url": f"/lab/tree/{folder.name}/{overview.START}",
        "LabApp.app_settings_dir": _TEMPLATES / "labsettings",  # no question whether to fetch news
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
        "KernelManager.transport_encryption": execute.transport_encryption(),
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in settings.items()), *options]


def environment(run: Run, notebooks: Path) -> dict[str, str]:
    """Environment of the server, which its kernels inherit."""
    from jupyter_core.paths import jupyter_config_dir

    given = {"profile": run.settings.profile, "overrides": run.overrides, "notebooks": str(notebooks.absolute())}
    kept = {name: value for name, value in os.environ.items() if name not in _OF_MAKE}
    of_user = Path(jupyter_config_dir(), "lab")
    windows = {
        "JUPYTERLAB_SETTINGS_DIR": str(of_user / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(of_user / "workspaces"),
    }
    own = {artifacts.LAB: json.dumps(given, default=str), "JUPYTER_NO_CONFIG": "1"}
    return {**windows, **kept, **execute.kernel_environment(run), **own}


def write_start_page(run: Run, notebooks: Path) -> Path:
    """Write the start page into the folder of the notebooks, its tables as they are now."""
    import nbformat

    page = start_page(run, notebooks)
    nbformat.validate(page)
    return artifacts.save_text(notebooks / overview.START, nbformat.writes(page))


def start_page(run: Run, notebooks: Path) -> Any:
    """The start page of a run, executed: a notebook (nbformat.NotebookNode) whose cells make its tables anew.

    Its text is ``templates/start.md``, in which blocks of Python are the code cells.
    """
    from nbformat import v4

    text = (_TEMPLATES / "start.md").read_text(encoding="utf-8")
    tables = [overview.stages(run, notebooks), overview.runs(run)]
    *before, last = re.split(r"^```python\n(.*?)\n^```$", text, flags=re.MULTILINE | re.DOTALL)
    cells = []
    for count, (prose, source, table) in enumerate(zip(before[::2], before[1::2], tables, strict=True), 1):
        shown = v4.new_output("execute_result", data={"text/markdown": table.data}, execution_count=count)
        cells.append(v4.new_markdown_cell(prose.strip()))
        cells.append(v4.new_code_cell(source, outputs=[shown], execution_count=count))
    cells.append(v4.new_markdown_cell(last.strip()))
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
