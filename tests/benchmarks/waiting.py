"""How long people wait: the smoke run from nothing, the same once more, and its notebooks opened in JupyterLab.

A notebook is opened as ``make lab`` opens it, in a kernel of its own; seconds count from the start of the kernel to the
reply of the last cell. Seconds of a busy machine say little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import records
import torch
from nbclient import NotebookClient
from traitlets.config import Config

from nafld_utils import artifacts, pipeline
from nafld_utils.pipeline import execute, lab

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "notebooks"


def opened(run: artifacts.Run, stage: str, notebook: nbformat.NotebookNode) -> tuple[float, dict[str, float]]:
    """Run a notebook's cells on a finished run: seconds to the last reply, and those of each cell by its id."""
    environment = lab.environment(run, FOLDER) | {"JPY_SESSION_NAME": f"{stage}.ipynb"}
    where, safe = {"metadata": {"path": str(FOLDER)}}, {"transport_encryption": execute.transport_encryption()}
    how = {"kernel_name": "python3", "resources": where, "config": Config({"KernelManager": safe})}
    client, cells = NotebookClient(notebook, timeout=120, **how), {}
    started = time.perf_counter()
    with client.setup_kernel(env=environment):
        before = time.perf_counter()
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i)
            now = time.perf_counter()
            cells[cell.id], before = now - before, now
    return before - started, cells


def _make_run(root: str, run: str) -> float:
    """Seconds of ``make all`` for a run below another root."""
    command = ["make", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}", "all", f"PROFILE={run}"]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, "NAFLD_ROOT": root}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"make all PROFILE={run}: expected it to end well, found\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def measure(options: argparse.Namespace, _: torch.device) -> records.Rows:
    """A row for the run, one for the same again, one for each notebook: the median of its openings."""
    with tempfile.TemporaryDirectory(prefix="nafld-bench-") as own:
        root = str(artifacts.work_root()) if options.finished else own
        for what in ("from nothing", "once more")[options.finished :]:
            row = {"stage": "all", "what": f"make all, {what}", "per": options.run}
            yield {**row, "seconds": _make_run(root, options.run)}
        os.environ["NAFLD_ROOT"] = root
        run = artifacts.open_run(options.run)
        for stage in options.stages or pipeline.STAGES:
            notebook = nbformat.read(FOLDER / f"{stage}.ipynb", as_version=4)
            seconds, cells = sorted((opened(run, stage, notebook) for _ in range(3)), key=lambda found: found[0])[1]
            slowest = sorted(cells, key=cells.get)[: -1 - options.cells : -1]
            per = ", ".join(f"{name} {cells[name]:.2f} s" for name in slowest)
            yield {"stage": stage[:2], "what": "notebook opened, median of three", "per": per, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="smoke", help="profile that is run and opened")
    parser.add_argument("--finished", action="store_true", help="open that run as it lies here, made already")
    parser.add_argument("--stages", nargs="*", choices=pipeline.STAGES, metavar="STAGE", help="notebooks to open")
    parser.add_argument("--cells", type=int, default=3, help="how many of the slowest cells are named")
    return records.run("waiting", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
